"""A server of an engine in a process of its own."""

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

__all__ = ["PROMPT", "Server", "VllmServer", "vllm_environment"]

PROMPT: Final = [5, 9, 13, 21, 33]
LIMIT: Final = 400
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
        words: Its command, less the options for host and port.
        environment: Its environment variables.
    """

    def __init__(self, words: list[str], environment: dict[str, str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the server
        self._process = subprocess.Popen(
            [*words, "--host", "127.0.0.1", "--port", str(self._port)],
            env=environment,
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
        msg = f"the server did not start: {self.log()[-2000:]}"
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

    def log(self) -> str:
        """What it wrote so far."""
        self._log.seek(0)
        return self._log.read()

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """The HTTP status and the JSON of an answer."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=LIMIT) as answer:  # noqa: S310
                return answer.status, json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            answer = error.read()
            is_json = error.headers.get_content_type() == "application/json"
            return error.code, json.loads(answer) if is_json else answer.decode()


class VllmServer(Server):
    """A server of vLLM.

    Args:
        python: The interpreter of vLLM's environment.
        model: The model.
        options: Options of the command line, by the names of vLLM's arguments in Python.
        variables: More environment variables.
    """

    def __init__(
        self,
        python: str,
        model: str,
        options: dict[str, Any],
        variables: dict[str, str] | None = None,
    ) -> None:
        words = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
        words += ["--served-model-name", "model"]
        words += ["--enforce-eager", "--dtype", "bfloat16", "--max-model-len", "128"]
        for name, value in options.items():
            text = value if isinstance(value, str) else json.dumps(value)
            words += [f"--{name.replace('_', '-')}", text]
        environment = vllm_environment(python) | {"VLLM_SERVER_DEV_MODE": "1"} | (variables or {})
        super().__init__(words, environment)

    def complete(self) -> object:
        """What the server computes for a prompt: tokens and log-probabilities."""
        body = {"model": "model", "prompt": PROMPT, "temperature": 0, "max_tokens": 12}
        code, answer = self.post("v1/completions", {**body, "logprobs": 3})
        return answer["choices"][0]["logprobs"] if code == 200 else code

    def update(self, place: str | Path, subfolder: str = "") -> int:
        """Load a delta or a checkpoint into the server; the HTTP status of the update."""
        info = {"place": str(place), "subfolder": subfolder}
        self.post("init_weight_transfer_engine", {"init_info": {}})
        self.post("pause", {})
        self.post("start_weight_update", {})
        code, _ = self.post("update_weights", {"update_info": info})
        if code == 200:
            code, _ = self.post("finish_weight_update", {})
        self.post("reset_prefix_cache", {})
        self.post("resume", {})
        return code
