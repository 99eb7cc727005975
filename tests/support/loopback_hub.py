"""A loopback Hub server for real clients: repositories, commits, large files, ranges, faults."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import parse_qs, unquote, urlsplit

from server_faults import Faulty

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from forks import Forks

TOKEN = "hf_canaryWriter0123456789abcdef"  # noqa: S105 - made up; tests search for it in outputs
READER = "hf_canaryReader0123456789abcdef"
SIGNATURE = "canarySignature0123456789"

UPLOADED = "2026-11-28T12:00:00.000Z"
"""When files of a bucket were uploaded."""

NAMED = "org/delta"
"""Id of the delta on the Hub."""

Files = dict[str, bytes]
Answer = dict[str, Any] | list[dict[str, Any]]


class Request(NamedTuple):
    """A client's request: ``path`` has no query, ``nbytes`` is the size of its body."""

    method: str
    path: str
    range: str | None
    nbytes: int


@dataclass
class Repo:
    """A repository: the files of each commit, and the commit of each branch."""

    private: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def add(self, ref: str, files: Files) -> str:
        content = repr((len(self.commits), self.refs.get(ref), sorted(files)))
        sha = hashlib.sha1(content.encode()).hexdigest()  # noqa: S324 - a name
        self.commits[sha] = dict(files)
        self.refs[ref] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        sha = self.refs.get(revision, revision)
        return sha if sha in self.commits else None


@dataclass
class Bucket:
    """A bucket: the files that it has now."""

    files: Files = field(default_factory=dict)
    private: bool = False


class LoopbackHub(Faulty):
    """Repositories in memory, what was asked for, and what goes wrong.

    Args:
        port: Where it listens; by default where nothing does.
        forks: Makes clients of what listens there, for :func:`rlsparse_forked`.
    """

    def __init__(self, port: int = 0, forks: Forks | None = None) -> None:
        super().__init__()
        self.forks = forks
        self.repos: dict[str, Repo] = {}
        self.buckets: dict[str, Bucket] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.leaks: list[str] = []
        self.closing = threading.Event()
        self.changing = threading.Lock()
        self.before_commit: Callable[[], object] = lambda: None
        hub = self

        class Handler(_Handler):
            store = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def commit(self, repo: str, files: Files, *, private: bool = False) -> str:
        """Add a commit to ``main``."""
        known = self.repos.setdefault(repo, Repo(private))
        return known.add("main", files)

    def files(self, repo: str, revision: str = "main") -> Files:
        """Return the files of a revision."""
        return self.repos[repo].commits[self.repos[repo].refs[revision]]

    @property
    def sent(self) -> int:
        """Return the number of bytes that clients sent."""
        return sum(request.nbytes for request in self.requests)

    def environment(self, home: Path, token: str = TOKEN) -> dict[str, str]:
        """Return the environment variables of a client process."""
        return client_environment(self.port, home, token)


def client_environment(port: int, home: Path, token: str = TOKEN) -> dict[str, str]:
    """Return the environment of a client of this endpoint; it reads most variables on import."""
    return {
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_HOME": str(home),
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def rlsparse(
    hub: LoopbackHub, home: Path, *arguments: str | Path, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run the command as a client of the Hub, and require that it prints no secret."""
    result = subprocess.run(
        [sys.executable, "-P", "-m", "rlsparse_store", *map(str, arguments)],
        env={"PATH": os.defpath, **hub.environment(home), **more},
        capture_output=True,
        check=False,
        encoding="utf-8",
        timeout=100,
    )
    return without_secrets(result)


def rlsparse_forked(
    hub: LoopbackHub, home: Path, *arguments: str | Path, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run the command in a process forked from one that has imported the client, if possible."""
    if hub.forks is None or any(name.startswith("HF_") for name in more):
        return rlsparse(hub, home, *arguments, **more)
    env = {"PATH": os.defpath, **hub.environment(home), **more}
    return without_secrets(hub.forks.run_module("rlsparse_store", *arguments, env=env))


def without_secrets(
    result: subprocess.CompletedProcess[str],
) -> subprocess.CompletedProcess[str]:
    for secret in (TOKEN, READER, SIGNATURE):
        assert secret not in result.stdout + result.stderr
    return result


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".png"))


def ids(name: str, data: bytes) -> dict[str, Any]:
    """Return the Hub's description of a file."""
    sha1 = hashlib.sha1(b"blob %d\0" % len(data) + data)  # noqa: S324 - git's
    entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": sha1.hexdigest()}
    if is_large(name):
        sha256 = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"sha256": sha256, "oid": sha256, "size": len(data), "pointerSize": 134}
    return entry


def tree_item(name: str, data: bytes) -> dict[str, Any]:
    """Return the Hub's description of a file in a folder listing."""
    entry = ids(name, data)
    lfs = {"lfs": entry["lfs"]} if "lfs" in entry else {}
    return {"type": "file", "path": name, "size": len(data), "oid": entry["blobId"], **lfs}


def bucket_item(name: str, data: bytes) -> dict[str, Any]:
    """Return the Hub's description of a file in a bucket."""
    content = hashlib.sha256(b"xet" + data).hexdigest()
    entry = {"type": "file", "path": name, "size": len(data), "xetHash": content}
    return {**entry, "mtime": UPLOADED, "uploadedAt": UPLOADED}


_ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("POST", r"/api/models/([^/]+/[^/]+)/preupload/(.+)", "preupload"),
    ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/upload/([0-9a-f]{64})", "put"),
    ("POST", r"/verify/([0-9a-f]{64})", "verify"),
    ("POST", r"/api/models/([^/]+/[^/]+)/commit/(.+)", "commit"),
    ("POST", r"/api/models/([^/]+/[^/]+)/branch/(.+)", "branch"),
    ("GET", r"/api/models/([^/]+/[^/]+)/refs", "refs"),
    ("GET", r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/.*)?", "tree"),
    ("POST", r"/api/models/([^/]+/[^/]+)/paths-info/(.+)", "paths_info"),
    ("GET", r"/api/models/([^/]+/[^/]+)/revision/(.+)", "describe"),
    ("GET", r"/api/models/([^/]+/[^/]+)", "describe"),
    ("GET", r"/([^/]+/[^/]+)/resolve/((?:refs/[^/]+/)?[^/]+)/(.+)", "resolve"),
    ("GET", r"/large/([^/]+/[^/]+)/resolve/[^/]+/(.+)", "send_large"),
    ("GET", r"/api/buckets/([^/]+/[^/]+)", "bucket_info"),
    ("GET", r"/api/buckets/([^/]+/[^/]+)/tree(?:/(.*))?", "bucket_tree"),
    ("POST", r"/api/buckets/([^/]+/[^/]+)/paths-info", "bucket_paths"),
    ("GET", r"/buckets/([^/]+/[^/]+)/resolve/(.+)", "bucket_resolve"),
    ("GET", r"/xet/([^/]+/[^/]+)/([0-9a-f]{64})/(.+)", "send_xet"),
]


class Refused(Exception):  # noqa: N818 - a response, not a failure of the server
    """A response that refuses a request."""

    def __init__(self, status: int, code: str = "", message: str = "", **more: str) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.headers = {"X-Error-Code": code} if code else {}
        self.body = json.dumps({"error": message or f"no, {TOKEN}", **more}).encode()


class _Handler(BaseHTTPRequestHandler):
    store: LoopbackHub
    protocol_version = "HTTP/1.1"
    body = b""
    fault: str | None = None

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        asked = self.headers.get("Range")
        self.fault = self.store.take_fault(f"{self.command} {path}")
        if self.fault == "dropped before":
            self.close_connection = True
            return
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self.read_chunked()
        self.store.requests.append(Request(self.command, path, asked, len(self.body)))
        if self.fault == "silence":
            self.store.closing.wait()
            self.close_connection = True
        elif self.fault == "dropped":
            self.close_connection = True
        elif self.fault == "gated":
            self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif self.fault == "quota":
            self.answer(403, b'{"error": "Private repository storage limit reached"}', {})
        elif self.fault is not None and self.fault.isdecimal():
            refused = Refused(int(self.fault))
            self.answer(refused.status, refused.body, refused.headers)
        else:
            self.route(path)

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 - names of http.server

    def read_chunked(self) -> bytes:
        parts = []
        while length := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(length))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def route(self, path: str) -> None:
        """Send a response, possibly with a fault."""
        method = "GET" if self.command == "HEAD" else self.command
        for wanted, pattern, name in _ROUTES:
            if wanted == method and (found := re.fullmatch(pattern, path)):
                try:
                    with self.store.changing:
                        answer = getattr(self, name)(*found.groups())
                except Refused as refused:
                    self.answer(refused.status, refused.body, refused.headers)
                else:
                    if answer is not None:
                        self.answer(200, json.dumps(answer).encode(), {})
                return
        self.answer(404, b"{}", {})

    @property
    def token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def repo(self, name: str) -> Repo:
        """Return a repository that this client may read."""
        found = self.store.repos.get(name)
        if found is None or (found.private and self.token != TOKEN):
            raise Refused(401 if not self.token else 404, "RepoNotFound")
        return found

    def files(self, name: str, revision: str) -> tuple[str, Files]:
        repo = self.repo(name)
        sha = repo.resolve(unquote(revision))
        if sha is None:
            raise Refused(404, "RevisionNotFound")
        return sha, repo.commits[sha]

    def require_writer(self) -> None:
        if not self.token:
            raise Refused(401, message="Invalid username or password.")
        if self.token != TOKEN:
            raise Refused(403, message="You don't have the rights to do this.")

    # --- Routes. Their return values are sent as JSON -------------------------------------------

    def whoami(self) -> Answer:
        if self.token not in (TOKEN, READER):
            raise Refused(401)
        role = "write" if self.token == TOKEN else "read"
        auth = {"accessToken": {"role": role, "displayName": "test"}}
        return {"type": "user", "name": "me", "orgs": [], "auth": auth}

    def create(self) -> Answer:
        self.require_writer()
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.store.repos:
            raise Refused(409, url=f"{self.store.endpoint}/{name}")
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.store.commit(name, {".gitattributes": b"*.safetensors lfs\n"}, private=private)
        return {"url": f"{self.store.endpoint}/{name}"}

    def validate(self) -> Answer:
        return {"errors": [], "warnings": []}

    def preupload(self, name: str, revision: str) -> Answer:
        self.require_writer()
        _, files = self.files(name, revision)

        def mode(file: dict[str, Any]) -> dict[str, Any]:
            path = file["path"]
            there = ids(path, files[path]) if path in files else {}
            oid = there.get("lfs", {}).get("oid") or there.get("blobId")
            upload = "lfs" if is_large(path) or file["size"] > 10 << 20 else "regular"
            return {"path": path, "uploadMode": upload, "shouldIgnore": False, "oid": oid}

        return {"files": [mode(file) for file in json.loads(self.body)["files"]]}

    def batch(self, name: str) -> Answer:
        self.require_writer()
        self.repo(name)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            oid = asked["oid"]
            href = f"http://localhost:{self.store.port}/upload/{oid}?X-Amz-Signature={SIGNATURE}"
            verify = {"href": f"{self.store.endpoint}/verify/{oid}"}
            actions = {"upload": {"href": href, "header": {}}, "verify": verify}
            missing = oid not in self.store.large
            objects.append(asked | ({"actions": actions} if missing else {}))
        return {"transfer": "basic", "objects": objects}

    def put(self, oid: str) -> Answer:
        self.check_foreign()
        data = self.body if self.fault != "flipped" else self.body[:-1] + b"\0"
        if hashlib.sha256(data).hexdigest() != oid:
            raise Refused(400, message="another content")
        self.store.large[oid] = data
        return {}

    def verify(self, oid: str) -> Answer:
        if oid not in self.store.large:
            raise Refused(404)
        return {}

    def commit(self, name: str, revision: str) -> None:
        self.require_writer()
        repo = self.repo(name)
        ref = unquote(revision)
        self.store.before_commit()
        if ref not in repo.refs:
            raise Refused(404, "RevisionNotFound")
        files = dict(repo.commits[repo.refs[ref]])
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header" and value.get("parentCommit") not in (None, repo.refs[ref]):
                raise Refused(412, message="A commit has happened since. Please refresh.")
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.store.large:
                    raise Refused(400, message="LFS pointer to nothing")
                files[value["path"]] = self.store.large[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        as_request = parse_qs(urlsplit(self.path).query).get("create_pr") == ["1"]
        number = 1 + sum(found.startswith("refs/pr/") for found in repo.refs)
        sha = repo.add(f"refs/pr/{number}" if as_request else ref, files)
        page = f"{self.store.endpoint}/{name}"
        answer = {"commitOid": sha, "commitUrl": f"{page}/commit/{sha}"}
        if as_request:
            answer["pullRequestUrl"] = f"{page}/discussions/{number}"
        if self.fault == "lost":
            self.close_connection = True
        else:
            self.answer(200, json.dumps(answer).encode(), {})

    def branch(self, name: str, branch: str) -> Answer:
        self.require_writer()
        repo = self.repo(name)
        if unquote(branch) in repo.refs:
            raise Refused(409, message="Reference already exists")
        asked = json.loads(self.body or b"{}") or {}
        start = repo.resolve(asked.get("startingPoint") or "main")
        if start is None:
            raise Refused(404, "RevisionNotFound")
        repo.refs[unquote(branch)] = start
        return {}

    def refs(self, name: str) -> Answer:
        found = self.repo(name).refs.items()
        branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": sha} for n, sha in found]
        return {"branches": branches, "tags": [], "converts": []}

    def tree(self, name: str, revision: str) -> Answer:
        return [tree_item(*file) for file in self.files(name, revision)[1].items()]

    def paths_info(self, name: str, revision: str) -> Answer:
        _, files = self.files(name, revision)
        if self.headers.get_content_type() == "application/json":
            paths = json.loads(self.body)["paths"]
        else:
            paths = parse_qs(self.body.decode()).get("paths", [])
        return [tree_item(path, files[path]) for path in paths if path in files]

    def describe(self, name: str, revision: str = "main") -> Answer:
        sha, files = self.files(name, revision)
        return {
            "id": name,
            "modelId": name,
            "sha": sha,
            "private": self.repo(name).private,
            "gated": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "cardData": card_fields(files.get("README.md", b"").decode()),
            "siblings": [ids(*file) for file in files.items()],
        }

    def resolve(self, name: str, revision: str, path: str) -> None:
        sha, files = self.files(name, revision)
        if path not in files:
            raise Refused(404, "EntryNotFound")
        entry = ids(path, files[path])
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if "lfs" not in entry:
            self.send_data(files[path], headers | {"ETag": f'"{entry["blobId"]}"'})
            return
        # Large files are on another host, at a signed URL.
        place = f"http://localhost:{self.store.port}/large/{name}/resolve/{sha}/{path}"
        headers |= {
            "X-Linked-Etag": f'"{entry["lfs"]["oid"]}"',
            "X-Linked-Size": str(len(files[path])),
            "Location": f"{place}?X-Amz-Signature={SIGNATURE}",
        }
        self.answer(302, b"", headers)

    def send_large(self, name: str, path: str) -> None:
        self.check_foreign()
        sha = urlsplit(self.path).path.split("/resolve/")[1].partition("/")[0]
        data = self.store.repos[name].commits[sha][path]
        self.send_data(data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"'})

    def bucket(self, name: str) -> Files:
        """Return the files of a bucket that this client may read."""
        found = self.store.buckets.get(name)
        if found is None or (found.private and self.token != TOKEN):
            raise Refused(404, "RepoNotFound", "Bucket not found")
        return found.files

    def bucket_info(self, name: str) -> Answer:
        files = self.bucket(name)
        size = sum(map(len, files.values()))
        created = {"createdAt": UPLOADED, "private": self.store.buckets[name].private}
        return {"id": name, "size": size, "totalFiles": len(files), **created}

    def bucket_tree(self, name: str, prefix: str | None) -> Answer:
        files = self.bucket(name)
        if "recursive=true" not in self.path.lower():
            raise Refused(400, message="only whole trees are imitated")
        folder = f"{prefix}/" if prefix else ""
        found = [bucket_item(*file) for file in files.items() if file[0].startswith(folder)]
        folders = {path["path"].rpartition("/")[0] for path in found} - {""}
        return [*({"type": "directory", "path": path} for path in folders), *found]

    def bucket_paths(self, name: str) -> Answer:
        files = self.bucket(name)
        asked = json.loads(self.body)["paths"]
        return [bucket_item(path, files[path]) for path in asked if path in files]

    def bucket_resolve(self, name: str, path: str) -> None:
        files = self.bucket(name)
        if path not in files:
            raise Refused(404, "EntryNotFound")
        content = bucket_item(path, files[path])["xetHash"]
        # The bytes are on another host, at a signed URL.
        place = f"http://localhost:{self.store.port}/xet/{name}/{content}/{path}"
        headers = {
            "X-Xet-Hash": content,
            "X-Linked-Size": str(len(files[path])),
            "Location": f"{place}?X-Amz-Signature={SIGNATURE}",
        }
        self.answer(302, b"", headers)

    def send_xet(self, name: str, content: str, path: str) -> None:
        self.check_foreign()
        data = self.store.buckets[name].files[path]
        if bucket_item(path, data)["xetHash"] != content:
            raise Refused(404)
        self.send_data(data, {})

    def check_foreign(self) -> None:
        """Require a signed URL and no token: this is another host."""
        if self.token:
            self.store.leaks.append(self.path)
        if SIGNATURE not in self.path:
            raise Refused(403)

    def send_data(self, data: bytes, headers: dict[str, str]) -> None:
        if self.fault == "flipped":
            data = data[:-1] + bytes([data[-1] ^ 1])
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if found is None or self.fault == "no ranges":
            self.answer(200, data, headers)
            return
        start, end = int(found[1]), min(int(found[2] or len(data)), len(data) - 1)
        span = {"Content-Range": f"bytes {start}-{end}/{len(data)}"}
        self.answer(206, data[start : end + 1], headers | span)

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            if self.fault == "truncated":
                self.wfile.write(body[: len(body) // 2])
                self.close_connection = True
            elif self.fault == "slow":
                for start in range(0, len(body), 1 << 16):
                    self.wfile.write(body[start : start + (1 << 16)])
                    time.sleep(0.05)
            else:
                self.wfile.write(body)
        except ConnectionError:
            self.close_connection = True


def card_fields(card: str) -> dict[str, str | list[str]] | None:
    """Return the scalar fields of a card's metadata."""
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    fields = dict(re.findall(r"^(\w+): (\S+)$", found[1], re.MULTILINE)) if found else None
    return fields or None
