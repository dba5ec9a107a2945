# Licensed under the Apache License, Version 2.0.
"""From a configuration to everything that a run needs, at the step where it begins or goes on."""

import dataclasses
import math
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, set_seed
from datasets import Dataset, IterableDataset
from safetensors import SafetensorError
from transformers.modeling_layers import GradientCheckpointingLayer

from ..data import load_pairs
from ..data.rejected import collect_rejected, write_rejected
from ..evaluation.measures import BY_NAME, LOCALISATION
from ..modeling_tier import TierModel
from ..processing_tier import TierProcessor
from .batches import Batches, fraction_of_subjects
from .building import build_model, build_processor, compile_encoders
from .checkpoints import Checkpoint, best_epochs, best_step, drop_later_checkpoints, settle_ensemble
from .configuration_checks import config_prompts
from .fingerprint import data_fingerprint, processor_fingerprint
from .freezing import freeze
from .log import Log
from .mixture import SET, check_patients, load_sets
from .optimization import build_optimizer, build_scheduler
from .options import DataOptions, TrainConfig
from .processes import STEP_TIMEOUT, end_with_launcher, main_process_decides, main_process_first
from .resume import Conditions, check_data
from .sharding import prepare
from .state import RunState, Trainables
from .stopping import NonFiniteSteps, StopRequest
from .template_reports import with_template_reports


MAX_LOGIT_SCALE = math.log(100)


@dataclass
class RunData:
    """The pairs of a run, and the sentences of its evaluation."""

    train: Dataset | IterableDataset
    validation: Dataset
    zero_shot: Dataset
    prompts: dict[str, dict[str, list[str]]] = field(default_factory=dict)


@dataclass
class Run:
    """
    Everything that the loop uses.

    Attributes:
        config: all options.
        output_dir: folder of the run.
        data: pairs and sentences.
        processor: makes tensors of texts and pictures.
        clean_processor: the same, never used, for what is saved: a tokenizer keeps the padding of its last call.
        batches: of this process.
        parts: what a step changes.
        max_logit_scale: `logit_scale` is clamped to this.
        conditions: what a checkpoint depends on.
        state: where the run stands.
        log: of the steps.
        non_finite: skips steps whose gradient is not finite.
        stop_request: a signal that asks the run to stop.
        saved_at: step and epoch of the newest checkpoint.
    """

    config: TrainConfig
    output_dir: Path
    data: RunData
    processor: TierProcessor
    clean_processor: TierProcessor
    batches: Batches
    parts: Trainables
    max_logit_scale: float
    conditions: Conditions
    state: RunState
    log: Log
    non_finite: NonFiniteSteps
    stop_request: StopRequest
    saved_at: tuple[int, int] | None = None

    @property
    def accelerator(self) -> Accelerator:
        return self.parts.accelerator

    @property
    def bare_model(self) -> TierModel:
        return self.parts.bare_model

    @property
    def total_steps(self) -> int:
        return self.batches.steps_per_epoch * self.config.training.epochs

    @property
    def checkpoints(self) -> Path:
        return self.output_dir / "checkpoints"


def start_processes(config: TrainConfig) -> Accelerator:
    """Find the other processes of the run, and check what only then is known."""
    end_with_launcher()
    training = config.training
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # without it, several processes on CPUs would not find each other
        mixed_precision=training.mixed_precision,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        log_with=list(training.trackers) or None,
        project_dir=config.output_dir,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=STEP_TIMEOUT)],
    )
    if training.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("training.mixed_precision: fp16 needs a GPU; use bf16 or no.")
    if accelerator.num_processes == 1 and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        accelerator.print(
            "WARNING: accelerate was asked for several processes and started one. On CPUs, start several with: "
            "accelerate launch --multi_gpu --num_processes 2 train.py ... (without a GPU they run on CPUs)."
        )
    return accelerator


def set_up(
    config: TrainConfig, accelerator: Accelerator, checkpoint: Checkpoint | None, stop_request: StopRequest
) -> Run:
    """
    Load the data, build the model, and put a checkpoint back.

    Raises:
        ValueError: for data or options that cannot work, or data that changed since the checkpoint was written.
    """
    output_dir = Path(config.output_dir)
    set_seed(config.seed)  # of the weights, which all processes make alike
    # Data
    data = _load_data(config, accelerator)
    if not checkpoint:
        main_process_decides(lambda: _save_new_processor(config, data, output_dir))
    processor, clean_processor = _load_processor(output_dir), _load_processor(output_dir)
    _check_evaluation(config, data)
    conditions = _conditions(config, accelerator, data, clean_processor)
    if checkpoint:
        main_process_decides(lambda: check_data(checkpoint, conditions))
    batches = Batches(_drawn_pairs(config, data), processor, config, accelerator)
    # Model and optimiser
    model = _build_model(config, processor, accelerator)
    max_logit_scale = _max_logit_scale(config, model)
    optimizer = build_optimizer(model, config.optimizer)
    scheduler = build_scheduler(optimizer, config.optimizer, batches.steps_per_epoch * config.training.epochs)
    parts = Trainables(accelerator, *prepare(accelerator, model, optimizer, config), scheduler)
    # Where the run stands
    state = _resumed_state(config, parts, checkpoint) if checkpoint else RunState()
    run = Run(
        config=config,
        output_dir=output_dir,
        data=data,
        processor=processor,
        clean_processor=clean_processor,
        batches=batches,
        parts=parts,
        max_logit_scale=max_logit_scale,
        conditions=conditions,
        state=state,
        log=Log(output_dir / "log.jsonl", accelerator, config, state),
        non_finite=NonFiniteSteps(parts.bare_model, state, config.training.max_skipped_steps),
        stop_request=stop_request,
    )
    if batches.weighted:
        accelerator.print(f"Training {'studies' if batches.choices else 'pairs'}: {batches.weighted.description()}.")
        if not checkpoint:
            run.log.write(0, sets=batches.weighted.numbers)
    if checkpoint:
        accelerator.print(f"Resumed from {checkpoint.folder} at step {state.step} of {run.total_steps}.")
    if accelerator.is_main_process:  # a run that was stopped may have left more
        settle_ensemble(output_dir / "ensemble", best_epochs(state.evaluations, config.evaluation.keep_best))
    return run


def _load_data(config: TrainConfig, accelerator: Accelerator) -> RunData:
    data, evaluation, zero_shot = config.data, config.evaluation, None
    with main_process_first(), warnings.catch_warnings(), collect_rejected() as rejected:
        if not accelerator.is_main_process:
            warnings.simplefilter("ignore")  # the first process says it
        if evaluation.dataset:
            zero_shot = _load_zero_shot_set(config)
        if data.sets:
            train, validation = load_sets(data, "train"), load_sets(data, "validation")
        else:
            train = _load_split(data, "train", data.train)
            validation = _load_split(data, "validation", data.validation)
        if accelerator.is_main_process:
            write_rejected(Path(config.output_dir), rejected)
    _check_loaded(config, train, validation, zero_shot)
    return RunData(train, validation, validation if zero_shot is None else zero_shot)


def _load_split(data: DataOptions, split: str, options: dict) -> Dataset | IterableDataset:
    options = data.options | options
    pairs = load_pairs(data.name, split, **options)
    return with_template_reports(pairs, data.name, options) if data.template_reports else pairs


def _check_loaded(
    config: TrainConfig, train: Dataset | IterableDataset, validation: Dataset, zero_shot: Dataset | None
) -> None:
    data, evaluation = config.data, config.evaluation
    if isinstance(validation, IterableDataset):
        raise ValueError("The validation set cannot be a stream: say so in data.train, not in data.options.")
    if isinstance(zero_shot, IterableDataset):
        raise ValueError("evaluation.options: an evaluation set cannot be a stream.")
    for split, pairs in (("training", train), ("validation", validation)):
        if isinstance(pairs, Dataset) and len(pairs) == 0:
            raise ValueError(f"data.name: {data.name} has no {split} pairs. What prepare skipped is in rejected.csv.")
    if isinstance(train, Dataset):
        without = [name for name, text in _first_texts(data, train).items() if text is None]
        if without:
            raise ValueError(
                f"data.{'sets' if data.sets else 'name'}: {without[0]} has no texts to train on. If it has labels, "
                "data.template_reports: true makes sentences from them."
            )
    measured = {"validation": (None, validation)}
    if zero_shot is not None:
        measured["evaluation.dataset"] = evaluation.dataset, zero_shot
    check_patients(train, measured, "" if data.sets else data.name)


def _first_texts(data: DataOptions, train: Dataset) -> dict[str, str | None]:
    """Of each data set."""
    if not data.sets:
        return {data.name: train.select_columns("text")[0]["text"]}
    texts = list(zip(train[SET][:], train["text"][:]))
    return dict(reversed(texts))


def _load_zero_shot_set(config: TrainConfig) -> Dataset:
    evaluation = config.evaluation
    try:
        return load_pairs(evaluation.dataset, evaluation.split, **evaluation.options)
    except ValueError as error:
        raise ValueError(f"evaluation.dataset or evaluation.options: {error}") from error


def _save_new_processor(config: TrainConfig, data: RunData, output_dir: Path) -> None:
    """Saved, loaded and saved again: from then on, saving what was loaded changes no file."""
    build_processor(config, data.train).save_pretrained(output_dir)
    TierProcessor.from_pretrained(output_dir).save_pretrained(output_dir)


def _load_processor(output_dir: Path) -> TierProcessor:
    try:
        return TierProcessor.from_pretrained(output_dir)
    except Exception as error:  # of many kinds, for damaged files
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"The tokenizer or image processor in {output_dir} cannot be loaded: {type(error).__name__}: {reason}"
        ) from error


def _drawn_pairs(config: TrainConfig, data: RunData) -> Dataset | IterableDataset:
    if config.data.subject_share == 1:
        return data.train
    return fraction_of_subjects(data.train, config.data.subject_share, config.seed)


def _max_logit_scale(config: TrainConfig, model: TierModel) -> float:
    """As CLIP; but a pretrained model may begin above it, as SigLIP's do."""
    return max(MAX_LOGIT_SCALE, model.logit_scale.item()) if config.model.pretrained else MAX_LOGIT_SCALE


def _check_evaluation(config: TrainConfig, data: RunData) -> None:
    data.prompts = config_prompts(config, data.zero_shot.features.get("labels", {}))
    best_metric = config.evaluation.best_metric
    if BY_NAME[best_metric].group == LOCALISATION and "regions" not in data.zero_shot.features:
        raise ValueError(f"evaluation.best_metric: {best_metric} needs a data set with regions; use auroc or loss.")


def _conditions(config: TrainConfig, accelerator: Accelerator, data: RunData, processor: TierProcessor) -> Conditions:
    """The fingerprints are known to the main process alone, which reads and writes checkpoints."""
    conditions = Conditions.of_run(config, accelerator)
    if accelerator.is_main_process:
        pairs = {"training pairs": data.train, "validation pairs": data.validation}
        if config.evaluation.dataset:
            pairs["pairs of evaluation.dataset"] = data.zero_shot
        conditions.data = {name: data_fingerprint(dataset) for name, dataset in pairs.items()}
        conditions.data["tokenizer or image processor in output_dir"] = processor_fingerprint(processor)
    return conditions


def _build_model(config: TrainConfig, processor: TierProcessor, accelerator: Accelerator) -> TierModel:
    try:
        model = build_model(config, processor)
    except (RuntimeError, MemoryError, OverflowError, TypeError, SafetensorError) as error:
        option = "model.pretrained" if config.model.pretrained else "model"
        raise ValueError(f"{option}: the model cannot be made: {str(error).splitlines()[0]}") from error
    for name, weight in model.state_dict().items():
        if weight.is_floating_point() and not weight.isfinite().all():
            raise ValueError(f"model.pretrained: {config.model.pretrained} has a weight that is no number: {name}.")
    if not accelerator.is_main_process:
        set_seed(config.seed, device_specific=True)  # dropout of its own in each process
    freeze(model, config.freeze)
    if config.training.gradient_checkpointing:
        model.activation_checkpointing_enable()
        for encoder in (model.text_model, model.vision_model):
            if not any(isinstance(module, GradientCheckpointingLayer) for module in encoder.modules()):
                accelerator.print(
                    f"WARNING: training.gradient_checkpointing does nothing for {type(encoder).__name__}."
                )
    if config.training.compile:
        compile_encoders(model)
    return model


def _resumed_state(config: TrainConfig, parts: Trainables, checkpoint: Checkpoint) -> RunState:
    """Put a checkpoint back; nothing on the disk is changed before that has worked."""
    accelerator, state = parts.accelerator, dataclasses.replace(checkpoint.state)
    folder = checkpoint.folder.parent
    best = main_process_decides(lambda: best_step(folder))
    if best is None or best > state.step:  # found later, and what was the best before it is gone
        state.best = None
    if state.epoch >= config.training.epochs and not state.best:
        raise ValueError(
            f"training.epochs is {config.training.epochs}, but {state.epoch} epochs of this run are done, and none of "
            f"their models was kept as the best: set it to {state.epoch + 1} or more."
        )
    checkpoint.load(parts, same_processes=checkpoint.conditions["processes"] == accelerator.num_processes)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        drop_later_checkpoints(folder, state.step)
    return state
