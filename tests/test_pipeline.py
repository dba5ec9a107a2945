# Licensed under the Apache License, Version 2.0.
"""The zero-shot pipeline: the evaluation's scores, maps over the original picture, and streams of all that is read."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import TEXT_CONFIGS, VISION_CONFIGS, tier_config
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    PreTrainedTokenizerFast,
    ViTImageProcessor,
    ZeroShotImageClassificationPipeline,
    pipeline,
)
from transformers.pipelines.pt_utils import KeyDataset

from modeling_tier import TierConfig, TierModel, TierProcessor, TierZeroShotPipeline, overlay_map
from modeling_tier.data import load_pairs
from modeling_tier.data.synthetic import draw_studies
from modeling_tier.evaluation import evaluate_zero_shot, load_prompts
from modeling_tier.maps_tier import NO_FINDING, picture_geometry


FINDINGS = ["left pleural effusion", "cardiomegaly", "small effusion"]

ELSEWHERE = """
import json, sys
from transformers import pipeline

folder, image, findings, again = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4]
try:
    import modeling_tier
    sys.exit("the package must not be importable here")
except ModuleNotFoundError:
    pass
read = pipeline("tier-zero-shot", model=folder, trust_remote_code=True, device="cpu")
rows = read(image, findings=findings, maps="array")
words = read.word_maps(image, "left effusion .")["words"]
read.save_pretrained(again)
read = pipeline("tier-zero-shot", model=again, trust_remote_code=True, device="cpu")
again = [row["score"] for row in read(image, findings=findings)]
classify = pipeline("zero-shot-image-classification", model=folder, trust_remote_code=True)
classified = [row["label"] for row in classify(image, candidate_labels=findings)]
deep = {row["label"]: row["score"] for row in classify(image.replace("graph", "graph16"), candidate_labels=findings)}
plain = {row["label"]: row["score"] for row in classify(image, candidate_labels=findings)}
assert all(abs(deep[name] - plain[name]) < 1e-5 for name in findings), (deep, plain)
rows = [{**row, "map": row["map"].tolist()} for row in rows]
print(json.dumps({"rows": rows, "words": words, "again": again, "classified": classified}))
"""


@pytest.fixture
def model(tokenizer) -> TierModel:
    """Of weights so large that pictures and sentences differ well."""
    torch.manual_seed(3)
    text = TEXT_CONFIGS["bert"].to_dict() | {"vocab_size": len(tokenizer), "initializer_range": 0.5}
    vision = VISION_CONFIGS["vit"].to_dict() | {"initializer_range": 0.5}
    return TierModel(
        TierConfig(text_config=text, vision_config=vision, image_pooling="mean", projection_dim=16)
    ).eval()


@pytest.fixture
def read(model, processor) -> TierZeroShotPipeline:
    return TierZeroShotPipeline(model=model, processor=processor, device="cpu")


@pytest.fixture
def picture() -> Image.Image:
    """As large as the model's input: no resizing, no crop."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8))


def numbers(rows: list[dict]) -> list[tuple]:
    return [(row["finding"], row["score"], row["difference"]) for row in rows]


def same(rows: list[dict], expected: list[dict]) -> bool:
    return [row["finding"] for row in rows] == [row["finding"] for row in expected] and all(
        row[name] == pytest.approx(other[name], abs=1e-6)
        for row, other in zip(rows, expected)
        for name in ("score", "difference")
    )


@pytest.mark.parametrize("batch_size", [1, 4])
def test_scores_are_those_of_the_evaluation(read, batch_size):
    pairs, prompts = load_pairs("synthetic", "test", num_images=10, image_size=40, seed=2), load_prompts("synthetic")
    _, details = evaluate_zero_shot(
        read.model, read.processor, pairs, prompts, localisation=False, progress=False, blank="zeros"
    )
    answers = list(read(KeyDataset(pairs, "image"), findings=prompts, batch_size=batch_size))
    assert [[row["finding"] for row in rows] for rows in answers] == [list(prompts)] * 10
    for name, known in (("difference", "scores"), ("score", "probabilities")):
        answer = [[row[name] for row in rows] for rows in answers]
        np.testing.assert_allclose(answer, details[known], rtol=0, atol=1e-5)
    assert np.ptp(details["scores"]) > 0.01, "there is something to compare"


def test_names_go_through_templates(read, picture):
    spelled = {
        "left_effusion": {"positive": ["left effusion."], "negative": ["No left effusion."]},
        "cardiomegaly": {"positive": ["cardiomegaly."], "negative": ["No cardiomegaly."]},
    }
    assert numbers(read(picture, findings=list(spelled))) == numbers(read(picture, findings=spelled))
    spelled = {
        "effusion": {"positive": ["there is effusion", "a large effusion"], "negative": ["no effusion {now}"]},
    }
    templates = {"positive_template": ["there is {}", "a large {}"], "negative_template": "no {} {now}"}
    assert numbers(read(picture, findings=["effusion"], **templates)) == numbers(read(picture, findings=spelled))
    assert numbers(read(picture, findings="effusion")) == numbers(read(picture, findings=["effusion"]))


def test_a_finding_does_not_depend_on_the_others(read, picture):
    together = read(picture, findings=FINDINGS)
    alone = [read(picture, findings=[finding])[0] for finding in FINDINGS]
    assert same(together, alone)
    assert all(0 <= row["score"] <= 1 for row in together)
    assert len({row["score"] for row in together}) == 3


def test_the_score_is_the_softmax_over_the_two_logits(read, picture):
    inputs = read.processor(images=picture, text=["cardiomegaly.", "No cardiomegaly."])
    with torch.no_grad():
        expected = read.model(**inputs).logits_per_image[0].softmax(-1)[0].item()
    assert read(picture, findings=["cardiomegaly"])[0]["score"] == pytest.approx(expected, abs=1e-6)


def test_lists_batches_and_streams(read, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path, picture in zip(paths, pixels):
        Image.fromarray(picture).save(path)
    expected = [read(path, findings=FINDINGS) for path in paths]
    assert not same(expected[0], expected[1])
    forms = {
        "paths": paths,
        "strings": [str(path) for path in paths],
        "tuple": tuple(paths),
        "array": pixels,
        "tensor": torch.from_numpy(pixels),
        "generator": (Image.open(path) for path in paths),
        "iterator": map(str, paths),
        "keys": KeyDataset([{"image": path} for path in paths], "image"),
    }
    for name, images in forms.items():
        answers = read(images, findings=FINDINGS, batch_size=2)
        assert isinstance(answers, list) == (name in ("paths", "strings", "tuple", "array", "tensor")), name
        answers = list(answers)
        assert len(answers) == 5 and all(map(same, answers, expected)), name
    assert all(map(same, read(paths, findings=FINDINGS, batch_size=2, num_workers=1), expected))
    assert read([], findings=FINDINGS) == [] and len(read(paths[:1], findings=FINDINGS)) == 1


def test_a_stream_is_read_as_it_is_asked_for(read, picture):
    opened = []

    def pictures():
        for i in range(1000):
            opened.append(i)
            yield picture

    answers = iter(read(pictures(), findings=FINDINGS, batch_size=2))
    assert len(next(answers)) == 3 and len(opened) < 20


def test_16_bit_and_dicom_are_read_by_their_own_range(read, tmp_path):
    pydicom = pytest.importorskip("pydicom")
    grey = np.random.default_rng(2).integers(1, 255, (32, 32), dtype=np.uint8)
    grey[0, :2] = 0, 255  # so that the range of 16 bits is stretched back to the same 8
    Image.fromarray(grey.astype(np.uint16) * 100 + 7).save(tmp_path / "16.png")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    dataset = pydicom.dataset.FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 32, 32, 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.PhotometricInterpretation = "MONOCHROME1"  # large values are dark
    dataset.PixelData = ((255 - grey.astype(np.uint16)) * 100).tobytes()
    dataset.save_as(tmp_path / "radiograph.dcm", enforce_file_format=True)
    expected = read(Image.fromarray(grey), findings=FINDINGS)
    for name in ("16.png", "radiograph.dcm"):
        assert same(read(str(tmp_path / name), findings=FINDINGS), expected), name
    white = read(Image.new("L", (32, 32), 255), findings=FINDINGS)
    assert not same(white, expected), "what a plain conversion would make of 16 bits"


def test_maps_are_those_of_the_model_for_the_mean_of_the_positive_sentences(read, picture):
    sentences = ["there is a large effusion", "left effusion"]
    findings = {"effusion": {"positive": sentences, "negative": ["no effusion"]}}
    answer = read(picture, findings=findings, maps="array")[0]
    pixel_values = read.processor(images=picture)["pixel_values"]
    text = read.processor(text=sentences)
    maps = read.model.get_similarity_map(pixel_values, **text, size=(32, 32)).text_to_patch.detach()
    with torch.no_grad():
        unit = torch.nn.functional.normalize(read.model.get_text_features(**text).pooler_output, dim=-1)
    expected = maps.mean(dim=0) / unit.mean(dim=0).norm()
    assert answer["map"].dtype == np.float32 and answer["map"].shape == (32, 32)
    np.testing.assert_allclose(answer["map"], expected.numpy(), atol=1e-5)
    assert np.ptp(answer["map"]) > 0.01


def test_contributions_sum_to_the_cosine_and_are_painted_at_the_scale_of_cosines(processor, picture):
    torch.manual_seed(0)
    model = TierModel(tier_config("clip", "vit", image_pooling="mean"))
    read = TierZeroShotPipeline(model=model, processor=processor, findings=["effusion"], map_kind="contribution")
    row = read(picture, maps="array")[0]
    pixel_values = processor(images=picture)["pixel_values"]
    text = processor(text=["effusion."])
    with torch.no_grad():
        cosine = model(pixel_values=pixel_values, **text)
        coarse = model.get_similarity_map(pixel_values, **text, kind="contribution", size=(32, 32)).text_to_patch[0]
    on_grid = model.get_similarity_map(pixel_values, **text, kind="contribution").text_to_patch[0]
    expected = (cosine.text_embeds * cosine.image_embeds).sum().item()
    assert on_grid.sum().item() == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(row["map"], coarse.numpy(), atol=1e-6)
    overlay = read(picture, maps="overlay")[0]["overlay"]
    assert overlay.tobytes() == overlay_map(picture.convert("RGB"), row["map"], 1 / on_grid.numel()).tobytes()
    words = read.word_maps(picture, "effusion .")["maps"]
    tokens = model.get_similarity_map(pixel_values, **processor(text="effusion ."), kind="contribution", size=(32, 32))
    position = processor.tokenizer("effusion .")["input_ids"].index(processor.tokenizer.vocab["effusion"])
    np.testing.assert_allclose(words[0], tokens.token_to_patch[0, position].numpy(), atol=1e-6)
    with pytest.raises(ValueError, match="map_kind must be one of"):
        read(picture, map_kind="gradient")


@pytest.mark.parametrize("kind", ["cosine", "contribution"])
def test_maps_minus_that_of_no_finding(processor, picture, kind):
    """Of a finding, and of a word: the model's map minus that of the sentences for "no finding"."""
    torch.manual_seed(0)
    model = TierModel(tier_config("clip", "vit", image_pooling="mean"))
    read = TierZeroShotPipeline(model=model, processor=processor, findings=["effusion"])
    pixel_values = processor(images=picture)["pixel_values"]

    def of_model(sentence: str) -> np.ndarray:
        inputs = processor(text=[sentence])
        return model.get_similarity_map(pixel_values, **inputs, kind=kind, size=(32, 32)).text_to_patch[0].numpy()

    with torch.no_grad():
        texts = model.get_text_features(**processor(text=list(NO_FINDING))).pooler_output
        length = torch.nn.functional.normalize(texts, dim=-1).mean(dim=0).norm().item()
    no_finding = np.mean([of_model(sentence) for sentence in NO_FINDING], axis=0) / length
    row = read(picture, maps="array", map_kind=f"{kind}_minus_no_finding")[0]
    np.testing.assert_allclose(row["map"], of_model("effusion.") - no_finding, atol=1e-5)
    limit = 1 / math.prod(row["grid"]) if kind == "contribution" else 1
    overlay = read(picture, maps="overlay", map_kind=f"{kind}_minus_no_finding")[0]["overlay"]
    assert overlay.tobytes() == overlay_map(picture.convert("RGB"), row["map"], limit).tobytes()
    one = read.word_maps(picture, "effusion .", map_kind=f"{kind}_minus_no_finding")["maps"]
    expected = read.word_maps(picture, "effusion .", map_kind=kind)["maps"] - no_finding
    np.testing.assert_allclose(one, expected, atol=1e-5)
    own = {"map_kind": f"{kind}_minus_no_finding", "no_finding": "no effusion"}
    answer = read(picture, maps="array", **own)[0]
    text = processor(text=["effusion.", "no effusion"])
    maps = model.get_similarity_map(pixel_values, **text, kind=kind, size=(32, 32)).text_to_patch
    np.testing.assert_allclose(answer["map"], (maps[0] - maps[1]).numpy(), atol=1e-5)
    in_words = read.word_maps([picture], "effusion .", **own)[0]["maps"]
    np.testing.assert_allclose(in_words[0] - one[0], no_finding - maps[1].numpy(), atol=1e-5)
    for wrong in ([], " ", 3, ["no effusion", ""]):
        with pytest.raises(ValueError, match="no_finding must be a sentence or a list of sentences"):
            read(picture, no_finding=wrong)


def test_words_of_no_finding_that_the_tokenizer_does_not_know_are_named(read, picture):
    """Where a map is minus theirs, and nowhere else."""
    options = {"findings": ["effusion"], "no_finding": ["no effusion", "splendid"]}
    assert "note" not in read(picture, **options)[0]
    assert "note" not in read(picture, maps="array", **options)[0]
    (row,) = read(picture, maps="array", map_kind="cosine_minus_no_finding", **options)
    assert row["note"] == "The map is minus that of words that the tokenizer does not know: splendid."


@pytest.mark.parametrize(
    "image_processor",
    [
        CLIPImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 32, "width": 32}),
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 32, "width": 40}),
        ViTImageProcessor(size={"height": 32, "width": 40}),
        CLIPImageProcessor(do_resize=False, do_center_crop=False),
    ],
    ids=["edge and crop", "edge", "padded", "both sides", "as it is"],
)
@pytest.mark.parametrize("size", [(150, 90), (61, 100)])
def test_a_pixel_of_the_picture_lands_where_the_image_processor_puts_it(image_processor, size):
    (scale_x, scale_y), (left, top), (width, height) = picture_geometry(size, image_processor)
    compared = 0
    for x in range(5, size[0] - 5, 11):
        for y in range(5, size[1] - 5, 9):
            pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
            pixels[y - 4 : y + 5, x - 4 : x + 5] = 255
            seen = image_processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0].mean(dim=0)
            assert seen.shape == (height, width)
            place = (x + 0.5) * scale_x - left, (y + 0.5) * scale_y - top
            if not (4 < place[0] < width - 4 and 4 < place[1] < height - 4):
                continue
            weight = (seen - seen.min()).clamp(min=0) * (seen > seen.mean())
            columns, rows = torch.arange(width) + 0.5, torch.arange(height) + 0.5
            centre = ((weight.sum(0) * columns).sum() / weight.sum(), (weight.sum(1) * rows).sum() / weight.sum())
            assert [c.item() for c in centre] == pytest.approx(place, abs=0.6)
            compared += 1
    assert compared >= 4


@pytest.mark.parametrize("side", range(90, 102))
def test_the_centre_crop_is_the_librarys_and_one_pixel_off_torchvisions_at_3_modulo_4(side):
    """A margin of 1 mod 4 has its half rounded down by both; of 3 mod 4, down by the library, up by torchvision."""
    image_processor = CLIPImageProcessor(
        do_resize=False, crop_size={"height": 40, "width": 40}, do_rescale=False, do_normalize=False
    )
    pixels = np.arange(side, dtype=np.uint8)[:, None, None].repeat(50, axis=1).repeat(3, axis=2)
    seen = image_processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0, 0, 0, 0].item()
    _, (_, top), _ = picture_geometry((50, side), image_processor)
    torchvision = int(round((side - 40) / 2.0))
    assert top == seen == torchvision - ((side - 40) % 4 == 3)


def test_the_map_is_nan_exactly_where_the_processor_cuts_the_picture(model, tokenizer):
    image_processor = CLIPImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 32, "width": 32})
    read = TierZeroShotPipeline(model=model, processor=TierProcessor(image_processor, tokenizer), device="cpu")
    picture = Image.new("L", (180, 96))  # resized to 90 x 48, then 29 columns and 8 rows go on each side
    answer = read(picture, findings=["effusion"], maps="array")[0]["map"]
    assert answer.shape == (96, 180)
    rows, columns = (~np.isnan(answer)).any(axis=1).nonzero()[0], (~np.isnan(answer)).any(axis=0).nonzero()[0]
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (16, 79, 58, 121)
    assert np.isfinite(answer[16:80, 58:122]).all() and np.isfinite(answer).sum() == 64 * 64


def test_an_overlay_leaves_the_rim_bare(read):
    pixels = np.random.default_rng(3).integers(60, 200, (40, 100), dtype=np.uint8)
    findings, picture = ["effusion", "cardiomegaly"], Image.fromarray(pixels)
    for batch_size in (1, 2):
        maps = read([picture, picture], findings=findings, maps="array", batch_size=batch_size)
        overlays = read([picture, picture], findings=findings, maps="overlay", batch_size=batch_size)
        for row, expected in zip(overlays[1], maps[1]):
            assert row["overlay"].size == (100, 40) and row["overlay"].mode == "RGB" and "map" not in row
            painted = np.asarray(row["overlay"]).astype(int)
            bare = np.isnan(expected["map"])
            assert bare[:, :30].all() and bare[:, 70:].all() and not bare[:, 31:69].any()
            np.testing.assert_array_equal(painted[bare], pixels[bare][:, None].repeat(3, axis=1))
            warm = painted[..., 0] - painted[..., 2]  # red less blue
            assert (warm[expected["map"] > 0.1] > 0).all() and (warm[expected["map"] < -0.1] < 0).all()
    assert not any({"map", "overlay"} & set(row) for row in read(picture, findings=findings))


def test_the_colours_of_an_overlay():
    cosines = np.array([[1.0, 0.5, 0.0], [-1.0, np.nan, 2.0]], dtype=np.float32)
    grey = Image.new("L", (3, 2), 100)
    full, half, bare = [208, 128, 30], [154, 114, 65], [100] * 3  # 70% and 35% of the way to orange (255, 140, 0)
    expected = [[full, half, bare], [[30, 110, 208], bare, full]]
    np.testing.assert_allclose(np.asarray(overlay_map(grey, cosines)).astype(int), expected, atol=1)
    expected[0][1] = full
    np.testing.assert_allclose(np.asarray(overlay_map(grey, cosines, limit=0.5)).astype(int), expected, atol=1)


def test_words_of_several_tokens_are_one(model, processor, picture):
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "left": 1, "effu": 2, "##sion": 3, "-": 4, ".": 5, "side": 6}))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[UNK]", model_max_length=9
    )
    processor = TierProcessor(processor.image_processor, tokenizer)
    read = TierZeroShotPipeline(model=model, processor=processor, device="cpu")
    answer = read.word_maps(picture, "left-side effusion, strange. - effusion left left")
    assert answer["words"] == ["left-side", "effusion", "strange"], "the last words are cut off by the tokenizer"
    text = processor(text=["left-side effusion, strange. - effusion left left"])
    assert text["input_ids"].tolist() == [[1, 4, 6, 2, 3, 0, 0, 5, 4]]
    tokens = model.get_similarity_map(processor(images=picture)["pixel_values"], **text, size=(32, 32)).token_to_patch[
        0
    ]
    expected = torch.stack([tokens[[0, 2]].mean(0), tokens[[3, 4]].mean(0), tokens[6]])
    assert answer["maps"].shape == (3, 32, 32) and answer["maps"].dtype == np.float32
    np.testing.assert_allclose(answer["maps"], expected.numpy(), atol=1e-5)


def test_special_tokens_and_punctuation_are_no_words(read, picture):
    assert read.word_maps(picture, "There is a small left effusion .")["words"] == [
        "There", "is", "a", "small", "left", "effusion",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no word"):
        read.word_maps(picture, " . ")


def test_offsets_with_the_space_before_a_word(model, processor, picture):
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate("Ġ l e f t a".split())}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="a", model_max_length=24)
    read = TierZeroShotPipeline(model=model, processor=TierProcessor(processor.image_processor, tokenizer))
    assert read.word_maps(picture, "left  fat")["words"] == ["left", "fat"]


def test_sentences_are_embedded_once(read, picture, monkeypatch):
    embedded = []
    original = read.model.get_text_features

    def counted(input_ids, **kwargs):
        embedded.append(len(input_ids))
        return original(input_ids, **kwargs)

    monkeypatch.setattr(read.model, "get_text_features", counted)
    first = read([picture] * 5, findings=FINDINGS, batch_size=2)[0]
    assert embedded == [6]
    assert same(read(picture, findings=FINDINGS[::-1]), first[::-1]) and embedded == [6]
    read(picture, findings=[*FINDINGS, "right effusion"])
    assert embedded == [6, 2]


def test_no_more_sentences_are_kept_than_a_limit(read, picture, monkeypatch):
    monkeypatch.setattr(sys.modules[TierZeroShotPipeline.__module__], "_MAX_KEPT", 4)
    expected = read(picture, findings=FINDINGS)
    assert len(read._embeds) == 4
    assert same(read(picture, findings=FINDINGS), expected) and len(read._embeds) == 4


def test_changed_weights_are_not_answered_from_memory(read, picture):
    before = read(picture, findings=FINDINGS)
    with torch.no_grad():
        read.model.text_projection.weight.neg_()
    after = read(picture, findings=FINDINGS)
    assert [row["difference"] for row in after] == pytest.approx([-row["difference"] for row in before], abs=1e-6)


def test_dropout_is_off(model, processor, picture):
    model.text_model.train()
    model.vision_model.train()
    read = TierZeroShotPipeline(model=model.train(), processor=processor, device="cpu")
    first = numbers(read(picture, findings=FINDINGS))
    read._embeds.clear()
    assert numbers(read(picture, findings=FINDINGS)) == first


def test_half_precision(read, picture):
    expected = read(picture, findings=FINDINGS, maps="array")
    read.model.to(torch.bfloat16)
    for row, other in zip(read(picture, findings=FINDINGS, maps="array"), expected):
        assert row["difference"] == pytest.approx(other["difference"], abs=0.02)
        np.testing.assert_allclose(row["map"], other["map"], atol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"findings": []}, "at least one name"),
        ({"findings": None}, "at least one name"),
        ({"findings": ["effusion", " "]}, "must be names"),
        ({"findings": ["effusion", "effusion"]}, "twice"),
        ({"findings": ["effusion"], "positive_template": "effusion"}, r"positive_template 'effusion'.*\{\}"),
        ({"findings": ["effusion"], "negative_template": ["no {}", "none"]}, r"negative_template 'none'.*\{\}"),
        ({"findings": ["effusion"], "negative_template": []}, "negative_template must be"),
        ({"findings": {"effusion": {"positive": ["effusion"]}}}, "'effusion' needs the two lists"),
        ({"findings": {"effusion": {"positive": [], "negative": ["no"]}}}, "effusion: 'positive' must be a list"),
        ({"findings": {"effusion": {"positive": ["x"], "negative": "no"}}}, "effusion: 'negative' must be a list"),
        ({"findings": ["effusion"], "maps": "picture"}, "maps must be one of .*'overlay'.*got 'picture'"),
    ],
)
def test_wrong_options_are_named(read, picture, options, message):
    with pytest.raises(ValueError, match=message):
        read(picture, **options)


def test_an_unreadable_file_is_named(read, picture, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    picture.save(tmp_path / "good.png")
    with pytest.raises(ValueError, match="broken.png"):
        read([str(tmp_path / "good.png"), str(tmp_path / "broken.png")], findings=FINDINGS)
    with pytest.raises(ValueError, match="missing.png"):
        list(read(iter([tmp_path / "missing.png"]), findings=FINDINGS, batch_size=2))


def test_a_model_of_nan_and_a_pipeline_without_processor(read, model, picture):
    with pytest.raises(ValueError, match="needs the model's processor"):
        TierZeroShotPipeline(model=model, device="cpu")
    with torch.no_grad():
        model.text_projection.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN"):
        read(picture, findings=FINDINGS)


def test_a_map_that_cannot_be_laid_over_the_picture(model, tokenizer, picture):
    image_processor = CLIPImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}, do_center_crop=False)
    read = TierZeroShotPipeline(model=model, processor=TierProcessor(image_processor, tokenizer), device="cpu")
    with pytest.raises(ValueError, match="map cannot follow"):
        read(picture, findings=FINDINGS, maps="array")


def test_with_the_package_no_remote_code_is_needed(read, picture, tmp_path):
    expected = read(picture, findings=FINDINGS)
    read.save_pretrained(tmp_path)
    again = pipeline("tier-zero-shot", model=str(tmp_path), device="cpu")
    assert type(again) is TierZeroShotPipeline and type(again.model) is TierModel
    assert same(again(picture, findings=FINDINGS), expected)
    again.save_pretrained(tmp_path / "again")
    first, second = (json.loads((f / "config.json").read_text()) for f in (tmp_path, tmp_path / "again"))
    assert first["custom_pipelines"] == second["custom_pipelines"] and first["auto_map"] == second["auto_map"]
    assert {f.name for f in tmp_path.iterdir()} - {f.name for f in (tmp_path / "again").iterdir()} == {"again"}


@pytest.mark.slow
def test_without_the_package(read, picture, tmp_path):
    folder, away = tmp_path / "model", tmp_path / "elsewhere"
    away.mkdir()
    read.model.save_pretrained(folder)
    read.processor.save_pretrained(folder)
    picture.putpixel((0, 0), 0)
    picture.putpixel((1, 0), 255)
    picture.save(tmp_path / "radiograph.png")
    Image.fromarray(np.asarray(picture).astype(np.uint16) * 16).save(tmp_path / "radiograph16.png")
    expected = read(picture, findings=FINDINGS, maps="array")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    process = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, folder, tmp_path / "radiograph.png", json.dumps(FINDINGS), away / "again"],
        capture_output=True,
        text=True,
        cwd=away,
        env=environment | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
    )
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout.splitlines()[-1])
    assert same(result["rows"], expected)
    for row, other in zip(result["rows"], expected):
        np.testing.assert_allclose(row["map"], other["map"], atol=1e-6)
    assert result["again"] == pytest.approx([row["score"] for row in expected], abs=1e-6)
    assert result["words"] == ["left", "effusion"] and set(result["classified"]) == set(FINDINGS)


def test_what_is_asked_for_in_the_constructor_is_the_default_of_each_call(model, processor, picture):
    read = TierZeroShotPipeline(model=model, processor=processor, findings=FINDINGS, negative_template="not {}")
    expected = TierZeroShotPipeline(model=model, processor=processor)(
        picture, findings=FINDINGS, negative_template="not {}"
    )
    assert numbers(read(picture)) == numbers(expected)
    assert numbers(read([picture], candidate_labels=FINDINGS)[0]) == numbers(expected)
    assert [row["finding"] for row in read(picture, findings=["effusion"])] == ["effusion"]
    with pytest.raises(ValueError, match="two names of one option"):
        read(picture, findings=FINDINGS, candidate_labels=FINDINGS)
    with pytest.raises(ValueError, match="two names of one option"):
        TierZeroShotPipeline(model=model, processor=processor, findings=["a"], candidate_labels=["a"])
    with pytest.raises(ValueError, match="Unknown option 'threshold'"):
        read(picture, threshold=0.5)


def test_words_that_the_tokenizer_does_not_know_get_a_note(model, processor, picture):
    tokenizer = Tokenizer(
        models.WordPiece(
            {token: i for i, token in enumerate(["[UNK]", "effusion", "c", "##o", "##l", "##d", "o", "."])}
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[UNK]", model_max_length=24
    )
    read = TierZeroShotPipeline(model=model, processor=TierProcessor(processor.image_processor, tokenizer))
    known, spelled, unknown = read(picture, findings=["effusion", "cold effusion", "pneumonia o"])
    assert "note" not in known
    assert spelled["note"] == "The tokenizer does not know: cold. The score says little."
    assert unknown["note"].startswith("The tokenizer does not know: pneumonia.")


SMOOTH = np.linspace(0, 255, 100 * 80).reshape(100, 80).astype(np.uint8)
UNLIKE = {
    "coloured": np.stack([SMOOTH, 255 - SMOOTH, SMOOTH], axis=2),
    "nothing to do with each other": np.random.default_rng(0).integers(0, 256, (100, 80), dtype=np.uint8),
    "one grey": np.full((100, 80), 7, np.uint8),
}


def test_a_picture_unlike_a_radiograph_gets_a_note(read):
    pictures = [SMOOTH, *UNLIKE.values(), np.stack([SMOOTH] * 3, axis=2)]
    answers = read(pictures, findings=["effusion", "pneumonia"], batch_size=2)
    assert "note" not in answers[0][0] and "note" not in answers[-1][0]
    for (first, second), reason in zip(answers[1:-1], UNLIKE):
        assert first["note"].startswith("The picture is unlike a radiograph: it")
        assert reason in first["note"] and first["note"].endswith(". The score says little.")
        assert reason in second["note"] and "does not know: pneumonia. The score" in second["note"]
    drawings = [study.pixels for study in draw_studies("test", 3, 96, 0)]
    assert not [row for rows in read(drawings, findings=["effusion"]) for row in rows if "note" in row]


def test_a_model_object_brings_its_processor(read, picture, tmp_path):
    read.save_pretrained(tmp_path)
    expected = read(picture, findings=FINDINGS)
    loaded = TierModel.from_pretrained(tmp_path)
    for again in (pipeline("tier-zero-shot", model=loaded), TierZeroShotPipeline(model=loaded)):
        assert same(again(picture, findings=FINDINGS), expected)
    (tmp_path / "processor_config.json").unlink()
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=f"{tmp_path.name} has none: pass processor"):
        TierZeroShotPipeline(model=loaded)


def test_lists_of_word_maps(read, picture):
    one, two = read.word_maps(picture, "left effusion"), read.word_maps(picture, "small cardiomegaly")
    other = picture.rotate(90)
    for answers, expected in (
        (read.word_maps(picture, ["left effusion", "small cardiomegaly"]), [one, two]),
        (read.word_maps([picture, other], "left effusion"), [one, read.word_maps(other, "left effusion")]),
        (read.word_maps([picture, picture], ["left effusion", "small cardiomegaly"]), [one, two]),
    ):
        assert [answer["words"] for answer in answers] == [answer["words"] for answer in expected]
        for answer, known in zip(answers, expected):
            np.testing.assert_allclose(answer["maps"], known["maps"], atol=1e-6)
    with pytest.raises(ValueError, match="2 pictures and 3 sentences"):
        read.word_maps([picture, picture], ["a", "b", "c"])
    with pytest.raises(ValueError, match="sentence must be a text"):
        read.word_maps(picture, 7)


def test_bytes_cells_and_open_files_are_one_picture(read, picture, tmp_path):
    picture.save(tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    expected = read(picture, findings=FINDINGS)
    with open(tmp_path / "x.png", "rb") as file:
        for image in (content, {"bytes": content, "path": None}, file):
            assert same(read(image, findings=FINDINGS), expected)
    for answer in read(np.array([str(tmp_path / "x.png")] * 2), findings=np.array(FINDINGS)):
        assert same(answer, expected)
    for image, message in ((b"no picture", "no known format"), ({"image": content}, "cell of `datasets`"), (7, "int")):
        with pytest.raises(ValueError, match=message):
            read(image, findings=FINDINGS)


def test_a_frame_of_several(read, picture, tmp_path):
    picture.save(tmp_path / "x.tiff", save_all=True, append_images=[picture.rotate(90)])
    assert same(read(tmp_path / "x.tiff", findings=FINDINGS, frame=2), read(picture.rotate(90), findings=FINDINGS))
    assert read.word_maps(tmp_path / "x.tiff", "left effusion", frame=2)["words"] == ["left", "effusion"]
    with pytest.raises(ValueError, match="several frames"):
        read(tmp_path / "x.tiff", findings=FINDINGS)


def test_limits_of_the_processor_hold_in_the_pipeline(model, processor, picture):
    processor = TierProcessor(processor.image_processor, processor.tokenizer, max_pixels=1000)
    read = TierZeroShotPipeline(model=model, processor=processor)
    with pytest.raises(ValueError, match="32 x 32.*max_pixels=1000"):
        read(picture, findings=FINDINGS)


def test_a_processor_of_another_model_is_an_error(model, processor, picture):
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "effusion": 500}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[UNK]")
    read = TierZeroShotPipeline(model=model, processor=TierProcessor(processor.image_processor, tokenizer))
    with pytest.raises(ValueError, match=r"token id 500, but the model's vocabulary has \d+"):
        read(picture, findings=["effusion"])
    with pytest.raises(ValueError, match="has 100 tokens, but the text encoder has 24 positions"):
        read(picture, findings=["unknown " * 98])


def test_image_classification_does_not_turn_16_bits_white(read, tmp_path):
    grey = np.random.default_rng(5).integers(1, 255, (32, 32), dtype=np.uint8)
    grey[0, :2] = 0, 255
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 16).save(tmp_path / "16.png")
    read.save_pretrained(tmp_path / "model")
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path / "model"), device="cpu")
    answers = [
        {row["label"]: row["score"] for row in classify(str(tmp_path / f"{bits}.png"), candidate_labels=FINDINGS)}
        for bits in (8, 16)
    ]
    assert answers[0] == pytest.approx(answers[1], abs=1e-5)
    white = classify(Image.new("L", (32, 32), 255), candidate_labels=FINDINGS)
    assert {row["label"]: row["score"] for row in white} != pytest.approx(answers[0], abs=1e-3)
    assert len(classify(str(tmp_path / "8.png"), candidate_labels=["left " * 300, "no"])) == 2, "long texts are cut"


def test_a_pipeline_made_by_hand_warns_of_16_bits(read, tmp_path, recwarn):
    """transformers' own, with a plain image processor and a tokenizer, turns them white."""
    parts = {"tokenizer": read.processor.tokenizer, "image_processor": read.processor.image_processor}
    classify = ZeroShotImageClassificationPipeline(model=read.model, **parts)
    values = np.linspace(0, 255, 80 * 80).reshape(80, 80)  # smooth, as a radiograph
    framed = np.pad(values, 20)
    pictures = {
        "8": values,
        "8 framed": framed,
        "12": values * 16,
        "12 framed": framed * 16,
        "16": 65535 - values * 16,
    }
    for name, pixels in pictures.items():
        Image.fromarray(pixels.astype(np.uint8 if name[0] == "8" else np.uint16)).save(tmp_path / f"{name}.png")
    for name in ("8", "8 framed"):
        classify(str(tmp_path / f"{name}.png"), candidate_labels=FINDINGS)
    assert not [warning for warning in recwarn.list if "white" in str(warning.message)]
    for name in ("12", "12 framed", "16"):
        with pytest.warns(UserWarning, match="1 of 1 pictures are mostly pure white.*16 bits.*load_radiograph"):
            classify(str(tmp_path / f"{name}.png"), candidate_labels=FINDINGS)
    clipped = Image.open(tmp_path / "12.png").convert("RGB")
    with pytest.warns(UserWarning, match="pure white"):
        read.model.get_image_features(**read.processor.image_processor(clipped, return_tensors="pt"))


def test_image_classification_of_other_models_stays_as_it_is(clip_model, processor, picture, tmp_path):
    picture.convert("RGB").save(tmp_path / "x.png")
    options = {"model": clip_model, "tokenizer": processor.tokenizer, "image_processor": processor.image_processor}
    ours = pipeline("zero-shot-image-classification", **options)
    theirs = ZeroShotImageClassificationPipeline(**options)
    labels = ["left effusion", "no effusion"]
    path = str(tmp_path / "x.png")
    assert ours(path, candidate_labels=labels) == theirs(path, candidate_labels=labels)
