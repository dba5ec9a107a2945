#!/usr/bin/env bash
# The package as it is installed: a wheel in an empty environment, its dependencies resolved anew; then, from another
# folder, training, evaluation, publishing to a local stand-in for the Hub, and the page:
#     tests/installed_package.sh python3.11 2.13.0
# The environment stays in .versions/. torch comes from PyPI, on Linux with CUDA: some gigabytes.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 torch=$2
folder=$PWD/.versions/installed-$(basename "$python")-torch-$torch
rm -rf "$folder" build
"$python" -m venv "$folder"
"$folder/bin/python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$folder/dist" .
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check "torch==$torch" \
    "modeling-tier[train,page] @ file://$(ls "$folder"/dist/*.whl)"
"$folder/bin/python" -m pip list --disable-pip-version-check --format freeze \
    | grep -E '^(torch|transformers|datasets|accelerate|huggingface_hub|gradio|numpy|pandas)=='
"$folder/bin/python" tests/installed_package.py
