# Licensed under the Apache License, Version 2.0.
"""
What TIER does to the maps of sentences: how alike those of different sentences of one picture are, where their peaks
stand, and what single tokens do; for models that `trained_start.py` made in the same folder, or that are made here.

    python studies/maps_of_sentences.py --output_dir runs/trained_start --seeds 10 11 12 [--rows start CLIP]

The pictures are the study's held-out drawings, the sentences their phrases, each of which names a finding that is
there. What is done is not run again.
"""

import argparse
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from setting import START, Setting, add_arguments, setting_of

from tier_cli.options import option_parser


ROWS = (START, "CLIP", "TIER 0.2, 0 at temperature 0.5", "VL-CABS, 0.1")


def parse_arguments() -> argparse.Namespace:
    parser = option_parser(__doc__)
    add_arguments(parser, ROWS, with_start=True)
    return parser.parse_args()


if __name__ == "__main__":
    parse_arguments()  # before torch is imported, which takes seconds: --help and mistakes are answered at once

import json
from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from continued import Rows, file_name, held_out_set
from drawings import MAPS, TEST_SEED, HeldOutSet, embed_images, embed_texts
from torch.nn.functional import normalize
from trained_start import means, of_seeds, run, save

from modeling_tier import TierModel, TierProcessor
from modeling_tier.data.synthetic import draw_studies
from modeling_tier.entropy_tier import entropy
from modeling_tier.evaluation import load_no_finding
from modeling_tier.evaluation.scoring import embed_sentences
from modeling_tier.evaluation.tables import aligned
from modeling_tier.files import replace_json
from modeling_tier.maps_tier import words_of


AREAS = ("own region", "another finding's", "heart", "lungs", "outer patches", "elsewhere")
TOKENS = ("[CLS]", "finding", "side and zone", "other words", "[SEP] and full stop")
SIDES_AND_ZONES = {"left", "right", "upper", "mid", "lower", "lobe", "lung", "basilar"}
SIDES_AND_ZONES |= {"zone", "apical", "basal"}  # of the finer drawings
OTHER_WORDS = {"there", "is"}
ENDING = "sentences.json"  # of the files of single rows


@dataclass
class Places:
    """What lies at the centre of each patch, for M phrases and P patches."""

    own: np.ndarray
    """(M, P) of the region that the phrase names."""
    areas: np.ndarray
    """(M, P) index in `AREAS`; the first that holds."""

    @classmethod
    def of(cls, test: HeldOutSet, organs: list[dict[str, np.ndarray]], grid: int) -> "Places":
        size = test.masks.shape[1]
        centres = (np.arange(grid) * 2 + 1) * size // (2 * grid)

        def at_centres(masks: np.ndarray) -> np.ndarray:
            return masks[:, centres][:, :, centres].reshape(len(masks), -1).astype(bool)

        own = at_centres(test.masks)
        of_picture = np.zeros((len(organs), own.shape[1]), dtype=bool)
        np.logical_or.at(of_picture, test.rows, own)
        heart, lungs = (at_centres(np.stack([masks[name] for masks in organs])) for name in ("heart", "lungs"))
        ring = np.ones((grid, grid), dtype=bool)
        ring[1:-1, 1:-1] = False
        rows = test.rows
        conditions = [own, of_picture[rows], heart[rows], lungs[rows], np.broadcast_to(ring.ravel(), own.shape)]
        return cls(own, np.select(conditions, range(len(conditions)), default=len(conditions)))


def measure_row(setting: Setting, folder: Path, names: list[str]) -> None:
    """For each row a file `folder/<row>.sentences.json`."""
    torch.set_num_threads(1)
    rows, test, organs = Rows(setting, folder), None, []
    for name in names:
        file = folder / f"{file_name(name)}.{ENDING}"
        if file.is_file():
            continue
        model, processor = rows.model(name)
        if test is None:
            test = held_out_set(setting, processor)
            studies = draw_studies("test", setting.num_test, setting.image_size, TEST_SEED, setting.drawings)
            organs = [study.organs for study in studies]
        replace_json(file, {"row": name, "measures": measure(model, processor, test, organs)})


@torch.inference_mode()
def measure(
    model: TierModel, processor: TierProcessor, test: HeldOutSet, organs: list[dict[str, np.ndarray]]
) -> dict[str, float]:
    """
    For each kind of map: the correlation over the patches of the maps of two phrases of one picture that name
    different findings, and how often both have their peak in the same patch; the fraction of peaks in each of `AREAS`,
    and, of the phrases that name a side, in the half of the picture without the region.
    The correlation of a phrase's map with that of "no finding", and the standard deviation over the patches of either.
    For each of `TOKENS`, by cosines: entropy over the patches in nats, correlation with the map of the sentence, and
    the fraction of peaks in the region that the phrase names. "area, ..." and "regions' correlation" say the same of
    the drawings themselves.
    """
    model.eval()
    embedded = [embed_images(model, pixels) for pixels in test.pixel_values.split(250)]
    _, patches, weights = (torch.cat(part).cpu() for part in zip(*embedded))
    places = Places.of(test, organs, int(patches.shape[1] ** 0.5))
    unique, index = np.unique(test.phrases, return_inverse=True)
    embeds = embed_texts(model, processor, unique.tolist()).cpu()[index]
    no_finding = embed_sentences(model, processor, load_no_finding(test.prompts)).cpu()
    own_patches = patches[test.rows]
    cosines, of_no_finding = torch.einsum("md,mpd->mp", embeds, own_patches), own_patches @ no_finding
    subtracted, scale = cosines - of_no_finding, weights[test.rows] * weights.shape[1]
    two = _phrases_of_one_picture(test)
    measures = {"regions' correlation": _correlation(*(torch.from_numpy(places.own[i] * 1.0) for i in two))}
    measures |= {f"area, {area}": float((places.areas == i).mean()) for i, area in enumerate(AREAS)}
    measures["correlation with no finding"] = _correlation(cosines, of_no_finding)
    measures["spread, cosine"] = float(cosines.std(dim=1).mean())
    measures["spread, no finding"] = float(of_no_finding.std(dim=1).mean())
    measures["spread, cosine - no finding"] = float(subtracted.std(dim=1).mean())
    for kind, maps in zip(MAPS, (cosines, subtracted, cosines * scale, subtracted * scale)):
        peaks = maps.argmax(dim=1).numpy()
        measures[f"correlation, {kind}"] = _correlation(*(maps[i] for i in two))
        measures[f"same peak, {kind}"] = float((peaks[two[0]] == peaks[two[1]]).mean())
        at_peak = places.areas[np.arange(len(peaks)), peaks]
        measures |= {f"peak in {area}, {kind}": float((at_peak == i).mean()) for i, area in enumerate(AREAS)}
        measures[f"peak on the other side, {kind}"] = _on_the_other_side(test, peaks, int(maps.shape[1] ** 0.5))
    return measures | _tokens(model, processor, test, patches, places.own)


def _on_the_other_side(test: HeldOutSet, peaks: np.ndarray, grid: int) -> float:
    """Of the phrases that name a side, the fraction whose peak is in the half of the picture without their region."""
    named = np.array([{"left", "right"} & set(phrase.lower().split()) != set() for phrase in test.phrases.tolist()])
    by_column = test.masks[named].sum(axis=1)  # (S, size)
    size = by_column.shape[1]
    region = by_column @ (np.arange(size) + 0.5) / by_column.sum(axis=1)
    return float(((peaks[named] % grid >= grid / 2) != (region > size / 2)).mean())


def _phrases_of_one_picture(test: HeldOutSet) -> tuple[np.ndarray, np.ndarray]:
    """All two phrases of one picture that name different findings."""
    by_row = defaultdict(list)
    for i, row in enumerate(test.rows):
        by_row[row].append(i)
    two = [pair for own in by_row.values() for pair in combinations(own, 2)]
    two = [(i, k) for i, k in two if test.findings[i] != test.findings[k]]
    one, other = zip(*two)
    return np.array(one), np.array(other)


def _correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    """Pearson's, over the patches, mean over the maps (M, P) that are not constant."""
    one, other = (maps - maps.mean(dim=-1, keepdim=True) for maps in (one, other))
    usable = (one.norm(dim=-1) > 1e-6) & (other.norm(dim=-1) > 1e-6)
    return float((normalize(one[usable], dim=-1) * normalize(other[usable], dim=-1)).sum(dim=-1).mean())


def _tokens(model: TierModel, processor: TierProcessor, test: HeldOutSet, patches: torch.Tensor, own: np.ndarray):
    """Means over the phrases of each kind of token; patches (N, P, D), own regions (M, P)."""
    numbers = defaultdict(list)
    for phrase in np.unique(test.phrases):
        text = processor(text=[str(phrase)]).to(model.device)
        tokens = normalize(model.encode_text(**text).local_embeds[0], dim=-1).cpu()
        chosen = np.flatnonzero(test.phrases == phrase)
        maps = torch.einsum("td,mpd->mtp", tokens, patches[test.rows[chosen]])
        entropies = entropy(maps.log_softmax(dim=2), dim=2).numpy()
        peaks = maps.argmax(dim=2).numpy()
        for position, kind in enumerate(kinds_of_tokens(processor, str(phrase))):
            numbers[f"entropy, {kind}"].append(entropies[:, position].mean())
            numbers[f"correlation with the sentence, {kind}"].append(_correlation(maps[:, position], maps[:, 0]))
            inside = own[chosen, peaks[:, position]].mean()
            numbers[f"pointing, {kind}"].append(inside)
            numbers[f"weight, {kind}"].append(len(chosen))
    result = {}
    for kind in TOKENS:
        count = numbers.pop(f"weight, {kind}")
        names = (f"{name}, {kind}" for name in ("entropy", "correlation with the sentence", "pointing"))
        result |= {name: float(np.average(numbers[name], weights=count)) for name in names}
    return result


def kinds_of_tokens(processor: TierProcessor, phrase: str) -> list[str]:
    """Of each token of a phrase, special ones included, its kind in `TOKENS`."""
    offsets = processor.tokenizer(phrase, return_offsets_mapping=True)["offset_mapping"]
    kinds = [TOKENS[0]] + [TOKENS[4]] * (len(offsets) - 1)
    for word, positions in words_of(phrase, offsets):
        kind = TOKENS[2 if word.lower() in SIDES_AND_ZONES else 3 if word.lower() in OTHER_WORDS else 1]
        for position in positions:
            kinds[position] = kind
    return kinds


def tables(results: dict[str, list[dict[str, float]]]) -> str:
    """How alike the maps are, where their peaks stand, and the tokens: means (standard deviations) over the seeds."""
    names = list(next(iter(results.values()))[0])
    likeness = [name for name in names if name.startswith(("correlation, ", "same peak, "))]
    spreads = [name for name in names if name.startswith(("correlation with no", "spread, "))]
    sides = [name for name in names if name.startswith("peak on the other side")]
    groups = [likeness, spreads] + [[f"peak in {area}, {kind}" for area in AREAS] for kind in MAPS] + [sides]
    groups += [[f"{name}, {kind}" for kind in TOKENS] for name in ("entropy", "correlation with the sentence")]
    groups += [[f"pointing, {kind}" for kind in TOKENS]]
    drawn = next(iter(results.values()))[0]
    about = [f"{name} {drawn[name]:.3f}" for name in names if name.startswith(("regions'", "area, "))]
    parts = [aligned(means(results, group)) for group in groups if group]
    return "\n\n".join([*parts, "The drawings: " + ", ".join(about)])


def main() -> None:
    arguments = parse_arguments()
    if arguments.table:
        print(tables(json.loads(arguments.table.read_text())["rows"]))
        return
    setting = setting_of(arguments)
    run(setting, arguments.seeds, arguments.rows, arguments.output_dir, arguments.processes, measure_row, ENDING)
    results = of_seeds(arguments.output_dir, arguments.seeds, arguments.rows, ENDING)
    print(tables(results))
    save(arguments, results, "maps_of_sentences.json")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
