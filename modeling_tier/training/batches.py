# Licensed under the Apache License, Version 2.0.
"""Batches of one process: which pairs, in which order, and from pictures and texts to tensors."""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from datasets.distributed import split_dataset_by_node
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from ..data.pictures import read_picture, undecoded
from ..data.rejected import FILE, RejectedRow, write_rejected
from ..data.transforms import (
    AUGMENTATIONS,
    augment,
    generator,
    input_size,
    look_up,
    look_up_pixels,
    pixel_table,
    stack_pixels,
)
from ..framing_tier import Framing
from ..processing_tier import TierProcessor
from .local_loss import sentence_inputs
from .local_losses import SENTENCE_LOSSES
from .mixture import SET, Weighted, set_weights
from .options import TrainConfig
from .stopping import outlive_sigterm, started


SMALL_SET = 8192  # pairs whose texts are tokenised before the first epoch
NUM_SUBSTITUTES = 20  # pairs that are tried in the place of one whose picture cannot be read
MIN_STREAM = 1000  # pairs of a stream before the fraction of unreadable pictures is judged


class Batches:
    """
    Batches of this process. The order of an epoch depends on the seed and the epoch alone, and every process takes its
    own part of each global batch; pairs that do not fill a step are not used in that epoch.

    A stream is shuffled in a buffer, and its shards (or, if they do not divide evenly, its pairs) are dealt out to the
    processes, so that in one pass none is seen by two. Every epoch begins a new pass, its shards in another order, and
    a stream that ends within an epoch begins again. Of a single shard, what lies behind an epoch's length is not read.

    A pair whose picture cannot be read is replaced by another one of the set, drawn by the seed, the epoch and its
    image_id, so that a step has the same pairs after a resume and for every number of processes; a stream goes on with
    its next pair. Such pictures are named in `rejected.csv` of the run; more than the fraction `data.max_unreadable`
    of the set end it.
    """

    def __init__(
        self,
        pairs: Dataset | IterableDataset,
        processor: TierProcessor,
        config: TrainConfig,
        accelerator: Accelerator,
    ):
        self.processor, self.seed, self.data = processor, config.seed, config.data
        self.batch_size, self.micro = config.training.batch_size, config.training.gradient_accumulation_steps
        self.processes, self.process, self.device = (
            accelerator.num_processes,
            accelerator.process_index,
            accelerator.device,
        )
        self.with_sentences = config.regulariser.local_loss in SENTENCE_LOSSES
        self.augmentation = AUGMENTATIONS.get(config.data.augmentation)
        self._prepare_pixels(processor.image_processor)
        self.pairs = undecoded(pairs.select_columns(["image", "text", "image_id"]))
        self.step_size = self.batch_size * self.micro * self.processes
        self.image_ids: list[str] = []  # of the batch that was given last
        self.output_dir, self.unreadable, self.seen = Path(config.output_dir), {}, 0
        self.streaming = isinstance(pairs, IterableDataset)
        self.weighted: Weighted | None = None
        small = not self.streaming and len(pairs) <= SMALL_SET
        self.tokens = _tokenised(pairs["text"][:], processor) if small else None
        if self.streaming:
            if config.training.steps_per_epoch is None:
                raise ValueError("training.steps_per_epoch is needed for a stream, whose length is not known.")
            if config.data.one_image_per_study:
                raise ValueError("data.one_image_per_study needs a data set that is not streamed.")
            self.steps_per_epoch = config.training.steps_per_epoch
            return
        if config.training.steps_per_epoch is not None:
            raise ValueError("training.steps_per_epoch is for streams; other data sets have a length.")
        # Groups of rows, of which an epoch takes one each: the images of a study, or single images.
        self.choices = _by_study(pairs) if config.data.one_image_per_study else None
        self.weighted = _weighted(pairs, self.choices, config)
        number = len(self.weighted or (pairs if self.choices is None else self.choices))
        self.steps_per_epoch = number // self.step_size
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"The training set has {number} {'pairs' if self.choices is None else 'studies'}, fewer than one step "
                f"needs: training.batch_size {self.batch_size} x training.gradient_accumulation_steps "
                f"{self.micro} x {self.processes} processes."
            )

    def of_epoch(self, epoch: int, first_step: int = 0) -> Iterator[dict[str, torch.Tensor]]:
        if first_step == self.steps_per_epoch:
            return
        if self.streaming:
            number = self.steps_per_epoch * self.micro
            # What a resumed run has seen is read again: the only way to the same place in a shuffled stream.
            batches = itertools.islice(self._stream(epoch), first_step * self.micro, number)
        else:
            order = self._order(epoch, first_step).tolist()
            batches = started(self._loader(self.pairs, partial(self.collate, epoch=epoch), batch_sampler=order))
        try:
            for batch in batches:
                self.image_ids = batch.pop("image_ids")
                self.seen += len(self.image_ids)
                self._note_unreadable(batch.pop("unreadable"))
                yield batch
        except ValueError as error:  # a worker's comes with its traceback as the message
            if "DataLoader worker" not in str(error):
                raise
            raise ValueError(str(error).strip().splitlines()[-1].removeprefix("ValueError: ")) from error

    def _order(self, epoch: int, first_step: int) -> np.ndarray:
        """Rows of this process's batches, (batches, batch size)."""
        rng = np.random.default_rng([self.seed, epoch])
        if self.weighted:
            order = self.weighted.drawn(rng)
        else:
            order = rng.permutation(len(self.pairs) if self.choices is None else len(self.choices))
        order = order[: self.steps_per_epoch * self.step_size]
        if self.choices is not None:
            chance = rng.random(len(order))
            order = np.array([self.choices[i][int(u * len(self.choices[i]))] for i, u in zip(order, chance)])
        return order.reshape(-1, self.processes, self.batch_size)[first_step * self.micro :, self.process]

    def _stream(self, epoch: int) -> Iterator[dict[str, torch.Tensor]]:
        stream = self.pairs.shuffle(seed=self.seed, buffer_size=self.data.shuffle_buffer)
        part = split_dataset_by_node(stream, self.process, self.processes)
        for number in itertools.count(epoch, 1_000_003):  # of the pass: no other epoch has the same ones
            part.set_epoch(number)  # after the split, which begins at 0
            rest, unreadable, batch = [], {}, None
            loader = self._loader(part, partial(self._collate_readable, epoch=number), batch_size=self.batch_size)
            for given in started(loader):
                if isinstance(given, tuple):  # fewer than a batch; together they may fill one
                    rest, unreadable = rest + given[0], unreadable | given[1]
                    if len(rest) < self.batch_size:
                        continue
                    given, rest = self.collate(rest[: self.batch_size], number), rest[self.batch_size :]
                given["unreadable"], unreadable = unreadable | given["unreadable"], {}
                yield (batch := given)
            self._note_unreadable(unreadable)
            if batch is None:
                raise ValueError(
                    f"The stream gives process {self.process} of {self.processes} {len(rest)} pairs, fewer than one "
                    f"batch of {self.batch_size}."
                )

    def _prepare_pixels(self, image_processor) -> None:
        """The size of pictures that need no resizing, and the table that then stands for the image processor."""
        self.size, self.table, self.image_options = None, None, {}
        try:
            self.size = input_size(image_processor)
        except ValueError:
            if self.augmentation:
                raise
            return
        if self.augmentation:
            geometry = ("do_resize", "do_center_crop")
            self.image_options = {name: False for name in geometry if getattr(image_processor, name, False)}
        self.table = pixel_table(image_processor, self.size, **self.image_options)

    def _loader(self, pairs: Dataset | IterableDataset, collate: Callable, **options) -> DataLoader:
        workers = self.data.num_workers
        return DataLoader(
            pairs,
            collate_fn=collate,
            num_workers=min(workers, pairs.num_shards) if self.streaming else workers,
            generator=torch.Generator(),  # the workers' seeds must not take from the model's random numbers
            worker_init_fn=outlive_sigterm,
            pin_memory=self.device.type == "cuda",
            **options,
        )

    def _collate_readable(
        self, rows: list[dict], epoch: int
    ) -> dict[str, torch.Tensor] | tuple[list[dict], dict[str, str]]:
        """A batch of a stream; if a picture is unreadable or the stream ends, the other rows and the reasons."""
        readable, images, unreadable = [], [], {}
        for row in rows:
            try:
                images.append(read_picture(row["image"], row["image_id"]))
                readable.append(row)
            except ValueError as error:
                unreadable[row["image_id"]] = str(error)
        full = len(readable) == self.batch_size
        return self._inputs(readable, images, epoch, unreadable) if full else (readable, unreadable)

    def to_device(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Inputs of the model on its device, of a batch of [`of_epoch`] or of a part of one."""
        batch = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        if batch["pixel_values"].dtype == torch.uint8:
            table = torch.from_numpy(self.table).to(self.device, non_blocking=True)
            batch["pixel_values"] = look_up_pixels(table, batch["pixel_values"])
        return batch

    def collate(self, rows: list[dict], epoch: int) -> dict[str, torch.Tensor]:
        rows, images, unreadable = list(rows), [], {}
        for i, row in enumerate(rows):
            try:
                images.append(read_picture(row["image"], row["image_id"]))
            except ValueError as error:
                unreadable[row["image_id"]] = str(error)
                rows[i], image = self._substitute(row["image_id"], epoch, unreadable)
                images.append(image)
        return self._inputs(rows, images, epoch, unreadable)

    def _substitute(
        self, image_id: str, epoch: int, unreadable: dict[str, str]
    ) -> tuple[dict[str, object], PIL.Image.Image]:
        """Another pair of the set in the place of one, and its picture."""
        rng = generator(self.seed, epoch, f"substitute of {image_id}")
        for _ in range(NUM_SUBSTITUTES):
            row = self.pairs[int(rng.integers(len(self.pairs)))]
            try:
                return row, read_picture(row["image"], row["image_id"])
            except ValueError as error:
                unreadable[row["image_id"]] = str(error)
        raise ValueError(
            f"{unreadable[image_id]} (Nor can {NUM_SUBSTITUTES} others, drawn from the training set in its place.)"
        )

    def _note_unreadable(self, reasons: dict[str, str]) -> None:
        new = {image_id: why for image_id, why in reasons.items() if image_id not in self.unreadable}
        if not new:
            return
        write_rejected(self.output_dir, [RejectedRow("training pictures", *item) for item in new.items()])
        first = next(iter(new.values()))
        if not self.unreadable:
            what = "passed over" if self.streaming else "replaced by other pairs"
            warnings.warn(f"{first}. Such pairs are {what}, and named in {self.output_dir / FILE}.", stacklevel=2)
        self.unreadable |= new
        number = max(self.seen, MIN_STREAM) if self.streaming else len(self.pairs)
        limit = self.data.max_unreadable
        if len(self.unreadable) > math.ceil(limit * number):
            raise ValueError(
                f"{first}. With it, {len(self.unreadable)} of {number} training pictures are unreadable, more than "
                f"data.max_unreadable {limit:g}. All of them are in {self.output_dir / FILE}."
            )

    def _inputs(
        self, rows: list[dict], images: list[PIL.Image.Image], epoch: int, unreadable: dict[str, str]
    ) -> dict[str, torch.Tensor]:
        if self.augmentation:
            images = [
                augment(
                    self.processor.framing(image),
                    self.augmentation,
                    self.size,
                    generator(self.seed, epoch, row["image_id"]),
                )
                for image, row in zip(images, rows)
            ]
        # Truncated to data.max_text_tokens, which the tokenizer carries as its model_max_length.
        texts = [row["text"] for row in rows]
        if self.tokens is None:
            inputs = dict(self.processor(text=texts))
        else:
            inputs = _padded([self.tokens[text] for text in texts], self.processor.tokenizer)
        if self.with_sentences:
            inputs |= sentence_inputs(texts, self.processor)
        as_they_are = self.augmentation or self.processor.framing == Framing()
        if self.table is not None and as_they_are and all(image.size == self.size for image in images):
            # A GPU looks them up itself: a picture is then 49 KiB on its way there instead of 588.
            on_gpu = self.device.type == "cuda"
            inputs["pixel_values"] = stack_pixels(images) if on_gpu else look_up(self.table, images)
        elif self.augmentation:  # they are framed already
            images = [image.convert("RGB") for image in images]
            inputs |= self.processor.image_processor(images, return_tensors="pt", **self.image_options)
        else:
            inputs |= self.processor(images=images)
        return inputs | {"image_ids": [row["image_id"] for row in rows], "unreadable": unreadable}


Tokens = dict[str, np.ndarray]  # of one text: input_ids and what else the tokenizer makes


def _tokenised(texts: list[str], processor: TierProcessor) -> dict[str, Tokens] | None:
    """
    What the processor makes of each text, without padding; no tensors, which would go to a worker as a file each.
    None if padding does not make of it what the processor makes of several texts.
    """
    texts = list(dict.fromkeys(texts))
    columns = processor.tokenizer(texts, truncation=True)
    rows = zip(*columns.values())
    tokens = {text: {n: np.array(v, np.int64) for n, v in zip(columns, row)} for text, row in zip(texts, rows)}
    tried = sorted(texts, key=len)[:: max(1, len(texts) // 32)] + [max(texts, key=len)]
    try:
        padded, expected = _padded([tokens[text] for text in tried], processor.tokenizer), processor(text=tried)
    except (TypeError, ValueError):  # without a padding token, of which the processor has more to say
        return None
    same = set(padded) == set(expected) and all(torch.equal(padded[name], expected[name]) for name in padded)
    return tokens if same else None


def _padded(rows: list[Tokens], tokenizer) -> dict[str, torch.Tensor]:
    values = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    columns = {name: [torch.from_numpy(row[name]) for row in rows] for name in rows[0]}
    options = {"batch_first": True, "padding_side": tokenizer.padding_side}
    return {
        name: pad_sequence(column, padding_value=values.get(name, 0), **options) for name, column in columns.items()
    }


def fraction_of_subjects(pairs: Dataset | IterableDataset, fraction: float, seed: int) -> Dataset:
    """The pairs of a random fraction of the subjects (rounded up); a row without a subject stands for itself."""
    if isinstance(pairs, IterableDataset):
        raise ValueError("data.subject_share needs a data set that is not streamed.")
    subjects = [i if subject is None else str(subject) for i, subject in enumerate(pairs["subject_id"][:])]
    distinct = list(dict.fromkeys(subjects))
    chosen = np.random.default_rng([seed, 1]).permutation(len(distinct))[: math.ceil(fraction * len(distinct))]
    chosen = {distinct[i] for i in chosen}
    return pairs.select([i for i, subject in enumerate(subjects) if subject in chosen])


def _weighted(pairs: Dataset, choices: list[np.ndarray] | None, config: TrainConfig) -> Weighted | None:
    if not config.data.sets:
        return None
    sets = pairs[SET][:]
    return Weighted(sets if choices is None else [sets[rows[0]] for rows in choices], set_weights(config.data))


def _by_study(pairs: Dataset) -> list[np.ndarray]:
    """Rows of each study of a subject; a row without a study stands for itself."""
    studies: dict = {}
    for i, (subject, study) in enumerate(zip(pairs["subject_id"][:], pairs["study_id"][:])):
        studies.setdefault(i if study is None else (subject, study), []).append(i)
    if all(isinstance(key, int) for key in studies):
        raise ValueError("data.one_image_per_study: no row has a study (with data.name pairs, set study_column).")
    return [np.array(rows) for rows in studies.values()]
