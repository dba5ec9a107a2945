# Licensed under the Apache License, Version 2.0.
"""Which files are installed; everything else about the package is in pyproject.toml."""

from setuptools import find_packages, setup


# The scripts of the root and their configurations become packages where they are installed.
SCRIPTS = {"tier_cli.scripts": ".", "tier_cli.scripts.configs": "configs"}

setup(
    packages=[*find_packages(include=["modeling_tier*", "tier_cli", "page"]), *SCRIPTS],
    package_dir=SCRIPTS,
    package_data={
        "modeling_tier": ["**/*"],
        "page": ["templates/*.html", "style.css", "script.js"],
        "tier_cli.scripts.configs": ["*.yaml", "accelerate/*.yaml", "slurm.sh"],
    },
    exclude_package_data={"": ["__pycache__/*", "*.pyc"]},
)
