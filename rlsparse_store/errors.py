"""Every error this package raises on purpose.

One root, :class:`RlsparseError`, so that a caller can catch all of them at once; one leaf per
thing a caller might want to tell apart. ``exit_code`` is what the command line returns for it.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "BackendError",
    "BaseMismatchError",
    "CheckpointError",
    "ChecksumError",
    "DtypeMismatchError",
    "FormatError",
    "GatedError",
    "HubError",
    "HubOfflineError",
    "HubPermissionError",
    "HubQuotaError",
    "HubServerError",
    "HubTimeoutError",
    "IndexFormatError",
    "LimitError",
    "MissingDependencyError",
    "MissingFileError",
    "MovedBranchError",
    "NotFoundError",
    "OutputError",
    "PickleRefusedError",
    "PrivateBaseError",
    "ResultMismatchError",
    "RlsparseError",
    "StreamError",
    "UnsupportedDtypeError",
    "UnsupportedFeatureError",
    "UnsupportedVersionError",
    "VerificationError",
]


class RlsparseError(Exception):
    """Root of every error raised on purpose.

    Args:
        message: What is wrong, and the remedy, in one line.
        file: The file concerned, if one is.
        tensor: The tensor concerned, if one is.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self, message: str, *, file: object | None = None, tensor: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.file = file
        self.tensor = tensor

    def __str__(self) -> str:
        """Name the place before the problem: ``file: tensor 'x': message``."""
        place = []
        if self.file is not None:
            place.append(str(self.file))
        if self.tensor is not None:
            place.append(f"tensor {self.tensor!r}")
        return ": ".join([*place, self.message])


class FormatError(RlsparseError):
    """A delta breaks the format. ``code`` is the code of ``specs/format.md`` section 12."""

    code: ClassVar[str] = "header"
    exit_code = 3


class MissingFileError(FormatError):
    """A file that belongs to the delta is not there."""

    code = "missing"


class UnsupportedVersionError(FormatError):
    """The delta has a major version that this library does not read."""

    code = "version"
    exit_code = 1


class UnsupportedFeatureError(FormatError):
    """The delta requires a feature that this library does not know."""

    code = "feature"
    exit_code = 1


class LimitError(FormatError):
    """A number in a file exceeds a limit of the format."""

    code = "limit"


class ChecksumError(FormatError):
    """Stored bytes are not the ones that were written."""

    code = "checksum"


class IndexFormatError(FormatError):
    """The index of a delta breaks the format or disagrees with the manifest or the data."""

    code = "index"


class StreamError(FormatError):
    """The frame or the streams of a chunk break the format."""

    code = "stream"


class BaseMismatchError(FormatError):
    """The checkpoint given as the base is not the one the delta was made against."""

    code = "base"


class ResultMismatchError(FormatError):
    """What was decoded is not what was encoded."""

    code = "result"


class VerificationError(RlsparseError):
    """A checkpoint is not the one it was compared with."""

    exit_code = 3


class CheckpointError(RlsparseError):
    """A checkpoint cannot be read: broken header, missing shard, unsafe name."""


class PickleRefusedError(CheckpointError):
    """Only pickled weights were found; they are never read."""


class DtypeMismatchError(RlsparseError):
    """The tuned checkpoint's dtype does not fit the base's, and no option says what to do."""


class UnsupportedDtypeError(RlsparseError):
    """A framework has no dtype for a tensor."""


class NotFoundError(RlsparseError):
    """A file, a folder or a repository is not there."""

    exit_code = 4


class GatedError(NotFoundError):
    """A repository on the Hub has terms that must be accepted first."""


class HubError(RlsparseError):
    """The Hub did not do what it was asked; the leaves say why."""


class HubOfflineError(NotFoundError, HubError):
    """Something is not in the cache, and the Hub cannot be reached."""


class HubPermissionError(HubError):
    """The access token does not allow this."""


class HubQuotaError(HubError):
    """Too many requests, or no room left."""


class HubServerError(HubError):
    """The Hub, or the way to it, failed; trying again later may help."""


class HubTimeoutError(HubError):
    """The Hub did not answer in time."""


class MovedBranchError(HubError):
    """Someone else wrote to the branch in the meantime."""


class PrivateBaseError(RlsparseError):
    """Publishing would tell the name of a base that not everyone may see."""


class OutputError(RlsparseError):
    """The result cannot be written: the place is taken, full or not writable."""


class MissingDependencyError(RlsparseError):
    """An optional dependency is needed for this; the message names the extra."""


class BackendError(RlsparseError):
    """A backend was asked for by name that does not run on this machine."""
