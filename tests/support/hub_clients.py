"""Clients of a Hub on loopback, forked from one process, and a run to publish."""

from __future__ import annotations

import os
import shutil
import socket
from typing import TYPE_CHECKING, NamedTuple

import pytest
from forks import Forks
from loopback_hub import LoopbackHub, client_environment
from pairs import bf16_tensor, save, tune

from rlsparse_store.delta import encode_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Clients(NamedTuple):
    """A factory of clients, the port of their Hub, and the folder of their caches."""

    forks: Forks
    port: int
    home: Path


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    home = tmp_path_factory.mktemp("home")
    modules = ["huggingface_hub.hf_api", "rlsparse_store.cli.exit_codes", "rlsparse_store.publish"]
    with socket.socket() as kept:
        # Bound, so that nobody is given the port between two tests; each Hub listens there.
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        port: int = kept.getsockname()[1]
        env = {"PATH": os.defpath, **client_environment(port, home)}
        with Forks(modules, env) as forks:
            yield Clients(forks, port, home)


@pytest.fixture
def hub(clients: Clients) -> Iterator[LoopbackHub]:
    with LoopbackHub(clients.port, clients.forks) as running:
        yield running


@pytest.fixture
def home(clients: Clients) -> Path:
    shutil.rmtree(clients.home, ignore_errors=True)
    return clients.home


@pytest.fixture
def run(pair: Path) -> Path:
    """A run of three deltas against the base on the Hub."""
    (base,) = pair.glob("models--org--base/snapshots/*")
    for step in (1, 2, 10):
        tuned = {"a": tune(bf16_tensor(0, 300, 200), step), "still": bf16_tensor(1, 200, 100)}
        save(pair / f"step-{step}", tuned)
    steps = [pair / f"step-{step}" for step in (1, 2, 10)]
    encode_run(base, steps, pair / "run")
    return pair / "run"
