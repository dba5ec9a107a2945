# Licensed under the Apache License, Version 2.0.
"""Which files are installed; everything else about the package is in pyproject.toml."""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


# What stands at the root, scripts, page and configurations, becomes a folder of its own where it is installed.
ROOT = {"tier_cli.scripts": ".", "tier_cli.scripts.page": "page", "tier_cli.scripts.configs": "configs"}


class Build(build_py):
    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        modules = super().find_package_modules(package, package_dir)
        return [module for module in modules if module[:2] != ("tier_cli.scripts", "setup")]  # this file


setup(
    cmdclass={"build_py": Build},
    packages=[*find_packages(include=["modeling_tier*", "tier_cli", "tier_cli.commands"]), *ROOT],
    package_dir=ROOT,
    package_data={
        "modeling_tier": ["**/*"],
        "tier_cli.scripts.page": ["**/*"],
        "tier_cli.scripts.configs": ["*.yaml", "accelerate/*.yaml", "demo_start/*", "slurm.sh"],
    },
    exclude_package_data={"": ["__pycache__/*", "*.pyc"]},
)
