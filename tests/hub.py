# Licensed under the Apache License, Version 2.0.
"""A stand-in for the Hub on this machine: the few routes by which the files of one repository are read."""

import hashlib
import http.server
import json
import os
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path


COMMIT = "1" * 40


class Server(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, kind: str, repository: str, revision: str, files: dict[str, bytes], asked: list[str], *request):
        self.about, self.revision, self.files, self.asked = (kind, repository), revision, files, asked
        super().__init__(*request)

    def do_GET(self):
        path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
        kind, repository = self.about
        api = f"/api/{kind}/{repository}"
        resolve = f"/{repository}/resolve/" if kind == "models" else f"/{kind}/{repository}/resolve/"
        revision, _, file = path.removeprefix(resolve).partition("/")
        if path in (api, f"{api}/revision/{COMMIT}", f"{api}/revision/{self.revision}"):
            siblings = [{"rfilename": name} for name in self.files]
            about = {"id": repository, "sha": COMMIT, "siblings": siblings, "tags": []}
            self.reply(200, json.dumps(about).encode())
        elif path.startswith(f"{api}/tree/{COMMIT}"):
            folder = path.removeprefix(f"{api}/tree/{COMMIT}").strip("/")
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in self.files.items()
                if name.rpartition("/")[0] == folder
            ]
            self.reply(200, json.dumps(entries).encode()) if entries else self.not_found()
        elif path.startswith(resolve) and revision in (COMMIT, self.revision) and file in self.files:
            self.asked.append(file)
            content = self.files[file]
            headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            if "Range" in self.headers:
                first, last = self.headers["Range"].removeprefix("bytes=").split("-")
                part = content[int(first) : int(last or len(content)) + 1]
                place = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
                self.reply(206, part, **headers, **{"Content-Range": place})
            else:
                self.reply(200, content, **headers)
        else:
            self.not_found()

    do_HEAD = do_GET

    def reply(self, status: int, content: bytes = b"", **headers):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def not_found(self):
        self.reply(404, **{"X-Error-Code": "EntryNotFound"})

    def log_message(self, *args):
        pass


@contextmanager
def serve(
    kind: str, repository: str, files: dict[str, bytes], home: Path, revision: str = "main"
) -> Iterator[tuple[dict[str, str], list[str]]]:
    """
    Serve one repository.

    Args:
        kind: "models" or "datasets".
        home: cache of the process that reads.
        revision: the only one that there is.

    Yields:
        the environment of a process that reads from here, and the names of the files that it asked for.
    """
    asked = []
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Server, kind, repository, revision, files, asked)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(home)}
    try:
        yield environment | {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}, asked
    finally:
        server.shutdown()
        server.server_close()
