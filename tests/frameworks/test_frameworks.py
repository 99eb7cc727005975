"""Arrays of each framework over the same bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from pairs import Tensor, random_tensor, save
from safetensors import safe_open

from rlsparse_store import encode_delta, open_delta
from rlsparse_store.errors import UnsupportedDtypeError
from rlsparse_store.format.dtypes import DTYPES
from rlsparse_store.frameworks.framework import get_framework

if TYPE_CHECKING:
    from pathlib import Path

NUMPY = ["BOOL", "U8", "I8", "I16", "U16", "F16", "I32", "U32", "F32", "C64", "F64", "I64", "U64"]
OTHERS = sorted(DTYPES.keys() - set(NUMPY))


def change_some(tensor: Tensor) -> Tensor:
    """Set every ninth byte to 1."""
    data = tensor.words(np.uint8)
    data[::9] = 1
    return tensor.with_words(data)


def test_numpy_arrays_equal_those_of_safetensors(tmp_path: Path) -> None:
    base = {code: random_tensor(1, code, 3, 8) for code in NUMPY}
    # A bool is a byte of 0 or 1.
    base["BOOL"] = base["BOOL"].with_words(base["BOOL"].words(np.uint8) & np.uint8(1))
    tuned = {code: change_some(tensor) for code, tensor in base.items()}
    save(tmp_path / "base", base)
    path = save(tmp_path / "tuned", tuned) / "model.safetensors"
    encode_delta(tmp_path / "base", tmp_path / "tuned", tmp_path / "delta")
    with (
        open_delta(tmp_path / "delta", base=tmp_path / "base", framework="np") as opened,
        safe_open(path, "np") as reader,
    ):
        for code in NUMPY:
            expected, part = reader.get_tensor(code), opened.get_slice(code)
            for found, wanted in ((opened[code], expected), (part[1:, ::3], expected[1:, ::3])):
                assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
                assert found.tobytes() == wanted.tobytes()
            assert part.dtype is expected.dtype.type


@pytest.mark.parametrize("code", OTHERS)
def test_numpy_refuses_other_dtypes_and_names_the_alternative(code: str) -> None:
    dtype = DTYPES[code]
    data = np.zeros(dtype.bits, np.uint8)
    with pytest.raises(UnsupportedDtypeError, match=f"no dtype for {code}; use framework='pt'"):
        get_framework("np").array(data, dtype, (8,))
    words = get_framework("bits").array(data, dtype, (8,) if dtype.bits >= 8 else (-1,))
    assert words.nbytes == data.size


def test_the_alternative_is_the_dtype_of_the_words() -> None:
    for code, words in (("BF16", "its bits as uint16"), ("F8_E4M3", "uint8"), ("F4", "packed")):
        with pytest.raises(UnsupportedDtypeError, match=f"'bits' for .*{words}"):
            get_framework("np").dtype(DTYPES[code])


@pytest.mark.parametrize("name", ["np", "bits"])
def test_numpy_has_no_devices(name: str) -> None:
    assert get_framework(name, "cpu").device is None
    with pytest.raises(ValueError, match="leave out device"):
        get_framework(name, "cuda")


def test_unknown_frameworks_are_refused() -> None:
    with pytest.raises(ValueError, match="'tf': choose one of pt, np, bits"):
        get_framework("tf")
