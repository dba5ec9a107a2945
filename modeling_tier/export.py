# Licensed under the Apache License, Version 2.0.
"""The command `python -m modeling_tier.export`; what it does is in `modeling_tier/convert/onnx_export.py`."""

from .convert.onnx_export import export_onnx, main


__all__ = ["export_onnx", "main"]

if __name__ == "__main__":
    main()
