# Licensed under the Apache License, Version 2.0.
"""
What Gradio would fetch, read or keep for a caller, and does not here. Its methods are replaced, as it has no options
for this.
"""

from typing import Any

import gradio as gr
from gradio.state_holder import SessionState


async def keep_path(path) -> str | None:
    """In the place of the method that copies a file of a call, or fetches its address, into a folder of Gradio's."""
    return None if path is None else str(path)


def harden(page: gr.Blocks, with_mcp: bool) -> None:
    """
    Before the page is launched:

    - no input of an event or an endpoint is fetched from an address;
    - the inputs and outputs of a call are not kept with its session, where a shared link would need them;
    - a tool of MCP gets no file by its path on this machine.
    """
    for function in page.fns.values():
        for component in function.inputs:
            component.async_move_resource_to_block_cache = keep_path
    SessionState._update_value_in_config = _forget
    if with_mcp:
        from gradio.mcp import GradioMCPServer

        GradioMCPServer.convert_strings_to_filedata = _arguments_without_meta


def _forget(self, key: int, value: Any) -> None:
    pass


def _arguments_without_meta(self, value: Any, positions: list | None = None) -> Any:
    """Gradio's own client, which calls the endpoints for a tool, opens the path of whatever has its mark in `meta`."""
    if isinstance(value, dict):
        return {name: _arguments_without_meta(self, part) for name, part in value.items() if name != "meta"}
    return [_arguments_without_meta(self, part) for part in value] if isinstance(value, list) else value
