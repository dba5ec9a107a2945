# Licensed under the Apache License, Version 2.0.
"""The repository on the Hub: rights, one commit, and errors in words."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from os import PathLike
from pathlib import Path

import httpx2
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from .release import Release, is_managed


def check_names(folder: str | PathLike, repo_id: str) -> None:
    """Raise ValueError if `repo_id` is no "user/name", or folder and name are swapped."""
    swapped = not Path(folder).is_dir() and Path(repo_id).is_dir()
    if swapped:
        raise ValueError(
            f"{repo_id} is a folder and {folder} is none: the folder comes first, then the name on the Hub, as in: "
            f"python -m modeling_tier.publish {repo_id} user/name"
        )
    hint = ""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        hint = f" ({' '.join(str(error).split())})"
    if hint or repo_id.count("/") != 1:
        raise ValueError(f"A repository on the Hub is called user/name or organisation/name; got {repo_id!r}{hint}.")


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


def send(api: HfApi, release: Release, repo_id: str, revision: str | None, message: str) -> CommitInfo:
    """One commit that adds the release's files and deletes those left by an earlier release."""
    if revision:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
        for path, content in sorted(release.files.items())
    ]
    existing = api.list_repo_files(repo_id, revision=revision)
    operations += [CommitOperationDelete(path) for path in existing if path not in release.files and is_managed(path)]
    return api.create_commit(repo_id, operations, commit_message=message, revision=revision)


def tag_release(api: HfApi, repo_id: str, commit: str, tag: str | None) -> str:
    """
    Give a commit the name of a release, so that it can be pulled by it.

    Args:
        api: of the Hub.
        repo_id: "user/name".
        commit: its id.
        tag: name of the release; None: release-1, release-2, ..., unless the commit has a name already.
    """
    tags = _tags(api, repo_id)
    if tag is None:
        own = sorted(name for name, target in tags.items() if target == commit)
        if own:
            return own[0]
        tag = next(name for number in count(1) if (name := f"release-{number}") not in tags)
    elif tags.get(tag, commit) != commit:
        raise ValueError(f"The model is sent, but {repo_id} has another release called {tag}: take another --tag.")
    api.create_tag(repo_id, tag=tag, revision=commit, exist_ok=tag in tags)
    return tag


def add_to_collection(api: HfApi, repo_id: str, title: str, note: str, private: bool) -> str:
    """
    Add a model to the Collection of this title that belongs to the model's user or organisation; made if it is not
    there. Returns its address.
    """
    owner = repo_id.partition("/")[0]
    collection = api.create_collection(title, namespace=owner, private=private, exists_ok=True)
    return api.add_collection_item(collection.slug, repo_id, "model", note=note, exists_ok=True).url


def _tags(api: HfApi, repo_id: str) -> dict[str, str]:
    return {tag.name: tag.target_commit for tag in api.list_repo_refs(repo_id).tags}


@contextmanager
def explained_errors(repo_id: str, how_to_go_on: str) -> Iterator[None]:
    """Turn errors of the Hub into messages that say what to do next."""
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
    response = cause.response if isinstance(cause, HfHubHTTPError) else None
    status = response.status_code if response is not None else None
    answer = " ".join(str(getattr(cause, "server_message", None) or cause or error).split())
    if status == 401:
        return f"The Hub refuses the token ({answer}). Log in again with `hf auth login --force`, or set HF_TOKEN."
    if status == 403:
        return (
            f"This token has no right to write to {repo_id} ({answer}). Take a name of your own, or a token that may "
            "write there."
        )
    if response is not None and status == 404:
        return (
            f"The Hub has answered 404 for {response.url}: {repo_id}, or the branch, is not there or may not be "
            f"seen with this token, or HF_ENDPOINT ({constants.ENDPOINT}) is no Hub ({answer})."
        )
    if status == 409:
        return f"The name {repo_id} is taken, or somebody else is changing it at this moment ({answer})."
    if response is not None and status == 429:
        wait = response.headers.get("Retry-After")
        wait = f"; it asks for {wait} seconds of patience" if wait else ""
        return f"The Hub takes no more calls for now (rate limit{wait}): {answer}."
    if status is not None:
        return f"The Hub has answered {status}: {answer}."
    return f"The Hub cannot be reached, or the connection was lost ({type(error).__name__}: {answer})."
