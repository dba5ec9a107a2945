# Licensed under the Apache License, Version 2.0.
"""What an evaluation leaves behind: its own results, whole, and nothing of anybody else's harmed."""

import json
import resource
import signal

import numpy as np
import pytest
import yaml
from conftest import TEXT_CONFIGS, VISION_CONFIGS
from PIL import Image
from transformers import SiglipConfig, SiglipModel

from modeling_tier.data import load_pairs
from modeling_tier.evaluation import load_model, load_prompts, member_folders
from modeling_tier.evaluation.run import DataChoice, EvaluationConfig, run_evaluation


@pytest.fixture
def folder(model, processor, tmp_path):
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def evaluation(folder, output_dir, dataset="synthetic", split="test", prompts=None, **options):
    data = {"num_images": 24, "image_size": 40} if dataset == "synthetic" else {}
    choice = DataChoice(dataset, split, data | options.pop("data", {}))
    options = {"resamples": 10, "examples": 2} | options
    return EvaluationConfig([str(folder)], output_dir, choice, prompts=prompts, **options)


@pytest.mark.slow
def test_figures_of_others_and_results_of_a_training_run_stay(folder, tmp_path):
    out = tmp_path / "paper"
    (out / "figures").mkdir(parents=True)
    (out / "figures" / "mine.png").write_bytes(b"mine")
    (out / "figures" / "roc_study_max.png").write_bytes(b"of an earlier evaluation")
    run_evaluation(evaluation(folder, out))
    assert (out / "figures" / "mine.png").read_bytes() == b"mine"
    assert not (out / "figures" / "roc_study_max.png").exists() and (out / "figures" / "roc_image.png").is_file()
    names = {"cache", "figures", "metrics.json", "report.html", "report.md", "image_ids.txt"}
    assert {path.name for path in out.iterdir()} == names
    assert run_evaluation(evaluation(folder, out, resamples=20))["settings"]["resamples"] == 20
    assert not list(out.glob("earlier*")), "the same evaluation again"
    before = {path.name: path.read_bytes() for path in out.rglob("*") if path.suffix in (".json", ".png", ".html")}
    run_evaluation(evaluation(folder, out, protocol="chexzero"))
    aside = {path.name: path.read_bytes() for path in (out / "earlier-1").rglob("*") if path.is_file()}
    assert set(aside) == set(before) - {"mine.png", "key.json"} | {"report.md", "image_ids.txt"}
    assert all(before[name] == content for name, content in aside.items() if name in before)
    assert json.loads((out / "metrics.json").read_text())["protocol"]["name"] == "chexzero"
    assert (out / "figures" / "mine.png").read_bytes() == b"mine"
    (folder / "metrics.json").write_text('{"step": 3, "validation": {}}')
    with pytest.raises(ValueError, match=r"metrics\.json is not of an evaluation.*name another --output_dir"):
        run_evaluation(evaluation(folder, folder))
    assert json.loads((folder / "metrics.json").read_text())["step"] == 3


def test_findings_in_another_order_are_not_read_from_the_cache_of_the_first(folder, tmp_path):
    findings = load_prompts("synthetic")
    results = []
    for i, order in enumerate((list(findings), list(findings)[::-1])):
        (tmp_path / f"{i}.yaml").write_text(
            yaml.safe_dump({"findings": {name: findings[name] for name in order}}, sort_keys=False)
        )
        result = run_evaluation(evaluation(folder, tmp_path / "out", prompts=str(tmp_path / f"{i}.yaml")))
        results.append(result["metrics"]["auroc"])
    assert list(results[0]) != list(results[1]) and results[0] == pytest.approx(results[1])


def test_results_of_other_images_are_moved_aside(folder, tmp_path):
    run_evaluation(evaluation(folder, tmp_path / "out"))
    run_evaluation(evaluation(folder, tmp_path / "out", data={"seed": 5}))
    assert json.loads((tmp_path / "out/earlier-1/metrics.json").read_text())["options"].get("seed") != 5
    assert json.loads((tmp_path / "out/metrics.json").read_text())["options"]["seed"] == 5


@pytest.mark.slow
def test_a_full_disk_leaves_the_earlier_results_complete(folder, tmp_path):
    out = tmp_path / "out"
    run_evaluation(evaluation(folder, out))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and "cache" not in path.parts}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
        with pytest.raises(OSError, match="while the results were written to .*out"):
            run_evaluation(evaluation(folder, out, resamples=20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and "cache" not in path.parts}
    assert after == before


@pytest.fixture
def own_pairs(tmp_path):
    """Pictures with texts, labels with odd names, one picture that is cut short, and a row without a text."""
    rng = np.random.default_rng(0)
    names = ["cost $x_{1$ and $\\foo$", '_& < | " /']
    lines = ["image,text,patient,study," + ",".join(f'"{name.replace(chr(34), chr(34) * 2)}"' for name in names)]
    (tmp_path / "pairs").mkdir()
    for i in range(120):
        Image.fromarray(rng.integers(0, 255, (40, 40), dtype=np.uint8)).save(tmp_path / "pairs" / f"{i}.png")
        lines.append(f"{i}.png,{'' if i == 7 else 'left effusion'},p{i // 2},s{i // 2},{i % 2},{i % 3 > 0:d}")
    cut = tmp_path / "pairs" / "0.png"
    cut.write_bytes(cut.read_bytes()[:300])
    (tmp_path / "pairs" / "test.csv").write_text("\n".join(lines))
    columns = {"subject_column": "patient", "study_column": "study", "label_columns": names}
    return {"data_dir": str(tmp_path / "pairs")} | columns


def test_odd_names_a_cut_picture_and_rows_that_the_loader_skipped(folder, own_pairs, tmp_path):
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text("templates: {positive: ['There is {finding}.'], negative: ['No {finding}.']}")
    odd = tmp_path / "_a$b_{$c"
    folder.rename(odd)
    with pytest.warns(UserWarning, match="skipped"):
        result = run_evaluation(evaluation(odd, tmp_path / "out", "pairs", prompts=str(prompts), data=own_pairs))
    assert result["counts"]["unreadable"] == 1 and result["counts"]["images"] == 118
    assert result["counts"]["subjects"] == result["counts"]["studies"] == 60
    assert any("1 of 120" in note for note in result["notes"])
    assert "no text" in (tmp_path / "out" / "rejected.csv").read_text()
    assert "study_mean" in result["metrics"]["classification"]
    report = (tmp_path / "out" / "report.html").read_text()
    assert "cost $x_{1$" in report and "1 of 120" in report


def test_an_unreadable_picture_is_not_chosen_as_an_example(folder, tmp_path):
    """It is the first, and among the allowed 1%: the report comes all the same."""
    pairs = load_pairs("synthetic", "test", num_images=110, image_size=40)
    root = tmp_path / "nih"
    (root / "images").mkdir(parents=True)
    entries = ["Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"]
    boxes = ["Image Index,Finding Label,Bbox [x,y,w,h]"]
    for i, row in enumerate(pairs):
        row["image"].save(root / "images" / f"{i:03d}.png")
        entries.append(f"{i:03d}.png,{'Cardiomegaly' if i % 2 == 0 else 'No Finding'},0,{i},50,M,PA")
        if i % 2 == 0:
            boxes.append(f"{i:03d}.png,Cardiomegaly,300,300,400,400")
    (root / "Data_Entry_2017.csv").write_text("\n".join(entries))
    (root / "BBox_List_2017.csv").write_text("\n".join(boxes))
    (root / "test_list.txt").write_text("\n".join(f"{i:03d}.png" for i in range(110)))
    first = root / "images" / "000.png"
    first.write_bytes(first.read_bytes()[:200])
    result = run_evaluation(evaluation(folder, tmp_path / "out", "chestxray14", data={"data_dir": str(root)}))
    assert result["counts"]["unreadable"] == 1
    assert (tmp_path / "out" / "figures" / "similarity_maps.png").is_file()
    assert "000.png" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "at least one name"),
        ("[unquoted", "is no JSON file"),
        ('{"clip": 1}', "must be a list"),
        ('"clip"', "must be a list"),
        ('["model", "model"]', "'model' is listed twice"),
        ('["gone"]', "'gone' is not a model folder"),
    ],
)
def test_an_ensemble_that_is_none(folder, content, message):
    (folder.parent / "ensemble.json").write_text(content)
    with pytest.raises(ValueError, match=rf"ensemble\.json.*{message}"):
        member_folders(str(folder.parent))


def test_other_models_and_devices_are_refused_with_a_way_out(folder, tmp_path):
    with pytest.raises(ValueError, match="--device nonsense: "):
        run_evaluation(evaluation(folder, tmp_path / "out", device="nonsense"))
    config = SiglipConfig(
        text_config=TEXT_CONFIGS["siglip"].to_dict(), vision_config=VISION_CONFIGS["siglip"].to_dict()
    )
    SiglipModel(config).save_pretrained(tmp_path / "siglip")
    with pytest.raises(ValueError, match="type 'siglip'.*modeling_tier.conversion siglip OUTPUT_DIR"):
        load_model(str(tmp_path / "siglip"))
