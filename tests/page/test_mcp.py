# Licensed under the Apache License, Version 2.0.
"""The endpoints as tools of the Model Context Protocol, called by its own client over HTTP."""

import asyncio
import base64
import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_tier import load_radiograph, overlay_map
from tests.page.fixtures import Visitor


mcp = pytest.importorskip("mcp", reason="mcp is not installed")
pytest_plugins = ["tests.page.fixtures"]
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

ROOT = Path(__file__).parents[2]
FINDINGS = ["left effusion", "zyzzyva"]


@contextlib.asynccontextmanager
async def connected(server):
    from mcp.client.streamable_http import streamable_http_client

    async with streamable_http_client(f"{server.address}/gradio_api/mcp/") as (read, write, _):
        async with mcp.ClientSession(read, write) as session:
            await session.initialize()
            yield session


def call(server, name: str, **arguments):
    async def ask():
        async with connected(server) as session:
            return await session.call_tool(name, arguments)

    return asyncio.run(ask())


def as_data(path: Path) -> dict:
    return {"path": f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"}


def test_the_tools_are_the_documented_endpoints(server):
    async def ask():
        async with connected(server) as session:
            return (await session.list_tools()).tools

    tools = {tool.name: tool for tool in asyncio.run(ask())}
    assert list(tools) == ["scores", "overlay"], "the page's own events are no tools"
    for tool in tools.values():
        assert "Not a medical device" in tool.description
        assert all(len(option["description"]) > 20 for option in tool.inputSchema["properties"].values())
    assert tools["overlay"].inputSchema["required"] == ["image", "finding"]
    assert "contribution_minus_no_finding" in tools["overlay"].inputSchema["properties"]["kind"]["description"]


@pytest.mark.parametrize("way", ["data URI", "upload"])
def test_scores_are_the_pipelines(server, page_models, radiograph, way):
    image = as_data(radiograph)
    if way == "upload":
        image = {"path": Visitor(server).upload(radiograph.read_bytes()).json()[0]}
    answer = call(server, "scores", image=image, findings=FINDINGS)
    assert not answer.isError and len(answer.content) == 1
    rows = json.loads(answer.content[0].text)
    expected = {name: read(str(radiograph), findings=FINDINGS) for name, read in page_models.items()}
    assert [(row["finding"], row["model"]) for row in rows] == [(f, name) for f in FINDINGS for name in page_models]
    for row in rows:
        given = expected[row["model"]][FINDINGS.index(row["finding"])]
        assert row["score"] == pytest.approx(given["score"], abs=1e-6)
        assert row["difference"] == pytest.approx(given["difference"], abs=1e-6)
        assert row["note"] == given.get("note")
    assert server.is_empty()


def test_an_overlay_is_the_pipelines_and_comes_as_a_picture(server, page_models, radiograph):
    answer = call(server, "overlay", image=as_data(radiograph), finding=FINDINGS[0])
    text, *pictures = answer.content
    rows = json.loads(text.text)
    assert [row["model"] for row in rows] == list(page_models) and len(pictures) == len(rows)
    assert not any("overlay" in row for row in rows)
    for row, picture in zip(rows, pictures):
        (given,) = page_models[row["model"]](str(radiograph), findings=FINDINGS[:1], maps="array")
        assert row["highest"] == pytest.approx(np.nanmax(given["map"]), abs=1e-6)
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.data)))).astype(int)
        expected = overlay_map(load_radiograph(str(radiograph)), given["map"])
        assert picture.mimeType == "image/png"
        assert np.abs(shown - np.asarray(expected).astype(int)).max() <= 2  # alpha is rounded twice
    assert server.is_empty()


@pytest.mark.parametrize(
    "path, message",
    [
        ("/etc/passwd", "no longer kept"),
        ("http://127.0.0.1:1/x.png", "no longer kept"),
        ("data:image/png;base64,????", "not in base64"),
        ("data:image/png,xx", "must be in base64"),
        ("data:image/png;base64,AAAA", "cannot be read"),
    ],
)
def test_what_is_no_picture_is_an_error_that_says_so(server, path, message):
    answer = call(server, "scores", image={"path": path}, findings=FINDINGS)
    assert answer.isError and message in answer.content[0].text
    assert server.is_empty()


def test_a_picture_of_the_machine_is_not_read(server, radiograph):
    """The mark by which Gradio's client, which calls the endpoints for a tool, uploads a file of its own machine."""
    for path in (radiograph, radiograph.parent / "absent.png"):
        image = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        answer = call(server, "overlay", image=image, finding=FINDINGS[0])
        assert answer.isError and len(answer.content) == 1 and "no longer kept" in answer.content[0].text
    assert server.is_empty()


def test_the_example_of_the_documentation_runs(server, monkeypatch):
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/page.md").read_text(), re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if "mcp" in block)
    names = {}
    exec(block.replace("http://127.0.0.1:7860", server.address), names)
    assert len(names["rows"]) == 4 and len(names["overlays"]) == 2
