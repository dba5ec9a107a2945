# Licensed under the Apache License, Version 2.0.
"""One seed of the study: train CLIP from random weights, then go on from there with each local loss."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from datasets import Dataset
from drawings import HeldOutSet, TrainingSet, held_out_pairs, measure
from rows import ROWS, SENTENCE_ROWS
from setting import ENCODERS, Setting
from torch.nn.functional import normalize

from modeling_tier import TierModel, TierProcessor
from modeling_tier.data import load_pairs
from modeling_tier.files import replace_json
from modeling_tier.training import load_config
from modeling_tier.training.building import build_model, build_processor
from modeling_tier.training.optimization import build_optimizer, build_scheduler
from modeling_tier.training.pairs_of_batch import Pairs
from modeling_tier.training.setup import MAX_LOGIT_SCALE


CONFIG = Path(__file__).parents[1] / "configs" / "demo.yaml"


def check_setting(setting: Setting, folder: Path) -> None:
    """What is in the folder of a seed is not run again, so it must be of this setting; ValueError if it is not."""
    for file in folder.glob("*.json"):
        written = json.loads(file.read_text()).get("setting")
        before = asdict(Setting(seed=setting.seed)) | (written or asdict(setting))
        changed = [
            f"{name} {before[name]}, not {value}" for name, value in asdict(setting).items() if before[name] != value
        ]
        if changed:
            raise ValueError(f"{folder} is of another setting ({', '.join(changed)}): name another --output_dir.")
    folder.mkdir(parents=True, exist_ok=True)
    replace_json(folder / "setting.json", {"setting": asdict(setting)})


def pretrain(setting: Setting, folder: Path) -> None:
    """Leave the trained CLIP model in `folder/start`, unless it is there."""
    start = folder / "start"
    if (start / "config.json").is_file():
        return
    torch.set_num_threads(1)
    torch.manual_seed(setting.seed)
    pairs = training_pairs(setting)
    model, processor = build(setting, pairs)
    train(model, TrainingSet.of(pairs, processor), "CLIP", setting, setting.epochs, setting.seed)
    processor.save_pretrained(start)
    model.save_pretrained(start)


def build(setting: Setting, pairs: Dataset) -> tuple[TierModel, TierProcessor]:
    """A model of random weights, and a processor whose vocabulary is that of the pairs' texts."""
    config = _config(setting)
    processor = build_processor(config, pairs)
    return build_model(config, processor), processor


def run_rows(setting: Setting, folder: Path, names: list[str]) -> None:
    """For each row a file `folder/<row>.json` with its measures; rows whose file is there are not run again."""
    torch.set_num_threads(1)
    rows, test = Rows(setting, folder), None
    for name in names:
        file = folder / f"{file_name(name)}.json"
        if file.is_file():
            continue
        model, processor = rows.model(name)
        if test is None:
            test = held_out_set(setting, processor)
        measures = measure(model, processor, test)
        replace_json(file, {"row": name, "setting": asdict(setting), "measures": measures})


@dataclass
class Rows:
    """The models of a seed: `folder/start`, and `folder/<row>` for each row that is trained."""

    setting: Setting
    folder: Path
    data: TrainingSet | None = None
    """Drawn when the first row is trained."""

    def model(self, name: str) -> tuple[TierModel, TierProcessor]:
        """A row's model, trained and saved where it is not there."""
        start, own = self.folder / "start", self.folder / file_name(name)
        processor = TierProcessor.from_pretrained(start)
        if (own / "config.json").is_file():
            return TierModel.from_pretrained(own).to(device()), processor
        model = TierModel.from_pretrained(start)
        if self.data is None:
            self.data = TrainingSet.of(training_pairs(self.setting), processor)
        train(model, self.data, name, self.setting, self.setting.more_epochs, self.setting.seed + 1_000)
        model.save_pretrained(own)
        return model, processor


def train(model: TierModel, data: TrainingSet, row: str, setting: Setting, epochs: int, order_seed: int) -> None:
    """AdamW, a cosine after a warm-up, float32, as configs/demo.yaml; CLIP's loss plus that of the row."""
    config = _config(setting)
    model.to(device()).train()
    optimizer = build_optimizer(model, config.optimizer)
    steps = len(data) // setting.batch_size
    scheduler = build_scheduler(optimizer, config.optimizer, steps * epochs)
    order = torch.Generator().manual_seed(order_seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(data), generator=order).split(setting.batch_size)[:steps]:
            loss_of_row(model, data, rows, row).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.max_grad_norm or float("inf"))
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            with torch.no_grad():
                model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)


def loss_of_row(
    model: TierModel, data: TrainingSet, rows: torch.Tensor, row: str, chunk_size: int | None = None
) -> torch.Tensor:
    """CLIP's loss of a batch of these rows of the data, plus the local loss of the table's row."""
    batch = data.batch(rows, model.device)
    out = model(**batch, output_patch_weights=True)
    mask = batch["attention_mask"].bool()
    special = torch.tensor(model.config.special_token_ids, device=model.device)
    content = mask & ~torch.isin(batch["input_ids"], special)
    more: dict = {"chunk_size": chunk_size}
    if row in SENTENCE_ROWS:
        inputs, more["owners"] = data.batch_sentences(rows, model.device)
        more["sentences"] = normalize(model.encode_text(**inputs).embeds, dim=-1)
    pairs = Pairs.of(out, mask, content, model.logit_scale.exp(), **more)
    return model.contrastive_loss(out.text_embeds, out.image_embeds) + (ROWS | SENTENCE_ROWS)[row](pairs)


def device() -> torch.device:
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def file_name(row: str) -> str:
    return "".join(c if c.isalnum() or c in ".-" else "_" for c in row)


def _config(setting: Setting):
    vision = json.dumps(ENCODERS[setting.encoder](setting.image_size, setting.stride))
    options = {"model.image_size": setting.image_size, "seed": setting.seed, "model.vision_config": vision}
    return load_config(CONFIG, [part for name, value in options.items() for part in (f"--{name}", str(value))])


def training_pairs(setting: Setting):
    options = {"image_size": setting.image_size, "section": setting.section, "seed": setting.seed}
    return load_pairs("synthetic", "train", num_images=setting.num_pairs, drawings=setting.drawings, **options)


def held_out_set(setting: Setting, processor: TierProcessor) -> HeldOutSet:
    pairs = held_out_pairs(setting.num_test, setting.image_size, setting.section, setting.drawings)
    return HeldOutSet.of(pairs, processor, setting.drawings)
