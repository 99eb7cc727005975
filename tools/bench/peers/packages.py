"""Peers that install from the package index, called as their own documentation does.

They are imported where they are used: none of them has types, and each may be missing.
"""

from __future__ import annotations

import os
import shutil
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from inputs import read_tensors
from peers.arrays import changed_positions, pack, unpack
from peers.base import Codec, Coded, Kind, PerTensor

if TYPE_CHECKING:
    from peers.base import Tensor, Tensors

Torch: TypeAlias = Any

SLICE = 1 << 25
"""Words of a slice for codecs that would take minutes for everything."""


def _as_torch(words: Tensor) -> Torch:
    """The same memory as a bfloat16 tensor of torch."""
    torch = import_module("torch")
    return torch.from_numpy(words.view(np.int16)).view(torch.bfloat16)


class ArcV2(Codec[list[tuple[Torch, str]]]):
    """arc_v2 of fireworks-delta-compression: XOR and zstd, with an Adler-32 of the result."""

    name = "arc_v2"
    kind = Kind.PACKAGE
    note = "fireworks-delta-compression"
    format_name = "arc_v2"

    def __init__(self) -> None:
        self._package = import_module("fireworks_delta_compression")

    def encode(self, base: Tensors, tuned: Tensors) -> Coded[list[tuple[Torch, str]]]:
        """Compress every tensor."""
        deltas = [
            self._package.delta_compress(
                src=_as_torch(before), dst=_as_torch(after), compression_format=self.format_name
            )
            for before, after in zip(base, tuned, strict=True)
        ]
        return Coded(deltas, sum(delta.numel() + len(checksum) for delta, checksum in deltas))

    def decode(self, base: Tensors, payload: list[tuple[Torch, str]]) -> Tensors:
        """Decompress every tensor."""
        torch = import_module("torch")
        results = [
            self._package.delta_decompress(
                src=_as_torch(before),
                compressed_diff=delta,
                checksum=checksum,
                compression_format=self.format_name,
            )
            for before, (delta, checksum) in zip(base, payload, strict=True)
        ]
        return [result.view(torch.int16).numpy().view(np.uint16) for result in results]


class ArcV3(ArcV2):
    """arc_v3: gaps and a codebook of mantissas, or arc_v2 where that is smaller.

    Five candidates run in threads; those that take half again as long as the first are dropped.
    On one core they hold each other up, so that the choice depends on the machine.
    """

    name = "arc_v3"
    note = "fireworks-delta-compression; drops slow candidates, so its size varies"
    format_name = "arc_v3"
    limit_words = SLICE


class ArcV3Patient(ArcV3):
    """arc_v3 with all of its candidates awaited: the smallest it can do."""

    name = "arc_v3, patient"
    note = "fireworks-delta-compression, made to wait for all candidates"

    def __init__(self) -> None:
        os.environ["ARC3_CANDIDATE_WAIT_MULTIPLIER"] = "1000000"
        super().__init__()


class ZipnnDelta(PerTensor):
    """The delta mode of zipnn: XOR, byte planes, Huffman."""

    name = "zipnn delta"
    kind = Kind.PACKAGE
    limit_words = SLICE

    def __init__(self) -> None:
        self._zipnn = import_module("zipnn").ZipNN(
            bytearray_dtype="bfloat16", delta_compressed_type="byte", threads=1
        )

    def encode_tensor(self, base: Tensor, tuned: Tensor) -> bytes:
        """Compress a tensor; both sides have to be bytes."""
        stored = self._zipnn.compress(tuned.tobytes(), delta_second_data=base.tobytes())
        return bytes(stored)

    def decode_tensor(self, base: Tensor, stored: bytes) -> Tensor:
        """Decompress a tensor."""
        content = self._zipnn.decompress(stored, delta_second_data=base.tobytes())
        return np.frombuffer(content, np.uint16).reshape(base.shape)


class Z4aiDelta(PerTensor):
    """compress_delta of z4ai: XOR, then the smallest of several codings."""

    name = "z4ai delta"
    kind = Kind.PACKAGE
    limit_words = SLICE

    def __init__(self) -> None:
        self._delta = import_module("z4ai.delta")

    def encode_tensor(self, base: Tensor, tuned: Tensor) -> bytes:
        """Compress a tensor."""
        stored: bytes = self._delta.compress(tuned, base, dtype="bf16")
        return stored

    def decode_tensor(self, base: Tensor, stored: bytes) -> Tensor:
        """Decompress a tensor."""
        content = self._delta.decompress(stored, base)
        return np.frombuffer(content, np.uint16).reshape(base.shape)


class LmzAppend(Codec[Path]):
    """A checkpoint appended to an lmz archive of its base: XOR with the base's tensor, then rANS.

    The archive holds the base, too: a decoder decodes it, while the others have it as it is. The
    base's part is not counted.
    """

    name = "lmzip append"
    kind = Kind.PACKAGE
    note = "lmzip; reads its base from the archive; from files to files, in the page cache"
    limit_words = SLICE

    def __init__(self) -> None:
        self._package = import_module("lmz")
        self._folder = TemporaryDirectory()

    def prepare(self, base: Tensors, tuned: Tensors) -> None:
        """Write both as safetensors, and the archive of the base."""
        self._folder = TemporaryDirectory()
        for name, tensors in (("base", base), ("tuned", tuned)):
            _save(self._at(f"{name}.safetensors"), tensors)
        self._package.compress(str(self._at("base.safetensors")), str(self._at("base.lmz")))

    def encode(self, base: Tensors, tuned: Tensors) -> Coded[Path]:
        """Append the tuned file to a copy of the archive."""
        del base, tuned
        before, archive = self._at("base.lmz"), self._at("both.lmz")
        shutil.copyfile(before, archive)
        self._package.append(str(archive), str(self._at("tuned.safetensors")))
        return Coded(archive, archive.stat().st_size - before.stat().st_size)

    def decode(self, base: Tensors, payload: Path) -> Tensors:
        """Extract the tuned file."""
        del base
        out = self._at("out.safetensors")
        self._package.extract(str(payload), "tuned.safetensors", str(out), overwrite=True)
        return _load(out)

    def _at(self, name: str) -> Path:
        return Path(self._folder.name) / name


def _save(path: Path, tensors: Tensors) -> None:
    save_file = import_module("safetensors.torch").save_file
    save_file({f"t{place:05}": _as_torch(words) for place, words in enumerate(tensors)}, path)


def _load(path: Path) -> Tensors:
    results = read_tensors(path)
    return [results[name] for name in sorted(results)]


class WeightscopePatch(Codec[Path]):
    """A .wsp patch of weightscope with threshold 0: uint32 positions and values, zstd-10.

    It goes from files to files, so its times include writing and reading them in memory.
    """

    name = "weightscope"
    kind = Kind.PACKAGE
    note = "threshold 0; from files to files, in the page cache"
    limit_words = SLICE

    def __init__(self) -> None:
        self._package = import_module("weightscope")
        self._folder = TemporaryDirectory()

    def prepare(self, base: Tensors, tuned: Tensors) -> None:
        """Write both as safetensors."""
        self._folder = TemporaryDirectory()
        for name, tensors in (("base", base), ("tuned", tuned)):
            self._at(name).mkdir()
            _save(self._at(name) / "model.safetensors", tensors)

    def encode(self, base: Tensors, tuned: Tensors) -> Coded[Path]:
        """Export the patch."""
        del base, tuned
        patch = self._at("patch.wsp")
        sides = str(self._at("base")), str(self._at("tuned"))
        self._package.export_patch(*sides, patch, threshold=0.0)
        return Coded(patch, patch.stat().st_size)

    def decode(self, base: Tensors, payload: Path) -> Tensors:
        """Apply the patch."""
        del base
        out = self._at("out.safetensors")
        self._package.apply_patch(payload, str(self._at("base")), out)
        return _load(out)

    def _at(self, name: str) -> Path:
        return Path(self._folder.name) / name


class PcodecGaps(PerTensor):
    """pcodec on uint32 gaps and int16 steps.

    A step is the distance between base and tuned value in representable values, as in our own
    format; it wraps around, so that it is exact for all bits.
    """

    name = "pcodec gaps + steps"
    kind = Kind.PACKAGE
    note = "finding the gaps and steps is NumPy of ours"
    in_place = True
    limit_words = SLICE

    def __init__(self) -> None:
        pcodec = import_module("pcodec")
        self._standalone = pcodec.standalone
        self._config = pcodec.ChunkConfig()

    def encode_tensor(self, base: Tensor, tuned: Tensor) -> bytes:
        """Compress gaps and steps."""
        positions = changed_positions(base, tuned)
        gaps = np.diff(positions, prepend=0).astype(np.uint32)
        steps = _ordered(tuned.reshape(-1)[positions]) - _ordered(base.reshape(-1)[positions])
        streams = [self._compress(gaps), self._compress(steps.view(np.int16))]
        return pack([np.frombuffer(stream, np.uint8) for stream in streams])

    def decode_tensor(self, base: Tensor, stored: bytes) -> Tensor:
        """Step the words of the base."""
        gaps, steps = (self._decompress(stream.tobytes()) for stream in unpack(stored))
        positions = np.cumsum(gaps, dtype=np.int64)
        words = base.reshape(-1)
        words[positions] = _unordered(_ordered(words[positions]) + steps.view(np.uint16))
        return base

    def _compress(self, values: Any) -> bytes:  # noqa: ANN401 - of two dtypes
        stored: bytes = self._standalone.simple_compress(values, self._config)
        return stored

    def _decompress(self, stored: bytes) -> Any:  # noqa: ANN401 - as above
        values = self._standalone.simple_decompress(stored)
        return np.zeros(0, np.uint16) if values is None else values


def _ordered(words: Tensor) -> Tensor:
    """Map floats to integers in the same order."""
    return words ^ np.where(words >> 15, np.uint16(0xFFFF), np.uint16(0x8000))


def _unordered(keys: Tensor) -> Tensor:
    """Undo :func:`_ordered`."""
    return keys ^ np.where(keys >> 15, np.uint16(0x8000), np.uint16(0xFFFF))
