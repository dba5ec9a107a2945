# Licensed under the Apache License, Version 2.0.
"""
A page to try a model: findings as yes/no questions, their maps over the radiograph, and where single words point.

    python app.py --model runs/demo/clip --model runs/demo/tier

Models are folders or names on the Hub; several are shown side by side. A Space starts this file without options, and
its variable TIER_MODELS names the models, separated by commas. Not a medical device.
"""

import argparse
import os
import sys


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--model",
        action="append",
        help="folder or Hub id of a TIER model or a CLIPModel; may be given several times (default: the environment "
        "variable TIER_MODELS)",
    )
    parser.add_argument("--port", type=int, help="port of the page (default: the first free one from 7860 on)")
    arguments = parser.parse_args()
    names = arguments.model or [name.strip() for name in os.environ.get("TIER_MODELS", "").split(",") if name.strip()]
    # Not at the top of the file: torch and gradio take seconds, which --help does not need.
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    from page import build_page, error_page, launch, load_models

    try:
        page = build_page(load_models(names))
    except (ValueError, OSError) as error:
        if "SPACE_ID" not in os.environ:
            sys.exit(f"error: {error}")
        page = error_page(str(error))  # a Space that ends shows its visitors nothing of this
    _, address, _ = launch(page, server_port=arguments.port)
    print(f"The page is at {address}", flush=True)
    page.block_thread()


if __name__ == "__main__":
    main()
