"""A loopback S3 server for real clients: moto in a child process, a proxy with faults in front."""

from __future__ import annotations

import http.client
import itertools
import os
import subprocess
import sys
import threading
from contextlib import nullcontext, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, NamedTuple, Self
from urllib.parse import unquote, urlsplit

from server_faults import Faulty

from rlsparse_store.buckets.bucket_url import parse_bucket_url
from rlsparse_store.buckets.object_store import ObjectStore

if TYPE_CHECKING:
    from pathlib import Path

    from forks import Forks

ACCESS_KEY = "AKIACANARY0123456789"
SECRET_KEY = "canarySecretKey0123456789"  # noqa: S105 - made up; tests search for it in outputs
SESSION = "canarySessionToken0123456789"
SECRETS = (ACCESS_KEY, SECRET_KEY, SESSION)

MOTO = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
"""The server. It ends with the process that started it."""

_bucket_numbers = itertools.count()


class Request(NamedTuple):
    """A client's request, without the bucket: ``nbytes`` is the size of the answer's body."""

    method: str
    key: str
    query: str
    range: str | None
    status: int
    nbytes: int


class LoopbackS3(Faulty):
    """A server with buckets in memory, the requests it got, and the faults of the next ones.

    Conditional writes go to moto one at a time: it looks at an object and writes it in two steps.

    A fault is a status; ``silence``; ``dropped``: no answer, not executed; ``lost``: executed
    without an answer; ``cut``: half of the body; ``slow``: a byte at a time.
    """

    def __init__(self, forks: Forks | None = None) -> None:
        super().__init__()
        self.forks = forks
        self.requests: list[Request] = []
        self.bucket = ""
        self.closing = threading.Event()
        self.writing = threading.Lock()
        self._moto = subprocess.Popen(
            [sys.executable, "-P", "-c", MOTO],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        store = self

        class Handler(_Handler):
            s3 = store

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        assert self._moto.stdout is not None
        self.moto_port = int(self._moto.stdout.readline())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._moto.communicate(b"")

    def make_bucket(self) -> str:
        """Create a bucket of a new name, and forget earlier requests and faults."""
        name = f"bucket-{os.getpid()}-{next(_bucket_numbers)}"
        connection = http.client.HTTPConnection("127.0.0.1", self.moto_port)
        connection.request("PUT", f"/{name}", headers=_SIGNED)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        connection.close()
        self.requests.clear()
        self.faults.clear()
        return name

    @property
    def url(self) -> str:
        """The URL of the bucket that was created last."""
        return f"s3://{self.bucket}"

    @property
    def sent(self) -> int:
        """Bytes of all answers to reads of objects."""
        return sum(request.nbytes for request in self.requests if request.method == "GET")

    def environment(self, home: Path) -> dict[str, str]:
        """Return the environment variables of a client."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_SESSION_TOKEN": SESSION,
            "AWS_REGION": "us-east-1",
            "HOME": str(home),
            "HF_HOME": str(home / "hf"),
            "RLSPARSE_CACHE": str(home / "cache"),
        }


_SIGNED = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=a"
}


def rlsparse(
    s3: LoopbackS3, home: Path, *arguments: str | Path, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run the command as a client of the server, and require that it prints no secret."""
    env = {"PATH": os.defpath, **s3.environment(home), **more}
    if s3.forks is not None:
        result = s3.forks.run_module("rlsparse_store", *arguments, env=env)
    else:
        result = subprocess.run(
            [sys.executable, "-P", "-m", "rlsparse_store", *map(str, arguments)],
            env=env,
            capture_output=True,
            check=False,
            encoding="utf-8",
            timeout=100,
        )
    for secret in SECRETS:
        assert secret not in result.stdout + result.stderr
    return result


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: clients that are killed close their connections."""


class _Handler(BaseHTTPRequestHandler):
    s3: LoopbackS3
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    upstream: http.client.HTTPConnection | None = None

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        split = urlsplit(self.path)
        key = unquote(split.path).lstrip("/").partition("/")[2]
        fault = self.s3.take_fault(f"{self.command} /{key}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault == "silence":
            self.s3.closing.wait()
        if fault in {"silence", "dropped"}:
            self.close_connection = True
            return
        if fault is not None and fault.isdecimal():
            status, headers, data = int(fault), list[tuple[str, str]](), refusal(int(fault))
        else:
            status, headers, data = self.forward(body)
        asked = self.headers.get("Range")
        nbytes = 0 if self.command == "HEAD" else len(data)
        self.s3.requests.append(Request(self.command, key, split.query, asked, status, nbytes))
        if fault == "lost":
            self.close_connection = True
            return
        with suppress(ConnectionError):
            self.answer(status, headers, data, fault)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - names of http.server

    def forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Send the request to moto."""
        is_conditional = "If-Match" in self.headers or "If-None-Match" in self.headers
        with self.s3.writing if is_conditional and self.command == "PUT" else nullcontext():
            if self.upstream is None:
                self.upstream = http.client.HTTPConnection("127.0.0.1", self.s3.moto_port)
            self.upstream.request(self.command, self.path, body, dict(self.headers.items()))
            answer = self.upstream.getresponse()
            return answer.status, answer.getheaders(), answer.read()

    def answer(
        self, status: int, headers: list[tuple[str, str]], data: bytes, fault: str | None
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in {"connection", "transfer-encoding", "content-length"}:
                self.send_header(name, value)
        length = dict(headers).get("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "cut":
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif fault == "slow":
            for byte in data:
                self.wfile.write(bytes([byte]))
                if self.s3.closing.wait(0.05):
                    return
        else:
            self.wfile.write(data)

    def finish(self) -> None:
        super().finish()
        if self.upstream is not None:
            self.upstream.close()


def refusal(status: int) -> bytes:
    """The body of an answer that repeats the client's secrets, as S3 does in some."""
    code = {403: "AccessDenied", 404: "NoSuchKey", 412: "PreconditionFailed"}.get(status, "Failed")
    secrets = " ".join(SECRETS)
    return f"<Error><Code>{code}</Code><Message>{secrets}</Message></Error>".encode()


def store_at(place: str) -> ObjectStore:
    """The objects below a URL."""
    url = parse_bucket_url(place)
    assert url is not None
    return ObjectStore(url)


def upload(place: str, folder: Path) -> None:
    """Upload the files of a folder, and of those in it."""
    store = store_at(place)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            store.put(path.relative_to(folder).as_posix(), path)
