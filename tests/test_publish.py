# Licensed under the Apache License, Version 2.0.
"""What leaves with a model and what never does, its card, and a Hub on this machine to push to and pull from."""

import base64
import getpass
import hashlib
import io
import json
import math
import random
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from conftest import TEXT_CONFIGS, VISION_CONFIGS
from datasets import Dataset
from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.repocard_data import model_index_to_eval_results
from huggingface_hub.utils import _http
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BertConfig, CLIPImageProcessor

import train as train_script
from modeling_tier import TierConfig, TierModel, TierProcessor, training
from modeling_tier.data import DATASETS
from modeling_tier.evaluation.run import DataChoice, EvaluationConfig, run_evaluation
from modeling_tier.hub.card import TEMPLATE, Facts, fill_card
from modeling_tier.hub.known_fields import FreeText, Selection, local_source, training_fields
from modeling_tier.hub.known_results import Results, evaluation_fields, evaluation_problem
from modeling_tier.hub.notebook import NOTEBOOK, RADIOGRAPH, example_radiograph
from modeling_tier.hub.origin import origin_of
from modeling_tier.hub.release import Release, ReleaseOptions, prepare_release
from modeling_tier.hub.scan import redrawn_figure, scan, scan_text
from modeling_tier.publish import main, publish
from modeling_tier.training import load_config
from modeling_tier.training.building import build_processor, train_tokenizer
from tests.data.trees import drawing, study, write_tree
from tests.hub import Hub


ROOT = Path(__file__).parents[1]
NAME = "user/tiny-tier"
SENTENCES = ["left pleural effusion", "no effusion", "large cardiomegaly"]
RUN_METRICS = {
    "step": 12,
    "epoch": 2,
    "validation": {
        "num_images": 40,
        "auroc": {"Cardiomegaly": 0.7654, "Edema": 0.6543, "mean": 0.7098},
        "peak_spread": 0.5432,
        "token_entropy": 3.8765,
        "max_token_entropy": 4.1589,
        "negative_share": 0.4321,
        "peak": 0.8765,
        "localisation": {"pointing_game": {"mean": 0.2468}, "chance": {"mean": 0.0735}, "cnr": {"mean": 1.3579}},
        "retrieval": {"image_to_text": {"r@1": 0.0975}},
    },
}

# What a run on MIMIC-CXR may have about it, in every place where it may be.
SUBJECT, STUDY, IMAGE = "p10000032", "s50414267", "02aa804e-bde0afdd-112c0b34-7bc16630-4e384014"
PICTURE = f"/home/alice/mimic/files/p10/{SUBJECT}/{STUDY}/{IMAGE}.jpg"
SECRETS = (SUBJECT, "10000032", STUDY, "50414267", IMAGE, "alice", "Smith", "severely enlarged", "workstation-7")


def save_model(folder: Path, tokenizer) -> Path:
    torch.manual_seed(3)
    text = BertConfig(**TEXT_CONFIGS["bert"].to_diff_dict() | {"vocab_size": len(tokenizer)})
    config = TierConfig(
        text_config=text, vision_config=VISION_CONFIGS["resnet"], image_pooling="mean", projection_dim=16
    )
    TierModel(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    image_processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size)
    TierProcessor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def say(folder: Path, *options: str, metrics: dict = RUN_METRICS) -> Path:
    """What a run says of itself beside its model."""
    config = load_config(ROOT / "configs" / "demo.yaml", [f"--output_dir={folder}", *options])
    config.save(folder / "training_config.yaml")
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "environment.json").write_text(json.dumps({"python": "3.11.7", "torch": "2.13.0", "device": "cpu"}))
    (folder / "log.jsonl").write_text('{"step": 1, "loss": 4.2}\n')
    return folder


MIMIC = ("--data.name=mimic_cxr", "--data.options={}", "--data.train={}", "--data.validation={}")
PAIRS = ("--data.name=pairs", "--data.options={data_dir: /srv/pairs}", "--data.train={}", "--data.validation={}")
PAIRS += ("--evaluation.best_metric=loss",)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer) -> Path:
    return save_model(tmp_path_factory.mktemp("saved") / "model", tokenizer)


@pytest.fixture
def run(saved, tmp_path) -> Path:
    """The folder of a run on synthetic radiographs with a published tokenizer."""
    return say(shutil.copytree(saved, tmp_path / "run"), "--tokenizer.pretrained=org/tokenizer")


@pytest.fixture(scope="module")
def evaluated(saved, tmp_path_factory) -> Path:
    """An evaluation of the model on synthetic radiographs, beside another one."""
    folder = tmp_path_factory.mktemp("evaluated")
    other = shutil.copytree(saved, folder / "other")
    model = TierModel.from_pretrained(other)
    torch.nn.init.normal_(model.visual_projection.weight)
    model.save_pretrained(other)
    AcceleratorState._reset_state(reset_partial_state=True)
    run_evaluation(
        EvaluationConfig(
            models=[str(other), str(saved)],
            output_dir=folder / "results",
            data=DataChoice("synthetic", "test", {"image_size": 32, "num_images": 40}),
            validation=DataChoice("synthetic", "validation", {"image_size": 32, "num_images": 40}),
            resamples=20,
            examples=2,
            device="cpu",
        )
    )
    return folder / "results"


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Hub:
    """A Hub, and this process logged in there."""
    with Hub(tmp_path / "home") as hub:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_TOKEN", "hf_writer")
        for name, value in (("ENDPOINT", hub.endpoint), ("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True)):
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
        huggingface_hub.close_session()
        yield hub
    huggingface_hub.close_session()


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def published(release) -> dict[str, bytes]:
    return {
        name: content if isinstance(content, bytes) else content.read_bytes()
        for name, content in release.files.items()
    }


@pytest.fixture
def look(tmp_path):
    """What would go, without a Hub."""
    number = iter(range(100))

    def prepare(folder, **options):
        return prepare_release(folder, tmp_path / f"staging-{next(number)}", ReleaseOptions(NAME, **options))

    return prepare


# What leaves


def test_every_data_set_says_whether_it_may_be_shown():
    assert [name for name, record in DATASETS.items() if record.shareable] == ["synthetic"]
    assert DATASETS["mimic_cxr"].shareable is DATASETS["ms_cxr"].shareable is False


def test_a_dry_run_lists_every_file_and_needs_no_token_and_no_network(run, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert constants.HF_HUB_OFFLINE
    (run / "checkpoints" / "best").mkdir(parents=True)
    (run / "checkpoints" / "best" / "model.safetensors").write_bytes(b"0" * 2_000_000)
    (run / "notes.txt").write_text("mine")
    assert publish(run, NAME, dry_run=True) is None
    goes, stays = capsys.readouterr().out.split("stays here:")
    sent = {line.split()[0] for line in goes.splitlines()[1:]}
    travelling = {path.name for path in (ROOT / "modeling_tier").glob("*_tier.py")}
    own = {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}
    said = {"README.md", "metrics.json", "training_config.yaml", "environment.json", NOTEBOOK, RADIOGRAPH}
    assert sent == travelling | own | said
    kept = {line.split()[0]: line for line in stays.splitlines()[1:] if line.startswith("  ")}
    assert "unless you agree" not in stays and "note:" not in stays
    assert set(kept) == {"checkpoints/", "notes.txt", "log.jsonl"}
    assert "2.0 MB" in kept["checkpoints/"] and "not on the list of what may go" in kept["notes.txt"]


def leaky(run: Path, evaluated: Path) -> Path:
    """Make it the folder of a run on MIMIC-CXR with everything in it that must not leave."""
    options = ["--data.options.exclude_subjects=/home/alice/Smith.csv", "--data.options.section=findings"]
    say(
        run,
        *(*MIMIC, "--data.options.data_dir=/home/alice/mimic/files/p10", *options),
        *("--evaluation.prompts=" + str(ROOT / "modeling_tier/evaluation/prompts/mimic_cxr.yaml"),),
        *("--tokenizer.pretrained=/home/alice/tokenizer", "--training.resume_from_checkpoint=/home/alice/runs/last"),
        metrics=RUN_METRICS
        | {"examples": ["The heart is severely enlarged."], "host": "workstation-7"}
        | {"validation": RUN_METRICS["validation"] | {"unreadable": [f"{PICTURE}: truncated"], SUBJECT: 0.5}},
    )
    config = yaml.safe_load((run / "training_config.yaml").read_text())
    config |= {"Smith": "alice"}
    config["data"]["patients"] = [SUBJECT]
    (run / "training_config.yaml").write_text(yaml.safe_dump(config))
    environment = json.loads((run / "environment.json").read_text()) | {"user": "alice", "host": "workstation-7"}
    (run / "environment.json").write_text(json.dumps(environment))
    (run / "log.jsonl").write_text(json.dumps({"step": 3, "skipped": {"image_ids": [IMAGE]}}))
    for name, key in (("config.json", "_name_or_path"), ("tokenizer_config.json", "name_or_path")):
        content = json.loads((run / name).read_text()) | {key: "/home/alice/base"}
        (run / name).write_text(json.dumps(content))
    (run / "modeling_tier.py").write_text(
        f"# trained by alice on {SUBJECT}\n" + (run / "modeling_tier.py").read_text()
    )
    (run / "patients_tier.py").write_text(f"SUBJECTS = [{SUBJECT!r}]")
    (run / "README.md").write_text(f"Mr. Smith is {SUBJECT}.")
    (run / f"{STUDY}.txt").write_text("The heart is severely enlarged.")
    radiograph = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8))
    radiograph.save(run / "example.png")
    (run / "figures").mkdir()
    radiograph.save(run / "figures" / "roc_image.png")

    evaluation = shutil.copytree(evaluated, run / "evaluation")
    results = json.loads((evaluation / "metrics.json").read_text())
    results |= {"dataset": "mimic_cxr", "model": "/home/alice/runs/clip", "notes": [f"left out: {PICTURE}"]}
    results["options"] = {"data_dir": "/home/alice/mimic", "reports": "/home/alice/reports.zip"}
    results["prompts"]["source"] = "/home/alice/prompts.yaml"
    results["prompts"]["findings"]["Edema"]["positive"] = ["Mr. Smith has edema.", "The heart is severely enlarged."]
    results["validation"]["options"] = {"data_dir": "/home/alice/mimic"}
    for metrics in (results["metrics"], *(other["metrics"] for other in results["compared"].values())):
        metrics["unreadable"] = [f"{PICTURE}: cannot be read"]
        metrics["localisation_tokens"] = [{"token": "Smith", "num_maps": 3}]
        metrics["auroc"]["Mr. Smith"] = 0.5
        metrics["classification"]["image"][SUBJECT] = {"auroc": {"value": 0.5}}
    (evaluation / "metrics.json").write_text(json.dumps(results))
    radiograph.save(evaluation / "figures" / "reliability.png")
    radiograph.save(evaluation / "figures" / f"{SUBJECT}.png")
    return run


def test_nothing_of_a_run_on_mimic_cxr_leaks(run, evaluated, hub):
    folder = leaky(run, evaluated)
    before = contents(folder)
    publish(folder, NAME, accept_vocabulary=True)
    assert contents(folder) == before
    everything = hub.files(NAME)
    assert {"model.safetensors", "evaluation/metrics.json", "metrics.json", "README.md"} <= set(everything)
    for name, content in everything.items():
        for secret in SECRETS:
            assert secret not in name and secret.encode() not in content, f"{secret} in {name}"
    pictures = {name for name, content in everything.items() if content.startswith((b"\x89PNG", b"\xff\xd8"))}
    drawn = {f"evaluation/figures/{name}.png" for name in ("roc_image", "patch_similarity")}
    assert pictures == drawn | {"radiograph.png"}
    assert everything["radiograph.png"] == example_radiograph()
    # The numbers are still there.
    numbers = json.loads(everything["evaluation/metrics.json"])
    assert numbers["dataset"] == "mimic_cxr" and "prompts" not in numbers
    assert set(numbers["metrics"]["auroc"]) == {*numbers["counts"]["labels"], "mean"}
    config = yaml.safe_load(everything["training_config.yaml"])
    assert config["data"]["options"] == {"section": "findings"} and config["model"]["lambda_token"] == 0.2
    card = ModelCard(everything["README.md"].decode())
    assert card.data.license == "other" and "physionet.org" in card.data.license_link
    assert "data use agreement" in card.text and "drawn by code" not in card.text.split("## Results")[0]


def test_nothing_of_a_real_run_and_a_real_evaluation_on_such_a_tree_leaks(saved, tmp_path, start, hub):
    """What the training and the evaluation truly write, whatever that is by now."""
    rows = []
    for i in range(24):
        finding = ("Cardiomegaly", "Edema")[i % 2]
        report = f"FINAL REPORT\n IMPRESSION: Zebra shadow {i} with {finding.lower()}, as Mr Heffalump had it.\n"
        split = ("train", "train", "validate", "test")[i // 2 % 4]
        labels = {finding: "1.0", ("Edema", "Cardiomegaly")[i % 2]: "0.0"}
        rows.append(study(2_345_678 + i, report=report, labels=labels, split=split, picture=drawing(60, 50, seed=i)))
    tree = write_tree(tmp_path / "mimic", rows)
    options = ["--data.name=mimic_cxr", "--data.options={}", "--data.train={}", "--data.validation={}"]
    options = [*[argument for argument in TINY if not argument.startswith("--data.")], *options, f"--data_dir={tree}"]
    folder = start(*options, f"--tokenizer.pretrained={saved}", "--data.max_text_tokens=24")
    AcceleratorState._reset_state(reset_partial_state=True)
    data = DataChoice("mimic_cxr", "test", {"data_dir": str(tree)})
    run_evaluation(EvaluationConfig([str(folder)], folder / "evaluation", data, resamples=10, device="cpu"))
    publish(folder, NAME, accept_vocabulary=True)
    everything = hub.files(NAME)
    assert json.loads(everything["evaluation/metrics.json"])["metrics"]["classification"]["image"]["Edema"]
    names = {str(tree), str(tmp_path), "Zebra", "zebra", "Heffalump", "heffalump", ".jpg"}
    names |= {str(value) for row in rows for value in (row.subject_id, row.study_id, row.dicom_id)}
    jpegs = [path.read_bytes() for path in tree.rglob("*.jpg")]
    for name, content in everything.items():
        assert not [secret for secret in names if secret in name or secret.encode() in content], name
        assert not [jpeg for jpeg in jpegs if jpeg in content or base64.b64encode(jpeg) in content], name
        assert name.endswith(".png") == content.startswith(b"\x89PNG") and "similarity_maps" not in name


def test_what_may_be_shown_goes_and_another_models_numbers_do_not(run, evaluated, look):
    release = look(run, evaluation=evaluated)
    files = published(release)
    assert "evaluation/figures/similarity_maps.png" in files and not release.problems
    everything = json.loads((evaluated / "metrics.json").read_text())
    results = json.loads(files["evaluation/metrics.json"])
    (own,) = (other["metrics"] for other in everything["compared"].values())
    assert {name for name in own if name not in results["metrics"]} == {"localisation_tokens"}
    assert results["metrics"] == {name: value for name, value in own.items() if name in results["metrics"]}
    assert results["prompts"] == {name: everything["prompts"][name] for name in ("source", "findings")}
    assert "compared" not in results and str(evaluated) not in json.dumps(results)


def test_an_evaluation_of_another_model_is_not_sent_as_this_ones(run, evaluated, look):
    weights = load_file(run / "model.safetensors")
    weights["logit_scale"] += 1
    save_file(weights, run / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="of another model"):
        look(run, evaluation=evaluated)
    shutil.copytree(evaluated, run / "evaluation")
    release = look(run)
    assert "of another model" in release.listing()
    assert not [name for name in release.files if name.startswith("evaluation/")]


def test_a_tokenizer_that_was_used_and_saved_again_is_still_that_of_the_evaluation(run, evaluated, look):
    """As a training run leaves it that was resumed after its end."""
    rules = json.loads((run / "tokenizer.json").read_text())
    rules["truncation"] = {"direction": "Right", "max_length": 7, "strategy": "LongestFirst", "stride": 0}
    (run / "tokenizer.json").write_text(json.dumps(rules))
    assert "evaluation/metrics.json" in look(run, evaluation=evaluated).files


def test_a_model_of_synthetic_radiographs_keeps_the_maps_of_mimic_cxr_at_home(run, evaluated, tmp_path, look):
    results = json.loads((evaluated / "metrics.json").read_text()) | {"dataset": "mimic_cxr"}
    evaluation = shutil.copytree(evaluated, tmp_path / "evaluation")
    (evaluation / "metrics.json").write_text(json.dumps(results))
    release = look(run, evaluation=evaluation)
    assert "evaluation/figures/similarity_maps.png" not in release.files
    assert "holds pictures of mimic_cxr" in release.listing()


def test_the_results_of_somebodys_pairs_have_names_only_if_their_owner_says_so(run, evaluated, tmp_path, look):
    text = (evaluated / "metrics.json").read_text().replace('"Nodule"', '"Sarcoid of our ward"')
    results = json.loads(text) | {"dataset": "pairs"}
    evaluation = shutil.copytree(evaluated, tmp_path / "evaluation")
    (evaluation / "metrics.json").write_text(json.dumps(results))
    say(run, *PAIRS, "--data.options.label_columns=[our ward]", "--tokenizer.pretrained=org/tokenizer")
    kept = look(run, evaluation=evaluation)
    assert not [name for name, content in published(kept).items() if b"our ward" in content]
    assert "evaluation/figures/similarity_maps.png" not in kept.files
    assert "evaluation/figures/roc_image.png" not in kept.files  # it has the names in it
    open_to_all = look(run, evaluation=evaluation, shareable=True)
    files = published(open_to_all)
    assert "Sarcoid of our ward" in json.loads(files["evaluation/metrics.json"])["metrics"]["auroc"]
    assert (
        "our ward" in files["training_config.yaml"].decode() and "/srv" not in files["training_config.yaml"].decode()
    )
    assert {"evaluation/figures/similarity_maps.png", "evaluation/figures/roc_image.png"} <= set(files)


@pytest.fixture
def cached(tmp_path, monkeypatch, run) -> Path:
    """A cache of the Hub that holds the tokenizer of the run."""
    folder = tmp_path / "cache" / "models--org--tokenizer" / "snapshots" / "1"
    folder.mkdir(parents=True)
    shutil.copy(run / "tokenizer.json", folder)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.mark.parametrize("name", sorted(name for name, record in DATASETS.items() if record.shareable is False))
def test_nobody_can_share_what_has_terms_of_its_own(name, run, look, cached):
    config = yaml.safe_load((run / "training_config.yaml").read_text())
    config["data"]["name"] = name
    (run / "training_config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=f"--shareable: {name} may never be shown"):
        look(run, shareable=True)
    assert not look(run).problems


def test_a_run_answers_for_the_data_of_the_model_that_it_started_from(run, tmp_path, look):
    base = say(shutil.copytree(run, tmp_path / "base"), *MIMIC, "--tokenizer.pretrained=org/tokenizer")
    config = yaml.safe_load((run / "training_config.yaml").read_text())
    config["model"]["pretrained"] = str(base)
    (run / "training_config.yaml").write_text(yaml.safe_dump(config))
    release = look(run)
    card = ModelCard(published(release)["README.md"].decode())
    assert card.data.datasets == ["synthetic", "mimic_cxr"] and card.data.license == "other"
    with pytest.raises(ValueError, match="mimic_cxr may never"):
        look(run, shareable=True)


# The words of a tokenizer


@pytest.fixture
def own_words(tmp_path) -> Path:
    """A model whose tokenizer was made from the texts of its training."""
    texts = ["There is a left pleural effusion.", "No pneumothorax; the heart of Mr Brown is large."]
    return save_model(tmp_path / "own_words", train_tokenizer(texts, 200))


def test_words_of_texts_that_may_not_be_shown_go_only_on_demand(own_words, look):
    say(own_words, *MIMIC)
    release = look(own_words)
    (problem,) = release.problems
    assert "13 words of the texts of mimic_cxr" in problem and "data use agreement" in problem
    accepted = look(own_words, accept_vocabulary=True)
    assert not accepted.problems and "13 words" in accepted.listing()
    say(own_words)
    assert not look(own_words).problems  # of drawings
    (own_words / "training_config.yaml").unlink()
    assert "nothing is recorded" in look(own_words).problems[0]
    say(own_words, *PAIRS)
    assert look(own_words).problems and not look(own_words, shareable=True).problems


@pytest.mark.parametrize("word", ["10000032", "0012345"])
def test_a_number_among_the_words_stops_it_whatever_was_accepted(word, tmp_path, look):
    folder = say(save_model(tmp_path / "numbers", train_tokenizer([f"Patient {word}."], 200)), *MIMIC)
    release = look(folder, accept_vocabulary=True)
    assert any("tokenizer.json, line" in problem and word in problem for problem in release.problems)
    with pytest.raises(ValueError, match="is not published"):
        publish(folder, NAME, accept_vocabulary=True, dry_run=True)


# The last look


@pytest.mark.parametrize(
    "text",
    [
        f'"{SUBJECT}"',
        "files/p10/",
        f"study {STUDY}.",
        '"subject_id": 10000032,',
        "subject_10000032",
        "[50414267]",
        IMAGE,
        IMAGE.upper(),
        "1.2.840.113619.2.55.3.2831164.1",
        "patient64541/study1",
        "00000013_005.png",
        "216840111366964012819207061112010307142602253_04-014-084",
        "CXR1000_IM-0003-1001",
        "/home/alice/runs",
        'to "/data/mimic cxr/files"',
        "~/runs/tier",
        "../runs/tier/model",
        r"C:\\Users\\alice",
        r"\\server\share",
        "file:///x",
        "![](data:image/png;base64,AAAA)",
        "iVBORw0KGgoAAAANSUhEUg",
    ],
)
def test_each_sign_is_seen(text):
    (message, *_) = scan("folder/file.json", f"first line\n {text} \n".encode())
    assert message.startswith("folder/file.json, line 2: looks like")


# One of each kind; none is real. Put together here, so that no scanner takes this file for a leak.
PLANTED = {
    "token of the Hub": "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGh",
    "AWS key": "AKIA" + "IOSFODNN7EXAMPLQ",
    "AWS secret": "wJalrXUtnFEMI/K7MDENG" + "/bPxRfiCYEXAMPLQKEY",
    "SSH key": "ssh-rsa " + "AAAAB3NzaC1yc2EAAAADAQABAAABgQC7 ward",
    "private key": "-----BEGIN " + "OPENSSH PRIVATE KEY-----",
    "GitHub token": "ghp_" + "Ab1Cd2Ef3Gh4Ij5Kl6Mn7Op8Qr9St0Uv1Wx2",
    "Slack token": "xoxb-" + "123456789012-123456789012-AbCdEfGhIjKlMnOpQrStUvWx",
    "npm token": "npm_" + "Ab1Cd2Ef3Gh4Ij5Kl6Mn7Op8Qr9St0Uv1Wx2",
    "DigitalOcean token": "dop_v1_" + "3f786850e387550fdab836ed7e6dc881" * 2,
    "Databricks token": "dapi" + "3f786850e387550fdab836ed7e6dc881",
    "bearer": "Authorization: Bearer " + "Ab1Cd2Ef3Gh4Ij5Kl6Mn7Op8",
    "password": "passwd: " + "hunter2hunter2",
    "key of a tracker": "WANDB_API_KEY=" + "3f786850e387550fdab836ed7e6dc881de23001b",
    "basic authentication": "https://alice:hunter22x9@" + "hospital.org/data",
    "e-mail": "alice.smith@hospital.org",
    "account on a numbered computer": "alice@workstation-7",
    "account on a node": "a.smith@node03",
    "prompt": "alice@radiology:~$ ls",
    "copied from a computer": "alice@radiology:/scratch",
    "account on this computer": f"alice@{socket.gethostname()}",
    "this account": f"{getpass.getuser()}@radiology",
    "IP address": "10.20.30.41",
    "IP address, version 6": "2001:db8::8a2e:370:7334",
    "hardware address": "00:1B:44:11:3A:B7",
    "date of birth": "DOB 01/02/1956",
    "record number": "MRN 0048213",
    "telephone": "(617) 555-0199",
    "telephone, international": "+44 20 7946 0958",
    "social security number": "123-45-6789",
}


@pytest.mark.parametrize("kind", PLANTED)
def test_secrets_and_addresses_are_seen_in_messages_and_files(kind):
    for text in (f"By {PLANTED[kind]}", f"model-{PLANTED[kind]}", f"run2-{PLANTED[kind]}_b"):
        (message, *_) = scan_text("--message", text)
        assert message.startswith("--message: looks like"), text
    assert scan("config.json", f'{{"note": "{PLANTED[kind]}"}}'.encode())
    assert scan("training_config.yaml", f"note: {PLANTED[kind]}".encode())


@pytest.mark.parametrize(
    "text",
    [
        "Release 1.2.0 of 2026-11-26 (epoch 12/20)",
        "AUROC 0.8123 on 12,345 images; lambda_token 0.2 -> 0.1",
        "tier-biovil-mimic-cxr-v2-lr1e-4-bs256-seed42",
        "microsoft/BiomedVLP-CXR-BERT-specialized",
        "No acute cardiopulmonary process: 3-4 cm, right > left.",
        "torch 2.13.0, huggingface_hub 2.4.0, cuDNN 9.1.0.70",
        "release-1.2.3.4 of 2026-11-26T06:01:48Z",
        "resnet-64-128-256 and run-2026-11-26-0601",
        "Token entropy: lambda_token=0.1; secret weights: none",
        "StanfordAIMI/XrayCLIP__vit-b-16__laion2b-s34b-b88k",
        "Recall@5 and recall@top10, mAP@0.5, hits@10, sensitivity@95, tier@v2, user/model@main-2",
        "CLIP ViT-L/14@336px, resnet50@imagenet21k, model@mimic-cxr, clip@laion2b, tier@epoch12, lambda_token@0.2",
        "pip install package@git+https, timm@1.0.9, open_clip@next-3, the @pytest decorator, tier@3f78685",
        "commit 3f786850e387550fdab836ed7e6dc881de23001b",
        "1.2345678901234567e-05 and 0.30000000000000004",
        "2.13.0.dev20261126+git3f786850e387550fdab836ed7e6dc881de23001b",
    ],
)
def test_clean_texts_are_let_through(text):
    assert scan_text("--message", text) == []
    if "commit" not in text:  # no file that is published holds one
        assert scan("config.json", json.dumps({"note": text}, indent=2).encode()) == []


@pytest.mark.parametrize("kind", ["own words", "unrecorded words", "published words"])
def test_a_large_vocabulary_of_words_that_go_with_secrets_is_let_through(kind):
    words = (
        "password secret bearer born dob mrn patient case hospital record api access key 192 255 :: f: 00 hf_ sk- AKIA"
    )
    vocabulary = {word: 9_000 + 977 * i for i, word in enumerate(words.split())}
    content = {"model": {"vocab": vocabulary, "merges": ["pass word", ["se", "cret"]]}}
    for indent in (2, None):
        assert scan("tokenizer.json", json.dumps(content, indent=indent).encode(), kind) == []
    vocabulary["5550199"] = 1
    assert bool(scan("tokenizer.json", json.dumps(content).encode(), kind)) == (kind == "own words")


def test_a_secret_in_a_message_ends_it_before_anything_is_loaded(hub):
    for option in ("message", "revision", "tag"):
        with pytest.raises(ValueError, match=f"--{option}: looks like a token of the Hub"):
            chosen = ReleaseOptions(NAME, **{option: PLANTED["token of the Hub"]})
            prepare_release(Path("nowhere"), Path("nowhere"), chosen)
    with pytest.raises(ValueError, match="the name on the Hub: looks like a subject of MIMIC"):
        prepare_release(Path("nowhere"), Path("nowhere"), ReleaseOptions(f"user/tier-{SUBJECT}"))


def test_a_folder_of_one_letter_is_not_found_in_the_name_of_the_model():
    assert scan("README.md", b"user/x and root/tier", local_paths=[Path("/x"), Path("/tier")]) == []
    assert scan("README.md", b"see /x/y here", local_paths=[Path("/x")])


def test_paths_and_pictures_are_found():
    messages = scan("a.md", b"one\nsee /lab7 there", local_paths=[Path("/lab7")])
    assert messages == ["a.md, line 2: names the folder '/lab7' of this machine"]
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        picture = io.BytesIO()
        Image.new("L", (8, 8)).save(picture, kind)
        assert scan("a.json", picture.getvalue()), kind
    assert scan("a.json", bytes(128) + b"DICM") and scan("a.json", b"PK\x03\x04") and scan("a.json", b"\xff\x00")


@pytest.mark.parametrize(
    "text",
    [
        "0.12345678 12345678.5 3.00000000",
        "https://physionet.org/content/mimic-cxr-jpg/2.0.0/ and arxiv.org/abs/2212.06710",
        hashlib.sha256(b"x").hexdigest(),
        "and/or, (N, h/w), </s></s>, evaluation/figures/roc_image.png, user/name",
        '"version": "2.13.0+cpu", 4096, 2026',
        '"model_max_length": 1000000000000000019884624838656,',
        "the heart; No pleural effusion.",
    ],
)
def test_what_is_no_sign_is_let_through(text):
    assert scan("file.json", text.encode()) == []


def test_a_sign_in_what_would_leave_ends_it_with_file_and_line(tmp_path, hub, capsys):
    folder = say(save_model(tmp_path / "numbers", train_tokenizer([f"Patient {SUBJECT}."], 200)))
    with pytest.raises(ValueError, match="not published"):
        publish(folder, NAME)
    assert "STOP: tokenizer.json, line" in capsys.readouterr().out
    assert not hub.repositories and not hub.objects and not hub.calls


def test_a_figure_is_drawn_anew_and_nothing_else_is_one():
    figure, axis = plt.subplots(figsize=(1, 1))
    axis.plot([0, 1])
    drawn = io.BytesIO()
    figure.savefig(drawn, metadata={"Software": "Matplotlib of alice"})
    plt.close(figure)
    again = redrawn_figure(drawn.getvalue())
    assert b"alice" in drawn.getvalue() and b"alice" not in again and b"tEXt" not in again
    assert np.array_equal(Image.open(io.BytesIO(again)), Image.open(drawn).convert("RGB"))
    assert redrawn_figure(drawn.getvalue() + b"something behind it") is None
    assert redrawn_figure(drawn.getvalue()[:-4]) is None
    radiograph = io.BytesIO()
    Image.new("L", (8, 8)).save(radiograph, "PNG")
    assert redrawn_figure(radiograph.getvalue()) is None


def test_a_radiograph_that_matplotlib_has_saved_is_no_figure():
    picture = io.BytesIO()
    plt.imsave(picture, np.random.default_rng(0).integers(0, 255, (64, 64)), cmap="gray", format="png")
    assert redrawn_figure(picture.getvalue()) is None
    assert redrawn_figure(picture.getvalue(), with_pictures=True) is not None


def test_results_keep_all_numbers_and_known_names_alone():
    results = {
        "auroc": {"Edema": 0.5, "Mr. Smith": 0.6, "smith": 0.7, "mean": math.nan},
        "device": "cpu",
        "dataset": "the heart is large",
        "undefined": {"Edema": "n+ = 0, n- = 4"},
        "energy_in_box": {"value": 1},
        "A heart": 3,
        "comment": "the heart is large",
    }
    selection = Selection("metrics.json")
    walk = Results(selection)
    cleaned = walk.fields(results)
    assert cleaned.pop("auroc") == {"Edema": 0.5, "mean": None}
    assert cleaned == {"device": "cpu", "undefined": {"Edema": "n+ = 0, n- = 4"}, "energy_in_box": {"value": 1}}
    assert walk.unknown_numbers == ["energy_in_box"] and set(selection.dropped) == {"A heart", "comment"}
    assert {text.text for text in selection.texts} == {"Mr. Smith", "smith", "the heart is large"}
    everything = results | {"unreadable": [PICTURE], "by_reader": {"Smith": {"mcc": 1}}}
    open_to_all = Results(Selection("metrics.json"), any_finding=True).fields(everything)
    assert "smith" in open_to_all["auroc"] and "Mr. Smith" not in open_to_all["auroc"]  # a name with a full stop
    assert "unreadable" not in open_to_all and "by_reader" not in open_to_all
    agreed = Results(Selection("metrics.json", accepted=True)).fields(everything)
    assert "Mr. Smith" in agreed["auroc"] and "unreadable" not in agreed


def test_a_local_model_is_told_from_one_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "base").mkdir(parents=True)
    assert local_source("openai/clip-vit-base-patch32") is None and local_source(None) is None
    for name in ("runs/base", "/gone/base", "~/base", "./base", "a/b/c", r"C:\base"):
        assert local_source(name) is not None, name
    monkeypatch.chdir("/")
    assert local_source("runs/base", [tmp_path]) == tmp_path / "runs/base"


def with_added_tokens(folder: Path, name: str, number: int) -> None:
    """Lists so many added tokens in this file of a tokenizer."""
    path, token = folder / name, {"content": "x", "special": False}
    content = json.loads(path.read_text()) if path.exists() else {}
    if name == "tokenizer.json":
        content["added_tokens"] = [token | {"id": 300 + i} for i in range(number)]
    elif name == "tokenizer_config.json":
        content["added_tokens_decoder"] = {str(300 + i): token for i in range(number)}
    else:
        content = {f"x{i}": 300 + i for i in range(number)}
    path.write_text(json.dumps(content))


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "added_tokens.json")
LOAD = """
import sys
from modeling_tier.evaluation import load_model

for name in sys.argv[1:]:
    try:
        load_model(name)
    except ValueError as error:
        print(f"refused: {error}")
"""


@pytest.mark.parametrize("name", TOKENIZER_FILES)
def test_a_tokenizer_with_endless_added_tokens_is_not_published(name, run):
    with_added_tokens(run, name, 30_000)
    with pytest.raises(ValueError, match=f"{name} adds 30,000 tokens to its vocabulary; at most 20,000"):
        publish(run, NAME, dry_run=True)


@pytest.mark.slow
def test_a_tokenizer_with_endless_added_tokens_is_not_loaded_from_the_hub(saved, tmp_path, hub):
    names = [f"user/model-{number}" for number in range(len(TOKENIZER_FILES))]
    for name, file in zip(names, TOKENIZER_FILES, strict=True):
        folder = shutil.copytree(saved, tmp_path / name)
        with_added_tokens(folder, file, 30_000)
        hub.make(name, private=False)
        hub.commit(name, "main")["files"] |= {path.name: path.read_bytes() for path in folder.iterdir()}
    command = [sys.executable, "-c", LOAD, *names]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=hub.environment)
    assert process.returncode == 0, process.stderr
    for name, file, line in zip(names, TOKENIZER_FILES, process.stdout.splitlines(), strict=True):
        assert line.startswith("refused: ") and f"{name}: {file} adds 30,000 tokens" in line


def test_a_tokenizer_of_a_training_run_has_the_same_limit(run):
    with_added_tokens(run, "tokenizer.json", 30_000)
    config = load_config(ROOT / "configs" / "demo.yaml", [f"--tokenizer.pretrained={run}", "--output_dir=x"])
    with pytest.raises(ValueError, match="tokenizer.json adds 30,000 tokens to its vocabulary"):
        build_processor(config, Dataset.from_dict({"text": []}))


# Files of another form


MISSING = object()
FORMS = (
    None,
    True,
    -3,
    10**400,
    math.nan,
    "text",
    [],
    ["text"],
    [[1], {"a": 1}],
    {},
    {"text": {"value": "x"}},
    MISSING,
)


def values_of(content, path=()):
    """The paths of all values, those inside of others included."""
    for name, value in content.items() if isinstance(content, dict) else enumerate(content):
        yield (*path, name)
        if isinstance(value, dict | list):
            yield from values_of(value, (*path, name))


def with_another_form(content, path, form):
    """A copy in which the value under a path has another form."""
    copy = json.loads(json.dumps(content))
    part = copy
    for name in path[:-1]:
        part = part[name]
    if form is MISSING:
        del part[path[-1]]
    else:
        part[path[-1]] = form
    return copy


def some_forms(content, number):
    """So many copies, each with one value of another form."""
    generator = random.Random(0)
    paths = list(values_of(content))
    return [
        (path, form, with_another_form(content, path, form))
        for path, form in ((generator.choice(paths), generator.choice(FORMS)) for _ in range(number))
    ]


@pytest.mark.parametrize("number", [10, pytest.param(400, marks=pytest.mark.slow)])
def test_results_of_every_form_give_a_card_or_a_reason(number, evaluated):
    """Whatever stands where a number or a table should be."""
    results = json.loads((evaluated / "metrics.json").read_text())
    fingerprint = next(iter(results["fingerprints"]["models"].values()))
    shown, cards = {"synthetic": True}, 0
    for path, form, changed in some_forms(results, number):
        if evaluation_problem(changed) or fingerprint not in changed["fingerprints"]["models"].values():
            continue
        cleaned, _ = evaluation_fields(changed, fingerprint, Selection("metrics.json"), shown)
        facts = Facts(NAME, TierConfig(), ["synthetic"], False, {}, {}, cleaned)
        assert "## Results" in fill_card(facts), (path, form)
        cards += 1
    assert cards > number / 2
    for path, form, changed in some_forms(RUN_METRICS, number):
        metrics = Results(Selection("metrics.json")).fields(changed)
        assert "## Results" in fill_card(Facts(NAME, TierConfig(), [], True, {}, metrics, {})), (path, form)


@pytest.mark.parametrize("number", [10, pytest.param(400, marks=pytest.mark.slow)])
def test_options_of_every_form_give_a_card_or_a_reason(number, run):
    config, model = yaml.safe_load((run / "training_config.yaml").read_text()), TierModel.from_pretrained(run)
    for path, form, changed in some_forms(config, number):
        origin = origin_of(changed, [run.parent])
        options = training_fields(changed, Selection("training_config.yaml"), {"synthetic": True}, model, [run])
        yaml.safe_dump(options)
        facts = Facts(NAME, model.config, [*origin.datasets], True, options, RUN_METRICS, {})
        assert "## Training" in fill_card(facts), (path, form)


@pytest.mark.parametrize(
    "text",
    [
        "data: &a [*a]",
        "data: &a {options: *a}",
        "data: " + "[" * 90 + "]" * 90,
        "data: !!bool perhaps",
        "data: !!timestamp soon",
        "data: !!int ''",
        "? [a, b]\n: 1",
        "data: 1\n---\ndata: 2",
        "\tdata: 1",
        "5",
    ],
)
def test_options_that_are_no_options_are_named(text, run):
    (run / "training_config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"training_config.yaml (cannot be read|holds lists|must hold)") as stopped:
        publish(run, NAME, dry_run=True)
    assert "\n" not in str(stopped.value)


def test_texts_for_consent_are_shown_entirely_or_do_not_go():
    selection = Selection("metrics.json", accepted=True)
    results = {"auroc": {"Edema": 0.5, "of a patient " + "x" * 2_000: 0.5}}
    assert Results(selection).fields(results) == {"auroc": {"Edema": 0.5}}
    release = Release(texts=[FreeText("metrics.json", "the name of a finding", "y" * 900 + "\x1b[2J\nend")])
    assert "y" * 900 in release.listing() and "end'" in release.listing() and "\x1b" not in release.listing()


# The folder


def test_what_is_no_complete_model_is_not_sent(run, tmp_path, look):
    with pytest.raises(ValueError, match="no folder"):
        look(tmp_path / "nowhere")
    (run / "ensemble.json").write_text('["epoch-1"]')
    with pytest.raises(ValueError, match="ensemble"):
        look(run)
    (run / "ensemble.json").unlink()
    weights = load_file(run / "model.safetensors")
    save_file(weights | {"pictures": torch.zeros(3)}, run / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="too many, such as pictures"):
        look(run)
    del weights["logit_scale"]
    save_file(weights, run / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="such as logit_scale"):
        look(run)
    (run / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no model.safetensors. Its training has not ended"):
        look(run)


def test_the_weights_go_as_they_are_and_the_code_is_the_packages(run, look):
    (run / "modeling_tier.py").write_text("print('something else')")
    (run / "pipeline_tier.py").unlink()
    release = look(run)
    files = published(release)
    assert files["model.safetensors"] == (run / "model.safetensors").read_bytes()
    for name in ("modeling", "pipeline", "processing", "configuration", "entropy"):
        assert files[f"{name}_tier.py"] == (ROOT / "modeling_tier" / f"{name}_tier.py").read_bytes()


# The card


def card_of(release) -> ModelCard:
    return ModelCard(published(release)["README.md"].decode(), ignore_metadata_errors=False)


def test_the_card_is_a_valid_one_and_says_what_was_measured(run, evaluated, look, hub):
    release = look(run, evaluation=evaluated)
    card = card_of(release)
    card.validate()
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "zero-shot-image-classification"
    assert card.data.license == "apache-2.0" and card.data.datasets == ["synthetic"]
    index = card.data.to_dict()["model-index"]
    name, results = model_index_to_eval_results(index)
    assert name == "tiny-tier" and {result.metric_type for result in results} == set(card.data.metrics)
    values = {(result.dataset_split, result.metric_type): result.metric_value for result in results}
    (own,) = json.loads((evaluated / "metrics.json").read_text())["compared"].values()
    own = own["metrics"]
    assert values["test", "roc_auc"] == pytest.approx(own["auroc"]["mean"], abs=5e-5)
    assert values["test", "cnr"] == pytest.approx(own["localisation"]["cnr"]["mean"], abs=5e-5)
    assert values["validation", "roc_auc"] == 0.7098 and values["validation", "pointing_game"] == 0.2468
    mean = own["classification"]["image"]["mean"]["auroc"]
    interval = f"| {mean['value']:.3f} | {mean['low']:.3f} to {mean['high']:.3f} |"
    assert f"| AUROC, mean over the findings {interval}" in card.text
    assert "| pointing game, mean | 0.247 (chance 0.073) |" in card.text or "0.247 (chance 0.074)" in card.text
    assert "| lambda_token | 0.2 |" in card.text and "drawn by code" in card.text
    for must in ("not for clinical use", "## Intended use", "Failure modes", "@inproceedings{palepu2023tier", NAME):
        assert must in card.text
    assert not [word for word in ("None", "nan", "{{", "{%") if word in card.content.replace("None was", "")]


@pytest.mark.parametrize(
    ("path", "row"),
    [
        (("auroc",), "AUROC"),
        (("auroc", "Edema"), "AUROC, Edema"),
        (("localisation",), "pointing game"),
        (("localisation", "cnr"), "CNR"),
        (("retrieval",), "recall at 1"),
        (("token_entropy",), "token entropy"),
        (("peak_spread",), "One fixed place"),
        (("negative_share",), "Collapse of the maps"),
    ],
)
@pytest.mark.parametrize("form", ["absent", "null", "NaN"])
def test_a_number_that_was_not_measured_is_absent_from_the_card(path, row, form, run, look):
    metrics = json.loads(json.dumps(RUN_METRICS))
    assert f"{row}" in card_of(look(run)).content
    part = metrics["validation"]
    for name in path[:-1]:
        part = part[name]
    if form == "absent":
        del part[path[-1]]
    else:
        part[path[-1]] = None if form == "null" or isinstance(part[path[-1]], dict) else math.nan
    (run / "metrics.json").write_text(json.dumps(metrics))
    content = card_of(look(run)).content
    assert row not in content.replace("AUROC does not show", "") and "nan" not in content and "None" not in content


def test_a_model_without_any_measurement_has_a_card_without_results(saved, look):
    card = card_of(look(saved))
    assert "None was measured." in card.text and "nothing was measured that would show one" in card.text
    assert "Nothing is recorded about the data" in card.text
    assert not {"model-index", "metrics", "datasets"} & set(card.data.to_dict())


def test_the_card_says_so_when_the_maps_are_worthless(run, look):
    metrics = json.loads(json.dumps(RUN_METRICS))
    metrics["validation"] |= {"peak_spread": 0.05, "negative_share": 0.99, "peak": 0.1}
    metrics["validation"]["localisation"]["pointing_game"]["mean"] = 0.01
    (run / "metrics.json").write_text(json.dumps(metrics))
    text = card_of(look(run)).text
    for warning in ("say nothing about the pictures**", "the maps are worthless**", "**less than** what chance gives"):
        assert warning in text


def test_the_citation_is_that_of_the_citation_file():
    paper = yaml.safe_load((ROOT / "CITATION.cff").read_text())["preferred-citation"]
    (entry,) = re.findall(r"```bibtex\n(.*?)```", TEMPLATE.read_text(), re.DOTALL)
    names = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    pages = f"{paper['start']}--{paper['end']}"
    for must in (paper["title"], names, paper["collection-title"], pages, str(paper["year"]), paper["volume"]):
        assert must in entry
    (arxiv,) = (identifier["value"].removeprefix("arXiv:") for identifier in paper["identifiers"])
    assert f"eprint = {{{arxiv}}}" in entry


def test_the_template_at_the_root_is_the_one_that_is_installed():
    assert (ROOT / "model_card.md").read_bytes() == TEMPLATE.read_bytes()


# The Hub


def test_one_commit_into_a_private_repository(run, hub):
    before = contents(run)
    url = publish(run, NAME, message="First")
    assert hub.commits(NAME) == ["First"] and url == f"{hub.endpoint}/{NAME}/commit/{hub.commit(NAME, 'main')['id']}"
    assert hub.repositories[NAME]["private"] and contents(run) == before
    assert hub.files(NAME)["model.safetensors"] == (run / "model.safetensors").read_bytes()
    number = len(hub.calls)
    assert publish(run, NAME, message="Again") == url  # nothing has changed
    assert hub.commits(NAME) == ["First"]
    assert not [call for call in hub.calls[number:] if call[0] == "PUT"]


def test_a_public_one_and_a_branch(run, hub):
    publish(run, NAME, private=False)
    assert not hub.repositories[NAME]["private"]
    weights = load_file(run / "model.safetensors")
    weights["logit_scale"] += 1
    save_file(weights, run / "model.safetensors", {"format": "pt"})
    publish(run, NAME, private=False, revision="sharper")
    assert set(hub.repositories[NAME]["branches"]) == {"main", "sharper"} and len(hub.commits(NAME)) == 1
    assert hub.files(NAME, "sharper")["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert hub.files(NAME)["model.safetensors"] != (run / "model.safetensors").read_bytes()


def test_what_an_earlier_release_had_and_this_one_has_not_is_taken_away(run, evaluated, hub):
    publish(run, NAME, evaluation=evaluated)
    assert "evaluation/metrics.json" in hub.files(NAME)
    hub.commit(NAME, "main")["files"] |= {"mine.md": b"kept", "old/config.json": b"{}"}
    publish(run, NAME)
    files = hub.files(NAME)
    assert not [name for name in files if name.startswith("evaluation/")]
    assert {"mine.md", "old/config.json", ".gitattributes"} <= set(files) and len(hub.commits(NAME)) == 2


@pytest.mark.slow
def test_each_release_has_a_name_by_which_it_is_pulled(run, hub, capsys):
    publish(run, NAME)
    publish(run, NAME)  # nothing has changed, so this is the same release
    first = hub.commit(NAME, "main")["id"]
    assert hub.repositories[NAME]["tags"] == {"release-1": first}
    assert "revision='release-1'" in capsys.readouterr().out
    (run / "environment.json").unlink()
    publish(run, NAME, tag="v2")
    assert hub.repositories[NAME]["tags"] == {"release-1": first, "v2": hub.commit(NAME, "main")["id"]}
    assert hub.files(NAME, "release-1") != hub.files(NAME, "v2")
    (run / "metrics.json").unlink()
    with pytest.raises(ValueError, match="another release called v2: take another --tag"):
        publish(run, NAME, tag="v2")


def test_a_gated_repository_asks_for_what_the_terms_of_the_data_ask(run, hub, cached):
    say(run, *MIMIC, "--tokenizer.pretrained=org/tokenizer")
    publish(run, NAME, gated="manual")
    assert hub.repositories[NAME]["gated"] == "manual"
    data = ModelCard(hub.files(NAME)["README.md"].decode()).data.to_dict()
    assert "I am entitled to use MIMIC-CXR and keep to its terms" in data["extra_gated_fields"]
    with pytest.raises(ValueError, match="'auto' or 'manual'"):
        publish(run, NAME, gated="yes")


def test_a_collection_holds_the_models_of_a_run_each_once(run, hub):
    for name in (NAME, NAME, "user/other"):
        publish(run, name, collection="Tiny TIER, all models")
    ((slug, collection),) = hub.collections.items()
    assert slug.startswith("user/tiny-tier-all-models-") and collection["private"]
    assert [item["id"] for item in collection["items"]] == [NAME, "user/other"]
    assert {item["note"]["text"] for item in collection["items"]} == {"TIER: lambda_token 0.2, lambda_patch 0.1"}
    hub.fail("POST", "/items", 500, times=9)
    with pytest.raises(OSError, match="answered 500.*Go on with: .*--collection 'Tiny TIER, all models'"):
        publish(run, "user/third", collection="Tiny TIER, all models")


def test_the_page_of_a_model_points_at_a_better_one(run, look):
    assert card_of(look(run, new_version="user/better")).data.to_dict()["new_version"] == "user/better"
    assert "new_version" not in card_of(look(run)).data.to_dict()
    with pytest.raises(ValueError, match="is called user/name"):
        publish(run, NAME, new_version="better", dry_run=True)


def test_a_dry_run_shows_the_card(run, capsys):
    publish(run, NAME, dry_run=True)
    shown = capsys.readouterr().out.partition("the model card:\n")[2].rpartition("A dry run")[0]
    card = ModelCard("\n".join(line[2:] for line in shown.splitlines()))
    assert card.data.model_name == "tiny-tier" and "## How to use" in card.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["user/name", "{run}"], r"user/name is no folder of a model, and {run} is one: it comes first"),
        (["{run}/nowhere", NAME], r"There is no folder {run}/nowhere"),
        (["{run}/config.json", NAME], r"is a file: name the model's folder, {run}"),
        (["{run}", NAME, "--evaluation", "{run}/nowhere"], r"--evaluation: there is no folder {run}/nowhere"),
        (["{run}", NAME, "--evaluation", "{run}/config.json"], r"is a file: name its folder, {run}"),
        (["{run}", NAME, "--evaluation", "{run}/.."], r"there is no .*metrics.json: name a folder that evaluate"),
        (["{run}", NAME, "--accept_texts", "12345678"], None),
    ],
)
def test_a_wrong_argument_is_named(arguments, message, run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["publish", *(argument.format(run=run) for argument in arguments), "--dry_run"])
    if message is None:
        main()
        assert "there are no free texts" in capsys.readouterr().out
    else:
        with pytest.raises(SystemExit, match=message.format(run=run)):
            main()


def test_an_address_that_is_no_hub_is_named(run, hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", f"{hub.endpoint}/nothing")
    with pytest.raises(OSError, match="404 for http.*HF_ENDPOINT.* is no Hub"):
        publish(run, NAME)


def test_own_sentences_go_only_with_the_code_under_which_they_were_shown(run, evaluated, tmp_path, look, capsys):
    evaluation = shutil.copytree(evaluated, tmp_path / "evaluation")
    results = json.loads((evaluation / "metrics.json").read_text())
    results["prompts"]["findings"]["Edema"]["positive"] = ["The lungs of Mr Heffalump are wet."]
    (evaluation / "metrics.json").write_text(json.dumps(results))
    release = look(run, evaluation=evaluation)
    assert not release.problems
    assert not [name for name, content in published(release).items() if b"Heffalump" in content]
    (code,) = re.findall(r"--accept_texts (\w{8})", release.listing())
    assert "The lungs of Mr Heffalump are wet." in release.listing()
    agreed = look(run, evaluation=evaluation, accept_texts=code)
    assert b"Heffalump" in published(agreed)["evaluation/metrics.json"] and not agreed.problems
    results["prompts"]["findings"]["Edema"]["positive"] = ["Mr Woozle is wet, p10000032."]
    (evaluation / "metrics.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match="not the texts that were listed"):
        look(run, evaluation=evaluation, accept_texts=code)
    (code,) = re.findall(r"--accept_texts (\w{8})", look(run, evaluation=evaluation).listing())
    assert any(
        "a subject of MIMIC" in problem for problem in look(run, evaluation=evaluation, accept_texts=code).problems
    )


@pytest.mark.slow
def test_a_published_model_is_pulled_into_an_empty_folder_and_its_examples_run(run, hub, tmp_path):
    publish(run, NAME)
    # A cache or an offline mode of whoever asks is none of the examples' process.
    environment = hub.environment | {"HF_TOKEN": "hf_writer", "HF_HUB_CACHE": str(tmp_path), "HF_MODULES_CACHE": "no"}

    def check():
        command = [sys.executable, "-m", "modeling_tier.publish", "--check", NAME]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)

    process = check()
    assert process.returncode == 0 and "the 2 examples of its card ran" in process.stdout, process.stderr
    assert not list(tmp_path.glob("models--*"))
    hub.commit(NAME, "main")["files"]["pipeline_tier.py"] = b"raise OSError('broken')"
    process = check()
    assert process.returncode == 1 and "the examples of its card fail: OSError: broken" in process.stderr


def test_a_check_without_a_network_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["publish", "--check", NAME])
    with pytest.raises(SystemExit, match="HF_HUB_OFFLINE is set: unset it"):
        main()


def test_large_files_go_in_parts(run, hub):
    hub.part_size = 10_000
    publish(run, NAME)
    weights = (run / "model.safetensors").read_bytes()
    parts = hub.parts[hashlib.sha256(weights).hexdigest()]
    assert len(parts) == -(-len(weights) // 10_000) > 2
    assert hub.files(NAME)["model.safetensors"] == (run / "model.safetensors").read_bytes()


def no_token(hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")


def bad_token(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")


def token_that_reads(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_reader")


def name_of_another(hub, monkeypatch):
    hub.make(NAME, private=False)
    monkeypatch.setenv("HF_TOKEN", "hf_other")


def namespace_of_another(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_other")


def name_of_a_hidden_one(hub, monkeypatch):
    hub.fail("GET", f"/api/models/{NAME}", 404, times=1, **{"X-Error-Code": "RepoNotFound"})
    hub.make(NAME)


def public_already(hub, monkeypatch):
    hub.make(NAME, private=False)


def rate_limit(hub, monkeypatch):
    hub.fail("POST", "/preupload/", 429, times=99, **{"Retry-After": "3"})


def rate_limit_of_commits(hub, monkeypatch):
    hub.fail("POST", "/commit/", 429, times=1, **{"Retry-After": "77"})


def broken_upload(hub, monkeypatch):
    hub.fail("PUT", "/lfs/", None, times=99)


def broken_commit(hub, monkeypatch):
    hub.fail("POST", "/commit/", None)


def server_error(hub, monkeypatch):
    hub.fail("POST", "/commit/", 500)


def no_network(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("trouble", "private", "message"),
    [
        (no_token, True, "There is no token for the Hub: log in with `hf auth login`"),
        (bad_token, True, "refuses the token"),
        (token_that_reads, True, "The token may only read"),
        (name_of_another, False, "no right to write to user/tiny-tier"),
        (namespace_of_another, True, "no right to write to user/tiny-tier"),
        (name_of_a_hidden_one, True, "The name user/tiny-tier is taken"),
        (public_already, True, "is there already, and public"),
        (rate_limit, True, r"rate limit; it asks for 3 seconds"),
        (rate_limit_of_commits, True, r"rate limit; it asks for 77 seconds"),
        (broken_upload, True, "the connection was lost"),
        (broken_commit, True, "the connection was lost"),
        (server_error, True, "The Hub has answered 500"),
        (no_network, True, "The Hub cannot be reached"),
    ],
)
def test_a_failure_is_reported_and_the_same_command_resumes(trouble, private, message, run, hub, monkeypatch, capsys):
    before = contents(run)
    command = ["publish", str(run), NAME, *([] if private else ["--public"])]
    monkeypatch.setattr(sys, "argv", command)
    with monkeypatch.context() as patched:
        trouble(hub, patched)
        with pytest.raises(SystemExit, match=message) as stopped:
            main()
    assert str(stopped.value).startswith("error: ") and "Traceback" not in capsys.readouterr().err
    assert contents(run) == before
    assert NAME not in hub.repositories or hub.commits(NAME) == []
    command = ["python", "-m", "modeling_tier.publish", *command[1:]]
    assert str(stopped.value).endswith(f"Go on with: {shlex.join(command)}")
    # What was wrong is mended.
    hub.faults.clear()
    if trouble in (public_already, name_of_a_hidden_one):
        hub.repositories[NAME]["private"] = True
    main()
    assert hub.commits(NAME) == ["Publish a TIER model"]
    assert hub.files(NAME)["model.safetensors"] == (run / "model.safetensors").read_bytes()


def test_what_has_arrived_is_not_sent_again(run, evaluated, hub):
    hub.fail("POST", "/commit/", 503)
    with pytest.raises(OSError, match="answered 503"):
        publish(run, NAME, evaluation=evaluated)
    assert hub.commits(NAME) == [] and len(hub.objects) > 3
    number = len(hub.calls)
    publish(run, NAME, evaluation=evaluated)
    assert not [call for call in hub.calls[number:] if call[0] == "PUT"] and len(hub.commits(NAME)) == 1


def test_a_commit_whose_answer_was_lost_is_not_made_twice(run, hub):
    hub.fail("POST", "/commit/", 0)
    with pytest.raises(OSError, match="connection was lost"):
        publish(run, NAME)
    assert len(hub.commits(NAME)) == 1
    assert publish(run, NAME).endswith(hub.commit(NAME, "main")["id"])
    assert len(hub.commits(NAME)) == 1


def test_a_short_rate_limit_is_waited_for(run, hub):
    hub.fail("POST", "/preupload/", 429, times=2, **{"Retry-After": "1"})
    hub.fail("PUT", "/lfs/", 500, times=2)
    publish(run, NAME)
    assert len(hub.commits(NAME)) == 1


@pytest.mark.parametrize("name", ["tiny", "user/", "user/a b", "a/b/c", "user/--x", ""])
def test_a_name_that_is_none_is_refused(name, run, hub):
    with pytest.raises(ValueError, match="is called user/name"):
        publish(run, name)
    assert not hub.calls


# Pulled from elsewhere


PULLED = """
import json, sys
from transformers import AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor, pipeline

name, revision, image, texts = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
try:
    import modeling_tier
    sys.exit("the package must not be importable here")
except ModuleNotFoundError:
    pass
where = {"revision": revision, "trust_remote_code": True}
processor = AutoProcessor.from_pretrained(name, **where)
inputs = processor(images=image, text=texts)
result = {}
for auto_class in (AutoModel, AutoModelForZeroShotImageClassification):
    model = auto_class.from_pretrained(name, **where).eval()
    result[auto_class.__name__] = model(**inputs).logits_per_image[0].tolist()
classify = pipeline("zero-shot-image-classification", model=name, **where)
scores = {row["label"]: row["score"] for row in classify(image, candidate_labels=texts, hypothesis_template="{}")}
result["classified"] = [scores[text] for text in texts]
read = pipeline("tier-zero-shot", model=name, **where)
result["read"] = [row["score"] for row in read(image, findings=texts[:2])]
newest = AutoModel.from_pretrained(name, trust_remote_code=True).eval()
result["newest"] = newest(**inputs).logits_per_image[0].tolist()
print(json.dumps(result))
"""


@pytest.mark.slow
def test_a_machine_without_the_package_pulls_it_by_name_by_revision_and_offline(run, hub, tmp_path):
    publish(run, NAME)
    first = hub.commit(NAME, "main")["id"]
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)).save(tmp_path / "x.png")
    model, processor = TierModel.from_pretrained(run).eval(), TierProcessor.from_pretrained(run)
    with torch.no_grad():
        expected = model(**processor(images=tmp_path / "x.png", text=SENTENCES)).logits_per_image[0]
    weights = load_file(run / "model.safetensors")
    weights["logit_scale"] += 1
    save_file(weights, run / "model.safetensors", {"format": "pt"})
    publish(run, NAME)
    away = tmp_path / "elsewhere"
    away.mkdir()

    def pull(revision, **environment):
        environment = {k: v for k, v in hub.environment.items() if k not in ("PYTHONPATH", "HF_TOKEN")} | environment
        command = [sys.executable, "-c", PULLED, NAME, revision, str(tmp_path / "x.png"), json.dumps(SENTENCES)]
        return subprocess.run(command, capture_output=True, text=True, cwd=away, env=environment)

    def results(process):
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout.splitlines()[-1])

    online = results(pull(first, HF_TOKEN="hf_writer"))
    asked = len(hub.calls)
    offline = results(pull(first, HF_HUB_OFFLINE="1"))
    assert offline == online and len(hub.calls) == asked
    for name in ("AutoModel", "AutoModelForZeroShotImageClassification"):
        assert online[name] == pytest.approx(expected.tolist(), abs=1e-6)
    assert online["classified"] == pytest.approx(expected.softmax(-1).tolist(), abs=1e-6)
    assert all(0 < score < 1 for score in online["read"])
    assert online["newest"] == pytest.approx((expected * math.e).tolist(), rel=1e-5)


def test_a_private_model_is_for_those_who_may_read_it(run, hub, tmp_path):
    publish(run, NAME)
    api = HfApi(endpoint=hub.endpoint)
    assert api.model_info(NAME, token="hf_reader").private
    for token in (False, "hf_other"):
        with pytest.raises(huggingface_hub.errors.RepositoryNotFoundError):
            api.model_info(NAME, token=token)


# train.py


TINY = [
    "--data.options.image_size=32",
    "--data.train.num_images=24",
    "--data.validation.num_images=16",
    "--model.image_size=32",
    "--model.vision_config.embedding_size=8",
    "--model.vision_config.hidden_sizes=[8, 16]",
    "--model.vision_config.depths=[1, 1]",
    "--model.text_config.hidden_size=32",
    "--model.text_config.num_hidden_layers=1",
    "--model.text_config.intermediate_size=37",
    "--model.projection_dim=16",
    "--training.batch_size=8",
    "--training.epochs=1",
    "--training.progress=false",
]


@pytest.fixture
def start(tmp_path, monkeypatch):
    """`python train.py`, in this process."""
    AcceleratorState._reset_state(reset_partial_state=True)

    def start(*options):
        command = ["train.py", "--config", str(ROOT / "configs" / "demo.yaml"), f"--output_dir={tmp_path / 'trained'}"]
        monkeypatch.setattr(sys, "argv", [*command, *options])
        train_script.main()
        return tmp_path / "trained"

    return start


def test_a_training_run_publishes_itself_when_it_has_ended(start, hub):
    folder = start(*TINY, "--push_to_hub", "--hub_model_id", NAME)
    files = hub.files(NAME)
    assert hub.repositories[NAME]["private"] and len(hub.commits(NAME)) == 1
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert json.loads(files["metrics.json"]) == json.loads((folder / "metrics.json").read_text())
    auroc = json.loads(files["metrics.json"])["validation"]["auroc"]["mean"]
    assert f"| AUROC, mean over the findings | {auroc:.3f} |" in files["README.md"].decode()


@pytest.mark.parametrize(
    ("trouble", "options", "message"),
    [
        (no_token, [], "There is no token"),
        (token_that_reads, [], "may only read"),
        (namespace_of_another, [], "no right to write"),
        (public_already, [], "--no-hub_private"),
        (no_network, [], "cannot be reached.*Nothing was trained yet"),
        (None, ["--hub_model_id", "a/b/c"], "is called user/name"),
        (None, [*MIMIC, "--hub_shareable"], "mimic_cxr may never be shown"),
        (None, [*MIMIC], "--hub_accept_vocabulary"),
        (None, [*PAIRS], "--hub_accept_vocabulary"),
    ],
)
def test_what_can_be_known_is_checked_before_hours_are_lost(trouble, options, message, start, hub, monkeypatch):
    monkeypatch.setattr(training, "train", lambda config: pytest.fail("the training has begun"))
    if trouble:
        trouble(hub, monkeypatch)
    with pytest.raises(SystemExit, match=message):
        start("--push_to_hub", "--hub_model_id", NAME, *options)
    with pytest.raises(SystemExit, match="go together"):
        start("--push_to_hub")
    with pytest.raises(SystemExit, match="go together"):
        start("--hub_model_id", NAME)


def test_a_push_that_fails_leaves_the_run_and_says_how_to_go_on(start, run, tmp_path, hub, monkeypatch):
    monkeypatch.setattr(training, "train", lambda config: shutil.copytree(run, config.output_dir))
    hub.fail("POST", "/commit/", None)
    with pytest.raises(SystemExit) as stopped:
        start("--push_to_hub", "--hub_model_id", NAME, "--no-hub_private")
    assert isinstance(stopped.value.code, str)  # exit code 1
    command = f"python -m modeling_tier.publish {tmp_path / 'trained'} {NAME} --public"
    assert str(stopped.value).endswith(command)
    assert contents(tmp_path / "trained") == contents(run) and hub.commits(NAME) == []
    monkeypatch.setattr(sys, "argv", command.split()[2:])
    main()
    assert len(hub.commits(NAME)) == 1 and not hub.repositories[NAME]["private"]


def test_a_run_that_was_stopped_and_other_processes_publish_nothing(start, hub, monkeypatch):
    def stopped(config):
        raise SystemExit(75)

    monkeypatch.setattr(training, "train", stopped)
    with pytest.raises(SystemExit, match="75"):
        start("--push_to_hub", "--hub_model_id", NAME)
    assert hub.commits(NAME) == []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(training, "train", lambda config: None)
    number = len(hub.calls)
    start("--push_to_hub", "--hub_model_id", NAME)
    assert len(hub.calls) == number
