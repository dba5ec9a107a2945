# Licensed under the Apache License, Version 2.0.
"""
Evaluate a model folder or Hub model zero-shot: tables on the screen, metrics.json and figures in a folder.

    python evaluate_zeroshot.py --model runs/tier --dataset synthetic --output_dir runs/tier/evaluation
    python evaluate_zeroshot.py --model runs/tier --dataset chexpert --data_dir /data/CheXpert --data.options.by study
"""

import argparse
import json
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import yaml

from modeling_tier.data import PLACES, SPLITS, check_options, describe_datasets, load_pairs
from modeling_tier.evaluation import (
    LABEL_POLICIES,
    combine_members,
    evaluate_zero_shot,
    has_prompts,
    is_ensemble,
    load_model,
    load_prompts,
    member_folders,
)
from modeling_tier.evaluation.figures import plot_patch_similarity, plot_roc, plot_similarity_maps
from modeling_tier.evaluation.tables import metrics_tables
from modeling_tier.training.configuration import parse_options


def main() -> None:
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="data sets and their options, --data.options.NAME VALUE (default)\n" + describe_datasets(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model",
        required=True,
        help="folder or Hub id of a TIER model or a CLIPModel, or the folder of an ensemble (with an ensemble.json)",
    )
    parser.add_argument("--dataset", default="synthetic", help="data set, a key of modeling_tier.data.DATASETS")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--data_dir", help="where the data set lies, for those that lie on a disk")
    parser.add_argument("--num_images", type=int, default=1000, help="of a data set that is drawn")
    parser.add_argument("--seed", type=int, help="of a data set that is drawn; default: that of the model's training")
    parser.add_argument("--prompts", help="YAML file with sentences; default: the data set's own")
    parser.add_argument("--uncertain", choices=LABEL_POLICIES, default="ignore", help="what a label of -1 counts as")
    parser.add_argument(
        "--blank", choices=LABEL_POLICIES, default="ignore", help="what a label not mentioned counts as"
    )
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--device", default="cpu", help="torch device, such as cuda")
    parser.add_argument("--output_dir", help="default: the folder 'evaluation' in the model's folder")
    arguments, options = parser.parse_known_args()
    try:
        run(arguments, data_options(arguments, options))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def run(arguments: argparse.Namespace, options: dict) -> None:
    if arguments.output_dir is None and not Path(arguments.model).is_dir():
        raise ValueError("--output_dir is needed for a model that is not a folder.")
    output_dir = Path(arguments.output_dir or Path(arguments.model) / "evaluation")
    members = member_folders(arguments.model)
    dataset = load_pairs(arguments.dataset, arguments.split, **options)
    prompts = {}
    if arguments.prompts or has_prompts(arguments.dataset):
        prompts = load_prompts(arguments.prompts or arguments.dataset, dataset.features.get("labels", {}))
    policies = {"uncertain": arguments.uncertain, "blank": arguments.blank}
    if len(members) > 1 and not prompts:
        raise ValueError(
            f"An ensemble is the mean of scores, and {arguments.dataset} has no sentences: give --prompts."
        )
    results = {}
    for name, member in members.items():
        model, processor = load_model(member)
        model.to(arguments.device)
        results[name] = evaluate_zero_shot(model, processor, dataset, prompts, arguments.batch_size, **policies)
    metrics, details = next(iter(results.values())) if len(results) == 1 else combine_members(results)

    output_dir.mkdir(parents=True, exist_ok=True)
    source = {
        "model": arguments.model,
        "dataset": arguments.dataset,
        "split": arguments.split,
        "options": options,
        "labels": policies,
        "versions": {name: version(name) for name in ("torch", "transformers", "datasets", "evaluate")},
    }
    (output_dir / "metrics.json").write_text(json.dumps({**source, "metrics": metrics}, indent=2))
    print(metrics_tables(metrics))
    if "labels" in dataset.features and not prompts:
        print("\nThere are no sentences for its labels, so no AUROC: give --prompts FILE.")
    figures = output_dir / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    if "regions" in dataset.features and len(results) == 1:
        findings = list(prompts) or list(dataset.features["labels"])
        plot_similarity_maps({"map": model}, processor, dataset, figures / "similarity_maps.png", findings)
    if "rank_similarity" in details:
        plot_patch_similarity({Path(arguments.model).name: details}, dataset, figures / "patch_similarity.png")
    if prompts:
        plot_roc(details, dataset, figures / "roc.png")
    print(f"\nmetrics.json and figures/ are in {output_dir}")


def data_options(arguments: argparse.Namespace, given: list[str]) -> dict:
    """Options of the data set: those of the model's own training on it, and what the command line says."""
    prefix = "data.options."
    given = {name: value for name, value in parse_options(given)}
    unknown = [name for name in given if not name.startswith(prefix)]
    if unknown:
        raise ValueError(f"Unknown option --{unknown[0]}; see --help.")
    options = {}
    folder = Path(arguments.model)
    training_config = (folder.parent if is_ensemble(folder) else folder) / "training_config.yaml"
    if training_config.is_file():
        data = yaml.safe_load(training_config.read_text())["data"]
        if data["name"] == arguments.dataset:
            options = dict(data["options"])
    if arguments.data_dir is not None:  # another place: what lay beside the old one is not there
        options = {name: value for name, value in options.items() if name not in PLACES}
        options["data_dir"] = arguments.data_dir
    if arguments.seed is not None:
        options["seed"] = arguments.seed
    if arguments.dataset == "synthetic":
        options["num_images"] = arguments.num_images
    options |= {name.removeprefix(prefix): value for name, value in given.items()}
    options = {name: value for name, value in options.items() if value is not None}  # null: the default
    check_options(arguments.dataset, options)
    return options


if __name__ == "__main__":
    main()
