# Licensed under the Apache License, Version 2.0.
"""
A sweep of attacks on the evaluation: bad options, prompts, tables, model folders, caches and results of earlier runs.

An attack holds if the command ends with a message, or with results that are all finite; a traceback, or a number that
is not finite in metrics.json, is a break.
"""

import json
import math
import random
import shutil
import signal
import struct
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import evaluate_zeroshot
from modeling_tier.loading import load_model


pytestmark = pytest.mark.slow


@pytest.fixture
def folder(model, processor, tmp_path):
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def attack(folder, tmp_path, monkeypatch):
    """Run the command; "error" and its message, or "done" and the results."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # the command changes it

    def run(*options, model=None):
        words = ["evaluate_zeroshot.py", "--model", model or folder, "--output_dir", tmp_path / "out"]
        words += ["--num_images", 12, "--resamples", 3, "--examples", 0, "--batch_size", 4]
        monkeypatch.setattr(sys, "argv", [str(word) for word in (*words, *options)])
        metrics = tmp_path / "out" / "metrics.json"
        before = metrics.read_bytes() if metrics.is_file() else None
        try:
            evaluate_zeroshot.main()
        except SystemExit as stop:
            message = str(stop.code)
            assert stop.code == 2 or message.startswith("error: "), message
            assert "Traceback" not in message and len(message) < 3000
            after = metrics.read_bytes() if metrics.is_file() else None
            assert after == before, "results of an evaluation that failed"
            return "error", message
        assert_finite(json.loads(metrics.read_text(), parse_constant=float))
        return "done", json.loads(metrics.read_text())

    return run


def assert_finite(content):
    if isinstance(content, float):
        assert math.isfinite(content)
    for value in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        assert_finite(value)


OPTIONS = [
    ["--num_images", "0"],
    ["--num_images", "-3"],
    ["--num_images", "x"],
    ["--seed", "-1"],
    ["--seed", "99999999999999999999"],
    ["--batch_size", "0"],
    ["--batch_size", "99999999"],
    ["--resamples", "-1"],
    ["--examples", "-1"],
    ["--device", "nonsense"],
    ["--device", "cuda:99"],
    ["--dtype", "int8"],
    ["--protocol", "x"],
    ["--smooth_maps", "inf"],
    ["--smooth_maps", "1e9"],
    ["--smooth_maps", "-0.1"],
    ["--split", "all"],
    ["--validation_split", "test"],
    ["--validation_dataset", "pairs"],
    ["--validation_split", "validation", "--validation_dataset", "nope"],
    ["--validation.options.seed", "3"],
    ["--data.options", "[1, 2]"],
    ["--data.options", "[x"],
    ["--data.options", "a: b: c"],
    ["--data.options.image_size", "huge"],
    ["--data.options.image_size", "-4"],
    ["--data.options.image_size", "{a: 1}"],
    ["--data.options.seed.x", "1"],
    ["--data.options"],
    ["--dataset", "nope"],
    ["--dataset", "../../etc"],
    ["--dataset", "chexpert"],
    ["--dataset", "chexpert", "--data_dir", "/nonexistent"],
    ["--dataset", "mimic_cxr", "--data_dir", "."],
    ["--prompts", "/nonexistent.yaml"],
    ["--prompts", "."],
    ["positional"],
]


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_options(attack, options):
    attack(*options)


@pytest.mark.parametrize(
    "name", ["", "runs/nope", "a" * 300, "../" * 40 + "x", "user/na me", "https://x.y/z", "x\ty", "."]
)
def test_names_of_models(attack, name):
    assert attack(model=name or " ")[0] == "error"


PROMPTS = [
    "",
    "3",
    "[]",
    "findings: []",
    "findings: {Edema: }",
    "findings: {Edema: {positive: a, negative: b}}",
    "findings: {Edema: {positive: [''], negative: [b]}}",
    "findings: {Nope: {positive: [a], negative: [b]}}",
    "findings: {Edema: {positive: [a], negative: [b]}}\nno_finding: 3",
    "templates: {positive: ['x'], negative: ['y']}",
    "templates: {positive: ['{finding}'], negative: ['{0.__class__}']}",
    "findings: {Edema: {positive: ['{finding.__class__}'], negative: [b]}}",
    "? [a, b]\n: c",
    "!!python/object/apply:os.system ['true']",
    "findings: &a {Edema: *a}",
    "{" * 20000,
    "\x00\x01",
    "findings: {Edema: {positive: [" + ", ".join(["left effusion"] * 30_000) + "], negative: [b]}}",
    "findings: {Edema: {positive: ['\\ud800'], negative: [b]}}",
    'findings: {Edema: {positive: ["\\ud800"], negative: [b]}}',
    "findings: {Edema: {positive: [" + "effusion " * 250 + "], negative: [b]}}",
]


@pytest.mark.parametrize("content", PROMPTS, ids=range(len(PROMPTS)))
def test_prompts(attack, tmp_path, content):
    (tmp_path / "prompts.yaml").write_text(content)
    attack("--prompts", tmp_path / "prompts.yaml")


def test_prompts_that_are_no_text(attack, tmp_path):
    (tmp_path / "prompts.yaml").write_bytes(b"\xff\xfe\x00findings")
    assert attack("--prompts", tmp_path / "prompts.yaml")[0] == "error"


def weights(folder, change):
    path = folder / "model.safetensors"
    content = load_file(path)
    change(content)
    save_file(content, path, metadata={"format": "pt"})


def changed_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def header(length, content=b"{}"):
    return struct.pack("<Q", length) + content


FOLDERS = {
    "weights cut": lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000]),
    "weights empty": lambda f: (f / "model.safetensors").write_bytes(b""),
    "weights of zeros": lambda f: (f / "model.safetensors").write_bytes(bytes(5000)),
    "weights with a huge header": lambda f: (f / "model.safetensors").write_bytes(header(2**62)),
    "weights with a false header": lambda f: (f / "model.safetensors").write_bytes(header(2, b"[]")),
    "weights gone": lambda f: (f / "model.safetensors").unlink(),
    "weights a folder": lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors").mkdir()),
    "weights a pickle": lambda f: (
        (f / "model.safetensors").unlink(),
        torch.save({"x": Path("/")}, f / "pytorch_model.bin"),
    ),
    "an index that leads out": lambda f: (
        (f / "model.safetensors").rename(f.parent / "elsewhere.safetensors"),
        (f / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": {"logit_scale": "../elsewhere.safetensors"}})
        ),
    ),
    "a weight missing": lambda f: weights(f, lambda w: w.pop("visual_projection.weight")),
    "a weight surplus": lambda f: weights(f, lambda w: w.update(extra=torch.zeros(3))),
    "a weight of another shape": lambda f: weights(f, lambda w: w.update({"logit_scale": torch.zeros(7)})),
    "a weight of integers": lambda f: weights(f, lambda w: w.update({"logit_scale": torch.tensor(3)})),
    "logit_scale NaN": lambda f: weights(f, lambda w: w["logit_scale"].fill_(math.nan)),
    "logit_scale infinite": lambda f: weights(f, lambda w: w["logit_scale"].fill_(math.inf)),
    "logit_scale 200": lambda f: weights(f, lambda w: w["logit_scale"].fill_(200.0)),
    "logit_scale -200": lambda f: weights(f, lambda w: w["logit_scale"].fill_(-200.0)),
    "images NaN": lambda f: weights(f, lambda w: w["visual_projection.weight"].fill_(math.nan)),
    "texts infinite": lambda f: weights(f, lambda w: w["text_projection.weight"].fill_(math.inf)),
    "images zero": lambda f: weights(f, lambda w: w["visual_projection.weight"].fill_(0.0)),
    "texts zero": lambda f: weights(f, lambda w: w["text_projection.weight"].fill_(0.0)),
    "config gone": lambda f: (f / "config.json").unlink(),
    "config empty": lambda f: (f / "config.json").write_text(""),
    "config a list": lambda f: (f / "config.json").write_text("[]"),
    "config nested deeply": lambda f: (f / "config.json").write_text("[" * 100_000),
    "config with code": lambda f: changed_config(
        f, model_type="own", auto_map={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}
    ),
    "model type unknown": lambda f: changed_config(f, model_type="nope"),
    "model type another": lambda f: changed_config(f, model_type="bert"),
    "temperature 0": lambda f: changed_config(f, entropy_temperature=0),
    "temperature a text": lambda f: changed_config(f, entropy_temperature="x"),
    "projection enormous": lambda f: changed_config(f, projection_dim=10**12),
    "projection negative": lambda f: changed_config(f, projection_dim=-1),
    "encoder a text": lambda f: changed_config(f, text_config="bert"),
    "processor gone": lambda f: (f / "processor_config.json").unlink(),
    "processor a list": lambda f: (f / "processor_config.json").write_text("[3]"),
    "processor of zeros": lambda f: (f / "processor_config.json").write_bytes(bytes(100)),
    "tokenizer gone": lambda f: (f / "tokenizer.json").unlink(),
    "tokenizer cut": lambda f: (f / "tokenizer.json").write_bytes((f / "tokenizer.json").read_bytes()[:200]),
    "training config damaged": lambda f: (f / "training_config.yaml").write_text("data: ["),
    "training config of another form": lambda f: (f / "training_config.yaml").write_text("data: {name: synthetic}"),
    "ensemble damaged": lambda f: (f / "ensemble.json").write_text("{"),
    "ensemble that leads out": lambda f: (f / "ensemble.json").write_text('["../model"]'),
    "ensemble nested deeply": lambda f: (f / "ensemble.json").write_text("[" * 100_000),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_model_folders(attack, folder, name):
    FOLDERS[name](folder)
    kind, result = attack()
    if kind == "error":
        return
    allowed = {"images zero", "texts zero", "logit_scale -200", "temperature 0", "a weight of integers"}
    assert name in allowed, f"evaluated as if nothing were wrong: {result['metrics']['num_images']} images"


NUM_FORMS = 60
OTHER_FORMS = (
    None,
    True,
    -3,
    0,
    10**9,
    10**400,
    1e308,
    math.nan,
    "text",
    "",
    [],
    ["text"],
    [[1], {"a": 1}],
    {},
    {"a": 1},
)
MAX_LOADING_SECONDS = 20


def too_long(*_):
    raise TimeoutError(f"loading took more than {MAX_LOADING_SECONDS} seconds")


@pytest.mark.parametrize(
    "file",
    ["config.json", "processor_config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json"],
)
def test_a_value_of_another_form_in_a_model_folder(folder, file):
    """One value after the other is replaced: the model is loaded and reads a pair, or a message names the folder."""
    path = folder / file
    original = json.loads(path.read_text()) if path.is_file() else {"eos_token_id": 3, "transformers_version": "5.0.0"}
    signal.signal(signal.SIGALRM, too_long)
    broke, generator = [], random.Random(0)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8))
    for _ in range(NUM_FORMS):
        content = json.loads(json.dumps(original))
        part, key = random_place(generator, content)
        value = part[key] = generator.choice(OTHER_FORMS)
        path.write_text(json.dumps(content))
        signal.setitimer(signal.ITIMER_REAL, MAX_LOADING_SECONDS)
        try:
            model, processor = load_model(str(folder))
            with torch.inference_mode():
                model.eval()(**processor(images=picture, text="left effusion"))
        except (ValueError, OSError) as error:
            if len(str(error)) > 3000:
                broke.append(f"{key} is {str(value)[:40]}: a message of {len(str(error))} letters")
        except Exception as error:
            broke.append(f"{key} is {str(value)[:40]}: {type(error).__name__}: {str(error)[:300]}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    assert not broke, "\n".join(broke)


def random_place(generator, content):
    """A list or dictionary in the content, and one of its keys."""
    places = [(content, key) for key in (content if isinstance(content, dict) else range(len(content)))]
    for part, key in list(places):
        if isinstance(part[key], (dict, list)) and part[key]:
            places += [random_place(generator, part[key])]
    return generator.choice(places)


def damaged_cache(out, change):
    for path in sorted(out.glob("cache/*/part-*.npz"))[:1]:
        change(path)


EARLIER = {
    "part cut": lambda out: damaged_cache(out, lambda p: p.write_bytes(p.read_bytes()[:-100])),
    "part empty": lambda out: damaged_cache(out, lambda p: p.write_bytes(b"")),
    "part a text": lambda out: damaged_cache(out, lambda p: p.write_text("x")),
    "part of other names": lambda out: damaged_cache(out, lambda p: np.savez(p, x=np.arange(3))),
    "part of objects": lambda out: damaged_cache(out, lambda p: np.savez(p, rows=np.array([{}], dtype=object))),
    "part a folder": lambda out: damaged_cache(out, lambda p: (p.unlink(), p.mkdir())),
    "part of another batch": lambda out: damaged_cache(out, lambda p: shutil.copy(p.with_name("part-00001.npz"), p)),
    "one flipped byte": lambda out: damaged_cache(
        out, lambda p: p.write_bytes(p.read_bytes()[:400] + b"\xff" + p.read_bytes()[401:])
    ),
    "key gone": lambda out: [path.unlink() for path in out.glob("cache/*/key.json")],
    "cache a file": lambda out: (shutil.rmtree(out / "cache"), (out / "cache").write_text("")),
    "metrics cut": lambda out: (out / "metrics.json").write_text('{"fingerprints": {'),
    "metrics of a training run": lambda out: (out / "metrics.json").write_text('{"step": 3}'),
    "metrics of another form": lambda out: (out / "metrics.json").write_text('{"fingerprints": 3}'),
    "metrics nested deeply": lambda out: (out / "metrics.json").write_text("[" * 100_000),
    "metrics a folder": lambda out: ((out / "metrics.json").unlink(), (out / "metrics.json").mkdir()),
    "figures a file": lambda out: (shutil.rmtree(out / "figures"), (out / "figures").write_text("")),
    "an unfinished run": lambda out: (out / ".unfinished").mkdir(),
    "unfinished a file": lambda out: (out / ".unfinished").write_text(""),
    "report a folder": lambda out: ((out / "report.html").unlink(), (out / "report.html").mkdir()),
    "temporary files": lambda out: damaged_cache(out, lambda p: p.with_name(f"{p.name}.1.tmp").write_text("")),
}


@pytest.mark.parametrize("name", EARLIER)
def test_what_lies_in_the_output_folder(attack, tmp_path, name):
    _, before = attack()
    EARLIER[name](tmp_path / "out")
    kind, result = attack()
    if kind == "done":
        assert result["metrics"] == before["metrics"]
    else:
        assert str(tmp_path / "out") in result


def pairs_table(tmp_path, lines, header="image,text,label"):
    folder = tmp_path / "pairs"
    folder.mkdir()
    for i in range(12):
        Image.fromarray(np.full((40, 40), 20 * i, np.uint8)).save(folder / f"{i}.png")
    (folder / "test.csv").write_text("\n".join([header, *lines]), encoding="utf-8", errors="surrogatepass")
    (tmp_path / "p.yaml").write_text("findings: {label: {positive: [effusion], negative: [no effusion]}}")
    return ["--dataset", "pairs", "--data_dir", folder, "--prompts", tmp_path / "p.yaml"]


ROWS = [f"{i}.png,left effusion,{i % 2}" for i in range(12)]
TABLES = {
    "as it should be": ROWS,
    "one class": [f"{i}.png,left effusion,1" for i in range(12)],
    "no labels known": [f"{i}.png,left effusion," for i in range(12)],
    "uncertain alone": [f"{i}.png,left effusion,-1" for i in range(12)],
    "one row": ROWS[:1],
    "no rows": [],
    "label a word": [*ROWS[:-1], "11.png,left effusion,yes"],
    "label infinite": [*ROWS[:-1], "11.png,left effusion,inf"],
    "blank texts": [f"{i}.png, ,1" for i in range(12)],
    "texts of unknown words": [f"{i}.png,zzz {i},{i % 2}" for i in range(12)],
    "texts of one full stop": [f"{i}.png,.,{i % 2}" for i in range(12)],
    "a text of 100,000 words": [*ROWS[:-1], f"11.png,{'effusion ' * 100_000},1"],
    "the same picture each time": [f"0.png,left effusion,{i % 2}" for i in range(12)],
    "a path that leads out": [*ROWS[:-1], "../../etc/passwd,left effusion,1"],
    "an absolute path": [*ROWS[:-1], "/etc/passwd,left effusion,1"],
    "a picture that is none": [*ROWS[:-1], "test.csv,left effusion,1"],
}


@pytest.mark.parametrize("name", TABLES)
def test_tables(attack, tmp_path, name):
    options = pairs_table(tmp_path, TABLES[name])
    attack(*options, "--data.options", "{label_columns: [label]}")
