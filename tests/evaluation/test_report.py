# Licensed under the Apache License, Version 2.0.
"""The report of an evaluation and its figures: all that was measured is in both files, and no text of it is markup."""

import base64
import itertools
import json
import re
import shlex
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from conftest import TEXT_CONFIGS, VISION_CONFIGS
from PIL import Image
from sklearn.metrics import roc_auc_score
from transformers import BertConfig, CLIPImageProcessor

import evaluate_zeroshot
from modeling_tier import TierConfig, TierModel, TierProcessor
from modeling_tier.data import load_pairs
from modeling_tier.evaluation import figures
from modeling_tier.evaluation.measures import LOCALISATION, SEGMENTATION, group
from modeling_tier.evaluation.report import write_report
from modeling_tier.evaluation.report_cells import difference_cell


MAP_MEASURES = [measure.name for measure in group(LOCALISATION, SEGMENTATION) if measure.name != "chance"]
FINDINGS = ["Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion", "Nodule"]
HOSTILE = 'Mass <script src="https://x.org/y.js">|"&amp;"* > 3_cm_'


class Maker:
    """Estimates of plausible size, no two alike."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)

    def estimate(self, low=0.3, high=0.95):
        value = self.rng.uniform(low, high)
        return {
            "value": value,
            "low": value - self.rng.uniform(0.01, 0.05),
            "high": value + self.rng.uniform(0.01, 0.05),
        }

    def difference(self, delong=False):
        estimate = self.estimate(-0.06, 0.06) | {"p_bootstrap": self.rng.uniform(0.01, 1)}
        return estimate | ({"p_delong": 0.0002, "p_holm": self.rng.uniform(0.01, 1)} if delong else {})

    def classification(self, findings, validated):
        keys = ["auroc", "average_precision", "auroc_negated", "auroc_pair"]
        keys += ["mcc", "f1", "sensitivity", "specificity"] if validated else []
        part = {}
        for finding in [*findings, "mean"]:
            part[finding] = {key: self.estimate() for key in keys} | {"ece": {"value": self.rng.uniform()}}
            part[finding] |= {"ece_calibrated": {"value": self.rng.uniform()}} if validated else {}
            if finding != "mean":
                part[finding] |= {"num_positive": int(self.rng.integers(20, 200)), "num_negative": 1400}
                part[finding] |= {"threshold_mcc": 0.0312, "threshold_f1": 0.0141} if validated else {}
        return part

    def variants(self, cell):
        kinds = {"text": ("sentence", "token"), "place": ("box", "mask"), "resolution": ("pixel", "patch")}
        kinds["map"] = ("plain", "minus_no_finding", "contribution", "contribution_minus_no_finding")
        return [
            dict(zip(kinds, kind)) | {key: cell() for key in MAP_MEASURES}
            for kind in itertools.product(*kinds.values())
        ]

    def sparsity(self, cell):
        names = ("token_entropy", "patch_entropy", "effective_patches", "gini", "negative_share", "peak")
        return {part: {name: cell() for name in names} for part in ("without_padding", "with_padding")}

    def retrieval(self, cell):
        return {way: {f"r@{k}": cell() for k in (1, 5, 10)} for way in ("image_to_text", "text_to_image")}

    def metrics(self, findings, units=("image",), validated=True, texts=True, regions=True, readers=False):
        metrics = {"num_images": 668, "classification": {u: self.classification(findings, validated) for u in units}}
        if regions:
            names = [measure.name for measure in group(LOCALISATION)]
            metrics["localisation"] = {n: {f: self.rng.uniform() for f in [*findings, "mean"]} for n in names}
            metrics["localisation"]["num_outside"] = 3
            metrics["localisation_intervals"] = {
                name: {f: self.estimate() for f in [*findings, "mean"]} for name in MAP_MEASURES
            }
            metrics["laterality"] = {
                f: {"auroc_left_right": self.estimate(), "num_left": 31, "num_right": 24}
                for f in [*findings[:2], "mean"]
            }
            metrics["localisation_masks"] = {
                name: {f: self.estimate() for f in [*findings[:2], "mean"]} for name in MAP_MEASURES
            }
            metrics["localisation_maps"] = [
                variant | {"num_maps": 300, "chance": 0.07, "threshold": 0.35}
                for variant in self.variants(self.estimate)
            ]
            metrics["localisation_tokens"] = [
                {"token": token, "num_maps": 40, "chance": 0.1, "pointing_game": 0.3, "cnr": 0.52, "miou": 0.13}
                for token in ("effusion", "left", "|##pneumo|")
            ]
        if texts:
            metrics |= {"loss": 3.1, "contrastive_loss": 2.9, "max_token_entropy": 4.159, "max_patch_entropy": 3.338}
            metrics |= {"token_entropy": 4.1, "patch_entropy": 3.3, "negative_share": 0.4, "peak": 0.6}
            metrics |= {"top10_share": 0.19, "sparsity": self.sparsity(self.estimate)}
            metrics |= {"retrieval": self.retrieval(self.rng.uniform)}
            metrics |= {"retrieval_intervals": self.retrieval(self.estimate)}
        if readers:
            both, columns = ("mcc", "f1"), [*findings, "mean"]
            measures = (*both, "sensitivity", "specificity")
            metrics["readers"] = {
                "unit": "study_mean",
                "by_reader": {
                    name: {f: {key: self.estimate() for key in measures} | {"num_read": 10_000} for f in columns}
                    for name in ("bc4", "bc6")
                },
                "mean_of_readers": {f: {key: self.estimate() for key in both} for f in columns},
                "model_minus_readers": {f: {key: self.difference() for key in both} for f in columns},
            }
        return metrics | {"peak_spread": 0.7}

    def differences(self, findings, units, validated, texts, regions):
        keys = [
            "average_precision",
            "auroc_negated",
            "auroc_pair",
            *(["mcc", "f1", "sensitivity", "specificity"] if validated else []),
        ]
        part = {
            unit: {
                f: {"auroc": self.difference(delong=f != "mean"), "ece": {"value": self.rng.uniform(-0.1, 0.1)}}
                | {key: self.difference() for key in keys}
                for f in [*findings, "mean"]
            }
            for unit in units
        }
        part = {"classification": part}
        if regions:
            part["localisation_maps"] = self.variants(self.difference)
            part["laterality"] = {"mean": {"auroc_left_right": self.difference()}}
        if texts:
            part |= {"sparsity": self.sparsity(self.difference), "retrieval": self.retrieval(self.difference)}
        return part


def sample(
    models=("clip",),
    dataset="chexpert",
    findings=FINDINGS,
    units=("image",),
    validated=True,
    texts=True,
    regions=True,
    readers=False,
    seed=0,
) -> dict:
    """What metrics.json holds, with made-up numbers."""
    maker = Maker(seed)
    options = {"validated": validated, "texts": texts, "regions": regions}
    first, *others = models
    result = {
        "model": f"runs/{first}",
        "name": first,
        "dataset": dataset,
        "split": "test",
        "options": {"data_dir": "/data/Che Xpert"},
        "labels": {"uncertain": "ignore", "blank": "zeros"},
        "protocol": {"name": "tier", "score": "cos(image, positive sentences) - cos(image, negative sentences)"},
        "prompts": {
            "source": "my prompts.yaml",
            "findings": {
                f: {"positive": [f"{f} is present.", f"There is {f}."], "negative": [f"No {f}."]} for f in findings
            },
        },
        "counts": {
            "images": 668,
            "studies": 500,
            "subjects": 499,
            "unreadable": 0,
            "views": {"FRONTAL": 500, "LATERAL": 168},
            "labels": {f: {"positive": 80, "negative": 560, "uncertain": 8, "blank": 20} for f in findings},
        }
        | ({"regions": 300} if regions else {})
        | ({"texts": 668} if texts else {}),
        "fingerprints": {"data": "ab" * 32, "models": {name: f"{i:02x}" * 32 for i, name in enumerate(models, 16)}},
        "versions": {"python": "3.11.2", "torch": "2.13.0"},
        "settings": {"batch_size": 64, "dtype": "float32", "device": "cpu", "processes": 1}
        | {"resamples": 1000, "seed": 0, "confidence": 0.95},
        "metrics": maker.metrics(findings, units, readers=readers, **options),
        "compared": {
            name: {
                "model": f"runs/{name}",
                "metrics": maker.metrics(findings, units, readers=readers, **options),
                "difference": maker.differences(findings, units, **options),
            }
            for name in others
        },
    }
    for other in result["compared"].values():
        if readers:  # read the same images, whatever the model
            for part in ("by_reader", "mean_of_readers"):
                other["metrics"]["readers"][part] = result["metrics"]["readers"][part]
    if validated:
        result["validation"] = {"dataset": dataset, "split": "validation", "options": {}, "num_images": 234}
        result["validation"]["fingerprint"] = "cd" * 32
    return result


SAMPLES = {
    "one model": sample(),
    "a drawn data set": sample(dataset="synthetic"),
    "two models, studies, readers": sample(("clip", "tier"), units=("image", "study_mean", "study_max"), readers=True),
    "three models": sample(("clip", "tier", "vit")),
    "labels only": sample(texts=False, regions=False, validated=False),
    "hostile": sample(("clip", '<b>"tier"</b> | x'), dataset="a<b>&|c", findings=[*FINDINGS, HOSTILE]),
}


class Page(HTMLParser):
    """Every element is closed, in order; collects what the page consists of."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), tuple(self.open)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes, _ in self.elements if name == tag]

    @property
    def text(self):
        return "".join(self.texts)


@pytest.fixture
def written(tmp_path):
    """Writes the report of a result, with a figure of every name; gives the page and the Markdown."""

    def write(result, names=("roc_image", "reliability", "patch_similarity", "similarity_maps")):
        (tmp_path / "figures").mkdir(exist_ok=True)
        for i, name in enumerate(names):
            Image.new("RGB", (300 * (i + 1), 20), (i, 0, 0)).save(tmp_path / "figures" / f"{name}.png")
        write_report(json.loads(json.dumps(result)), tmp_path / "figures", tmp_path)
        return Page((tmp_path / "report.html").read_text()), (tmp_path / "report.md").read_text()

    return write


def unescaped(markdown: str) -> str:
    return re.sub(r"\\([\\`*_<>\[\]|&#~])", r"\1", markdown)


def table_rows(markdown: str) -> list[list[str]]:
    """The cells of each row, by the bars that are not escaped."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def estimates(part, signed=False):
    """Every estimate in a part of the results, as it must be printed."""
    if isinstance(part, list):
        for item in part:
            yield from estimates(item, signed)
    elif isinstance(part, dict) and "value" in part:
        text = f"{part['value']:{'+' if signed else ''}z.3f}"
        yield text + (f" ({part['low']:z.3f} to {part['high']:z.3f})" if "low" in part else "")
    elif isinstance(part, dict):
        for name, item in part.items():
            yield from estimates(item, signed or name in ("difference", "model_minus_readers"))


@pytest.mark.parametrize("result", SAMPLES.values(), ids=SAMPLES)
def test_the_page_is_complete_and_needs_nothing_from_elsewhere(written, result):
    page, _ = written(result)
    assert page.all("html") == [{"lang": "en-GB"}] and page.all("title") and page.all("main") and page.all("nav")
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _, _ in page.elements}
    identifiers = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    for tag, attributes, _ in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        if "href" in attributes:
            assert attributes["href"].removeprefix("#") in identifiers
        if "src" in attributes:
            assert tag == "img" and attributes["src"].startswith("data:image/png;base64,")
    assert all(len(image["alt"]) > 30 for image in page.all("img"))
    assert len(page.all("caption")) == len(page.all("table")) > 5
    assert all(head["scope"] in ("col", "row") for head in page.all("th"))
    assert all("figcaption" in [t for t, _, above in page.elements if "figure" in above] for _ in page.all("figure"))
    css = (figures.__file__).replace("figures.py", "document.css")
    assert not re.search(r"url\(|@import|@font-face", open(css).read())


@pytest.mark.parametrize("result", SAMPLES.values(), ids=SAMPLES)
def test_all_that_was_measured_is_in_both_files(written, result):
    page, markdown = written(result)
    text, markdown = " ".join(page.text.split()), " ".join(unescaped(markdown).split())
    expected = [*estimates(result["metrics"]), *estimates(result["compared"])]
    assert len(expected) > 20
    for number in expected:
        assert number in text and number in markdown
    prints = [result["fingerprints"]["data"], *result["fingerprints"]["models"].values()]
    for item in (*prints, "2.13.0", result["protocol"]["score"], *result["prompts"]["findings"]):
        assert " ".join(item.split()) in text and " ".join(item.split()) in markdown
    for lists in result["prompts"]["findings"].values():
        for sentence in (*lists["positive"], *lists["negative"]):
            assert sentence in text and sentence in markdown


@pytest.mark.parametrize("result", SAMPLES.values(), ids=SAMPLES)
def test_the_rows_of_a_markdown_table_have_one_length(written, result):
    _, markdown = written(result)
    blocks = re.findall(r"(?:^\|.*\n)+", markdown, flags=re.MULTILINE)
    assert len(blocks) > 5
    for block in blocks:
        rows = table_rows(block)
        assert len({len(row) for row in rows}) == 1
        assert all(re.fullmatch("---:?", cell) for cell in rows[1])
    assert "\n\n**" in markdown, "a table stands behind an empty line"


def test_what_others_wrote_is_text_and_not_markup(written):
    result = json.loads(json.dumps(SAMPLES["hostile"]))
    result["metrics"]["classification"]["image"]["Edema"]["auroc"] = {"value": None, "undefined": "<i>n+</i> = 0"}
    page, markdown = written(result)
    assert HOSTILE in page.text and '<b>"tier"</b> | x minus clip' in page.text and "(<i>n+</i> = 0)" in page.text
    assert not page.all("b") and not page.all("i") and "(<i>n+</i> = 0)" in unescaped(markdown)
    assert all('<b>"tier"</b> | x' in image["alt"] for image in page.all("img"))
    outside_code = re.sub(r"```.*?```", "", markdown, flags=re.DOTALL)
    assert HOSTILE in unescaped(outside_code) and not re.search(r"(?<!\\)<(?!br>|/?(details|summary)>)", outside_code)
    assert any(unescaped(row[0]) == HOSTILE for row in table_rows(markdown))


def test_figures_that_exist_are_in_the_page_and_linked_in_markdown(written, tmp_path):
    page, markdown = written(SAMPLES["one model"], ["roc_image", "patch_similarity", "something_else"])
    contained = [base64.b64decode(image["src"].partition(",")[2]) for image in page.all("img")]
    files = [tmp_path / "figures" / f"{name}.png" for name in ("roc_image", "patch_similarity")]
    assert contained == [file.read_bytes() for file in files]
    assert re.findall(r"\]\((figures/.*)\)", markdown) == ["figures/roc_image.png", "figures/patch_similarity.png"]
    assert [image["width"] for image in page.all("img")] == ["300", "600"]


def test_the_order_of_the_sections(written):
    page, markdown = written(SAMPLES["two models, studies, readers"])
    titles = re.findall(r"^## (.*)", markdown, flags=re.MULTILINE)
    assert titles == [
        *("Summary", "How it was measured", "Classification", "Readers", "Calibration", "Localisation", "Sparsity"),
        *("Retrieval", "Example maps", "Prompts", "To run it again"),
    ]
    assert [link["href"][1:] for link in page.all("a")] == [section["id"] for section in page.all("section")]
    assert len(page.all("section")) == len(titles)


def test_labels_only_have_classification_only(written):
    page, markdown = written(SAMPLES["labels only"], names=())
    titles = re.findall(r"^## (.*)", markdown, flags=re.MULTILINE)
    assert not {"Readers", "Localisation", "Retrieval", "Example maps"} & set(titles) and "Classification" in titles
    assert "MCC, F1, sensitivity and specificity: their thresholds must not be chosen" in page.text
    assert not page.all("img") and "threshold (MCC)" not in page.text and "DeLong" not in page.text
    assert "p = " not in page.text


def test_texts_without_labels_have_no_classification(written):
    result = sample(findings=[], texts=True, regions=False, validated=False)
    result["metrics"].pop("classification"), result["metrics"].pop("peak_spread")
    result["counts"].pop("labels")
    result["prompts"] = {"source": "", "findings": {}}
    page, markdown = written(result, names=("patch_similarity",))
    titles = re.findall(r"^## (.*)", markdown, flags=re.MULTILINE)
    assert titles == ["Summary", "How it was measured", "Sparsity", "Retrieval", "To run it again"]
    assert "Score of a finding" not in page.text and "--prompts" not in page.text


def test_an_undefined_number_says_why(written):
    result = sample(("clip", "tier"))
    undefined = {"value": None, "undefined": "n+ = 0, n- = 60"}
    result["metrics"]["classification"]["image"]["Nodule"]["auroc"] = undefined
    result["compared"]["tier"]["difference"]["classification"]["image"]["Nodule"]["auroc"] = undefined | {
        "p_delong": None,
        "p_holm": None,
    }
    result["metrics"]["localisation_tokens"][0]["cnr"] = float("nan")
    page, markdown = written(result)
    assert page.text.count("undefined (n+ = 0, n- = 60)") == markdown.count("undefined (n+ = 0, n- = 60)") == 2
    assert "nan" not in page.text and "None" not in page.text


def test_a_value_without_an_interval_stands_alone(written):
    result = sample()
    result["settings"]["resamples"] = 0
    for values in result["metrics"]["classification"]["image"].values():
        values["auroc"] = {"value": 0.8125}
    result["metrics"]["classification"]["image"]["Edema"]["auroc"] = {"value": 0.625, "low": None, "high": None}
    page, markdown = written(result)
    ranking = [row for row in table_rows(markdown) if row[0] in ("Edema", "Nodule") and row[-1] == "1,400"]
    assert [row[1] for row in ranking] == ["0.625", "0.812"]
    assert "bootstrap" not in page.text


def test_a_zero_has_no_minus(written):
    result = sample(("clip", "tier"))
    cnr = {"value": -0.0003, "low": -0.0004, "high": -0.0001}
    result["metrics"]["localisation_maps"][0]["cnr"] = cnr
    result["compared"]["tier"]["difference"]["localisation_maps"][0]["cnr"] = cnr | {"p_bootstrap": 0.9}
    page, markdown = written(result)
    for text in (page.text, unescaped(markdown)):
        assert "-0.000" not in text and "+0.000" in " ".join(text.split())
    assert "0.000 (0.000 to 0.000)" in unescaped(markdown)


def test_every_kind_of_map_is_folded(written):
    page, markdown = written(sample(("clip", "tier")))
    folded = [above for tag, _, above in page.elements if tag == "table" and "details" in above]
    assert len(folded) == 3, "of both models and of their difference"
    summary, inside = markdown.split("<details><summary>")[1].split("</summary>\n\n")
    assert summary == "Every kind of map" and inside.split("\n\n</details>")[0].count("every kind of map") == 3


def test_p_values(written):
    result = sample(("clip", "tier"))
    auroc = result["compared"]["tier"]["difference"]["classification"]["image"]["Edema"]["auroc"]
    auroc |= {"p_bootstrap": 0.0419, "p_delong": 0.0009, "p_holm": 0.001}
    _, markdown = written(result)
    row = [row for row in table_rows(unescaped(markdown)) if row[0] == "Edema" and row[-1] == "0.001"]
    assert len(row) == 1 and row[0][2:] == ["0.042", "< 0.001", "0.001"]


@pytest.mark.parametrize(
    "numbers, words",
    [
        ({"peak_spread": 0.149}, "one fixed place"),
        ({"peak_spread": 0.151}, None),
        ({"negative_share": 0.96, "peak": 0.19}, "collapse"),
        ({"negative_share": 0.96, "peak": 0.21}, None),
        ({"negative_share": 0.94, "peak": 0.19}, None),
    ],
)
def test_both_failure_modes_are_reported(written, numbers, words):
    result = sample(("clip", "tier"))
    result["compared"]["tier"]["metrics"] |= numbers
    page, markdown = written(result)
    warnings = [attributes for attributes in page.all("p") if attributes.get("class") == "warning"]
    assert len(warnings) == markdown.count("> **Warning.** tier: ") == (2 if words else 0), "summary and sparsity"
    assert words is None or page.text.count(words) == 2


def test_a_member_that_failed_is_named(written):
    result = sample(texts=False, regions=False)
    members = {f"epoch_{i}": {"auroc": {"Edema": 0.5, "mean": 0.7 + i / 64}, "peak_spread": 0.5} for i in range(3)}
    members["epoch_1"]["peak_spread"] = 0.01
    result["metrics"]["members"] = members
    page, markdown = written(result)
    assert [row for row in table_rows(markdown) if row[0].startswith("epoch")] == [
        *(["epoch_0", "0.700"], ["epoch_1", "0.716"], ["epoch_2", "0.731"])
    ]
    assert "Warning. clip/epoch_1: the spread of the peaks is 0.010" in page.text


def test_what_the_data_allows_is_said(written):
    drawn, _ = written(SAMPLES["a drawn data set"])
    assert "no clinical meaning" in drawn.text and "rules of access" not in drawn.text
    real, _ = written(SAMPLES["one model"])
    assert "no clinical meaning" not in real.text and "rules of access" in real.text
    assert "medical device" in drawn.text and "medical device" in real.text


def test_what_weakens_a_number_is_said_beside_it(written):
    result = sample(("clip", "tier"), units=("image", "study_mean"), readers=True)
    part = result["metrics"]["classification"]["image"]["Edema"]
    part["few_subjects"], part["auroc"] = 1, {"value": 0.9, "no_interval": "1 positive subject"}
    studies = result["metrics"]["classification"]["study_mean"]["Edema"]
    read = studies["num_positive"] + studies["num_negative"] - 7
    result["metrics"]["readers"]["by_reader"]["bc6"]["Edema"]["num_read"] = read
    apart = result["compared"]["tier"]["difference"]["localisation_maps"][0]
    apart |= {"incomparable": "The place takes 0.2 and 0.1.", "cnr": {"value": 0.25}}
    result["notes"] = ["chexpert: 23 of 33 rows left out: the file is missing"]
    page, markdown = written(result)
    for text in (page.text, unescaped(markdown)):
        assert "Fewer than 10 subjects" in text and "Edema †" in text and "Edema †" not in text.split("By study")[1]
        assert (
            "bc6 has no plain answer" in text and f"7 of {read + 7:,} for Edema" in text and "bc4 has no" not in text
        )
        assert "No interval and no p. whole sentence, by pixel: The place takes 0.2 and 0.1." in text
        assert "While the data were loaded: chexpert: 23 of 33 rows left out" in text
        assert "at least 0.002" in text
    assert any(row[:2] == ["Edema †", "0.900"] for row in table_rows(markdown))


def test_how_labels_and_images_were_counted_is_said(written):
    result = sample()
    result["metrics"]["unreadable"] = ["/data/x<1>.png: truncated"]
    page, markdown = written(result)
    assert "uncertain ones ignored, blank ones counted as negative" in page.text
    assert ["Edema", "80", "560", "8", "20"] in table_rows(markdown)
    assert ["views", "500 FRONTAL, 168 LATERAL"] in table_rows(markdown)
    assert "/data/x<1>.png: truncated" in page.text
    for words in ("1,000 resamples", "bootstrap over subjects, not over images", "234 images, the validation split"):
        assert words in page.text


def test_the_command_gives_the_same_evaluation(written, monkeypatch):
    result = sample(("clip", "tier"), dataset="synthetic")
    result["options"] = {"num_images": 20, "seed": 3, "section": "both"}
    result["validation"]["options"] = {"num_images": 20, "seed": 4, "section": "both"}
    result["settings"] |= {"batch_size": 7, "resamples": 50, "dtype": "bfloat16"}
    _, markdown = written(result)
    words = shlex.split(re.search(r"```bash\n(.*)\n```", markdown)[1])
    assert words[:2] == ["python", "evaluate_zeroshot.py"]
    configurations = []
    monkeypatch.setattr("modeling_tier.evaluation.run.run_evaluation", configurations.append)
    monkeypatch.setattr(sys, "argv", [*words[1:], "--output_dir", "out"])
    evaluate_zeroshot.main()
    (config,) = configurations
    assert config.models == ["runs/clip", "runs/tier"] and config.prompts == "my prompts.yaml"
    assert config.data == ("synthetic", "test", result["options"])
    assert config.validation == ("synthetic", "validation", result["validation"]["options"])
    assert (config.uncertain, config.blank, config.protocol) == ("ignore", "zeros", "tier")
    assert (config.batch_size, config.resamples, config.dtype, config.device) == (7, 50, "bfloat16", "cpu")


# Figures


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn, still open."""
    kept = []
    monkeypatch.setattr(figures.plt, "close", kept.append)
    yield kept
    monkeypatch.undo()
    figures.plt.close("all")


def scores_of(rng, labels, gain):
    return rng.normal(size=labels.shape) + gain * np.nan_to_num(labels)


def test_a_panel_for_each_finding_with_both_classes(tmp_path, drawn):
    rng = np.random.default_rng(0)
    names = [f"finding {i}" for i in range(9)]
    labels = (rng.random((80, 9)) < 0.3).astype(float)
    labels[rng.random(labels.shape) < 0.1] = np.nan
    labels[:, 4] = np.nan
    labels[:, 7] = np.where(np.isnan(labels[:, 7]), np.nan, 0)
    curves = {name: {"labels": labels, "scores": scores_of(rng, labels, i)} for i, name in enumerate(("clip", "tier"))}
    readers = {"finding 2": {"bc4": (0.75, 0.9), "bc6": (0.5, 0.8)}}
    figures.plot_roc(curves, names, tmp_path / "roc.png", "A caption", readers)
    axes = drawn[0].axes
    shown = [i for i in range(9) if i not in (4, 7)]
    assert [axis.get_title() for axis in axes] == [*(names[i] for i in shown), "", "", ""], "two rows of five"
    assert [axis.axison for axis in axes] == [True] * 7 + [False] * 3
    for axis, i in zip(axes, shown):
        known = ~np.isnan(labels[:, i])
        areas = [f"{roc_auc_score(labels[known, i], c['scores'][known, i]):.3f}" for c in curves.values()]
        assert [text.get_text() for text in axis.get_legend().get_texts()] == areas
    marks = [
        tuple(map(float, line.get_xydata()[0])) for line in axes[2].lines if line.get_marker() not in ("None", "")
    ]
    assert marks == [pytest.approx((0.1, 0.75)), pytest.approx((0.2, 0.5))]
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert legend == ["clip", "tier", "bc4", "bc6"]
    assert drawn[0].get_suptitle().startswith("A caption")
    with Image.open(tmp_path / "roc.png") as picture:
        assert picture.width > 1000


@pytest.mark.slow
def test_many_panels_stay_within_five_columns(tmp_path, drawn):
    rng = np.random.default_rng(0)
    labels = (rng.random((60, 57)) < 0.3).astype(float)
    curves = {"tier": {"labels": labels, "scores": scores_of(rng, labels, 1)}}
    figures.plot_roc(curves, [str(i) for i in range(57)], tmp_path / "roc.png", "")
    assert len(drawn[0].axes) == 60 and drawn[0].get_size_inches()[0] < 10


def test_no_panel_no_file(tmp_path):
    curves = {"tier": {"labels": np.zeros((5, 1)), "scores": np.zeros((5, 1))}}
    figures.plot_roc(curves, ["a"], tmp_path / "roc.png", "")
    parts = {"tier": {"labels": np.full((5, 1), np.nan), "probabilities": np.ones((5, 1)), "calibrated": None}}
    figures.plot_reliability(parts, ["a"], tmp_path / "reliability.png", "")
    assert not list(tmp_path.iterdir())


def test_reliability_points_are_means_of_the_bins(tmp_path, drawn):
    rng = np.random.default_rng(1)
    probabilities, labels = rng.random((300, 3)), (rng.random((300, 3)) < 0.4).astype(float)
    labels[:40, 1] = np.nan
    calibrated = probabilities / 2
    calibrated[:, 2] = np.nan
    parts = {
        "clip": {"probabilities": probabilities, "calibrated": None, "labels": labels},
        "tier": {"probabilities": probabilities, "calibrated": calibrated, "labels": labels},
    }
    figures.plot_reliability(parts, ["a", "b", "c"], tmp_path / "reliability.png", "A caption")
    axes = drawn[0].axes
    assert [axis.axison for axis in axes] == [True, True, False, True]
    assert (tmp_path / "reliability.png").is_file()
    for axis, values in ((axes[0], probabilities), (axes[3], calibrated)):
        known = ~np.isnan(labels) & ~np.isnan(values)
        points, error = [], 0.0
        for low in np.arange(10) / 10:
            inside = known & (values > low) & (values <= low + 0.1)
            if inside.any():
                points.append((values[inside].mean(), labels[inside].mean()))
                error += inside.sum() / known.sum() * abs(points[-1][0] - points[-1][1])
        line = next(line for line in axis.lines if line.get_marker() == "o")
        np.testing.assert_allclose(line.get_xydata(), points, atol=1e-12)
        assert [text.get_text() for text in axis.texts] == [f"calibration error {error:.3f}"]


def test_models_with_different_patches_have_a_common_axis(tmp_path, drawn):
    rng = np.random.default_rng(0)
    details = {f"{p} patches": {"rank_similarity": -np.sort(rng.normal(size=(9, p)), axis=1)} for p in (16, 49)}
    pairs = load_pairs("synthetic", "test", num_images=2, image_size=32)
    figures.plot_patch_similarity(details, pairs, tmp_path / "fractions.png")
    figures.plot_patch_similarity({"a": details["16 patches"]}, pairs, tmp_path / "ranks.png")
    assert [line.get_xdata()[-1] for line in drawn[0].axes[0].lines] == [1, 1]
    assert [line.get_xdata()[-1] for line in drawn[1].axes[0].lines] == [16]


def test_maps_of_models_with_their_own_processors_less_the_map_of_no_finding(tmp_path, drawn, tokenizer):
    torch.manual_seed(0)
    # Large weights: sentences then have embeddings that differ.
    options = {"vocab_size": len(tokenizer), "initializer_range": 0.5}
    text = BertConfig(**TEXT_CONFIGS["bert"].to_diff_dict() | options)
    config = TierConfig(
        text_config=text, vision_config=VISION_CONFIGS["resnet"], image_pooling="mean", projection_dim=8
    )
    model = TierModel(config).eval()
    sizes = {"small": 32, "large": 64}
    models = {}
    for name, size in sizes.items():
        image_processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
        models[name] = model, TierProcessor(image_processor, tokenizer)
    pairs = load_pairs("synthetic", "test", num_images=20, image_size=48, seed=2)
    sentences = ["The lungs are clear.", "No acute process."]
    figures.plot_similarity_maps(models, pairs, tmp_path / "maps.png", ["Edema"], sentences)
    axes = drawn[0].axes
    labels = [axis.get_ylabel() for axis in axes]
    rows = ("", " minus\n“No finding”", ", contributions\nminus “No finding”")
    assert labels == ["radiograph", *(name + row for name in ("small", "large") for row in rows)]
    assert [axis.images[-1].get_array().shape for axis in axes] == [(32, 32)] * 4 + [(64, 64)] * 3

    phrase = axes[0].get_title().split("“")[1].rstrip("”")
    showing = [i for i, row in enumerate(pairs["labels"]) if row["Edema"] == 1.0]
    index = min(showing, key=lambda i: sum(value == 1.0 for value in pairs[i]["labels"].values()))

    def unit(x):
        return x / x.norm(dim=-1, keepdim=True)

    for k, (name, (_, processor)) in enumerate(models.items()):

        def embed(text, model=model, processor=processor):
            return unit(model.get_text_features(**processor(text=text)).pooler_output[0])

        with torch.no_grad():
            out = model(**processor(images=pairs[index]["image"], text=phrase))
            absent = torch.stack([embed(s) for s in sentences]).mean(dim=0)
            assert absent.norm() < 0.98
            absent = unit(absent)
            side = round(out.patch_embeds.shape[1] ** 0.5)
            difference = embed(phrase) - absent
            patches = model.encode_image(processor(images=pairs[index]["image"])["pixel_values"]).local_embeds[0]
            contributions = patches @ difference / patches.mean(dim=0).norm()  # their mean is the score
            score = out.image_embeds[0] @ difference
            assert abs(contributions.mean() - score) < 1e-5
        for row, coarse in ((2, out.patch_embeds[0] @ difference), (3, contributions)):
            coarse = coarse.view(1, 1, side, side)
            fine = torch.nn.functional.interpolate(coarse, (sizes[name],) * 2, mode="bilinear", align_corners=False)
            np.testing.assert_allclose(axes[row + 3 * k].images[-1].get_array(), fine.numpy()[0, 0], atol=1e-5)


def test_a_difference_that_is_a_number_alone_has_no_p():
    """As of maps that two models make of differently cropped pictures."""
    assert difference_cell(0.25) == "+0.250" and difference_cell(None) == ""
    assert difference_cell({"value": 0.25, "low": None, "p_bootstrap": 0.2}) == ("+0.250,", "p = 0.200")
