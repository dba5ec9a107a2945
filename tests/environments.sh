#!/usr/bin/env bash
# An environment with another Python and another torch, and in it the tests of loading, pipelines and models with some
# versions of transformers:
#     tests/environments.sh python3.12 2.11.0 5.17.0 5.23.0
# It stays in .versions/. torch comes from PyPI, on Linux with CUDA: some gigabytes.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 torch=$2
shift 2
folder=$PWD/.versions/$(basename "$python")-torch-$torch
if [ ! -e "$folder/.installed" ]; then
    rm -rf build  # from which pip would install what was deleted since
    "$python" -m venv "$folder"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "torch==$torch" ".[train]" \
        pytest pytest-timeout pytest-xdist hypothesis psutil scipy pydicom
    "$folder/bin/python" -m pip uninstall --quiet --yes modeling-tier  # the tests are of this folder
    touch "$folder/.installed"
fi
PYTHON="$folder/bin/python" VERSIONS="$folder/transformers" tests/transformers_versions.sh "$@"
