# Licensed under the Apache License, Version 2.0.
"""The evaluation of a model against the same protocol written out pair by pair, and its geometry."""

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from sklearn.metrics import roc_auc_score
from transformers import CLIPImageProcessor

from modeling_tier import text_image_entropy
from modeling_tier.data import load_pairs
from modeling_tier.data.chestxray14 import LABELS
from modeling_tier.data.columns import CHEXPERT_LABELS
from modeling_tier.data.synthetic import FINDINGS
from modeling_tier.evaluation import (
    LABEL_POLICIES,
    combine_members,
    evaluate_zero_shot,
    load_model,
    load_prompts,
    member_folders,
)
from modeling_tier.evaluation.figures import plot_similarity_maps
from modeling_tier.evaluation.localisation import box_mask
from modeling_tier.evaluation.run import model_names
from modeling_tier.evaluation.zero_shot import recall, wrong_before


ROOT = Path(__file__).parents[2]


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


@pytest.fixture(scope="module")
def pairs():
    return load_pairs("synthetic", "test", num_images=60, image_size=40, seed=2)


@pytest.fixture
def prompts():
    return load_prompts("synthetic")


@pytest.mark.slow
def test_against_the_protocol_pair_by_pair(model, processor, pairs, prompts):
    model.train()
    metrics, details = evaluate_zero_shot(model, processor, pairs, prompts, batch_size=7, progress=False)
    assert model.training, "the mode is given back"
    model.eval()

    def embed(sentences):
        rows = [unit(model.get_text_features(**processor(text=s)).pooler_output[0]) for s in sentences]
        return unit(torch.stack(rows).mean(0))

    entropies, negative, scores, tops, texts, images = [], [], [], [], [], []
    with torch.no_grad():
        for row in pairs:
            out = model(**processor(images=row["image"], text=row["text"]))
            entropies.append(tuple(text_image_entropy(out.token_embeds, out.patch_embeds)))
            cosines = out.token_embeds[0] @ out.patch_embeds[0].T
            negative.append((cosines < 0).float().mean().item())
            own = torch.sort(out.patch_embeds[0] @ out.text_embeds[0], descending=True).values
            shifted = own - own.min()
            tops.append((shifted[: math.ceil(0.1 * len(own))].sum() / shifted.sum()).item())
            texts.append(out.text_embeds[0]), images.append(out.image_embeds[0])
            scores.append(
                [
                    (out.image_embeds[0] @ (embed(p["positive"]) - embed(p["negative"]))).item()
                    for p in prompts.values()
                ]
            )
    np.testing.assert_allclose(details["scores"], scores, atol=1e-5)
    assert metrics["token_entropy"] == pytest.approx(np.mean([e[0] for e in entropies]), abs=1e-5)
    assert metrics["patch_entropy"] == pytest.approx(np.mean([e[1] for e in entropies]), abs=1e-5)
    assert metrics["negative_share"] == pytest.approx(np.mean(negative), abs=1e-5)
    assert metrics["top10_share"] == pytest.approx(np.mean(tops), abs=1e-4)
    for i, finding in enumerate(prompts):
        labels = [row[finding] for row in pairs["labels"]]
        assert metrics["auroc"][finding] == pytest.approx(roc_auc_score(labels, details["scores"][:, i]), abs=1e-9)
    assert metrics["auroc"]["mean"] == pytest.approx(np.mean([metrics["auroc"][f] for f in prompts]))
    similarity = (torch.stack(images) @ torch.stack(texts).T).numpy()
    groups = np.unique(pairs["text"][:], return_inverse=True)[1]
    wrong = [np.sort(similarity[i][groups != groups[i]])[::-1] for i in range(60)]
    r5 = np.mean([max(similarity[i][groups == groups[i]]) > wrong[i][4] for i in range(60)])
    assert metrics["retrieval"]["image_to_text"]["r@5"] == pytest.approx(r5)
    assert json.loads(json.dumps(metrics)) == metrics


def test_localisation_against_the_models_own_map(model, processor, pairs, prompts):
    metrics, _ = evaluate_zero_shot(model, processor, pairs, prompts, progress=False)
    hits = {finding: [] for finding in FINDINGS}
    for row in pairs:
        for finding in FINDINGS:
            for phrase in {r["phrase"] for r in row["regions"] if r["finding"] == finding}:
                inputs = processor(images=row["image"], text=phrase)
                fine = model.get_similarity_map(**inputs, size=(32, 32)).text_to_patch[0].numpy()
                place = np.zeros((40, 40), bool)
                for region in row["regions"]:
                    if region["phrase"] == phrase:
                        x0, y0, x1, y1 = map(int, region["box"])
                        place[y0:y1, x0:x1] = True
                y, x = np.unravel_index(fine.argmax(), fine.shape)
                hits[finding].append(bool(place[int((y + 0.5) * 1.25), int((x + 0.5) * 1.25)]))
    for finding in FINDINGS:
        assert metrics["localisation"]["pointing_game"][finding] == pytest.approx(np.mean(hits[finding]), abs=0.15)


def test_contributions_are_measured_where_the_model_has_them(model, processor, pairs, prompts):
    """Against the model's own maps of contributions minus those of "no finding"; not where the first patch is all."""
    few = pairs.select(range(20))
    metrics, _ = evaluate_zero_shot(model, processor, few, prompts, no_finding=["No finding."], progress=False)
    contrasts = {finding: [] for finding in FINDINGS}
    for row in few:
        for finding in FINDINGS:
            for phrase in {r["phrase"] for r in row["regions"] if r["finding"] == finding}:
                inputs = processor(images=[row["image"]] * 2, text=[phrase, "No finding."])
                maps = model.get_similarity_map(**inputs, size=(32, 32), kind="contribution").text_to_patch
                values = (maps[0] - maps[1]).numpy()
                inside = box_mask([r["box"] for r in row["regions"] if r["phrase"] == phrase], (40, 40), processor)
                a, b = values[inside], values[~inside]
                contrasts[finding].append((a.mean() - b.mean()) / np.sqrt(a.var() + b.var()))
    for finding, values in contrasts.items():
        if values:
            measured = metrics["localisation"]["contribution_cnr"][finding]
            assert measured == pytest.approx(np.mean(values), abs=1e-3)
    model.config.image_pooling, before = "first", model.config.image_pooling
    try:
        metrics, _ = evaluate_zero_shot(model, processor, few, prompts, no_finding=["No finding."], progress=False)
    finally:
        model.config.image_pooling = before
    assert "contribution_cnr" not in metrics["localisation"] and "cnr" in metrics["localisation"]


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (64, 64)])
@pytest.mark.parametrize("crop", [True, False])
def test_boxes_follow_the_picture(size, crop):
    """A bright rectangle is bright in pixel_values where the mask of its box is."""
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}, do_center_crop=crop, do_normalize=False
    )
    box = [30, 18, 54, 42]
    pixels = np.zeros((size[1], size[0]), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    seen = image_processor(Image.fromarray(pixels).convert("RGB"), return_tensors="np")["pixel_values"][0][0] > 0.5
    mask = box_mask([box], size, image_processor)
    assert mask.shape == seen.shape
    assert (mask & seen).sum() / (mask | seen).sum() > 0.85


def test_a_box_outside_the_crop_is_empty_and_a_tiny_one_is_not():
    image_processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    assert not box_mask([[0, 0, 5, 60]], (200, 64), image_processor).any()
    assert box_mask([[100, 30, 101, 31]], (200, 64), image_processor).sum() == 1


def test_recall_in_blocks_is_the_metric():
    rng = np.random.default_rng(0)
    images, texts = (rng.normal(size=(70, 8)) for _ in range(2))
    groups = rng.integers(0, 50, 70)
    metric = evaluate.load(str(ROOT / "modeling_tier/evaluation/metrics/retrieval_recall"))
    for queries, candidates in ((images, texts), (texts, images)):
        expected = metric.compute(predictions=queries @ candidates.T, references=groups, resamples=0)
        assert recall(wrong_before(queries, candidates, groups, block=16)) == pytest.approx(expected)
        assert 0 < expected["r@1"] < expected["r@10"] < 1


def test_a_figure_that_has_nothing_to_show_is_not_drawn_and_pictures_are_opened_only_to_be_shown(
    tmp_path, model, processor, pairs, monkeypatch
):
    opened = []
    original = Dataset.__getitem__
    monkeypatch.setattr(Dataset, "__getitem__", lambda self, key: opened.append(key) or original(self, key))
    plot_similarity_maps({"map": (model, processor)}, pairs, tmp_path / "none.png", ["Support Devices"])
    assert not (tmp_path / "none.png").exists() and not opened
    plot_similarity_maps({"map": (model, processor)}, pairs, tmp_path / "some.png", ["Edema", "Cardiomegaly"])
    assert (tmp_path / "some.png").is_file() and len(opened) == 2


def test_blank_labels_are_skipped(model, processor, pairs, prompts):
    rows = [dict(row) for row in pairs]
    for i, row in enumerate(rows):
        row["labels"] = dict(row["labels"])
        if i % 3 == 0:
            row["labels"]["Edema"] = None if i % 2 else -1.0
        row["labels"]["Nodule"] = 0.0
    changed = Dataset.from_list(rows, features=pairs.features)
    metrics, details = evaluate_zero_shot(model, processor, changed, prompts, localisation=False, progress=False)
    edema = list(prompts).index("Edema")
    known = [i for i in range(60) if i % 3]
    labels = [rows[i]["labels"]["Edema"] for i in known]
    assert metrics["auroc"]["Edema"] == pytest.approx(roc_auc_score(labels, details["scores"][known, edema]))
    assert metrics["auroc"]["Nodule"] is None and metrics["undefined"] == {"Nodule": "n+ = 0, n- = 60"}
    assert metrics["auroc"]["mean"] == pytest.approx(
        np.mean([v for k, v in metrics["auroc"].items() if v is not None and k != "mean"])
    )
    assert "localisation" not in metrics


@pytest.mark.parametrize("uncertain", LABEL_POLICIES)
@pytest.mark.parametrize("blank", LABEL_POLICIES)
def test_what_uncertain_and_blank_count_as(model, processor, pairs, prompts, uncertain, blank):
    rows = [dict(row) for row in pairs.remove_columns("regions")]
    given = [(1.0, 0.0, -1.0, None)[i % 4] for i in range(60)]
    for row, value in zip(rows, given):
        row["labels"] = row["labels"] | {"Edema": value}
    features = Features({name: kind for name, kind in pairs.features.items() if name != "regions"})
    changed = Dataset.from_list(rows, features=features)
    options = {"uncertain": uncertain, "blank": blank, "progress": False}
    metrics, details = evaluate_zero_shot(model, processor, changed, {"Edema": prompts["Edema"]}, **options)
    meaning = {"ignore": None, "zeros": 0.0, "ones": 1.0}
    meant = {1.0: 1.0, 0.0: 0.0, -1.0: meaning[uncertain], None: meaning[blank]}
    known = [(meant[v], s) for v, s in zip(given, details["scores"][:, 0]) if meant[v] is not None]
    assert metrics["auroc"]["Edema"] == pytest.approx(roc_auc_score(*zip(*known)))
    with pytest.raises(ValueError, match=r"blank must be one of \['ignore', 'zeros', 'ones'\]"):
        evaluate_zero_shot(model, processor, changed, prompts, blank="skip")


def test_a_few_images_may_be_unreadable_and_are_named(model, processor, prompts):
    pairs = load_pairs("synthetic", "test", num_images=120, image_size=32, seed=4)

    def broken(*places):
        stored = pairs.cast_column("image", ImageFeature(decode=False))
        cells = [{"bytes": b"\x89PNG cut", "path": None} if i in places else c for i, c in enumerate(stored["image"])]
        rest = stored.remove_columns("image")
        return Dataset.from_dict({"image": cells} | rest[:], features=pairs.features)

    metrics, details = evaluate_zero_shot(model, processor, broken(3), prompts, batch_size=16, progress=False)
    assert metrics["num_images"] == 119 and len(metrics["unreadable"]) == 1
    assert pairs[3]["image_id"] in metrics["unreadable"][0]
    assert details["rows"].tolist() == [0, 1, 2, *range(4, 120)] and len(details["scores"]) == 119
    whole, _ = evaluate_zero_shot(model, processor, pairs.select(details["rows"]), prompts, 16, progress=False)
    assert metrics["auroc"] == whole["auroc"] and metrics["retrieval"] == whole["retrieval"]
    with pytest.raises(ValueError, match=f"{pairs[3]['image_id']}.*2 of the 120 images"):
        evaluate_zero_shot(model, processor, broken(3, 5), prompts, batch_size=16, progress=False)


def test_templates_are_filled_for_the_labels_that_have_no_sentences_of_their_own(tmp_path):
    path = tmp_path / "prompts.yaml"
    path.write_text(
        "no_finding: [Clear.]\n"
        "templates: {positive: ['{finding} is present.', 'There is {finding}.'], negative: ['No {finding}.']}\n"
        "findings: {Edema: {positive: [Wet lungs.], negative: [Dry lungs.]}}\n"
    )
    prompts = load_prompts(str(path), ["No Finding", "Pleural_Thickening", "Edema"])
    assert prompts == {
        "Pleural_Thickening": {
            "positive": ["Pleural Thickening is present.", "There is Pleural Thickening."],
            "negative": ["Clear.", "No Pleural Thickening."],
        },
        "Edema": {"positive": ["Wet lungs."], "negative": ["Clear.", "Dry lungs."]},
    }
    path.write_text("templates: {positive: ['{finding}.'], negative: ['No {finding}.']}")
    with pytest.raises(ValueError, match="it has none"):
        load_prompts(str(path), [])
    path.write_text("templates: {positive: [Something.], negative: ['No {finding}.']}")
    with pytest.raises(ValueError, match=r"must contain \{finding\}"):
        load_prompts(str(path), ["Edema"])


@pytest.mark.parametrize("name", ["chexpert", "mimic_cxr", "padchest", "chestxray14", "openi"])
def test_shipped_prompts_name_labels_of_their_data_set(name):
    labels = {"chestxray14": LABELS, "padchest": ["nodule"], "openi": ["Cardiomegaly"]}
    known = labels.get(name, CHEXPERT_LABELS)
    prompts = load_prompts(name, known)
    assert prompts and set(prompts) <= set(known) - {"No Finding"}


def test_what_cannot_be_evaluated_is_named(model, processor, pairs, prompts):
    with pytest.raises(ValueError, match="empty"):
        evaluate_zero_shot(model, processor, pairs.select([]), prompts)
    with pytest.raises(ValueError, match="cannot be a stream"):
        evaluate_zero_shot(model, processor, pairs.to_iterable_dataset(), prompts)
    with pytest.raises(ValueError, match="Fracture"):
        evaluate_zero_shot(model, processor, pairs, {"Fracture": prompts["Edema"]})
    with torch.no_grad():
        model.visual_projection.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=pairs[0]["image_id"]):
        evaluate_zero_shot(model, processor, pairs, prompts, progress=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("findings: {}", "findings"),
        ("other: 1\nfindings: {A: {positive: [a], negative: [b]}}", "other"),
        ("findings: {A: {positive: [a]}}", "'A'.*negative"),
        ("findings: {A: {positive: [], negative: [b]}}", "A: positive"),
        ("findings: {A: {positive: [a], negative: [3]}}", "A: negative"),
    ],
)
def test_bad_prompts_are_named(tmp_path, content, message):
    path = tmp_path / "prompts.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_prompts(str(path))


def test_prompts(prompts):
    assert list(prompts) == list(FINDINGS)
    assert all("The lungs are clear." in p["negative"] and p["positive"] for p in prompts.values())
    with pytest.raises(ValueError, match="synthetic"):
        load_prompts("no-such-data-set")


def test_a_clip_folder_is_a_model_too(clip_model, processor, tmp_path):
    clip_model.save_pretrained(tmp_path)
    processor.image_processor.save_pretrained(tmp_path), processor.tokenizer.save_pretrained(tmp_path)
    model, loaded = load_model(str(tmp_path))
    assert model.config.lambda_token == model.config.lambda_patch == 0
    assert loaded(text="left effusion")["input_ids"].shape == (1, 4)


@pytest.mark.slow
def test_command_line(model, processor, tmp_path):
    folder, out = tmp_path / "model", tmp_path / "out"
    model.save_pretrained(folder), processor.save_pretrained(folder)
    command = [sys.executable, "evaluate_zeroshot.py", "--model", str(folder), "--num_images", "40"]
    process = subprocess.run([*command, "--output_dir", str(out)], capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    for word in ("Cardiomegaly", "AUROC", "pointing", "token entropy", "R@10"):
        assert word in process.stdout
    written = json.loads((out / "metrics.json").read_text())
    assert written["metrics"]["num_images"] == 40 and written["versions"]["torch"]
    for name in ("similarity_maps", "patch_similarity", "roc_image", "reliability"):
        with Image.open(out / "figures" / f"{name}.png") as figure:
            assert min(figure.size) > 300
    for name in ("report.html", "report.md"):
        assert "Cardiomegaly" in (out / name).read_text()


@pytest.mark.slow
def test_the_same_model_twice_in_two_processes(model, processor, tmp_path):
    """Equal tables, p = 1, and the numbers of one process."""
    folder = tmp_path / "model"
    model.save_pretrained(folder), processor.save_pretrained(folder)
    options = ["evaluate_zeroshot.py", "--num_images", "70", "--batch_size", "4", "--examples", "0"]
    options += ["--validation_split", "validation", "--model", str(folder), "--model", str(folder)]
    launch = [str(Path(sys.executable).with_name("accelerate")), "launch", "--multi_gpu", "--num_processes", "2"]
    results = []
    for name, command in {"one": [sys.executable], "two": launch}.items():
        command = [*command, *options, "--output_dir", str(tmp_path / name)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
        assert process.returncode == 0, process.stderr
        results.append(json.loads((tmp_path / name / "metrics.json").read_text()))
    one, two = results
    assert (one["settings"].pop("processes"), two["settings"].pop("processes")) == (1, 2) and one == two
    assert one["name"] == "model" and list(one["compared"]) == ["model (2)"]
    other = one["compared"]["model (2)"]
    assert other["metrics"] == one["metrics"]
    differences = [entry for unit in other["difference"]["classification"].values() for entry in unit.values()]
    differences += [row for row in other["difference"]["localisation_maps"]]
    differences += [other["difference"]["sparsity"]["with_padding"], other["difference"]["retrieval"]["text_to_image"]]
    outcome = [values for entry in differences for values in entry.values() if isinstance(values, dict)]
    assert len(outcome) > 100 and all(values["value"] in (0, None) for values in outcome)
    p_values = [values[name] for values in outcome for name in ("p_bootstrap", "p_delong", "p_holm") if name in values]
    assert len(p_values) > 100 and set(p_values) <= {1, None}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data_dir", "x"], "data_dir"),
        (["--validation_split", "test"], "another split"),
        (["--validation_split", "test", "--validation.options.num_images", "9"], "of subject_id stand both"),
        (["--validation_split", "train", "--validation.options.seed", "x"], "seed"),
        (["--validation_dataset", "chexpert"], "--validation_split is needed"),
        (["--validation_image_ids", "list.txt"], "--validation_split is needed"),
        (["--validation_split", "validation", "--validation.options.colour", "1"], "colour"),
        (["--data.colour", "1"], "Unknown option --data.colour"),
        (["--resamples", "-1"], "--resamples must be at least 0"),
        (["--batch_size", "0"], "--batch_size must be at least 1"),
        (["--protocol", "chexzero", "--prompts", "nowhere.yaml"], "nowhere.yaml"),
        (["--model", "nowhere/at/all"], "nowhere/at/all"),
    ],
)
def test_what_the_command_line_refuses(model, processor, tmp_path, options, message, monkeypatch, capsys):
    folder = tmp_path / "model"
    model.save_pretrained(folder), processor.save_pretrained(folder)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    monkeypatch.setattr(sys, "argv", ["evaluate_zeroshot.py", "--model", str(folder), "--num_images", "20", *options])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module("evaluate_zeroshot").main()
    assert str(stopped.value).startswith("error: ") and message in str(stopped.value)


def test_names_of_models_tell_them_apart():
    assert model_names(["runs/clip", "runs/tier"]) == ["clip", "tier"]
    assert model_names(["runs/clip/final", "runs/tier/final"]) == ["clip/final", "tier/final"]
    assert model_names(["user/tier", "user/tier", "a"]) == ["tier", "tier (2)", "a"]
    assert model_names(["tier", "runs/tier"]) == ["tier", "runs/tier"]


def test_an_ensemble_is_the_mean_of_its_members_scores():
    rng = np.random.default_rng(0)
    labels = np.array([[0.0, 1.0], [1.0, np.nan], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    shared = {"findings": ["Edema", "Pneumonia"], "rows": np.arange(5), "labels": labels}
    scores = [rng.normal(size=(5, 2)) for _ in range(3)]
    results = {
        f"epoch-{i}": ({"num_images": 5, "auroc": i}, shared | {"scores": entry}) for i, entry in enumerate(scores)
    }
    metrics, details = combine_members(results)
    mean = np.mean(scores, axis=0)
    np.testing.assert_array_equal(details["scores"], mean)
    denied = {name: (own, known | {"negated": known["scores"] / 2}) for name, (own, known) in results.items()}
    np.testing.assert_allclose(combine_members(denied)[1]["negated"], mean / 2)
    known = ~np.isnan(labels[:, 1])
    assert metrics["auroc"]["Edema"] == pytest.approx(roc_auc_score(labels[:, 0], mean[:, 0]))
    assert metrics["auroc"]["Pneumonia"] == pytest.approx(roc_auc_score(labels[known, 1], mean[known, 1]))
    assert metrics["num_images"] == 5 and metrics["members"]["epoch-2"]["auroc"] == 2
    with pytest.raises(ValueError, match="needs sentences"):
        combine_members({"a": ({"num_images": 5}, {"rows": np.arange(5), "findings": []})})


def test_an_ensemble_names_its_models(tmp_path):
    for name in ("b", "a", "a.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="neither a model.*nor an ensemble"):
        member_folders(str(tmp_path))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "training_config.yaml").write_text("seed: 0")
    with pytest.raises(ValueError, match="has left no model.*resume_from_checkpoint auto"):
        member_folders(str(tmp_path / "run"))
    (tmp_path / "ensemble.json").write_text('["b", "a"]')
    assert member_folders(str(tmp_path)) == {"b": str(tmp_path / "b"), "a": str(tmp_path / "a")}
    assert member_folders(str(tmp_path / "a")) == {"a": str(tmp_path / "a")}
    with pytest.raises(ValueError, match="no folder and no Hub repository named 'user/name'"):
        member_folders("user/name")
