# Licensed under the Apache License, Version 2.0.
"""The training loop: from a configuration to a complete model folder, to be read from top to bottom."""

import json
import math
import os
import platform
import shutil
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, set_seed
from datasets import Dataset, IterableDataset
from tqdm.auto import tqdm
from transformers import get_scheduler
from transformers.modeling_layers import GradientCheckpointingLayer

from ..data import load_pairs
from ..evaluation import evaluate_zero_shot
from ..evaluation.report import LEAST_PEAK
from ..modeling_tier import TierModel
from ..processing_tier import TierProcessor
from .batches import Batches, share_of_subjects
from .building import build_model, build_processor
from .checkpoints import (
    ASIDE,
    BEST_FILE,
    MOVING,
    STATE_FILE,
    best_epochs,
    best_is_later,
    drop_later_checkpoints,
    find_checkpoint,
    load_checkpoint,
    put_back,
    replace_text,
    replacing,
    save_checkpoint,
    set_aside,
    settle_ensemble,
)
from .configuration import (
    BEST_METRICS,
    OptimizerOptions,
    TrainConfig,
    changed_options,
    check_config,
    config_prompts,
    flat,
    load_config,
)
from .freezing import freeze, train_mode
from .grad_cache import cached_backward, on
from .sharding import check_left_out, prepare, whole_model
from .stopping import EXIT_STOPPED, NonFiniteSteps, StopRequest


MAX_LOGIT_SCALE = math.log(100)


def train(config: TrainConfig, after_evaluation: Callable[[int, dict], bool] | None = None) -> dict:
    """
    Train a model and leave a complete model folder in `config.output_dir`, with `training_config.yaml`,
    `metrics.json`, `environment.json`, `log.jsonl` and `checkpoints/`.

    Args:
        config: as [`load_config`] gives it.
        after_evaluation: called in every process with the number of finished epochs and the validation metrics; the
            run ends there if it returns True.

    Returns:
        the validation metrics of the best checkpoint, as in `metrics.json`.

    Raises:
        ValueError: for options that cannot work, an output folder that holds another run, or gradients that are not
            finite in too many steps in a row.
        SystemExit: with the code `EXIT_STOPPED`, after SIGTERM or SIGINT: the step is done and its checkpoint written.
    """
    stop_request = StopRequest()
    try:
        return _train(config, after_evaluation, stop_request)
    except BaseException:
        if PartialState._shared_state and PartialState().is_main_process:
            put_back(Path(config.output_dir))
        raise
    finally:
        stop_request.leave()


def _train(config: TrainConfig, after_evaluation: Callable | None, stop_request: StopRequest) -> dict:
    check_config(config)
    training, optimizer_options, evaluation = config.training, config.optimizer, config.evaluation
    output_dir = Path(config.output_dir)
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # without it, several processes on CPUs would not find each other
        mixed_precision=training.mixed_precision,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        log_with=list(training.trackers) or None,
        project_dir=str(output_dir),
        # The other processes wait while the first one prepares data or evaluates.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=6))],
    )
    if training.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("training.mixed_precision: fp16 needs a GPU; use bf16 or no.")
    if accelerator.num_processes == 1 and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        accelerator.print(
            "WARNING: accelerate was asked for several processes and started one. On CPUs, start several with: "
            "accelerate launch --multi_gpu --num_processes 2 train.py ... (without a GPU they run on CPUs)."
        )
    checkpoint = _prepare_folder(config, output_dir, accelerator)
    set_seed(config.seed)  # of the weights, which all processes make alike
    # Data
    data = config.data
    with accelerator.main_process_first(), warnings.catch_warnings():
        if not accelerator.is_main_process:
            warnings.simplefilter("ignore")  # the first process says it
        if evaluation.dataset:
            zero_shot_set = _load_zero_shot_set(config)
        train_pairs = load_pairs(data.name, "train", **data.options | data.train)
        validation_pairs = load_pairs(data.name, "validation", **data.options | data.validation)
        if not evaluation.dataset:
            zero_shot_set = validation_pairs
    if isinstance(validation_pairs, IterableDataset):
        raise ValueError("The validation set cannot be a stream: say so in data.train, not in data.options.")
    if isinstance(zero_shot_set, IterableDataset):
        raise ValueError("evaluation.options: an evaluation set cannot be a stream.")
    for split, pairs in (("training", train_pairs), ("validation", validation_pairs)):
        if isinstance(pairs, Dataset) and len(pairs) == 0:
            raise ValueError(f"data.name: {data.name} has no {split} pairs. What prepare left out is in rejected.csv.")
    if isinstance(train_pairs, Dataset) and train_pairs.select_columns("text")[0]["text"] is None:
        raise ValueError(f"data.name: {data.name} has no texts to train on.")
    if accelerator.is_main_process and not checkpoint:
        build_processor(config, train_pairs).save_pretrained(output_dir)
    accelerator.wait_for_everyone()
    processor = TierProcessor.from_pretrained(output_dir)
    prompts = config_prompts(config, zero_shot_set.features.get("labels", {}))
    best_metric = evaluation.best_metric
    if best_metric in ("pointing_game", "cnr") and "regions" not in zero_shot_set.features:
        raise ValueError(f"evaluation.best_metric: {best_metric} needs a data set with regions; use auroc or loss.")
    if data.subject_share < 1:
        train_pairs = share_of_subjects(train_pairs, data.subject_share, config.seed)
    batches = Batches(train_pairs, processor, config, accelerator)

    # Model and optimiser
    model = build_model(config, processor)
    if not accelerator.is_main_process:
        set_seed(config.seed, device_specific=True)  # dropout of its own in each process
    freeze(model, config.freeze)
    if training.gradient_checkpointing:
        model.activation_checkpointing_enable()
        for encoder in (model.text_model, model.vision_model):
            if not any(isinstance(module, GradientCheckpointingLayer) for module in encoder.modules()):
                accelerator.print(
                    f"WARNING: training.gradient_checkpointing does nothing for {type(encoder).__name__}."
                )
    if training.compile:
        for encoder in (model.text_model, model.vision_model):
            encoder.compile()
    max_logit_scale = MAX_LOGIT_SCALE  # as CLIP; a pretrained model may begin above it, as SigLIP's do
    if config.model.pretrained:
        max_logit_scale = max(MAX_LOGIT_SCALE, model.logit_scale.item())
    optimizer = build_optimizer(model, optimizer_options)
    total_steps = batches.steps_per_epoch * training.epochs
    scheduler = build_scheduler(optimizer, optimizer_options, total_steps)
    model, optimizer = prepare(accelerator, model, optimizer, config)
    accelerator.register_for_checkpointing(scheduler)
    bare_model = accelerator.unwrap_model(model)
    state = {"epoch": 0, "step_in_epoch": 0, "step": 0, "best": None, "evaluations": []}
    state |= {"skipped": 0, "skipped_in_a_row": 0, "pairs_per_step": batches.step_size}
    if checkpoint:
        state |= load_checkpoint(checkpoint, accelerator)
        if best_is_later(output_dir / "checkpoints", state["step"]):
            state["best"] = None
        if state["epoch"] >= training.epochs and not state["best"]:
            raise ValueError(
                f"training.epochs is {training.epochs}, but {state['epoch']} epochs of this run are done, and none of "
                f"their models was kept as the best: set it to {state['epoch'] + 1} or more."
            )
        _check_pairs_per_step(state["pairs_per_step"], batches)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            drop_later_checkpoints(output_dir / "checkpoints", state["step"])
        accelerator.print(f"Resumed from {checkpoint} at step {state['step']} of {total_steps}.")
    log = Log(output_dir / "log.jsonl", accelerator, state)
    if training.trackers:
        log.track(lambda: accelerator.init_trackers("tier", config=flat(config.to_dict())))
    ensemble = output_dir / "ensemble"
    if accelerator.is_main_process:  # a run that was stopped may have left more
        settle_ensemble(ensemble, best_epochs(state["evaluations"], evaluation.keep_best))
    bar = tqdm(
        total=total_steps,
        initial=state["step"],
        desc="training",
        disable=not (training.progress and accelerator.is_main_process),
    )
    collapsed = False
    non_finite = NonFiniteSteps(bare_model, state, training.max_skipped_steps)
    last = output_dir / "checkpoints" / "last"
    save = partial(save_checkpoint, last, accelerator, state, training.keep_checkpoints)

    def leave():
        done = f"{state['step']} steps of {total_steps} are done"
        accelerator.print(f"Asked to stop: {done}. Go on with --training.resume_from_checkpoint auto.")
        raise SystemExit(EXIT_STOPPED)

    stop_request.listen()
    if accelerator.is_main_process:
        shutil.rmtree(output_dir / ASIDE, ignore_errors=True)  # nothing is in the way of this run

    for epoch in range(state["epoch"], training.epochs):
        train_mode(model)
        stop = False
        started, pairs = time.perf_counter(), 0
        for batch in batches.of_epoch(epoch, first_step=state["step_in_epoch"]):
            with accelerator.accumulate(model):
                non_finite.begin(batches.image_ids)
                scale = ramp(state["step"] / total_steps, config.regulariser.ramp_start, config.regulariser.ramp_end)
                if training.chunk_size is not None and training.chunk_size < training.batch_size:
                    out, batch = cached_backward(model, accelerator, batch, training.chunk_size, scale)
                else:
                    batch = on(accelerator.device, batch)
                    with accelerator.autocast():  # FSDP2's forward pass has none of its own
                        out = model(**batch, return_loss=True, entropy_scale=scale)
                    accelerator.backward(out.loss)
                if accelerator.sync_gradients:
                    max_norm = math.inf if optimizer_options.max_grad_norm is None else optimizer_options.max_grad_norm
                    grad_norm = accelerator.clip_grad_norm_(model.parameters(), max_norm)
                    skipped = non_finite.leave_out(grad_norm)
                    if skipped is not None:
                        images = {
                            "image_ids": skipped,
                            "loss": str(out.loss.item()),
                            "grad_norm": str(float(grad_norm)),
                        }
                        log.write(state["step"] + 1, epoch=epoch, skipped=images)
                        check_left_out(accelerator)
                if not accelerator.sync_gradients or skipped is None or accelerator.scaler is not None:
                    optimizer.step()  # in fp16 the scaler leaves it out, and makes its scale smaller
                optimizer.zero_grad()
            pairs += training.batch_size * accelerator.num_processes
            if not accelerator.sync_gradients:
                continue
            scheduler.step()
            with torch.no_grad():
                bare_model.logit_scale.clamp_(max=max_logit_scale)
            state["step"] += 1
            state["step_in_epoch"] += 1
            bar.update()

            if state["step"] % training.log_every == 0 or state["step"] == total_steps:
                shape = map_shape(out, bare_model, batch)
                log.write(
                    state["step"],
                    epoch=epoch,
                    **{name: out[name].item() for name in _LOSS_PARTS if name in out},
                    **shape,
                    entropy_scale=scale,
                    lr=scheduler.get_last_lr()[0],
                    grad_norm=float(grad_norm),
                    logit_scale=bare_model.logit_scale.exp().item(),
                    pairs_per_second=pairs / (time.perf_counter() - started),
                )
                started, pairs = time.perf_counter(), 0
                if not collapsed and _has_collapsed(shape, config, bare_model, scale):
                    collapsed = True
                    accelerator.print(_collapse_message(shape, state["step"]))
            if non_finite.too_many():
                save()
                raise ValueError(non_finite.message(output_dir))
            asked = stop_request.came(accelerator)
            if asked or (training.save_every_steps and state["step"] % training.save_every_steps == 0):
                save()
            if asked:
                leave()

        evaluates = (epoch + 1) % evaluation.every_epochs == 0 or epoch + 1 == training.epochs
        if evaluates:
            of = (processor, validation_pairs, zero_shot_set, prompts, config)
            whole = whole_model(accelerator, model)
            try:
                metrics = _evaluate(accelerator, whole, stop_request, *of)
            except Exception:
                save()  # the epoch is not lost; the run goes on with this evaluation
                raise
            if metrics is None:  # the run goes on with this evaluation
                save()
                leave()
        state["epoch"], state["step_in_epoch"] = epoch + 1, 0
        if evaluates:
            log.write(state["step"], epoch=epoch, validation=metrics)
            accelerator.print(_summary(state["epoch"], metrics, evaluation.dataset))
            value = metric_value(metrics, best_metric, evaluation.dataset)
            folders = []
            if not state["best"] or value > metric_value(state["best"]["validation"], best_metric, evaluation.dataset):
                state["best"] = {"step": state["step"], "epoch": state["epoch"], "validation": metrics}
                folders.append(output_dir / "checkpoints" / "best")
            state["evaluations"].append([state["epoch"], value])
            if evaluation.keep_best > 1 and state["epoch"] in best_epochs(state["evaluations"], evaluation.keep_best):
                folders.append(ensemble / f"epoch-{state['epoch']}")
            for folder in folders:
                with replacing(folder, accelerator) as temporary:
                    if accelerator.is_main_process:
                        whole.save_pretrained(temporary)
                        processor.save_pretrained(temporary)
                        (temporary / BEST_FILE).write_text(
                            json.dumps({"step": state["step"], "epoch": state["epoch"]})
                        )
            stop = after_evaluation is not None and after_evaluation(state["epoch"], metrics)
        save()
        if accelerator.is_main_process:
            settle_ensemble(ensemble, best_epochs(state["evaluations"], evaluation.keep_best))
        if state["epoch"] < training.epochs and not stop and stop_request.came(accelerator):
            leave()
        if stop:
            break

    bar.close()
    if accelerator.is_main_process:
        best = TierModel.from_pretrained(output_dir / "checkpoints" / "best")
        best.save_pretrained(output_dir)
        processor.save_pretrained(output_dir)
        (output_dir / "metrics.json").write_text(json.dumps(state["best"], indent=2))
    accelerator.wait_for_everyone()
    log.track(accelerator.end_training)
    return state["best"]


_LOSS_PARTS = ("loss", "contrastive_loss", "token_entropy", "patch_entropy")


class Log:
    """One line of JSON for every logged step, and the same to the trackers; on the main process alone."""

    def __init__(self, path: Path, accelerator: Accelerator, state: dict):
        self.path, self.accelerator = path, accelerator
        if accelerator.is_main_process and path.exists():  # lines of what a resumed run does again
            lines = [line for line in path.read_text().splitlines(keepends=True) if _is_before(line, state)]
            replace_text(path, "".join(lines))

    def write(self, step: int, **values) -> None:
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        if self.accelerator.trackers:
            numbers = {name: value for name, value in flat(values).items() if isinstance(value, int | float)}
            self.track(lambda: self.accelerator.log(numbers, step=step))

    def track(self, call: Callable[[], None]) -> None:
        """A tracker that cannot be reached does not end a run."""
        try:
            call()
        except Exception as error:
            self.accelerator.trackers.clear()
            print(f"WARNING: the trackers failed and are left out from here on; log.jsonl goes on. {error}")


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """
    Weight decay for the weights of linear and convolutional layers. None for biases and norms, which set scales and
    not directions; for embeddings, of which a step sees few rows and would shrink the others; and for single
    parameters such as `logit_scale` and class tokens. Frozen parameters are left out.
    """
    matrices = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d)
    decayed = {id(m.weight) for m in model.modules() if isinstance(m, matrices)}
    decayed |= {id(m.in_proj_weight) for m in model.modules() if isinstance(m, torch.nn.MultiheadAttention)}
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) not in decayed], "weight_decay": 0.0},
    ]


def _is_before(line: str, state: dict) -> bool:
    """Whether a line of the log is of what the checkpoint with this state has behind it."""
    if not line.endswith("\n"):  # torn
        return False
    entry = json.loads(line)
    return entry["epoch"] < state["epoch"] if "validation" in entry else entry["step"] <= state["step"]


def _load_zero_shot_set(config: TrainConfig) -> Dataset:
    evaluation = config.evaluation
    try:
        return load_pairs(evaluation.dataset, evaluation.split, **evaluation.options)
    except ValueError as error:
        raise ValueError(f"evaluation.dataset or evaluation.options: {error}") from error


def build_optimizer(model: torch.nn.Module, options: OptimizerOptions) -> torch.optim.Optimizer:
    """AdamW as CLIP's, or Adam as the authors of arXiv 2212.06710 use it: weight decay in every gradient."""
    betas = (options.beta1, options.beta2)
    if options.name == "adam":
        trained = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.Adam(trained, lr=options.lr, betas=betas, weight_decay=options.weight_decay)
    return torch.optim.AdamW(parameter_groups(model, options.weight_decay), lr=options.lr, betas=betas)


def build_scheduler(optimizer: torch.optim.Optimizer, options: OptimizerOptions, total_steps: int):
    """A linear warm-up, then a cosine or the same rate to the end."""
    warmup_steps = round(options.warmup_share * total_steps)
    if options.schedule == "constant":
        return get_scheduler("constant_with_warmup", optimizer, num_warmup_steps=warmup_steps)
    return get_scheduler(
        "cosine_with_min_lr",
        optimizer,
        num_warmup_steps=warmup_steps,
        num_training_steps=total_steps,
        scheduler_specific_kwargs={"min_lr_rate": options.min_lr_share},
    )


def ramp(progress: float, start: float, end: float) -> float:
    """Factor on both lambdas: 0 before `start`, 1 from `end` on, linear in between; all are shares of the steps."""
    if progress >= end:
        return 1.0
    return 0.0 if progress <= start else (progress - start) / (end - start)


@torch.no_grad()
def map_shape(out, model: TierModel, batch: dict) -> dict[str, float]:
    """Share of negative token-patch cosines, and the mean over tokens of the largest one."""
    mask = model.entropy_mask(batch["input_ids"], batch["attention_mask"])
    cosines = (out.token_embeds.float() @ out.patch_embeds.float().transpose(1, 2))[mask]
    return {
        "negative_share": (cosines < 0).float().mean().item(),
        "peak": cosines.max(dim=1).values.mean().item(),
    }


def _has_collapsed(shape: dict, config: TrainConfig, model: TierModel, scale: float) -> bool:
    """
    Every patch against nearly every token, and hardly a token with a patch of its own. Many negative cosines alone are
    no harm: the token term pushes them down around a peak.
    """
    patch_term = scale > 0 and model.config.lambda_patch > 0
    against = shape["negative_share"] > config.regulariser.warn_negative_share
    return patch_term and against and shape["peak"] < LEAST_PEAK


def _collapse_message(shape: dict, step: int) -> str:
    return (
        f"WARNING at step {step}: {shape['negative_share']:.0%} of the token-patch cosines are negative and a token's "
        f"largest is {shape['peak']:.2f} on average. The patch term has turned the patches against the tokens: the "
        "maps will be worthless although the AUROC may not show it. Lower model.lambda_patch, or let it come in later "
        "with regulariser.ramp_start and regulariser.ramp_end."
    )


def _evaluate(
    accelerator: Accelerator,
    model: TierModel,
    stop_request: StopRequest,
    processor: TierProcessor,
    validation_pairs: Dataset,
    zero_shot_set: Dataset,
    prompts: dict,
    config: TrainConfig,
) -> dict | None:
    """
    Validation metrics, computed by the main process and known to all; None if that was asked to stop. Those of
    `evaluation.dataset` stand under its name.
    """
    result, evaluation, error = [None], config.evaluation, None
    if accelerator.is_main_process:
        of = partial(
            evaluate_zero_shot,
            model,
            processor,
            batch_size=evaluation.batch_size,
            progress=config.training.progress,
            uncertain=evaluation.uncertain,
            blank=evaluation.blank,
        )

        def measure() -> dict:
            if not evaluation.dataset:
                return of(dataset=validation_pairs, prompts=prompts)[0]
            metrics, _ = of(dataset=validation_pairs, prompts={}, localisation=False)
            metrics[evaluation.dataset], _ = of(dataset=zero_shot_set, prompts=prompts)
            return metrics

        try:
            result[0] = stop_request.interruptible(measure)
        except Exception as caught:  # the others wait for the result
            result[0], error = str(caught), caught
    metrics = broadcast_object_list(result)[0]
    if isinstance(metrics, str):
        raise error or ValueError(metrics)
    return metrics


def metric_value(metrics: dict, name: str, dataset: str | None = None) -> float:
    """The number that `evaluation.best_metric` means, larger being better; `dataset` is `evaluation.dataset`."""
    if dataset and name not in ("loss", "contrastive_loss"):
        metrics = metrics[dataset]
    value = metrics[name] if name in metrics else metrics["localisation"][name]
    value = value["mean"] if isinstance(value, dict) else value
    if value is None or math.isnan(value):
        return -math.inf
    return value if BEST_METRICS[name] else -value


def _summary(epoch: int, metrics: dict, dataset: str | None) -> str:
    recall = metrics["retrieval"]["image_to_text"]
    zero_shot = metrics[dataset] if dataset else metrics
    line = (
        f"epoch {epoch}: loss {metrics['loss']:.3f} "
        f"(contrastive {metrics['contrastive_loss']:.3f}), entropies {metrics['token_entropy']:.3f} of a token and "
        f"{metrics['patch_entropy']:.3f} of a patch, R@1/5/10 {recall['r@1']:.3f}/{recall['r@5']:.3f}/"
        f"{recall['r@10']:.3f}"
    )
    line += f"; {dataset}" if dataset else ""
    if "auroc" in zero_shot:  # not without sentences
        line += f", AUROC {_number(zero_shot['auroc']['mean'])}"
    if "localisation" in zero_shot:
        places = zero_shot["localisation"]
        line += f", pointing {_number(places['pointing_game']['mean'])}, CNR {_number(places['cnr']['mean'])}"
    return line


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _prepare_folder(config: TrainConfig, output_dir: Path, accelerator: Accelerator) -> Path | None:
    """Make the output folder ready; returns the checkpoint to resume from, if one is asked for."""
    resume = config.training.resume_from_checkpoint
    checkpoint = find_checkpoint(resume, output_dir) if resume else None
    occupied = output_dir.exists() and any(output_dir.iterdir())
    # A run that ended before its first step, on an error that has been mended, is nobody's loss.
    if (output_dir / "training_config.yaml").is_file() and not (output_dir / "log.jsonl").is_file():
        occupied = any((output_dir / name).exists() for name in ("checkpoints", "model.safetensors", MOVING))
    if resume == "auto" and not checkpoint and (output_dir / "training_config.yaml").is_file():
        # Stopped before its first checkpoint: there is nothing to go on from, and nothing to lose.
        occupied = (output_dir / "model.safetensors").exists()
        if not occupied and accelerator.is_main_process:
            (output_dir / "log.jsonl").unlink(missing_ok=True)
    if occupied and not checkpoint and not config.training.overwrite:
        raise ValueError(
            f"{output_dir} is not empty: go on with --training.resume_from_checkpoint last, replace it with "
            "--training.overwrite true, or choose another output_dir."
        )
    if occupied and config.training.overwrite and not (output_dir / "training_config.yaml").is_file():
        raise ValueError(f"{output_dir} holds no training run: training.overwrite does not empty it.")
    if checkpoint:
        _check_same_run(config, output_dir, checkpoint)
    if config.training.overwrite:
        for key, value in flat(config.to_dict()).items():
            path = Path(value).resolve() if isinstance(value, str) and key != "output_dir" else None
            if path and os.path.exists(path) and output_dir.resolve() in (path, *path.parents):
                raise ValueError(f"{key}: {value} lies in output_dir, which training.overwrite replaces.")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if occupied and config.training.overwrite:
            set_aside(output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        config.save(output_dir / "training_config.yaml")
        packages = (
            "torch",
            "transformers",
            "datasets",
            "accelerate",
            "evaluate",
            "safetensors",
            "tokenizers",
            "numpy",
        )
        environment = {"python": platform.python_version(), **{name: version(name) for name in packages}}
        environment |= {"system": platform.system(), "machine": platform.machine(), "device": accelerator.device.type}
        environment |= {"num_processes": accelerator.num_processes}
        (output_dir / "environment.json").write_text(json.dumps(environment, indent=2))
    accelerator.wait_for_everyone()
    return checkpoint


def _check_pairs_per_step(before: int, batches: Batches) -> None:
    """The number of processes may change between a stop and a resume; the pairs of a step, which set its end, not."""
    if batches.step_size != before:
        raise ValueError(
            f"A step of this run has {before} pairs; training.batch_size {batches.batch_size} x "
            f"gradient_accumulation_steps {batches.micro} x {batches.processes} processes are {batches.step_size}. "
            "With another number of processes, set training.batch_size so that their product stays."
        )


_FREE = ("evaluation.every_epochs", "evaluation.batch_size", "evaluation.keep_best")  # to change on the way


def _check_same_run(config: TrainConfig, output_dir: Path, checkpoint: Path) -> None:
    """What a checkpoint has settled cannot be changed when a run goes on."""
    sections = ("seed", "data", "model", "tokenizer", "freeze", "optimizer")
    before, now = load_config(output_dir / "training_config.yaml").to_dict(), config.to_dict()
    if json.loads((checkpoint / STATE_FILE).read_text())["evaluations"]:  # to which the next ones are compared
        sections += ("evaluation",)
    changed = changed_options(*({section: options[section] for section in sections} for options in (before, now)))
    changed = [name for name in changed if name not in _FREE]
    if changed:
        raise ValueError(
            f"{changed[0]} is not what the run in {output_dir} was started with: leave it as it was, or start a new "
            "run, from this one's model with model.pretrained."
        )
