"""A server of vLLM in a process of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Server", "vllm_environment"]

PROMPT: Final = [5, 9, 13, 21, 33]
LIMIT: Final = 180
"""Seconds until a server has to answer."""


def vllm_environment(python: str) -> dict[str, str]:
    """The variables with which vLLM runs on a machine without a GPU.

    Args:
        python: The interpreter of its environment.
    """
    return os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}",
    }


class Server:
    """A server that ends with its ``with`` statement.

    Args:
        python: The interpreter of vLLM's environment.
        model: The model.
        options: Options of the command line, by the names of vLLM's arguments in Python.
    """

    def __init__(self, python: str, model: str, options: dict[str, Any]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        words = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
        words += ["--host", "127.0.0.1", "--port", str(self._port), "--served-model-name", "model"]
        words += ["--enforce-eager", "--dtype", "bfloat16", "--max-model-len", "128"]
        for name, value in options.items():
            text = value if isinstance(value, str) else json.dumps(value)
            words += [f"--{name.replace('_', '-')}", text]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the server
        self._process = subprocess.Popen(
            words,
            env=vllm_environment(python) | {"VLLM_SERVER_DEV_MODE": "1"},
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> Self:
        deadline = time.monotonic() + LIMIT
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health", timeout=5):
                    return self
            except OSError:
                time.sleep(0.5)
        self._end()
        self._log.seek(0)
        msg = f"the server did not start: {self._log.read()[-2000:]}"
        raise RuntimeError(msg)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=LIMIT) as answer:  # noqa: S310
                return answer.status, json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            return error.code, {}

    def complete(self) -> object:
        """What the server computes for a prompt: tokens and log-probabilities."""
        body = {"model": "model", "prompt": PROMPT, "temperature": 0, "max_tokens": 12}
        code, answer = self._post("v1/completions", {**body, "logprobs": 3})
        return answer["choices"][0]["logprobs"] if code == 200 else code

    def update(self, place: str | Path) -> int:
        """Load a delta or a checkpoint into the server; the HTTP status of the update."""
        self._post("init_weight_transfer_engine", {"init_info": {}})
        self._post("pause", {})
        self._post("start_weight_update", {})
        code, _ = self._post("update_weights", {"update_info": {"place": str(place)}})
        if code == 200:
            code, _ = self._post("finish_weight_update", {})
        self._post("reset_prefix_cache", {})
        self._post("resume", {})
        return code
