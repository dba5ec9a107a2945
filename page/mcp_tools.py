# Licensed under the Apache License, Version 2.0.
"""
The endpoints as tools of the Model Context Protocol, where the package `mcp` is installed. Gradio serves them, by the
types and descriptions in api.py; here is the form of an answer.
"""

import json
from importlib.util import find_spec
from typing import Any

import gradio as gr


def can_serve() -> bool:
    return find_spec("mcp") is not None


def set_form_of_answers(page: gr.Blocks) -> None:
    """Answer by JSON and pictures, where Gradio would write the text of a Python object with the pictures in it."""
    if page.mcp_server_obj is not None:
        page.mcp_server_obj.postprocess_output_data = contents


def contents(outputs: list[list[dict[str, Any]]], root_url: str = "") -> list:
    """
    What a call gives a client of MCP: the rows as JSON, then their overlays as PNG pictures, in the order of the rows.

    Args:
        outputs: one list of rows, as the methods of [`~api.Endpoints`] return it.
        root_url: of the page; not used, as no answer is a file.
    """
    from mcp import types

    (rows,) = outputs
    text = json.dumps([{name: value for name, value in row.items() if name != "overlay"} for row in rows])
    pictures = [row["overlay"].partition(",")[2] for row in rows if "overlay" in row]
    return [
        types.TextContent(type="text", text=text),
        *(types.ImageContent(type="image", data=data, mimeType="image/png") for data in pictures),
    ]
