# Licensed under the Apache License, Version 2.0.
"""The command `python -m modeling_tier.publish`; what it does is in `modeling_tier/hub/`."""

from tier_cli.commands.publish import main


if __name__ == "__main__":
    main()
else:  # the command does without them until it has parsed its options
    from .hub.publish import check_before_training, publish

__all__ = ["check_before_training", "main", "publish"]
