"""A Hub over loopback that real clients download from: models, large files, ranges, and faults."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from pathlib import Path

TOKEN = "hf_canaryReader0123456789abcdef"  # noqa: S105 - the server's own, to be looked for


class LoopbackHub:
    """Repositories that stay as they are; a fault concerns requests whose path it matches."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.faults: list[tuple[str, re.Pattern[str], int]] = []
        self.closing = threading.Event()
        hub = self

        class Handler(_Handler):
            store = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        """Make a commit that becomes ``main``."""
        commits = self.repos.setdefault(repo, {})
        sha = hashlib.sha1(repr((repo, len(commits))).encode()).hexdigest()  # noqa: S324 - a name
        commits[sha] = commits["main"] = dict(files)
        return sha

    def fail(self, fault: str, on: str, times: int = 1) -> None:
        """Let the next requests whose path matches fail."""
        self.faults.append((fault, re.compile(on), times))

    def take_fault(self, path: str) -> str | None:
        for place, (fault, pattern, times) in enumerate(self.faults):
            if times and pattern.search(path):
                self.faults[place] = (fault, pattern, times - 1)
                return fault
        return None

    def environment(self, home: Path) -> dict[str, str]:
        """Variables of a client process."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }


def ids(name: str, data: bytes) -> dict[str, Any]:
    """How the Hub describes a file."""
    sha1 = hashlib.sha1(b"blob %d\0" % len(data) + data)  # noqa: S324 - git's
    entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": sha1.hexdigest()}
    if name.endswith(".safetensors"):
        sha256 = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"sha256": sha256, "oid": sha256, "size": len(data), "pointerSize": 134}
    return entry


class _Handler(BaseHTTPRequestHandler):
    store: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.store.requests.append((self.command, path, self.headers.get("Range")))
        fault = self.store.take_fault(path)
        if fault == "silence":
            self.store.closing.wait()
            self.close_connection = True
        elif fault == "dropped":
            self.close_connection = True
        elif fault == "gated":
            self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif fault is not None and fault.isdecimal():
            self.answer(int(fault), json.dumps({"error": f"no, {TOKEN}"}).encode(), {})
        else:
            self.serve(path, fault)

    def do_HEAD(self) -> None:
        self.do_GET()

    def serve(self, path: str, fault: str | None) -> None:
        """What is asked for, perhaps damaged on the way."""
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self.describe(found[1], found[2] or "main")
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.send_file(found[1], found[2], found[3], fault)
        else:
            self.answer(404, b"{}", {})

    def describe(self, repo: str, revision: str) -> None:
        commits = self.store.repos.get(repo)
        if commits is None or revision not in commits:
            code = "RepoNotFound" if commits is None else "RevisionNotFound"
            self.answer(404, b"{}", {"X-Error-Code": code})
            return
        files = commits[revision]
        siblings = [ids(name, data) for name, data in files.items()]
        info = {"id": repo, "sha": self.sha(repo, revision), "private": False, "tags": []}
        self.answer(200, json.dumps({**info, "siblings": siblings}).encode(), {})

    def sha(self, repo: str, revision: str) -> str:
        commits = self.store.repos[repo]
        if revision != "main":
            return revision
        return next(sha for sha in reversed(commits) if sha != "main" and self.is_main(repo, sha))

    def is_main(self, repo: str, sha: str) -> bool:
        return self.store.repos[repo][sha] == self.store.repos[repo]["main"]

    def send_file(self, repo: str, revision: str, name: str, fault: str | None) -> None:
        data = self.store.repos.get(repo, {}).get(revision, {}).get(name)
        if data is None:
            self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        entry = ids(name, data)
        etag = entry["lfs"]["oid"] if "lfs" in entry else entry["blobId"]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": self.sha(repo, revision)}
        if fault == "flipped":
            data = data[:-1] + bytes([data[-1] ^ 1])
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if found:
            self.answer(206, data[int(found[1]) : int(found[2]) + 1], headers)
        else:
            self.answer(200, data, headers, cut=fault == "truncated")

    def answer(
        self, status: int, body: bytes, headers: dict[str, str], *, cut: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            try:
                self.wfile.write(body[: len(body) // 2] if cut else body)
            except ConnectionError:
                self.close_connection = True
        self.close_connection = self.close_connection or cut
