# Licensed under the Apache License, Version 2.0.
"""A stand-in for the server of the National Library of Medicine, with archives like those of Open-I."""

import functools
import http.server
import io
import re
import tarfile
import threading
from contextlib import contextmanager
from pathlib import Path


class Server(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, with ranges; it may break off after some bytes."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Range")))
        path = Path(self.directory, self.path.strip("/"))
        if not path.is_file():
            return self.send_error(404)
        content, first = path.read_bytes(), 0
        if self.headers.get("Range") and self.server.ranges:
            first = int(re.match(r"bytes=(\d+)-", self.headers["Range"])[1])
            if first >= len(content):
                return self.send_error(416)
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        self.wfile.write(content[first : first + self.server.breaks_off])

    def log_message(self, *args):
        pass


@contextmanager
def serving(folder: Path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=str(folder)))
    server.asked, server.ranges, server.breaks_off = [], True, 1 << 40
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown(), server.server_close()


def pack(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
