# Licensed under the Apache License, Version 2.0.
"""Several data sets in one table, beside published numbers."""

import argparse
import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from conftest import tier_config

import evaluate_zeroshot
from modeling_tier import TierModel
from modeling_tier.data import DATASETS, check_options
from modeling_tier.data.prepare_set import prepare_dataset
from modeling_tier.evaluation.document import as_html, as_markdown
from modeling_tier.evaluation.measures import SUITE, shown_in
from modeling_tier.evaluation.published import published
from modeling_tier.evaluation.run import EvaluationConfig
from modeling_tier.evaluation.suite import read_suite, suite_names
from modeling_tier.evaluation.suite_page import SuiteResults, suite_sections, suite_summary
from tests.data.small_sets import chestxdet10, chestxray14, chexpert, rsna_pneumonia, siim_acr


ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(processor, tmp_path, monkeypatch):
    """evaluate_zeroshot.py --suite on two models of random weights; gives suite.md."""
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        model = TierModel(tier_config(text="bert", vision="resnet", image_pooling="mean"))
        model.save_pretrained(tmp_path / name), processor.save_pretrained(tmp_path / name)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # the command changes it

    def run(suite, *options):
        if isinstance(suite, dict) or "\n" in suite or ":" in suite or "[" in suite:
            text = yaml.safe_dump(suite, sort_keys=False) if isinstance(suite, dict) else suite
            (tmp_path / "suite.yaml").write_text(text)
            suite = tmp_path / "suite.yaml"
        models = ["--model", tmp_path / "a", "--model", tmp_path / "b"]
        command = ["evaluate_zeroshot.py", "--suite", suite, *models, "--resamples", "20", "--examples", "0"]
        monkeypatch.setattr(sys, "argv", list(map(str, [*command, "--output_dir", tmp_path / "out", *options])))
        evaluate_zeroshot.main()
        return (tmp_path / "out/suite.md").read_text("utf-8")

    return run


def table_rows(text: str, section: str) -> dict[str, list[str]]:
    """The cells of the table of a section by the row's name."""
    part = text.split(f"## {section}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    rows = [[cell.strip().replace("\\", "") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {row[0]: row[1:] for row in rows}


@pytest.mark.filterwarnings("ignore")
def test_a_suite(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "nih").mkdir(), (tmp_path / "root/ChestX-Det10").mkdir(parents=True)
    chestxray14(tmp_path / "nih"), chestxdet10(tmp_path / "root/ChestX-Det10")
    sets = {
        "nih": {"dataset": "chestxray14", "data_dir": str(tmp_path / "nih")},
        "chestxdet10": {},
        "padchest": {},
        "chexpert": {"data_dir": "/nowhere/CheXpert", "by": "study"},
    }
    options = "--data_root", tmp_path / "root"
    table = run({"protocol": "carzero", "sets": sets}, *options)
    said = capsys.readouterr().out
    assert f"chestxdet10: {tmp_path / 'root/ChestX-Det10'}" in said, "the folder that was taken"
    assert "padchest is skipped: no folder of it in" in said and "looked for padchest, padchest*" in said
    files = {name: tmp_path / "out" / name / "metrics.json" for name in ("nih", "chestxdet10")}
    numbers = {name: json.loads(path.read_text()) for name, path in files.items()}
    assert numbers["nih"]["protocol"]["name"] == "carzero"

    # Every image has the same labels of ChestX-ray14, so that no AUROC is defined there.
    rows = table_rows(table, "AUROC")
    assert rows[""] == ["chestxdet10 (2 findings, 20 images)", "protocol", "source"]
    value = numbers["chestxdet10"]["metrics"]["auroc"]["mean"]
    assert rows["a"][0].startswith(f"{value:.3f} (") and rows["a"][1:] == ["carzero", "measured here"]
    other = numbers["chestxdet10"]["compared"]["b"]
    p = other["difference"]["classification"]["image"]["mean"]["auroc"]["p_bootstrap"]
    assert rows["b"][0].startswith(f"{other['metrics']['auroc']['mean']:.3f}") and rows["b"][0].endswith(
        f"p = {p:.3f}"
    )
    assert rows["CARZero"] == ["[0.796], 10 findings, 542 images", "carzero", "RadZero, after CARZero"]
    assert rows["CPO"] == ["[0.801], 10 findings, 542 images", "carzero", "CPO"]

    rows = table_rows(table, "Pointing game")
    assert [cell.split(" (")[0] for cell in rows[""][:2]] == ["nih", "chestxdet10"]
    own = numbers["nih"]["compared"]["b"]["difference"]["localisation_maps"]
    main = next(
        e for e in own if (e["text"], e["place"], e["resolution"], e["map"]) == ("sentence", "box", "pixel", "plain")
    )
    assert rows["b"][0].endswith(f"p = {main['pointing_game']['p_bootstrap']:.3f}")
    assert rows["VECL"] == ["-", "[0.683], 10 findings, images not known", "carzero, boxes", "VECL"]

    summary = json.loads((tmp_path / "out/metrics.json").read_text())
    assert summary["sets"]["chestxdet10"]["measures"]["auroc"]["b"]["p"] == p and set(summary["skipped"]) == {
        "padchest",
        "chexpert",
    }
    page = (tmp_path / "out/suite.html").read_text("utf-8")
    assert '<a href="chestxdet10/report.html">' in page and (tmp_path / "out/chestxdet10/report.html").is_file()
    assert page.index("measured here") < page.index('<tbody class="apart">') < page.index("VECL")
    assert (
        "title and tables were not compared" in page
        and 'href="https://arxiv.org/abs/2504.07416"' in page
        and "there is no /nowhere/CheXpert" in page
    )

    def forbidden(*_, **__):
        raise AssertionError("scored again")

    monkeypatch.setattr(TierModel, "forward", forbidden)
    assert run({"protocol": "carzero", "sets": sets}, *options) == table, "a second run scores nothing"
    with pytest.raises(AssertionError, match="scored again"):
        run({"protocol": "tier", "sets": {"chestxdet10": {}}}, *options, "--batch_size", "7")


@pytest.mark.filterwarnings("ignore")
def test_a_set_that_cannot_be_evaluated_does_not_stop_the_others(run, tmp_path, capsys):
    for name, write in {"chestxdet10": chestxdet10, "chestx-ray14": chestxray14}.items():
        (tmp_path / "root" / name).mkdir(parents=True), write(tmp_path / "root" / name)
    (tmp_path / "root/chestx-ray14/BBox_List_2017.csv").unlink()
    suite = {"protocol": "tier", "sets": {"chestxray14": {}, "chestxdet10": {}}}
    with pytest.raises(SystemExit, match="chestxray14 could not be evaluated: In the folder .* there is none of"):
        run(suite, "--data_root", tmp_path / "root")
    table = (tmp_path / "out/suite.md").read_text("utf-8")
    assert "chestxray14 could not be evaluated: In the folder" in table and "a" in table_rows(table, "AUROC")
    assert "CARZero" not in table_rows(table, "AUROC"), "of another protocol"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_dicom_pictures_are_drawn_and_regions_may_be_too_small_to_be_seen(run, tmp_path):
    """The masks of SIIM-ACR's tree are two columns of 1,024: they cover no patch of what these models see."""
    (tmp_path / "root/SIIM").mkdir(parents=True), siim_acr(tmp_path / "root/SIIM")
    (tmp_path / "root/RSNA").mkdir(parents=True), rsna_pneumonia(tmp_path / "root/RSNA")
    sets = {"siim_acr": {}, "rsna_pneumonia": {"with_boxes": True}}
    table = run({"protocol": "carzero", "sets": sets}, "--data_root", tmp_path / "root", "--examples", "1")
    assert table_rows(table, "AUROC")[""][0].startswith("siim_acr (1 finding, 20 images)")
    heads = table_rows(table, "Pointing game")[""]
    assert any(re.fullmatch(r"rsna_pneumonia \(1 finding, \d+ maps? against boxes\)", head) for head in heads)
    assert (tmp_path / "out/rsna_pneumonia/figures/similarity_maps.png").is_file()


@pytest.mark.filterwarnings("ignore")
def test_the_options_of_a_model_s_training_do_not_choose_the_images(run, tmp_path):
    """A model that was trained on frontal images of a part of the patients is still judged on all."""
    chexpert_folder = tmp_path / "root/CheXpert-v1.0"
    chexpert_folder.mkdir(parents=True), chexpert(chexpert_folder)
    training = {"data": {"name": "chexpert", "options": {"data_dir": "/elsewhere", "by": "image", "views": "frontal"}}}
    (tmp_path / "a/training_config.yaml").write_text(yaml.safe_dump(training))
    prepared = tmp_path / "prepared"
    choice = {"data_dir": str(chexpert_folder), "by": "study"}
    prepare_dataset(DATASETS["chexpert"], prepared, choice, ["test"], progress=False)
    sets = {"chexpert": {"by": "study"}, "again": {"dataset": "chexpert", "data_dir": str(prepared)}}
    options = "--smooth_maps", "1.5", "--batch_size", "7", "--uncertain", "ones", "--sentence_retrieval", "--device"
    root = str(tmp_path / "root")
    table = run({"sets": sets}, "--data_root", root, *options, "cpu", "--protocol", "chexzero")
    # The default of `views` is named, so that the report's command does not take that of the training.
    for name, folder in {"chexpert": chexpert_folder, "again": prepared}.items():
        used = json.loads((tmp_path / "out" / name / "metrics.json").read_text())["options"]
        assert used == {"by": "study", "views": "all", "data_dir": str(folder)}

    # The command on the page, read by the parser, is the one that was given.
    summary, given = json.loads((tmp_path / "out/metrics.json").read_text()), sys.argv[1:]
    assert summary["settings"]["smooth_maps"] == 1.5 and summary["labels"]["uncertain"] == "ones"
    command = shlex.split(re.search(r"python evaluate_zeroshot.py (.*)", table)[1])
    same = [{**vars(parse(words)), "examples": 0, "explicit": None} for words in (command, given)]
    assert same[0] == same[1] and "--examples 0" in table


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    evaluate_zeroshot.add_data_options(parser), evaluate_zeroshot.add_sentence_options(parser)
    evaluate_zeroshot.add_measuring_options(parser)
    return parser.parse_args(words)


def test_defaults_are_those_of_the_command_and_of_the_loaders():
    defaults = vars(parse([]))
    for option in dataclasses.fields(EvaluationConfig):
        if option.name in defaults and option.default is not dataclasses.MISSING:
            assert defaults[option.name] == option.default, option.name
    for name, record in DATASETS.items():
        check_options(name, json.loads(json.dumps({k: v for k, v in record.options.items() if v is not None})))


def test_maps_are_judged_by_masks_where_there_are_some(tmp_path):
    """The first model is an ensemble, which has no maps."""

    def numbers(value):
        return {"pointing_game": {"Pneumothorax": {"value": value}, "mean": {"value": value}}}

    def maps(place, number):
        entry = {"text": "sentence", "place": place, "resolution": "pixel", "map": "plain", "num_maps": number}
        return entry | {"pointing_game": {"value": 0.1, "p_bootstrap": number / 1000}}

    boxes = {"localisation_intervals": numbers(0.25), "localisation_maps": [maps("box", 9)], "num_images": 167}
    both = boxes | {"localisation_masks": numbers(0.75), "localisation_maps": [maps("box", 9), maps("mask", 8)]}
    results = {}
    for name, metrics in {"siim_acr": both, "ms_cxr": boxes}.items():
        results[name] = {"name": "ensemble", "metrics": {"num_images": 20}, "settings": {"resamples": 20}}
        results[name]["settings"]["confidence"] = 0.95
        results[name] |= {"protocol": {"score": "cosine"}, "options": {}, "counts": {}, "dataset": name}
        results[name] |= {"split": "test", "labels": {}, "fingerprints": {}}
        difference = {"localisation_maps": metrics["localisation_maps"]}
        results[name]["compared"] = {"member": {"metrics": metrics, "difference": difference}}
    done = SuiteResults("mine", "carzero", ["pointing_game"], results)
    rows = table_rows(as_markdown(done.title, suite_sections(done), tmp_path), "Pointing game")
    assert rows[""][:2] == ["siim_acr (1 finding, 8 maps against masks)", "ms_cxr (1 finding, 9 maps against boxes)"]
    assert rows["ensemble"][:2] == ["-", "-"]
    assert rows["member"][:2] == ["0.750, p = 0.008", "0.250, p = 0.009"]
    assert rows["BioViL-T"][1] == "0.719, findings not known", "of the same 167 images"
    sets = suite_summary(done)["sets"]
    assert {name: one["regions"] for name, one in sets.items()} == {"siim_acr": "mask", "ms_cxr": "box"}
    assert sets["siim_acr"]["measures"]["pointing_game"]["member"]["value"] == 0.75


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_set_that_cannot_be_evaluated_by_several_processes(run, tmp_path):
    """The first process writes what was done before it."""
    for name, write in {"chestxdet10": chestxdet10, "chestx-ray14": chestxray14}.items():
        (tmp_path / "root" / name).mkdir(parents=True), write(tmp_path / "root" / name)
    (tmp_path / "root/chestx-ray14/BBox_List_2017.csv").unlink()
    sets = {"chestxdet10": {}, "chestxray14": {}, "again": {"dataset": "chestxdet10"}}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump({"protocol": "tier", "sets": sets}, sort_keys=False))
    launch = [str(Path(sys.executable).with_name("accelerate")), "launch", "--multi_gpu", "--num_processes", "2"]
    command = [*launch, "evaluate_zeroshot.py", "--suite", tmp_path / "two.yaml", "--model", tmp_path / "a"]
    command += ["--data_root", tmp_path / "root", "--output_dir", tmp_path / "out", "--resamples", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [str(word) for word in [*command, "--examples", "0"]]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode != 0 and "chestxray14 could not be evaluated: In the folder" in done.stdout, done.stderr
    table = (tmp_path / "out/suite.md").read_text("utf-8")
    assert "a" in table_rows(table, "AUROC") and "chestxray14 could not be evaluated" in table
    assert "again could not be evaluated: the evaluation stopped before this set" in table


def test_a_published_number_of_the_same_task_has_no_brackets(tmp_path):
    value = {"auroc": {"value": 0.8, "low": 0.79, "high": 0.81}}
    by_image = {f"finding {i}": value for i in range(14)} | {"one class": {"auroc": {"value": None}}, "mean": value}
    metrics = {"num_images": 22433, "classification": {"image": by_image}}
    result = {"name": "ours", "compared": {}, "metrics": metrics, "protocol": {"name": "carzero", "score": "cosine"}}
    result |= {"options": {}, "counts": {"images": 22433}, "dataset": "chestxray14", "split": "test"}
    result["settings"] = {"resamples": 20, "confidence": 0.95}
    done = SuiteResults("mine", "carzero", ["auroc"], {"chestxray14": result})
    rows = table_rows(as_markdown(done.title, suite_sections(done), tmp_path), "AUROC")
    assert rows[""][0] == "chestxray14 (14 findings, 22,433 images)"
    assert rows["ours"][0] == "0.800 (0.790 to 0.810)" and rows["CARZero"][0] == "0.811"
    metrics["num_images"] = 25596
    rows = table_rows(as_markdown(done.title, suite_sections(done), tmp_path), "AUROC")
    assert rows["CARZero"][0] == "[0.811], 22,433 images"
    assert "[0.811]," in as_html(done.title, suite_sections(done))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sets: {}", "must have the keys 'sets'"),
        ("[1]", "must have the keys 'sets'"),
        ("sets: {chexpert: {}}\nmodels: [a]", "must have the keys 'sets'"),
        ("sets: {chexprt: {}}", "'chexprt' is no data set; known are"),
        ("sets: {chexpert: {dataset: [chexpert]}}", r"\['chexpert'\] is no data set"),
        ("protocol: [carzero]\nsets: {chexpert: {}}", "protocol must be one of"),
        ("sets: {'..': {dataset: chexpert}}", "the name of a set is that of its folder"),
        ("sets: {'.': {dataset: chexpert}}", "the name of a set is that of its folder"),
        ("sets: {metrics.json: {dataset: chexpert}}", "the name of a set is that of its folder"),
        ("sets: {chexpert: {split: [test]}}", "chexpert: split must be one of"),
        ("sets: {chexpert: {image_ids: 3}}", "chexpert: image_ids must be the path"),
        ("sets: {chexpert: {by: 2020-01-01}}", "chexpert: .*by must be a text; got"),
        ("sets: {chexpert: {bi: study}}", "chexpert: Unknown option 'bi'"),
        ("sets: {chexpert: 3}", "chexpert must hold the options"),
        ("sets: {../x: {dataset: chexpert}}", "the name of a set is that of its folder"),
        ("protocol: chexnet\nsets: {chexpert: {}}", "protocol must be one of"),
        ("measures: [dise]\nsets: {chexpert: {}}", "measures must be a list of .*auroc.*; got"),
        ("sets: {chexpert: {data_dir: /nowhere}}", "none of its data sets is there"),
        ("sets: {chexpert: {}}", "none of its data sets is there"),
        ("sets: {chestxray14: {data_dir: user/name, view: PA}}", "chestxray14: .*Unknown option 'view'"),
        ("a: [", "cannot be read as YAML"),
        ("carzeroo", "There is no suite carzeroo: name one of .*'carzero', 'localisation', 'tier'"),
        ("carzero", "carzero: none of its data sets is there"),
    ],
)
def test_a_bad_suite_is_named(run, content, message):
    with pytest.raises(SystemExit, match=message):
        run(content)


def test_options_of_one_data_set_are_refused(run):
    options = "data_dir", "image_ids", "prompts", "scores", "validation_image_ids", "validation_data_dir", "dataset"
    for option in options:
        with pytest.raises(SystemExit, match=f"error: --{option} is of one data set"):
            run("carzero", f"--{option}", "synthetic")  # of --dataset the default, given
    with pytest.raises(SystemExit, match="error: --split is of one data set"):
        run("carzero", "--split", "validation")
    with pytest.raises(SystemExit, match="--protocol tier: carzero is evaluated by the protocol 'carzero'"):
        run("carzero", "--protocol", "tier")
    with pytest.raises(SystemExit, match="none of its data sets is there"):
        run("carzero", "--protocol", "carzero")


def test_results_of_something_else_are_not_replaced(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/metrics.json").write_text('{"loss": 1.0}')
    with pytest.raises(SystemExit, match="metrics.json is not of a suite"):
        run("carzero", "--data_root", tmp_path)
    (tmp_path / "out/metrics.json").write_text('{"suite": "tier", "sets": {}}')
    with pytest.raises(SystemExit, match="is of the suite 'tier', not of 'carzero': name another --output_dir"):
        run("carzero", "--data_root", tmp_path)


def test_a_root_that_is_not_there(run):
    with pytest.raises(SystemExit, match="There is no folder /nowhere"):
        run("carzero", "--data_root", "/nowhere")


def test_the_suites_that_come_along():
    assert suite_names() == ["carzero", "localisation", "tier"]
    sets = {name: read_suite(name).sets for name in suite_names()}
    assert len(sets["carzero"]) == 8 and {"chexpert", "padchest"} == set(sets["tier"])
    assert read_suite("tier").protocol == "tier" and "auroc" not in read_suite("localisation").measures
    example = read_suite(ROOT / "configs/suite.yaml")
    assert example.protocol == "carzero" and len(example.sets) == 9


def test_every_published_row_has_a_protocol_and_a_source():
    known, columns = published(), {name for suite in suite_names() for name in read_suite(suite).sets}
    assert len({(row.model, row.measure, name) for row in known.rows for name in row.values}) == sum(
        len(row.values) for row in known.rows
    ), "a number twice"
    for row in known.rows:
        assert row.protocol in known.protocols and known.sources[row.source].short
        assert set(row.values) <= columns and row.measure in [measure.name for measure in shown_in(SUITE)]
        assert all(0 < value < 1 for value in row.values.values())
    cpo = next(row for row in known.rows if row.model == "CPO")
    assert list(cpo.values.values()) == [0.844, 0.820, 0.851, 0.817, 0.925, 0.801] and cpo.protocol == "carzero"
