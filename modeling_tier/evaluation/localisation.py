# Licensed under the Apache License, Version 2.0.
"""Do the maps point at the right region? From regions in a picture's pixels to masks, and from patches to numbers."""

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import PIL.Image
import torch
from scipy.ndimage import gaussian_filter

from ..maps_tier import picture_geometry
from ..processing_tier import TierProcessor
from .metrics.phrase_grounding.phrase_grounding import measure_maps
from .scored import MapScores, join


class Probe(NamedTuple):
    """What is compared with the patches for one phrase: its sentence, then each of its tokens alone."""

    embeds: torch.Tensor
    """`(1 + T, D)`, of unit length."""
    tokens: list[str]
    """The T tokens, without special ones, padding and punctuation."""


# How a map can be looked at, as `variant_name` joins them.
REGIONS = ("box", "mask")
RESOLUTIONS = ("pixel", "patch")
MAPS = ("plain", "minus_no_finding", "contribution", "contribution_minus_no_finding")


def variant_name(region: str, resolution: str, kind: str) -> str:
    return f"{region}/{resolution}/{kind}"


# What training and the demo report: the plain map of a whole sentence against boxes, over the pixels.
PLAIN = variant_name(REGIONS[0], RESOLUTIONS[0], MAPS[0])
# And the same of contributions, where there are sentences for "no finding" and the model has such.
BY_CONTRIBUTIONS = variant_name(REGIONS[0], RESOLUTIONS[0], MAPS[-1])


@dataclass(frozen=True)
class MapOptions:
    """How the maps of an image's phrases are made and measured."""

    processor: TierProcessor
    """The one that makes `pixel_values` of a picture."""
    grid: tuple[int, int]
    """Rows and columns of the patches."""
    probe: Callable[[str], Probe]
    """From a phrase to its [`Probe`]."""
    no_finding: torch.Tensor | None = None
    """(D,), whose map is subtracted in the maps whose names end in "minus_no_finding"; None: there are none."""
    thorough: bool = False
    """Every combination of region (box, and mask where there is one), resolution (of `pixel_values`, and of the
    patches) and map, for sentences and single tokens; else `PLAIN` and `BY_CONTRIBUTIONS` of sentences."""
    tokens: bool = True
    """Whether `thorough` includes single tokens."""
    smoothing: float = 0.0
    """As for [`smooth_maps`]; 0: maps are measured as they are."""


def ground(
    row: int,
    patch_embeds: torch.Tensor,
    patch_weights: torch.Tensor | None,
    regions: list[dict],
    image_size: tuple[int, int],
    options: MapOptions,
) -> MapScores:
    """
    Measure the maps of all phrases that name a region in one image.

    Args:
        row: of the image in its data set.
        patch_embeds: (P, D), of unit length.
        patch_weights: (P,), by which cosines are multiplied in the maps of contributions
            ([`TierModel.patch_weights`]); None: there are none.
        regions: of the image; boxes (masks) with the same phrase are one ground-truth region.
        image_size: width and height of the picture.
        options: how.
    """
    phrases = defaultdict(list)
    for region in regions:
        phrases[region["finding"], region["phrase"]].append(region)
    parts, num_outside = [], 0
    for (finding, phrase), same in phrases.items():
        masks = _region_masks(same, image_size, options)
        if not masks["box"].any() or masks["box"].all():
            num_outside += 1
            continue
        maps, tokens = _maps(phrase, patch_embeds, patch_weights, options)
        number = len(maps["plain"])
        parts.append(
            MapScores(
                row=np.full(number, row),
                finding=np.array([finding] * number, dtype=str),
                phrase=np.array([phrase] * number, dtype=str),
                token=np.array(["", *tokens], dtype=str),
                measured=_measured(maps, masks, options.grid, RESOLUTIONS if options.thorough else RESOLUTIONS[:1]),
            )
        )
    scores = join(parts) if parts else MapScores(np.array([], dtype=np.int64), *[np.array([], dtype=str)] * 3, {})
    return dataclasses.replace(scores, num_outside=num_outside)


def _region_masks(regions: list[dict], image_size: tuple[int, int], options: MapOptions) -> dict[str, np.ndarray]:
    """Masks (H, W) over the model's input of the regions of one phrase."""
    masks = {"box": box_mask([region["box"] for region in regions], image_size, options.processor)}
    if options.thorough and "mask" in regions[0] and masks["box"].any():
        masks["mask"] = picture_mask([region["mask"] for region in regions], options.processor)
    return masks


def _maps(
    phrase: str, patch_embeds: torch.Tensor, patch_weights: torch.Tensor | None, options: MapOptions
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Maps (1 + T, P) of a phrase and of its T tokens, by kind, and these tokens."""
    embeds, tokens = options.probe(phrase)
    if not (options.thorough and options.tokens):
        embeds, tokens = embeds[:1], []
    no_finding = None if options.no_finding is None else patch_embeds @ options.no_finding
    maps = _all_kinds(embeds @ patch_embeds.T, no_finding, patch_weights)
    if not options.thorough:
        maps = {kind: values for kind, values in maps.items() if kind in (MAPS[0], MAPS[-1])}
    if options.smoothing:
        maps = {kind: smooth_maps(values, options.grid, options.smoothing) for kind, values in maps.items()}
    return maps, tokens


def _all_kinds(
    plain: torch.Tensor, no_finding: torch.Tensor | None, patch_weights: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """
    Maps (R, P) by their kind in `MAPS`, of cosines (R, P), those (P,) of "no finding", and the weights (P,).
    Contributions are P times theirs, on the scale of cosines: mIoU is taken at thresholds that are cosines.
    """
    maps = {"plain": plain} if no_finding is None else {"plain": plain, "minus_no_finding": plain - no_finding}
    if patch_weights is None:
        return maps
    names = {"plain": "contribution", "minus_no_finding": "contribution_minus_no_finding"}
    scaled = patch_weights * len(patch_weights)
    return maps | {names[kind]: values * scaled for kind, values in maps.items()}


def _measured(
    maps: dict[str, torch.Tensor], masks: dict[str, np.ndarray], grid: tuple[int, int], resolutions: tuple[str, ...]
) -> dict[str, dict[str, np.ndarray]]:
    """By [`variant_name`]: the maps (R, P) of each kind against each mask (H, W), at each resolution."""
    measured = {}
    for (kind, values), resolution in itertools.product(maps.items(), resolutions):
        size = masks["box"].shape if resolution == "pixel" else grid
        scaled = scale_maps(values, grid, size).flatten(1).cpu().numpy()
        for region, mask in masks.items():
            inside = (mask if resolution == "pixel" else patch_mask(mask, grid)).ravel()
            measured[variant_name(region, resolution, kind)] = _measure(scaled, inside)
    return measured


def _measure(maps: np.ndarray, inside: np.ndarray) -> dict[str, np.ndarray]:
    """As `measure_maps`, all maps against one region; NaN where the region covers nothing or everything."""
    if inside.any() and not inside.all():
        return measure_maps(maps, np.broadcast_to(inside, maps.shape))
    some = measure_maps(maps, np.broadcast_to(np.arange(len(inside)) == 0, maps.shape))
    return {name: np.full_like(values, np.nan, dtype=np.float64) for name, values in some.items()}


def smooth_maps(maps: torch.Tensor, grid: tuple[int, int], sigma: float) -> torch.Tensor:
    """
    Maps filtered by a gaussian over the patches, as hi-ml filters BioViL's (with a sigma of 1.5) before they are
    measured: scipy's filter, reflected at the borders and cut off at four sigma.

    Args:
        maps: (R, P).
        grid: rows and columns of the P patches.
        sigma: standard deviation in patches, positive.
    """
    values = maps.unflatten(1, grid).cpu().numpy()
    return torch.from_numpy(gaussian_filter(values, sigma=(0, sigma, sigma))).flatten(1).to(maps.device)


def scale_maps(maps: torch.Tensor, grid: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """Maps (R, P) over a grid of patches, scaled bilinearly to (R, H, W) where the size is not the grid's."""
    coarse = maps.unflatten(1, grid).unsqueeze(1)
    if tuple(size) != tuple(grid):
        coarse = torch.nn.functional.interpolate(coarse, tuple(size), mode="bilinear", align_corners=False)
    return coarse.squeeze(1)


def patch_mask(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """
    The patches (h, w) that a mask over the input (H, W) covers by at least one half; where it covers none so far, the
    one of which it covers most (or several, if it covers them alike).
    """
    tensor = torch.from_numpy(mask.astype(np.float32))[None, None]
    fraction = torch.nn.functional.adaptive_avg_pool2d(tensor, grid)[0, 0].numpy()
    covered = fraction >= 0.5
    return covered if covered.any() else fraction == fraction.max()


def picture_mask(masks: list[PIL.Image.Image], processor) -> np.ndarray:
    """The union of masks drawn over the picture as a mask over the model's input; as [`box_mask`]."""
    union = np.any([np.asarray(mask) > 0 for mask in masks], axis=0)
    image = PIL.Image.fromarray(union.astype(np.uint8) * 255)
    (scale_x, scale_y), (left, top), (width, height) = picture_geometry(image.size, processor)
    size = round(image.width * scale_x), round(image.height * scale_y)
    resized, left, top = image.resize(size, PIL.Image.Resampling.BILINEAR), round(left), round(top)
    return np.asarray(resized.crop((left, top, left + width, top + height))) >= 128


def box_mask(boxes: list[list[float]], image_size: tuple[int, int], processor) -> np.ndarray:
    """
    The union of boxes as a mask over the model's input.

    Args:
        boxes: x_min, y_min, x_max, y_max in pixels of the picture, the last two exclusive.
        image_size: width and height of the picture.
        processor: the one that turns the picture into `pixel_values`; its padding, resizing and centre crop are
            applied to the boxes.

    Returns:
        bool array of the shape of `pixel_values`, (H, W); all False where the boxes lie outside the crop.
    """
    (scale_x, scale_y), (left, top), (width, height) = picture_geometry(image_size, processor)
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
