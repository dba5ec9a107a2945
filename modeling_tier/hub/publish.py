# Licensed under the Apache License, Version 2.0.
"""Publish a trained model on the Hub in one commit: what `python -m modeling_tier.publish` does."""

import os
import shlex
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers.utils import logging

from ..training import TrainConfig
from .check import check
from .origin import check_shareable, may_be_shown, option, origin_of, vocabulary_problem
from .release import Release, ReleaseOptions, check_folder, prepare_release
from .repository import add_to_collection, check_names, check_repository, explained_errors, send, tag_release


def publish(
    folder: str | os.PathLike, repo_id: str, private: bool = True, dry_run: bool = False, **options
) -> str | None:
    """
    Look through a model's folder, print what goes and what stays, and send it in one commit. The folder is not
    changed.

    Args:
        folder: a complete model folder, such as `train.py` leaves.
        repo_id: "user/name".
        private: whether the repository is a private one. One that is there already is not changed in that.
        dry_run: whether to print the list and the card, and end; needs no token and no network.
        **options: the other fields of [`ReleaseOptions`], such as `evaluation`, `tag` or `gated`.

    Returns:
        address of the commit; None after a dry run.

    Raises:
        ValueError: for a folder that is no complete model, a wrong name, or signs of what must not be sent.
        OSError: if the Hub cannot be reached or says no; the message says why, and how to go on.
    """
    check_names(folder, repo_id)
    chosen = ReleaseOptions(repo_id, **options)
    if chosen.new_version:
        check_names("", chosen.new_version)
    folder = Path(folder)
    check_folder(folder)
    command = command_line(folder, chosen, private)
    with tempfile.TemporaryDirectory() as staging:
        release = prepare_release(folder, Path(staging), chosen)
        print(release.listing())
        if release.problems:
            raise ValueError(
                f"{folder} is not published, for the {len(release.problems)} reasons with STOP above. When they are "
                f"mended: {command}"
            )
        if dry_run:
            print("the model card:", *(f"| {line}" for line in release.card().splitlines()), sep="\n")
            print(f"A dry run: nothing was sent to {repo_id}.")
            return None
        with explained_errors(repo_id, f"{folder} is complete as it was. Go on with: {command}"):
            url, name = _publish(release, chosen, private)
    print(f"Published: {url}\nIts name is {name}: pull it with revision={name!r}.")
    return url


def _publish(release: Release, chosen: ReleaseOptions, private: bool) -> tuple[str, str]:
    """Address of the commit, and name of the release."""
    api = HfApi()
    check_repository(api, chosen.repo_id, private)
    commit = send(api, release, chosen.repo_id, chosen.revision, chosen.message or "Publish a TIER model")
    if chosen.gated:
        api.update_repo_settings(chosen.repo_id, gated=chosen.gated)
    name = tag_release(api, chosen.repo_id, commit.oid, chosen.tag)
    if chosen.collection:
        address = add_to_collection(api, chosen.repo_id, chosen.collection, release.summary, private)
        print(f"In the collection {address}")
    return commit.commit_url, name


def check_before_training(
    config: TrainConfig, repo_id: str, private: bool, shareable: bool, accept_vocabulary: bool
) -> None:
    """
    All checks of a publication that are possible before training; makes the (empty) repository.

    Raises:
        ValueError or OSError, as [`publish`].
    """
    check_names("", repo_id)
    options = config.to_dict()
    origin, evaluated = origin_of(options, []), option(options, "evaluation", "dataset")
    used = [*origin.datasets, *filter(None, [evaluated])]
    check_shareable(used, shareable)
    shown = {name: may_be_shown(name, shareable) for name in used}
    problem = vocabulary_problem(origin.words, shown, not all(shown.values()), None)
    if problem and not accept_vocabulary:
        raise ValueError(problem.replace("--accept", "--hub_accept"))
    with explained_errors(repo_id, "Nothing was trained yet."):
        check_repository(HfApi(), repo_id, private)


def command_line(folder: Path, chosen: ReleaseOptions, private: bool) -> str:
    """The command line of this publication, for the message after a failure."""
    words = ["python", "-m", "modeling_tier.publish", str(folder), chosen.repo_id]
    flags = {"public": not private, "shareable": chosen.shareable, "accept_vocabulary": chosen.accept_vocabulary}
    words += [f"--{name}" for name, given in flags.items() if given]
    values = ("evaluation", "revision", "message", "accept_texts", "tag", "gated", "new_version", "collection")
    words += [word for name in values if (value := getattr(chosen, name)) for word in (f"--{name}", str(value))]
    return shlex.join(words)


def run(arguments: dict[str, Any]) -> None:
    """The command, after its options were parsed (tier_cli/commands/publish.py)."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    logging.set_verbosity_error()  # the list is what is to be read
    logging.disable_progress_bar()
    private, checked = not arguments.pop("public"), arguments.pop("check")
    try:
        if checked is not None:
            number = check(checked, arguments["revision"])
            print(f"{checked}: pulled into an empty folder, and the {number} examples of its card ran.")
        else:
            publish(**arguments, private=private)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
