"""The integration with SGLang, as far as it goes without SGLang.

Real engines run in ``tools/engines/sglang_matrix.py``, whose result is committed.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from pairs import bf16_tensor, save

from rlsparse_store.errors import PlaceError
from rlsparse_store.integrations.sglang.hooks import DeltaHooks
from rlsparse_store.integrations.sglang.settings import VARIABLE, configured_places

if TYPE_CHECKING:
    from pathlib import Path


def test_sglang_finds_the_plugin_and_importing_the_integration_loads_no_engine() -> None:
    points = importlib.metadata.entry_points(group="sglang.srt.plugins", name="rlsparse")
    found = {point.value for point in points}
    assert found == {"rlsparse_store.integrations.sglang.plugin:register"}
    program = (
        "import sys, rlsparse_store.integrations.sglang.plugin\n"
        "import rlsparse_store.integrations.sglang.hooks\n"
        "sys.exit(bool({'sglang', 'torch', 'vllm'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-P", "-c", program], check=True)


def test_without_the_variable_no_place_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    places = configured_places()
    assert (places.base, places.roots) == (None, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "must be a JSON object"),
        ('{"roots": "/runs"}', "roots must be a list"),
        ('{"delta": "/runs/1", "root": []}', "unknown delta, root"),
        ('{"subfolder": "step-1"}', "unknown subfolder"),
    ],
)
def test_what_is_wrong_with_the_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(PlaceError, match=f"^{VARIABLE}: .*{message}"):
        configured_places()


def test_a_full_checkpoint_is_left_to_sglang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    place = str(save(tmp_path / "base", {"w": bf16_tensor(1, 8, 8)}))
    config = SimpleNamespace(model_path=place, revision=None, is_draft_model=False)
    source = SimpleNamespace(model_or_path=place, revision=None, model_config=config)
    hooks = DeltaHooks()

    def original(*arguments: Any, **keywords: Any) -> Any:  # noqa: ANN401 - SGLang's function
        return arguments, keywords

    load = SimpleNamespace(download_dir=None)
    assert hooks.begin(original, load, config) == ((load, config), {})
    asked = {"startup_prefetch_active": True}
    weights: Any = hooks.weights(original, "loader", source, **asked)
    assert weights == (("loader", source), asked)
