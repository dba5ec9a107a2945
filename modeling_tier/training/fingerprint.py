# Licensed under the Apache License, Version 2.0.
"""A number for the data of a run, by which a resumed run notices that its texts or pictures are others."""

import dataclasses
import json
import os
from itertools import islice

import pyarrow as pa
import xxhash
from datasets import Dataset, IterableDataset

from ..data.pictures import undecoded
from ..framing_tier import Framing
from ..processing_tier import TierProcessor


NUM_PICTURES = 512  # read of each data set, evenly spaced over its rows
NUM_STREAMED = 16  # first rows read of a stream
NUM_BYTES = 65_536  # read at the beginning of a picture file


def data_fingerprint(pairs: Dataset | IterableDataset) -> str:
    """
    A hash of every column of every row but pictures and regions, and of 512 pictures, evenly spaced: of the bytes in
    the data set, or of the size and the first 64 KiB of a file. Of a stream it covers the number of shards and the
    first 16 rows.
    """
    hashed = xxhash.xxh3_128()
    if isinstance(pairs, IterableDataset):
        hashed.update(str(pairs.num_shards).encode())
        for row in islice(undecoded(pairs), NUM_STREAMED):
            _add_picture(hashed, row.pop("image"))
            hashed.update(json.dumps(row, default=str).encode())
        return hashed.hexdigest()
    columns = [name for name, feature in pairs.features.items() if name not in ("image", "regions")]
    for table in pairs.select_columns(columns).with_format("arrow").iter(10_000):
        _add_table(hashed, table)
    pictures = undecoded(pairs.select_columns(["image"]).with_format(None))
    number = min(len(pairs), NUM_PICTURES)
    for i in range(number):
        _add_picture(hashed, pictures[i * len(pairs) // number]["image"])
    return hashed.hexdigest()


def processor_fingerprint(processor: TierProcessor) -> str:
    """A hash of what decides which tokens and pixel values a text and a picture become."""
    tokenizer = processor.tokenizer
    content = [processor.image_processor.to_dict(), tokenizer.model_max_length, tokenizer.special_tokens_map]
    if processor.framing != Framing():  # so that a run from before there was one can be resumed
        content.append(dataclasses.asdict(processor.framing))
    hashed = xxhash.xxh3_128(json.dumps(content, sort_keys=True, default=str).encode())
    hashed.update(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
    return hashed.hexdigest()


def _add_table(hashed: xxhash.xxh3_128, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    table = table.replace_schema_metadata(None).combine_chunks()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    hashed.update(sink.getvalue())


def _add_picture(hashed: xxhash.xxh3_128, cell: dict | None) -> None:
    """By the content, since a copy of the same file, on a disk nearer to the GPUs, has another path and time."""
    if cell is None:
        return
    content, path = cell["bytes"], cell["path"]
    if content is not None:
        hashed.update(content)
    elif path and os.path.isfile(path):
        with open(path, "rb") as file:
            hashed.update(f"{os.fstat(file.fileno()).st_size}".encode() + file.read(NUM_BYTES))
    else:  # an address, or a file that is missing
        hashed.update(f"{path}".encode())
