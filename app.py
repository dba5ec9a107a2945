# Licensed under the Apache License, Version 2.0.
"""
A page to try a model: findings as yes/no questions, their maps over the radiograph, and where single words point.

    python app.py --model runs/demo/clip --model runs/demo/tier

Models are folders or names on the Hub; several are shown side by side. A Space starts this file without options: its
models are those of the variable TIER_MODELS, separated by commas, or of models.txt. Not a medical device.
"""

import argparse
import os
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--model",
        action="append",
        help="folder or Hub id of a TIER model or a CLIPModel; may be given several times (default: the environment "
        "variable TIER_MODELS, or the lines of models.txt beside this file)",
    )
    parser.add_argument("--port", type=int, help="port of the page (default: the first free one from 7860 on)")
    parser.add_argument(
        "--write_space",
        metavar="FOLDER",
        help="instead of a page: write the folder of a Space that shows these models",
    )
    arguments = parser.parse_args()
    names = arguments.model or named_models()
    if arguments.model and not arguments.write_space:
        from tier_cli.names import check_model_names  # a Space has not this package, and starts without options

        check_model_names(*arguments.model)
    # Not at the top of the file: torch and gradio take seconds, which --help does not need.
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    from page import build_page, error_page, launch, load_models, write_space

    if arguments.write_space:
        try:
            write_space(Path(arguments.write_space), names)
        except (ValueError, OSError) as error:
            sys.exit(f"error: {error}")
        print(f"Push it: hf upload user/space {arguments.write_space} --repo-type space")
        return
    try:
        page = build_page(load_models(names))
    except (ValueError, OSError) as error:
        if "SPACE_ID" not in os.environ:
            sys.exit(f"error: {error}")
        page = error_page(str(error))  # a Space that ends shows its visitors nothing of this
    _, address, _ = launch(page, server_port=arguments.port)
    print(f"The page is at {address}", flush=True)
    page.block_thread()


def named_models() -> list[str]:
    """Those of the environment, or of the file that a Space's folder has."""
    file = Path(__file__).with_name("models.txt")
    lines = os.environ.get("TIER_MODELS", "").split(",")
    if not any(map(str.strip, lines)) and file.is_file():
        lines = file.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]


if __name__ == "__main__":
    main()
