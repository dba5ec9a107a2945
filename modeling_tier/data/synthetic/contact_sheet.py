# Licensed under the Apache License, Version 2.0.
"""A contact sheet of synthetic radiographs."""

import os

from PIL import Image as PILImage
from PIL import ImageDraw

from .pairs import draw_studies, mask_box
from .phantom import FINDINGS
from .reports import region_phrase


def write_contact_sheet(path: str | os.PathLike, num_images: int = 18, image_size: int = 128, seed: int = 0) -> None:
    """One picture of the first test images side by side, each region's box drawn in."""
    columns, scale = 6, max(1, 256 // image_size)
    cell = image_size * scale
    sheet = PILImage.new("RGB", (columns * cell, -(-num_images // columns) * cell))
    colours = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#f0e442")
    for i, study in enumerate(draw_studies("test", num_images, image_size, seed)):
        picture = PILImage.fromarray(study.pixels).convert("RGB").resize((cell, cell))
        draw = ImageDraw.Draw(picture)
        for j, region in enumerate(study.regions):
            colour = colours[FINDINGS.index(region.finding.name)]
            box = [c * scale for c in mask_box(region.mask)]
            draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=colour)
            draw.text((3, 3 + 11 * j), region_phrase(region.finding, region.side), fill=colour)
        sheet.paste(picture, (i % columns * cell, i // columns * cell))
    sheet.save(path)
