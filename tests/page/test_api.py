# Licensed under the Apache License, Version 2.0.
"""The endpoints of the page for programs, called by gradio_client and by hand."""

import base64
import io
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from modeling_tier import load_radiograph, overlay_map
from tests.page.fixtures import Visitor


pytest_plugins = ["tests.page.fixtures"]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio")

ROOT = Path(__file__).parents[2]
FINDINGS = ["left effusion", "zyzzyva"]


@pytest.fixture(scope="module")
def client(server) -> Client:
    return Client(server.address, verbose=False)


def test_scores_are_the_pipelines(client, server, page_models, radiograph):
    rows = client.predict(image=handle_file(radiograph), findings=FINDINGS, api_name="/scores")
    expected = {name: read(str(radiograph), findings=FINDINGS) for name, read in page_models.items()}
    assert [(row["finding"], row["model"]) for row in rows] == [(f, name) for f in FINDINGS for name in page_models]
    for row in rows:
        answer = expected[row["model"]][FINDINGS.index(row["finding"])]
        assert row["score"] == pytest.approx(answer["score"], abs=1e-6)
        assert row["difference"] == pytest.approx(answer["difference"], abs=1e-6)
        assert row["note"] == answer.get("note")
    assert server.is_empty()


def test_an_overlay_is_the_pipelines(client, page_models, radiograph):
    rows = client.predict(image=handle_file(radiograph), finding=FINDINGS[0], api_name="/overlay")
    assert [row["model"] for row in rows] == list(page_models)
    for row in rows:
        head, content = row["overlay"].split(",", 1)
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))).astype(int)
        (answer,) = page_models[row["model"]](str(radiograph), findings=FINDINGS[:1], maps="array")
        expected = overlay_map(load_radiograph(str(radiograph)), answer["map"])
        assert head == "data:image/png;base64" and shown.shape == (60, 90, 3)
        assert np.abs(shown - np.asarray(expected).astype(int)).max() <= 2  # alpha is rounded twice
        assert row["highest"] == pytest.approx(np.nanmax(answer["map"]), abs=1e-6)
        x, y = row["highest_at"]
        assert answer["map"][int(y * 60), int(x * 90)] == np.nanmax(answer["map"])


def test_an_overlay_of_contributions(client, page_models, radiograph):
    rows = client.predict(image=handle_file(radiograph), finding=FINDINGS[0], kind="contribution", api_name="/overlay")
    assert {row["model"]: row["kind"] for row in rows} == {"clip": "cosine", "tier": "contribution"}
    (answer,) = page_models["tier"](str(radiograph), FINDINGS[:1], maps="array", map_kind="contribution")
    values = answer["map"] * np.prod(answer["grid"])
    assert rows[1]["lowest"] == pytest.approx(np.nanmin(values), abs=1e-6)
    assert rows[1]["highest"] == pytest.approx(np.nanmax(values), abs=1e-6)
    with pytest.raises(AppError, match="must be one of cosine, contribution"):
        client.predict(image=handle_file(radiograph), finding=FINDINGS[0], kind="plain", api_name="/overlay")


def test_the_example_of_the_documentation_runs(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/page.md").read_text(), re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if "gradio_client" in block)
    names = {}
    exec(block.replace("http://127.0.0.1:7860", server.address).replace("docs/radio", f"{ROOT}/docs/radio"), names)
    assert len(names["rows"]) == 4
    assert Image.open("overlay.png").size == Image.open(ROOT / "docs/radiograph.png").size


def test_types_and_texts_are_documented(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert list(endpoints) == ["/scores", "/overlay"], "the page's own events are no endpoints"
    parameters = {p["parameter_name"]: p["python_type"]["type"] for p in endpoints["/scores"]["parameters"]}
    assert parameters == {"image": "dict(path: str)", "findings": "list[str]"}
    assert all("Not a medical device" in endpoint["description"] for endpoint in endpoints.values())


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"findings": []}, "Write at least one finding"),
        ({"findings": "left effusion"}, "findings must be a list of texts"),
        ({"findings": ["x"] * 2 + [f"finding {i}" for i in range(12)]}, "At most 12 findings"),
        ({"findings": ["x" * 5000]}, "characters"),
        ({"image": "radiograph.png"}, "image must be a file"),
        ({"image": {"path": "/etc/passwd"}}, "no longer kept|must be a file"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(client, server, radiograph, arguments, message):
    given = {"image": handle_file(radiograph), "findings": FINDINGS} | arguments
    with pytest.raises(AppError, match=message):
        client.predict(**given, api_name="/scores")
    assert server.is_empty()


@pytest.mark.parametrize("path", ["/etc/passwd", "https://example.org/radiograph.png", "http://192.0.2.1/x.png"])
def test_a_path_of_the_machine_and_an_address_are_not_read(server, path):
    """A client that sends one without an upload gets a message, and nothing of the file."""
    visitor = Visitor(server)
    file = {"path": path, "url": path, "meta": {"_type": "gradio.FileData"}}
    body = {"data": [file, FINDINGS], "fn_index": server.functions["scores"], "session_hash": visitor.key}
    visitor.http.post("/queue/join", json=body).raise_for_status()
    with visitor.http.stream("GET", "/queue/data", params={"session_hash": visitor.key}) as lines:
        answers = [json.loads(line[5:]) for line in lines.iter_lines() if line.startswith("data:")]
    (end,) = (answer for answer in answers if answer["msg"] == "process_completed")
    assert not end["success"] and "root:" not in json.dumps(answers)
    if path.startswith("http"):  # of a path, Gradio refuses the form before it is asked for
        assert "no longer kept" in end["output"]["error"]


@pytest.mark.slow
def test_twenty_users_at_once_get_their_own_answers(server, radiograph):
    def ask(number: int) -> list[str]:
        client = Client(server.address, verbose=False)
        rows = client.predict(image=handle_file(radiograph), findings=[f"finding {number}"], api_name="/scores")
        return [row["finding"] for row in rows]

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(ask, range(20))) == [[f"finding {i}"] * 2 for i in range(20)]
    assert server.is_empty()
