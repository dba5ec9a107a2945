# Licensed under the Apache License, Version 2.0.
"""The pass of a model over a data set: the same numbers however it is cut up, stopped and gone on with."""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.ndimage import gaussian_filter

from modeling_tier import TierModel, text_image_entropy
from modeling_tier.data import load_pairs
from modeling_tier.evaluation import load_negation, load_no_finding, load_prompts
from modeling_tier.evaluation.fingerprints import data_fingerprint, model_fingerprint, table_fingerprint
from modeling_tier.evaluation.localisation import patch_mask, picture_mask
from modeling_tier.evaluation.scored import ImageScores, join
from modeling_tier.evaluation.scoring import Probes, ScoringOptions, _parts, read_parts, score


ROOT = Path(__file__).parents[2]
BATCH = 6
OPTIONS = ScoringOptions(batch_size=BATCH, progress=False)


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


@pytest.fixture(scope="module")
def pairs():
    return load_pairs("synthetic", "test", num_images=130, image_size=40, seed=2)  # 22 batches


@pytest.fixture
def scored(model, processor, pairs):
    """With a cache of one's own or without."""

    def run(cache=None, process=(0, 1), **options):
        prompts, no_finding = load_prompts("synthetic"), load_no_finding("synthetic")
        options = {"batch_size": BATCH, "thorough": True, "progress": False} | options
        options = ScoringOptions(**options, no_finding=no_finding)
        parts = score(model, processor, pairs, prompts, options, cache=cache, process=process)
        return join(parts) if cache is None else None

    return run


def arrays(part, prefix=""):
    """Every array below a dataclass or dict, by its path."""
    if isinstance(part, np.ndarray | int):
        return {prefix: np.asarray(part)}
    content = part if isinstance(part, dict) else vars(part)
    return {
        k: v for n, value in content.items() if value is not None for k, v in arrays(value, f"{prefix}.{n}").items()
    }


def assert_same(a, b):
    a, b = arrays(a), arrays(b)
    assert a.keys() == b.keys() and len(a) > 10
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.slow
def test_a_cache_and_any_number_of_processes_give_the_same_bits(scored, pairs, tmp_path):
    whole = scored()
    assert whole.images.rows.tolist() == list(range(130)) and len(whole.maps.row) > 130
    scored(tmp_path / "one")
    assert_same(read_parts(tmp_path / "one", pairs, BATCH), whole)
    for process in (2, 0, 1):
        scored(tmp_path / "three", process=(process, 3))
    assert_same(read_parts(tmp_path / "three", pairs, BATCH), whole)
    assert_same(scored(num_workers=2), whole)


def test_what_is_in_the_cache_is_not_computed_again_and_a_torn_part_is(scored, model, pairs, tmp_path, monkeypatch):
    calls = []
    forward = TierModel.forward

    def counted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(TierModel, "forward", counted)
    with pytest.raises(KeyboardInterrupt):
        scored(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"part-{i:05d}.npz" for i in range(11)]
    scored(tmp_path)
    assert len(calls) == 12 + 11, "22 batches, 11 of them in the cache"
    assert_same(read_parts(tmp_path, pairs, BATCH), scored())
    before = len(calls)
    scored(tmp_path)
    assert len(calls) == before
    part = tmp_path / "part-00001.npz"
    whole = part.read_bytes()
    another = (tmp_path / "part-00002.npz").read_bytes()
    np.savez(tmp_path / "other.npz", rows=np.arange(6))  # with the fields of an earlier version, for instance
    other = (tmp_path / "other.npz").read_bytes()
    (tmp_path / "other.npz").unlink()
    for number, content in enumerate((whole[:-200], b"", b"PK", another, other), 1):
        part.write_bytes(content)
        scored(tmp_path)
        assert len(calls) == before + number and len(part.read_bytes()) == len(whole)
    assert_same(read_parts(tmp_path, pairs, BATCH), scored())


@pytest.mark.slow
def test_an_evaluation_that_was_killed_goes_on(model, processor, tmp_path):
    folder, out = tmp_path / "model", tmp_path / "out"
    model.save_pretrained(folder), processor.save_pretrained(folder)
    command = [sys.executable, "evaluate_zeroshot.py", "--model", str(folder), "--output_dir", str(out)]
    command += ["--num_images", "240", "--batch_size", "2", "--examples", "0", "--resamples", "20"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)

    def parts():
        return sorted(out.glob("cache/*/part-*.npz"))

    deadline = time.monotonic() + 120
    while len(parts()) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    written = {path: os.stat(path).st_mtime_ns for path in parts()}
    assert 2 <= len(written) < 120
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert len(parts()) == 120 and {path: os.stat(path).st_mtime_ns for path in written} == written
    pairs, prompts = load_pairs("synthetic", "test", num_images=240), load_prompts("synthetic")
    options = ScoringOptions(batch_size=2, thorough=True, no_finding=load_no_finding("synthetic"), progress=False)
    whole = join(score(model, processor, pairs, prompts, options))
    gone_on = read_parts(parts()[0].parent, pairs, 2)
    whole, gone_on = arrays(whole), arrays(gone_on)
    for name in whole:  # another process may have another number of threads
        compare = np.testing.assert_array_equal if whole[name].dtype.kind in "iU" else np.testing.assert_allclose
        compare(gone_on[name], whole[name], **({} if whole[name].dtype.kind in "iU" else {"atol": 1e-4, "rtol": 1e-3}))
    assert json.loads((out / "metrics.json").read_text())["metrics"]["num_images"] == 240


def test_cosines_peaks_and_entropies_with_padding(scored, model, processor, pairs):
    """Against the model itself, batch by batch."""
    whole, prompts = scored(), load_prompts("synthetic")
    with torch.no_grad():
        sides = {}
        for key in ("positive", "negative"):
            rows = [
                torch.stack([unit(model.get_text_features(**processor(text=s)).pooler_output[0]) for s in lists[key]])
                for lists in prompts.values()
            ]
            sides[key] = torch.stack([unit(row.mean(dim=0)) for row in rows])
        for start in range(0, 24, BATCH):
            rows = pairs[start : start + BATCH]
            inputs = processor(images=rows["image"], text=rows["text"])
            out = model(**inputs)
            here = slice(start, start + BATCH)
            for key, embeds in sides.items():
                np.testing.assert_allclose(getattr(whole.images, key)[here], out.image_embeds @ embeds.T, atol=1e-5)
            best = (out.patch_embeds @ sides["positive"].T).argmax(dim=1)
            np.testing.assert_array_equal(whole.images.peaks[here], best)
            for i in range(BATCH):
                pair = out.token_embeds[i : i + 1], out.patch_embeds[i : i + 1]
                counted = inputs["attention_mask"][i : i + 1]
                for values, mask in ((whole.pairs.padded, None), (whole.pairs.sparsity, counted)):
                    token, patch = text_image_entropy(*pair, mask)
                    assert values["token_entropy"][start + i] == pytest.approx(token.item(), abs=1e-5)
                    assert values["patch_entropy"][start + i] == pytest.approx(patch.item(), abs=1e-5)


def test_cosines_with_the_sentences_of_negation(scored, model, processor, pairs):
    negation = load_negation("synthetic", load_prompts("synthetic"))
    assert scored().images.negated is None, "not asked for"
    images = scored(negation=negation, localisation=False).images
    inputs = processor(images=pairs[:BATCH]["image"])
    with torch.no_grad():
        embeds = unit(model.get_image_features(**inputs).pooler_output)
        for values, kind, start in (
            (images.affirmed, "positive", "There is "),
            (images.negated, "negative", "There is no "),
        ):
            sentences = [lists[kind][0] for lists in negation.values()]
            assert all(sentence.startswith(start) for sentence in sentences)
            texts = unit(model.get_text_features(**processor(text=sentences)).pooler_output)
            np.testing.assert_allclose(values[:BATCH], embeds @ texts.T, atol=1e-5)


def cnr(values, inside):
    a, b = values[inside].astype(np.float64), values[~inside].astype(np.float64)
    return (a.mean() - b.mean()) / np.sqrt(a.var() + b.var())


def test_every_way_of_looking_at_a_map(scored, model, processor, pairs):
    """Against the model's own maps: sentence and tokens, pixels and patches, boxes and masks, plain and subtracted."""
    whole = scored()
    with torch.no_grad():
        rows = [
            unit(model.get_text_features(**processor(text=s)).pooler_output[0]) for s in load_no_finding("synthetic")
        ]
        no_finding = unit(torch.stack(rows).mean(dim=0))
    checked, tokens = 0, 0
    for place in range(0, len(whole.maps.row)):
        if whole.maps.token[place] != "" or checked == 12:
            continue
        row, phrase = pairs[int(whole.maps.row[place])], str(whole.maps.phrase[place])
        regions = [region for region in row["regions"] if region["phrase"] == phrase]
        inputs = processor(images=row["image"], text=phrase)
        maps = {}
        with torch.no_grad():
            patches = model(**inputs).patch_embeds[0]
            for resolution, size in (("pixel", (32, 32)), ("patch", None)):
                own_maps = model.get_similarity_map(**inputs, size=size)
                empty = (patches @ no_finding).view(1, 1, *model.get_similarity_map(**inputs).text_to_patch.shape[1:])
                if size:
                    empty = torch.nn.functional.interpolate(empty, size, mode="bilinear", align_corners=False)
                # The sentence, then its tokens between [CLS] and the full stop before [SEP].
                plain = torch.cat([own_maps.text_to_patch, own_maps.token_to_patch[0, 1:-2]])
                maps[resolution, "plain"], maps[resolution, "minus_no_finding"] = plain, plain - empty[0]
                own_maps = model.get_similarity_map(**inputs, size=size, kind="contribution")
                maps[resolution, "contribution"] = torch.cat(
                    [own_maps.text_to_patch, own_maps.token_to_patch[0, 1:-2]]
                )
        grid = tuple(maps["patch", "plain"].shape[1:])
        mask = picture_mask([region["mask"] for region in regions], processor.image_processor)
        box = np.zeros((40, 40), bool)
        for region in regions:
            x0, y0, x1, y1 = map(int, region["box"])
            box[y0:y1, x0:x1] = True
        assert mask.shape == (32, 32) and (mask[np.ix_(*[np.arange(32)] * 2)] <= 1).all()
        number = len(maps["pixel", "plain"])
        assert whole.maps.phrase[place : place + number].tolist() == [phrase] * number
        assert whole.maps.token[place + 1 : place + number].tolist() == processor.tokenizer.tokenize(phrase)[:-1]
        for resolution, kind in itertools.product(("pixel", "patch"), ("plain", "minus_no_finding", "contribution")):
            inside = mask if resolution == "pixel" else patch_mask(mask, grid)
            for i, values in enumerate(maps[resolution, kind].numpy()):
                name = f"mask/{resolution}/{kind}"
                if inside.any() and not inside.all():
                    assert whole.maps.measured[name]["cnr"][place + i] == pytest.approx(cnr(values, inside), abs=1e-3)
                    peak = np.unravel_index(values.argmax(), values.shape)
                    assert whole.maps.measured[name]["hit"][place + i] == inside[peak]
                else:
                    assert np.isnan(whole.maps.measured[name]["cnr"][place + i])
        checked, tokens = checked + 1, tokens + number - 1
    assert checked == 12 and tokens > 24


@pytest.mark.parametrize("resolution", ["pixel", pytest.param("patch", marks=pytest.mark.slow)])
def test_smoothed_maps_are_those_of_scipys_filter(scored, model, processor, pairs, resolution):
    """Against the model's own maps of each phrase, filtered by itself, then scaled up and measured by definition."""
    plain, smooth = scored(smoothing=0.0), scored(smoothing=0.7)
    assert_same(plain, scored())
    before, after = arrays(plain), arrays(smooth)
    same = {name for name in before if before[name].tobytes() == after[name].tobytes()}
    assert len(same) < len(before) == len(after)
    assert all(".measured." in name and not name.endswith(".chance") for name in before.keys() - same)
    sentences = np.flatnonzero(plain.maps.token == "")[:12]
    for i in sentences:
        row, phrase = pairs[int(smooth.maps.row[i])], str(smooth.maps.phrase[i])
        with torch.no_grad():
            own = model.get_similarity_map(**processor(images=row["image"], text=phrase)).text_to_patch[0]
        filtered = torch.from_numpy(gaussian_filter(own.numpy(), 0.7, mode="reflect", truncate=4.0))
        mask = picture_mask(
            [region["mask"] for region in row["regions"] if region["phrase"] == phrase], processor.image_processor
        )
        if resolution == "pixel":
            filtered = torch.nn.functional.interpolate(filtered[None, None], (32, 32), mode="bilinear")[0, 0]
        else:
            mask = patch_mask(mask, tuple(own.shape))
        if mask.any() and not mask.all():
            expected = cnr(filtered.numpy(), mask)
            assert smooth.maps.measured[f"mask/{resolution}/plain"]["cnr"][i] == pytest.approx(expected, abs=1e-3)


def test_patches_of_a_region():
    mask = np.zeros((8, 8), bool)
    mask[0:4, 0:6] = True
    assert patch_mask(mask, (2, 2)).tolist() == [[True, True], [False, False]]
    mask[0:4, 4:6] = False
    mask[0:4, 4:5] = True
    assert patch_mask(mask, (2, 2)).tolist() == [[True, False], [False, False]], "a quarter is too little"
    tiny = np.zeros((8, 8), bool)
    tiny[5, 6] = True
    assert patch_mask(tiny, (2, 2)).tolist() == [[False, False], [False, True]], "but no place is nowhere"


def test_half_precision_is_close(scored):
    whole, half = scored(), scored(dtype="bfloat16")
    for name in (".images.positive", ".images.negative", ".pairs.sparsity.token_entropy"):
        a, b = arrays(whole)[name], arrays(half)[name]
        assert np.abs(a - b).max() < 0.03 and not np.array_equal(a, b)


def test_pictures_without_texts_cost_no_text_encoding(model, processor, pairs, monkeypatch):
    lengths = []
    forward = TierModel.forward
    monkeypatch.setattr(
        TierModel,
        "forward",
        lambda self, **inputs: lengths.append(len(inputs["input_ids"])) or forward(self, **inputs),
    )
    rest = (
        pairs.select(range(12)).remove_columns("text").add_column("text", [None] * 12, feature=pairs.features["text"])
    )
    without = join(score(model, processor, rest, load_prompts("synthetic"), OPTIONS))
    assert lengths == [1, 1] and without.pairs is None
    texts = join(score(model, processor, pairs.select(range(12)), load_prompts("synthetic"), OPTIONS))
    np.testing.assert_allclose(without.images.positive, texts.images.positive, atol=1e-6)


def test_a_phrase_is_embedded_once_and_its_words_are_its_tokens(model, processor, monkeypatch):
    calls = []
    original = TierModel.encode_text
    monkeypatch.setattr(TierModel, "encode_text", lambda self, **k: calls.append(1) or original(self, **k))
    with torch.inference_mode():
        probes = Probes(model, processor, {}, [], torch.autocast("cpu", enabled=False))
        first, again = probes.phrase("Left pleural effusion."), probes.phrase("Left pleural effusion.")
    assert first is again and len(calls) == 1
    assert first.tokens == ["left", "pleural", "effusion"] and first.embeds.shape == (4, 16)
    assert probes.phrase("Left effluent.").tokens == ["left", "[UNK]"], "an unknown word is a word"
    torch.testing.assert_close(first.embeds.norm(dim=1), torch.ones(4))


def test_nan_stops_with_the_name(model, processor, pairs, tmp_path):
    with torch.no_grad():
        model.text_projection.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=f"NaN for the text of {pairs[0]['image_id']}"):
        score(model, processor, pairs, {}, OPTIONS)
    with pytest.raises(ValueError, match="NaN for the sentence 'There is cardiomegaly"):
        score(model, processor, pairs, load_prompts("synthetic"), OPTIONS, cache=tmp_path)
    rest = pairs.remove_columns("text").add_column("text", [None] * len(pairs), feature=pairs.features["text"])
    phrase = next(region["phrase"] for row in pairs for region in row["regions"])
    with pytest.raises(ValueError, match=f"NaN for the sentence '{phrase}'"):
        score(model, processor, rest, {}, OPTIONS, cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_large_set_has_few_parts_and_a_small_one_a_batch_each():
    for number in (1, 11, 1024, 1025, 5893):
        parts = _parts(number)
        assert [i for part in parts for i in part] == list(range(number)) and len(parts) <= 1024
    assert {len(part) for part in _parts(1000)} == {1}


def test_fingerprints_depend_on_content_and_not_on_paths(model, processor, pairs, tmp_path):
    some = pairs.select(range(8))
    rows = ImageScores(np.arange(8), np.array([f"{i}" for i in range(8)]), np.empty((8, 2)), np.full(8, 4))
    base = data_fingerprint(some, rows)
    assert base == data_fingerprint(pairs.select(range(8)), rows)
    assert base != data_fingerprint(some, dataclasses.replace(rows, digests=np.array([*"0123456x"])))
    changed = Dataset.from_list(
        [row | ({"text": "No."} if i == 3 else {}) for i, row in enumerate(some)], pairs.features
    )
    assert base != data_fingerprint(changed, rows) and table_fingerprint(some) != table_fingerprint(changed)
    assert table_fingerprint(some) == table_fingerprint(pairs.select(range(8)))

    files = []
    for i, row in enumerate(some):
        (tmp_path / "a").mkdir(exist_ok=True)
        row["image"].save(tmp_path / "a" / f"{i}.png")
        files.append({k: v for k, v in row.items() if k not in ("image", "regions")})
    features = {name: kind for name, kind in pairs.features.items() if name != "regions"}

    def at(folder):
        cells = [{"image": str(folder / f"{i}.png")} | row for i, row in enumerate(files)]
        return Dataset.from_list(cells, type(pairs.features)(features))

    before = table_fingerprint(at(tmp_path / "a"))
    scored = [join(score(model, processor, at(tmp_path / "a"), {}, ScoringOptions(batch_size=4, progress=False)))]
    (tmp_path / "a" / "3.png").touch()
    assert table_fingerprint(at(tmp_path / "a")) != before, "a file that was written again may have changed"
    (tmp_path / "a").rename(tmp_path / "b")
    scored.append(join(score(model, processor, at(tmp_path / "b"), {}, ScoringOptions(batch_size=4, progress=False))))
    assert data_fingerprint(at(tmp_path / "b"), scored[1].images) == data_fingerprint(
        at(tmp_path / "b"), scored[0].images
    )
    (tmp_path / "b" / "3.png").write_bytes((tmp_path / "b" / "4.png").read_bytes())
    other = join(score(model, processor, at(tmp_path / "b"), {}, ScoringOptions(batch_size=4, progress=False)))
    assert data_fingerprint(at(tmp_path / "b"), other.images) != data_fingerprint(at(tmp_path / "b"), scored[0].images)

    model.save_pretrained(tmp_path / "model")
    loaded = TierModel.from_pretrained(tmp_path / "model")
    assert model_fingerprint(loaded, processor) == model_fingerprint(model, processor)
    with torch.no_grad():
        loaded.logit_scale += 1e-3
    assert model_fingerprint(loaded, processor) != model_fingerprint(model, processor)
    processor.image_processor.image_mean = [0.5, 0.5, 0.5]
    assert len({model_fingerprint(entry, processor) for entry in (model, loaded)}) == 2
