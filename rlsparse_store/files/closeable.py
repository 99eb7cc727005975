"""What holds files open, and closes them at the end of a ``with`` statement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Closeable"]


class Closeable(ABC):
    """Closed at the end of a ``with`` statement, whatever happened in it.

    What is to be written back, or removed after an error, needs an end of its own.
    """

    __slots__ = ()

    @abstractmethod
    def close(self) -> None:
        """Close the files. May be called twice."""

    def __enter__(self) -> Self:
        """Return the thing itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the files."""
        self.close()
