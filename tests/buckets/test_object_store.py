"""The six verbs against a real server of S3: conditions, ranges, faults, forks and secrets."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from loopback_s3 import _SIGNED, SECRETS, LoopbackS3, store_at

from rlsparse_store.buckets.objects import ABSENT, ObjectVersion
from rlsparse_store.errors import (
    BucketError,
    BucketPermissionError,
    BucketServerError,
    BucketTimeoutError,
    MissingDependencyError,
    NotFoundError,
    ObjectConflictError,
    RlsparseError,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rlsparse_store.buckets.object_store import ObjectStore


@pytest.fixture
def store(s3: LoopbackS3) -> ObjectStore:
    return store_at(f"{s3.url}/runs/a")


def put_status(s3: LoopbackS3, key: str, body: bytes, **conditions: str) -> int:
    """The status of moto's own answer, without our client and our proxy."""
    connection = http.client.HTTPConnection("127.0.0.1", s3.moto_port)
    headers = {name.replace("_", "-"): value for name, value in conditions.items()}
    connection.request("PUT", f"/{s3.bucket}/{key}", body, {**_SIGNED, **headers})
    status = connection.getresponse().status
    connection.close()
    return status


def test_the_server_proves_both_conditional_writes(s3: LoopbackS3) -> None:
    """What the tests of this folder prove depends on this."""
    assert put_status(s3, "k", b"1", If_None_Match="*") == 200
    assert put_status(s3, "k", b"2", If_None_Match="*") == 412
    tag = store_at(s3.url).head("k").version.e_tag
    assert tag is not None
    assert put_status(s3, "k", b"3", If_Match='"0123"') == 412
    assert put_status(s3, "k", b"4", If_Match=tag) == 200
    assert put_status(s3, "k", b"5", If_Match=tag) == 412
    assert store_at(s3.url).get("k")[0] == b"4"


def test_objects_are_written_read_listed_and_deleted(store: ObjectStore, s3: LoopbackS3) -> None:
    version = store.put("run.json", b"{}")
    assert store.get("run.json") == (b"{}", version)
    assert store.head("run.json").version == version
    store.put("step-1/rlsparse/delta.safetensors", b"0123456789")
    store.put("step-10/x", b"")
    store_at(s3.url).put("runs/ab/other", b"of another run")
    found = store.list()
    assert [stat.key for stat in found] == [
        "run.json",
        "step-1/rlsparse/delta.safetensors",
        "step-10/x",
    ]
    assert found[0] == store.head("run.json")
    assert found[1].nbytes == 10
    assert [stat.key for stat in store.list("step-1")] == ["step-1/rlsparse/delta.safetensors"]
    assert len(store_at(s3.url).list()) == 4
    store.delete(["run.json", "step-10/x", "never-there"])
    assert [stat.key for stat in store.list()] == ["step-1/rlsparse/delta.safetensors"]
    store.delete([])


def test_ranges(store: ObjectStore, s3: LoopbackS3) -> None:
    version = store.put("k", b"0123456789")
    s3.requests.clear()
    assert store.get_ranges("k", [(8, 10), (0, 3)], version=version) == [b"89", b"012"]
    assert sorted(str(request.range) for request in s3.requests) == ["bytes=0-2", "bytes=8-9"]
    assert store.get_ranges("k", []) == []
    with pytest.raises(BucketError, match="ends at byte 10"):
        store.get_ranges("k", [(8, 12)])
    store.put("k", b"other bytes")
    with pytest.raises(ObjectConflictError, match="replaced while it was being read"):
        store.get_ranges("k", [(0, 3)], version=version)


def test_conditions(store: ObjectStore) -> None:
    first = store.put("run.json", b"1", only_if=ABSENT)
    with pytest.raises(ObjectConflictError, match="another process wrote it first"):
        store.put("run.json", b"2", only_if=ABSENT)
    second = store.put("run.json", b"2", only_if=first)
    with pytest.raises(ObjectConflictError):
        store.put("run.json", b"3", only_if=first)
    with pytest.raises(ObjectConflictError):
        store.put("gone", b"3", only_if=first)
    assert store.get("run.json") == (b"2", second)


def test_a_large_file_goes_up_in_parts(store: ObjectStore, tmp_path: Path, s3: LoopbackS3) -> None:
    data = os.urandom(1 << 20) * 40
    (tmp_path / "large").write_bytes(data)
    store.put("large", tmp_path / "large")
    assert len([r for r in s3.requests if r.method == "PUT"]) == 3
    parts = store.get_ranges("large", [(i << 20, (i + 8) << 20) for i in range(0, 40, 8)])
    assert b"".join(parts) == data
    store.put("small", tmp_path / "large", only_if=ABSENT)
    assert store.head("small").nbytes == len(data)


def test_eight_threads_and_two_writers_lose_nothing(store: ObjectStore) -> None:
    """Compare-and-swap, by threads that have nothing in common but the object."""
    store.put("count", b"", only_if=ABSENT)

    def add(number: int) -> None:
        while True:
            data, version = store.get("count")
            try:
                store.put("count", data + b"%d " % number, only_if=version)
            except ObjectConflictError:
                continue
            return

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(40)))
    assert sorted(map(int, store.get("count")[0].split())) == list(range(40))


READS: dict[str, Callable[[ObjectStore], Any]] = {
    "get": lambda store: store.get("k"),
    "ranges": lambda store: store.get_ranges("k", [(1, 5), (6, 9)]),
    "head": lambda store: store.head("k"),
    "list": lambda store: store.list(),
    "put": lambda store: store.put("new", b"new"),
    "delete": lambda store: store.delete(["k"]),
}


@pytest.mark.parametrize("verb", READS)
@pytest.mark.parametrize("fault", ["500", "503", "dropped", "cut"])
def test_a_failure_that_passes_is_retried(
    store: ObjectStore, s3: LoopbackS3, verb: str, fault: str
) -> None:
    store.put("k", b"0123456789")
    expected = READS[verb](store)
    store.put("k", b"0123456789")
    s3.fail(fault, "k$|new$| /$", times=1)
    assert READS[verb](store) == expected
    assert not any(fault.times for fault in s3.faults)


@pytest.mark.parametrize("verb", READS)
@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        ("403", BucketPermissionError, "the credentials do not allow this"),
        ("401", BucketPermissionError, "the credentials do not allow this"),
        ("500", BucketServerError, r"failed \(HTTP 500(, Failed)?\); try again later"),
        ("400", BucketError, r"refused the request \(HTTP 400"),
        ("dropped", BucketServerError, "unreachable, or closed the connection"),
        ("silence", BucketTimeoutError, "did not answer within 1 s"),
    ],
)
def test_a_failure_that_stays_is_one_line_without_secrets(
    s3: LoopbackS3,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    fault: str,
    kind: type[Exception],
    message: str,
) -> None:
    monkeypatch.setattr("rlsparse_store.buckets.calls.FIRST_PAUSE", 0.001)
    if fault == "silence":
        monkeypatch.setenv("RLSPARSE_BUCKET_TIMEOUT", "1")
    store = store_at(f"{s3.url}/run")
    s3.fail(fault, "", times=99)
    with pytest.raises(kind, match=message) as caught:
        READS[verb](store)
    assert s3.bucket in str(caught.value)
    assert_no_secret(caught.value)


def assert_no_secret(error: BaseException) -> None:
    """No secret is in an error or in what a traceback prints of its causes."""
    seen: BaseException | None = error
    while seen is not None:
        assert not any(secret in repr(seen) + str(seen) for secret in SECRETS)
        assert "\n" not in str(seen)
        seen = None if seen.__suppress_context__ else (seen.__cause__ or seen.__context__)


def test_what_is_not_there(store: ObjectStore, s3: LoopbackS3) -> None:
    for read in (store.get, store.head, lambda key: store.get_ranges(key, [(0, 1)])):
        with pytest.raises(NotFoundError, match="no such object; check the name"):
            read("nothing")
    assert store.list() == []
    other = store_at("s3://no-such-bucket/run")
    asks: list[Callable[[], object]] = [
        lambda: other.get("k"),
        other.list,
        lambda: other.put("k", b""),
    ]
    for ask in asks:
        with pytest.raises(NotFoundError, match="no such bucket"):
            ask()
    assert len(s3.requests) == 7


@pytest.mark.parametrize("verb", ["get", "ranges"])
def test_a_slow_answer_times_out(
    s3: LoopbackS3, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """Bytes that trickle keep a connection alive, and not the deadline."""
    monkeypatch.setattr("rlsparse_store.buckets.calls.MIN_BYTES_PER_SECOND", 1 << 40)
    store_at(f"{s3.url}/run").put("k", b"0123456789" * 100)
    monkeypatch.setenv("RLSPARSE_BUCKET_TIMEOUT", "1")
    store = store_at(f"{s3.url}/run")
    s3.fail("slow", "GET /run/k", times=9)
    with pytest.raises(BucketTimeoutError):
        store.get("k") if verb == "get" else store.get_ranges("k", [(0, 900)])


@pytest.mark.parametrize("condition", ["absent", "version"])
def test_a_write_whose_answer_was_lost_is_recognized(
    store: ObjectStore, s3: LoopbackS3, condition: str
) -> None:
    before = store.put("k", b"before")
    key = "new" if condition == "absent" else "k"
    s3.fail("lost", f"PUT /runs/a/{key}")
    written = store.put(key, b"after", only_if=ABSENT if condition == "absent" else before)
    assert store.get(key) == (b"after", written)


def test_a_conflict_after_a_failed_attempt_is_a_conflict(
    store: ObjectStore, s3: LoopbackS3
) -> None:
    store.put("k", b"of another writer")
    s3.fail("500", "PUT")
    with pytest.raises(ObjectConflictError):
        store.put("k", b"ours", only_if=ABSENT)
    with pytest.raises(ObjectConflictError):
        store.put("k", b"ours", only_if=ObjectVersion('"0"', None))


def test_an_interrupted_part_leaves_no_object(
    s3: LoopbackS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLSPARSE_BUCKET_TIMEOUT", "2")
    store = store_at(f"{s3.url}/run")
    (tmp_path / "large").write_bytes(bytes(40 << 20))
    s3.fail("403", "PUT /run/large", times=99)
    with pytest.raises(BucketPermissionError):
        store.put("large", tmp_path / "large")
    assert store.list() == []


def test_the_largest_objects(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlsparse_store.buckets.connection.MOST_READ", 4)
    monkeypatch.setattr("rlsparse_store.buckets.connection.MOST_CONDITIONAL", 5)
    store.put("k", b"12345", only_if=ABSENT)
    with pytest.raises(BucketError, match="has 5 bytes; at most 4"):
        store.get("k")
    with pytest.raises(BucketError, match="6 bytes cannot be written under a condition"):
        store.put("l", b"123456", only_if=ABSENT)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"AWS_ALLOW_HTTP": "false"}, BucketError, "set AWS_ALLOW_HTTP=true"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, BucketServerError, "unreachable"),
        ({"AWS_SECRET_ACCESS_KEY": None}, BucketPermissionError, "set AWS_ACCESS_KEY_ID and"),
        ({"AWS_ACCESS_KEY_ID": None}, BucketPermissionError, "set AWS_ACCESS_KEY_ID and"),
        ({"AWS_SKIP_SIGNATURE": "canarySecret"}, BucketError, "settings of the environment"),
    ],
)
def test_settings_of_the_environment(
    s3: LoopbackS3,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str | None],
    kind: type[Exception],
    message: str,
) -> None:
    store = store_at(s3.url)
    store.put("k", b"with the settings before")
    for name, value in changes.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(kind, match=message) as caught:
        store.get("k")
    assert_no_secret(caught.value)


def test_keys_are_plain(store: ObjectStore) -> None:
    for key in ("", "/k", "../k", "a//b", "a/", "a b"):
        with pytest.raises(NotFoundError, match="is not a key"):
            store.put(key, b"")


def test_without_obstore(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.setenv("AWS_REGION", "another")  # another connection
    with pytest.raises(MissingDependencyError, match=r"'\.\[cloud\]'"):
        store.list()


def test_an_interrupt_is_heard_while_the_server_is_silent(
    store: ObjectStore, s3: LoopbackS3, tmp_path: Path
) -> None:
    s3.fail("silence", "")
    script = "import sys; from loopback_s3 import store_at; store_at(sys.argv[1]).get('k')"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(store.url)],
        env={
            "PATH": os.defpath,
            "PYTHONPATH": os.pathsep.join(sys.path),
            **s3.environment(tmp_path),
        },
        stderr=subprocess.PIPE,
    )
    while s3.faults[0].times:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert b"KeyboardInterrupt" in process.communicate(timeout=15)[1]


FORKED = """
import os, signal, sys
from concurrent.futures import ThreadPoolExecutor
from rlsparse_store.buckets.bucket_url import parse_bucket_url
from rlsparse_store.buckets.object_store import ObjectStore
from rlsparse_store.buckets.objects import ABSENT
from rlsparse_store.errors import NotFoundError, ObjectConflictError

store = ObjectStore(parse_bucket_url(sys.argv[1]))
if sys.argv[2] == "used":
    version = store.put("k", b"0123456789")


def check(depth):
    version = store.put("k", b"0123456789")
    assert store.get("k") == (b"0123456789", version)
    assert store.get_ranges("k", [(0, 3), (8, 10)], version=version) == [b"012", b"89"]
    assert store.head("k").nbytes == 10
    with open("file", "wb") as file:
        file.write(b"from a file")
    from pathlib import Path
    store.put(f"new-{depth}", Path("file"), only_if=ABSENT)
    assert [stat.key for stat in store.list()] == ["k", f"new-{depth}"]
    for condition in (ABSENT, version._replace(e_tag='"0"')):
        try:
            store.put("k", b"", only_if=condition)
        except ObjectConflictError:
            pass
        else:
            raise AssertionError
    store.delete([f"new-{depth}"])
    try:
        store.get(f"new-{depth}")
    except NotFoundError as error:
        assert "no such object" in str(error)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: store.get("k")[0], range(40))) == {b"0123456789"}


def in_child(depth):
    child = os.fork()
    if not child:
        signal.alarm(60)
        check(depth)
        if depth < 2:
            in_child(depth + 1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


in_child(1)
check(0)
"""


@pytest.mark.parametrize("parent", ["used", "unused"])
def test_forked_processes_open_connections_of_their_own(
    s3: LoopbackS3, tmp_path: Path, parent: str
) -> None:
    result = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", FORKED, f"{s3.url}/run", parent],
        env={"PATH": os.defpath, **s3.environment(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        check=False,
        timeout=100,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


INTERRUPTED = """
import os, signal, sys, time
from loopback_s3 import store_at
from rlsparse_store.errors import BucketError

store = store_at(sys.argv[1])
store.put("k", b"0123456789")
store.put("silent", b"")
child = os.fork()
if not child:
    signal.alarm(60)
    assert store.get("k")[0] == b"0123456789"
    print("ready", flush=True)
    try:
        store.get("silent")
    except KeyboardInterrupt:
        assert store.get("k")[0] == b"0123456789"
        from rlsparse_store.buckets import object_store
        (connection,) = object_store._connections._opened.values()
        connection._process.kill()
        try:
            store.get("k")
        except BucketError as error:
            assert "try again" in str(error)
        assert store.get("k")[0] == b"0123456789"
        print("heard", flush=True)
    os._exit(0)
signal.signal(signal.SIGINT, signal.SIG_IGN)
assert os.waitpid(child, 0)[1] == 0
"""


def test_an_interrupted_child_reads_on(s3: LoopbackS3, tmp_path: Path) -> None:
    s3.fail("silence", "GET /silent")
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", INTERRUPTED, s3.url],
        env={
            "PATH": os.defpath,
            "PYTHONPATH": os.pathsep.join(sys.path),
            **s3.environment(tmp_path),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    while s3.faults[0].times:
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert (out, errors) == (b"ready\nheard\n", b"")


def test_every_error_is_of_this_package(store: ObjectStore, s3: LoopbackS3) -> None:
    for status in (301, 304, 404, 405, 409, 412, 416, 429, 501):
        s3.fail(str(status), "", times=3)
        with pytest.raises(RlsparseError) as caught:
            store.get_ranges("k", [(0, 1)])
        assert_no_secret(caught.value)
        s3.faults.clear()
