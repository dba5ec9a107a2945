# Licensed under the Apache License, Version 2.0.
"""
Peak memory of preparing and of loading 10,000 and 100,000 rows, each in a process of its own, above what the same
process needs for 100 rows. Private memory (RssAnon) is counted: pages of mapped files belong to the system.

    python benchmarks/memory.py
"""

import argparse
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))
from tier_cli.options import option_parser


def parse_arguments() -> argparse.Namespace:
    parser = option_parser(__doc__)
    # What this script calls itself with, for the peak of a process of its own.
    parser.add_argument("measured", nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    parse_arguments()  # before torch is imported, which takes seconds: --help and mistakes are answered at once

import csv
import gzip
import io
import json
import subprocess
import tempfile
import threading
import time

import numpy as np
from PIL import Image

from modeling_tier.data.columns import CHEXPERT_LABELS
from modeling_tier.evaluation.tables import aligned


SIZES = (100, 10_000, 100_000)


def write_tree(root: Path, number: int) -> None:
    """Small pictures: what grows with the rows is the same as with large ones."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)).save(buffer, "JPEG")
    tables = {name: [] for name in ("split", "metadata", "chexpert")}
    for i in range(number):
        subject, study, dicom = 10_000_000 + i // 5, 50_000_000 + i, f"{i:08x}-0-0-0-0"
        folder = root / "files" / f"p{str(subject)[:2]}" / f"p{subject}"
        (folder / f"s{study}").mkdir(parents=True)
        (folder / f"s{study}" / f"{dicom}.jpg").write_bytes(buffer.getvalue())
        (folder / f"s{study}.txt").write_text(
            f" FINAL REPORT\n IMPRESSION:  Report {i} of some words about the chest.\n"
        )
        split = "test" if subject % 20 == 0 else "validate" if subject % 20 == 1 else "train"
        tables["split"].append([dicom, study, subject, split])
        tables["metadata"].append([dicom, "PA"])
        tables["chexpert"].append([subject, study, *["1.0", "", "0.0"], *[""] * 11])
    columns = {
        "split": ("dicom_id", "study_id", "subject_id", "split"),
        "metadata": ("dicom_id", "ViewPosition"),
        "chexpert": ("subject_id", "study_id", *CHEXPERT_LABELS),
    }
    for name, rows in tables.items():
        with gzip.open(root / f"mimic-cxr-2.0.0-{name}.csv.gz", "wt", newline="", compresslevel=1) as file:
            csv.writer(file).writerows([columns[name], *rows])


def private_memory() -> float:
    """MiB of this process that no file backs."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def measure(work) -> dict:
    """Peak of `private_memory` while the work runs, and the rows that it went through."""
    peak, done = [private_memory()], threading.Event()

    def watch():
        while not done.is_set():
            peak[0] = max(peak[0], private_memory())
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    rows = work()
    done.set()
    thread.join()
    return {"peak": peak[0], "rows": rows}


def preparing(folder: Path) -> int:
    from modeling_tier.data.prepare import prepare

    return sum(prepare(folder / "tree", folder / "prepared", size=32, progress=False)["pairs"].values())


def loading(folder: Path) -> int:
    """An epoch of the training loader, without the model."""
    import torch
    from transformers import CLIPImageProcessor
    from transformers.utils import logging

    from modeling_tier import TierProcessor
    from modeling_tier.data import load_pairs
    from modeling_tier.training.batches import Batches
    from modeling_tier.training.building import train_tokenizer
    from modeling_tier.training.options import DataOptions, TrainConfig, TrainingOptions

    logging.set_verbosity_error()
    pairs = load_pairs("mimic_cxr", "train", data_dir=folder / "prepared")
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    tokenizer = train_tokenizer(["Report of some words about the chest 0123456789."], 100)
    config = TrainConfig(data=DataOptions(augmentation="paper"), training=TrainingOptions(batch_size=32))
    accelerator = type("OneProcess", (), {"num_processes": 1, "process_index": 0, "device": torch.device("cpu")})
    batches = Batches(pairs, TierProcessor(CLIPImageProcessor(**sizes), tokenizer), config, accelerator)
    return sum(len(batch["input_ids"]) for batch in batches.of_epoch(0))


def main() -> None:
    measured = parse_arguments().measured
    if measured:
        name, folder = measured
        print(json.dumps(measure(lambda: {"preparing": preparing, "loading": loading}[name](Path(folder)))))
        return
    rows = [["private memory", "rows", "peak, MiB", "above 100 rows, MiB"]]
    results = {}
    for number in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            write_tree(Path(folder) / "tree", number)
            for name in ("preparing", "loading"):
                command = [sys.executable, __file__, name, folder]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                results[name, number] = json.loads(done.stdout.splitlines()[-1])
    for (name, _), result in results.items():
        base = results[name, SIZES[0]]["peak"]
        rows.append([name, str(result["rows"]), f"{result['peak']:.0f}", f"{result['peak'] - base:.0f}"])
    print(aligned(rows))


if __name__ == "__main__":
    main()
