# Licensed under the Apache License, Version 2.0.
"""The training loop: from a configuration to a complete model folder, to be read from top to bottom."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import NoReturn

import torch
from tqdm.auto import tqdm

from ..configuration_tier import TERMS
from ..files import merged_folder, replace_json
from ..hub_access import hub_or_cache
from ..loading import check_model_name
from ..modeling_tier import TierModel, TierOutput
from .checkpoints import best_epochs, best_step, save_checkpoint, save_model, settle_ensemble
from .configuration_checks import check_config
from .freezing import train_mode
from .grad_cache import cached_backward
from .local_loss import LocalLoss
from .log import map_shape, peak_memory
from .optimization import ramp
from .options import TrainConfig
from .processes import long_wait, main_process_decides
from .run_folder import forget_replaced_run, run_folder
from .setup import Run, set_up, start_processes
from .sharding import check_skipped, unsharded_model
from .state import RunState
from .stopping import EXIT_STOPPED, StopRequest
from .validation import metric_value, summary, validation_metrics


_LOSS_PARTS = ("loss", "contrastive_loss", *TERMS, "local_loss")


def train(
    config: TrainConfig,
    after_evaluation: Callable[[int, dict], bool] | None = None,
    after_step: Callable[[RunState], None] | None = None,
) -> dict:
    """
    Train a model and leave a complete model folder in `config.output_dir`, with `training_config.yaml`,
    `metrics.json`, `environment.json`, `log.jsonl` and `checkpoints/`.

    Args:
        config: as [`load_config`] gives it.
        after_evaluation: called in every process with the number of finished epochs and the validation metrics; the
            run ends there if it returns True.
        after_step: called in every process when a step is done and logged, before its checkpoint is written.

    Returns:
        the validation metrics of the best checkpoint, as in `metrics.json`.

    Raises:
        ValueError: for options that cannot work, an output folder that holds another run, or gradients that are not
            finite in too many steps in a row.
        SystemExit: with the code `EXIT_STOPPED`, after SIGTERM or SIGINT: the step is done and its checkpoint written.
    """
    check_config(config)
    _check_pretrained(config)
    accelerator = start_processes(config)
    stop_request = StopRequest()
    try:
        with run_folder(config, accelerator) as checkpoint:
            with hub_or_cache(config.model.pretrained, config.tokenizer.pretrained):
                run = set_up(config, accelerator, checkpoint, stop_request)
            stop_request.listen()
            if accelerator.is_main_process:
                forget_replaced_run(run.output_dir)
            while run.state.epoch < config.training.epochs:
                train_epoch(run, after_step)
                metrics = evaluate_epoch(run)
                ends = metrics is not None and after_evaluation is not None
                ends = ends and after_evaluation(run.state.epoch, metrics)
                end_epoch(run, ends)
                if ends:
                    break
            return finish(run)
    finally:
        stop_request.leave()


def _check_pretrained(config: TrainConfig) -> None:
    """Raise ValueError if the model to start from is not there, before the run's folder is made."""
    if config.model.pretrained:
        try:
            check_model_name(config.model.pretrained)
        except ValueError as error:
            raise ValueError(f"model.pretrained: {error}") from error


def train_epoch(run: Run, after_step: Callable[[RunState], None] | None = None) -> None:
    """The steps of an epoch that are not done yet."""
    state, training, accelerator = run.state, run.config.training, run.accelerator
    train_mode(run.parts.model)
    if accelerator.device.type == "cuda":  # the evaluation's is not that of the steps
        torch.cuda.reset_peak_memory_stats(accelerator.device)
    progress = tqdm(
        total=run.batches.steps_per_epoch,
        initial=state.step_in_epoch,
        desc=f"epoch {state.epoch + 1} of {training.epochs}",
        disable=not (training.progress and accelerator.is_main_process),
    )
    started, pairs = time.perf_counter(), 0
    for batch in run.batches.of_epoch(state.epoch, first_step=state.step_in_epoch):
        with accelerator.accumulate(run.parts.model):
            scale = ramp(state.step / run.total_steps, *_ramp_ends(run.config))
            out, batch = forward_backward(run, batch, scale)
            grad_norm = update(run, out)
        pairs += training.batch_size * accelerator.num_processes
        if not accelerator.sync_gradients:  # the gradients of more batches belong to this step
            continue
        run.parts.scheduler.step()
        with torch.no_grad():
            run.bare_model.logit_scale.clamp_(max=run.max_logit_scale)
        state.step += 1
        state.step_in_epoch += 1
        progress.update()

        if state.step % training.log_every == 0 or state.step == run.total_steps:
            log_step(run, out, batch, scale, grad_norm, pairs / (time.perf_counter() - started))
            started, pairs = time.perf_counter(), 0
        if after_step is not None:
            after_step(state)
        if run.non_finite.too_many():
            save(run)
            raise ValueError(run.non_finite.message(run.output_dir))
        if training.save_every_steps and state.step % training.save_every_steps == 0:
            save(run)
        stop_if_asked(run)
    progress.close()


def _ramp_ends(config: TrainConfig) -> tuple[float, float]:
    return config.regulariser.ramp_start, config.regulariser.ramp_end


def forward_backward(
    run: Run, batch: dict[str, torch.Tensor], entropy_scale: float
) -> tuple[TierOutput, dict[str, torch.Tensor]]:
    """Add the gradient of a batch's loss; returns the output and the inputs that it belongs to."""
    training, accelerator, model = run.config.training, run.accelerator, run.parts.model
    run.non_finite.begin(run.batches.image_ids)
    local_loss = LocalLoss.of_batch(run.config.regulariser, batch, accelerator.device, entropy_scale)
    if training.chunk_size is not None and training.chunk_size < training.batch_size:
        to_device = run.batches.to_device
        return cached_backward(model, accelerator, batch, training.chunk_size, entropy_scale, to_device, local_loss)
    batch = run.batches.to_device(batch)
    with accelerator.autocast():  # FSDP2's forward pass has none of its own
        out = model(**batch, return_loss=True, entropy_scale=entropy_scale, local_loss=local_loss)
    accelerator.backward(out.loss)
    return out, batch


def update(run: Run, out: TierOutput) -> torch.Tensor | None:
    """Clip the gradient and take the optimiser step, unless the gradient is not finite; returns its norm."""
    accelerator, optimizer, grad_norm, skipped = run.accelerator, run.parts.optimizer, None, None
    if accelerator.sync_gradients:
        limit = run.config.optimizer.max_grad_norm
        grad_norm = accelerator.clip_grad_norm_(run.parts.model.parameters(), math.inf if limit is None else limit)
        skipped = run.non_finite.skip(grad_norm)
        if skipped is not None:
            values = {"image_ids": skipped, "loss": str(out.loss.item()), "grad_norm": str(float(grad_norm))}
            run.log.write(run.state.step + 1, epoch=run.state.epoch, skipped=values)
            check_skipped(accelerator)
    if skipped is None or accelerator.scaler is not None:
        optimizer.step()  # in fp16 the scaler skips it, and makes its scale smaller
    optimizer.zero_grad()
    return grad_norm


def log_step(
    run: Run,
    out: TierOutput,
    batch: dict[str, torch.Tensor],
    entropy_scale: float,
    grad_norm: torch.Tensor,
    pairs_per_second: float,
) -> None:
    """Losses, shape of the maps, rates and norms of a step."""
    model, state = run.bare_model, run.state
    shape = map_shape(out, model, batch)
    run.log.write(
        state.step,
        epoch=state.epoch,
        **{name: out[name].item() for name in _LOSS_PARTS if name in out},
        **shape,
        entropy_scale=entropy_scale,
        lr=run.parts.scheduler.get_last_lr()[0],
        grad_norm=float(grad_norm),
        logit_scale=model.logit_scale.exp().item(),
        pairs_per_second=pairs_per_second,
        **peak_memory(run.accelerator.device),
    )
    run.log.warn_of_collapse(state.step, shape, entropy_scale * model.config.lambda_patch)


def evaluate_epoch(run: Run) -> dict | None:
    """
    The validation metrics after an epoch, whose model is kept if it is among the best; None if it is not evaluated.
    If the evaluation fails or is interrupted, a checkpoint is written, and a resumed run begins with the evaluation.
    """
    state, config, accelerator = run.state, run.config, run.accelerator
    evaluates = (state.epoch + 1) % config.evaluation.every_epochs == 0 or state.epoch + 1 == config.training.epochs
    if not evaluates:
        state.epoch, state.step_in_epoch = state.epoch + 1, 0
        return None
    model = unsharded_model(accelerator, run.parts.model)
    data = (run.data.validation, run.data.zero_shot, run.data.prompts)
    measure = partial(validation_metrics, model, run.processor, *data, config)
    try:
        metrics = main_process_decides(partial(run.stop_request.interruptible, measure))
    except Exception:
        save(run)
        raise
    if metrics is None:
        stop(run)
    state.epoch, state.step_in_epoch = state.epoch + 1, 0
    run.log.write(state.step, epoch=state.epoch - 1, validation=metrics)
    accelerator.print(summary(state.epoch, metrics, config.evaluation.dataset))
    keep_if_best(run, model, metrics)
    return metrics


def keep_if_best(run: Run, model: TierModel, metrics: dict) -> None:
    """Write the model to `checkpoints/best` if no evaluation before was better, and to the ensemble's folder."""
    state, evaluation = run.state, run.config.evaluation
    value = metric_value(metrics, evaluation.best_metric, evaluation.dataset)
    best = state.best and metric_value(state.best["validation"], evaluation.best_metric, evaluation.dataset)
    folders = []
    if best is None or value > best:
        state.best = {"step": state.step, "epoch": state.epoch, "validation": metrics}
        folders.append(run.checkpoints / "best")
    state.evaluations.append([state.epoch, value])
    if evaluation.keep_best > 1 and state.epoch in best_epochs(state.evaluations, evaluation.keep_best):
        folders.append(run.output_dir / "ensemble" / f"epoch-{state.epoch}")
    for folder in folders:
        save_model(folder, run.accelerator, model, run.clean_processor, state)


def end_epoch(run: Run, is_last: bool) -> None:
    """Write the checkpoint of an epoch; stop there, if the run was asked to and is not at its end."""
    save(run)
    if run.accelerator.is_main_process:
        members = best_epochs(run.state.evaluations, run.config.evaluation.keep_best)
        settle_ensemble(run.output_dir / "ensemble", members)
    if run.state.epoch < run.config.training.epochs and not is_last:
        stop_if_asked(run)


def save(run: Run) -> None:
    """Write a checkpoint, unless the newest one is of this moment."""
    moment = (run.state.step, run.state.epoch)
    if run.saved_at != moment:
        keep = run.config.training.keep_checkpoints
        with long_wait():
            save_checkpoint(run.checkpoints / "last", run.parts, run.state, asdict(run.conditions), keep)
        run.saved_at = moment


def stop_if_asked(run: Run) -> None:
    """End the run with a checkpoint if a process received a signal; all processes must call this."""
    if run.stop_request.came(run.accelerator):
        stop(run)


def stop(run: Run) -> NoReturn:
    save(run)
    run.accelerator.print(
        f"Asked to stop: {run.state.step} steps of {run.total_steps} are done. Go on with "
        "--training.resume_from_checkpoint auto."
    )
    raise SystemExit(EXIT_STOPPED)


def finish(run: Run) -> dict:
    """Make a complete model folder of the best checkpoint; returns its metrics."""
    if run.accelerator.is_main_process:
        best_step(run.checkpoints)  # else an error that names the damaged file
        with merged_folder(run.output_dir, last="metrics.json") as folder:
            TierModel.from_pretrained(run.checkpoints / "best").save_pretrained(folder)
            run.clean_processor.save_pretrained(folder)
            replace_json(folder / "metrics.json", run.state.best)
    run.accelerator.wait_for_everyone()
    run.log.end()
    return run.state.best
