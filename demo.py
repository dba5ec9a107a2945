# Licensed under the Apache License, Version 2.0.
"""
See what TIER does, in minutes and without any data: train the same small model twice on synthetic radiographs, without
the regulariser (CLIP) and with it (TIER), and compare both with the untrained model.

    python demo.py [--output_dir runs/demo] [--section.option value ...]
"""

import argparse
import json
import sys
from pathlib import Path

from accelerate.utils import set_seed
from transformers.utils import logging

from modeling_tier.data import load_pairs
from modeling_tier.evaluation import evaluate_zero_shot, load_model, load_prompts
from modeling_tier.evaluation.figures import plot_patch_similarity, plot_similarity_maps
from modeling_tier.evaluation.tables import aligned
from modeling_tier.training import load_config, train
from modeling_tier.training.building import build_model


CONFIG = Path(__file__).parent / "configs" / "demo.yaml"
NUM_TEST_IMAGES = 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--output_dir", default="runs/demo", help="folder for the two models, figures and metrics.json"
    )
    arguments, overrides = parser.parse_known_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        results = run_demo(Path(arguments.output_dir), overrides)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"\nOn {NUM_TEST_IMAGES} held-out drawings (made by code, of no clinical meaning):\n")
    print(demo_table(results))
    print(f"\nThe figures are in {arguments.output_dir}/figures, the models beside them.")


def run_demo(output_dir: Path, overrides: list[str]) -> dict[str, dict]:
    """
    Train CLIP and TIER with the same seed and evaluate them beside the untrained model.

    Returns:
        the metrics of [`evaluate_zero_shot`] under "untrained", "CLIP" and "TIER", as in `output_dir/metrics.json`.
    """
    without = ["--model.lambda_token", "0", "--model.lambda_patch", "0"]
    models = {}
    for name, options in {"CLIP": without, "TIER": []}.items():
        folder = output_dir / name.lower()
        run_options = ["--output_dir", str(folder), "--training.overwrite", "true"]
        config = load_config(CONFIG, [*overrides, *options, *run_options])
        print(f"Training {name} ...", flush=True)
        train(config)
        models[name], processor = load_model(str(folder))
    set_seed(config.seed)
    models = {"untrained": build_model(config, processor), **models}

    test = load_pairs(config.data.name, "test", **config.data.options | {"num_images": NUM_TEST_IMAGES})
    prompts = load_prompts(config.evaluation.prompts or config.data.name)
    results, details = {}, {}
    for name, model in models.items():
        results[name], details[name] = evaluate_zero_shot(
            model, processor, test, prompts, progress=config.training.progress
        )
    figures = output_dir / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    trained = {name: (models[name], processor) for name in ("CLIP", "TIER")}
    plot_similarity_maps(trained, test, figures / "similarity_maps.png", list(prompts))
    plot_patch_similarity({name: details[name] for name in trained}, test, figures / "patch_similarity.png")
    (output_dir / "metrics.json").write_text(json.dumps(results, indent=2))
    return results


COLUMNS = {
    "AUROC": lambda m: m["auroc"]["mean"],
    "token entropy": lambda m: m["token_entropy"],
    "patch entropy": lambda m: m["patch_entropy"],
    "pointing game": lambda m: m["localisation"]["pointing_game"]["mean"],
    "CNR": lambda m: m["localisation"]["cnr"]["mean"],
    "top 10% share": lambda m: m["top10_share"],
}


def demo_table(results: dict[str, dict]) -> str:
    """One row a model; the largest possible entropies and the pointing game of a random map below."""
    rows = [["", *COLUMNS]]
    rows += [[name, *(f"{value(metrics):.3f}" for value in COLUMNS.values())] for name, metrics in results.items()]
    metrics = next(iter(results.values()))
    chance = metrics["localisation"]["chance"]["mean"]
    limits = ["", "", f"<= {metrics['max_token_entropy']:.3f}", f"<= {metrics['max_patch_entropy']:.3f}"]
    return aligned([*rows, [*limits, f"chance {chance:.3f}", "", ""]])


if __name__ == "__main__":
    main()
