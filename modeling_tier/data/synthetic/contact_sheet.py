# Licensed under the Apache License, Version 2.0.
"""A contact sheet of synthetic radiographs."""

import os

from PIL import Image as PILImage
from PIL import ImageDraw

from .pairs import DRAWINGS, draw_studies, mask_box


# One for each finding of the kind of drawings that has most.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#f0e442")
COLOURS += ("#7cfc00", "#ff5050", "#b39ddb", "#00e5e5")


def write_contact_sheet(
    path: str | os.PathLike, num_images: int = 18, image_size: int = 128, seed: int = 0, drawings: str = "simple"
) -> None:
    """One picture of the first test images side by side, each region's box drawn in."""
    columns, scale = 6, max(1, 256 // image_size)
    cell = image_size * scale
    sheet = PILImage.new("RGB", (columns * cell, -(-num_images // columns) * cell))
    names = DRAWINGS[drawings].findings
    for i, study in enumerate(draw_studies("test", num_images, image_size, seed, drawings)):
        picture = PILImage.fromarray(study.pixels).convert("RGB").resize((cell, cell))
        draw = ImageDraw.Draw(picture)
        for j, region in enumerate(study.regions):
            colour = COLOURS[names.index(region.finding.name)]
            box = [c * scale for c in mask_box(region.mask)]
            draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=colour)
            draw.text((3, 3 + 11 * j), study.phrase(region), fill=colour)
        sheet.paste(picture, (i % columns * cell, i // columns * cell))
    # 64 colours, as noise in 24 bits makes files of a megabyte.
    sheet.quantize(64, method=PILImage.Quantize.FASTOCTREE).save(path, optimize=True)
