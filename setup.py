# Licensed under the Apache License, Version 2.0.
"""Which files are installed; everything else about the package is in pyproject.toml."""

from setuptools import find_packages, setup


# What stands at the root, scripts, page and configurations, becomes a folder of its own where it is installed.
ROOT = {"tier_cli.scripts": ".", "tier_cli.scripts.page": "page", "tier_cli.scripts.configs": "configs"}

setup(
    packages=[*find_packages(include=["modeling_tier*", "tier_cli"]), *ROOT],
    package_dir=ROOT,
    package_data={
        "modeling_tier": ["**/*"],
        "tier_cli.scripts.page": ["**/*"],
        "tier_cli.scripts.configs": ["*.yaml", "accelerate/*.yaml", "slurm.sh"],
    },
    exclude_package_data={"": ["__pycache__/*", "*.pyc"]},
)
