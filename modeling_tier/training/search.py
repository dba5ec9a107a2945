# Licensed under the Apache License, Version 2.0.
"""Search for `lambda_token` and `lambda_patch`: short runs over the plane of both, as in arXiv 2212.06710."""

import dataclasses
import gc
import json
import math
import shutil
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import optuna
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from ..evaluation.figures import plot_search
from ..evaluation.measures import SEARCH, shown_in
from ..evaluation.tables import aligned
from ..files import LOCK_FILE, locked_folder, replace_json, replace_text
from .checkpoints import candidates, checkpoint_evaluations
from .loop import train
from .options import TrainConfig, changed_options
from .processes import main_process_decides
from .run_folder import LOCK_SECONDS
from .validation import metric_value


METHODS = ("random", "tpe")
LAMBDAS = ("lambda_token", "lambda_patch")
# Options that change no trial: they may be others when a search goes on.
_FREE = [f"config.training.{name}" for name in ("log_every", "progress", "save_every_steps", "trackers")]
# What the table shows of each trial: columns of the best epoch's validation metrics.
SHOWN = [measure.name for measure in shown_in(SEARCH)]


def search_lambdas(config: TrainConfig, method: str, trials: int, largest: float) -> list[dict]:
    """
    Train once for each pair of lambdas and compare. The first pair is (0, 0), CLIP without the regulariser.

    Everything is in `config.output_dir`: `search.json` (what was asked for), `trials.jsonl` (one line per trial),
    a folder `trials/NNN` with the log and the metrics of each, `table.txt` and `search.png`. Called again, it goes on:
    finished trials are not repeated, and one that was cut off continues at its last checkpoint. A search that was
    interrupted gives the same trials as one that was not.

    Args:
        config: of every trial; its lambdas are replaced, and the trials are compared by `evaluation.best_metric`.
        method: "random": uniform draws, as the paper. "tpe": Optuna's tree-structured Parzen estimator after ten such
            draws; a trial ends early when its best value so far is below the median that the trials which ran to
            their end had at that epoch, once there are five of them.
        trials: number of pairs. More than before: the search is extended.
        largest: both lambdas are searched in [0, largest].

    Returns:
        the trials, the best first, as in `trials.jsonl`: `number`, `lambda_token`, `lambda_patch`, `value` of the best
        metric, `values`: `[epoch, value]` of each evaluation, `pruned`: whether it ended early, `metrics`: others of
        the best epoch.

    Raises:
        ValueError: for options that cannot work, or a folder that holds another search.
    """
    if method not in METHODS:
        raise ValueError(f"The method must be one of {list(METHODS)}; got {method!r}.")
    if config.evaluation.best_metric == "loss":
        raise ValueError("evaluation.best_metric: the loss depends on the lambdas; use contrastive_loss or auroc.")
    if trials < 1 or not 0 < largest < math.inf:
        raise ValueError(f"A search needs at least one trial and a positive largest lambda; got {trials}, {largest}.")
    state = PartialState(cpu=not torch.accelerator.is_available())
    folder = Path(config.output_dir)
    with ExitStack() as stack:
        main_process_decides(lambda: stack.enter_context(locked_folder(folder, timeout=LOCK_SECONDS)))
        main_process_decides(lambda: _prepare_folder(folder, config, method, largest))
        finished = main_process_decides(lambda: _read_trials(folder))
        while True:
            if state.is_main_process and finished:
                _write_results(folder, finished, largest, config.evaluation.best_metric)
            state.wait_for_everyone()
            if len(finished) >= trials:
                return _ranked(finished)
            finished.append(_run_trial(config, method, largest, finished))
            gc.collect()


def _run_trial(config: TrainConfig, method: str, largest: float, finished: list[dict]) -> dict:
    number, best_metric, dataset = len(finished), config.evaluation.best_metric, config.evaluation.dataset
    trial = _study(method, largest, finished, config.seed).ask()
    pair = {name: trial.suggest_float(name, 0.0, largest) for name in LAMBDAS}
    pair = broadcast_object_list([pair])[0]  # all processes work it out, but it must not differ by a bit
    folder = Path(config.output_dir) / "trials" / f"{number:03d}"
    values = _values_before(folder)
    for epoch, value in values:
        trial.report(value, epoch)

    def worse() -> bool:
        return method != "random" and bool(values) and values[-1][0] < config.training.epochs and trial.should_prune()

    def after_evaluation(epoch: int, metrics: dict) -> bool:
        value = metric_value(metrics, best_metric, dataset)
        if value == -math.inf:
            raise ValueError(f"evaluation.best_metric: {best_metric} is undefined on the validation set.")
        values[:] = [entry for entry in values if entry[0] < epoch]  # it may have resumed from an older checkpoint
        values.append([epoch, value])
        trial.report(value, epoch)
        return worse()

    training = dataclasses.replace(config.training, overwrite=False)
    training.resume_from_checkpoint = "last" if folder.exists() else None
    if worse():  # cut off just after it was to end
        training.epochs = values[-1][0]
    model = dataclasses.replace(config.model, **pair)
    best = train(dataclasses.replace(config, output_dir=str(folder), model=model, training=training), after_evaluation)
    return {
        "number": number,
        **pair,
        "value": metric_value(best["validation"], best_metric, dataset),
        "values": values,
        "pruned": values[-1][0] < config.training.epochs,
        "metrics": _shown(best["validation"], dataset),
    }


def _study(method: str, largest: float, finished: list[dict], seed: int) -> optuna.Study:
    """
    Optuna's view of the trials so far. It is made anew for each trial, so that what comes next depends on the seed and
    the finished trials alone, however often the search was interrupted.
    """
    number = len(finished)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=(seed + number) % 2**32),
        pruner=optuna.pruners.MedianPruner(),
    )
    distributions = dict.fromkeys(LAMBDAS, optuna.distributions.FloatDistribution(0.0, largest))
    states = optuna.trial.TrialState
    for trial in finished:
        study.add_trial(
            optuna.trial.create_trial(
                params={name: trial[name] for name in LAMBDAS},
                distributions=distributions,
                value=trial["value"],
                intermediate_values=dict(trial["values"]),
                state=states.PRUNED if trial["pruned"] else states.COMPLETE,
            )
        )
    if number == 0 or method == "random":
        drawn = np.random.default_rng([seed, number]).uniform(0.0, largest, len(LAMBDAS)).tolist()
        study.enqueue_trial(dict(zip(LAMBDAS, drawn if number else (0.0, 0.0))))
    return study


def _prepare_folder(folder: Path, config: TrainConfig, method: str, largest: float) -> None:
    asked = {"method": method, "largest": largest, "config": {**config.to_dict(), "output_dir": None}}
    path = folder / "search.json"
    if path.is_file():
        try:
            changed = changed_options(json.loads(path.read_bytes()), asked)
        except (ValueError, AttributeError):
            raise ValueError(f"{path} is damaged: choose another folder.") from None
        changed = [name for name in changed if name not in _FREE]
        if changed:
            raise ValueError(
                f"{folder} holds a search with another {changed[0].removeprefix('config.')}: choose another folder, "
                "or go on with what that one was started with."
            )
    elif any(path.name not in ("search.json.tmp", LOCK_FILE) for path in folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no search: choose another folder.")
    replace_json(path, asked)


def _values_before(folder: Path) -> list[list]:
    """
    Epochs and values of a trial that was cut off, up to the checkpoint from which it continues. Where there is none it
    begins anew: its folder is deleted.
    """
    state = PartialState()
    checkpoints = candidates(folder / "checkpoints")
    evaluations = checkpoint_evaluations(checkpoints[0]) if checkpoints else []
    state.wait_for_everyone()
    if not checkpoints and state.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
    state.wait_for_everyone()
    return evaluations


def _read_trials(folder: Path) -> list[dict]:
    path, trials = folder / "trials.jsonl", []
    if not path.is_file():
        return trials
    for number, line in enumerate(path.read_bytes().splitlines()):
        try:
            trials.append(json.loads(line))
            if trials[-1]["number"] != number:
                raise ValueError
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                f"{path}, line {number + 1}, is damaged: delete it and those after it; these trials are run again."
            ) from None
    return trials


def _write_results(folder: Path, finished: list[dict], largest: float, best_metric: str) -> None:
    replace_text(folder / "trials.jsonl", "".join(json.dumps(trial) + "\n" for trial in finished))
    replace_text(folder / "table.txt", search_table(finished) + "\n")
    plot_search(finished, folder / "search.png", largest, best_metric)
    for trial in finished:  # logs and metrics stay; thirty models would fill a disk
        own = folder / "trials" / f"{trial['number']:03d}"
        for name in ("checkpoints", "ensemble"):
            shutil.rmtree(own / name, ignore_errors=True)
        (own / "model.safetensors").unlink(missing_ok=True)


def _ranked(trials: list[dict]) -> list[dict]:
    return sorted(trials, key=lambda trial: -trial["value"])


def _shown(validation: dict, dataset: str | None) -> dict[str, float]:
    """The metrics of a trial that its table and picture show, as far as they were measured."""
    zero_shot = validation[dataset] if dataset else validation
    values = {m.name: m.mean_of(validation if m.of_pairs else zero_shot) for m in shown_in(SEARCH)}
    return {name: value for name, value in values.items() if value is not None}


def search_table(trials: list[dict]) -> str:
    """One row per trial, the best first."""
    names = [name for name in SHOWN if any(name in trial["metrics"] for trial in trials)]
    rows = [["trial", *LAMBDAS, *names, "epochs"]]
    for trial in _ranked(trials):
        values = [f"{trial['metrics'][name]:z.3f}" if name in trial["metrics"] else "-" for name in names]
        epochs = f"{trial['values'][-1][0]}{', ended early' if trial['pruned'] else ''}"
        rows.append([str(trial["number"]), *(f"{trial[name]:.3f}" for name in LAMBDAS), *values, epochs])
    return aligned(rows)
