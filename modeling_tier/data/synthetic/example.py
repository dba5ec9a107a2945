# Licensed under the Apache License, Version 2.0.
"""The drawing of the examples in documents, cards and notebooks."""

from .pairs import Study, draw_subject


SIDE = 256
_SUBJECT = 197


def example_study() -> Study:
    """
    The first of the finer drawings of the test split (seed 0) with a large heart, a left pleural effusion, and no
    other finding; 256 pixels a side.
    """
    return next(draw_subject("test", _SUBJECT, SIDE, 0, "fine"))
