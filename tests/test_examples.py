"""The examples in docstrings give what they say, and the README's Python runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import save_file

import rlsparse_store

if TYPE_CHECKING:
    from collections.abc import Iterator

README = Path(__file__).parents[1] / "README.md"


def modules() -> Iterator[str]:
    for module in pkgutil.walk_packages(rlsparse_store.__path__, "rlsparse_store."):
        # The demo's modules load torch, and __main__ runs the command.
        if not module.name.startswith(("rlsparse_store.demo", "rlsparse_store.__main__")):
            yield module.name


@pytest.mark.parametrize("name", list(modules()))
def test_docstring_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_readme_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    base = np.arange(4096, dtype=np.uint16)
    tuned = base.copy()
    tuned[::100] += 1
    for folder, words in (("qwen-base", base), ("qwen-grpo/checkpoint-200", tuned)):
        Path(folder).mkdir(parents=True)
        save_file({"w": words}, Path(folder) / "model.safetensors")
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102 - it is our own
    assert capsys.readouterr().out.startswith("0.01")
    again = Path("qwen-grpo-again/model.safetensors").read_bytes()
    assert again == Path("qwen-grpo/checkpoint-200/model.safetensors").read_bytes()
