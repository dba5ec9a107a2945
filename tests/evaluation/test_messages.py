# Licensed under the Apache License, Version 2.0.
"""What the command of the evaluation says to wrong options, damaged files and numbers that are not finite."""

import json
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import evaluate_zeroshot
from modeling_tier.evaluation import load_model, load_prompts


@pytest.fixture
def folder(model, processor, tmp_path):
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # the command changes it

    def command(*options, model=folder, output=True):
        words = ["evaluate_zeroshot.py", "--model", model, "--num_images", 16, "--resamples", 5, "--examples", 0]
        words += ["--output_dir", tmp_path / "out"] if output else []
        monkeypatch.setattr(sys, "argv", [str(word) for word in (*words, *options)])
        evaluate_zeroshot.main()
        return json.loads((tmp_path / "out" / "metrics.json").read_text())

    return command


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_options_of_the_data_set_at_once_and_one_by_one(run):
    """As train.py reads them, later ones first."""
    both = run("--data.options", "{image_size: 40, seed: 3}", "--data.options.seed", "4")
    assert both["options"] == {"num_images": 16, "image_size": 40, "seed": 4}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.options", "40"], r"--data\.options must be like"),
        (["--data.name", "pairs"], r"Unknown option --data\.name; options of the data set are given as"),
        (["--data", "{options: {image_size: 40}, name: x}"], r"Unknown option --data\.name; options of the data set"),
        (["--nonsense", "1"], "Unknown option --nonsense"),
        (["--data.options", "{sise: 4}"], "Unknown option 'sise'"),
        (["--smooth_maps", "-1"], "--smooth_maps must lie between 0 and 100"),
        (["--smooth_maps", "nan"], "--smooth_maps must lie between 0 and 100"),
    ],
)
def test_wrong_options_are_named(run, options, message):
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        run(*options)


def test_a_model_that_is_not_there_is_named(run, tmp_path):
    for name in ("runs/nope", "nope", "a/b/c", str(tmp_path / "nope")):
        with pytest.raises(SystemExit, match=f"no folder and no Hub repository named '{name}'"):
            run(model=name, output=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="file is a file; a model is a folder"):
        run(model=tmp_path / "file")


def test_missing_and_surplus_weights_are_listed(run, folder):
    def rename(weights):
        weights["text_projection.wait"] = weights.pop("text_projection.weight")

    change_weights(folder, rename)
    message = r"1 are missing \(text_projection\.weight\) and 1 are surplus \(text_projection\.wait\)"
    with pytest.raises(SystemExit, match=message):
        run()


def test_an_index_of_weights_stays_in_the_folder(run, folder):
    weights = folder / "model.safetensors"
    weights.rename(folder.parent / "elsewhere.safetensors")
    index = folder / "model.safetensors.index.json"
    for content in ('{"weight_map": {"logit_scale": "../elsewhere.safetensors"}}', '{"weight_map": []}', "{", "3"):
        index.write_text(content)
        with pytest.raises(
            SystemExit, match=r"index\.json (names '\.\./elsewhere\.safetensors'|is no index of weights)"
        ):
            run()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", lambda content: content[:1000]),
        ("model.safetensors", lambda content: b"\xff" * 8 + content[8:]),
        ("model.safetensors", lambda content: b""),
        ("config.json", lambda content: content[:100]),
        ("config.json", lambda content: b"[]"),
        ("config.json", lambda content: content.replace(b'"projection_dim": 16', b'"projection_dim": 17')),
        ("config.json", lambda content: content.replace(b'"projection_dim": 16', b'"projection_dim": 1e400')),
        ("tokenizer.json", lambda content: content[:300]),
        ("tokenizer.json", lambda content: b"{}"),
        ("processor_config.json", lambda content: b"\x00" * 50),
        ("processor_config.json", lambda content: b"[1]"),
    ],
)
def test_a_damaged_model_is_named(folder, name, damage):
    path = folder / name
    before = path.read_bytes()
    path.write_bytes(damage(before))
    assert path.read_bytes() != before
    with pytest.raises(ValueError, match=str(folder)):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "infinite values: logit_scale"), (np.inf, "infinite values: logit_scale"), (1000.0, "logit_scale is")],
)
def test_a_logit_scale_that_is_not_finite_stops_the_evaluation(run, folder, tmp_path, value, message):
    change_weights(folder, lambda weights: weights["logit_scale"].fill_(value))
    with pytest.raises(SystemExit, match=f"{folder}.*{message}"):
        run()
    assert not (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.parametrize("content", ["data: [", "- 1", "data: {name: synthetic}", "data: 3", "\tx", "[" * 5000])
def test_a_training_config_that_is_none(run, folder, content):
    (folder / "training_config.yaml").write_text(content)
    with pytest.raises(SystemExit, match=r"training_config\.yaml is not a training run's"):
        run()


@pytest.mark.parametrize("content", ['{"fingerprints": 1}', '{"fingerprints": {}, "model": "m", "compared": []}', "3"])
def test_results_of_no_known_form_are_not_replaced(run, tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.json").write_text(content)
    with pytest.raises(SystemExit, match=r"metrics\.json is not of an evaluation"):
        run()
    assert (tmp_path / "out" / "metrics.json").read_text() == content


@pytest.mark.slow
def test_results_that_were_cut_off_are_replaced(run, tmp_path):
    (tmp_path / "out").mkdir()
    for content in ('{"fingerprints": {', "", "[" * 100_000):
        (tmp_path / "out" / "metrics.json").write_text(content)
        assert run()["metrics"]["num_images"] == 16


# Lists of lists that a message must not write out: 9 to the power of 12 texts.
ALIASES = "no_finding:\n" + "".join(f"  - &a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 9)}]\n" for i in range(12))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("findings: {A: {positive: [" + "x" * 3000 + "], negative: [b]}}", "A: positive.*3,000 characters"),
        (ALIASES + "findings: {A: {positive: [a], negative: [b]}}", "no_finding"),
        ("findings: {1: {positive: [a], negative: [b]}}", "name of a finding must be a text; got 1"),
        ("findings: {A: {positive: [a], negative: [b]}}\n3: x", "unknown key 3"),
        ("[" * 3000, "no YAML file"),
        ("findings: {A: {positive: [" + "9" * 5000 + "], negative: [b]}}", "no YAML file|A: positive"),
        ("x" * 1_000_001, "1,000,001 bytes"),
        (
            "no_finding: &n [" + "a, " * 1000 + "a]\nfindings: {"
            + ", ".join(f"F{i}: {{positive: *n, negative: *n}}" for i in range(30)) + "}",
            "more than 20,000 sentences",
        ),
    ],
    ids=range(8),
)  # fmt: skip
def test_prompt_files_are_bounded(tmp_path, content, message):
    path = tmp_path / "prompts.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as raised:
        load_prompts(str(path))
    assert len(str(raised.value)) < 1000


def own_pairs(folder, splits):
    """Tables without ids, each picture by a number from 0 to 255 that all of its pixels have."""
    folder.mkdir()
    for split, shades in splits.items():
        for shade in shades:
            Image.fromarray(np.full((40, 40), shade, np.uint8)).save(folder / f"{shade}.png")
        lines = "".join(f"{shade}.png,left effusion,{shade % 2}\n" for shade in shades)
        (folder / f"{split}.csv").write_text(f"image,text,effusion\n{lines}")
    return ["--dataset", "pairs", "--data_dir", folder, "--data.options", "{label_columns: [effusion]}"]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.yaml"
    path.write_text("findings: {effusion: {positive: [left effusion], negative: [no effusion]}}")
    return ["--prompts", path]


def test_own_pairs_without_ids_have_a_validation_split(run, prompts, tmp_path):
    """The numbers that the loader gives to rows are not ids of patients; an equal picture is still found."""
    apart = own_pairs(tmp_path / "apart", {"validation": range(20, 40), "test": range(60, 80)})
    result = run(*apart, *prompts, "--validation_split", "validation")
    assert (
        result["validation"]["num_images"] == 20 and "mcc" in result["metrics"]["classification"]["image"]["effusion"]
    )
    shared = own_pairs(tmp_path / "shared", {"validation": range(20, 40), "test": range(39, 60)})
    with pytest.raises(SystemExit, match="1 pictures of pairs, test, are also in the validation set"):
        run(*shared, *prompts, "--validation_split", "validation")


def test_own_ids_in_both_splits_are_found(run, prompts, tmp_path):
    options = own_pairs(tmp_path / "pairs", {"validation": range(20, 40), "test": range(60, 80)})
    options[-1] = "{label_columns: [effusion], id_column: text}"
    with pytest.raises(SystemExit, match="image_id stand both in the images that are judged and in the validation"):
        run(*options, *prompts, "--validation_split", "validation")


def test_scores_that_are_not_finite_are_not_written(run, folder, tmp_path):
    change_weights(folder, lambda weights: weights["visual_projection.weight"].fill_(3e38))
    with pytest.raises(SystemExit, match="The model gives NaN for the image"):
        run()
    change_weights(folder, lambda weights: weights["visual_projection.weight"].fill_(torch.nan))
    with pytest.raises(SystemExit, match="NaN or infinite values: visual_projection.weight"):
        run()
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_own_pairs_whose_label_columns_were_not_named_are_told_the_option(run, tmp_path):
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    Image.new("L", (64, 64), 90).save(pairs / "a.png")
    (pairs / "test.csv").write_text("image,text,Edema\na.png,There is edema.,1\n")
    (pairs / "prompts.yaml").write_text("findings:\n  Edema: {positive: [There is edema.], negative: [No edema.]}\n")
    options = ("--dataset", "pairs", "--data_dir", pairs, "--prompts", pairs / "prompts.yaml")
    with pytest.raises(SystemExit, match=r"'Edema', which is not among .* data\.options\.label_columns"):
        run(*options)
