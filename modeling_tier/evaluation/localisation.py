# Licensed under the Apache License, Version 2.0.
"""From boxes in a picture's own pixels to masks over the model's input, where the maps lie."""

import numpy as np


def box_mask(boxes: list[list[float]], image_size: tuple[int, int], image_processor) -> np.ndarray:
    """
    The union of boxes as a mask over the model's input.

    Args:
        boxes: x_min, y_min, x_max, y_max in pixels of the picture, the last two exclusive.
        image_size: width and height of the picture.
        image_processor: the one that turns the picture into `pixel_values`; its resizing and its centre crop are
            applied to the boxes.

    Returns:
        bool array of the shape of `pixel_values`, (H, W); all False where the crop leaves the boxes out.
    """
    (scale_x, scale_y), (left, top), (width, height) = _geometry(image_size, image_processor)
    mask = np.zeros((height, width), dtype=bool)
    for x_min, y_min, x_max, y_max in boxes:
        columns = _pixels(x_min * scale_x - left, x_max * scale_x - left, width)
        rows = _pixels(y_min * scale_y - top, y_max * scale_y - top, height)
        mask[rows, columns] = True
    return mask


def _pixels(low: float, high: float, size: int) -> slice:
    """The pixels of an interval: those whose centres lie in it, and at least one unless it lies outside."""
    first, last = round(low), round(high)
    if last <= first:
        first, last = int(low), int(low) + 1
    return slice(min(max(first, 0), size), min(max(last, 0), size))


def _geometry(image_size: tuple[int, int], image_processor):
    """Scale in x and y, offset of the crop, and size of the input."""
    width, height = image_size
    new_width, new_height = width, height
    if getattr(image_processor, "do_resize", False):
        size = image_processor.size
        shortest = size.get("shortest_edge")
        if shortest is not None:
            short, long = sorted(image_size)
            sides = shortest, int(shortest * long / short)
            new_width, new_height = sides if width <= height else sides[::-1]
        elif size.get("height") and size.get("width"):
            new_width, new_height = size["width"], size["height"]
        else:
            raise ValueError(
                f"The image processor resizes by {dict(size)}; boxes can follow only edges or height/width."
            )
    left = top = 0
    out_width, out_height = new_width, new_height
    if getattr(image_processor, "do_center_crop", False):
        out_width, out_height = image_processor.crop_size["width"], image_processor.crop_size["height"]
        left, top = (new_width - out_width) // 2, (new_height - out_height) // 2
    return (new_width / width, new_height / height), (left, top), (out_width, out_height)
