"""How long something takes by the clock, and how long of that the device works."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import torch
from torch.profiler import DeviceType, ProfilerActivity, profile

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS: Final = 3
"""Times that each thing is measured; the best counts."""

_OF_DEVICE: Final = (ProfilerActivity.CUDA,)
"""What is profiled: to note each call of torch, too, would slow it down."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What something took, or nothing of it where it was interpreted.

    Attributes:
        seconds: By the clock, of the best round.
        kernels: Seconds of each kernel and copy by name, of one more round. What runs on several
            streams at a time is added up. Empty if the profiler sees nothing of the device.
        allocated: The most bytes of the device that tensors took, besides those before.
        reserved: The same of what torch took from the driver for them.
    """

    seconds: float | None = None
    kernels: dict[str, float] = field(default_factory=dict)
    allocated: int | None = None
    reserved: int | None = None


class Timer:
    """Measures on one device.

    Args:
        device: The device. On a CPU, where kernels are interpreted, things are only done once.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.is_measured = device.type == "cuda"
        self._sees_kernels = self.is_measured and _can_profile()

    def take(
        self, function: Callable[[], object], before: Callable[[], object] | None = None
    ) -> Taken:
        """Do something several times.

        Args:
            function: What is measured.
            before: Done before each time, and not measured. It leaves as much memory as it found.
        """
        prepare = before or (lambda: None)
        if not self.is_measured:
            prepare()
            function()
            return Taken()
        # What torch keeps of what was done before would count as this one's.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        allocated = torch.cuda.memory_allocated(self._device)
        reserved = torch.cuda.memory_reserved(self._device)
        seconds = min(self._seconds(function, prepare) for _ in range(ROUNDS))
        allocated = torch.cuda.max_memory_allocated(self._device) - allocated
        reserved = torch.cuda.max_memory_reserved(self._device) - reserved
        kernels = {}
        if self._sees_kernels:
            prepare()
            kernels = self._kernels(function)
        return Taken(seconds, kernels, allocated, reserved)

    def _seconds(self, function: Callable[[], object], prepare: Callable[[], object]) -> float:
        prepare()
        self._wait()
        begun = time.perf_counter()
        function()
        self._wait()
        return time.perf_counter() - begun

    def _wait(self) -> None:
        torch.cuda.synchronize(self._device)

    def _kernels(self, function: Callable[[], object]) -> dict[str, float]:
        self._wait()
        with profile(activities=_OF_DEVICE) as found:
            function()
            self._wait()
        return {
            event.key: event.self_device_time_total / 1e6
            for event in found.key_averages()
            if event.device_type == DeviceType.CUDA and not event.is_user_annotation
        }


def _can_profile() -> bool:
    """Whether the profiler starts; some machines do not let it look at the device."""
    try:
        with profile(activities=_OF_DEVICE):
            pass
    except (AssertionError, RuntimeError) as error:
        print(f"no times of kernels: {error}")
        return False
    return True
