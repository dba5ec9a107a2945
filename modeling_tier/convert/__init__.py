# Licensed under the Apache License, Version 2.0.
"""Published weights as TIER models, and TIER models as ONNX graphs."""
