"""The codecs that are compared, in the order of the tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from peers.ours import Ours
from peers.packages import (
    ArcV2,
    ArcV3,
    ArcV3Patient,
    LmzAppend,
    PcodecGaps,
    WeightscopePatch,
    Z4aiDelta,
    ZipnnDelta,
)
from peers.restated import Coordinates, GapXorZstd, Pulse, XorZstd
from peers.zstd_patch import ZstdPatch, ZstdPatchHard

if TYPE_CHECKING:
    from peers.base import Codec

__all__ = ["CODECS"]

CODECS: Final[dict[str, type[Codec[Any]]]] = {
    codec.name: codec
    for codec in (
        Ours,
        ArcV2,
        ArcV3,
        ArcV3Patient,
        ZipnnDelta,
        Z4aiDelta,
        LmzAppend,
        WeightscopePatch,
        PcodecGaps,
        ZstdPatch,
        ZstdPatchHard,
        Pulse,
        XorZstd,
        GapXorZstd,
        Coordinates,
    )
}
