# Licensed under the Apache License, Version 2.0.
"""One seed of the study: train CLIP from random weights, then go on from there with each local loss."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from drawings import HeldOutSet, TrainingSet, held_out_pairs, measure
from local_losses import ROWS, Pairs

from modeling_tier import TierModel, TierProcessor
from modeling_tier.data import load_pairs
from modeling_tier.files import replace_json
from modeling_tier.training import load_config
from modeling_tier.training.building import build_model, build_processor
from modeling_tier.training.optimization import build_optimizer, build_scheduler
from modeling_tier.training.setup import MAX_LOGIT_SCALE


CONFIG = Path(__file__).parents[1] / "configs" / "demo.yaml"


@dataclass(frozen=True)
class Setting:
    """What all rows of a table have in common."""

    seed: int
    """Of the drawings, the weights and the order of the batches."""
    num_pairs: int = 8000
    num_test: int = 2000
    image_size: int = 64
    section: str = "impression"
    epochs: int = 8
    """Of CLIP from random weights."""
    more_epochs: int = 2
    """Of each row from there."""
    batch_size: int = 64


def pretrain(setting: Setting, folder: Path) -> None:
    """Leave the trained CLIP model in `folder/start`, unless it is there."""
    start = folder / "start"
    if (start / "config.json").is_file():
        return
    torch.set_num_threads(1)
    torch.manual_seed(setting.seed)
    pairs = _training_pairs(setting)
    config = _config(setting)
    processor = build_processor(config, pairs)
    model = build_model(config, processor)
    train(model, TrainingSet.of(pairs, processor), "CLIP", setting, setting.epochs, setting.seed)
    processor.save_pretrained(start)
    model.save_pretrained(start)


def run_rows(setting: Setting, folder: Path, names: list[str]) -> None:
    """For each row a file `folder/<row>.json` with its measures; rows whose file is there are not run again."""
    torch.set_num_threads(1)
    data, test, start = None, None, folder / "start"
    for name in names:
        file = folder / f"{file_name(name)}.json"
        if file.is_file():
            continue
        processor = TierProcessor.from_pretrained(start)
        model = TierModel.from_pretrained(start)
        if name == "start":
            model = model.to(device())
        else:
            data = TrainingSet.of(_training_pairs(setting), processor) if data is None else data
            train(model, data, name, setting, setting.more_epochs, setting.seed + 1_000)
        if test is None:
            test = HeldOutSet.of(held_out_pairs(setting.num_test, setting.image_size, setting.section), processor)
        measures = measure(model, processor, test)
        replace_json(file, {"row": name, "setting": asdict(setting), "measures": measures})


def train(model: TierModel, data: TrainingSet, row: str, setting: Setting, epochs: int, order_seed: int) -> None:
    """AdamW, a cosine after a warm-up, float32, as configs/demo.yaml; CLIP's loss plus that of the row."""
    config = _config(setting)
    model.to(device()).train()
    optimizer = build_optimizer(model, config.optimizer)
    steps = len(data) // setting.batch_size
    scheduler = build_scheduler(optimizer, config.optimizer, steps * epochs)
    order = torch.Generator().manual_seed(order_seed)
    special = torch.tensor(model.config.special_token_ids, device=model.device)
    local_loss = ROWS[row]
    for _ in range(epochs):
        for rows in torch.randperm(len(data), generator=order).split(setting.batch_size)[:steps]:
            batch = data.batch(rows, model.device)
            out = model(**batch, output_patch_weights=True)
            mask = batch["attention_mask"].bool()
            content = mask & ~torch.isin(batch["input_ids"], special)
            pairs = Pairs.of(out, mask, content, model.logit_scale.exp())
            loss = model.contrastive_loss(out.text_embeds, out.image_embeds) + local_loss(pairs)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.max_grad_norm or float("inf"))
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            with torch.no_grad():
                model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)


def device() -> torch.device:
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def file_name(row: str) -> str:
    return "".join(c if c.isalnum() or c in ".-" else "_" for c in row)


def _config(setting: Setting):
    return load_config(CONFIG, ["--model.image_size", str(setting.image_size), "--seed", str(setting.seed)])


def _training_pairs(setting: Setting):
    options = {"image_size": setting.image_size, "section": setting.section, "seed": setting.seed}
    return load_pairs("synthetic", "train", num_images=setting.num_pairs, **options)
