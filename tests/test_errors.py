"""Errors: one root, the standard error that a caller catches, one line, and pickling."""

from __future__ import annotations

import pickle

import pytest

from rlsparse_store import errors

STANDARD = {
    "BackendError": ValueError,
    "BaseMismatchError": ValueError,
    "BucketPermissionError": PermissionError,
    "BucketTimeoutError": TimeoutError,
    "CheckpointError": ValueError,
    "DtypeMismatchError": ValueError,
    "FormatError": ValueError,
    "HubOfflineError": FileNotFoundError,
    "HubPermissionError": PermissionError,
    "HubTimeoutError": TimeoutError,
    "MissingDependencyError": ImportError,
    "MissingFileError": FileNotFoundError,
    "NotFoundError": FileNotFoundError,
    "ObjectConflictError": FileExistsError,
    "OutputError": OSError,
    "PlaceError": PermissionError,
    "TensorNotFoundError": KeyError,
    "UnsupportedDtypeError": TypeError,
    "UnsupportedModelError": NotImplementedError,
    "VerificationError": ValueError,
}


ERRORS = [name for name in errors.__all__ if name.endswith("Error")]


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_has_one_root_and_one_line(name: str) -> None:
    kind = getattr(errors, name)
    assert issubclass(kind, errors.RlsparseError)
    assert issubclass(kind, STANDARD.get(name, Exception))
    error = kind("is broken; copy it again", file="delta", tensor="w")
    assert str(error) == "delta: tensor 'w': is broken; copy it again"
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (type(again), str(again), again.tensor) == (kind, str(error), "w")
    assert kind.exit_code in {1, 3, 4}


def test_every_error_is_listed() -> None:
    found = {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.RlsparseError)
    }
    assert found == set(ERRORS)
