# Licensed under the Apache License, Version 2.0.
"""Scores of a file in place of a model's, and beside them."""

import csv
import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import evaluate_zeroshot
from modeling_tier.data.columns import CHEXPERT_LABELS


SHARED = Path(__file__).parents[3] / "shared" / "chexpert_test_scores"
LABELS = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")


def write_csv(path: Path, columns, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def chexpert(root: Path, studies: list[str], truth: dict[str, list]) -> Path:
    """CheXpert's test set with pictures that nobody opens."""
    rows = [
        [f"CheXpert-v1.0/test/{s}", *(truth.get(n, [0] * len(studies))[i] for n in CHEXPERT_LABELS)]
        for i, s in enumerate(studies)
    ]
    write_csv(root / "groundtruth.csv", ("Study", *CHEXPERT_LABELS), rows)
    for study in studies:
        (root / "test" / study).mkdir(parents=True)
        (root / "test" / study / "view1_frontal.jpg").touch()
    return root


@pytest.fixture
def run(tmp_path, monkeypatch):
    def run(*options) -> dict:
        command = ["evaluate_zeroshot.py", "--output_dir", tmp_path / "out", "--resamples", 100, *options]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        evaluate_zeroshot.main()
        return json.loads((tmp_path / "out" / "metrics.json").read_text())

    return run


@pytest.fixture
def small(tmp_path):
    """Forty studies, and two files of scores, the second of logits."""
    rng = np.random.default_rng(0)
    studies = [f"patient{64741 + i}/study1" for i in range(40)]
    truth = {name: rng.integers(0, 2, 40).tolist() for name in LABELS}
    scores = np.array([truth[name] for name in LABELS]).T * 0.3 + rng.random((40, 5)) * 0.6
    a = write_csv(tmp_path / "a.csv", ("study_id", *LABELS), [[s, *row] for s, row in zip(studies, scores)])
    logits = [[s, *row, 0] for s, row in zip(studies[::-1], (8 * scores**2 - 3 + rng.random((40, 5)))[::-1])]
    b = write_csv(tmp_path / "b.csv", ("study_id", *LABELS, "Fracture"), logits)
    return chexpert(tmp_path / "data", studies, truth), studies, truth, scores, a, b


def test_scores_of_files_are_judged_as_a_models_are(run, small, tmp_path):
    data, studies, truth, scores, a, b = small
    result = run("--scores", a, "--scores", b, "--dataset", "chexpert", "--data_dir", data)
    expected = {name: roc_auc_score(truth[name], scores[:, i]) for i, name in enumerate(LABELS)}
    assert {name: result["metrics"]["auroc"][name] for name in LABELS} == pytest.approx(expected)
    assert (
        result["model"] == str(a) and result["protocol"]["name"] == "scores" and "peak_spread" not in result["metrics"]
    )
    compared = result["compared"]["b.csv"]["difference"]["classification"]["image"]
    assert set(compared) == {*LABELS, "mean"} and 0 <= compared["Edema"]["auroc"]["p_delong"] <= 1
    ece = result["compared"]["b.csv"]["metrics"]["classification"]["image"]["Edema"]["ece"]["value"]
    assert 0 <= ece <= 1, "logits become probabilities"
    assert len((tmp_path / "out/image_ids.txt").read_text().split()) == 40
    (tmp_path / "some.txt").write_text(f"test/{studies[3]}/view1_frontal.jpg\ntest/{studies[9]}/view1_frontal.jpg\n")
    assert (
        run("--scores", a, "--dataset", "chexpert", "--data_dir", data, "--image_ids", tmp_path / "some.txt")[
            "metrics"
        ]["num_images"]
        == 2
    )
    assert (tmp_path / "out" / "report.html").is_file()


def test_the_reports_command_judges_the_same_images_by_the_same_files(run, small, tmp_path):
    data, studies, _, _, a, b = small
    ids = tmp_path / "some images.txt"
    ids.write_text("".join(f"test/{study}/view1_frontal.jpg\n" for study in studies[:20]))
    chosen = ["--scores", a, "--scores", b, "--dataset", "chexpert", "--data_dir", data, "--image_ids", ids]
    result = run(*chosen)
    words = shlex.split(re.search(r"```bash\n(.*)\n```", (tmp_path / "out" / "report.md").read_text())[1])
    again = run(*words[2:])
    assert again["fingerprints"] == result["fingerprints"] and again["metrics"] == result["metrics"]


def test_bad_files_of_scores_are_named(run, small, tmp_path):
    data, studies, _, _, a, _ = small
    options = ("--dataset", "chexpert", "--data_dir", data)
    text = a.read_text()
    lines = text.splitlines()
    for content, message in (
        (text.replace("study_id", "case"), r"a\.csv must have one of the columns \['image_id'"),
        (text.replace("Edema", "Oedema").replace("Cardiomegaly", "Heart"), None),
        ("\n".join(lines[:-1]), r"a\.csv has no scores of 1 of 40 images, such as study_id patient64780/study1"),
        ("\n".join([*lines, lines[1]]), r"a\.csv, line 42: study_id patient64741/study1 is a duplicate"),
        (text.replace(lines[2].split(",")[1], "high"), r"a\.csv, line 3: Atelectasis must be a number; got 'high'"),
        (text.replace(lines[2].split(",")[1], "nan"), r"a\.csv, line 3: Atelectasis must be a number; got 'nan'"),
        (
            "study_id,Grade\nx,1\n",
            r"a\.csv: no column of all files of scores is called as one of .* it has \['Grade'\]",
        ),
        (lines[0], r"a\.csv has no rows"),
        (text.replace("Cardiomegaly", "Edema"), r"a\.csv has the column 'Edema' more than once"),
    ):
        a.write_text(content)
        if message is None:
            assert set(run("--scores", a, *options)["metrics"]["auroc"]) == {*LABELS, "mean"} - {
                "Edema",
                "Cardiomegaly",
            }
            continue
        with pytest.raises(SystemExit, match=message):
            run("--scores", a, *options)
    with pytest.raises(SystemExit, match="There is no file .*none"):
        run("--scores", tmp_path / "none.csv", *options)
    with pytest.raises(SystemExit, match="--model or --scores is needed"):
        run(*options)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real scores are not here")
def test_the_published_models_of_chexperts_leaderboard(run, tmp_path):
    """Ten models on 500 studies, with three radiologists: AUROC as scikit-learn's, MCC of the readers as published."""
    with (SHARED / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    studies = [row["study"] for row in rows]
    sources = sorted({name.partition(":")[0] for name in rows[0]} - {"study", "truth"})
    data = chexpert(tmp_path / "data", studies, {n: [row[f"truth:{n}"] for row in rows] for n in LABELS})
    files = []
    for source in sources:
        if source in ("bc4", "bc6", "bc8"):
            columns = ("Study", *CHEXPERT_LABELS)
            read = [
                [f"CheXpert-v1.0/test/{r['study']}", *(r.get(f"{source}:{n}", 0) for n in CHEXPERT_LABELS)]
                for r in rows
            ]
            write_csv(data / "radiologists" / f"{source}.csv", columns, read)
        else:
            values = [[row["study"], *(row[f"{source}:{n}"] for n in LABELS)] for row in rows]
            files += ["--scores", write_csv(tmp_path / f"{source}.csv", ("study_id", *LABELS), values)]
    result = run(*files, "--dataset", "chexpert", "--data_dir", data)
    measured = {result["name"]: result["metrics"]} | {n: c["metrics"] for n, c in result["compared"].items()}
    with (SHARED / "auroc.csv").open(newline="") as file:
        expected = list(csv.DictReader(file))
    names = [name for name in expected[0] if name in LABELS]
    for row in expected:
        model = next(value for value in row.values() if f"{value}.csv" in measured)
        for name in names:
            assert measured[f"{model}.csv"]["auroc"][name] == pytest.approx(float(row[name]), abs=1e-4)
    mcc = {
        name: [
            result["metrics"]["readers"]["by_reader"][reader][name]["mcc"]["value"] for reader in ("bc4", "bc6", "bc8")
        ]
        for name in LABELS
    }
    published = {
        "Atelectasis": [0.557, 0.522, 0.560],
        "Cardiomegaly": [0.520, 0.579, 0.606],
        "Consolidation": [0.365, 0.292, 0.414],
        "Edema": [0.524, 0.490, 0.509],
        "Pleural Effusion": [0.759, 0.573, 0.675],
    }
    for name in LABELS:
        assert mcc[name] == pytest.approx(published[name], abs=6e-4)
