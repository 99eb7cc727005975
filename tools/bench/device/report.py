"""What was measured: printed, and written as JSON, row by row, so that no failure loses any."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

    from device.timing import Taken

LEGEND: Final = """\
GB/s, of 10^9 bytes: of the model's; of base and tuned bytes for `partition` and `hashing`; of what
is read and written for `copy`. `on device` are the same by kernels and copies within the device's
memory alone, those of all streams added up; `bus` is copies to and from main memory. Memory is the
most of the device's besides weights; encoding promises to need 1024 MiB. `stored` is a share of the
model's bytes. `rival` is the simple way: the device compares, the CPU codes. `cpu` copies
the weights from the device, and the CPU does the rest. `peer_apply` begins in main memory: it
decompresses nothing, and checks nothing.
"""

WIDTHS: Final = (9, 13, 9, 10, 10, 10, 10, 10, 10, 8)
HEAD: Final = (
    ("", "", "GB/s", "GB/s", "ms", "ms", "ms", "MiB", "MiB", "%"),
    (
        *("density", "stage", "", "on device", "", "on device", "bus"),
        *("allocated", "reserved", "stored"),
    ),
)


@dataclass(frozen=True, slots=True)
class Row:
    """What a stage took.

    Attributes:
        stage: The stage.
        density: Share of words that changed, where that matters.
        nbytes: Bytes that its rates are of.
        stored: Bytes that it stored, if it does.
        taken: What it took.
    """

    stage: str
    density: float | None
    nbytes: int
    taken: Taken
    stored: int | None = None

    @property
    def on_device(self) -> float | None:
        """Seconds that the device worked, if they were seen."""
        return sum(s for name, s in self.taken.kernels.items() if not _is_bus(name)) or None

    @property
    def on_bus(self) -> float | None:
        """Seconds of copies to and from main memory, if any were seen."""
        return sum(s for name, s in self.taken.kernels.items() if _is_bus(name)) or None

    def as_json(self) -> dict[str, Any]:
        """As it is written."""
        sums = {"device_seconds": self.on_device, "bus_seconds": self.on_bus}
        row: dict[str, Any] = asdict(self)
        taken: dict[str, Any] = row.pop("taken")
        return row | sums | taken


def _is_bus(name: str) -> bool:
    """Whether CUDA calls a copy so that goes to main memory or comes from there."""
    return name.startswith("Memcpy") and "DtoD" not in name


class Report:
    """What was measured so far.

    Args:
        about: What it was measured on.
        folder: Where ``gpu.json`` is written, if anywhere.
    """

    def __init__(self, about: dict[str, Any], folder: Path | None) -> None:
        self._folder = folder
        self._rows: list[Row] = []
        self._about = about
        for name, value in about.items():
            known = value.items() if isinstance(value, dict) else ()
            told = ", ".join(f"{key} {one}" for key, one in known) or value
            print(f"{name}: {told}", flush=True)
        self._write()

    def tell_parity(self, problems: list[str]) -> None:
        """Say whether the device gives the bytes of the CPU, and begin the table."""
        self._about |= {"parity": not problems, "differences": problems}
        self._write()
        print("the same bytes as on the CPU:", "NO" if problems else "yes")
        print(*problems, sep="\n", end="\n" if problems else "")
        print(f"\n{LEGEND}")
        for head in HEAD:
            print(_line(head), flush=True)

    def add(self, row: Row) -> None:
        """Take a row."""
        self._rows.append(row)
        self._write()
        print(_line(_cells(row, self._about["model_bytes"])), flush=True)

    def _write(self) -> None:
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        report = {**self._about, "rows": [row.as_json() for row in self._rows]}
        (self._folder / "gpu.json").write_text(json.dumps(report, indent=2) + "\n")


def _line(cells: tuple[str, ...]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True))


def _cells(row: Row, model_bytes: int) -> tuple[str, ...]:
    taken = row.taken
    device, bus = row.on_device, row.on_bus
    return (
        _number(row.density, 100, "%"),
        row.stage,
        _number(taken.seconds and row.nbytes / taken.seconds, 1e-9),
        _number(device and row.nbytes / device, 1e-9),
        *(_number(seconds, 1e3) for seconds in (taken.seconds, device, bus)),
        *(_number(memory, 2**-20) for memory in (taken.allocated, taken.reserved)),
        _number(row.stored, 100 / model_bytes),
    )


def _number(value: float | None, scale: float, unit: str = "") -> str:
    return "-" if value is None else f"{value * scale:.2f}{unit}"
