# Licensed under the Apache License, Version 2.0.
"""
Publish a trained model on the Hub, in one commit:

    python -m modeling_tier.publish runs/tier user/name --dry_run    # list what would go, and what stays
    python -m modeling_tier.publish runs/tier user/name              # into a private repository

The model, its code, its processor, a model card, the numbers that were measured, and figures without pictures of a
data set. What the terms of a data set keep at home stays: pictures, sentences, identifiers, places on this machine.
Every file is looked through before anything leaves, and a sign of one of these ends it. Go on after a failure with the
same command: what has arrived is not sent again.
"""

import argparse
import os
import shlex
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from ..training import TrainConfig
from .release import Release, check_shareable, check_vocabulary_before, is_managed, origin_of, prepare_release


def publish(
    folder: str | os.PathLike,
    repo_id: str,
    private: bool = True,
    dry_run: bool = False,
    evaluation: str | os.PathLike | None = None,
    shareable: bool = False,
    accept_vocabulary: bool = False,
    revision: str | None = None,
    message: str | None = None,
) -> str | None:
    """
    Look through a model's folder, print what goes and what stays, and send it in one commit. The folder is not
    changed.

    Args:
        folder: a complete model folder, such as `train.py` leaves.
        repo_id: "user/name".
        private: whether the repository is a private one. One that is there already is not changed in that.
        dry_run: whether to print the list and end; needs no token and no network.
        evaluation: folder that `evaluate_zeroshot.py` has written for this model; default: the folder "evaluation" in
            the model's.
        shareable: whether the owner of "pairs" lets everybody see them.
        accept_vocabulary: whether a vocabulary made from texts that may not be shown may go along.
        revision: branch of the commit, made if it is not there; default: main.
        message: of the commit.

    Returns:
        address of the commit; None after a dry run.

    Raises:
        ValueError: for a folder that is no complete model, a name that is none, or signs of what must not leave.
        OSError: if the Hub cannot be reached or says no; the message says why, and how to go on.
    """
    check_repo_id(repo_id)
    folder = Path(folder)
    command = again(folder, repo_id, private, evaluation, shareable, accept_vocabulary, revision, message)
    with tempfile.TemporaryDirectory() as staging:
        release = prepare_release(
            folder,
            Path(staging),
            repo_id,
            evaluation and Path(evaluation),
            shareable,
            accept_vocabulary,
            revision,
        )
        print(release.listing())
        if release.problems:
            raise ValueError(
                f"{folder} is not published, for the {len(release.problems)} reasons with STOP above. When they are "
                f"mended: {command}"
            )
        if dry_run:
            print(f"A dry run: nothing was sent to {repo_id}.")
            return None
        api = HfApi()
        with told(repo_id, f"{folder} is complete as it was. Go on with: {command}"):
            check_repository(api, repo_id, private)
            url = _send(api, release, repo_id, revision, message or "Publish a TIER model")
    print(f"Published: {url}")
    return url


def check_before_training(
    config: TrainConfig, repo_id: str, private: bool, shareable: bool, accept_vocabulary: bool
) -> None:
    """
    All that can be known of a publication before the model is there; makes the (empty) repository.

    Raises:
        ValueError or OSError, as [`publish`].
    """
    check_repo_id(repo_id)
    options = config.to_dict()
    check_shareable([*origin_of(options, []).datasets, *filter(None, [config.evaluation.dataset])], shareable)
    try:
        check_vocabulary_before(options, shareable, accept_vocabulary)
    except ValueError as error:
        raise ValueError(str(error).replace("--accept", "--hub_accept")) from None
    with told(repo_id, "Nothing was trained yet."):
        check_repository(HfApi(), repo_id, private)


def check_repo_id(repo_id: str) -> None:
    """Raise ValueError if it is no "user/name"."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no name of a repository: {error}") from None
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id!r} is no name of a repository: it must be user/name, or organisation/name.")


def check_repository(api: HfApi, repo_id: str, private: bool) -> None:
    """Make the repository if it is not there; raise ValueError or OSError if this user cannot write to it."""
    if constants.HF_HUB_OFFLINE:
        raise ValueError("HF_HUB_OFFLINE is set: unset it to publish, or list what would go with --dry_run.")
    if get_token() is None:
        raise ValueError(
            "There is no token for the Hub: log in with `hf auth login`, or set HF_TOKEN. Make one with the right to "
            f"write at {api.endpoint}/settings/tokens."
        )
    role = ((api.whoami().get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        raise ValueError(
            f"The token may only read. Make one with the right to write at {api.endpoint}/settings/tokens, and log in "
            "with `hf auth login --force`."
        )
    try:
        info = api.repo_info(repo_id)
    except RepositoryNotFoundError:
        api.create_repo(repo_id, private=private)
        return
    if private and not info.private:
        raise ValueError(
            f"{repo_id} is there already, and public. Say --public if that is meant (train.py: --no-hub_private), or "
            f"make it private at {api.endpoint}/{repo_id}/settings, or take another name."
        )
    if not private and info.private:
        print(f"note: {repo_id} is there already, and private; that is not changed.")
    api.auth_check(repo_id, write=True)


def _send(api: HfApi, release: Release, repo_id: str, revision: str | None, message: str) -> str:
    """One commit: what goes, and what an earlier one has left of the files that a release consists of."""
    if revision:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    operations = [
        CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
        for path, content in sorted(release.files.items())
    ]
    there = api.list_repo_files(repo_id, revision=revision)
    operations += [CommitOperationDelete(path) for path in there if path not in release.files and is_managed(path)]
    return api.create_commit(repo_id, operations, commit_message=message, revision=revision).commit_url


@contextmanager
def told(repo_id: str, how_to_go_on: str) -> Iterator[None]:
    """What went wrong with the Hub, in words."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error} {how_to_go_on}") from error
    except (HfHubHTTPError, httpx2.HTTPError, OSError, RuntimeError) as error:
        raise OSError(f"{_explained(error, repo_id)} {how_to_go_on}") from error


def _explained(error: Exception, repo_id: str) -> str:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__ or cause.__context__
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
    said = " ".join(str(getattr(cause, "server_message", None) or cause or error).split())
    if status == 401:
        return f"The Hub does not take the token ({said}). Log in again with `hf auth login --force`, or set HF_TOKEN."
    if status == 403:
        return (
            f"This token has no right to write to {repo_id} ({said}). Take a name of your own, or a token that may "
            "write there."
        )
    if status == 404:
        return f"{repo_id} cannot be found, or not be seen with this token ({said})."
    if status == 409:
        return f"The name {repo_id} is taken, or somebody else is changing it at this moment ({said})."
    if status == 429:
        wait = cause.response.headers.get("Retry-After")
        wait = f"; it asks for {wait} seconds of patience" if wait else ""
        return f"The Hub takes no more calls for now (rate limit{wait}): {said}."
    if status is not None:
        return f"The Hub has answered {status}: {said}."
    return f"The Hub cannot be reached, or the connection was lost ({type(error).__name__}: {said})."


def again(
    folder: Path,
    repo_id: str,
    private: bool = True,
    evaluation: str | os.PathLike | None = None,
    shareable: bool = False,
    accept_vocabulary: bool = False,
    revision: str | None = None,
    message: str | None = None,
) -> str:
    """The command line that publishes the same."""
    words = ["python", "-m", "modeling_tier.publish", str(folder), repo_id]
    flags = {"public": not private, "shareable": shareable, "accept_vocabulary": accept_vocabulary}
    words += [f"--{name}" for name, given in flags.items() if given]
    values = {"evaluation": evaluation, "revision": revision, "message": message}
    words += [word for name, value in values.items() if value for word in (f"--{name}", str(value))]
    return shlex.join(words)


def main() -> None:
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    parser = argparse.ArgumentParser(
        prog="python -m modeling_tier.publish",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("folder", help="a complete model folder, such as train.py leaves")
    add("repo_id", metavar="user/name", help="repository on the Hub; made if it is not there")
    add("--public", action="store_true", help="for everybody to see; default: private")
    add("--dry_run", action="store_true", help="list what would go and what stays, and end; no token, no network")
    add("--evaluation", help="folder of an evaluation of this model; default: the folder 'evaluation' in the model's")
    add("--shareable", action="store_true", help="the pictures and sentences of your own `pairs` may be seen by all")
    add(
        "--accept_vocabulary",
        action="store_true",
        help="send a tokenizer whose words come from texts that may not be shown; read tokenizer.json first",
    )
    add("--revision", help="branch, made if it is not there; default: main")
    add("--message", help="of the commit")
    arguments = vars(parser.parse_args())
    private = not arguments.pop("public")
    try:
        publish(**arguments, private=private)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
