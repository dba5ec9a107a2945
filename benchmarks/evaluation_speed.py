# Licensed under the Apache License, Version 2.0.
"""
Images per second of a zero-shot evaluation with CheXzero's pair of sentences, a CLIP ViT-B/32 with random weights at
224 pixels, pictures of 320 pixels in memory. Beside it, in the same run, a loop as CheXzero's evaluation has it: one
pass over the images for the positive sentences and another for the negative ones, an image at a time. The scores must
agree. With a GPU, on it; else on the CPU.

    OMP_NUM_THREADS=1 python benchmarks/evaluation_speed.py [--num_images 96] [--repeats 3]
"""

import argparse
import copy
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPConfig, CLIPImageProcessor
from transformers.utils import logging


sys.path.insert(0, str(Path(__file__).parents[1]))
from modeling_tier import TierConfig, TierModel, TierProcessor  # noqa: E402
from modeling_tier.data import load_pairs  # noqa: E402
from modeling_tier.evaluation import load_no_finding, load_prompts  # noqa: E402
from modeling_tier.evaluation.scoring import join_parts, score  # noqa: E402
from modeling_tier.evaluation.tables import aligned  # noqa: E402
from modeling_tier.training.building import train_tokenizer  # noqa: E402


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_images", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num_workers", type=int, default=0, help="processes that read pictures, for the batches")
    parser.add_argument("--compile", action="store_true", help="a further row, with compiled encoders")
    parser.add_argument("--dry_run", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--output", type=Path, help="file for the results as JSON")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    whole = load_pairs("synthetic", "test", num_images=arguments.num_images, image_size=320)
    pairs = whole.remove_columns("text").add_column("text", [None] * len(whole), feature=whole.features["text"])
    tokenizer = train_tokenizer(whole["text"], 2000)
    tokenizer.model_max_length = 77
    processor = TierProcessor(CLIPImageProcessor(), tokenizer)
    tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    clip = CLIPConfig(text_config=tiny, vision_config=tiny) if arguments.dry_run else CLIPConfig()
    text = clip.text_config.to_dict() | {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.sep_token_id}
    torch.manual_seed(0)
    config = TierConfig(text_config=text, vision_config=clip.vision_config, projection_dim=512)
    model = TierModel(config).to(device).eval()
    prompts = load_prompts("synthetic", protocol="chexzero")
    plain = {"localisation": False, "progress": False, "num_workers": arguments.num_workers}

    def of(scored) -> np.ndarray:
        scored = join_parts(scored)
        return scored["positive"] - scored["negative"]

    ways = {
        "an image at a time, twice": lambda: one_by_one(model, processor, pairs, prompts),
        "batches of 64": lambda: of(score(model, processor, pairs, prompts, **plain)),
        "batches of 64, bfloat16": lambda: of(score(model, processor, pairs, prompts, dtype="bfloat16", **plain)),
        "batches of 64, with texts, sparsity and all maps": lambda: of(
            score(model, processor, whole, prompts, load_no_finding("synthetic"), thorough=True, progress=False)
        ),
    }
    if arguments.compile:
        compiled = copy.deepcopy(model)
        for encoder in (compiled.text_model, compiled.vision_model):
            encoder.compile()
        ways["batches of 64, bfloat16, compiled"] = lambda: of(
            score(compiled, processor, pairs, prompts, dtype="bfloat16", **plain)
        )
    times = {name: [] for name in ways}
    scores = {name: way() for name, way in ways.items()}  # warm
    for _ in range(arguments.repeats):  # in turn: other work on the machine meets all of them
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - started)
    baseline, *others = ways
    rows = [
        [f"{device.type}, {torch.get_num_threads()} threads", "images/s", "ratio", "largest difference of a score"]
    ]
    for name in ways:
        ratio = np.median(np.array(times[baseline]) / times[name])
        gap = np.abs(scores[name] - scores[baseline]).max()
        assert gap < (0.05 if "bfloat16" in name else 1e-4), (name, gap)
        rows.append([name, f"{len(pairs) / np.median(times[name]):.1f}", f"{ratio:.2f}", f"{gap:.1e}"])
    print(aligned(rows))
    if arguments.output:
        name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
        found = {"device": name, "torch": torch.__version__, "num_images": len(pairs), "seconds": times}
        arguments.output.write_text(json.dumps(found | {"num_workers": arguments.num_workers}, indent=1) + "\n")


if __name__ == "__main__":
    main()
