# Licensed under the Apache License, Version 2.0.
"""Each protocol against its own definition: loops, and the pipeline of transformers itself."""

import math

import numpy as np
import pytest
import torch
from transformers import pipeline

from modeling_tier.data import load_pairs
from modeling_tier.evaluation import PROTOCOLS, evaluate_zero_shot, load_negation, load_no_finding, load_prompts
from modeling_tier.evaluation.prompts import NO_FINDING


FINDINGS = ("Cardiomegaly", "Pleural Effusion", "Edema")


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


@pytest.fixture(scope="module")
def pairs():
    return load_pairs("synthetic", "test", num_images=24, image_size=40, seed=2)


def prompts_of(protocol):
    return {
        finding: entry for finding, entry in load_prompts("synthetic", (), protocol).items() if finding in FINDINGS
    }


def evaluated(model, processor, pairs, protocol):
    _, details = evaluate_zero_shot(
        model, processor, pairs, prompts_of(protocol), 7, localisation=False, progress=False, protocol=protocol
    )
    return details["scores"], details["probabilities"]


def test_the_pipeline_protocol_is_the_pipeline(model, processor, pairs):
    prompts = prompts_of("pipeline")
    assert prompts["Edema"] == {"positive": ["This is a photo of Edema."]}
    scores, probabilities = evaluated(model, processor, pairs, "pipeline")
    classify = pipeline(
        "zero-shot-image-classification",
        model=model,
        tokenizer=processor.tokenizer,
        image_processor=processor.image_processor,
    )
    for row, image in zip(scores, pairs["image"]):
        answers = {entry["label"]: entry["score"] for entry in classify(image, candidate_labels=list(FINDINGS))}
        np.testing.assert_allclose(row, [answers[finding] for finding in prompts], atol=1e-5)
    np.testing.assert_array_equal(scores, probabilities)


@pytest.mark.parametrize("protocol", ["tier", "chexzero"])
def test_pairs_of_sentences_against_loops(model, processor, pairs, protocol):

    def embed(sentences):
        rows = [unit(model.get_text_features(**processor(text=s)).pooler_output[0]) for s in sentences]
        return unit(torch.stack(rows).mean(0))

    sentences = prompts_of(protocol)
    if protocol == "chexzero":
        assert sentences["Pleural Effusion"] == {"positive": ["Pleural Effusion"], "negative": ["no Pleural Effusion"]}
    scores, probabilities = evaluated(model, processor, pairs, protocol)
    with torch.no_grad():
        for i, row in enumerate(pairs):
            image = unit(model.get_image_features(**processor(images=row["image"])).pooler_output[0])
            for j, lists in enumerate(sentences.values()):
                p, n = ((image @ embed(lists[key])).item() for key in ("positive", "negative"))
                scale = math.exp(model.logit_scale.item())

                def softmax(a, b):
                    return math.exp(a) / (math.exp(a) + math.exp(b))

                expected = {"tier": p - n, "chexzero": softmax(p, n)}[protocol]
                assert scores[i, j] == pytest.approx(expected, abs=1e-5)
                expected = {"tier": softmax(scale * p, scale * n), "chexzero": expected}[protocol]
                assert probabilities[i, j] == pytest.approx(expected, abs=1e-4)


def test_carzero_is_the_cosine_with_one_sentence(model, processor, pairs):
    sentences = prompts_of("carzero")
    assert sentences["Pleural Effusion"] == {"positive": ["There is pleural effusion"]}
    scores, probabilities = evaluated(model, processor, pairs, "carzero")
    with torch.no_grad():
        for i, row in enumerate(pairs):
            image = unit(model.get_image_features(**processor(images=row["image"])).pooler_output[0])
            for j, lists in enumerate(sentences.values()):
                text = unit(model.get_text_features(**processor(text=lists["positive"])).pooler_output[0])
                assert scores[i, j] == pytest.approx((image @ text).item(), abs=1e-5)
    assert ((np.argsort(scores, axis=0) == np.argsort(probabilities, axis=0)) | (probabilities > 0.999)).all()


def test_names_of_carzero_that_are_not_the_labels(tmp_path):
    """Of ChestX-Det10, as in arXiv 2402.17417."""
    prompts = load_prompts("chestxdet10", protocol="carzero")
    positive = {finding: lists["positive"] for finding, lists in prompts.items()}
    assert positive["Calcification"] == ["There is tissue calcification"] and positive["Nodule"] == [
        "There is lung nodule"
    ]
    assert positive["Pneumothorax"] == ["There is pneumothorax"] and len(positive) == 10
    assert load_prompts("chestxdet10", protocol="chexzero")["Nodule"]["positive"] == ["Nodule"]
    (tmp_path / "p.yaml").write_text("findings: {Edema: {positive: [Wet.], negative: [Dry.]}}\n")
    assert load_prompts(str(tmp_path / "p.yaml"), protocol="carzero") == {"Edema": {"positive": ["There is edema"]}}
    (tmp_path / "p.yaml").write_text("names: 3\nfindings: {Edema: {positive: [Wet.], negative: [Dry.]}}\n")
    with pytest.raises(ValueError, match="'names' must hold findings with the names"):
        load_prompts(str(tmp_path / "p.yaml"), protocol="carzero")


def test_sentences_of_negation_are_those_of_carzero_and_their_denial(tmp_path):
    sentences = load_negation("chestxdet10", ["Nodule", "Pneumothorax"])
    assert sentences["Nodule"] == {"positive": ["There is lung nodule"], "negative": ["There is no lung nodule"]}
    assert sentences["Pneumothorax"]["negative"] == ["There is no pneumothorax"]
    affirmed = {finding: {"positive": lists["positive"]} for finding, lists in sentences.items()}
    assert affirmed == {f: load_prompts("chestxdet10", protocol="carzero")[f] for f in sentences}
    (tmp_path / "p.yaml").write_text("names: 3\nfindings: {Edema: {positive: [Wet.], negative: [Dry.]}}\n")
    with pytest.raises(ValueError, match="'names' must hold findings with the names"):
        load_negation(str(tmp_path / "p.yaml"), ["Edema"])


def test_extreme_logits_stay_in_bounds():
    cosines = np.array([[1.0, -1.0], [-1.0, 1.0]])
    for protocol in PROTOCOLS.values():
        answers = protocol.probability(cosines, -cosines, 1e4)
        assert np.isfinite(answers).all() and (answers >= 0).all() and (answers <= 1).all()


def test_a_file_may_replace_the_templates_of_a_protocol(tmp_path):
    path = tmp_path / "prompts.yaml"
    text = "no_finding: [Clear.]\nfindings:\n  Pleural_Thickening: {positive: [Thick.], negative: [Thin.]}\n"
    path.write_text(text)
    assert load_prompts(str(path))["Pleural_Thickening"]["negative"] == ["Clear.", "Thin."]
    standard = {"positive": ["Pleural Thickening"], "negative": ["no Pleural Thickening"]}
    assert load_prompts(str(path), protocol="chexzero") == {"Pleural_Thickening": standard}
    with pytest.raises(ValueError, match="one is too few"):
        load_prompts(str(path), protocol="pipeline")
    text += "  Edema: {positive: [Wet.], negative: [Dry.]}\n"
    own = "chexzero: {positive: ['{finding} seen', 'a {finding}'], negative: ['{finding} absent']}\n"
    path.write_text(text + own + "pipeline: {positive: ['X-ray with {finding}']}\n")
    assert load_prompts(str(path), protocol="chexzero") == {
        finding: {"positive": [f"{name} seen", f"a {name}"], "negative": [f"{name} absent"]}
        for finding, name in (("Pleural_Thickening", "Pleural Thickening"), ("Edema", "Edema"))
    }
    assert load_prompts(str(path), protocol="pipeline") == {
        "Pleural_Thickening": {"positive": ["X-ray with Pleural Thickening"]},
        "Edema": {"positive": ["X-ray with Edema"]},
    }
    assert load_no_finding(str(path)) == ["Clear."] and load_no_finding(None) == list(NO_FINDING)


@pytest.mark.parametrize(
    ("addition", "protocol", "message"),
    [
        ("chexzero: {positive: ['{finding}']}", "chexzero", r"'chexzero' needs the lists \['positive', 'negative'\]"),
        ("chexzero: {positive: [seen], negative: ['no {finding}']}", "chexzero", r"must contain \{finding\}"),
        ("pipeline: {positive: ['a {finding}', 'the {finding}']}", "pipeline", "one positive sentence"),
        ("chexnet: {positive: ['{finding}']}", "tier", "unknown key 'chexnet'"),
        ("", "softmax", r"Unknown protocol 'softmax'; known are \['tier', 'chexzero', 'pipeline', 'carzero'\]"),
        ("findings: [unbalanced", "tier", "is no YAML file"),
    ],
)
def test_bad_protocols_and_templates_are_named(tmp_path, addition, protocol, message):
    path = tmp_path / "prompts.yaml"
    path.write_text("findings: {A: {positive: [a], negative: [b]}, B: {positive: [a], negative: [b]}}\n" + addition)
    with pytest.raises(ValueError, match=message):
        load_prompts(str(path), (), protocol)
