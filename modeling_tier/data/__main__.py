# Licensed under the Apache License, Version 2.0.
"""The command `python -m modeling_tier.data`; what it does is in `modeling_tier/data/command.py`."""

from tier_cli.commands.data import main


if __name__ == "__main__":
    main()
