"""Base class of objects that hold files open and close them at the end of a ``with`` statement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NoReturn, Self

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Closeable"]


class Closeable(ABC):
    """Closed at the end of a ``with`` statement, with or without an error.

    Classes that write back, or clean up after an error, define their own ``__exit__``.

    Forked processes may read. Copies are refused, in this process and in others: each would close
    the files of the original, or read those that have their descriptors there.
    """

    __slots__ = ()

    @abstractmethod
    def close(self) -> None:
        """Close the files. May be called twice."""

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied.

        Raises:
            TypeError: Always.
        """
        name = type(self).__name__
        msg = f"cannot pickle or copy {name}: it holds files open; open it anew in each process"
        raise TypeError(msg)

    def __enter__(self) -> Self:
        """Return the object itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the files."""
        self.close()
