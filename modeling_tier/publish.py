# Licensed under the Apache License, Version 2.0.
"""The command `python -m modeling_tier.publish`; what it does is in `modeling_tier/hub/`."""

from .hub.publish import check_before_training, main, publish


__all__ = ["check_before_training", "main", "publish"]

if __name__ == "__main__":
    main()
