# Licensed under the Apache License, Version 2.0.
"""The study's local losses against their formulas, a token at a time, and its measures against the evaluation's."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_tier.evaluation import evaluate_zero_shot, load_model, load_prompts


sys.path.insert(0, str(Path(__file__).parents[1] / "studies"))
from continued import Setting, pretrain, run_rows  # noqa: E402
from drawings import HeldOutSet, held_out_pairs, measure  # noqa: E402
from local_losses import ROWS, Pairs  # noqa: E402
from trained_start import differences, means, read, table  # noqa: E402


def drawn_pairs(seed: int = 0, dtype=torch.float64) -> Pairs:
    """Five pairs of up to six tokens and nine patches."""
    generator = torch.Generator().manual_seed(seed)

    def unit(*shape):
        return torch.nn.functional.normalize(torch.randn(*shape, generator=generator, dtype=dtype), dim=-1)

    lengths = torch.tensor([6, 3, 5, 4, 6])
    mask = torch.arange(6)[None] < lengths[:, None]
    content = mask & (torch.arange(6)[None] > 0) & (torch.arange(6)[None] < lengths[:, None] - 1)
    weights = torch.rand(5, 9, generator=generator, dtype=dtype) / 9
    return Pairs(
        unit(5, 8), unit(5, 8), unit(5, 6, 8), unit(5, 9, 8), weights, mask, content, torch.tensor(7.0, dtype=dtype)
    )


def entropy(values: np.ndarray) -> float:
    probabilities = np.exp(values) / np.exp(values).sum()
    return float(-(probabilities * np.log(probabilities)).sum())


def cross_entropy(scores: np.ndarray, target: int) -> float:
    return float(np.log(np.exp(scores).sum()) - scores[target])


def both_ways(scores: np.ndarray) -> float:
    rows = [cross_entropy(scores[i], i) + cross_entropy(scores[:, i], i) for i in range(len(scores))]
    return float(np.mean(rows)) / 2


def tokens_of(p: Pairs, i: int, content: bool = False) -> np.ndarray:
    return p.tokens[i][(p.content if content else p.mask)[i]].numpy()


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def softmax(values: np.ndarray) -> np.ndarray:
    return np.exp(values) / np.exp(values).sum()


def by_tier(p: Pairs) -> float:
    values = []
    for i in range(5):
        cosines = tokens_of(p, i) @ p.patches[i].numpy().T / 0.5
        values.append(
            0.2 * np.mean([entropy(row) for row in cosines]) + 0.1 * np.mean([entropy(c) for c in cosines.T])
        )
    return np.mean(values)


def by_tier_content(p: Pairs) -> float:
    cosines = [tokens_of(p, i, content=True) @ p.patches[i].numpy().T / 0.5 for i in range(5)]
    return np.mean([0.2 * np.mean([entropy(row) for row in own]) for own in cosines])


def by_contributions(p: Pairs) -> float:
    maps = [tokens_of(p, i) @ p.patches[i].numpy().T * p.patch_weights[i].numpy() * 9 for i in range(5)]
    return np.mean([0.2 * np.mean([entropy(row / 0.5) for row in own]) for own in maps])


def by_steep(p: Pairs) -> float:
    cosines = [tokens_of(p, i) @ p.patches[i].numpy().T for i in range(5)]
    return -np.mean([np.mean([np.abs(9 * softmax(row) - 1).sum() / 9 / 2 for row in own]) for own in cosines])


def by_filip(p: Pairs) -> float:
    text, image = np.zeros((5, 5)), np.zeros((5, 5))
    for i in range(5):
        for j in range(5):
            cosines = tokens_of(p, i) @ p.patches[j].numpy().T
            text[i, j], image[i, j] = 7 * cosines.max(axis=1).mean(), 7 * cosines.max(axis=0).mean()
    return np.mean([cross_entropy(text[i], i) + cross_entropy(image[:, i], i) for i in range(5)]) / 2


def by_gloria(p: Pairs) -> float:
    scores = np.zeros((5, 5))
    for i in range(5):
        for j in range(5):
            patches, total = p.patches[j].numpy(), 0.0
            for token in tokens_of(p, i, content=True):
                context = softmax(4 * patches @ token) @ patches
                total += math.exp(5 * float(unit(context) @ token))
            scores[i, j] = 10 * math.log(total)
    return both_ways(scores)


def by_sparc(p: Pairs) -> float:
    values = []
    for i in range(5):
        tokens, patches = tokens_of(p, i), p.patches[i].numpy()
        grouped = []
        for token in tokens:
            similarity = patches @ token
            scaled = (similarity - similarity.min()) / (similarity.max() - similarity.min())
            scaled[scaled < 1 / 9] = 0
            grouped.append(unit(scaled / scaled.sum() @ patches))
        values.append(both_ways(7 * np.stack(grouped) @ tokens.T))
    return np.mean(values)


def attended_scores(p: Pairs) -> np.ndarray:
    scores = np.zeros((5, 5))
    for i in range(5):
        for j in range(5):
            text, patches = p.text[i].numpy(), p.patches[j].numpy()
            scores[i, j] = 7 * unit(softmax(7 * patches @ text) @ patches) @ text
    return scores


def by_flair(p: Pairs) -> float:
    scores = attended_scores(p)
    scores = scores - scores.mean() - math.log(4)
    return sum(np.log1p(np.exp(-scores[i, j] if i == j else scores[i, j])) for i in range(5) for j in range(5)) / 5


FORMULAS = {
    "TIER 0.2, 0.1 at temperature 0.5": by_tier,
    "TIER 0.2, 0 at temperature 0.5, no special tokens": by_tier_content,
    "entropy of contributions, 0.2 at temperature 0.5": by_contributions,
    "steep, 1": by_steep,
    "FILIP, 1": by_filip,
    "GLoRIA local, 1": by_gloria,
    "SPARC, 1": by_sparc,
    "VL-CABS, 1": lambda p: both_ways(attended_scores(p)),
    "FLAIR-like, 1": by_flair,
    "CLIP": lambda p: 0.0,
}


@pytest.mark.parametrize("row", FORMULAS)
def test_a_local_loss_is_its_formula(row):
    pairs = drawn_pairs()
    assert float(ROWS[row](pairs)) == pytest.approx(float(FORMULAS[row](pairs)), abs=1e-12)


@pytest.mark.parametrize("row", [row for row in ROWS if row != "CLIP"])
def test_padding_changes_neither_a_local_loss_nor_its_gradient(row):
    results = []
    for value in (0.0, 3.0):
        pairs = drawn_pairs()
        tokens = pairs.tokens.masked_fill(~pairs.mask.unsqueeze(2), value)
        pairs.tokens, pairs.patches = tokens.requires_grad_(), pairs.patches.requires_grad_()
        loss = ROWS[row](pairs)
        loss.backward()
        token_grad = torch.zeros_like(tokens) if tokens.grad is None else tokens.grad
        results.append((loss.detach(), token_grad[pairs.mask], pairs.patches.grad))
        assert all(part.isfinite().all() for part in results[-1])
        assert token_grad[~pairs.mask].abs().max() == 0
    for one, other in zip(*results):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("row", ["steep", "FILIP", "GLoRIA local", "SPARC", "VL-CABS", "FLAIR-like"])
def test_weights_of_a_local_loss_scale_it(row):
    assert float(ROWS[f"{row}, 1"](drawn_pairs())) == pytest.approx(10 * float(ROWS[f"{row}, 0.1"](drawn_pairs())))


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """A start and two rows, as small as they go."""
    folder = tmp_path_factory.mktemp("study") / "3"
    setting = Setting(seed=3, num_pairs=128, num_test=120, epochs=1, more_epochs=1)
    pretrain(setting, folder)
    run_rows(setting, folder, ["start", "CLIP", "TIER 0.2, 0"])
    return setting, folder


def test_measures_are_those_of_the_evaluation(studied):
    setting, folder = studied
    model, processor = load_model(str(folder / "start"))
    pairs = held_out_pairs(setting.num_test, setting.image_size, setting.section)
    metrics, _ = evaluate_zero_shot(model, processor, pairs, load_prompts("synthetic"), progress=False)
    measured = measure(model, processor, HeldOutSet.of(pairs, processor))
    assert measured["AUROC"] == pytest.approx(metrics["auroc"]["mean"], abs=1e-4)
    assert measured["R@10"] == pytest.approx(metrics["retrieval"]["image_to_text"]["r@10"], abs=1e-2)
    localisation = metrics["localisation"]
    assert measured["pointing, cosine"] == pytest.approx(localisation["pointing_game"]["mean"], abs=1e-6)
    assert measured["CNR, cosine"] == pytest.approx(localisation["cnr"]["mean"], abs=1e-4)


def test_a_row_is_not_run_again_and_the_table_has_all(studied):
    setting, folder = studied
    before = {file: file.stat().st_mtime_ns for file in folder.glob("*.json")}
    pretrain(setting, folder)
    run_rows(setting, folder, ["start", "CLIP", "TIER 0.2, 0"])
    assert {file: file.stat().st_mtime_ns for file in folder.glob("*.json")} == before
    text = table(read(folder.parent, [3], ["start", "CLIP", "TIER 0.2, 0"]))
    assert text.count("TIER 0.2, 0") == 2 and "AUROC left/right" in text and "nan" not in text


def test_the_tables_of_the_document_are_those_of_the_results():
    root = Path(__file__).parents[1]
    results = json.loads((root / "studies" / "results" / "trained_start.json").read_text())["rows"]
    expected = {}
    for heading, *lines in (means(results), differences(results)):
        expected[heading[0]] = {line[0]: dict(zip(heading[1:], line[1:])) for line in lines}
    table, measures, seen = {}, [], 0
    for line in (root / "docs" / "study.md").read_text().splitlines():
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and set(cells) <= set(expected[""]["CLIP"]):  # a heading
            table, measures = expected[name], cells
        elif not line.startswith("|"):
            table = {}
        elif name in table:
            assert dict(zip(measures, cells)) == {measure: table[name][measure] for measure in measures}, line
            seen += 1
    assert seen == 6 + 5 + 3 * len(ROWS)
