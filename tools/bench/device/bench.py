"""The measurements, in order: what must be right first, then what is worth the most."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import torch

from device.parity import KINDS, differences
from device.peers import Peer
from device.report import Report, Row
from device.rival import Rival
from device.stages import Group
from device.timing import Timer
from device.weights import are_same, changed_words, make_base, size_of, tune
from device.whole import Whole, filesystem, folder_for
from machine import describe_machine, describe_packages
from rlsparse_store.kernels.dispatch import get_backend

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from device.weights import Tensors

COMPARED: Final = tuple(KINDS), (6 << 20) + 5
"""Dtypes by which device and CPU are compared, and words of the largest tensors: several chunks."""

COMPARED_INTERPRETED: Final = ("BF16", "F8_E4M3", "I32"), 3_077
"""The same where a kernel takes as long as a second."""


def run(name: str, nbytes: int, densities: Sequence[float], folder: Path | None) -> None:
    """Compare, then measure.

    Args:
        name: The device.
        nbytes: Bytes of model.
        densities: Shares of words that change.
        folder: Where the report is written, if anywhere.
    """
    # With its number, as its tensors name it.
    device = torch.empty(0, device=name).device
    timer = Timer(device)
    backend = get_backend().name
    if timer.is_measured and backend == "numpy":
        sys.exit("the CPU's part would run on NumPy: install the package with its native kernels")
    base = make_base(device, nbytes)
    place = folder_for(size_of(base))
    report = Report(_about(device, backend, place) | {"model_bytes": size_of(base)}, folder)
    problems = differences(device, *(COMPARED if timer.is_measured else COMPARED_INTERPRETED))
    report.tell_parity(problems)
    if problems:
        sys.exit("the device does not give the bytes of the CPU")
    report.add(_copy(timer, base))
    with TemporaryDirectory(dir=place) as work:
        whole, rival = Whole(device, base, Path(work)), Rival(base, Path(work))
        for density in densities:
            tuned = tune(base, density)
            for row in _rows(timer, whole, rival, base, tuned):
                report.add(row)


def _copy(timer: Timer, base: Tensors) -> Row:
    """The yardstick: all weights copied within the device's memory."""
    target = torch.empty_like(next(iter(base.values())))

    def copy() -> None:
        for tensor in base.values():
            target.copy_(tensor)

    return Row("copy", None, 2 * size_of(base), timer.take(copy))


def _rows(timer: Timer, whole: Whole, rival: Rival, base: Tensors, tuned: Tensors) -> Iterator[Row]:
    """All stages at one density."""
    nbytes = size_of(base)
    density = 2 * sum(changed_words(base, tuned).values()) / nbytes
    taken = timer.take(lambda: whole.encode(tuned), whole.forget_delta)
    yield Row("encode", density, nbytes, taken, whole.stored)
    taken = timer.take(whole.apply, whole.reset)
    _require_same(whole.model, tuned)
    yield Row("apply", density, nbytes, taken)

    taken = timer.take(lambda: rival.encode(tuned), rival.forget_delta)
    yield Row("rival_encode", density, nbytes, taken, rival.stored)

    def reset() -> None:
        whole.reset()
        rival.reset()

    taken = timer.take(lambda: rival.apply(whole.model), reset)
    _require_same(whole.model, tuned)
    yield Row("rival_apply", density, nbytes, taken)
    taken = timer.take(lambda: whole.encode_on_cpu(tuned), whole.forget_delta)
    yield Row("cpu_encode", density, nbytes, taken, whole.stored)

    peer = Peer(base, tuned)
    taken = timer.take(peer.encode)
    yield Row("peer_encode", density, nbytes, taken, peer.stored)
    whole.reset()
    taken = timer.take(lambda: peer.apply(whole.model))
    _require_same(whole.model, tuned)
    yield Row("peer_apply", density, nbytes, taken)

    group = Group(base, tuned)
    yield Row("partition", density, 2 * group.nbytes, timer.take(group.partition))
    yield Row("split", density, group.nbytes, timer.take(group.split))
    yield Row("join", density, group.nbytes, timer.take(group.join))
    yield Row("hashing", density, 2 * group.nbytes, timer.take(group.hashing))


def _require_same(model: Tensors, tuned: Tensors) -> None:
    if not are_same(model, tuned):
        sys.exit("the model is not the tuned one after applying")


def _about(device: torch.device, backend: str, place: Path) -> dict[str, Any]:
    """The machine, and what of it is used."""
    is_cuda = device.type == "cuda"
    return {
        "machine": describe_machine(),
        "packages": describe_packages(),
        "device": torch.cuda.get_device_name(device) if is_cuda else "interpreter: no rates",
        "cuda": torch.version.cuda,
        "cpu_backend": backend,
        "deltas_in": f"{place} ({filesystem(place)})",
    }
