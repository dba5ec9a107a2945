# Licensed under the Apache License, Version 2.0.
"""Open-I as the National Library of Medicine publishes it: XML reports and PNG images, and the download of them."""

import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from openi_archives import pack, serving
from PIL import Image

from modeling_tier.data import load_pairs
from modeling_tier.data.__main__ import main
from modeling_tier.data.rejected import collect_rejected


pytestmark = pytest.mark.filterwarnings("ignore:.*rows skipped")

# Of the published files: the order of the nodes, empty sections, terms with qualifiers, an examination's caption.
REPORT = """<?xml version="1.0" encoding="utf-8"?><eCitation>
<meta type="rr"/><uId id="CXR{uid}"/><pmcId id="{uid}"/><docSource>CXR</docSource><IUXRId id="{uid}"/>
<licenseType>open-access</licenseType><licenseURL>http://creativecommons.org/licenses/by-nc-nd/4.0/</licenseURL>
<ccLicense>byncnd</ccLicense>
<MedlineCitation Owner="Indiana University" Status="supplied by publisher"><Article PubModel="Electronic">
<Journal><JournalIssue><PubDate><Year>2013</Year></PubDate></JournalIssue></Journal>
<ArticleTitle>Indiana University Chest X-ray Collection</ArticleTitle>
<Abstract><AbstractText Label="COMPARISON">None.</AbstractText>
<AbstractText Label="INDICATION">XXXX-year-old.</AbstractText>{sections}</Abstract></Article></MedlineCitation>
<MeSH>{terms}</MeSH>{images}</eCitation>"""
IMAGE = """<parentImage id="{0}"><figureId>F1</figureId><caption>Xray Chest PA and Lateral</caption>
<panel type="single"><url>/hadoop/storage/collections/CXR/hash_2014/x/{0}.jpg</url></panel></parentImage>"""


def section(label: str, text: str | None) -> str:
    content = f'<AbstractText Label="{label}"'
    return f"{content}/>" if text is None else f"{content}>{text}</AbstractText>"


def report(uid, findings, impression, major=("normal",), automatic=(), images=()) -> str:
    terms = "".join(f"<major>{name}</major>" for name in major)
    terms += "".join(f"<automatic>{name}</automatic>" for name in automatic)
    return REPORT.format(
        uid=uid,
        sections=section("FINDINGS", findings) + section("IMPRESSION", impression),
        terms=terms,
        images="".join(IMAGE.format(image) for image in images),
    )


REPORTS = {
    "1": report("1", "The heart is XXXX.  Lungs\nare clear.", "Normal chest x-XXXX.", images=["CXR1_1_IM-0001-3001"]),
    "2": report(
        "2",
        "Size &lt; 2 cm &amp; round. Angle &amp;gt; 90.",
        None,
        ["Cardiomegaly/borderline", "Opacity/lung/base/left", "Opacity/lung/apex"],
        ["Cardiomegaly", "pulmonary atelectases", "calcified granuloma"],
        ["CXR2_IM-0652-1001", "CXR2_IM-0652-2001", "CXR2_IM-0652-9001"],  # the last one has no file
    ),
    "3": report("3", None, "Left effusion.", ["No Indexing"], ["pleural effusion"], ["CXR3_IM-1384-0001-0001"]),
    "4": report("4", "XXXX", "", images=["CXR4_IM-2050-1001"]),
    "5": report("5", "Caf\u00e9 sign.", "Clear.", images=["CXR5_IM-2117-1003002"]),
    "6": report("6", "Clear.", "No image.", images=[]),
    "7": "<eCitation><uId id='CXR7'/><MeSH><major>normal</major>",  # cut off
} | {str(i): report(i, "Clear.", "Clear.", images=[f"CXR{i}_IM-0100-1001"]) for i in range(10, 60)}
FILES = sorted(set(re.findall(r'parentImage id="([^"]+)"', "".join(REPORTS.values()))) - {"CXR2_IM-0652-9001"})


@pytest.fixture
def folder(tmp_path) -> Path:
    """As both archives are unpacked in one folder."""
    (tmp_path / "ecgen-radiology").mkdir(), (tmp_path / "NLMCXR_png").mkdir()
    for name, text in REPORTS.items():
        (tmp_path / "ecgen-radiology" / f"{name}.xml").write_text(text, encoding="utf-8")
    for name in FILES:
        (tmp_path / "NLMCXR_png" / f"{name}.png").write_bytes(png())
    return tmp_path


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((42, 51, 3), 90, np.uint8)).save(file, "PNG")
    return file.getvalue()


def load(folder, split="test", **options):
    return load_pairs("openi", split, data_dir=folder, **options)


def test_reports_with_their_oddities(folder):
    with collect_rejected() as rejected, pytest.warns(UserWarning) as said:
        pairs = load(folder, section="impression_or_findings", min_count=1)
    texts = {row["image_id"]: row["text"] for row in pairs.remove_columns("image")}
    assert len(texts) == 55 and texts["CXR1_1_IM-0001-3001.png"] == "Normal chest."
    assert texts["CXR2_IM-0652-1001.png"] == "Size < 2 cm & round. Angle > 90." == texts["CXR2_IM-0652-2001.png"]
    assert texts["CXR3_IM-1384-0001-0001.png"] == "Left effusion."
    assert not any("CXR4_" in name or "CXR6_" in name for name in texts), "no text; no image"
    said = "\n".join(str(warning.message) for warning in said)
    assert "1 of 57 rows skipped: the report has no image, such as 6.xml" in said
    assert "1 of 57 rows skipped, such as 7.xml: no element found" in said
    assert "the file is missing, such as filename CXR2_IM-0652-9001.png" in said
    assert "no impression_or_findings in the report, such as filename CXR4_IM-2050-1001.png" in said
    assert {row.row for row in rejected} >= {"7.xml", "filename CXR2_IM-0652-9001.png"}
    assert set(pairs["view"]) == {""}, "the XML does not know them"
    assert pairs[0]["subject_id"] == pairs[0]["study_id"] == "1"
    assert pairs[0]["image"].size == (51, 42)


def test_labels_of_people_and_of_a_program(folder):
    def labels(**options):
        pairs = load(folder, section="both", min_count=1, **options)
        return {row["study_id"]: row["labels"] for row in pairs.remove_columns("image")}

    people, program = labels(), labels(labels="automatic")
    assert people["2"] == {"Cardiomegaly": 1, "Opacity": 1, "normal": 0}
    assert people["3"] == dict.fromkeys(people["2"]), "nobody has indexed it"
    found = {name for name, value in program["2"].items() if value}
    assert found == {"Cardiomegaly", "Atelectasis", "Calcified Granuloma", "Granuloma"}
    assert program["3"]["Effusion"] == 1 and not any(program["1"].values())


def test_views_are_those_of_the_table_of_the_other_form(folder):
    with pytest.raises(ValueError, match=r"views 'frontal' needs indiana_projections\.csv in .*do not know the views"):
        load(folder, views="frontal")
    rows = ["uid,filename,projection", "1,1_IM-0001-3001.dcm.png,Lateral", "3.0,3_IM-1384-0001-0001.dcm.png,Frontal"]
    rows += [f"{i},{i}_IM-0100-1001.dcm.png,Frontal" for i in range(10, 20)]
    (folder / "indiana_projections.csv").write_text("\n".join(rows))
    frontal = load(folder, views="frontal")
    assert set(frontal["study_id"]) == {"3", *map(str, range(10, 20))} and set(frontal["view"]) == {"Frontal"}
    assert {row["view"] for row in load(folder).remove_columns("image") if row["study_id"] == "1"} == {"Lateral"}


def test_both_forms_divide_the_reports_alike(folder, tmp_path):
    parts = {
        split: set(load(folder, split, split_by="subject")["study_id"]) for split in ("train", "validation", "test")
    }
    kaggle = tmp_path / "kaggle"
    kaggle.mkdir()
    numbers = sorted(set().union(*parts.values()))
    assert sum(map(len, parts.values())) == len(numbers) and all(parts.values())
    rows = [f"{i},normal,Clear.,Clear." for i in numbers]
    (kaggle / "indiana_reports.csv").write_text("\n".join(["uid,Problems,findings,impression", *rows]))
    rows = [f"{i},{i}_IM-0001-1001.dcm.png,Frontal" for i in numbers]
    (kaggle / "indiana_projections.csv").write_text("\n".join(["uid,filename,projection", *rows]))
    for i in numbers:
        (kaggle / f"{i}_IM-0001-1001.dcm.png").write_bytes(png())
    assert parts == {split: set(load(kaggle, split, split_by="subject")["study_id"]) for split in parts}
    with pytest.raises(ValueError, match="labels 'automatic' are in the XML files alone"):
        load(kaggle, labels="automatic")
    features = [load(kaggle, split, split_by="subject").features for split in parts]
    assert features[0] == features[1] == features[2], "labels are those of the data set, not of a part"


def test_what_is_wrong_is_named(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has neither XML reports .* nor indiana_reports.csv"):
        load(tmp_path / "empty")
    for name in list(REPORTS)[7:20]:
        (folder / "ecgen-radiology" / f"{name}.xml").write_text("<html>Not found</html>")
    with pytest.raises(ValueError, match=r"7\.xml: no element found.*\(14 of 57 rows are bad; at most 10%"):
        load(folder)
    for path in (folder / "ecgen-radiology").iterdir():
        path.write_text("<eCitation><uId id='CXR6'/></eCitation>") if path.stem == "6" else path.unlink()
    with pytest.raises(ValueError, match=r"none of the 1 XML files .* names an image"):
        load(folder)


@pytest.mark.parametrize(
    "attack",
    [
        '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><eCitation><uId id="CXR7"/><x>&b;</x></eCitation>',
        "<!DOCTYPE a [<!ENTITY b '"
        + "x" * 1000
        + "'>"
        + "".join(f"<!ENTITY b{i} '{f'&b{i - 1 if i else str()};' * 50}'>" for i in range(8))
        + ']><eCitation><uId id="CXR7"/><x>&b7;</x></eCitation>',
        '<eCitation><uId id="CXR7"/><parentImage id="../../secret"/></eCitation>',
        '<?xml version="1.0" encoding="nonsense"?><eCitation><uId id="CXR7"/></eCitation>',
        "",
    ],
)
def test_hostile_files_are_bad_rows_or_name_no_image(folder, attack):
    (folder / "ecgen-radiology/7.xml").write_text(attack)
    (folder.parent / "secret.png").write_bytes(png())
    assert len(load(folder)) == 53 and "7" not in load(folder)["study_id"]


# The download


@pytest.fixture
def archives(tmp_path) -> Path:
    folder = tmp_path / "archives"
    folder.mkdir()
    pack(folder / "NLMCXR_reports.tgz", {f"ecgen-radiology/{k}.xml": v.encode() for k, v in REPORTS.items()})
    noise = np.random.default_rng(0).bytes(40_000)  # so that the archive has several pieces
    images = {f"./{name}.png": png() + noise for name in FILES}
    pack(folder / "NLMCXR_png.tgz", {"../../outside.png": png(), "._x.txt": b"x"} | images)
    return folder


def download(monkeypatch, output: Path, *options: str) -> None:
    command = ["modeling_tier.data", "download", "openi", str(output), *options]
    monkeypatch.setattr(sys, "argv", command)
    main()


def test_download(archives, tmp_path, monkeypatch, capsys):
    output = tmp_path / "a/openi"
    with serving(archives) as (server, address):
        download(monkeypatch, output, "--address", address, "--max_images", "3")
        assert len(list((output / "images").glob("*.png"))) == 3
        download(monkeypatch, output, "--address", address)
        assert server.asked[-1][1].startswith("bytes="), "what is there is not asked for again"
        assert (
            f"{len(REPORTS)} files in {output}/ecgen-radiology, {len(FILES) + 1} files in" in capsys.readouterr().out
        )
        number = len(server.asked)
        download(monkeypatch, output, "--address", address)
        assert len(server.asked) == number, "all is there"
    assert not (tmp_path / "outside.png").exists() and not list(output.glob("**/*.part"))
    assert len(load(output, section="impression_or_findings")) == 55


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_was_broken_off_goes_on(archives, tmp_path, monkeypatch, ranges):
    output = tmp_path / "openi"
    with serving(archives) as (server, address):
        server.ranges, server.breaks_off = ranges, 1_200_000
        with pytest.raises(SystemExit, match=r"NLMCXR_png\.tgz cannot be downloaded: .*The same command goes on"):
            download(monkeypatch, output, "--address", address)
        assert 0 < len(list((output / "images").iterdir())) < len(FILES)
        server.breaks_off = 1 << 40
        download(monkeypatch, output, "--address", address)
        assert {path.stem for path in (output / "images").iterdir()} == {*FILES, "outside"}


def test_a_download_that_cannot_be_is_named(archives, tmp_path, monkeypatch):
    with serving(archives) as (_, address):
        with pytest.raises(SystemExit, match=r"nowhere/NLMCXR_reports\.tgz cannot be downloaded: .*404"):
            download(monkeypatch, tmp_path / "b", "--address", f"{address}nowhere")
        (archives / "NLMCXR_reports.tgz").write_bytes(b"<html>Down for maintenance</html>")
        with pytest.raises(SystemExit, match=r"NLMCXR_reports\.tgz is not an archive, or .*\.part is damaged"):
            download(monkeypatch, tmp_path / "c", "--address", address)
    with pytest.raises(SystemExit, match="cannot be downloaded"):
        download(monkeypatch, tmp_path / "d", "--address", address)
    with pytest.raises(SystemExit, match="max_images must be at least 1"):
        download(monkeypatch, tmp_path / "d", "--max_images", "0")
