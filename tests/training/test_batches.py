# Licensed under the Apache License, Version 2.0.
"""Batches: what they hold, augmented by seed, epoch and picture alone; the order of data sets and streams; a run."""

import copy
import csv
import io
import json
import pickle
import tarfile
import traceback
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from datasets import Dataset, Features, IterableDataset
from PIL import Image
from safetensors.torch import load_file
from tokenizers import normalizers
from tokenizers.processors import TemplateProcessing
from transformers import CLIPImageProcessor, ViTImageProcessor

from modeling_tier import TierProcessor
from modeling_tier.data import load_pairs
from modeling_tier.data.columns import pair_features
from modeling_tier.data.transforms import AUGMENTATIONS, augment, generator
from modeling_tier.evaluation import scoring
from modeling_tier.training import batches as batches_module
from modeling_tier.training import load_config, train
from modeling_tier.training.batches import Batches


ROOT = Path(__file__).parents[2]


class OneOf:
    """What `Batches` needs of an Accelerator."""

    def __init__(self, num_processes=1, process_index=0):
        self.num_processes, self.process_index, self.device = num_processes, process_index, torch.device("cpu")


def picture(i: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(i).integers(0, 256, (36 + i % 5, 40), dtype=np.uint8))


def encoded(image: Image.Image, form: str) -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def spell(i: int) -> str:
    """A number in two words of the tokenizer, to be known again by `number`."""
    return " ".join("right" if i >> bit & 1 else "left" for bit in range(9))


def numbers(batch: dict, tokenizer) -> list[int]:
    right = tokenizer.convert_tokens_to_ids("right")
    return [sum((token == right) << bit for bit, token in enumerate(row[1:10].tolist())) for row in batch["input_ids"]]


def make_pairs(count: int, studies=None, subjects=None) -> Dataset:
    columns = {
        "image": [{"bytes": encoded(picture(i), "PNG"), "path": None} for i in range(count)],
        "text": [spell(i) for i in range(count)],
        "subject_id": subjects or [None] * count,
        "study_id": studies or [None] * count,
        "image_id": [f"picture {i}" for i in range(count)],
        "view": [""] * count,
    }
    return Dataset.from_dict(columns, features=pair_features(ids="string"))


def batches(pairs, processor, *options, process=0, processes=1, size=4, workers=0) -> Batches:
    options = [*options, f"--training.batch_size={size}", f"--data.num_workers={workers}"]
    config = load_config(ROOT / "configs" / "demo.yaml", list(options))
    return Batches(pairs, processor, config, OneOf(processes, process))


def order(made, tokenizer, epoch=0, first_step=0) -> list[list[int]]:
    return [numbers(batch, tokenizer) for batch in made.of_epoch(epoch, first_step)]


def flat(lists) -> list[int]:
    return [i for part in lists for i in part]


# What a batch holds


@pytest.mark.parametrize("stored", ["path", "bytes"])
@pytest.mark.parametrize("kind", ["grey JPEG", "RGB PNG", "16-bit PNG", "palette PNG", "grey TIFF", "RGBA PNG"])
def test_without_augmentation_a_batch_holds_what_the_processor_and_the_evaluation_see(
    tmp_path, processor, kind, stored
):
    grey = np.random.default_rng(0).integers(0, 256, (45, 61), dtype=np.uint8)
    mode, form = kind.split()
    image = {
        "grey": lambda: Image.fromarray(grey),
        "RGB": lambda: Image.fromarray(np.stack([grey, grey.T.reshape(45, 61), 255 - grey], 2)),
        "16-bit": lambda: Image.fromarray(grey.astype(np.uint16) * 201 + 77),
        "palette": lambda: Image.fromarray(np.stack([grey, grey // 2, grey], 2)).quantize(64),
        "RGBA": lambda: Image.fromarray(np.stack([grey] * 4, 2)),
    }[mode]()
    path = tmp_path / f"a.{form.lower()}"
    path.write_bytes(encoded(image, form))
    cell = {"path": str(path), "bytes": None} if stored == "path" else {"path": None, "bytes": path.read_bytes()}
    row = {"image": [cell], "text": ["No effusion."], "image_id": ["a"]}
    features = {name: kind for name, kind in pair_features(ids="string").items() if name in row}
    pairs = Dataset.from_dict(row, features=Features(features))
    (batch,) = batches(pairs, processor, size=1).of_epoch(0)
    with Image.open(path) as opened:
        expected = processor(images=opened, text="No effusion.")
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])
    assert torch.equal(batch["pixel_values"], processor(images=str(path))["pixel_values"])
    assert torch.equal(batch["input_ids"], expected["input_ids"]) and set(batch) == set(expected)
    evaluated = scoring.Batches(pairs, processor, 1, with_text=True)[0]
    assert evaluated["rows"] == [0] and evaluated["inputs"].keys() == batch.keys()
    assert all(torch.equal(batch[name], evaluated["inputs"][name]) for name in batch)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_augmented_batch_holds_the_augmentation_of_seed_epoch_and_picture(processor, tokenizer, name):
    made = batches(make_pairs(8), processor, f"--data.augmentation={name}", "--seed=5")
    seen = []
    for batch in made.of_epoch(3):
        for i, pixels in zip(numbers(batch, tokenizer), batch["pixel_values"]):
            image = augment(picture(i), AUGMENTATIONS[name], (32, 32), generator(5, 3, f"picture {i}"))
            assert torch.equal(pixels, processor(images=image)["pixel_values"][0])
            seen.append(i)
    assert sorted(seen) == list(range(8))


def versions(tokenizer, *made, epoch=0, first_step=0) -> dict[int, torch.Tensor]:
    """Pixels by picture, from all processes."""
    result = {}
    for one in made:
        for batch in one.of_epoch(epoch, first_step):
            result |= dict(zip(numbers(batch, tokenizer), batch["pixel_values"]))
    return result


def test_an_augmentation_does_not_depend_on_processes_workers_order_or_a_resume(processor, tokenizer):
    pairs, options = make_pairs(24), ["--data.augmentation=paper"]
    expected = versions(tokenizer, batches(pairs, processor, *options))
    assert len(expected) == 24 and {pixels.shape for pixels in expected.values()} == {(3, 32, 32)}
    others = {"workers": versions(tokenizer, batches(pairs, processor, *options, workers=2))}
    for workers in (0, 2):
        both = [batches(pairs, processor, *options, size=2, process=i, processes=2, workers=workers) for i in range(2)]
        others[f"two processes with {workers} workers"] = versions(tokenizer, *both)
    backwards = pairs.select(range(23, -1, -1))
    others["another order"] = versions(tokenizer, batches(backwards, processor, *options))
    others["a stream"] = versions(
        tokenizer,
        batches(pairs.to_iterable_dataset(3), processor, *options, "--training.steps_per_epoch=6", workers=2),
    )
    for way, result in others.items():
        assert result.keys() == expected.keys(), way
        assert all(torch.equal(result[i], expected[i]) for i in expected), way
    resumed = versions(tokenizer, batches(pairs, processor, *options, workers=2), first_step=4)
    assert len(resumed) == 8 and all(torch.equal(resumed[i], expected[i]) for i in resumed)
    for way, result in {
        "epoch": versions(tokenizer, batches(pairs, processor, *options), epoch=1),
        "seed": versions(tokenizer, batches(pairs, processor, *options, "--seed=1")),
    }.items():
        assert not any(torch.equal(result[i], expected[i]) for i in expected), way


def test_an_augmented_picture_is_not_resized_and_cropped_again(tokenizer):
    image_processor = CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    processor = TierProcessor(image_processor=image_processor, tokenizer=tokenizer)
    (batch,) = batches(make_pairs(1), processor, "--data.augmentation=vit", size=1).of_epoch(0)
    image = augment(picture(0), AUGMENTATIONS["vit"], (32, 32), generator(0, 0, "picture 0"))
    expected = processor(images=image, do_resize=False, do_center_crop=False)
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])


def test_pictures_get_the_size_that_the_processor_asks_for(tokenizer):
    image_processor = ViTImageProcessor(size={"height": 24, "width": 40})
    processor = TierProcessor(image_processor=image_processor, tokenizer=tokenizer)
    for augmentation in ("none", "vit"):
        made = batches(make_pairs(4), processor, f"--data.augmentation={augmentation}")
        assert [batch["pixel_values"].shape for batch in made.of_epoch(0)] == [(4, 3, 24, 40)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("count", [5, 12])
def test_texts_of_small_and_of_large_sets_are_what_the_processor_makes_of_them(monkeypatch, processor, side, count):
    monkeypatch.setattr(batches_module, "SMALL_SET", 5)
    processor.tokenizer = copy.deepcopy(processor.tokenizer)  # which the tests share
    processor.tokenizer.padding_side = side
    processor.tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    processor.tokenizer.pad_token = "left"  # of another number than 0
    texts = [" ".join(["effusion"] * (9 * i % 31 + 1)) for i in range(count)]
    pairs = make_pairs(count).remove_columns("text").add_column("text", texts)
    made = batches(pairs, processor, size=5)
    assert (made.tokens is None) == (count == 12)
    for batch in made.of_epoch(0):
        seen = [texts[int(image_id.split()[1])] for image_id in made.image_ids]
        expected = processor(text=seen)
        assert set(batch) == {"pixel_values", *expected} and len({len(text) for text in seen}) > 1
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_texts_without_tokens_and_settings_of_a_tokenizer_are_what_the_processor_makes_of_them(processor, tokenizer):
    processor.tokenizer = tokenizer = copy.deepcopy(tokenizer)  # which the tests share
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    tokenizer._tokenizer.normalizer = normalizers.Replace("gone", "")
    texts = ["gone", "effusion", "gone", "left effusion"]
    for settings in ({}, {"max_length": 1}, {"return_token_type_ids": True}, {"padding": "max_length"}):
        processor.tokenizer.init_kwargs |= settings
        made = batches(make_pairs(4).remove_columns("text").add_column("text", texts), processor, size=4)
        assert (made.tokens is None) == bool(settings)
        for epoch in range(3):
            (batch,) = made.of_epoch(epoch)
            expected = processor(text=[texts[int(image_id.split()[1])] for image_id in made.image_ids])
            assert set(batch) == {"pixel_values", *expected}
            for name in expected:
                assert torch.equal(batch[name], expected[name].long()) and batch[name].dtype == torch.int64
        for name in settings:
            del processor.tokenizer.init_kwargs[name]


def test_pictures_of_the_models_size_and_others_may_stand_in_one_batch(processor):
    side = processor.image_processor.crop_size["height"]
    pictures = [picture(0).resize((side, side)), picture(1), picture(2).resize((side, side)).convert("RGB")]
    rows = make_pairs(3).cast_column("image", datasets.Image(decode=False)).to_list()
    for row, image in zip(rows, pictures):
        row["image"]["bytes"] = encoded(image, "PNG")
    pairs = Dataset.from_list(rows, features=pair_features(ids="string"))
    for chosen in ([0, 2], [0, 1, 2]):
        made = batches(pairs.select(chosen), processor, size=len(chosen))
        assert made.table is not None
        (batch,) = made.of_epoch(0)
        expected = processor(images=[pictures[int(image_id.split()[1])] for image_id in made.image_ids])
        assert torch.equal(batch["pixel_values"], expected["pixel_values"])


def with_cut_pictures(count: int, cut: tuple[int, ...], streaming: bool = False) -> Dataset | IterableDataset:
    rows = make_pairs(count).cast_column("image", datasets.Image(decode=False)).to_list()
    for i in cut:
        rows[i]["image"]["bytes"] = rows[i]["image"]["bytes"][:80]
    pairs = Dataset.from_list(rows, features=pair_features(ids="string"))
    return pairs.to_iterable_dataset(2) if streaming else pairs


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("streaming", [False, True])
def test_an_unreadable_picture_is_passed_over_and_named(processor, tokenizer, tmp_path, workers, streaming):
    """Pictures that are cut off have their text in no step; what is beside them in a batch is unchanged."""
    options = [f"--output_dir={tmp_path}", "--data.augmentation=paper", "--data.max_unreadable=0.1"]
    options += ["--training.steps_per_epoch=9"] * streaming
    made = batches(with_cut_pictures(40, (5, 17), streaming), processor, *options, workers=workers)
    with pytest.warns(UserWarning, match="image picture (5|17) cannot be read.*rejected.csv"):
        seen = list(made.of_epoch(0))
    assert len(seen) == 10 - streaming and not {5, 17} & {i for batch in seen for i in numbers(batch, tokenizer)}
    for batch in seen:
        assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "pixel_values"} & set(batch)
        for i, pixels in zip(numbers(batch, tokenizer), batch["pixel_values"]):
            image = augment(picture(i), AUGMENTATIONS["paper"], (32, 32), generator(0, 0, f"picture {i}"))
            assert torch.equal(pixels, processor(images=image)["pixel_values"][0])
    named = [line.split(",")[1] for line in (tmp_path / "rejected.csv").read_text().splitlines()]
    assert named[0] == "row" and sorted(named[1:]) == ["picture 17", "picture 5"]
    list(made.of_epoch(1))
    assert len((tmp_path / "rejected.csv").read_text().splitlines()) == 3, "each once"


@pytest.mark.filterwarnings("ignore:.*cannot be read")
def test_a_step_has_the_same_pairs_for_every_number_of_processes_and_after_a_resume(processor, tokenizer, tmp_path):
    pairs, options = with_cut_pictures(48, (3, 20, 41)), [f"--output_dir={tmp_path}", "--data.max_unreadable=0.1"]
    alone = batches(pairs, processor, *options, size=8)
    two = [batches(pairs, processor, *options, size=4, process=i, processes=2, workers=2 * i) for i in range(2)]
    expected = order(alone, tokenizer)
    assert [a + b for a, b in zip(*(order(made, tokenizer) for made in two))] == expected
    assert order(alone, tokenizer, first_step=2) == expected[2:]
    assert order(alone, tokenizer, epoch=1) != expected
    readable = set(range(48)) - {3, 20, 41}
    assert readable == set(flat(expected)), "nothing else is lost for them"


@pytest.mark.filterwarnings("ignore:.*cannot be read")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("streaming", [False, True])
def test_too_many_unreadable_pictures_end_the_run(processor, tmp_path, workers, streaming):
    options = [f"--output_dir={tmp_path}", f"--data.max_unreadable={0 if streaming else 0.05}"]
    options += ["--training.steps_per_epoch=9"] * streaming
    pairs = with_cut_pictures(40, (1, 2, 3), streaming)
    message = r"The image picture \d cannot be read.*more than data\.max_unreadable"
    with pytest.raises(ValueError, match=message) as error:
        list(batches(pairs, processor, *options, workers=workers).of_epoch(0))
    traceback.clear_frames(error.tb)  # else the workers live on until the garbage is collected, and are slow to end
    if not streaming:
        pairs = with_cut_pictures(8, tuple(range(8)))
        with pytest.raises(ValueError, match=r"cannot be read.*Nor can 20 others"):
            list(batches(pairs, processor, "--data.max_unreadable=1", f"--output_dir={tmp_path}").of_epoch(0))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("streaming", [False, True])
def test_the_models_random_numbers_are_left_alone(processor, workers, streaming):
    pairs = make_pairs(12).to_iterable_dataset(2) if streaming else make_pairs(12)
    options = ["--data.augmentation=paper", *["--training.steps_per_epoch=5"] * streaming]
    made = batches(pairs, processor, *options, workers=workers)
    torch.manual_seed(3)
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].tolist()
    assert len(list(made.of_epoch(0))) == (5 if streaming else 3)
    assert torch.equal(torch.get_rng_state(), before) and np.random.get_state()[1].tolist() == before_numpy


# The order of a data set


def test_every_epoch_has_every_row_once_in_another_order(processor, tokenizer):
    made = batches(make_pairs(22), processor)
    orders = [flat(order(made, tokenizer, epoch)) for epoch in range(12)]
    assert all(len(set(rows)) == len(rows) == 20 for rows in orders)
    assert len({tuple(rows) for rows in orders}) == 12
    assert set(flat(orders)) == set(range(22)), "what is left over differs"
    assert flat(order(batches(make_pairs(22), processor, "--seed=1"), tokenizer)) != orders[0]
    assert flat(order(batches(make_pairs(22), processor), tokenizer)) == orders[0]


SIZES = [1, 2, 3, 4, 5, 1, 2, 3, 4, 5]
STUDIES = [f"study {i}" for i, size in enumerate(SIZES) for _ in range(size)]


@pytest.mark.parametrize("size", [5, 4])
def test_one_image_per_study(processor, tokenizer, size):
    made = batches(make_pairs(30, STUDIES), processor, "--data.one_image_per_study=true", size=size)
    met, left_over = Counter(), Counter()
    for epoch in range(60):
        rows = flat(order(made, tokenizer, epoch))
        studies = {STUDIES[i] for i in rows}
        assert len(studies) == len(rows) == 10 // size * size
        met.update(rows)
        left_over.update(set(STUDIES) - studies)
    assert set(met) == set(range(30)), "all images of all studies"
    assert max(met[i] for i in range(30) if STUDIES[i] == "study 4") < 30, "and none of five at the others' cost"
    assert set(left_over) == (set() if size == 5 else set(STUDIES))


def test_one_image_per_study_with_two_processes_and_a_resume(processor, tokenizer):
    options, pairs = ["--data.one_image_per_study=true"], make_pairs(30, STUDIES)
    alone = order(batches(pairs, processor, *options, size=2), tokenizer, 1)
    both = [batches(pairs, processor, *options, size=1, process=i, processes=2) for i in range(2)]
    assert [a + b for a, b in zip(*(order(made, tokenizer, 1) for made in both), strict=True)] == alone
    assert order(batches(pairs, processor, *options, size=2), tokenizer, 1, first_step=3) == alone[3:]


def test_studies_of_different_subjects_are_not_one_and_a_row_without_a_study_is_its_own(processor, tokenizer):
    pairs = make_pairs(8, ["1", "1", "1", "1", "2", None, None, None], [*"aabb", *"aaaa"])
    made = batches(pairs, processor, "--data.one_image_per_study=true", size=6)
    for epoch in range(5):
        (rows,) = order(made, tokenizer, epoch)
        assert sorted(rows)[2:] == [4, 5, 6, 7] and {0, 1} & set(rows) and {2, 3} & set(rows)


def test_studies_that_cannot_fill_a_step_are_reported(processor):
    options = ["--data.one_image_per_study=true"]
    with pytest.raises(ValueError, match="10 studies, fewer than one step needs: training.batch_size 6 x .* x 2 proc"):
        batches(make_pairs(30, STUDIES), processor, *options, size=6, processes=2)
    with pytest.raises(ValueError, match="no row has a study.*study_column"):
        batches(make_pairs(30), processor, *options)
    with pytest.raises(ValueError, match="one_image_per_study needs a data set that is not streamed"):
        batches(make_pairs(3).to_iterable_dataset(), processor, *options, "--training.steps_per_epoch=1")


# Streams


def a_stream(count: int, shards: int) -> IterableDataset:
    return make_pairs(count).to_iterable_dataset(num_shards=shards)


def of_stream(stream, processor, steps, *options, **more) -> Batches:
    return batches(stream, processor, f"--training.steps_per_epoch={steps}", *options, **more)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("processes", "shards"), [(1, 1), (1, 5), (2, 1), (2, 2), (2, 3), (2, 4), (2, 6), (3, 2), (3, 5)]
)
def test_every_row_of_a_stream_goes_to_one_process(processor, tokenizer, processes, shards, workers):
    """Twice through the stream, with shards that divide evenly among processes and workers and others that do not."""
    count, steps = 12 * processes, 2 * 3
    parts = []
    for process in range(processes):
        made = of_stream(
            a_stream(count, shards), processor, steps, process=process, processes=processes, workers=workers
        )
        parts.append(order(made, tokenizer, 1))
    assert [len(part) for part in parts] == [steps] * processes, "else the others would wait for ever"
    if shards % processes == 0 or shards == 1:  # processes have as many rows each
        for first in (0, 3):
            rows = flat(flat(part[first : first + 3]) for part in parts)
            assert sorted(rows) == list(range(count)), "all rows, each once"
    else:
        rows = flat(flat(part[:2]) for part in parts)
        assert len(set(rows)) == len(rows) == 8 * processes, "no row twice"
    everything = flat(flat(part) for part in parts)
    assert set(everything) == set(range(count)) and max(Counter(everything).values()) <= 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_process_with_fewer_rows_begins_again_and_keeps_up(processor, tokenizer, workers):
    large, small = make_pairs(26).select(range(20)), make_pairs(26).select(range(20, 26))
    stream = datasets.concatenate_datasets([large.to_iterable_dataset(), small.to_iterable_dataset()])
    assert stream.num_shards == 2
    for process in range(2):
        made = of_stream(stream, processor, 12, process=process, processes=2, workers=workers)
        assert [len(rows) for rows in order(made, tokenizer)] == [4] * 12


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_shards_smaller_than_a_batch_lose_nothing(processor, tokenizer, workers):
    made = of_stream(a_stream(12, 4), processor, 3, workers=workers)
    for epoch in range(3):
        assert sorted(flat(order(made, tokenizer, epoch))) == list(range(12))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_order_of_a_stream_depends_on_seed_and_epoch_alone(processor, tokenizer, workers):
    stream = a_stream(48, 4)
    again = lambda *options, epoch=0: flat(  # noqa: E731
        order(of_stream(stream, processor, 12, *options, workers=workers), tokenizer, epoch)
    )
    first = again()
    others = [again(epoch=1), again(epoch=2), again("--seed=1"), again("--seed=1", epoch=1)]
    assert all(sorted(rows) == list(range(48)) for rows in (first, *others))
    assert len({tuple(rows) for rows in (first, *others)}) == 5
    assert again() == first and first != sorted(first)
    made = of_stream(stream, processor, 12, workers=workers)
    assert [flat(order(made, tokenizer, epoch)) for epoch in (2, 0)] == [others[1], first], "in any order of epochs"


def test_the_buffer_bounds_how_far_a_row_is_moved(processor, tokenizer):
    stored = list(range(48))
    rows = {
        buffer: flat(order(of_stream(a_stream(48, 1), processor, 12, f"--data.shuffle_buffer={buffer}"), tokenizer))
        for buffer in (1, 4, 1000)
    }
    assert rows[1] == stored
    assert rows[4] != stored and max(i - place for place, i in enumerate(rows[4])) <= 4
    assert max(i - place for place, i in enumerate(rows[1000])) > 12


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_shorter_than_an_epoch_begins_again_in_another_order(processor, tokenizer, workers):
    made = of_stream(a_stream(10, 2), processor, 9, "--data.augmentation=paper", size=2, workers=workers)
    collected = list(made.of_epoch(0))
    passes = [flat(numbers(batch, tokenizer) for batch in collected[i : i + 5]) for i in (0, 5)]
    assert sorted(passes[0]) == list(range(10)) and len(set(passes[1])) == 8
    assert passes[0][:8] != passes[1]
    next_epochs = [flat(order(made, tokenizer, epoch)) for epoch in (1, 2)]
    assert passes[1] not in [rows[start : start + 8] for rows in next_epochs for start in (0, 10)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_resume_goes_on_at_the_same_batches(processor, workers, streaming):
    pairs = a_stream(24, 3) if streaming else make_pairs(24)
    options = ["--data.augmentation=paper", "--training.gradient_accumulation_steps=2"]
    options += ["--training.steps_per_epoch=4"] * streaming  # a third more than the stream has
    made = batches(pairs, processor, *options, size=3, workers=workers)
    whole = list(made.of_epoch(2))
    assert len(whole) == 8
    for first_step in (0, 1, 3, 4):
        resumed = list(made.of_epoch(2, first_step))
        assert len(resumed) == 8 - 2 * first_step
        for before, after in zip(whole[2 * first_step :], resumed):
            assert before.keys() == after.keys()
            assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_a_stream_cannot_do_is_refused_by_name(processor):
    with pytest.raises(ValueError, match="steps_per_epoch is needed for a stream"):
        batches(a_stream(8, 1), processor)
    with pytest.raises(ValueError, match="steps_per_epoch is for streams"):
        batches(make_pairs(8), processor, "--training.steps_per_epoch=2")
    for count, process, existing in ((3, 0, 3), (5, 1, 2), (1, 1, 0)):
        more = {"processes": 2, "process": process} if process else {}
        with pytest.raises(ValueError, match=rf"process {process} of .* {existing} pairs, fewer than one batch of 4"):
            list(of_stream(a_stream(count, 1), processor, 1, **more).of_epoch(0))


def write_shards(folder: Path, count: int, shards: int, blank=()) -> None:
    """WebDataset; `datasets` sleeps five seconds at the end of a shuffled stream of Parquet, and not of this."""
    folder.mkdir(exist_ok=True)
    for shard in range(shards):
        with tarfile.open(folder / f"train-{shard}.tar", "w") as file:
            for i in range(shard, count, shards):
                about = json.dumps({"patient": f"p{i // 2}", "uid": f"picture {i}"}).encode()
                members = {
                    "jpg": encoded(picture(i), "PNG"),
                    "txt": spell(i).encode() * (i not in blank),
                    "json": about,
                }
                for extension, content in members.items():
                    info = tarfile.TarInfo(f"{i:03}.{extension}")
                    info.size = len(content)
                    file.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_stream_of_files_is_one_of_these(tmp_path, processor, tokenizer, workers):
    """As `pairs` streams files: mapped, filtered and of no known types, which changes how `datasets` treats it."""
    write_shards(tmp_path, 30, 3, blank=(0, 11, 22))
    options = {"streaming": True, "id_column": "json.uid", "validation_share": 1e-9}
    stream = load_pairs("pairs", "train", data_dir=tmp_path, **options)
    augmentation = "--data.augmentation=vit"
    expected = versions(tokenizer, batches(make_pairs(30), processor, augmentation, size=30), epoch=4)
    result = []
    for process in range(2):
        made = of_stream(stream, processor, 4, augmentation, size=3, process=process, processes=2, workers=workers)
        for batch in made.of_epoch(4):
            for i, pixels in zip(numbers(batch, tokenizer), batch["pixel_values"]):
                assert torch.equal(pixels, expected[i])
                result.append(i)
    assert len(set(result)) == len(result) == 24 and not {0, 11, 22} & set(result)


def test_a_stream_can_be_sent_to_workers_that_are_not_forked(tmp_path, processor, tokenizer):
    write_shards(tmp_path, 24, 2)
    stream = load_pairs("pairs", "train", data_dir=tmp_path, streaming=True, validation_share=0.2)
    made = of_stream(stream, processor, 3, "--data.augmentation=vit")
    assert order(pickle.loads(pickle.dumps(made)), tokenizer, 1) == order(made, tokenizer, 1)


# A run from end to end


@pytest.fixture(autouse=True)
def own_accelerator_and_cache(tmp_path, monkeypatch):
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_csv(folder: Path, count=40) -> None:
    """Two pictures a study, one study a subject."""
    (folder / "pictures").mkdir(parents=True)
    with (folder / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "report", "patient", "study"])
        for i in range(count):
            picture(i).save(folder / "pictures" / f"{i}.png")
            writer.writerow(
                [f"pictures/{i}.png", f"No {'small' if i % 3 else 'large'}, left effusion.", i // 2, i // 2]
            )


def configured(folder: Path, kind: str, tokenizer, *options):
    """A tiny model on pairs of one's own, which have no prompts."""
    content = load_config(ROOT / "configs" / "demo.yaml", []).to_dict()
    data_dir = folder.parent / kind
    if not data_dir.exists():
        write_csv(data_dir) if kind == "csv" else write_shards(data_dir, 40, 4)
    data = {"data_dir": str(data_dir), "validation_share": 0.3}
    content["data"] = {"name": "pairs", "options": data, "augmentation": "paper", "num_workers": 2}
    if kind == "csv":
        data |= {"subject_column": "patient", "study_column": "study"}
        content["data"]["one_image_per_study"] = True
    else:
        data["subject_column"] = "json.patient"
        tokenizer.save_pretrained(folder.parent / "tokenizer")
        content["data"] |= {"train": {"streaming": True}, "max_text_tokens": 24}
        content["tokenizer"]["pretrained"] = str(folder.parent / "tokenizer")
    text = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 37, "hidden_dropout_prob": 0.1}
    vision = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    content["model"] |= {"image_size": 32, "projection_dim": 16}
    content["model"]["text_config"] |= text
    content["model"]["vision_config"] |= vision
    content["evaluation"] |= {"best_metric": "contrastive_loss", "every_epochs": 1}
    content["training"] |= {"batch_size": 4, "epochs": 2, "log_every": 1, "progress": False, "save_every_steps": 1}
    content["training"]["steps_per_epoch"] = 3 if kind == "stream" else None
    content["output_dir"] = str(folder)
    (folder.parent / "config.yaml").write_text(yaml.safe_dump(content))
    return load_config(folder.parent / "config.yaml", list(options))


def logged(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "pairs_per_second"} for line in lines]


class Stopped(Exception):
    pass


@pytest.mark.parametrize("kind", ["csv", "stream"])
def test_pairs_of_ones_own_from_files_to_a_model_stopped_and_resumed(tmp_path, tokenizer, kind):
    """Augmented by workers, from a csv file or streamed from shards; in the end bit for bit as without the stop."""
    best = train(configured(tmp_path / "whole", kind, tokenizer))
    assert best["validation"]["contrastive_loss"] > 0 and "auroc" not in best["validation"]
    values = [line["validation"]["contrastive_loss"] for line in logged(tmp_path / "whole") if "validation" in line]
    assert len(values) == 2 and best["validation"]["contrastive_loss"] == min(values)

    def stop(state):
        if state.step == 5:
            raise Stopped

    with pytest.raises(Stopped):
        train(configured(tmp_path / "stopped", kind, tokenizer), after_step=stop)
    state = json.loads((tmp_path / "stopped/checkpoints/last/trainer_state.json").read_text())
    assert (state["step"], state["epoch"], state["step_in_epoch"]) == (
        4,
        1,
        4 - len(logged_steps(tmp_path / "whole", 0)),
    )
    AcceleratorState._reset_state(reset_partial_state=True)
    train(configured(tmp_path / "stopped", kind, tokenizer, "--training.resume_from_checkpoint=last"))
    whole, resumed = (
        load_file(tmp_path / name / "checkpoints/last/model.safetensors") for name in ("whole", "stopped")
    )
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert logged(tmp_path / "whole")[-1] == logged(tmp_path / "stopped")[-1]


def logged_steps(folder: Path, epoch: int) -> list[dict]:
    return [line for line in logged(folder) if line["epoch"] == epoch and "loss" in line]


def test_a_stream_for_validation_or_for_a_new_tokenizer_is_refused(tmp_path, tokenizer):
    config = configured(tmp_path / "run", "stream", tokenizer, "--data.options.streaming=true")
    with pytest.raises(ValueError, match="validation set cannot be a stream.*data.train"):
        train(config)
    AcceleratorState._reset_state(reset_partial_state=True)
    config = configured(tmp_path / "other", "stream", tokenizer, "--tokenizer.pretrained=null")
    with pytest.raises(ValueError, match="tokenizer.pretrained is needed for a stream"):
        train(config)


def test_bad_rows_and_cut_pictures_of_ones_own_pairs_end_no_run(tmp_path, tokenizer):
    """One picture of the table is missing, another cut off: both are named in the folder of the run."""
    write_csv(tmp_path / "csv")
    (tmp_path / "csv" / "pictures" / "3.png").unlink()
    for name in ("8.png", "30.png"):  # of the validation and of the training set
        path = tmp_path / "csv" / "pictures" / name
        path.write_bytes(path.read_bytes()[:90])
    config = configured(tmp_path / "run", "csv", tokenizer, "--data.num_workers=0", "--training.epochs=1")
    with pytest.warns(UserWarning, match="1 of 40 rows skipped, such as line 5: there is no picture"):
        train(config)
    rejected = (tmp_path / "run" / "rejected.csv").read_text()
    assert "line 5,there is no picture" in rejected and "The image train row" in rejected
