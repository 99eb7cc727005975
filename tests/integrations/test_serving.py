"""What engines that serve deltas have in common: places and configurations, without an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest
from loopback_s3 import LoopbackS3, upload
from pairs import bf16_tensor, save, tune
from transformers import LlamaConfig

from rlsparse_store import encode_delta
from rlsparse_store.errors import NotFoundError, PlaceError, UnsupportedModelError
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.integrations.serving.configuration import check_configuration
from rlsparse_store.integrations.serving.detection import detect_delta
from rlsparse_store.integrations.serving.places import ServedPlaces

OPTION: Final = "--some-option"


def test_places_leave_other_options_to_the_engine() -> None:
    options: dict[str, Any] = {"base": "b", "roots": ["r"], "num_threads": 4}
    places = ServedPlaces.take(OPTION, options)
    assert options == {"num_threads": 4}
    assert places == ServedPlaces(OPTION, base="b", roots=["r"])
    assert places.fields() == {"base": "b", "roots": ["r"]}


@pytest.mark.parametrize("options", [{"base": 3}, {"roots": "r"}, {"roots": [1]}, {"delta": None}])
def test_options_of_the_wrong_type_are_named(options: dict[str, Any]) -> None:
    name = next(iter(options))
    with pytest.raises(PlaceError, match=f"{OPTION}: {name} must be"):
        ServedPlaces.take(OPTION, options)


@pytest.mark.parametrize(
    ("place", "is_allowed"),
    [
        ("run/step-1", True),
        ("run", True),
        ("run/../run/step-1", True),
        ("run/../other", False),
        ("run-2/step-1", False),
        ("run/link", False),
        ("org/run", True),
        ("org/run@main", True),
        ("hf://org/run", True),
        ("org/run-2", False),
        ("s3://bucket/runs/grpo/step-1", True),
        ("s3://bucket/runs/grpo/", True),
        ("s3://bucket/runs/grpo2/step-1", False),
        ("s3://bucket/runs", False),
        ("s3://bucket2/runs/grpo/step-1", False),
        ("gs://bucket/runs/grpo/step-1", False),
        ("s3://run/step-1", False),
        ("bucket/runs/grpo/step-1", False),
        ("", False),
    ],
)
def test_a_server_loads_from_its_roots_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, *, is_allowed: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("run/step-1", "run-2/step-1", "other"):
        Path(folder).mkdir(parents=True)
    Path("run/link").symlink_to(tmp_path / "other")
    places = ServedPlaces(OPTION, roots=[str(tmp_path / "run"), "org/run", "s3://bucket/runs/grpo"])
    if is_allowed:
        places.check(place)
    else:
        with pytest.raises(PlaceError, match=f"may not load from there.*{OPTION}"):
            places.check(place)


@pytest.mark.parametrize(
    "place",
    ["s3://bucket/runs/grpo/../other", "s3://bucket/runs/grpo?key=x", "s3://a:b@bucket/runs/grpo"],
)
def test_a_server_refuses_what_is_no_url_of_a_bucket(place: str) -> None:
    places = ServedPlaces(OPTION, roots=["s3://bucket/runs/grpo"])
    with pytest.raises(NotFoundError, match=r"URL|key"):
        places.check(place)


def test_a_delta_in_a_bucket_is_found_and_fetched(s3: LoopbackS3, tmp_path: Path) -> None:
    base = bf16_tensor(1, 64, 64)
    places = save(tmp_path / "base", {"w": base}), save(tmp_path / "tuned", {"w": tune(base, 2)})
    delta = tmp_path / "delta"
    encode_delta(*places, delta)
    upload(f"{s3.url}/run/step-1", delta)
    found = detect_delta(f"{s3.url}/run", None, ("step-1", ""), HubAccess())
    assert found is not None
    assert found.subfolder == "step-1"
    fetched = found.fetch(HubAccess()) / "rlsparse" / "delta.safetensors"
    assert fetched.read_bytes() == (delta / "rlsparse" / "delta.safetensors").read_bytes()
    assert detect_delta(f"{s3.url}/run", None, ("",), HubAccess()) is None


def test_a_configuration_with_other_settings_is_refused_by_their_names(tmp_path: Path) -> None:
    served = LlamaConfig(hidden_size=64)
    check_configuration(served, tmp_path)  # a folder without one
    LlamaConfig(hidden_size=64, use_cache=False).save_pretrained(tmp_path)
    check_configuration(served, tmp_path)
    LlamaConfig(hidden_size=32, rms_norm_eps=1e-3).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="hidden_size, rms_norm_eps"):
        check_configuration(served, tmp_path)
