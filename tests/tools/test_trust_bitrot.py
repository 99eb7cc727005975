"""The rig of bit rot: nothing wrong is stored, and without the checks something would be."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import pytest

import bitrot
from forked import run_batches
from result import Result
from rlsparse_store.pipeline import encode_small, spans

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> bitrot.Rig:
    return bitrot.Rig(tmp_path_factory.mktemp("rig"))


def outcomes(rig: bitrot.Rig) -> set[str]:
    return {rig.trial(1, number)[0] for number in range(40)}


def test_flipped_bits_are_noticed_or_have_no_effect(rig: bitrot.Rig) -> None:
    assert outcomes(rig) <= {"noticed by the proof", "noticed by a kernel", "without effect"}


@pytest.mark.parametrize(
    ("where", "check"),
    [(spans, "_prove"), (spans, "_require_base_leaves"), (encode_small._Batch, "prove")],
)
def test_the_rig_sees_what_a_check_prevents(rig: bitrot.Rig, where: object, check: str) -> None:
    with mock.patch.object(where, check):
        assert outcomes(rig) & {"stored wrong", "stored broken"}


@pytest.mark.parametrize("buffer", [np.zeros(9, np.uint16), bytes(18), memoryview(bytes(18))])
def test_one_bit_is_flipped_where_it_lies(buffer: bytes) -> None:
    bitrot.flip(buffer, random.Random(1))  # noqa: S311 - repeatable
    assert sum(byte.bit_count() for byte in memoryview(buffer).tobytes()) == 1


def test_a_wrong_delta_fails_the_run(rig: bitrot.Rig, tmp_path: Path) -> None:
    result = Result.read("bitrot", tmp_path)
    with mock.patch.object(rig, "trial", return_value=("stored wrong", "streams")):
        run_batches(rig.batch, result, seconds=0)
    assert result.failed()
    assert result.totals()["stored wrong"] == bitrot.BATCH
