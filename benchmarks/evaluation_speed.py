# Licensed under the Apache License, Version 2.0.
"""
Images per second of a zero-shot evaluation with CheXzero's pair of sentences, a CLIP ViT-B/32 with random weights at
224 pixels, pictures of 320 pixels in memory. Beside it, in the same run, a loop as CheXzero's evaluation has it: one
pass over the images for the positive sentences and another for the negative ones, an image at a time. The scores must
agree. With a GPU, on it; else on the CPU.

    OMP_NUM_THREADS=1 python benchmarks/evaluation_speed.py [--num_images 96] [--repeats 3]
"""

import argparse
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))
from tier_cli.options import option_parser


def parse_arguments() -> argparse.Namespace:
    parser = option_parser(__doc__)
    parser.add_argument("--num_images", type=int, default=96, help="in memory")
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement")
    parser.add_argument("--copies", type=int, default=1, help="of the images, for the batches without texts")
    parser.add_argument("--batch_size", type=int, default=64, help="images")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that read pictures, for the batches")
    parser.add_argument("--compile", action="store_true", help="a further row, with compiled encoders")
    parser.add_argument("--dry_run", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--output", type=Path, help="file for the results as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    parse_arguments()  # before torch is imported, which takes seconds: --help and mistakes are answered at once

import copy
import itertools
import json
import time
from collections.abc import Callable

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from transformers import CLIPConfig, CLIPImageProcessor
from transformers.utils import logging

from modeling_tier import TierConfig, TierModel, TierProcessor
from modeling_tier.data import load_pairs
from modeling_tier.evaluation import load_no_finding, load_prompts
from modeling_tier.evaluation.scored import join
from modeling_tier.evaluation.scoring import ScoringOptions, score
from modeling_tier.evaluation.tables import aligned
from modeling_tier.training.building import compile_encoders, train_tokenizer


@torch.inference_mode()
def one_by_one(model, processor, pairs, prompts) -> np.ndarray:
    """Cosines (N, F) with the positive minus those with the negative sentences."""
    sides = []
    for key in ("positive", "negative"):
        columns = []
        for lists in prompts.values():
            embeds = model.get_text_features(**processor(text=lists[key]).to(model.device)).pooler_output
            embed = torch.nn.functional.normalize(embeds, dim=-1).mean(dim=0)
            columns.append(embed / embed.norm())
        weights, rows = torch.stack(columns, dim=1), []
        for i in range(len(pairs)):
            inputs = processor(images=pairs[i]["image"]).to(model.device)
            image = torch.nn.functional.normalize(model.get_image_features(**inputs).pooler_output, dim=-1)
            rows.append((image @ weights).float().cpu().numpy())
        sides.append(np.concatenate(rows))
    return sides[0] - sides[1]


def main() -> None:
    arguments = parse_arguments()
    logging.set_verbosity_error()
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    with_texts = load_pairs("synthetic", "test", num_images=arguments.num_images, image_size=320)
    model, processor = new_model(with_texts["text"], arguments.dry_run)
    ways = ways_to_score(model.to(device), processor, with_texts, arguments)
    baseline, times, scores = next(iter(ways)), {}, {}
    compiled = [name for name in ways if name.endswith("compiled")]
    # Compilation last, and after a report of the rest, which stays if it takes too long.
    for names in ([name for name in ways if name not in compiled], compiled):
        if not names:
            continue
        for name in names:  # warm
            started = time.perf_counter()
            scores[name], times[name] = ways[name][0](), []
            print(f"{name}: first pass {time.perf_counter() - started:.1f} s", flush=True)
        for _, name in itertools.product(range(arguments.repeats), names):  # in turn: other work meets all of them
            started = time.perf_counter()
            ways[name][0]()
            times[name].append(time.perf_counter() - started)
        results = report(times, scores, {name: ways[name][1] for name in times}, baseline, device)
        if arguments.output:
            about = {"device": device_name(device), "torch": torch.__version__, "num_workers": arguments.num_workers}
            arguments.output.write_text(json.dumps(about | {"rows": results}, indent=1, default=float) + "\n")
    # TF32 on a GPU rounds the patches' convolution.
    exact = 1e-4 if device.type == "cpu" else 5e-3
    for name in ways:
        assert results[name]["largest_gap"] < (0.05 if "bfloat16" in name else exact), (name, results[name])


def new_model(texts: list[str], tiny: bool) -> tuple[TierModel, TierProcessor]:
    """A CLIP ViT-B/32, or a tiny model, with random weights, and its processor."""
    tokenizer = train_tokenizer(texts, 2000)
    tokenizer.model_max_length = 77
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    clip = CLIPConfig(text_config=sizes, vision_config=sizes) if tiny else CLIPConfig()
    text = clip.text_config.to_dict() | {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.sep_token_id}
    torch.manual_seed(0)
    config = TierConfig(text_config=text, vision_config=clip.vision_config, projection_dim=512)
    return TierModel(config).eval(), TierProcessor(CLIPImageProcessor(), tokenizer)


def ways_to_score(
    model: TierModel, processor: TierProcessor, with_texts: Dataset, arguments: argparse.Namespace
) -> dict[str, tuple[Callable[[], np.ndarray], int]]:
    """By name what to do, and for how many images; the baseline first."""
    pairs = with_texts.remove_columns("text").add_column(
        "text", [None] * len(with_texts), feature=with_texts.features["text"]
    )
    many = concatenate_datasets([pairs] * arguments.copies)
    prompts, size = load_prompts("synthetic", protocol="chexzero"), arguments.batch_size

    def differences(model, pairs, **options) -> np.ndarray:
        images = join(score(model, processor, pairs, prompts, ScoringOptions(**options))).images
        return images.positive - images.negative

    plain = {"localisation": False, "progress": False, "batch_size": size, "num_workers": arguments.num_workers}
    all_maps = {"no_finding": load_no_finding("synthetic"), "thorough": True, "batch_size": size, "progress": False}
    name = f"batches of {size}"
    ways = {
        "an image at a time, twice": (lambda: one_by_one(model, processor, pairs, prompts), len(pairs)),
        name: (lambda: differences(model, many, **plain), len(many)),
        f"{name}, bfloat16": (lambda: differences(model, many, dtype="bfloat16", **plain), len(many)),
        f"{name}, with texts, sparsity and all maps": (
            lambda: differences(model, with_texts, **all_maps),
            len(with_texts),
        ),
    }
    if arguments.compile:
        compiled = copy.deepcopy(model)
        compile_encoders(compiled)
        ways[f"{name}, bfloat16, compiled"] = (
            lambda: differences(compiled, many, dtype="bfloat16", **plain),
            len(many),
        )
    return ways


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else device.type


def report(times: dict, scores: dict, numbers: dict[str, int], baseline: str, device: torch.device) -> dict[str, dict]:
    """Print a row for each way, from its times and scores and its number of images; returns the rows' numbers."""
    rows = [[f"{device_name(device)}, {torch.get_num_threads()} threads"]]
    rows[0] += ["images/s", "ratio", "largest difference of a score"]
    results = {}
    for name, number in numbers.items():
        rates = number / np.array(times[name])
        ratio = np.median(rates / (numbers[baseline] / np.array(times[baseline])))
        gap = np.abs(scores[name][: numbers[baseline]] - scores[baseline]).max()
        rows.append([name, f"{np.median(rates):.1f}", f"{ratio:.2f}", f"{gap:.1e}"])
        results[name] = {"images": number, "images_per_second": np.median(rates), "ratio": ratio, "largest_gap": gap}
    print(aligned(rows))
    return results


if __name__ == "__main__":
    main()
