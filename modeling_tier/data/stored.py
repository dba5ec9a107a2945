# Licensed under the Apache License, Version 2.0.
"""
Data sets in the formats of `datasets`, which reads a stream and a memory-mapped file only when a row is asked for:
damage that is found then is named, too.
"""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, IterableDataset

from .pictures import undecoded_columns
from .rejected import short


_ADVICE = "copy or download it again, or remove it"
_TAR_END = 1024  # bytes of zeros behind the last member of a tar archive


def named_stream(stream: IterableDataset, where: str, files: Sequence[str] = ()) -> IterableDataset:
    """
    The same rows, with pictures as they are stored, in the same shards; errors while it is read become a ValueError
    with the file and the row.

    Args:
        stream: as `datasets` opens it.
        where: what messages call it.
        files: that it is read from, one per shard.
    """
    stream = undecoded_columns(stream)
    number = stream.num_shards
    names = list(files) if len(files) == number else [where] * number
    return IterableDataset.from_generator(
        _rows, features=stream.features, gen_kwargs={"shards": list(zip(range(number), names)), "stream": stream}
    )


def _rows(shards: list[tuple[int, str]], stream: IterableDataset) -> Iterator[dict]:
    for index, name in shards:
        # `iter` gives all rows; iterating over the stream itself gives a DataLoader's worker a part of them, and
        # the shards are dealt out to the workers already.
        batches = stream.shard(stream.num_shards, index).iter(batch_size=1)
        number = 0
        while True:
            try:
                row = next(batches, None)
            except Exception as error:  # of datasets, pyarrow, tarfile, the network
                reason = short(str(error) or type(error).__name__).rstrip(".")
                raise ValueError(
                    f"{name} cannot be read behind row {number} ({reason}). If it is damaged, {_ADVICE}."
                ) from error
            if row is None:
                break
            number += 1
            yield {column: values[0] for column, values in row.items()}


def check_stored(rows: Dataset, where: str, advice: str = _ADVICE) -> None:
    """
    Look through the offsets and texts of a memory-mapped data set, not through its pictures: what is damaged there
    would end a run when that row is read, or the process.

    Raises:
        ValueError: if it is damaged.
    """
    try:
        rows.data.validate(full=True)
    except pa.ArrowException as error:
        raise ValueError(f"{where} is damaged ({short(str(error))}): {advice}.") from error


def warn_of_cut_archives(files: Sequence[str]) -> None:
    """A tar archive that was cut off between two of its members is read to there without an error."""
    for file in files:
        with Path(file).open("rb") as archive:
            archive.seek(max(0, Path(file).stat().st_size - _TAR_END))
            if archive.read().strip(b"\0"):
                warnings.warn(
                    f"{file} does not end as a tar archive: it was cut off, and what stood behind is missing, or its "
                    "writer was not closed.",
                    stacklevel=4,
                )
