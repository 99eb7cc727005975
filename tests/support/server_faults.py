"""Faults of a loopback server: the next requests that match get one."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Faulty"]


@dataclass
class Fault:
    """A fault of the next requests whose ``METHOD /path`` matches."""

    kind: str
    on: re.Pattern[str]
    times: int


class Faulty:
    """A server whose next requests may fail."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def fail(self, fault: str, on: str, times: int = 1) -> None:
        """Fail the next requests that match ``METHOD /path``.

        Args:
            fault: What happens: a status, or a word that the server knows.
            on: The pattern.
            times: The number of requests.
        """
        self.faults.append(Fault(fault, re.compile(on), times))

    def take_fault(self, request: str) -> str | None:
        """The fault of a request, if it has one."""
        for fault in self.faults:
            if fault.times and fault.on.search(request):
                fault.times -= 1
                return fault.kind
        return None
