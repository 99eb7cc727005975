"""What is tested, and how long the tests look for counterexamples."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loopback_hub import LoopbackHub
    from loopback_s3 import LoopbackS3

# `python -m pytest` puts the checkout first on the path. What is tested is what was installed, with
# its native kernels; tests/test_project.py checks that the two are the same.
ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]

# Kernels for a GPU run on the CPU, by Triton's interpreter, unless a device is named. It is chosen
# when Triton is imported.
if os.environ.get("RLSPARSE_TEST_DEVICE", "cpu") == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A shell lets what it starts in the background ignore Ctrl-C, and its children inherit that. Tests
# of Ctrl-C send it to children.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# DeepSpeed, which transformers imports where it is installed, else prints what it looks for.
os.environ.setdefault("DS_ACCELERATOR", "cpu")

# Tests run on all processors: threads of torch, more than those, would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile(
    "default",
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("thorough", parent=settings.get_profile("default"), max_examples=2000)
settings.load_profile("default")


LONG = {"test_reproduce.py", "test_gpu_compile.py", "test_demo_command.py", "test_sharded.py"}
"""Files of tests that take longest."""


def pytest_configure(config: pytest.Config) -> None:
    """Ignore what small and identical pairs cause. In pyproject, it would import the checkout."""
    ignored = "ignore::rlsparse_store.errors.ImplausibleWarning"
    config.addinivalue_line("filterwarnings", ignored)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, or a process is left alone with it in the end."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    from loopback_hub import LoopbackHub  # noqa: PLC0415 - on the path once pytest has set it

    with LoopbackHub() as running:
        yield running


@pytest.fixture(scope="session")
def s3_server() -> Iterator[LoopbackS3]:
    from loopback_s3 import LoopbackS3  # noqa: PLC0415 - on the path once pytest has set it

    with LoopbackS3() as running:
        yield running


@pytest.fixture
def s3(s3_server: LoopbackS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoopbackS3:
    """A server with an empty bucket, of which the environment makes this process a client."""
    s3_server.bucket = s3_server.make_bucket()
    for name, value in s3_server.environment(tmp_path).items():
        if name not in {"HOME", "HF_HOME"}:
            monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture
def pair(tmp_path: Path, hub: LoopbackHub) -> Path:
    """A base on the Hub, a delta that names it, and the tuned folder that is expected."""
    from loopback_hub import NAMED  # noqa: PLC0415 - as above
    from pairs import bf16_tensor, contents, save, tune  # noqa: PLC0415 - as above

    from rlsparse_store.delta import encode_delta  # noqa: PLC0415 - what was installed

    base = {"a": bf16_tensor(0, 300, 200), "still": bf16_tensor(1, 200, 100)}
    tuned = save(tmp_path / "tuned", {**base, "a": tune(base["a"], 3)})
    (tuned / "config.json").write_text("{}")
    sha = hub.commit("org/base", contents(save(tmp_path / "base", base)))
    named = tmp_path / "models--org--base" / "snapshots" / sha
    named.parent.mkdir(parents=True)
    (tmp_path / "base").rename(named)
    encode_delta(named, tuned, tmp_path / "delta")
    hub.commit(NAMED, contents(tmp_path / "delta"))
    return tmp_path
