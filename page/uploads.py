# Licensed under the Apache License, Version 2.0.
"""
Uploaded files without a name on the disk.

Gradio keeps an upload in a folder named after its content, which users of the same picture share, and leaves what was
broken off. Here an upload is an anonymous temporary file: the system deletes it when it is closed or when the process
ends, however that happens. It waits under a random token until its event reads it.
"""

import asyncio
import base64
import binascii
import io
import secrets
from pathlib import Path, PureWindowsPath
from typing import IO, NamedTuple

import gradio as gr
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send


MAX_UPLOAD_BYTES = 100 * 2**20
MAX_TOTAL_BYTES = 500 * 2**20  # of all uploads that arrive or wait
MAX_DATA_URI_BYTES = 10 * 2**20  # of a file that a call brings with it, which stays in memory while the call waits
MAX_BODY_BYTES = 16 * 2**20  # of every other request
MAX_UPLOAD_SECONDS = 120
MAX_WAITING_SECONDS = 600
MAX_NAME_LENGTH = 100

_FORM_BYTES = 64 * 2**10  # what a form has around its file


class Upload(NamedTuple):
    """A file that a user sent."""

    name: str
    file: IO[bytes]
    size: int


def from_data_uri(text: str) -> Upload:
    """
    A file that a call brings with it, `data:image/png;base64,...`.

    Raises:
        ValueError: if it is too large, or not in base64.
    """
    head, _, content = text.partition(",")
    if len(content) > MAX_DATA_URI_BYTES * 4 / 3 + 4:
        raise ValueError(
            f"A file in a data URI may have at most {MAX_DATA_URI_BYTES // 2**20} MB: upload it "
            f"(gradio_api/upload), which takes {MAX_UPLOAD_BYTES // 2**20} MB."
        )
    if not head.endswith(";base64"):
        raise ValueError("The data URI must be in base64: data:image/png;base64,...")
    try:
        file = base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"The data URI is not in base64: {error}.") from error
    return Upload("The picture", io.BytesIO(file), len(file))


class _Refused(Exception):
    """Ends an upload, with the status and the text of the answer."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


class Uploads:
    """
    The uploads that wait for their event.

    Args:
        max_upload_bytes: of one file.
        max_total_bytes: of all files that arrive or wait.
        max_waiting_seconds: after which an upload that nobody has read is deleted.
    """

    def __init__(
        self,
        max_upload_bytes: int = MAX_UPLOAD_BYTES,
        max_total_bytes: int = MAX_TOTAL_BYTES,
        max_waiting_seconds: float = MAX_WAITING_SECONDS,
    ):
        self.max_upload_bytes, self.max_total_bytes = max_upload_bytes, max_total_bytes
        self.max_waiting_seconds = max_waiting_seconds
        self._waiting: dict[str, Upload] = {}
        self._arriving = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def num_bytes(self) -> int:
        """Of all files that arrive or wait."""
        return self._arriving + sum(upload.size for upload in self._waiting.values())

    def take(self, token: str) -> Upload | None:
        """Hand an upload over, once; the caller closes its file."""
        return self._waiting.pop(token, None)

    def clear(self) -> None:
        for token in list(self._waiting):
            self._delete(token)

    async def receive(self, scope: Scope, receive: Receive) -> Response:
        """Take one multipart form with one file; answers as Gradio's route does, with a list of one path."""
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            chunk = len(message.get("body", b""))
            size += chunk
            self._arriving += chunk
            if size > self.max_upload_bytes + _FORM_BYTES:
                raise _Refused(413, f"File size exceeded maximum allowed size of {self.max_upload_bytes} bytes.")
            if self.num_bytes() > self.max_total_bytes:
                raise _Refused(503, "Too many files are being uploaded. Try again in a minute.")
            return message

        try:
            async with asyncio.timeout(MAX_UPLOAD_SECONDS):
                form = await Request(scope, counted).form(max_files=1, max_fields=4, max_part_size=_FORM_BYTES)
        finally:
            self._arriving -= size
        file = form.get("files")
        if not isinstance(file, UploadFile):
            await form.close()
            raise _Refused(400, "The form has no file.")
        return JSONResponse([self._keep(file, size)])

    def _keep(self, file: UploadFile, size: int) -> str:
        token, name = secrets.token_urlsafe(24), safe_name(file.filename)
        self._waiting[token] = Upload(name, file.file, size)
        asyncio.get_running_loop().call_later(self.max_waiting_seconds, self._delete, token)
        # Gradio takes only paths of its own folder. There is no file of this name.
        return str(Path(gr.utils.get_upload_folder()) / token / name)

    def _delete(self, token: str) -> None:
        upload = self._waiting.pop(token, None)
        if upload:
            upload.file.close()


class UploadMiddleware:
    """Answers uploads in the place of Gradio's route; everything else passes, up to `MAX_BODY_BYTES`."""

    def __init__(self, app: ASGIApp, uploads: Uploads):
        self.app, self.uploads = app, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if not scope["path"].rstrip("/").endswith("/upload"):
            await self._pass_on(scope, receive, send)
            return
        try:
            if scope["method"] != "POST":
                raise _Refused(405, "Method Not Allowed")
            response = await self.uploads.receive(scope, receive)
        except _Refused as refusal:
            response = PlainTextResponse(refusal.message, refusal.status, {"Connection": "close"})
        except TimeoutError:
            response = PlainTextResponse("The upload took too long.", 408, {"Connection": "close"})
        except ClientDisconnect:
            return
        except Exception as error:  # forms can be damaged in many ways
            detail = error.message if isinstance(error, MultiPartException) else "The form cannot be read."
            response = PlainTextResponse(detail, 400, {"Connection": "close"})
        await response(scope, receive, send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
            message = f"A request may have at most {MAX_BODY_BYTES} bytes; upload larger files."
            await PlainTextResponse(message, 413, {"Connection": "close"})(scope, receive, send)
            return
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            # Of a body without a declared length; the route answers that it could not be read.
            return message if size <= MAX_BODY_BYTES else {"type": "http.disconnect"}

        await self.app(scope, counted, send)


def file_chooser(uploads: Uploads, **options) -> gr.File:
    """
    A file chooser whose value is an [`Upload`], or None where it is not kept.

    Its methods are replaced in the object: for a subclass, Gradio would write a file beside this one.
    """

    def preprocess(payload) -> Upload | None:
        path = getattr(payload, "path", None)
        return uploads.take(Path(path).parent.name) if path else None

    chooser = gr.File(**options)
    chooser.preprocess = preprocess
    return chooser


def safe_name(name: str | None) -> str:
    """The last part of a name from another machine, as it can be shown."""
    name = PureWindowsPath(name or "").name.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    name = "".join(character for character in name if character.isprintable()).strip(" .")
    return name[-MAX_NAME_LENGTH:] or "unnamed"
