"""Errors of the Hub client, translated: the id, what is wrong, the remedy, and no secrets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub import constants, errors

from rlsparse_store.errors import (
    GatedError,
    HubError,
    HubOfflineError,
    HubPermissionError,
    NotFoundError,
)
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.hub.errors import not_cached, redact, translate_error
from rlsparse_store.hub.repo_id import RepoId

if TYPE_CHECKING:
    from pathlib import Path

REPO = RepoId("org/name")


def response(status: int) -> Any:  # noqa: ANN401 - of the client's HTTP library
    request = SimpleNamespace(method="GET", url="https://host/x?Signature=abc")
    return SimpleNamespace(status_code=status, headers={}, request=request)


@pytest.mark.parametrize(
    ("error", "kind", "remedy"),
    [
        (errors.GatedRepoError("x", response=response(403)), GatedError, "hf auth login"),
        (errors.RepositoryNotFoundError("x", response=response(404)), NotFoundError, "auth login"),
        (errors.HfHubHTTPError("x", response=response(403)), HubPermissionError, "hf auth login"),
        (ConnectionError("x"), HubOfflineError, "try again later"),
        (errors.OfflineModeIsEnabled("x"), HubOfflineError, "online"),
        (
            errors.RevisionNotFoundError("x", response=response(404)),
            NotFoundError,
            "no such revision",
        ),
        (OSError(28, "No space left on device"), HubError, "free space there"),
        (PermissionError(13, "Permission denied", "/cache/x"), HubError, "HF_HOME, or --cache-dir"),
        (OSError(5, "Input/output error"), HubError, "the Hub client failed"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_an_error_names_the_id_and_a_remedy(
    error: Exception, kind: type[Exception], remedy: str
) -> None:
    translated = translate_error(error, "base", REPO)
    text = str(translated)
    assert isinstance(translated, kind)
    assert text.startswith("org/name: ")
    assert remedy in text
    assert "base" in text
    assert "\n" not in text
    assert "Signature" not in text


def test_a_missing_repository_may_be_a_mistyped_path() -> None:
    error = errors.RepositoryNotFoundError("x", response=response(404))
    assert "no such local folder" in str(translate_error(error, "base", REPO))
    pinned = translate_error(error, "base", RepoId("org/name", "main"))
    assert "no such local folder" not in str(pinned)
    assert str(pinned).startswith("org/name@main: no such Hub repository")


def test_an_endpoint_of_the_user_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.co")
    assert "HF_ENDPOINT" not in str(translate_error(ConnectionError("x"), "base", REPO))
    monkeypatch.setattr(constants, "ENDPOINT", "hf-mirror.example")
    text = str(translate_error(ConnectionError("x"), "base", REPO))
    assert "check HF_ENDPOINT (hf-mirror.example), or try again later" in text


@pytest.mark.parametrize("error", [ConnectionError("x"), errors.GatedRepoError])
def test_a_password_in_the_endpoint_is_not_named(
    monkeypatch: pytest.MonkeyPatch, error: Exception | type[errors.GatedRepoError]
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "https://me:secret@mirror.example")
    raised = error if isinstance(error, Exception) else error("x", response=response(403))
    text = str(translate_error(raised, "base", REPO))
    assert "https://…@mirror.example" in text
    assert "secret" not in text


def test_not_cached() -> None:
    assert str(not_cached("base", "org/name")).startswith("org/name: no such local folder")


def test_secrets_are_redacted() -> None:
    assert redact("hf_abcdefgh1234 https://host/x?Signature=abc Bearer abc") == (
        "… https://host/x?… …"
    )


def test_a_cache_is_any_path_like_object(tmp_path: Path) -> None:
    class Folder:
        def __fspath__(self) -> str:
            return str(tmp_path)

    assert HubAccess(cache_dir=Folder()).cache == tmp_path
    assert HubAccess().cache is None
