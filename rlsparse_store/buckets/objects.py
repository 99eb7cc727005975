"""Objects in a bucket: their versions, and what a listing says of them."""

from __future__ import annotations

from enum import Enum
from typing import Final, Literal, NamedTuple

__all__ = ["ABSENT", "Absent", "ObjectStat", "ObjectVersion"]


class ObjectVersion(NamedTuple):
    """One version of an object. Equal versions have equal bytes.

    Attributes:
        e_tag: The entity tag: in S3, what a conditional write compares.
        version: The version: in GCS, the generation, which a conditional write compares.
    """

    e_tag: str | None
    version: str | None


class ObjectStat(NamedTuple):
    """What a server says of an object without sending it.

    Attributes:
        key: Its key, relative to the place that was asked.
        nbytes: Its size in bytes.
        modified: When it was written, in seconds since 1970, by the server's clock.
        version: Its version.
    """

    key: str
    nbytes: int
    modified: float
    version: ObjectVersion


class Absent(Enum):
    """The type of :data:`ABSENT`."""

    ABSENT = "absent"


ABSENT: Final[Literal[Absent.ABSENT]] = Absent.ABSENT
"""The condition of a write that an object of this key must not exist."""
