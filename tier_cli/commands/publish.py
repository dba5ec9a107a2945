# Licensed under the Apache License, Version 2.0.
"""
Publish a trained model on the Hub, in one commit:

    python -m modeling_tier.publish runs/tier user/name --dry_run    # list what would go, and what stays
    python -m modeling_tier.publish runs/tier user/name              # into a private repository
    python -m modeling_tier.publish --check user/name                # pull it into an empty folder, run its examples

Sent are the model, its code, its processor, a model card, the numbers that were measured, and figures without
pictures of a data set. Pictures, sentences and identifiers of a data set and paths of this machine are never sent.
Every file is built from known fields and checked before anything is sent; a sign of a patient or a secret stops the
command. Texts of your own, such as sentences for zero-shot, are shown and sent only with your consent. After a failure
run the same command again: what has arrived is not sent twice.
"""

import argparse

from ..names import check_order
from ..options import option_parser
from . import work_of


_COMMAND = "python -m modeling_tier.publish"


def _parser() -> argparse.ArgumentParser:
    parser = option_parser(__doc__, _COMMAND)
    add = parser.add_argument
    add("folder", nargs="?", help="a complete model folder, such as train.py leaves")
    add("repo_id", nargs="?", metavar="user/name", help="repository on the Hub; made if it is not there")
    add(
        "--check",
        metavar="user/name",
        help="instead of publishing: pull this repository into an empty folder, and run its card's examples, "
        "which run its code",
    )
    add("--public", action="store_true", help="for everybody to see; default: private")
    add("--dry_run", action="store_true", help="list what would go, show the card, and end; no token, no network")
    add("--evaluation", help="folder of an evaluation of this model; default: the folder 'evaluation' in the model's")
    add("--shareable", action="store_true", help="the pictures and sentences of your own `pairs` may be seen by all")
    add(
        "--accept_vocabulary",
        action="store_true",
        help="send a tokenizer whose words come from texts that may not be shown; read tokenizer.json first",
    )
    add("--accept_texts", metavar="CODE", help="send the texts of your own that the list shows under this code")
    add("--revision", help="branch, made if it is not there; default: main")
    add("--message", help="of the commit")
    add("--tag", help="name of the release, by which it can be pulled; default: release-1, release-2, ...")
    add("--gated", choices=("auto", "manual"), help="whoever wants the files must agree to the terms first")
    add("--new_version", metavar="user/name", help="a better model, which the page of this one points at")
    add("--collection", metavar="TITLE", help="add the model to this Collection, made if it is not there")
    return parser


def main() -> None:
    parser = _parser()
    arguments = vars(parser.parse_args())
    if arguments["check"] is None and arguments["repo_id"] is None:
        parser.error("name a model's folder and its name on the Hub, user/name; or --check user/name")
    if arguments["check"] is not None and arguments["folder"] is not None:
        parser.error("--check takes the name of a repository alone, without a folder")
    if arguments["repo_id"]:
        folder, name = arguments["folder"], arguments["repo_id"]
        check_order(folder, name, f"{_COMMAND} {name} user/name")
    work_of("modeling_tier.hub.publish").run(arguments)
