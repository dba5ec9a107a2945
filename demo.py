# Licensed under the Apache License, Version 2.0.
"""
See what TIER does, in minutes and without any data: a small CLIP model of synthetic radiographs, trained already, goes
on for two epochs, without the regulariser (CLIP) and with it (TIER); both are compared with the start.

    python demo.py
    python demo.py --output_dir runs/short --training.epochs 1 --data.train.num_images 640
    python demo.py --config configs/demo.yaml --output_dir runs/from_nothing     # both from random weights

A demo that was stopped goes on by the same command. Models that are already trained are not trained again, unless
--training.overwrite true is given. Every option of train.py may follow, as --section.option value.
"""

import argparse
import os
import sys
from pathlib import Path

from tier_cli.section_options import check_training_options


CONFIGS = Path(__file__).parent / "configs"
CONFIG = CONFIGS / "demo_continued.yaml"
START = CONFIGS / "demo_start"  # what CONFIG names, from wherever the demo is run
NUM_TEST_IMAGES = 1000
ABOUT_MAPS = """
Pointing game and CNR are those of the plain map, the cosine of a phrase with each patch. Contributions: what each
patch adds to the score of the phrase, minus what it adds to that of "no finding". In docs/study.md TIER improves the
plain map and worsens the other one, or leaves it as it is."""
RUNS = {
    "CLIP": ["--model.lambda_token", "0", "--model.lambda_patch", "0"],
    "TIER": [],
}  # what each adds to the options


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--output_dir",
        default="runs/demo",
        help="folder for the two models, figures and metrics.json (default: %(default)s)",
    )
    parser.add_argument("--config", type=Path, default=CONFIG, help="what is trained twice (default: %(default)s)")
    arguments, overrides = parser.parse_known_args()
    check_training_options(parser, overrides)
    print("Loading PyTorch and transformers ...", flush=True)  # seconds, in which nothing else is printed
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        results = run_demo(Path(arguments.output_dir), overrides, arguments.config)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. The same command goes on from here.")
    print(f"\nOn {NUM_TEST_IMAGES} held-out drawings (made by code, of no clinical meaning):\n")
    print(demo_table(results))
    print(ABOUT_MAPS)
    print(f"\nThe figures are in {arguments.output_dir}/figures, the models beside them.")


def run_demo(output_dir: Path, overrides: list[str], config_file: Path = CONFIG) -> dict[str, dict]:
    """
    Train CLIP and TIER with the same seed and evaluate them beside the model that both start from.

    Args:
        output_dir: folder for the models (`clip`, `tier`), `figures` and `metrics.json`.
        overrides: options of train.py, `["--section.option", "value", ...]`.
        config_file: configuration of train.py, whose regulariser is switched off for CLIP.

    Returns:
        the metrics of [`evaluate_zero_shot`] under "start" ("untrained", if that has random weights), "CLIP" and
        "TIER", as in `output_dir/metrics.json`.

    Raises:
        ValueError: for options that cannot work, or a model in `output_dir` that was trained with other ones.
        SystemExit: with the code `EXIT_STOPPED`, after SIGINT or SIGTERM while a model is trained.
    """
    from accelerate.utils import set_seed

    from modeling_tier.data import load_pairs
    from modeling_tier.evaluation import evaluate_zero_shot, load_model, load_no_finding, load_prompts, own_prompts
    from modeling_tier.evaluation.figures import plot_patch_similarity, plot_similarity_maps
    from modeling_tier.files import replace_json
    from modeling_tier.training.building import build_model

    models = {}
    for name in RUNS:
        config = train_or_reuse(name, output_dir, overrides, config_file)
        models[name], processor = load_model(config.output_dir)
    set_seed(config.seed)
    start = "start" if config.model.pretrained else "untrained"
    models = {start: build_model(config, processor), **models}

    test = load_pairs(config.data.name, "test", **config.data.options | {"num_images": NUM_TEST_IMAGES})
    sentences = config.evaluation.prompts or own_prompts(config.data.name, config.data.options) or config.data.name
    prompts, no_finding = load_prompts(sentences), load_no_finding(sentences)
    results, details = {}, {}
    for name, model in models.items():
        results[name], details[name] = evaluate_zero_shot(
            model, processor, test, prompts, progress=config.training.progress, no_finding=no_finding
        )
    figures = output_dir / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    trained = {name: (models[name], processor) for name in ("CLIP", "TIER")}
    plot_similarity_maps(trained, test, figures / "similarity_maps.png", list(prompts), no_finding)
    plot_patch_similarity({name: details[name] for name in trained}, test, figures / "patch_similarity.png")
    replace_json(output_dir / "metrics.json", results)
    return results


def is_finished(output_dir: Path, overrides: list[str], config_file: Path = CONFIG) -> bool:
    """
    Whether the demo of these options was run to its end in `output_dir`.

    Raises:
        ValueError: if a model there was trained with other options.
    """
    for name in RUNS:
        config = config_of(name, output_dir, overrides, config_file)
        check_same_options(config, Path(config.output_dir))
    return (output_dir / "metrics.json").is_file()


def config_of(name: str, output_dir: Path, overrides: list[str], config_file: Path):
    """The configuration of one of `RUNS`."""
    from modeling_tier.training import load_config

    if config_file.resolve() == CONFIG.resolve():  # a path in a configuration is one from the current folder
        overrides = ["--model.pretrained", os.path.relpath(START), *overrides]
    return load_config(config_file, [*overrides, *RUNS[name], "--output_dir", str(output_dir / name.lower())])


def train_or_reuse(name: str, output_dir: Path, overrides: list[str], config_file: Path = CONFIG):
    """Train one of `RUNS`, go on with one that was stopped, or keep one that is finished; its configuration."""
    from modeling_tier.training import train
    from modeling_tier.training.stopping import EXIT_STOPPED

    config = config_of(name, output_dir, overrides, config_file)
    folder = Path(config.output_dir)
    if not config.training.overwrite:
        check_same_options(config, folder)
        if (folder / "model.safetensors").is_file() and (folder / "metrics.json").is_file():
            print(f"{name} is already trained, in {folder}. To train it again: --training.overwrite true", flush=True)
            return config
        config.training.resume_from_checkpoint = config.training.resume_from_checkpoint or "auto"
    print(f"Training {name} ...", flush=True)
    try:
        train(config)
    except SystemExit as stop:
        if stop.code == EXIT_STOPPED:
            print("The demo was stopped. The same command goes on from here.", flush=True)
        raise
    return config


def check_same_options(config, folder: Path) -> None:
    """Raise ValueError if `folder` holds a model that was trained with other options."""
    from modeling_tier.training import load_config
    from modeling_tier.training.options import changed_options

    path = folder / "training_config.yaml"
    if not path.is_file():
        return
    try:
        before = load_config(path).to_dict()
    except ValueError as error:  # such as a run of another version, with other options
        raise ValueError(
            f"{path} cannot be read: {error} Choose another --output_dir, or train "
            "anew with --training.overwrite true."
        ) from error
    changed = changed_options(before, config.to_dict())
    # How a run is started and shown does not change its model.
    free = ("output_dir", "training.resume_from_checkpoint", "training.overwrite", "training.progress")
    if Path(before["model"]["pretrained"] or "").name == START.name:  # as seen from another folder
        free += ("model.pretrained",)
    changed = [option for option in changed if option not in free]
    if changed:
        raise ValueError(
            f"{folder} was trained with another value of {', '.join(changed)}. Choose another --output_dir, or train "
            "anew with --training.overwrite true."
        )


def demo_table(results: dict[str, dict]) -> str:
    """One row per model; the largest possible entropies and the pointing game of a random map below."""
    from modeling_tier.evaluation.measures import BY_NAME, DEMO, shown_in
    from modeling_tier.evaluation.tables import aligned, number

    measures = shown_in(DEMO)
    rows = [["", *(measure.label for measure in measures)]]
    rows += [[name, *(number(measure.mean_of(metrics)) for measure in measures)] for name, metrics in results.items()]
    metrics = next(iter(results.values()))
    limits = [""]
    for measure in measures:
        word = {"at most": "<="}.get(measure.reference_word, measure.reference_word)
        reference = BY_NAME[measure.reference].mean_of(metrics) if measure.reference else None
        limits.append("" if reference is None else f"{word} {reference:.3f}")
    return aligned([*rows, limits])


if __name__ == "__main__":
    main()
