# Licensed under the Apache License, Version 2.0.
# ruff: noqa: F811 (fixtures are arguments)
"""
Attacks on publishing: what must not leave is planted in every file, key, message and name, and folders are made
hostile. An attack is held if nothing of what was planted reaches the Hub, and whatever stops it is a message.
"""

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from modeling_tier.publish import publish
from tests.hub import Hub
from tests.test_publish import (  # noqa: F401
    MIMIC,
    NAME,
    evaluated,
    hub,
    run,
    save_model,
    saved,
    say,
    some_forms,
)


pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# One of each kind; none is real. Put together here, so that no scanner of this repository takes them for true.
SECRETS = {
    "token of the Hub": "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGh",
    "AWS key": "AKIA" + "IOSFODNN7EXAMPLQ",
    "SSH key": "ssh-rsa " + "AAAAB3NzaC1yc2EAAAADAQABAAABgQC7 ward",
    "private key": "-----BEGIN " + "OPENSSH PRIVATE KEY-----",
    "GitHub token": "ghp_" + "Ab1Cd2Ef3Gh4Ij5Kl6Mn7Op8Qr9St0Uv1Wx2",
    "Slack token": "xoxb-" + "123456789012-123456789012-AbCdEfGhIjKlMnOpQrStUvWx",
    "e-mail": "alice.smith@hospital.org",
    "IP address": "10.20.30.41",
    "record number": "MRN 0048213",
    "telephone": "(617) 555-0199",
    "telephone, international": "+44 20 7946 0958",
    "social security number": "123-45-6789",
    "subject of MIMIC": "p10000032",
    "study of MIMIC": "s50414267",
    "image of MIMIC": "02aa804e-bde0afdd-112c0b34-7bc16630-4e384014",
    "patient of CheXpert": "patient64541",
    "image of PadChest": "216840111366964012819207061112010307142602253",
    "image of ChestX-ray14": "00000013_005",
    "image of Open-I": "CXR1000_IM-0003",
    "path": "/home/alice/mimic/files",
    "Windows path": r"C:\Users\alice\mimic",
    "basic authentication": "https://alice:hunter22x9@hospital.org/data",
}
NAMES = ("Mr Heffalump", "workstation-7")
"""What no pattern knows: it must not get that far."""
SENTENCE = "The heart of Mr Heffalump is severely enlarged"


def edit(file: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def edit_yaml(file: Path, change: Callable[[dict], object]) -> None:
    content = yaml.safe_load(file.read_text())
    change(content)
    file.write_text(yaml.safe_dump(content))


# Unknown keys and free values: (place, what plants a text there)

PLACES: dict[str, Callable[[Path, str], object]] = {
    "config.json, key": lambda f, s: edit(f / "config.json", lambda c: c.update(note=s)),
    "config.json, name of a key": lambda f, s: edit(f / "config.json", lambda c: c.update({s: 1})),
    "config.json, text_config": lambda f, s: edit(f / "config.json", lambda c: c["text_config"].update(note=s)),
    "config.json, vision_config": lambda f, s: edit(f / "config.json", lambda c: c["vision_config"].update(note=[s])),
    "config.json, id2label": lambda f, s: edit(f / "config.json", lambda c: c.update(id2label={"0": s})),
    "config.json, name_or_path": lambda f, s: edit(f / "config.json", lambda c: c.update(_name_or_path=s)),
    "config.json, architectures": lambda f, s: edit(f / "config.json", lambda c: c.update(architectures=[s])),
    "config.json, nested": lambda f, s: edit(f / "config.json", lambda c: c.update(a={"b": [{"c": s}]})),
    "config.json, task_specific_params": lambda f, s: edit(
        f / "config.json", lambda c: c["text_config"].update(task_specific_params={"x": s})
    ),
    "tokenizer_config.json, key": lambda f, s: edit(f / "tokenizer_config.json", lambda c: c.update(comment=s)),
    "tokenizer_config.json, chat_template": lambda f, s: edit(
        f / "tokenizer_config.json", lambda c: c.update(chat_template=s)
    ),
    "tokenizer_config.json, errors": lambda f, s: edit(f / "tokenizer_config.json", lambda c: c.update(errors=s)),
    "tokenizer_config.json, name_or_path": lambda f, s: edit(
        f / "tokenizer_config.json", lambda c: c.update(name_or_path=s)
    ),
    "processor_config.json, key": lambda f, s: edit(f / "processor_config.json", lambda c: c.update(note=s)),
    "processor_config.json, image_processor": lambda f, s: edit(
        f / "processor_config.json", lambda c: c["image_processor"].update(note=s)
    ),
    "environment.json, key": lambda f, s: edit(f / "environment.json", lambda c: c.update(user=s)),
    "environment.json, value": lambda f, s: edit(f / "environment.json", lambda c: c.update(python=f"3.11 {s}")),
    "environment.json, known key": lambda f, s: edit(f / "environment.json", lambda c: c.update(system=s, machine=s)),
    "training_config.yaml, key": lambda f, s: edit_yaml(f / "training_config.yaml", lambda c: c.update(note=s)),
    "training_config.yaml, section": lambda f, s: edit_yaml(
        f / "training_config.yaml", lambda c: c["data"].update(note=s)
    ),
    "training_config.yaml, patterns": lambda f, s: edit_yaml(
        f / "training_config.yaml", lambda c: c["freeze"].update(patterns=[s])
    ),
    "training_config.yaml, choice": lambda f, s: edit_yaml(
        f / "training_config.yaml", lambda c: c["optimizer"].update(schedule=s)
    ),
    "training_config.yaml, model": lambda f, s: edit_yaml(
        f / "training_config.yaml", lambda c: c["model"]["text_config"].update(note=s)
    ),
    "training_config.yaml, options": lambda f, s: edit_yaml(
        f / "training_config.yaml", lambda c: c["data"]["options"].update(section=s, note=s)
    ),
    "training_config.yaml, data set": lambda f, s: edit_yaml(
        f / "training_config.yaml", lambda c: c["evaluation"].update(prompts=s, split=s)
    ),
    "training_config.yaml, trackers": lambda f, s: edit_yaml(
        f / "training_config.yaml", lambda c: c["training"].update(trackers=[s])
    ),
    "metrics.json, key": lambda f, s: edit(f / "metrics.json", lambda c: c.update(note=s)),
    "metrics.json, name of a number": lambda f, s: edit(
        f / "metrics.json", lambda c: c["validation"]["auroc"].update({s: 0.5})
    ),
    "metrics.json, name of a view": lambda f, s: edit(
        f / "metrics.json", lambda c: c["validation"].update(counts={"views": {s: 3}})
    ),
    "metrics.json, list": lambda f, s: edit(f / "metrics.json", lambda c: c.update(examples=[s])),
    "README.md": lambda f, s: (f / "README.md").write_text(s),
    "another file": lambda f, s: (f / "notes.txt").write_text(s),
    "code": lambda f, s: (f / "modeling_tier.py").write_text(f"# {s}\n" + (f / "modeling_tier.py").read_text()),
    "code of its own": lambda f, s: (f / "patients_tier.py").write_text(f"X = {s!r}"),
    "special_tokens_map.json": lambda f, s: (f / "special_tokens_map.json").write_text(json.dumps({"note": s})),
    "log.jsonl": lambda f, s: (f / "log.jsonl").write_text(json.dumps({"note": s})),
    "weights' metadata": lambda f, s: save_file(
        load_file(f / "model.safetensors"), f / "model.safetensors", {"format": "pt", "note": s}
    ),
}


def attempt(folder: Path, **options) -> str:
    """Publish; what stopped it, in words, or an empty text."""
    try:
        publish(folder, NAME, **options)
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def everything(server: Hub) -> bytes:
    """All that has reached the Hub: contents, names, messages, branches."""
    parts = [content for content in server.objects.values()]
    for name, repository in server.repositories.items():
        for branch, commits in repository["branches"].items():
            parts += [name.encode(), branch.encode()]
            for commit in commits:
                parts.append(commit["message"].encode())
                parts += [path.encode() + b"\0" + content for path, content in commit["files"].items()]
        parts += [str(tag).encode() for tag in repository.get("tags", ())]
    return b"\n".join(parts)


def assert_held(server: Hub, *planted: str) -> None:
    sent = everything(server)
    for text in planted:
        forms = {text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}
        assert not [form for form in forms if form.encode() in sent], f"{text!r} has left"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("text", [f"{SENTENCE}; {NAMES[1]}", "\n".join(SECRETS.values())], ids=["words", "secrets"])
def test_a_text_in_a_file(place, text, run, hub):
    PLACES[place](run, text)
    attempt(run)
    assert_held(hub, text, SENTENCE, *NAMES, *SECRETS.values())


@pytest.mark.parametrize("where", ["message", "revision"])
@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_in_the_message_or_the_branch(kind, where, run, hub):
    stopped = attempt(run, **{where: f"model-{SECRETS[kind]}" if where == "revision" else f"By {SECRETS[kind]}"})
    assert stopped and not hub.repositories
    assert_held(hub, SECRETS[kind])


# Evaluations


@pytest.fixture
def with_evaluation(run, evaluated) -> Path:
    shutil.copytree(evaluated, run / "evaluation")
    return run


def own_prompts(results: dict) -> None:
    results["prompts"]["source"] = "mine.yaml"
    results["prompts"]["findings"]["Edema"]["positive"] = [SENTENCE]


EVALUATIONS: dict[str, Callable[[dict], object]] = {
    "own prompts": own_prompts,
    "own prompts under a packaged name": lambda r: r["prompts"]["findings"]["Edema"].update(positive=[SENTENCE]),
    "denials": lambda r: r["prompts"]["findings"]["Edema"].update(negative=[SENTENCE]),
    "a finding": lambda r: r["metrics"]["auroc"].update({SENTENCE: 0.5}),
    "a finding in every table": lambda r: [
        model["metrics"]["classification"]["image"].update({SENTENCE: {"auroc": {"value": 0.5}}})
        for model in r["compared"].values()
    ],
    "the name of a view": lambda r: r["counts"]["views"].update({SENTENCE: 3}),
    "a key": lambda r: r.update(note=SENTENCE),
    "settings": lambda r: r["settings"].update(device=SENTENCE, host=SENTENCE),
    "versions": lambda r: r["versions"].update(python=SENTENCE, host=SENTENCE),
    "labels": lambda r: r["labels"].update(uncertain=SENTENCE),
    "split": lambda r: r.update(split=SENTENCE),
    "reason": lambda r: [model["metrics"].update(undefined={"Edema": SENTENCE}) for model in r["compared"].values()],
    "protocol": lambda r: r["protocol"].update(score=SENTENCE),
    "fingerprint": lambda r: r["fingerprints"].update(data=SENTENCE),
    "validation": lambda r: r["validation"].update(dataset=SENTENCE, notes=[SENTENCE]),
    "maps": lambda r: [
        model["metrics"]["localisation_maps"].append({"text": SENTENCE, "cnr": {"value": 1}})
        for model in r["compared"].values()
    ],
    "readers": lambda r: [
        model["metrics"].update(by_reader={SENTENCE: {"mcc": 1}}) for model in r["compared"].values()
    ],
}


@pytest.mark.parametrize("place", EVALUATIONS)
@pytest.mark.parametrize("data", ["synthetic", "mimic_cxr"])
def test_a_sentence_in_an_evaluation(place, data, with_evaluation, hub):
    if data != "synthetic":
        say(with_evaluation, *MIMIC, "--tokenizer.pretrained=org/tokenizer")
    edit(with_evaluation / "evaluation" / "metrics.json", EVALUATIONS[place])
    attempt(with_evaluation, accept_vocabulary=True)
    assert_held(hub, SENTENCE)


SHAPES: dict[str, Callable[[dict], object]] = {
    "no fingerprints": lambda r: r.pop("fingerprints"),
    "fingerprints as a list": lambda r: r.update(fingerprints=[1]),
    "no data set": lambda r: r.pop("dataset"),
    "a number as data set": lambda r: r.update(dataset=5),
    "an unknown data set": lambda r: r.update(dataset="nih"),
    "no metrics": lambda r: r.pop("metrics"),
    "metrics as a list": lambda r: r.update(metrics=[1, 2]),
    "protocol as a text": lambda r: r.update(protocol="tier"),
    "prompts as a list": lambda r: r.update(prompts=[SENTENCE]),
    "sentences as a number": lambda r: r["prompts"].update(findings={"Edema": 5}),
    "compared as a text": lambda r: r.update(compared="x"),
    "counts as a number": lambda r: r.update(counts=5),
    "validation as a list": lambda r: r.update(validation=[1]),
    "NaN everywhere": lambda r: r["metrics"].update(auroc=float("nan"), localisation=float("nan")),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_an_evaluation_of_another_form_is_no_traceback(shape, with_evaluation, hub):
    edit(with_evaluation / "evaluation" / "metrics.json", SHAPES[shape])
    attempt(with_evaluation)
    assert_held(hub, SENTENCE)


# Tokenizers


def whole_words(folder: Path) -> list[str]:
    """A vocabulary as train.py makes it."""
    from modeling_tier.training.building import train_tokenizer

    train_tokenizer([f"{SENTENCE}. Call 555-0199 or 6175550199."], 200).save_pretrained(folder)
    return ["heffalump", "6175550199"]


def pieces_of_words(folder: Path) -> list[str]:
    """Byte pairs, which look like those of a published tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    pairs = Tokenizer(models.BPE(unk_token="<unk>"))
    pairs.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "<pad>", "</s>", "<unk>"])
    pairs.train_from_iterator([f"{SENTENCE}. Call 6175550199."] * 50, trainer)
    save_tokenizer(pairs, folder)
    return ["Heffalump", "6175550199"]


def save_tokenizer(tokenizer, folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokens = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=24, **tokens).save_pretrained(folder)


def replaced_text(folder: Path) -> list[str]:
    """A text in a rule of the tokenizer, not among its words."""
    from tokenizers import Tokenizer, models, normalizers

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "<s>": 2, "</s>": 3}, unk_token="<unk>"))
    words.normalizer = normalizers.Replace("Heffalump", "6175550199")
    save_tokenizer(words, folder)
    return ["Heffalump", "6175550199"]


TOKENIZERS = {"whole words": whole_words, "pieces of words": pieces_of_words, "a rule": replaced_text}
CLAIMS = {
    "a folder": lambda folder, tokenizer: [f"--tokenizer.pretrained={tokenizer}"],
    "a folder that is gone": lambda folder, tokenizer: ["--tokenizer.pretrained=/home/alice/tokenizer"],
    "a relative folder that is gone": lambda folder, tokenizer: ["--tokenizer.pretrained=mimic/tokenizer"],
    "nothing": lambda folder, tokenizer: [],
}


@pytest.mark.parametrize("data", ["synthetic", "mimic_cxr"])
@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_tokenizer_made_from_reports(kind, claim, data, tmp_path, hub):
    planted = TOKENIZERS[kind](tmp_path / "tokenizer")
    folder = save_model(tmp_path / "model", AutoTokenizer.from_pretrained(tmp_path / "tokenizer"))
    options = {"synthetic": (), "mimic_cxr": MIMIC}[data]
    say(folder, *options, *CLAIMS[claim](folder, tmp_path / "tokenizer"))
    stopped = attempt(folder)
    if data == "synthetic" and (
        claim == "a relative folder that is gone" or (claim, kind) == ("nothing", "whole words")
    ):
        assert (
            "6175550199" not in stopped or not hub.repositories
        )  # said to be drawn or published: numbers alone stop it
        return
    assert stopped and not hub.repositories
    assert_held(hub, *planted)


# Figures and other binary files


def png(pixels, **chunks: bytes) -> bytes:
    """A PNG file as matplotlib writes it, with more chunks before its end."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    import io

    file = io.BytesIO()
    text = PngInfo()
    text.add_text(
        "Software", "Matplotlib version3.11.2, https://matplotlib.org/" + chunks.pop("software", b"").decode()
    )
    Image.fromarray(pixels).save(file, "PNG", pnginfo=text)
    content = file.getvalue()
    return content[:-12] + b"".join(chunk(k.encode(), v) for k, v in chunks.items()) + content[-12:]


WHITE = np.full((80, 80, 3), 255, np.uint8)
GREY = np.random.default_rng(0).integers(0, 255, (80, 80), dtype=np.uint8)
FIGURES = {
    "a text": png(WHITE, tEXt=b"Comment\0" + SENTENCE.encode()),
    "an international text": png(WHITE, iTXt=b"Comment\0\0\0\0\0" + SENTENCE.encode()),
    "a compressed text": png(WHITE, zTXt=b"Comment\0\0" + zlib.compress(SENTENCE.encode())),
    "EXIF": png(WHITE, eXIf=b"MM\0*\0\0\0\x08" + SENTENCE.encode()),
    "a private chunk": png(WHITE, prIV=SENTENCE.encode()),
    "the name of the software": png(WHITE, software=SENTENCE.encode()),
    "something behind it": png(WHITE) + SENTENCE.encode(),
}


@pytest.mark.parametrize("kind", FIGURES)
def test_a_text_in_a_figure(kind, with_evaluation, hub):
    (with_evaluation / "evaluation" / "figures" / "roc_image.png").write_bytes(FIGURES[kind])
    assert not attempt(with_evaluation)
    assert_held(hub, SENTENCE)
    assert zlib.compress(SENTENCE.encode()) not in everything(hub)


@pytest.mark.parametrize("form", ["PNG of matplotlib", "PNG", "JPEG", "link", "pipe", "folder"])
def test_a_radiograph_as_a_figure(form, with_evaluation, tmp_path, hub):
    names = [f"evaluation/figures/{name}.png" for name in ("roc_image", "reliability", "patch_similarity")]
    for path in (with_evaluation / name for name in names):
        path.unlink(missing_ok=True)
        if form == "PNG of matplotlib":
            path.write_bytes(png(GREY))
        elif form in ("PNG", "JPEG"):
            Image.fromarray(GREY).save(path, form)
        elif form == "link":
            (tmp_path / "x.png").write_bytes(png(GREY))
            path.symlink_to(tmp_path / "x.png")
        elif form == "pipe":
            os.mkfifo(path)
        else:
            path.mkdir()
    assert not attempt(with_evaluation)
    assert not set(names) & set(hub.files(NAME))


# Hostile folders


def deep_json(folder: Path) -> None:
    (folder / "metrics.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)


def huge_json(folder: Path) -> None:
    with open(folder / "metrics.json", "w") as file:
        file.write('{"auroc": "' + "x" * 70_000_000 + '"}')


def many_keys(folder: Path) -> None:
    (folder / "metrics.json").write_text(json.dumps({f"number_{i}": i for i in range(300_000)}))


def yaml_bomb(folder: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    (folder / "training_config.yaml").write_text(
        "\n".join([*lines, "data: {name: synthetic, options: {section: *a11}}"])
    )


def yaml_objects(folder: Path) -> None:
    (folder / "training_config.yaml").write_text('data: !!python/object/apply:os.system ["touch owned"]')


def yaml_list(folder: Path) -> None:
    (folder / "training_config.yaml").write_text("[1, 2]")


def yaml_wrong_sections(folder: Path) -> None:
    (folder / "training_config.yaml").write_text("data: 5\nmodel: [1]\ntokenizer: x\nevaluation: null\nseed: [x]\n")


def yaml_strange_values(folder: Path) -> None:
    edit_yaml(folder / "training_config.yaml", lambda c: c["model"].update(pretrained=["x"], text_config=5))
    edit_yaml(folder / "training_config.yaml", lambda c: c["data"].update(name={"a": 1}, options=[1], train="x"))


def not_utf8(folder: Path) -> None:
    (folder / "environment.json").write_bytes(b'{"python": "\xff\xfe"}')


def empty_files(folder: Path) -> None:
    for name in ("metrics.json", "environment.json", "training_config.yaml"):
        (folder / name).write_text("")


def link_to_a_secret(folder: Path) -> None:
    secret = folder.parent / "secret.json"
    secret.write_text(json.dumps({"note": SENTENCE}))
    for name in ("metrics.json", "environment.json"):
        (folder / name).unlink()
        (folder / name).symlink_to(secret)


def loop_of_links(folder: Path) -> None:
    (folder / "loop").symlink_to(folder)
    (folder / "gone").symlink_to(folder / "nowhere")


def names_with_secrets(folder: Path) -> None:
    (folder / f"{SECRETS['subject of MIMIC']}.json").write_text("{}")
    (folder / f"model-{SENTENCE}.safetensors").write_bytes(b"x")


def index_to_another_place(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    index = {"metadata": {"note": SENTENCE}, "weight_map": dict.fromkeys(weights, "../elsewhere.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def weights_too_many(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    text = torch.tensor(list(SENTENCE.encode()), dtype=torch.uint8)
    save_file(weights | {"note": text}, folder / "model.safetensors", {"format": "pt"})


def config_of_another_kind(folder: Path) -> None:
    edit(folder / "config.json", lambda c: c.update(model_type="bert"))


def config_that_is_a_list(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def dead_pipe(folder: Path) -> None:
    (folder / "metrics.json").unlink()
    os.mkfifo(folder / "metrics.json")


HOSTILE = [
    *(deep_json, huge_json, many_keys, yaml_bomb, yaml_objects, yaml_list, yaml_wrong_sections, yaml_strange_values),
    *(not_utf8, empty_files, link_to_a_secret, loop_of_links, names_with_secrets, index_to_another_place),
    *(weights_too_many, config_of_another_kind, config_that_is_a_list, dead_pipe),
]


@pytest.mark.parametrize("attack", HOSTILE, ids=lambda attack: attack.__name__)
def test_a_hostile_folder(attack, run, hub):
    attack(run)
    attempt(run)
    assert_held(hub, SENTENCE)
    assert not (run / "owned").exists() and not Path("owned").exists()


RECORDS = [
    *("config.json", "processor_config.json", "tokenizer_config.json", "tokenizer.json", "environment.json"),
    *("metrics.json", "training_config.yaml", "evaluation/metrics.json"),
]


@pytest.mark.parametrize("file", RECORDS)
def test_a_value_of_another_form_is_published_without_it_or_is_named(file, with_evaluation, hub):
    """One value after the other of each file is replaced by one of another form."""
    path = with_evaluation / file
    text = path.read_text()
    content = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    write, ends = yaml.safe_dump if path.suffix == ".yaml" else json.dumps, []
    for place, form, changed in some_forms(content, 8):
        path.write_text(write(changed))
        stopped = attempt(with_evaluation, dry_run=True)
        assert "\n" not in stopped and "Error" not in stopped.partition("cannot be loaded")[0], (place, form, stopped)
        ends.append(stopped)
    assert len(ends) == 8


# What is clean goes


@pytest.mark.parametrize("name", ["user/x", "user/model", "root/tier", "user/tmp"])
def test_no_false_alarm_for_a_name_like_a_folder(name, run, hub, monkeypatch):
    hub.tokens["hf_writer"] = (name.partition("/")[0], "write")
    home = Path("/" + name.rpartition("/")[2])
    monkeypatch.setattr(Path, "home", lambda: home)
    publish(run, name)
    assert hub.commits(name)


MESSAGES = [
    *("Publish a TIER model", "Release 1.2.0 of 2026-11-26", "AUROC 0.8123, 12,345 steps"),
    *("Fix #123; lambda_token 0.2 -> 0.1", "tier v1.0.0 (epoch 12/20)"),
]


@pytest.mark.parametrize("message", MESSAGES)
def test_no_false_alarm_for_a_message(message, run, hub):
    publish(run, NAME, message=message)
    assert hub.commits(NAME) == [message]


@pytest.mark.parametrize("revision", ["v1.0.0", "release-2026-11-26", "lambda_0.2", "main-2"])
def test_no_false_alarm_for_a_branch(revision, run, hub):
    publish(run, NAME, revision=revision)
    assert revision in hub.repositories[NAME]["branches"]


def test_no_false_alarm_for_an_evaluation(with_evaluation, hub):
    publish(with_evaluation, NAME)
    assert "evaluation/metrics.json" in hub.files(NAME)
