# Licensed under the Apache License, Version 2.0.
"""Stand-ins for the Hub on this machine: one repository to read from, and a Hub that takes uploads."""

import base64
import hashlib
import http.server
import json
import os
import re
import socket
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath

import yaml


COMMIT = "1" * 40


class Server(http.server.BaseHTTPRequestHandler):
    """Repositories to read from, by kind ("models" or "datasets") and name."""

    protocol_version = "HTTP/1.1"

    def __init__(
        self, repositories: dict[tuple[str, str], dict[str, bytes]], revision: str, asked: list[str], *request
    ):
        self.repositories, self.revisions, self.asked = repositories, (COMMIT, revision), asked
        super().__init__(*request)

    def do_GET(self):
        address = urllib.parse.urlparse(self.path)
        path = urllib.parse.unquote(address.path)
        for (kind, repository), files in self.repositories.items():
            api = f"/api/{kind}/{repository}"
            resolve = f"/{repository}/resolve/" if kind == "models" else f"/{kind}/{repository}/resolve/"
            if path in (api, *(f"{api}/revision/{name}" for name in self.revisions)):
                siblings = [{"rfilename": name} for name in files]
                about = {"id": repository, "sha": COMMIT, "siblings": siblings, "tags": []}
                return self.reply(200, json.dumps(about).encode())
            for revision in self.revisions:
                tree = f"{api}/tree/{revision}"
                if path == tree or path.startswith(f"{tree}/"):
                    recursive = "recursive=true" in address.query.lower()
                    return self.tree(files, path.removeprefix(tree).strip("/"), recursive)
                file = path.removeprefix(f"{resolve}{revision}/")
                if path.startswith(f"{resolve}{revision}/") and file in files:
                    self.asked.append(file)
                    return self.file(files[file])
        return self.not_found()

    def tree(self, files: dict[str, bytes], folder: str, recursive: bool):
        inside = [name for name in files if not folder or name.startswith(f"{folder}/")]
        entries = [
            {"type": "file", "path": name, "size": len(files[name]), "oid": hashlib.sha1(files[name]).hexdigest()}
            for name in inside
            if recursive or name.rpartition("/")[0] == folder
        ]
        parents = {str(parent) for name in inside for parent in PurePosixPath(name).parents} - {".", folder}
        folders = [name for name in parents if recursive or name.rpartition("/")[0] == folder]
        entries += [{"type": "directory", "path": name, "oid": COMMIT, "size": 0} for name in folders]
        self.reply(200, json.dumps(entries).encode()) if entries else self.not_found()

    def file(self, content: bytes):
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if "Range" in self.headers:
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            part = content[int(first) : int(last or len(content)) + 1]
            where = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
            self.reply(206, part, **headers, **{"Content-Range": where})
        else:
            self.reply(200, content, **headers)

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
    """One repository, as [`serve_all`] does."""
    with serve_all({(kind, repository): files}, home, revision) as served:
        yield served


@contextmanager
def serve_all(
    repositories: dict[tuple[str, str], dict[str, bytes]], home: Path, revision: str = "main"
) -> Iterator[tuple[dict[str, str], list[str]]]:
    """
    Serve repositories.

    Args:
        repositories: the files of each, by its kind ("models" or "datasets") and name.
        home: cache of the process that reads.
        revision: the only one that there is.

    Yields:
        the environment of a process that reads from here, and the names of the files that it asked for.
    """
    asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, repositories, revision, asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(home)}
    try:
        yield environment | {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}, asked
    finally:
        server.shutdown()
        server.server_close()


class Hub:
    """
    A Hub on this machine that also takes uploads: repositories with branches, private ones, tokens that may read or
    write, large files in one part or several. It speaks the calls that `huggingface_hub` makes, xet left out.
    """

    def __init__(self, home: Path):
        self.tokens = {"hf_writer": ("user", "write"), "hf_reader": ("user", "read"), "hf_other": ("other", "write")}
        self.repositories: dict[str, dict] = {}
        self.collections: dict[str, dict] = {}
        """By their slug."""
        self.objects: dict[str, bytes] = {}
        """Large files, by their SHA-256."""
        self.parts: dict[str, dict[int, bytes]] = {}
        self.part_size: int | None = None
        """In bytes; None: large files come in one part."""
        self.calls: list[tuple[str, str]] = []
        self.faults: list[dict] = []
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_HubHandler, self))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        self.environment = environment | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
        }
        """Of a process that works with this Hub; a token is not in it."""

    def __enter__(self) -> "Hub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fail(self, method: str, path: str, status: int | None, times: int = 1, **headers: str) -> None:
        """
        Let the next calls fail whose path contains `path`: with this status; None: the connection breaks off in the
        middle of the body; 0: what was asked is done, but the connection breaks off before the answer.
        """
        self.faults.append({"method": method, "path": path, "status": status, "times": times, "headers": headers})

    def make(self, repository: str, private: bool = True) -> None:
        first = {
            "id": "0" * 40,
            "files": {".gitattributes": b"*.safetensors filter=lfs\n"},
            "message": "initial commit",
        }
        self.repositories[repository] = {"private": private, "branches": {"main": [first]}, "tags": {}, "gated": False}

    def files(self, repository: str, revision: str = "main") -> dict[str, bytes]:
        """Those of the last commit of a branch, or of a commit."""
        commit = self.commit(repository, revision)
        return commit["files"] if commit else {}

    def commit(self, repository: str, revision: str) -> dict | None:
        branches = self.repositories[repository]["branches"]
        if revision in branches:
            return branches[revision][-1]
        revision = self.repositories[repository]["tags"].get(revision, revision)
        return next((item for commits in branches.values() for item in commits if item["id"] == revision), None)

    def commits(self, repository: str, branch: str = "main") -> list[str]:
        """The messages of the commits of a branch, but for the one that made the repository."""
        return [item["message"] for item in self.repositories[repository]["branches"][branch][1:]]


class _HubHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *request):
        self.hub = hub
        super().__init__(*request)

    def handle_call(self):
        self.path_only = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
        self.query = urllib.parse.parse_qs(urllib.parse.urlparse(self.path).query)
        self.lost = False
        self.hub.calls.append((self.command, self.path_only))
        fault = self.fault()
        if fault and fault["status"] is None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            return self.break_off()
        self.body = self.read_body()
        if fault and fault["status"]:
            return self.answer(fault["status"], {"error": "the Hub of this test says no"}, **fault["headers"])
        self.lost = fault is not None
        for method, pattern, function in _ROUTES:
            match = re.fullmatch(pattern, self.path_only)
            if match and self.command in method:
                return function(self, *match.groups())
        self.answer(404, {"error": f"no such call: {self.path_only}"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_call

    def fault(self) -> dict | None:
        for fault in self.hub.faults:
            if fault["times"] and fault["method"] == self.command and fault["path"] in self.path_only:
                fault["times"] -= 1
                return fault
        return None

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def break_off(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def answer(self, status: int, content: dict | list | bytes = b"", **headers: str):
        if self.lost:
            return self.break_off()
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        if isinstance(content, dict) and "error" in content:
            headers.setdefault("X-Error-Message", content["error"])
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # Who may do what

    def user(self) -> tuple[str, str] | None:
        return self.hub.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def readable(self, repository: str) -> dict | None:
        """The repository, if it is there and may be seen; else the answer is given."""
        stored, user = self.hub.repositories.get(repository), self.user()
        if stored and (not stored["private"] or user and user[0] == repository.partition("/")[0]):
            return stored
        self.answer(404, {"error": "Repository not found"}, **{"X-Error-Code": "RepoNotFound"})
        return None

    def writable(self, repository: str) -> dict | None:
        stored, user = self.readable(repository), self.user()
        if stored and not (user and user[1] == "write" and user[0] == repository.partition("/")[0]):
            self.answer(403, {"error": f"no right to write to {repository}"})
            return None
        return stored

    # Calls

    def whoami(self):
        if self.user() is None:
            return self.answer(401, {"error": "Invalid credentials in Authorization header"})
        name, role = self.user()
        access = {"accessToken": {"displayName": "test", "role": role}}
        self.answer(200, {"type": "user", "name": name, "orgs": [], "auth": access})

    def create(self):
        asked = json.loads(self.body)
        user, namespace = self.user(), asked.get("organization") or self.user()[0]
        name = f"{namespace}/{asked['name']}"
        if user[1] != "write" or namespace != user[0]:
            return self.answer(403, {"error": f"You don't have the rights to create a model under {namespace}"})
        if name in self.hub.repositories:
            return self.answer(409, {"error": "You already created this model repo"})
        self.hub.make(name, private=asked.get("visibility") == "private")
        self.answer(200, {"url": f"{self.hub.endpoint}/{name}", "name": name, "id": name})

    def about(self, repository: str, revision: str | None = None):
        stored = self.readable(repository)
        if stored is None:
            return
        commit = self.hub.commit(repository, revision or "main")
        if commit is None:
            return self.answer(404, {"error": "no such revision"}, **{"X-Error-Code": "RevisionNotFound"})
        siblings = [{"rfilename": name} for name in sorted(commit["files"])]
        self.answer(
            200,
            {"id": repository, "sha": commit["id"], "private": stored["private"], "siblings": siblings, "tags": []},
        )

    def auth_check(self, repository: str):
        if self.writable(repository):
            self.answer(200)

    def branch(self, repository: str, name: str):
        stored = self.writable(repository)
        if stored is None:
            return
        if name in stored["branches"]:
            return self.answer(409, {"error": "Reference already exists"})
        stored["branches"][name] = list(stored["branches"]["main"])
        self.answer(201, {})

    def refs(self, repository: str):
        stored = self.readable(repository)
        if stored is None:
            return
        branches = [(name, f"refs/heads/{name}", commits[-1]["id"]) for name, commits in stored["branches"].items()]
        tags = [(name, f"refs/tags/{name}", commit) for name, commit in stored["tags"].items()]
        named = [
            [{"name": name, "ref": ref, "targetCommit": commit} for name, ref, commit in part]
            for part in (branches, tags)
        ]
        self.answer(200, {"branches": named[0], "tags": named[1], "converts": []})

    def tag(self, repository: str, revision: str):
        stored = self.writable(repository)
        if stored is None:
            return
        name = json.loads(self.body)["tag"]
        if name in stored["tags"]:
            return self.answer(409, {"error": "Reference already exists"})
        stored["tags"][name] = self.hub.commit(repository, revision)["id"]
        self.answer(201, {})

    def settings(self, repository: str):
        stored = self.writable(repository)
        if stored is None:
            return
        stored["gated"] = json.loads(self.body).get("gated", stored["gated"])
        self.answer(200, {})

    def make_collection(self):
        asked, user = json.loads(self.body), self.user()
        owner, title = asked["namespace"], asked["title"]
        if user is None or user[1] != "write" or owner != user[0]:
            return self.answer(403, {"error": f"You don't have the rights to create a collection under {owner}"})
        for slug, existing in self.hub.collections.items():
            if (existing["title"], existing["owner"]["name"]) == (title, owner):
                return self.answer(409, {"error": "This collection exists already", "slug": slug})
        slug = f"{owner}/{re.sub(r'[^a-z0-9]+', '-', title.lower())}-{len(self.hub.collections):024x}"
        fixed = {"lastUpdated": "2026-11-26T00:00:00.000Z", "position": 0, "theme": "orange", "upvotes": 0}
        owner_of = {"name": owner, "type": "user"}
        about = {"slug": slug, "title": title, "private": asked["private"], "owner": owner_of, "items": []}
        self.hub.collections[slug] = about | fixed
        self.answer(200, self.hub.collections[slug])

    def collection(self, slug: str):
        collection = self.hub.collections.get(slug)
        self.answer(200, collection) if collection else self.answer(404, {"error": "no such collection"})

    def collection_item(self, slug: str):
        asked, collection = json.loads(self.body), self.hub.collections[slug]
        if self.readable(asked["item"]["id"]) is None:
            return
        if any(item["id"] == asked["item"]["id"] for item in collection["items"]):
            return self.answer(409, {"error": "Item is already in the collection"})
        number = len(collection["items"])
        item = asked["item"] | {"_id": f"{number:024x}", "position": number, "note": {"text": asked.get("note")}}
        collection["items"].append(item)
        self.answer(200, collection)

    def tree(self, repository: str, revision: str, folder: str | None):
        if self.readable(repository) is None:
            return
        commit, under = self.hub.commit(repository, revision), f"{(folder or '').strip('/')}/".lstrip("/")
        if commit is None:
            return self.answer(404, {"error": "no such revision"}, **{"X-Error-Code": "RevisionNotFound"})
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = [
            {"type": "file", "path": name, "size": len(content), "oid": _git_hash(content)}
            for name, content in sorted(commit["files"].items())
            if name.startswith(under) and (recursive or "/" not in name.removeprefix(under))
        ]
        if under and not entries:
            return self.answer(404, {"error": "no such folder"}, **{"X-Error-Code": "EntryNotFound"})
        self.answer(200, entries)

    def validate(self):
        """The Hub's own rules are not public; here the metadata must be YAML, and an object."""
        content = json.loads(self.body)["content"]
        block = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        errors = []
        try:
            data = yaml.safe_load(block.group(1)) if block else {}
            if not isinstance(data, dict):
                errors.append("the metadata are no object")
            elif not isinstance(data.get("license", ""), str):
                errors.append("license must be a text")
        except yaml.YAMLError as error:
            errors.append(str(error))
        answer = {"errors": [{"message": item} for item in errors], "warnings": []}
        self.answer(400 if errors else 200, answer)

    def preupload(self, repository: str, revision: str):
        if self.writable(repository) is None:
            return
        files = self.hub.files(repository, revision)
        answer = []
        for item in json.loads(self.body)["files"]:
            large = item["path"].endswith((".safetensors", ".png"))
            existing = files.get(item["path"])
            oid = None if existing is None else hashlib.sha256(existing).hexdigest() if large else _git_hash(existing)
            mode = "lfs" if large else "regular"
            answer.append({"path": item["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer(200, {"files": answer})

    def large_files(self, repository: str):
        if self.writable(repository) is None:
            return
        answer = []
        for item in json.loads(self.body)["objects"]:
            entry, url = dict(item), f"{self.hub.endpoint}/lfs/{item['oid']}"
            if item["oid"] not in self.hub.objects:
                header = {}
                if self.hub.part_size:
                    number = -(-item["size"] // self.hub.part_size)
                    header = {"chunk_size": str(self.hub.part_size)}
                    header |= {str(i): f"{url}/part/{i}" for i in range(1, number + 1)}
                verify = {"href": f"{url}/verify"}
                entry["actions"] = {"upload": {"href": url, "header": header}, "verify": verify}
            answer.append(entry)
        self.answer(200, {"objects": answer})

    def put(self, oid: str):
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.answer(400, {"error": "the content is not of this sum"})
        self.hub.objects[oid] = self.body
        self.answer(200)

    def put_part(self, oid: str, number: str):
        self.hub.parts.setdefault(oid, {})[int(number)] = self.body
        self.answer(200, ETag=f'"{number}"')

    def complete(self, oid: str):
        asked = [item["partNumber"] for item in json.loads(self.body)["parts"]]
        self.body = b"".join(self.hub.parts[oid][number] for number in asked)
        self.put(oid)

    def verify(self, oid: str):
        known = len(self.hub.objects.get(oid, b"")) == json.loads(self.body)["size"]
        self.answer(200 if known else 404, {} if known else {"error": "not there"})

    def take_commit(self, repository: str, branch: str):
        stored = self.writable(repository)
        if stored is None:
            return
        lines = [json.loads(line) for line in self.body.splitlines()]
        files, message = dict(self.hub.files(repository, branch)), ""
        for line in lines:
            kind, value = line["key"], line["value"]
            if kind == "header":
                message = value["summary"]
            elif kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile" and value["oid"] in self.hub.objects:
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif kind == "deletedFile":
                del files[value["path"]]
            else:
                return self.answer(400, {"error": f"cannot take {kind} {value.get('path')}"})
        commit = hashlib.sha1(self.body).hexdigest()
        stored["branches"][branch].append({"id": commit, "files": files, "message": message})
        url = f"{self.hub.endpoint}/{repository}/commit/{commit}"
        self.answer(200, {"success": True, "commitOid": commit, "commitUrl": url})

    def resolve(self, repository: str, revision: str, name: str):
        if self.readable(repository) is None:
            return
        commit = self.hub.commit(repository, revision)
        if commit is None:
            return self.answer(404, {"error": "no such revision"}, **{"X-Error-Code": "RevisionNotFound"})
        headers = {"X-Repo-Commit": commit["id"]}
        if name not in commit["files"]:
            return self.answer(404, {"error": "no such file"}, **headers | {"X-Error-Code": "EntryNotFound"})
        content = commit["files"][name]
        self.answer(200, content, ETag=f'"{hashlib.sha256(content).hexdigest()}"', **headers)

    def log_message(self, *args):
        pass


_REPOSITORY = r"([^/]+/[^/]+)"
_ROUTES = [
    ("GET", "/api/whoami-v2", _HubHandler.whoami),
    ("POST", "/api/repos/create", _HubHandler.create),
    ("POST", "/api/validate-yaml", _HubHandler.validate),
    ("POST", "/api/collections", _HubHandler.make_collection),
    ("GET", "/api/collections/([^/]+/[^/]+)", _HubHandler.collection),
    ("POST", "/api/collections/([^/]+/[^/]+)/items?", _HubHandler.collection_item),
    ("GET", f"/api/models/{_REPOSITORY}", _HubHandler.about),
    ("GET", f"/api/models/{_REPOSITORY}/revision/(.+)", _HubHandler.about),
    ("GET", f"/api/models/{_REPOSITORY}/auth-check/write", _HubHandler.auth_check),
    ("GET", f"/api/models/{_REPOSITORY}/tree/([^/]+)(/.*)?", _HubHandler.tree),
    ("POST", f"/api/models/{_REPOSITORY}/branch/(.+)", _HubHandler.branch),
    ("GET", f"/api/models/{_REPOSITORY}/refs", _HubHandler.refs),
    ("POST", f"/api/models/{_REPOSITORY}/tag/(.+)", _HubHandler.tag),
    ("PUT", f"/api/models/{_REPOSITORY}/settings", _HubHandler.settings),
    ("POST", f"/api/models/{_REPOSITORY}/preupload/(.+)", _HubHandler.preupload),
    ("POST", f"/api/models/{_REPOSITORY}/commit/(.+)", _HubHandler.take_commit),
    ("POST", rf"/{_REPOSITORY}\.git/info/lfs/objects/batch", _HubHandler.large_files),
    ("PUT", "/lfs/([0-9a-f]+)", _HubHandler.put),
    ("PUT", r"/lfs/([0-9a-f]+)/part/(\d+)", _HubHandler.put_part),
    ("POST", "/lfs/([0-9a-f]+)", _HubHandler.complete),
    ("POST", "/lfs/([0-9a-f]+)/verify", _HubHandler.verify),
    (("GET", "HEAD"), f"/{_REPOSITORY}/resolve/([^/]+)/(.+)", _HubHandler.resolve),
]


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
