# Licensed under the Apache License, Version 2.0.
"""The command `python -m modeling_tier.export`; what it does is in `modeling_tier/convert/onnx_export.py`."""

from tier_cli.commands.export import main


if __name__ == "__main__":
    main()
else:  # the command does without it until it has parsed its options
    from .convert.onnx_export import export_onnx

__all__ = ["export_onnx", "main"]
