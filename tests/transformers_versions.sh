#!/usr/bin/env bash
# Load, save and run models with other versions of transformers than the installed one, and exchange folders with them:
#     tests/transformers_versions.sh 5.17.0 [5.20.0 ...]
# Each version is installed over the environment of PYTHON (default: python) in a folder of its own, VERSIONS/VERSION
# (default of VERSIONS: .versions).
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
site=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
versions=${VERSIONS:-$PWD/.versions}
others=()
for version in "$@"; do
    folder=$versions/$version
    if [ ! -e "$folder/.installed" ]; then
        "$PYTHON" -m venv "$folder"
        echo "$site" > "$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/base.pth"
        # What transformers asks for replaces the environment's own version only where that one does not suit.
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "transformers==$version"
        touch "$folder/.installed"
    fi
    "$folder/bin/python" -c 'import torch, transformers; print("transformers", transformers.__version__, "torch", torch.__version__)'
    "$folder/bin/python" -m pytest -q tests/test_configuration.py tests/test_modeling.py tests/test_loading.py tests/test_pipeline.py
    others+=("$folder/bin/python")
done
TIER_TEST_PYTHONS="${others[*]}" "$PYTHON" -m pytest -q tests/test_loading.py
