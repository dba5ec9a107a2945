# Licensed under the Apache License, Version 2.0.
"""The study's local losses against their formulas, a token at a time, and its measures against the evaluation's."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_tier.data.synthetic import DRAWINGS
from modeling_tier.evaluation import evaluate_zero_shot, load_model, load_prompts, own_prompts
from tests.processes import in_processes


sys.path.insert(0, str(Path(__file__).parents[1] / "studies"))
import growth  # noqa: E402
from bench import Bench, beyond_patients, measures_of, over_patients  # noqa: E402
from bench import table as bench_table  # noqa: E402
from continued import Setting, build, check_setting, held_out_set, pretrain, run_rows, training_pairs  # noqa: E402
from cost_of_losses import Case, measure_costs  # noqa: E402
from cost_of_losses import lines as cost_lines  # noqa: E402
from drawings import MAPS, HeldOutSet, TrainingSet, held_out_pairs, measure, sentences_of  # noqa: E402
from maps_of_sentences import AREAS, Places, kinds_of_tokens, measure_row, tables  # noqa: E402
from rows import ROWS, SENTENCE_ROWS  # noqa: E402
from trained_start import differences, means, of_seeds, table  # noqa: E402

from modeling_tier.training.pairs_of_batch import Pairs  # noqa: E402


ROOT = Path(__file__).parents[1]


def drawn_pairs(seed: int = 0, dtype=torch.float64) -> Pairs:
    """Five pairs of up to six tokens and nine patches."""
    generator = torch.Generator().manual_seed(seed)

    def unit(*shape):
        return torch.nn.functional.normalize(torch.randn(*shape, generator=generator, dtype=dtype), dim=-1)

    lengths = torch.tensor([6, 3, 5, 4, 6])
    mask = torch.arange(6)[None] < lengths[:, None]
    content = mask & (torch.arange(6)[None] > 0) & (torch.arange(6)[None] < lengths[:, None] - 1)
    weights = torch.rand(5, 9, generator=generator, dtype=dtype) / 9
    rows = unit(5, 8), unit(5, 8), unit(5, 6, 8), unit(5, 9, 8), weights, mask, content
    return Pairs(*rows, torch.tensor(7.0, dtype=dtype), unit(9, 8), torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 4]))


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


def by_tier_tokens(p: Pairs) -> float:
    cosines = [tokens_of(p, i) @ p.patches[i].numpy().T / 0.5 for i in range(5)]
    return np.mean([0.2 * np.mean([entropy(row) for row in own]) for own in cosines])


def by_entropy_without_common(p: Pairs) -> float:
    common, values = p.text.numpy().mean(axis=0), []
    for i in range(5):
        patches = p.patches[i].numpy()
        maps = [patches @ token - patches @ common for token in tokens_of(p, i)]
        values.append(np.mean([entropy(row / 0.5) for row in maps]))
    return 0.2 * np.mean(values)


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


def own_maps(p: Pairs, i: int) -> np.ndarray:
    """(K, P) of the sentences of pair i."""
    return p.sentences[p.owners == i].numpy() @ p.patches[i].numpy().T


def by_positives(p: Pairs, attends: bool = False) -> float:
    sentences, owners = p.sentences.numpy(), p.owners.tolist()
    scores = np.zeros((9, 5))
    for s in range(9):
        for j in range(5):
            patches = p.patches[j].numpy()
            image = unit(softmax(7 * patches @ sentences[s]) @ patches) if attends else p.image[j].numpy()
            scores[s, j] = 7 * image @ sentences[s]
    losses = []
    for i in range(5):
        own = [s for s in range(9) if owners[s] == i]
        others = [s for s in range(9) if owners[s] != i]
        to_image = np.mean([cross_entropy(scores[s], i) for s in own])
        to_text = np.mean([cross_entropy(scores[[s, *others], i], 0) for s in own])
        losses.append((to_image + to_text) / 2)
    return np.mean(losses)


def by_sentence_entropy(p: Pairs) -> float:
    return 0.2 * np.mean([np.mean([entropy(row / 0.5) for row in own_maps(p, i)]) for i in range(5)])


def by_sentence_patch_entropy(p: Pairs) -> float:
    return 0.2 * np.mean([np.mean([entropy(column / 0.5) for column in own_maps(p, i).T]) for i in range(5)])


def by_likeness(p: Pairs) -> float:
    values = []
    for i in range(5):
        matrix = np.corrcoef(np.atleast_2d(own_maps(p, i))).reshape(len(own_maps(p, i)), -1)
        two = [max(matrix[j, k], 0) for j in range(len(matrix)) for k in range(j)]
        values.append(np.mean(two) if two else 0.0)
    return 0.5 * np.mean(values)


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
    "sentences as positives, 1": by_positives,
    "VL-CABS over sentences, 0.1": lambda p: 0.1 * by_positives(p, attends=True),
    "entropy of sentences, 0.2 at temperature 0.5": by_sentence_entropy,
    "entropy without the common map, 0.2 at temperature 0.5": by_entropy_without_common,
    "TIER 0.2, 0 at temperature 0.5, patches over sentences 0.2": lambda p: (
        by_tier_tokens(p) + by_sentence_patch_entropy(p)
    ),
    "TIER 0.2, 0 at temperature 0.5, unlike maps 0.5": lambda p: by_tier_tokens(p) + by_likeness(p),
}
ALL_ROWS = ROWS | SENTENCE_ROWS


@pytest.mark.parametrize("row", FORMULAS)
def test_a_local_loss_is_its_formula(row):
    pairs = drawn_pairs()
    assert float(ALL_ROWS[row](pairs)) == pytest.approx(float(FORMULAS[row](pairs)), abs=1e-12)


def loss_and_gradients(row: str, pairs: Pairs) -> dict[str, torch.Tensor]:
    """The gradients of all embeddings, at the positions that are no padding, and of the scale."""
    names = ("text", "image", "tokens", "patches", "patch_weights", "scale", "sentences")
    for name in names:
        setattr(pairs, name, getattr(pairs, name).detach().clone().requires_grad_())
    loss = ALL_ROWS[row](pairs)
    if loss.requires_grad:
        loss.backward()
    values = {name: getattr(pairs, name) for name in names}
    return {"loss": loss.detach()} | {
        name: torch.zeros_like(value) if value.grad is None else value.grad for name, value in values.items()
    }


@pytest.mark.parametrize("row", ALL_ROWS)
@pytest.mark.parametrize("chunk_size", [2])
def test_chunks_change_neither_a_local_loss_nor_its_gradient(row, chunk_size):
    expected = loss_and_gradients(row, drawn_pairs())
    actual = loss_and_gradients(row, dataclasses.replace(drawn_pairs(), chunk_size=chunk_size))
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-10, atol=1e-12, msg=f"{row}: {name}")


def of_a_process(rank: int, blocks: dict) -> dict:
    """Three pairs in the first process, two in the other, whose longest text is shorter."""
    pairs = drawn_pairs().part(*((0, 3), (3, 5))[rank])
    if rank == 1:
        pairs = dataclasses.replace(pairs, tokens=pairs.tokens[:, :6], mask=pairs.mask[:, :6])
    else:
        pairs = dataclasses.replace(
            pairs, **{name: torch.nn.functional.pad(getattr(pairs, name), (0, 2)) for name in ("mask", "content")}
        )
        pairs.tokens = torch.nn.functional.pad(pairs.tokens, (0, 0, 0, 2), value=3.0)
    pairs = dataclasses.replace(pairs, **blocks)
    return {row: loss_and_gradients(row, pairs) for row in ALL_ROWS}


@pytest.mark.parametrize("blocks", [{}, {"chunk_size": 2}, {"max_values": 100}], ids=str)
def test_a_local_loss_over_processes_is_that_of_all_their_pairs(blocks):
    """Gradients are those of DDP, whose mean over the processes is that of the loss."""
    first, second = in_processes(2, of_a_process, blocks)
    for row in ALL_ROWS:
        expected = loss_and_gradients(row, drawn_pairs())
        for name, value in expected.items():
            one, other = first[row][name], second[row][name]
            if name == "tokens":
                one = one[:, :6]
            if name == "loss":
                together = torch.stack([one, other])
                value = value.expand(2)
            elif name == "scale":
                together = (one + other) / 2
            else:
                together = torch.cat([one, other]) / 2
            torch.testing.assert_close(
                together.double(), value.double(), rtol=1e-5, atol=1e-6, msg=f"{row}, {blocks}: {name}"
            )


@pytest.mark.parametrize("row", [row for row in ALL_ROWS if row != "CLIP" and "as positives" not in row])
def test_padding_changes_neither_a_local_loss_nor_its_gradient(row):
    results = []
    for value in (0.0, 3.0):
        pairs = drawn_pairs()
        tokens = pairs.tokens.masked_fill(~pairs.mask.unsqueeze(2), value)
        pairs.tokens, pairs.patches = tokens.requires_grad_(), pairs.patches.requires_grad_()
        loss = ALL_ROWS[row](pairs)
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


@pytest.mark.parametrize("drawings", ["simple", pytest.param("fine", marks=pytest.mark.slow)])
def test_measures_are_those_of_the_evaluation(studied, drawings):
    """Of the finer drawings too, of whose findings and words the model has seen none."""
    setting, folder = dataclasses.replace(studied[0], drawings=drawings), studied[1]
    model, processor = load_model(str(folder / "start"))
    pairs = held_out_pairs(setting.num_test, setting.image_size, setting.section, drawings)
    prompts = load_prompts(own_prompts("synthetic", {"drawings": drawings}))
    metrics, _ = evaluate_zero_shot(model, processor, pairs, prompts, progress=False)
    measured = measure(model, processor, held_out_set(setting, processor))
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
    text = table(of_seeds(folder.parent, [3], ["start", "CLIP", "TIER 0.2, 0"]))
    assert text.count("TIER 0.2, 0") == 2 and "AUROC left/right" in text and "nan" not in text


def test_a_folder_of_another_setting_is_refused(studied):
    setting, folder = studied
    check_setting(setting, folder)
    with pytest.raises(
        ValueError, match=r"is of another setting \(drawings simple, not fine\): name another --output_dir"
    ):
        check_setting(dataclasses.replace(setting, drawings="fine"), folder)


def test_costs_stand_in_the_table_beside_the_means(studied):
    results = of_seeds(studied[1].parent, [3], ["start", "CLIP"])
    lines = table(results, {"CLIP": {"time ratio": [0.9, 1.23, 1.5], "peak ratio": 4.56}}).splitlines()
    assert "time to CLIP's" in lines[0] and lines[2].split()[-2:] == ["1.23", "4.56"]


@pytest.mark.slow
def test_growth_has_a_line_for_each_size(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(growth.SIZES, "small", {"num_pairs": 64, "more_epochs": 1})
    arguments = ["--sizes", "small", "--seeds", "3", "--rows", "CLIP", "TIER 0.2, 0"]
    arguments += ["--epochs", "1", "--num_test", "60", "--output_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["studies/growth.py", *arguments])
    growth.main()
    printed = capsys.readouterr().out
    assert "TIER 0.2, 0, minus CLIP" in printed and printed.count("small") == 2
    assert growth.table(json.loads((tmp_path / "growth.json").read_text())["sizes"]) + "\n" == printed
    (tmp_path / "growth.json").unlink()  # as if the first call had been stopped
    other = [*arguments[:3], "4", *arguments[4:], "--num_test", "50"]
    monkeypatch.setattr(sys, "argv", ["studies/growth.py", *other])
    with pytest.raises(ValueError, match="3 is of another setting"):
        growth.main()


def test_results_of_growth_keep_what_earlier_calls_left(tmp_path):
    """Seeds and rows of all calls, as far as each seed has each row."""
    rows = ["start", "CLIP", "TIER 0.2, 0"]

    def leave(seed: int, names: list[str]) -> None:
        (tmp_path / "small" / str(seed)).mkdir(parents=True)
        for name in names:
            file = tmp_path / "small" / str(seed) / f"{growth.file_name(name)}.json"
            file.write_text(json.dumps({"measures": {"AUROC": seed + len(name) / 100}}))

    leave(3, rows)
    leave(11, rows)
    file = tmp_path / "growth.json"
    results = growth.Results.of(file, {"num_test": 60})
    results.add("small", tmp_path / "small", rows)
    assert results.seeds == {"small": [3, 11]}
    assert results.sizes["small"]["CLIP"] == [{"AUROC": 3.04}, {"AUROC": 11.04}]
    file.write_text(json.dumps(dataclasses.asdict(results)))
    leave(4, rows[:2])
    later = growth.Results.of(file, {"num_test": 60})
    later.add("small", tmp_path / "small", rows)  # seed 4 has not all of them yet
    assert later == results
    later.add("small", tmp_path / "small", rows[:2])
    assert later.seeds == {"small": [3, 4, 11]} and list(later.sizes["small"]) == rows[:2]
    with pytest.raises(ValueError, match="name another --output_dir"):
        growth.Results.of(file, {"num_test": 70})
    file.write_text(json.dumps({"command": "of an older version", "sizes": {}}))
    with pytest.raises(ValueError, match="name another --output_dir"):
        growth.Results.of(file, {"num_test": 60})


def test_the_command_for_a_gpu_names_sizes_and_seeds_that_exist(tmp_path):
    table = ROOT / "studies" / "results" / "sizes_gpu.json"
    command = ["bash", str(ROOT / "studies" / "gpu.sh"), "growth", str(tmp_path), "--table", str(table)]
    done = subprocess.run(command, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("TIER 0.2, 0 at temperature 0.5, minus CLIP") == 2


def test_the_table_of_growth_joins_files_and_draws_them(tmp_path, monkeypatch, capsys):
    """The study's own results are a size, too; rows that not every file has are left out."""
    results = ROOT / "studies" / "results"
    files = [str(results / f"{name}.json") for name in ("growth_cpu", "trained_start")]
    figure = tmp_path / "growth.png"
    monkeypatch.setattr(sys, "argv", ["studies/growth.py", "--table", *files, "--figure", str(figure)])
    growth.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    sizes = [re.split("  +", line)[0] for line in lines]
    own = [size for size in growth.SIZES if size in sizes]
    assert sizes[1 : 1 + len(own)] == own and {"2,000 pairs", "8,000 pairs"} <= set(own)
    rows = ["TIER 0.2, 0 at temperature 0.5", "VL-CABS, 0.1"]
    assert [size for size in sizes if size.endswith("minus CLIP")] == [f"{row}, minus CLIP" for row in rows]
    trained = json.loads((results / "trained_start.json").read_text())["rows"]
    expected = differences(trained, ["pointing, cosine"])
    line = next(line for line in lines[len(own) + 1 :] if line.startswith("8,000 pairs "))
    assert re.split("  +", line)[2] == dict(expected[1:])[rows[0]]
    assert Image.open(figure).width > 1000


@pytest.mark.parametrize("size", [size for size in growth.SIZES if "patches" in size or "ViT" in size])
def test_a_size_has_as_many_patches_as_it_says(size):
    patches = int(size.split()[-2]) if "patches" in size else 64
    setting = Setting(seed=0, **{**growth.SIZES[size], "num_pairs": 4})
    model, _ = build(setting, training_pairs(setting))
    pixels = torch.zeros(1, 3, setting.image_size, setting.image_size)
    assert model.eval().encode_image(pixels).local_embeds.shape[1] == patches
    assert training_pairs(setting).features["labels"].keys() == {*DRAWINGS[setting.drawings].labels}
    assert ("fine" in size) == (setting.drawings == "fine")


@pytest.mark.slow
def test_the_command_for_a_gpu_leaves_its_tables(tmp_path):
    """In small, on a CPU: on a GPU minutes are scarce, and none may be lost to a typing error."""
    script = ["bash", str(ROOT / "studies" / "gpu.sh")]
    small = ["--seeds", "3", "--rows", "CLIP", "--num_test", "60", "--epochs", "1", "--num_pairs", "64"]
    for part, options in {
        "bench": [*small, "--more_epochs", "1"],
        "costs": ["--batch_sizes", "4", "--rounds", "1", "--rows", "CLIP"],
    }.items():
        done = subprocess.run(
            [*script, part, str(tmp_path), *options],
            env=os.environ | {"PYTHON": sys.executable, "PROCESSES": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    found = {str(path.relative_to(tmp_path / "json")) for path in (tmp_path / "json").rglob("*.json")}
    tables = {"results.json", "maps_of_sentences.json", "cost_of_losses.json"}
    assert found == {"3/setting.json", "3/start.json", "3/CLIP.json", "3/CLIP.sentences.json"} | tables


def test_sentences_of_a_report_are_without_numbers_and_each_once():
    assert sentences_of("1. Small nodule. 2. Edema. 3. Small nodule.") == ["Small nodule.", "Edema."]
    assert sentences_of("No acute findings.") == ["No acute findings."]


def test_the_sentences_of_a_batch_are_those_of_its_texts(studied):
    setting, folder = studied
    _, processor = load_model(str(folder / "start"))
    pairs = training_pairs(setting)
    data, rows = TrainingSet.of(pairs, processor), torch.tensor([5, 3, 90, 3])
    inputs, owners = data.batch_sentences(rows, torch.device("cpu"))
    expected = [(i, sentence) for i, row in enumerate(rows) for sentence in sentences_of(pairs["text"][int(row)])]
    assert owners.tolist() == [i for i, _ in expected]
    for ids, mask, (_, sentence) in zip(inputs["input_ids"], inputs["attention_mask"], expected):
        assert ids[mask.bool()].tolist() == processor.tokenizer(sentence)["input_ids"]


def test_a_row_over_sentences_trains(studied):
    setting, folder = studied
    run_rows(setting, folder, ["sentences as positives, 1"])
    assert json.loads((folder / "sentences_as_positives__1.json").read_text())["measures"]["AUROC"] > 0


def test_kinds_of_tokens(studied):
    _, processor = load_model(str(studied[1] / "start"))
    kinds = kinds_of_tokens(processor, "There is pulmonary edema.")
    assert list(dict.fromkeys(kinds)) == ["[CLS]", "other words", "finding", "[SEP] and full stop"]
    assert (kinds.count("[CLS]"), kinds.count("[SEP] and full stop")) == (1, 2)
    assert "side and zone" in kinds_of_tokens(processor, "Left upper lobe consolidation.")


def test_places_are_what_lies_at_the_centres_of_the_patches():
    """A picture of 4 x 4 patches of two pixels: two regions, the heart and the lungs, one below the other."""
    masks = np.zeros((2, 8, 8), dtype=bool)
    masks[0, 0:2, 0:4], masks[1, 0:2, 2:6] = True, True
    heart, lungs = np.zeros((8, 8), dtype=bool), np.zeros((8, 8), dtype=bool)
    heart[2:4, 2:6], lungs[2:6, 2:4] = True, True
    test = HeldOutSet(None, [], None, np.array([0, 0]), np.array(["a", "b"]), np.array(["A.", "B."]), masks)
    places = Places.of(test, [{"heart": heart, "lungs": lungs}], 4)
    own, another, in_heart, in_lungs, outer, elsewhere = range(6)
    assert places.areas[0].tolist() == [
        *(own, own, another, outer),
        *(outer, in_heart, in_heart, outer),
        *(outer, in_lungs, elsewhere, outer),
        *(outer, outer, outer, outer),
    ]
    assert places.areas[1, :4].tolist() == [another, own, own, outer]


@pytest.mark.slow
def test_measures_of_sentences_are_those_of_the_models_maps(studied):
    setting, folder = studied
    measure_row(setting, folder, ["start"])
    measured = json.loads((folder / "start.sentences.json").read_text())["measures"]
    model, processor = load_model(str(folder / "start"))
    test = held_out_set(setting, processor)
    maps, token_entropies = [], {}
    for row, phrase in zip(test.rows, test.phrases):
        out = model.get_similarity_map(test.pixel_values[row : row + 1], **processor(text=[str(phrase)]))
        maps.append(out.text_to_patch[0].flatten().numpy())
        for kind, own in zip(kinds_of_tokens(processor, str(phrase)), out.token_to_patch[0].flatten(1).numpy()):
            token_entropies.setdefault(kind, []).append(entropy(own))
    two = [
        (i, k)
        for k in range(len(maps))
        for i in range(k)
        if test.rows[i] == test.rows[k] and test.findings[i] != test.findings[k]
    ]
    correlation = np.mean([np.corrcoef(maps[i], maps[k])[0, 1] for i, k in two])
    assert measured["correlation, cosine"] == pytest.approx(correlation, abs=1e-4)
    same = np.mean([maps[i].argmax() == maps[k].argmax() for i, k in two])
    assert measured["same peak, cosine"] == pytest.approx(same, abs=1e-6)
    grid, others = int(len(maps[0]) ** 0.5), []
    for own, phrase, mask in zip(maps, test.phrases, test.masks):
        if "Left" in phrase or "Right" in phrase:  # the patient's left is on the right
            assert (np.argwhere(mask)[:, 1].mean() > mask.shape[1] / 2) == ("Left" in phrase)
            others.append((own.argmax() % grid < grid / 2) == ("Left" in phrase))
    assert measured["peak on the other side, cosine"] == pytest.approx(np.mean(others), abs=1e-6)
    for kind, values in token_entropies.items():
        assert measured[f"entropy, {kind}"] == pytest.approx(np.mean(values), abs=1e-4)
    assert measured["correlation with the sentence, [CLS]"] == pytest.approx(1, abs=1e-5)
    for kind in MAPS:
        assert sum(measured[f"peak in {area}, {kind}"] for area in AREAS) == pytest.approx(1)
    assert "elsewhere" in tables(of_seeds(folder.parent, [3], ["start"], "sentences.json"))


@pytest.mark.slow
def test_costs_are_those_of_the_rows_beside_clip():
    case = Case(Setting(seed=0, num_pairs=8), 8, chunk_size=4)
    measured = measure_costs(case, ["FILIP, 1"], rounds=1)
    assert list(measured) == ["CLIP", "FILIP, 1"]
    assert measured["CLIP"]["peak ratio"] == 1 and measured["CLIP"]["time ratio"] == [1, 1, 1]
    assert measured["FILIP, 1"]["peak ratio"] > 1


def by_row(lines: list[list[str]]) -> dict[str, dict[str, str]]:
    return {line[0]: dict(zip(lines[0][1:], line[1:])) for line in lines[1:]}


def tables_of_the_results() -> dict[str, dict[str, dict[str, str]]]:
    """By the first cell of the heading; of each row the cells by their column."""

    def read(name: str) -> dict:
        return json.loads((ROOT / "studies" / "results" / f"{name}.json").read_text())

    trained, bench = read("trained_start")["rows"], read("bench_cpu")
    shown = [name for name in bench["sets"]["synthetic"]["CLIP"][0] if name not in ("pairs/s", "GPU MiB")]
    tables = {
        "": means(trained),
        "minus CLIP's row": differences(trained),
        "second run, minus CLIP's row": differences(read("sentences_gpu")["rows"]),
        "maps of sentences": means(read("maps_of_sentences_gpu")["rows"]),
        "two more epochs": means(bench["sets"]["synthetic"], shown),
        "seeds whose interval over patients is above, below 0": over_patients(
            bench["beyond the interval over patients"]["synthetic"], shown
        ),
    }
    sizes = read("growth_cpu")["sizes"] | read("sizes_cpu")["sizes"] | read("sizes_gpu")["sizes"]
    sizes |= {"8,000 pairs": trained}
    tables |= {lines[0][0]: lines for lines in growth.tables(growth.ordered(sizes))}
    for name, where in (("cost_of_losses_gpu", ""), ("cost_of_losses_cpu", " on a CPU")):
        for result in read(name)["results"]:
            lines = cost_lines(result)
            tables[lines[0][0] + where] = lines
    del tables["64 pairs in chunks of 32"]  # left out of the document: 256 pairs say more
    return {heading: by_row(lines) for heading, lines in tables.items()}


def test_the_tables_of_the_document_are_those_of_the_results():
    expected, lines = tables_of_the_results(), (ROOT / "docs" / "study.md").read_text().splitlines()
    table, columns, seen = None, [], Counter()
    for line, below in zip(lines, [*lines[1:], ""]):
        heading, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            table = None
        elif set(below) <= set("| -") and below.startswith("|"):
            table, columns = heading, cells
            seen[table] += table in expected
        elif table in expected and not set(line) <= set("| -"):
            row = expected[table][heading]
            assert dict(zip(columns, cells, strict=True)) == {column: row[column] for column in columns}, line
            seen[table, "rows"] += 1
    rows = len(expected[""])
    assert seen["", "rows"] == 6 and seen["minus CLIP's row", "rows"] == 5 + 3 * (rows - 1)
    for heading in expected:
        assert seen[heading], f"docs/study.md has no table {heading!r}"


def of_an_evaluation(auroc: float, cnr: float, low: float, high: float) -> dict:
    """A part of what an evaluation writes, of a model or of a difference."""
    of_map = {"text": "sentence", "resolution": "pixel", "map": "contribution", "place": "mask"}
    return {
        "classification": {"image": {"mean": {"auroc": {"value": auroc, "low": low, "high": high}}}},
        "laterality": {"mean": {"auroc_left_right": {"value": 0.1, "low": -0.4, "high": 0.7}}},
        "localisation_maps": [
            of_map | {"place": "box", "cnr": {"value": 99.0}},
            of_map | {"cnr": {"value": cnr, "low": 0.1, "high": 0.2}},
            of_map | {"text": "token", "cnr": {"value": 99.0}},
        ],
    }


def test_the_bench_reads_evaluations_and_counts_seeds_over_patients(tmp_path):
    bench = Bench([], [], [], ["CLIP", "TIER"], [0, 1], tmp_path)
    sets, patients = {"CLIP": [], "TIER": []}, {"TIER": []}
    for seed, (clip, tier, low, high) in enumerate([(0.5, 0.7, 0.1, 0.3), (0.6, 0.5, -0.2, -0.1)]):
        for row in bench.rows:
            bench.run_folder(row, seed).mkdir(parents=True)
            steps = [{"pairs_per_second": rate, "peak_memory_mib": 7} for rate in [1] + [10] * 9 + [11] * 10]
            lines = [json.dumps(step) + "\n" for step in [*steps, {"validation": {}}]]
            (bench.run_folder(row, seed) / "log.jsonl").write_text("".join(lines))
        difference = of_an_evaluation(tier - clip, 0.15, low, high)
        other = {"metrics": of_an_evaluation(tier, 2.0, 0, 1), "difference": difference}
        results = {"metrics": of_an_evaluation(clip, 1.0, 0, 1), "compared": {"some/name": other}}
        for row, values in measures_of(bench, results, seed).items():
            sets[row].append(values)
        patients["TIER"].append(beyond_patients(bench, results)["TIER"])
    assert sets["TIER"][0]["AUROC"] == 0.7 and sets["TIER"][0]["CNR, contribution"] == 2.0
    assert sets["CLIP"][0]["pairs/s"] == 11 and sets["CLIP"][0]["GPU MiB"] == 7  # the first two of 20 do not count
    assert patients["TIER"][0] == {"AUROC": 1, "left/right": 0, "CNR, contribution": 1}
    assert patients["TIER"][1] == {"AUROC": -1, "left/right": 0, "CNR, contribution": 1}
    text = bench_table(sets, patients)
    for cells in (["CLIP", "0.550 (0.071)"], ["TIER", "+0.050 ± 1.906, 1/2"], ["TIER", "1, 1 of 2"], ["2, 0 of 2"]):
        assert any(all(cell in line for cell in cells) for line in text.splitlines()), cells


SCRIPT_THAT_FAILS = """
import json, sys
from pathlib import Path

script, *options = sys.argv[1:]
folder = Path(options[options.index("--output_dir") + 1])
folder.mkdir(parents=True, exist_ok=True)
if script.endswith("train.py"):
    if folder.parts[-2:] == ("1", "filip"):
        sys.exit(3)
    (folder / "metrics.json").write_text("{}")
    (folder / "log.jsonl").write_text("")
else:
    models = [option for option in options if "/" in option and option != str(folder)]
    part = {"classification": {"image": {"mean": {"auroc": {"value": 0.5, "low": 0.4, "high": 0.6}}}}}
    compared = {model: {"metrics": part, "difference": part} for model in models[1:]}
    metrics = {"dataset": "synthetic", "metrics": part, "compared": compared}
    (folder / "metrics.json").write_text(json.dumps(metrics))
"""


def test_a_row_that_fails_does_not_end_the_bench(tmp_path):
    """The second of its seeds: the other rows of both seeds are in the table, and the failure is named at the end."""
    (tmp_path / "launch.py").write_text(SCRIPT_THAT_FAILS)
    command = [sys.executable, ROOT / "studies" / "bench.py", "--config", ROOT / "configs" / "demo.yaml"]
    command += ["--output_dir", "bench", "--seeds", "0", "1", "--rows", "filip", "vl_cabs"]
    command += ["--evaluate", "--dataset synthetic", "--launch", f"{sys.executable} launch.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "left out is filip: this ended with 3" in done.stderr, done.stderr
    assert "vl_cabs" in done.stdout and "filip" not in done.stdout
    results = json.loads((tmp_path / "bench" / "bench.json").read_text())
    assert {row: len(seeds) for row, seeds in results["sets"]["synthetic"].items()} == {"CLIP": 2, "vl_cabs": 2}
    assert results["seeds"] == [0, 1]


@pytest.mark.slow
def test_the_bench_trains_and_evaluates_once(tmp_path):
    """Two rows of one seed, as small as they go; the same command again prints the table alone."""
    evaluate = "--dataset synthetic --num_images 60 --resamples 0"
    command = [sys.executable, ROOT / "studies" / "bench.py", "--config", ROOT / "configs" / "demo.yaml"]
    command += ["--output_dir", "bench", "--seeds", "3", "--rows", "vl_cabs_sentences", "--evaluate", evaluate]
    command += ["--data.train.num_images=64", "--data.validation.num_images=40", "--training.epochs=1"]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    results = json.loads((tmp_path / "bench" / "bench.json").read_text())["sets"]["synthetic"]
    (file,) = (tmp_path / "bench" / "3").glob("evaluation-*/metrics.json")
    evaluated = json.loads(file.read_text())
    metrics = [evaluated["metrics"], *(other["metrics"] for other in evaluated["compared"].values())]
    assert list(results) == ["CLIP", "vl_cabs_sentences"]
    for (values,), own in zip(results.values(), metrics):
        assert values["AUROC"] == own["auroc"]["mean"]
        plain = {"text": "sentence", "place": "mask", "resolution": "pixel", "map": "plain"}
        (plain,) = (entry for entry in own["localisation_maps"] if plain.items() <= entry.items())
        assert values["pointing, cosine"] == plain["pointing_game"]["value"]
    logs = {row: (tmp_path / "bench" / "3" / row / "log.jsonl").read_text() for row in results}
    assert '"local_loss"' in logs["vl_cabs_sentences"] and '"local_loss"' not in logs["CLIP"]
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (
        again.returncode == 0 and again.stdout.strip() == first.stdout[first.stdout.rindex("\nsynthetic\n") :].strip()
    )
    assert logs == {row: (tmp_path / "bench" / "3" / row / "log.jsonl").read_text() for row in results}
    other = subprocess.run([*command, "--optimizer.lr", "0.1"], cwd=tmp_path, capture_output=True, text=True)
    assert other.returncode == 1 and "optimizer.lr is not what the runs in bench were trained with" in other.stderr
    chunks = subprocess.run([*command, "--training.chunk_size", "8"], cwd=tmp_path, capture_output=True, text=True)
    assert chunks.returncode == 1 and "delete training.chunk_size" in chunks.stderr  # before anything is trained


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--training.epoch", "3"], "training.epochs"),
        (["--seeds", "0", "0"], "a seed is named twice"),
        (["--evaluate", "--datset synthetic"], "datset"),
        (["--evaluate", "--dataset synthetic --output_dir x"], "--output_dir in --evaluate is set by the bench"),
        (["--seed", "3"], "--seed is set by the bench"),
    ],
)
def test_the_bench_answers_mistakes_before_it_trains(options, message, tmp_path):
    command = [sys.executable, ROOT / "studies" / "bench.py", "--config", ROOT / "configs" / "demo.yaml"]
    command += ["--evaluate", "--dataset synthetic", "--output_dir", tmp_path / "bench", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode and message in done.stderr and not (tmp_path / "bench").exists()
