# Licensed under the Apache License, Version 2.0.
"""Options of train.py: read, checked before anything is loaded, and saved."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from modeling_tier.evaluation.suite import read_suite
from modeling_tier.hub.origin import Origin, Words, origin_of, vocabulary_problem
from modeling_tier.training import load_config
from modeling_tier.training.configuration import parse_options
from modeling_tier.training.options import changed_options, describe_options


ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs" / "demo.yaml"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--optimiser.lr", "1"], r"'optimiser'.*Did you mean optimizer"),
        (["--optimizer.lrate", "1"], r"optimizer\.lrate.*Known here.*weight_decay"),
        (["--training.epoch", "1"], r"Did you mean training\.epochs"),
        (["--training.epochs", "two"], r"training\.epochs must be int.*'two'"),
        (["--training.epochs", "1.5"], r"training\.epochs must be int"),
        (["--training.epochs", "0"], r"training\.epochs must be at least 1"),
        (["--training.overwrite", "3"], r"training\.overwrite must be bool"),
        (["--optimizer.lr", "fast"], r"optimizer\.lr must be float"),
        (["--optimizer.lr", "0"], r"optimizer\.lr must be positive"),
        (["--optimizer.lr", "nan"], r"optimizer\.lr"),
        (["--optimizer.lr", ".inf"], r"optimizer\.lr must be at least 0 and finite"),
        (["--optimizer.beta1", "1.2"], r"optimizer\.beta1.*at most 1"),
        (["--optimizer.beta2", "1.0"], r"optimizer\.beta2 must be less than 1"),
        (["--training.mixed_precision", "fp8"], r"mixed_precision.*bf16"),
        (["--training.trackers", "[mlflow]"], r"trackers.*tensorboard"),
        (["--evaluation.best_metric", "accuracy"], r"best_metric.*auroc"),
        (["--data.name", "mimic"], r"^data\.name must be one of .*synthetic.*'mimic'"),
        (["--data.train.num_image", "3"], r"data.*num_image.*num_images"),
        (["--regulariser.ramp_start", "0.5", "--regulariser.ramp_end", "0.2"], "ramp_end"),
        (["--model.image_pooling", "cls"], r"model.*image_pooling='mean'"),
        (["--model.lambda_patch", "-1"], "lambda_patch"),
        (["--model.text_config.model_type", "gpt2"], "gpt2"),
        (["--model.text_config", "{}"], r"model\.text_config needs its model_type"),
        (
            ["--model.pretrained", "somewhere", "--model.vision_config", "{model_type: resnet}"],
            r"delete model\.vision_config",
        ),
        (["--data.max_text_tokens", "4000"], r"max_text_tokens.*max_position_embeddings"),
        (
            [
                "--model.text_config",
                "{model_type: roberta, max_position_embeddings: 32}",
                "--data.max_text_tokens",
                "32",
            ],
            r"max_text_tokens is 32.*at most 30 \(max_position_embeddings 32",
        ),
        (["--training.resume_from_checkpoint", "last", "--training.overwrite", "true"], "overwrite replaces the run"),
        (["--optimizer.name", "sgd"], r"optimizer\.name.*adamw"),
        (["--optimizer.schedule", "linear"], r"optimizer\.schedule.*constant"),
        (["--freeze.text_layers", "-1"], r"freeze\.text_layers must be at least 0"),
        (["--freeze.patterns", "[3]"], r"freeze\.patterns"),
        (["--data.subject_share", "0"], r"data\.subject_share must be positive"),
        (["--evaluation.dataset", "chexprt"], r"^evaluation\.dataset must be one of .*chexpert.*'chexprt'"),
        (["--evaluation.dataset", "chexpert", "--evaluation.options.view", "all"], r"evaluation\.options.*'view'"),
        (["--evaluation.options.views", "all"], r"evaluation\.options.*not set"),
        (["--evaluation.dataset", "chexpert", "--evaluation.split", "val"], r"evaluation\.split.*validation"),
        (["--evaluation.split", "test"], r"evaluation\.split.*not set"),
        (["--model.image_options.crop_size", "48"], r"crop_size say the same"),
        (["--evaluation.keep_best", "0"], r"evaluation\.keep_best must be at least 1"),
        (["--training.epochs"], "needs a value"),
        (["training.epochs", "3"], "--section.option"),
        (["--evaluation.prompts", "none.yaml"], r"evaluation\.prompts.*none\.yaml"),
        (["--seed.value", "3"], "'seed' is an option"),
        (["--training", "3"], "section"),
    ],
)
def test_what_cannot_work_is_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_config(DEMO, overrides)


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install wandb"):
        load_config(DEMO, ["--training.trackers", "[wandb]"])


def test_values():
    config = load_config(
        DEMO,
        [
            "--optimizer.lr",
            "1e-3",
            "--training.epochs=7",
            "--data.options.image_size",
            "48",
            "--model.lambda_token",
            "1",
        ],
    )
    assert config.optimizer.lr == 0.001 and config.training.epochs == 7
    assert config.data.options["image_size"] == 48 and config.data.options["section"]
    assert config.model.lambda_token == 1.0 and type(config.model.lambda_token) is float
    with pytest.raises(ValueError, match=r"no configuration file .* \(it is a folder\)"):
        load_config(str(DEMO.parent))
    with pytest.raises(ValueError, match=r"no configuration file no\.yaml"):
        load_config("no.yaml")


def test_image_size_must_fit_the_encoder(tmp_path):
    vit = {"model_type": "vit", "image_size": 32, "patch_size": 8}
    content = yaml.safe_load(DEMO.read_text())
    content["model"] |= {"vision_config": vit, "image_size": 64}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=r"model\.image_size is 64.*32"):
        load_config(tmp_path / "c.yaml")


def test_what_is_saved_reads_back(tmp_path):
    config = load_config(DEMO, ["--seed", "3"])
    config.save(tmp_path / "training_config.yaml")
    assert load_config(tmp_path / "training_config.yaml") == config


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_configurations_are_valid(path):
    if path.name == "suite.yaml":  # of an evaluation
        read_suite(path)
    else:
        load_config(path)


def test_every_option_is_described():
    text = describe_options()
    for line in text.splitlines():
        name, text = line.split("): ", 1)
        assert name.startswith("  --") and len(text) > 10


def test_the_command_line_names_the_mistake():
    command = [sys.executable, "train.py", "--config", str(DEMO), "--optimizer.lrate", "1"]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 1 and "optimizer.lrate" in process.stderr and "Traceback" not in process.stderr


def test_no_mixed_precision_may_be_written_as_yaml_reads_it():
    assert load_config(DEMO, ["--training.mixed_precision", "no"]).training.mixed_precision == "no"


def test_a_trained_model_on_the_command_line_replaces_the_new_one_of_the_file():
    with pytest.warns(UserWarning, match=r"replaces model\.vision_config, model\.text_config.* of .*demo\.yaml"):
        config = load_config(DEMO, ["--model.pretrained", "no", "--model.lambda_token", "0.3"])
    assert config.model.pretrained == "no", "a name, and not YAML's false"
    assert config.model.vision_config == config.model.text_config == {}
    assert config.model.image_size is config.model.projection_dim is config.model.image_pooling is None
    assert config.model.lambda_token == 0.3 and config.data.options["image_size"] == 64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("seed:\t1", r"line 1.*tab|line 1.*'\\t'"),
        ("training:\n\tepochs: 3", r"line 2"),
        ("seed: 1\n---\nseed: 2", r"line 2: but found another document"),
        ("seed: !!python/object/apply:os.system ['true']", r"line 1.*python/object"),
        ("[1, 2]: 3", r"line 1: a key must be a name"),
        ("? {a: 1}\n: 3", r"line 1"),
        ("training: {epochs: 3}\nmodel: {}\ntraining: {batch_size: 2}", r"line 3: 'training' is given twice"),
        ("training:\n  epochs: 3\n  epochs: 4", r"line 3: 'epochs' is given twice"),
        ("- 1", r"must hold options by section; got list"),
        ("seed: &a [*a]", r"more than 10000 values"),
        ("a: &a [1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n"
         "d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d]", r"more than 10000 values"),
        ("[" * 3000, r"options by section"),
        ("seed: " + "9" * 5000, r"options by section"),
        (b"seed: \xff\xfe", r"not UTF-8"),
        ("seed: 2024-01-01", r"seed must be int"),
        ("1: 2", r"Unknown option '1'"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_yaml_of_options_is_named_with_its_line(tmp_path, content, message):
    path = tmp_path / "run.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"(?s){message}") as error:
        load_config(path)
    assert "run.yaml" in str(error.value) or "seed must" in str(error.value) or "Unknown" in str(error.value)


@pytest.mark.parametrize("text", ["[x", "a: b: c", "@home", "no", "2024", "~", "- a", "{a: 1}", "%", "`date`", "1e3"])
def test_a_path_is_a_text_and_not_yaml(text):
    config = load_config(DEMO, ["--output_dir", text, f"--tokenizer.pretrained={text}"])
    assert config.output_dir == text and config.tokenizer.pretrained == text
    assert parse_options(["--data.options.data_dir", text]) == [("data.options.data_dir", text)]


def test_a_value_that_yaml_cannot_read_is_of_the_wrong_type():
    with pytest.raises(ValueError, match="training.epochs must be int; got 'a: b: c'"):
        load_config(DEMO, ["--training.epochs", "a: b: c"])


def test_null_is_no_text():
    assert load_config(DEMO, ["--tokenizer.pretrained", "null"]).tokenizer.pretrained is None


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "model.text_config.hiden_size=32",
            r"model: text_config: 'bert' has no option 'hiden_size'; did you mean 'hidden_size'",
        ),
        ("model.vision_config.depth=[1]", r"vision_config: 'resnet' has no option 'depth'; did you mean 'depths'"),
        ("model.vision_config.depths=5", r"model: .*depths.* with value 5"),
        ("model.image_size=1000000", r"model.image_size must be at least 1 and at most 4096"),
        ("model.projection_dim=0", r"model.projection_dim must be at least 1"),
        ("model.lambda_token=.nan", r"model.lambda_token must be at least 0"),
        ("model.logit_scale_init_value=.nan", r"model.logit_scale_init_value must be at least"),
        ("data.num_workers=1000000", r"data.num_workers must be at least 0 and at most"),
        ("optimizer.min_lr_share=0.1", r"optimizer.min_lr_share is no option any more.*0.01"),
        ("regulariser.warn_negative_share=0.9", r"regulariser.warn_negative_share is no option any more"),
        ("training.resume_from_checkpoint=last --training.overwrite=true", r"overwrite replaces the run"),
    ],
)
def test_an_option_that_would_be_taken_in_silence_or_end_in_a_traceback_is_named(option, message):
    with pytest.raises(ValueError, match=message):
        load_config(DEMO, f"--{option}".split())


def test_a_configuration_without_a_model_says_how_to_get_one():
    with pytest.raises(ValueError, match="--config configs/demo.yaml"):
        load_config(None)


def test_a_local_start_is_told_from_a_name_on_the_hub(tmp_path, monkeypatch):
    """A run that is published from another folder must not name its local start as a model on the Hub."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "start").mkdir(parents=True)
    options = ["--model.pretrained", "runs/start", "--tokenizer.pretrained", "runs/tokens"]
    with pytest.warns(UserWarning, match="replaces"):
        config = load_config(DEMO, options)
    assert config.model.pretrained == "./runs/start", "this folder"
    assert config.tokenizer.pretrained == "runs/tokens", "there is none: a name on the Hub"
    recorded = config.to_dict()
    monkeypatch.chdir("/")
    moved = origin_of({**recorded, "tokenizer": {}}, [])
    assert moved == Origin(("synthetic",), words=Words(missing="./runs/start"))
    assert "started from ./runs/start, which is not here" in vocabulary_problem(moved.words, {}, False, None)
    assert (
        origin_of({**recorded, "tokenizer": {}, "model": {"pretrained": "runs/start"}}, []).base_model == "runs/start"
    )
    before = config.to_dict() | {"model": config.to_dict()["model"] | {"pretrained": "runs/start"}}
    assert changed_options(before, recorded) == [], "as runs before this rule recorded it"
    before["model"]["pretrained"] = "runs/other"
    assert changed_options(before, recorded) == ["model.pretrained"]
