# Licensed under the Apache License, Version 2.0.
"""Intervals and comparisons against scikit-learn, pandas and bootstraps written out."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    matthews_corrcoef,
    recall_score,
    roc_auc_score,
)

from modeling_tier.data.columns import make_pairs, pair_features
from modeling_tier.evaluation.evidence import compare, gather_evidence, judged_units
from modeling_tier.evaluation.measures import LOCALISATION, group
from modeling_tier.evaluation.scored import ImageScores, MapScores, PairScores, Scored
from modeling_tier.evaluation.statistics import Resamples, choose_threshold, delong


FINDINGS = ["Edema", "Nodule"]
N, RESAMPLES = 90, 60


def table(n=N, seed=0, reads=False, positives=None):
    """Three images a study at most, two studies a subject at most; some labels say nothing."""
    rng = np.random.default_rng(seed)
    study = np.sort(rng.integers(0, n // 2, n))
    labels = rng.integers(0, 2, (n // 2, 2)).astype(float)
    labels = labels[study]
    labels[rng.random((n, 2)) < 0.05] = np.nan
    if positives is not None:
        labels[:, 1] = positives
    columns = {
        "image": [None] * n,
        "subject_id": [f"p{s // 2}" for s in study],
        "study_id": [f"s{s}" for s in study],
        "image_id": [f"i{i}" for i in range(n)],
        "labels": [{f: None if np.isnan(v) else v for f, v in zip(FINDINGS, row)} for row in labels],
    }
    pairs = make_pairs(columns, pair_features(FINDINGS, ids="string"))
    if reads:
        answers = [
            [
                {"reader": name, "labels": dict(zip(FINDINGS, map(float, rng.integers(0, 2, 2))))}
                for name in ("bc4", "bc6", "bc8")
            ]
            for _ in range(n // 2)
        ]
        pairs = pairs.add_column("reads", [answers[s] for s in study])
    return pairs, labels


def part(pairs, labels, seed=1, rows=None):
    rng = np.random.default_rng(seed)
    rows = np.arange(len(pairs)) if rows is None else rows
    scores = rng.normal(size=(len(pairs), 2)) + np.nan_to_num(labels, nan=0.5)
    details = {
        "findings": FINDINGS,
        "rows": rows,
        "scores": scores[rows],
        "probabilities": 1 / (1 + np.exp(-scores[rows])),
        "labels": labels[rows],
    }
    return {"num_images": len(rows)}, details, scores_of(rows)


def scores_of(rows, num_patches=49.0):
    number = len(rows)
    return Scored(ImageScores(rows, np.full(number, ""), np.zeros((number, 2)), np.full(number, num_patches)))


def frame(pairs, details):
    rows = details["rows"]
    ids = {name: np.array(pairs[name][:])[rows] for name in ("subject_id", "study_id")}
    return pd.DataFrame(
        ids | {f"s{i}": details["scores"][:, i] for i in (0, 1)} | {f"y{i}": details["labels"][:, i] for i in (0, 1)}
    )


def test_intervals_are_those_of_a_bootstrap_over_subjects_written_out():
    pairs, labels = table()
    _, details, _ = one = part(pairs, labels)
    outcome = gather_evidence({"data": one}, {"data": pairs}, RESAMPLES, seed=5).metrics["classification"]["image"]
    weights = np.concatenate(list(Resamples([f"subject {s}" for s in pairs["subject_id"]], RESAMPLES, 5).blocks()))
    assert len(weights) == RESAMPLES and len(np.unique(weights)) > 2
    by_subject = pd.Series(weights[0]).groupby(pairs["subject_id"][:]).nunique()
    assert (by_subject == 1).all(), "a subject's images come together"
    macro = []
    for i, finding in enumerate(FINDINGS):
        known = ~np.isnan(labels[:, i])
        values = {"auroc": [], "average_precision": []}
        for draw in weights:
            rows = np.repeat(np.arange(N), draw.astype(int) * known)
            y, s = labels[rows, i], details["scores"][rows, i]
            (
                values["auroc"].append(roc_auc_score(y, s)),
                values["average_precision"].append(average_precision_score(y, s)),
            )
        macro.append(values["auroc"])
        assert outcome[finding]["num_positive"] == (labels[:, i] == 1).sum()
        y, s = labels[known, i], details["scores"][known, i]
        for name, score in (("auroc", roc_auc_score), ("average_precision", average_precision_score)):
            assert outcome[finding][name]["value"] == pytest.approx(score(y, s), abs=1e-9)
            ends = np.percentile(values[name], [2.5, 97.5])
            assert [outcome[finding][name][end] for end in ("low", "high")] == pytest.approx(ends, abs=1e-9)
    ends = np.percentile(np.mean(macro, axis=0), [2.5, 97.5])
    assert [outcome["mean"]["auroc"][end] for end in ("low", "high")] == pytest.approx(ends, abs=1e-9)


def test_studies_are_the_mean_and_the_largest_of_their_images():
    pairs, labels = table()
    _, details, _ = part(pairs, labels)
    units = judged_units(pairs, details)
    by_study = frame(pairs, details).groupby(["subject_id", "study_id"])
    for name, expected_unit in (("study_mean", by_study.mean()), ("study_max", by_study.max())):
        unit = units[name]
        expected = {study: row for (_, study), row in expected_unit.iterrows()}
        studies = np.array(pairs["study_id"][:])[unit.first_row]
        assert len(studies) == len(set(studies)) == len(expected) < N
        for study, scores, known in zip(studies, unit.scores, unit.labels):
            assert scores == pytest.approx([expected[study]["s0"], expected[study]["s1"]])
            np.testing.assert_array_equal(known, by_study.max().xs(study, level="study_id")[["y0", "y1"]].iloc[0])
    outcome = gather_evidence({"data": ({}, details, Scored())}, {"data": pairs}, 5).metrics["classification"]
    assert set(outcome) == {"image", "study_mean", "study_max"}
    by_mean = by_study.mean().join(by_study.max()[["y0"]].rename(columns={"y0": "shown"})).dropna(subset="shown")
    assert outcome["study_mean"]["Edema"]["auroc"]["value"] == pytest.approx(
        roc_auc_score(by_mean["shown"], by_mean["s0"])
    )
    alone = judged_units(pairs.select(range(1)), {k: v[:1] if k != "findings" else v for k, v in details.items()})
    assert set(alone) == {"image"}


def test_a_row_without_study_or_subject_stands_for_itself():
    pairs, labels = table(8)
    pairs = make_pairs({"image": [None] * 8, "labels": pairs["labels"][:]}, pair_features(FINDINGS, ids="string"))
    units = judged_units(pairs, part(pairs, labels)[1])
    assert set(units) == {"image"} and len(set(units["image"].subjects)) == 8


def test_thresholds_come_from_the_same_unit_of_the_validation_set():
    pairs, labels = table()
    other, other_labels = table(70, seed=3)
    data, validation = part(pairs, labels), part(other, other_labels, seed=4)
    evidence = gather_evidence({"data": data, "validation": validation}, {"data": pairs, "validation": other}, 20)
    for name, unit in evidence.units.items():
        chosen = judged_units(other, validation[1])[name]
        for i, finding in enumerate(FINDINGS):
            outcome = evidence.metrics["classification"][name][finding]
            known = ~np.isnan(unit.labels[:, i])
            y, s = unit.labels[known, i], unit.scores[known, i]
            threshold = {m: choose_threshold(chosen.labels[:, i], chosen.scores[:, i], m) for m in ("mcc", "f1")}
            assert outcome["threshold_mcc"] == threshold["mcc"] and outcome["threshold_f1"] == threshold["f1"]
            at = s > threshold["mcc"]
            assert outcome["mcc"]["value"] == pytest.approx(matthews_corrcoef(y, at))
            assert outcome["sensitivity"]["value"] == pytest.approx(recall_score(y, at))
            assert outcome["specificity"]["value"] == pytest.approx(recall_score(y, at, pos_label=0))
            assert outcome["f1"]["value"] == pytest.approx(f1_score(y, s > threshold["f1"]))
            assert outcome["mcc"]["low"] < outcome["mcc"]["value"] < outcome["mcc"]["high"]
            assert set(outcome["ece"]) == set(outcome["ece_calibrated"]) == {"value"}
    without = gather_evidence({"data": data}, {"data": pairs}, 20).metrics["classification"]["image"]["Edema"]
    assert not {"mcc", "threshold_mcc", "ece_calibrated"} & set(without)


def test_readers_are_scored_by_study_and_beside_the_model():
    pairs, labels = table(reads=True)
    other, other_labels = table(70, seed=3)
    sets = {"data": pairs, "validation": other}
    evidence = gather_evidence({"data": part(pairs, labels), "validation": part(other, other_labels)}, sets, 30)
    readers = evidence.metrics["readers"]
    assert readers["unit"] == "study_mean" and set(readers["by_reader"]) == {"bc4", "bc6", "bc8"}
    unit = evidence.units["study_mean"]
    reads = pairs["reads"][:]
    mccs = []
    for k, reader in enumerate(("bc4", "bc6", "bc8")):
        for i, finding in enumerate(FINDINGS):
            known = ~np.isnan(unit.labels[:, i])
            y = unit.labels[known, i]
            said = np.array([reads[row][k]["labels"][finding] for row in unit.first_row])[known]
            outcome = readers["by_reader"][reader][finding]
            assert outcome["mcc"]["value"] == pytest.approx(matthews_corrcoef(y, said))
            assert outcome["f1"]["value"] == pytest.approx(f1_score(y, said))
            point = recall_score(y, said), recall_score(y, said, pos_label=0)
            assert (outcome["sensitivity"]["value"], outcome["specificity"]["value"]) == pytest.approx(point)
            assert evidence.reader_points[finding][reader] == pytest.approx(point)
            mccs += [outcome["mcc"]["value"]] if finding == "Edema" else []
    mean = readers["mean_of_readers"]["Edema"]["mcc"]
    assert mean["value"] == pytest.approx(np.mean(mccs)) and mean["low"] < mean["value"] < mean["high"]
    own = evidence.metrics["classification"]["study_mean"]["Edema"]["mcc"]["value"]
    against = readers["model_minus_readers"]["Edema"]["mcc"]
    assert against["value"] == pytest.approx(own - mean["value"]) and 0 < against["p_bootstrap"] <= 1


def with_negation(one, seed=6):
    """Cosines with both sentences: the denial is believed a little more where the finding is there."""
    rng, (metrics, details, scored) = np.random.default_rng(seed), one
    labels = np.nan_to_num(details["labels"], nan=0.5)
    cosines = {name: 0.2 * rng.normal(size=labels.shape) + 0.1 * labels for name in ("affirmed", "negated")}
    return metrics, details | cosines, scored


def test_negation_is_the_auroc_of_the_denial_for_absence_and_of_the_pair_for_presence():
    pairs, labels = table()
    _, details, _ = one = with_negation(part(pairs, labels))
    evidence = gather_evidence({"data": one}, {"data": pairs}, RESAMPLES, seed=5)
    weights = np.concatenate(list(Resamples([f"subject {s}" for s in pairs["subject_id"]], RESAMPLES, 5).blocks()))
    outcome = evidence.metrics["classification"]["image"]
    for i, finding in enumerate(FINDINGS):
        known = np.flatnonzero(~np.isnan(labels[:, i]))

        def measured(rows, i=i):
            y, affirmed, negated = labels[rows, i], details["affirmed"][rows, i], details["negated"][rows, i]
            return roc_auc_score(1 - y, negated), roc_auc_score(y, affirmed - negated)

        draws = [measured(np.repeat(known, draw[known].astype(int))) for draw in weights]
        for name, value, column in zip(("auroc_negated", "auroc_pair"), measured(known), zip(*draws)):
            ends = np.percentile(column, [2.5, 97.5])
            expected = {"value": value, "low": ends[0], "high": ends[1]}
            assert outcome[finding][name] == pytest.approx(expected, abs=1e-9)
        assert outcome[finding]["auroc_negated"]["value"] < 0.5
    mean = np.mean([outcome[finding]["auroc_negated"]["value"] for finding in FINDINGS])
    assert outcome["mean"]["auroc_negated"]["value"] == pytest.approx(mean)
    study = evidence.units["study_mean"]
    by_study = pd.DataFrame(details["negated"]).groupby([pairs["subject_id"][:], pairs["study_id"][:]]).mean()
    known = ~np.isnan(study.labels[:, 0])
    names = [(pairs["subject_id"][row], pairs["study_id"][row]) for row in study.first_row]
    expected = roc_auc_score(1 - study.labels[known, 0], by_study.loc[names, 0][known])
    assert evidence.metrics["classification"]["study_mean"]["Edema"]["auroc_negated"]["value"] == pytest.approx(
        expected
    )
    other = gather_evidence({"data": with_negation(part(pairs, labels), 7)}, {"data": pairs}, RESAMPLES, seed=5)
    difference = compare(other, evidence)["classification"]["image"]["mean"]["auroc_negated"]
    gap = other.metrics["classification"]["image"]["mean"]["auroc_negated"]["value"] - mean
    assert difference["value"] == pytest.approx(gap) and 0 < difference["p_bootstrap"] <= 1
    without = gather_evidence({"data": part(pairs, labels)}, {"data": pairs}, RESAMPLES, seed=5)
    assert "auroc_negated" not in compare(without, evidence)["classification"]["image"]["Edema"]


def test_a_model_against_itself_differs_in_nothing():
    pairs, labels = table()
    other, other_labels = table(70, seed=3)
    parts = {"data": part(pairs, labels), "validation": part(other, other_labels)}
    a, b = (gather_evidence(parts, {"data": pairs, "validation": other}, RESAMPLES) for _ in range(2))
    assert a.metrics == b.metrics
    for unit in compare(a, b)["classification"].values():
        for finding, values in unit.items():
            for name, difference in values.items():
                assert difference["value"] == 0
                if not name.startswith("ece"):
                    assert difference["low"] == difference["high"] == 0 and difference["p_bootstrap"] == 1
            assert finding == "mean" or values["auroc"]["p_delong"] == values["auroc"]["p_holm"] == 1


def test_two_models_are_compared_on_the_same_draws():
    pairs, labels = table()
    first, second = part(pairs, labels), part(pairs, labels, seed=8)
    second[1]["scores"][:, 0] += 2 * np.nan_to_num(labels[:, 0])  # better, beyond doubt
    a, b = (gather_evidence({"data": item}, {"data": pairs}, RESAMPLES) for item in (first, second))
    difference = compare(b, a)["classification"]["image"]["Edema"]["auroc"]
    own = [item.metrics["classification"]["image"]["Edema"]["auroc"]["value"] for item in (a, b)]
    assert difference["value"] == pytest.approx(own[1] - own[0]) and difference["low"] > 0
    assert difference["p_bootstrap"] == pytest.approx(2 / (RESAMPLES + 1))
    subjects = a.units["image"].subjects
    test = delong(labels[:, 0], second[1]["scores"][:, 0], first[1]["scores"][:, 0], subjects)
    assert difference["p_delong"] == test["p"] < 0.01 and difference["p_holm"] == pytest.approx(2 * test["p"])
    draws = (
        b.estimates["classification", "image", "auroc"].distribution
        - a.estimates["classification", "image", "auroc"].distribution
    )
    assert [difference["low"], difference["high"]] == pytest.approx(np.percentile(draws[:, 0], [2.5, 97.5]))
    shorter = part(pairs, labels, rows=np.arange(N - 1))
    with pytest.raises(ValueError, match="not read the same images"):
        compare(gather_evidence({"data": shorter}, {"data": pairs}, 2), a)


@pytest.mark.parametrize(("positives", "why"), [(0.0, f"n+ = 0, n- = {N}"), (1.0, f"n+ = {N}, n- = 0")])
def test_a_finding_of_one_class_is_undefined_everywhere(positives, why):
    pairs, labels = table(positives=positives, reads=True)
    other, other_labels = table(70, seed=3)
    parts = {"data": part(pairs, labels), "validation": part(other, other_labels)}
    sets = {"data": pairs, "validation": other}
    a, b = gather_evidence(parts, sets, 20), gather_evidence(parts | {"data": part(pairs, labels, 9)}, sets, 20)
    result = {"metrics": a.metrics, "difference": compare(b, a)}
    assert "NaN" not in json.dumps(result)
    image = a.metrics["classification"]["image"]
    for name in ("auroc", "average_precision", "mcc", "f1", "sensitivity", "specificity"):
        assert image["Nodule"][name] == {"value": None, "undefined": why}
        assert image["mean"][name]["value"] == image["Edema"][name]["value"]
    difference = result["difference"]["classification"]["image"]["Nodule"]["auroc"]
    assert difference == {"value": None, "undefined": why, "p_delong": None, "p_holm": None}
    assert a.metrics["readers"]["by_reader"]["bc4"]["Nodule"]["mcc"]["value"] is None
    assert "Nodule" not in a.reader_points


def test_no_resamples_give_values_alone():
    pairs, labels = table()
    outcome = gather_evidence({"data": part(pairs, labels)}, {"data": pairs}, 0).metrics["classification"]["image"]
    assert set(outcome["Edema"]["auroc"]) == {"value"}


def grounded(pairs, seed=0):
    """Two maps a row, the second of a token; the best threshold of a finding is that of its own maps."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(np.arange(len(pairs)), 2)
    measured = {}
    for variant in ("box/pixel/plain", "mask/patch/minus_no_finding"):
        measured[variant] = {
            "hit": (rng.random(len(rows)) < 0.4).astype(float),
            "chance": rng.random(len(rows)) / 5,
            "cnr": rng.normal(size=len(rows)),
            "mious": rng.random(len(rows)),
            "ious": rng.random((len(rows), 19)),
        }
        others = {measure.of_map for measure in group(LOCALISATION)} - set(measured[variant])
        measured[variant] |= {name: rng.random(len(rows)) for name in others}
    for values in measured["mask/patch/minus_no_finding"].values():  # the region is nowhere
        values[:6] = np.nan
    scored = scores_of(np.arange(len(pairs)))
    scored.maps = MapScores(
        row=rows,
        finding=np.where(rows % 3 == 0, "Nodule", "Edema"),
        phrase=np.full(len(rows), "a phrase"),
        token=np.tile(["", "phrase"], len(pairs)),
        measured=measured,
    )
    return scored


def with_measured(scored, change):
    """Other numbers of the maps: `change` of variant, name and values."""
    measured = {
        variant: {name: change(variant, name, values) for name, values in by_name.items()}
        for variant, by_name in scored.maps.measured.items()
    }
    return replace(scored, maps=replace(scored.maps, measured=measured))


def test_localisation_is_a_mean_over_findings_with_intervals_over_subjects():
    pairs, labels = table()
    details = part(pairs, labels)[1]
    scored = grounded(pairs)
    evidence = gather_evidence({"data": ({}, details, scored)}, {"data": pairs}, RESAMPLES, seed=2)
    rows = evidence.metrics["localisation_maps"]
    assert [(row["text"], row["place"], row["map"]) for row in rows] == [
        ("sentence", "box", "plain"),
        ("sentence", "mask", "minus_no_finding"),
        ("token", "box", "plain"),
        ("token", "mask", "minus_no_finding"),
    ]
    weights = np.concatenate(list(Resamples([f"subject {s}" for s in pairs["subject_id"]], RESAMPLES, 2).blocks()))
    for row in rows:
        chosen = scored.maps.token == ("" if row["text"] == "sentence" else "phrase")
        measured = scored.maps.measured[f"{row['place']}/{row['resolution']}/{row['map']}"]
        data = pd.DataFrame(
            {
                "finding": scored.maps.finding[chosen],
                "row": scored.maps.row[chosen],
                "cnr": measured["cnr"][chosen],
                "hit": measured["hit"][chosen].astype(float),
            }
        )
        means = data.groupby("finding")[["cnr", "hit"]].mean().mean()
        assert row["cnr"]["value"] == pytest.approx(means["cnr"])
        assert row["pointing_game"]["value"] == pytest.approx(means["hit"])
        draws = []
        for draw in weights:
            again = data.loc[np.repeat(data.index, draw[data["row"]].astype(int))]
            draws.append(again.groupby("finding")["cnr"].mean().mean())
        assert [row["cnr"][end] for end in ("low", "high")] == pytest.approx(np.percentile(draws, [2.5, 97.5]))
        best = [
            measured["ious"][chosen][(data["finding"] == f).to_numpy() & data["cnr"].notna().to_numpy()]
            .mean(axis=0)
            .max()
            for f in ("Edema", "Nodule")
        ]
        assert row["iou"]["value"] == pytest.approx(np.mean(best))
    tokens = evidence.metrics["localisation_tokens"]
    assert [(token["token"], token["num_maps"]) for token in tokens] == [("phrase", N)]
    drawn = grounded(pairs, 4).maps.measured
    others = with_measured(scored, lambda variant, name, values: values if name == "chance" else drawn[variant][name])
    other = gather_evidence({"data": ({}, details, others)}, {"data": pairs}, RESAMPLES, seed=2)
    difference = compare(other, evidence)["localisation_maps"]
    assert len(difference) == 4
    for now, before, gap in zip(other.metrics["localisation_maps"], rows, difference):
        assert gap["cnr"]["value"] == pytest.approx(now["cnr"]["value"] - before["cnr"]["value"])
        assert gap["text"] == now["text"] and gap["cnr"]["low"] < gap["cnr"]["value"] < gap["cnr"]["high"]


def test_the_threshold_of_maps_is_chosen_on_the_validation_set():
    pairs, labels = table()
    other, other_labels = table(70, seed=3)
    details, scored, chosen_on = part(pairs, labels)[1], grounded(pairs), grounded(other, 9)
    parts = {"data": ({}, details, scored), "validation": ({}, part(other, other_labels)[1], chosen_on)}
    sets = {"data": pairs, "validation": other}
    evidence = gather_evidence(parts, sets, RESAMPLES, seed=2)
    assert len(evidence.metrics["localisation_maps"]) == 4
    for row in evidence.metrics["localisation_maps"]:
        name = f"{row['place']}/{row['resolution']}/{row['map']}"

        def dice_by_finding(maps, step, name=name, text=row["text"]):
            """The mean Dice of each finding, one map after the other."""
            dices = {}
            for i in range(len(maps.row)):
                if (maps.token[i] == "") == (text == "sentence") and not np.isnan(maps.measured[name]["chance"][i]):
                    iou = maps.measured[name]["ious"][i, step]
                    dices.setdefault(maps.finding[i], []).append(2 * iou / (1 + iou))
            return np.mean([np.mean(values) for values in dices.values()])

        best = max(range(19), key=lambda step: dice_by_finding(chosen_on.maps, step))
        assert row["threshold"] == pytest.approx((best + 1) / 20)
        assert row["dice_at_threshold"]["value"] == pytest.approx(dice_by_finding(scored.maps, best))
        assert row["dice_at_threshold"]["low"] < row["dice_at_threshold"]["value"] < row["dice_at_threshold"]["high"]
        assert row["iou_at_threshold"]["value"] < row["iou"]["value"], "not the best of these maps"
    by_finding = evidence.metrics["localisation_intervals"]["dice_at_threshold"]
    assert set(by_finding) == {*FINDINGS, "mean"} and "localisation_masks" not in evidence.metrics
    assert compare(evidence, evidence)["localisation_maps"][0]["dice_at_threshold"]["value"] == 0
    without_maps = parts | {"validation": part(other, other_labels)}
    plain = gather_evidence(without_maps, sets, RESAMPLES, seed=2)
    assert not {"threshold", "dice_at_threshold"} & set(plain.metrics["localisation_maps"][0])
    assert "dice_at_threshold" not in compare(evidence, plain)["localisation_maps"][0]


def without(scored, rows):
    """The maps of all but some rows."""
    kept = ~np.isin(scored.maps.row, rows)
    fewer = with_measured(scored, lambda variant, name, values: values[kept])
    columns = {name: getattr(scored.maps, name)[kept] for name in ("row", "finding", "phrase", "token")}
    return replace(fewer, maps=replace(fewer.maps, **columns))


def test_two_models_are_compared_on_the_maps_that_both_have():
    """One crops away some places, and a finding altogether; the draws stay the same."""
    pairs, labels = table()
    details, scored = part(pairs, labels)[1], grounded(pairs)
    whole = gather_evidence({"data": ({}, details, scored)}, {"data": pairs}, RESAMPLES)
    fewer = gather_evidence({"data": ({}, details, without(scored, [0, 7, 8, 50]))}, {"data": pairs}, RESAMPLES)
    for a, b in ((whole, fewer), (fewer, whole)):
        for row in compare(a, b)["localisation_maps"]:
            assert "incomparable" not in row and row["num_maps"] < N
            for name in ("pointing_game", "cnr", "miou", "iou"):
                zero = {"value": 0, "low": 0, "high": 0, "p_bootstrap": 1}
                assert {key: pytest.approx(v) for key, v in zero.items()} == {key: row[name][key] for key in zero}, (
                    "the same maps on the same draws"
                )
    nodules = np.unique(scored.maps.row[scored.maps.finding == "Nodule"])
    edema = gather_evidence({"data": ({}, details, without(scored, nodules))}, {"data": pairs}, RESAMPLES)
    assert all(row["cnr"]["value"] == pytest.approx(0) for row in compare(edema, whole)["localisation_maps"])
    nothing = gather_evidence({"data": ({}, details, without(scored, range(N)))}, {"data": pairs}, RESAMPLES)
    assert compare(nothing, whole)["localisation_maps"] == []


def test_maps_over_other_parts_of_the_pictures_are_not_compared():
    pairs, labels = table()
    details, scored = part(pairs, labels)[1], grounded(pairs)
    wide = with_measured(scored, lambda variant, name, values: 2 * values if name == "chance" else values)
    a, b = (gather_evidence({"data": ({}, details, item)}, {"data": pairs}, 20) for item in (scored, wide))
    for row in compare(b, a)["localisation_maps"]:
        assert "not of the same picture" in row["incomparable"] and row["chance"] > 0
        assert set(row["pointing_game"]) == {"value"}


@pytest.mark.parametrize("subjects", [1, 2, 9, 12])
def test_few_subjects_of_a_class_are_said_and_one_has_no_interval(subjects):
    labels = np.zeros((40, 2))
    labels[:20, 0] = 1
    labels[: 2 * subjects, 1] = 1  # two images each
    columns = {
        "image": [None] * 40,
        "subject_id": [f"p{i // 2}" for i in range(40)],
        "image_id": [f"i{i}" for i in range(40)],
        "labels": [dict(zip(FINDINGS, row)) for row in labels],
    }
    pairs = make_pairs(columns, pair_features(FINDINGS, ids="string"))
    parts = part(pairs, labels), part(pairs, labels, seed=5)
    a, b = (gather_evidence({"data": item}, {"data": pairs}, 50) for item in parts)
    outcome = a.metrics["classification"]["image"]
    difference = compare(b, a)["classification"]["image"]["Nodule"]["auroc"]
    rare = min(subjects, 20 - subjects)
    assert outcome["Nodule"].get("few_subjects") == (rare if rare < 10 else None)
    assert "few_subjects" not in outcome["Edema"]
    for item in (outcome["Nodule"]["auroc"], difference):
        if subjects == 1:
            assert item["no_interval"] == "1 positive subject" and not {"low", "p_bootstrap"} & set(item)
        else:
            assert item["low"] <= item["high"]
    assert (difference["p_delong"] is None) == (subjects == 1)
    left_out = outcome["mean"]["auroc"].get("findings_left_out", 0)
    assert left_out > 0.1 if subjects == 1 else left_out < 0.2


def test_of_a_single_subject_nothing_is_certain():
    pairs, labels = table(12)
    pairs = pairs.remove_columns("subject_id").add_column("subject_id", ["p"] * 12)
    outcome = gather_evidence({"data": part(pairs, labels)}, {"data": pairs}, 50).metrics["classification"]["image"]
    assert set(outcome["mean"]["auroc"]) == {"value"}


def test_a_reader_without_an_answer_is_not_a_reader_who_is_wrong():
    pairs, labels = table(reads=True)
    reads = [[dict(read) for read in row] for row in pairs["reads"][:]]
    for row in reads:
        row[0]["labels"] = row[0]["labels"] | {"Edema": None}
    pairs = pairs.remove_columns("reads").add_column("reads", reads)
    readers = gather_evidence({"data": part(pairs, labels)}, {"data": pairs}, 20).metrics["readers"]
    assert readers["by_reader"]["bc4"]["Edema"]["mcc"]["value"] is None
    others = [readers["by_reader"][name]["Edema"]["mcc"]["value"] for name in ("bc6", "bc8")]
    assert readers["mean_of_readers"]["Edema"]["mcc"]["value"] == pytest.approx(np.mean(others))


def test_studies_without_subjects_are_kept_together():
    columns = {
        "image": [None] * 6,
        "study_id": ["a", "a", "b", "b", None, None],
        "labels": [dict.fromkeys(FINDINGS, float(i % 2)) for i in range(6)],
    }
    pairs = make_pairs(columns, pair_features(FINDINGS, ids="string"))
    units = judged_units(pairs, part(pairs, np.ones((6, 2)))[1])
    assert len(units["study_mean"].labels) == 4 and len(set(units["image"].subjects)) == 4


def paired(pairs, num_patches=49.0, max_patch_entropy=2.0, seed=0):
    """With texts, and all measures of sparsity at random."""
    rng, number = np.random.default_rng(seed), len(pairs)
    scored = scores_of(np.arange(number), num_patches)
    empty = np.zeros(number)
    scored.pairs = PairScores(
        embeds=np.zeros((number, 2)),
        loss=empty,
        contrastive_loss=empty,
        rank_similarity=np.zeros((number, 4)),
        max_patch_entropy=np.full(number, max_patch_entropy),
        sparsity={name: rng.random(number) for name in NAMES},
        padded={name: rng.random(number) for name in NAMES},
    )
    return scored


def test_entropies_over_other_patches_are_not_subtracted():
    pairs, labels = table()
    details = part(pairs, labels)[1]
    a, b, c, d = (
        gather_evidence({"data": ({}, details, paired(pairs, *change))}, {"data": pairs}, 10)
        for change in ((), (), (196.0,), (49.0, 2.5))
    )
    assert compare(b, a)["sparsity"]["without_padding"]["gini"]["value"] == 0
    assert "sparsity" not in compare(c, a) and "sparsity" not in compare(d, a)


NAMES = ("token_entropy", "patch_entropy", "effective_patches", "gini", "negative_share", "peak")


def test_sparsity_and_retrieval_have_intervals_over_subjects():
    pairs, labels = table()
    rng = np.random.default_rng(0)
    details, scored = part(pairs, labels)[1], paired(pairs)
    scored.pairs.sparsity["gini"][0] = np.nan  # a text without a counted token
    details["ranks"] = {"image_to_text": rng.integers(0, 20, N), "text_to_image": rng.integers(0, 20, N)}
    details["queries"] = dict.fromkeys(details["ranks"], np.arange(N))
    details["ranks"]["sentence_to_image"] = np.array([0, 0, 30])  # two sentences of one image and one of another
    details["queries"]["sentence_to_image"] = np.array([3, 3, N - 1])
    metrics = gather_evidence({"data": ({}, details, scored)}, {"data": pairs}, 40).metrics
    found = metrics["retrieval_intervals"]["sentence_to_image"]["r@1"]
    assert (found["value"], found["low"], found["high"]) == (pytest.approx(2 / 3), 0, 1)
    gini = metrics["sparsity"]["without_padding"]["gini"]
    assert gini["value"] == pytest.approx(np.nanmean(scored.pairs.sparsity["gini"])) and gini["low"] < gini["high"]
    assert metrics["sparsity"]["with_padding"]["peak"]["value"] == pytest.approx(scored.pairs.padded["peak"].mean())
    recall = metrics["retrieval_intervals"]["text_to_image"]["r@5"]
    assert recall["value"] == pytest.approx((details["ranks"]["text_to_image"] < 5).mean())
    assert recall["low"] < recall["value"] < recall["high"]
