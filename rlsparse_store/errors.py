"""The errors of this package.

:class:`RlsparseError` is the root of all of them. Each leaf is also the standard error that a
caller would catch for the same reason, such as ``FileNotFoundError`` or ``ValueError``.
``exit_code`` is the exit code of the command line.
"""

from __future__ import annotations

import re
from typing import ClassVar, Final

__all__ = [
    "BackendError",
    "BaseMismatchError",
    "BucketError",
    "BucketPermissionError",
    "BucketServerError",
    "BucketTimeoutError",
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
    "ImplausibleError",
    "ImplausibleWarning",
    "IndexFormatError",
    "LimitError",
    "MissingDependencyError",
    "MissingFileError",
    "MovedBranchError",
    "NotFoundError",
    "ObjectConflictError",
    "OutputError",
    "PickleRefusedError",
    "PlaceError",
    "PrivateBaseError",
    "ResultMismatchError",
    "RlsparseError",
    "RunError",
    "RunLockedError",
    "StreamError",
    "TensorNotFoundError",
    "TooLargeError",
    "UnsupportedDtypeError",
    "UnsupportedFeatureError",
    "UnsupportedModelError",
    "UnsupportedVersionError",
    "VerificationError",
    "raise_interrupt",
]


_CACHED: Final = re.compile(
    r"\A.*/models--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{12})[0-9a-f]{28}", re.ASCII
)
"""A snapshot in the Hub's cache, which users know by the id of its repository."""

_OBJECT: Final = re.compile(r"\A.*/objects/[0-9a-f]{64}/(s3|gs)/", re.DOTALL)
"""A path in the cache of buckets, which users know by its URL."""


class RlsparseError(Exception):
    """Root of all errors of this package.

    Args:
        message: What is wrong, and the remedy, in one line.
        file: The file concerned, if any.
        tensor: The tensor concerned, if any.
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
        """Return ``file: tensor 'x': message``."""
        place = []
        if self.file is not None:
            file = _OBJECT.sub(r"\1://", str(self.file))
            place.append(_CACHED.sub(r"\1/\2@\3", file))
        if self.tensor is not None:
            place.append(f"tensor {self.tensor!r}")
        return ": ".join([*place, self.message])


class FormatError(RlsparseError, ValueError):
    """A delta breaks the format. ``code`` is the code of ``specs/format.md`` section 14."""

    code: ClassVar[str] = "header"
    exit_code = 3


class MissingFileError(FormatError, FileNotFoundError):
    """A file of the delta is missing."""

    code = "missing"


class UnsupportedVersionError(FormatError):
    """This library does not read the delta's version of the format."""

    code = "version"
    exit_code = 1


class UnsupportedFeatureError(FormatError):
    """The delta requires a feature that this library does not have."""

    code = "feature"
    exit_code = 1


class LimitError(FormatError):
    """A number in a file exceeds a limit of the format."""

    code = "limit"


class TooLargeError(FormatError):
    """The tuned checkpoint is larger than the caller accepts; the delta is sound."""

    code = "large"
    exit_code = 1


class ChecksumError(FormatError):
    """Bytes do not match their checksum."""

    code = "checksum"


class IndexFormatError(FormatError):
    """The index of a delta breaks the format or disagrees with the manifest or the data."""

    code = "index"


class StreamError(FormatError):
    """The frame or the streams of a chunk break the format."""

    code = "stream"


class BaseMismatchError(FormatError):
    """The given base is not the one that the delta was encoded against."""

    code = "base"


class ResultMismatchError(FormatError):
    """A decoded result does not match its digest."""

    code = "result"


class VerificationError(RlsparseError, ValueError):
    """A checkpoint is not the one that a delta stores."""

    exit_code = 3


class CheckpointError(RlsparseError, ValueError):
    """A checkpoint cannot be read: broken header, missing shard, unsafe name."""


class PickleRefusedError(CheckpointError):
    """The checkpoint has only pickled weights, which are never read."""


class ImplausibleError(RlsparseError, ValueError):
    """The tuned checkpoint is not one of the base, as its structure shows."""


class ImplausibleWarning(UserWarning):
    """A pair is probably not what its user takes it for."""


class DtypeMismatchError(RlsparseError, ValueError):
    """A tuned dtype does not match the base's, and no option says what to do."""


class UnsupportedDtypeError(RlsparseError, TypeError):
    """A framework has no dtype for a tensor."""


class NotFoundError(RlsparseError, FileNotFoundError):
    """A file, a folder or a repository does not exist."""

    exit_code = 4


class TensorNotFoundError(RlsparseError, KeyError):
    """A checkpoint has no tensor of this name."""

    exit_code = 4


class GatedError(NotFoundError):
    """The terms of a repository on the Hub must be accepted first."""


class HubError(RlsparseError):
    """The Hub failed or refused; the leaves say why."""


class HubOfflineError(NotFoundError, HubError):
    """The cache lacks a file, and the Hub cannot be reached."""


class HubPermissionError(HubError, PermissionError):
    """The access token does not permit this."""


class HubQuotaError(HubError):
    """Too many requests, or the storage quota is used up."""


class HubServerError(HubError):
    """The Hub or the connection failed; retrying later may help."""


class HubTimeoutError(HubError, TimeoutError):
    """The Hub did not answer in time."""


class MovedBranchError(HubError):
    """Another commit reached the branch first."""


class BucketError(RlsparseError):
    """Object storage failed or refused; the leaves say why."""


class BucketPermissionError(BucketError, PermissionError):
    """There are no credentials for the bucket, or they do not permit this."""


class BucketServerError(BucketError):
    """The object storage or the connection failed; retrying later may help."""


class BucketTimeoutError(BucketError, TimeoutError):
    """The object storage did not answer in time."""


class ObjectConflictError(BucketError, FileExistsError):
    """An object is not in the version that a read or a write requires."""


class PrivateBaseError(RlsparseError):
    """Publishing would reveal the name of a base that is not public."""


class OutputError(RlsparseError, OSError):
    """The output cannot be written: its path is taken, the disk is full or not writable."""


class RunLockedError(OutputError):
    """Another process is writing the run, or trains into the folder."""


class RunError(RlsparseError, ValueError):
    """What a run holds beside its deltas is damaged: its index, an entry's note, or a pin."""

    exit_code = 3


class MissingDependencyError(RlsparseError, ImportError):
    """An optional dependency is not installed; the message names the extra."""


class BackendError(RlsparseError, ValueError):
    """The kernels named by ``RLSPARSE_BACKEND`` do not run on this machine."""


class PlaceError(RlsparseError, PermissionError):
    """A server was asked to load from a place that it was not configured with."""


class UnsupportedModelError(RlsparseError, NotImplementedError):
    """An engine cannot serve this model from a delta, or not in this way."""


def raise_interrupt(error: BaseException) -> None:
    """Raise the interrupt that an error replaced, if it did.

    ``KeyboardInterrupt`` and ``SystemExit`` may come between two steps that belong together, also
    in Python's own modules. Their cleanup fails then: ``shutil.rmtree`` closes a folder twice, for
    example. A caller that handles the error and continues would ignore the interrupt.

    Args:
        error: An error that was caught.

    Raises:
        KeyboardInterrupt: The error came up while this one was handled.
        SystemExit: Likewise.

    Example:
        >>> raise_interrupt(OSError("no interrupt"))
    """
    before = error.__context__
    while before is not None:
        if isinstance(before, KeyboardInterrupt | SystemExit):
            raise before
        before = before.__context__
