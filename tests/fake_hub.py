"""A server on this machine that speaks as much of the hub's and CivitAI's API as is used here.

Files of a repository that are 1 KiB or more are "LFS files", as on the hub: ``resolve`` redirects
to another host (``localhost`` instead of ``127.0.0.1``), and they are uploaded before the commit.
Every request is noted, and a fault can be laid on any path.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

LFS: Final = 1024  # bytes from which a file of a repository is an LFS file

Tree = Mapping[str, bytes]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Seen:
    """A request as it arrived."""

    method: str
    host: str
    path: str
    headers: Mapping[str, str]

    @property
    def token(self) -> str:
        return self.headers.get("authorization", "")


@dataclass
class Fault:
    """What happens to the next ``times`` requests of a path, instead of the right answer.

    With ``cut`` the right answer begins, and the connection ends after so many bytes of its body.
    """

    status: int = 500
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    times: int = 10**6


@dataclass
class Repo:
    """A repository: every commit's files, and the last commit of each branch."""

    commits: dict[str, Tree] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Tree, branch: str = "main") -> str:
        """Adds a commit with all files of the one before and ``files``; its name."""
        before = self.commits.get(self.branches.get(branch, ""), {})
        tree = {**before, **files}
        text = json.dumps([len(self.commits), sorted((k, sha256(v)) for k, v in tree.items())])
        name = hashlib.sha1(text.encode()).hexdigest()
        self.commits[name] = tree
        self.branches[branch] = name
        return name

    def find(self, revision: str) -> str:
        return self.branches.get(revision) or (revision if revision in self.commits else "")


class FakeHub(ThreadingHTTPServer):
    """The server. Use it as a context manager; ``url`` is its address."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.types: dict[str, str] = {}
        self.repos: dict[str, Repo] = {}
        self.versions: dict[str, Any] = {}
        self.uploads: dict[str, bytes] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.seen: list[Seen] = []
        self.ranges = True
        self.weak = False  # whether ETags vouch for the bytes
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def elsewhere(self) -> str:
        """The same server under another host's name."""
        return f"http://localhost:{self.server_port}"

    def __enter__(self) -> FakeHub:
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def fault(self, path: str, **fields: Any) -> None:
        self.faults.setdefault(path, []).append(Fault(**fields))

    def next_fault(self, path: str) -> Fault | None:
        with self.lock:
            queue = self.faults.get(path, [])
            while queue and queue[0].times <= 0:
                queue.pop(0)
            if queue:
                queue[0].times -= 1
            return queue[0] if queue else None

    def asked(self, path: str) -> list[Seen]:
        """The requests of a path."""
        return [each for each in self.seen if each.path == path]

    def repo(self, name: str, files: Tree) -> str:
        """Makes a repository with one commit; its name."""
        return self.repos.setdefault(name, Repo()).commit(files)

    def civitai(self, version: int, data: bytes, **changes: Any) -> None:
        """Lists a version with one primary file."""
        file = {
            "id": 1,
            "name": "style.safetensors",
            "type": "Model",
            "primary": True,
            "hashes": {"SHA256": sha256(data).upper(), "AutoV2": sha256(data)[:10].upper()},
            "downloadUrl": f"{self.url}/api/download/models/{version}",
        }
        listing = {
            "id": version,
            "modelId": 77,
            "baseModel": "SDXL 1.0",
            "trainedWords": ["in the style of x"],
            "air": f"urn:air:sdxl:lora:civitai:77@{version}",
            "files": [file],
        }
        self.versions[str(version)] = {**listing, **changes}
        self.files[f"/api/download/models/{version}"] = data


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # which waits 40 ms between an answer's head and its body
    server: FakeHub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        self.query, path = parse_qs(parts.query), unquote(parts.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {key.lower(): value for key, value in self.headers.items()}
        self.server.seen.append(Seen(self.command, headers["host"], path, headers))
        self.fault = self.server.next_fault(path)
        if self.fault is not None and self.fault.cut is None:
            self._send(self.fault.status, self.fault.body, self.fault.headers)
        elif path in self.server.files:
            kind = self.server.types.get(path, "application/octet-stream")
            self._file(self.server.files[path], {"Content-Type": kind})
        else:
            self._api(path.strip("/").split("/"))

    def _api(self, parts: list[str]) -> None:
        match parts:
            case ["api", "v1", "model-versions", version]:
                found = self.server.versions.get(version)
                self._json(found or {"error": f"No model with id {version}"}, 200 if found else 404)
            case ["cdn", oid] if oid in self.server.uploads:
                self._file(self.server.uploads[oid], {})
            case ["upload", oid] if self.command == "PUT":
                self.server.uploads[oid] = self.body
                self._json({})
            case ["api", "models", org, name, *rest]:
                self._repo_api(f"{org}/{name}", rest)
            case [org, name, "resolve", revision, *path]:
                self._resolve(f"{org}/{name}", revision, "/".join(path))
            case [org, name, "info", "lfs", "objects", "batch"] if name.endswith(".git"):
                self._json({"transfer": "basic", "objects": list(map(self._slot, self._asked()))})
            case _:
                self._json({"error": "no such page"}, 404)

    def _asked(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.body)["objects"]
        return found

    def _slot(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["oid"] in self.server.uploads:
            return row
        href = f"{self.server.url}/upload/{row['oid']}"
        return {**row, "actions": {"upload": {"href": href, "header": {}}}}

    def _repo_api(self, name: str, rest: list[str]) -> None:
        repo = self.server.repos.get(name)
        if repo is None:
            self._json({"error": "Repository not found"}, 401, {"X-Error-Code": "RepoNotFound"})
            return
        what, revision = (rest or ["revision"])[0], "/".join(rest[1:]) or "main"
        commit = repo.find(revision)
        if not commit:
            self._json({"error": "no revision"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return
        tree = repo.commits[commit]
        if what == "revision":
            rows = [self._sibling(path, tree[path]) for path in sorted(tree)]
            self._json({"id": name, "modelId": name, "sha": commit, "siblings": rows, "tags": []})
        elif what == "paths-info":
            asked = parse_qs(self.body.decode())["paths"]
            self._json([_row(path, tree[path]) for path in asked if path in tree])
        elif what == "preupload":
            files = json.loads(self.body)["files"]
            self._json({"files": [_upload_mode(row) for row in files]})
        elif what == "commit":
            self._commit(name, repo, revision)

    def _sibling(self, path: str, data: bytes) -> dict[str, Any]:
        if "blobs" not in self.query:
            return {"rfilename": path}
        row = _row(path, data)
        lfs = {"lfs": {"sha256": sha256(data), "size": len(data), "pointerSize": 130}}
        blob = {"rfilename": path, "size": len(data), "blobId": row["oid"]}
        return blob | (lfs if "lfs" in row else {})

    def _commit(self, name: str, repo: Repo, branch: str) -> None:
        head, *rows = (json.loads(line) for line in self.body.splitlines())
        with self.server.lock:
            if head["value"].get("parentCommit") != repo.branches[branch]:
                error = "A commit has happened since. Please refresh and try again."
                self._json({"error": error}, 412)
                return
            files = {}
            for row in rows:
                value = row["value"]
                files[value["path"]] = (
                    self.server.uploads[value["oid"]]
                    if row["key"] == "lfsFile"
                    else base64.b64decode(value["content"])
                )
            made = repo.commit(files, branch)
        url = f"{self.server.url}/{name}/commit/{made}"
        self._json({"success": True, "commitOid": made, "commitUrl": url})

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repo = self.server.repos[name]
        commit = repo.find(revision)
        if path not in repo.commits[commit]:
            self._json({"error": "no entry"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        data = repo.commits[commit][path]
        headers = {"X-Repo-Commit": commit, "X-Linked-Size": str(len(data))}
        if len(data) < LFS:
            self._file(data, {**headers, "Content-Type": "text/plain; charset=utf-8"})
            return
        self.server.uploads[sha256(data)] = data
        headers["X-Linked-ETag"] = f'"{sha256(data)}"'
        headers["Location"] = f"{self.server.elsewhere}/cdn/{sha256(data)}"
        self._send(302, b"", headers)

    def _file(self, data: bytes, headers: Mapping[str, str]) -> None:
        etag, status = f'"{sha256(data)[:16]}"', 200
        etag = f"W/{etag}" if self.server.weak else etag
        headers = {"ETag": etag, **headers}
        asked = self.headers.get("Range")
        if asked and self.server.ranges and self.headers.get("If-Range", etag) == etag:
            start, status = int(asked.removeprefix("bytes=").rstrip("-")), 206
            content_range = f"bytes {start}-{len(data) - 1}/{len(data)}"
            headers, data = {**headers, "Content-Range": content_range}, data[start:]
        self._send(status, data, headers)

    def _json(
        self, value: object, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        kind = {"Content-Type": "application/json; charset=utf-8"}
        self._send(status, json.dumps(value).encode(), {**kind, **(headers or {})})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = None if self.fault is None else self.fault.cut
        self.wfile.write(body if cut is None else body[:cut])
        self.close_connection = self.close_connection or cut is not None


def _row(path: str, data: bytes) -> dict[str, Any]:
    row = {"type": "file", "path": path, "size": len(data)}
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    lfs = {"oid": sha256(data), "size": len(data), "pointerSize": 130}
    return {**row, "oid": oid} | ({"lfs": lfs} if len(data) >= LFS else {})


def _upload_mode(row: Mapping[str, Any]) -> dict[str, Any]:
    mode = "lfs" if row["size"] >= LFS else "regular"
    return {"path": row["path"], "uploadMode": mode, "shouldIgnore": False}


def point_at(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes ``server`` the hub and CivitAI: no proxy, no token, no waiting, no real network."""
    from huggingface_hub import constants

    from lcm_arith.registry.downloads import http

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "CIVITAI_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("LCM_ARITH_CIVITAI", server.url)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")  # for the hub's own client
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/no/such/token")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/no/such/cache")
    monkeypatch.setattr(http, "pause", lambda seconds: None)
    _new_session()


@cache
def _new_session() -> None:
    """The hub's client, made anew without the proxies that it may have been started with."""
    import huggingface_hub

    huggingface_hub.close_session()
