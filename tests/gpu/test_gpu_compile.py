"""The kernels compile for GPUs, as they are launched, without one being here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from device_chunks import chunk, compared, contexts

from rlsparse_store.codec.contexts import key_bins
from rlsparse_store.format.dtypes import OrderMap, WordCoding
from rlsparse_store.gpu import kernels
from rlsparse_store.gpu.chunk_words import CodedWords
from rlsparse_store.gpu.diff import flag_rows, histograms
from rlsparse_store.gpu.hashing import hash_on_device
from rlsparse_store.gpu.join import join_chunks, verify_chunks
from rlsparse_store.gpu.split import partitions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytest.importorskip("triton.backends.nvidia", reason="Triton brings no compiler for GPUs here")

EVERY_WORD = {"compare_words", "map_contexts"}
POINTERS = {
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}

# Runs without the interpreter, which the tests set for themselves.
COMPILE = """
import json, re, subprocess, sys, tempfile
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from rlsparse_store.gpu import kernels

def usage(binary):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        told = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True)
    return int(re.search(r"STACK:(\\d+)", told.stdout)[1])

target = GPUTarget("cuda", int(sys.argv[1]), 32)
for name, types, constants in json.load(sys.stdin):
    kernel = getattr(kernels, name)
    warps = constants.pop("num_warps", 4)
    names = kernel.arg_names
    places = dict(zip((n for n in names if n not in constants), types, strict=True))
    source = ASTSource(
        fn=kernel,
        signature={n: places.get(n, "constexpr") for n in names},
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in places if "*" in places[n]},
    )
    built = triton.compile(source, target=target, options={"num_warps": warps})
    loads = built.asm["ptx"].count("ld.global.v4")
    print(name, constants, usage(built.asm["cubin"]), loads, sep="\\t")
"""


class Recorder:
    """A kernel that notes how it is launched."""

    def __init__(self, name: str, launches: dict[str, Any]) -> None:
        self._name = name
        self._kernel = getattr(kernels, name)
        self._launches = launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def run(*arguments: Any, **constants: Any) -> None:  # noqa: ANN401 - a kernel's
            types = [POINTERS[a.dtype] if isinstance(a, torch.Tensor) else "i32" for a in arguments]
            launch = [self._name, types, constants]
            self._launches[json.dumps(launch)] = launch
            self._kernel[grid](*arguments, **constants)

        return run


@pytest.fixture(scope="module")
def launches() -> list[Any]:
    """Every way in which the kernels were launched, for each width."""
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in kernels.__all__:
            patch.setattr(kernels, name, Recorder(name, found))
        hash_on_device(torch.zeros(40 << 14, dtype=torch.uint8))
        for width in (16, 32):
            launch_all(WordCoding(width, OrderMap.SIGN_MAGNITUDE), None, 0.05)
        launch_all(WordCoding(16, OrderMap.SIGN_MAGNITUDE), 300, 0.4)
    return list(found.values())


def launch_all(coding: WordCoding, length: int | None, density: float) -> None:
    """Encode and decode a chunk of twelve contexts, as many as chunks usually have."""
    base, tuned = chunk(1, 3000, coding, density)
    (words,) = compared(coding, (base, tuned, None if length is None else (length, 0)))
    row_flags = None if length is None else flag_rows([words])[0]
    bins = key_bins(coding, {8: 3, 16: 7, 32: 23}[coding.width])
    histograms([words], coding, bins, [row_flags], [1])
    bounds = contexts(words.changes.top_key, 12)
    (streams,) = partitions([words], coding, [bounds], [row_flags])
    coded = CodedWords(words.base, bounds, row_flags, streams.changed, streams.content)
    assert verify_chunks([coded], [words.tuned], coding) == [None]
    assert join_chunks([coded], coding) == [None]


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_and_fit_into_registers(
    tmp_path: Path, launches: list[Any], capability: int
) -> None:
    assert {launch[0] for launch in launches} == set(kernels.__all__)
    if capability < 90:
        # Those that touch every word are enough to see that nothing needs a newer device.
        launches = [own for own in launches if own[0] in EVERY_WORD and own[2]["WIDTH"] == 16]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(capability)],
        input=json.dumps(launches),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(told) == len(launches)
    spilled = [(name, constants) for name, constants, stack, _ in told if int(stack)]
    assert not spilled
    # What touches every word loads sixteen bytes at a time.
    assert all(int(loads) for name, *_, loads in told if name in EVERY_WORD)
