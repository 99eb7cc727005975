"""Failures of object storage as errors of this package: one line, a remedy, no secrets.

The text of a server's answer may repeat a key or a token, and obstore's errors have that text: only
the status and the code of an answer are taken from it.
"""

from __future__ import annotations

import re
from typing import Final

from rlsparse_store.buckets.calls import TIMEOUT, Retriable, timeout
from rlsparse_store.errors import (
    BucketError,
    BucketPermissionError,
    BucketServerError,
    BucketTimeoutError,
    NotFoundError,
    ObjectConflictError,
    RlsparseError,
)

__all__ = ["changed", "failure", "settings_error", "too_large", "too_late"]

_STATUS: Final = re.compile(r"status code: (\d{3})\b")
_CODE: Final = re.compile(r"<Code>(\w{1,64})</Code>", re.ASCII)
_NO_CREDENTIALS: Final = re.compile(
    r"Missing(AccessKeyId|SecretAccessKey)|/latest/|computeMetadata|token request|TokenRequest"
)
"""What obstore says where it found no credentials, or asked a machine's metadata for them."""
_STANDARD: Final = {"FileNotFoundError": 404, "PermissionDeniedError": 403}
_STATUS_OF: Final = _STANDARD | {
    "UnauthenticatedError": 401,
    "AlreadyExistsError": 412,
    "PreconditionError": 412,
}

_VARIABLES: Final = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT",
}


def failure(error: Exception, place: str) -> RlsparseError | Retriable:
    """Translate an error of obstore.

    Args:
        error: The error.
        place: The URL of the object or the bucket.

    Returns:
        The error, in :class:`Retriable` if another attempt may succeed.
    """
    text = str(error)
    found = _STATUS.search(text)
    status = _STATUS_OF.get(type(error).__name__) or (int(found[1]) if found else None)
    if _NO_CREDENTIALS.search(text.partition("\n")[0]):
        return _no_credentials(place)
    if status is not None:
        code = _CODE.search(text)
        return _of_status(status, code[1] if code else "", place)
    if "BadScheme" in text:
        msg = "its endpoint is not https; for a server that you trust, set AWS_ALLOW_HTTP=true"
        return BucketError(msg, file=place)
    if "TimedOut" in text or "kind: Timeout" in text:
        return Retriable(too_late(place))
    if type(error).__name__ == "GenericError":
        msg = "the object storage is unreachable, or closed the connection; try again later"
        return Retriable(BucketServerError(msg, file=place))
    return BucketError(f"obstore failed ({type(error).__name__})", file=place)


def settings_error(error: Exception, place: str) -> BucketError:
    """Return the error for settings that obstore refuses. Its own text may repeat them."""
    if _NO_CREDENTIALS.search(str(error)):
        return _no_credentials(place)
    msg = "obstore refuses the settings of the environment (variables of AWS_… or GOOGLE_…)"
    return BucketError(msg, file=place)


def _no_credentials(place: str) -> BucketPermissionError:
    scheme = place.partition("://")[0]
    public = {"s3": "AWS_SKIP_SIGNATURE", "gs": "GOOGLE_SKIP_SIGNATURE"}[scheme]
    msg = f"no credentials were found: set {_VARIABLES[scheme]}, or {public}=true if it is public"
    return BucketPermissionError(msg, file=place)


def _of_status(status: int, code: str, place: str) -> RlsparseError | Retriable:
    details = f"HTTP {status}, {code}" if code else f"HTTP {status}"
    if status in {401, 403}:
        names = _VARIABLES[place.partition("://")[0]]
        msg = f"the credentials do not allow this ({details}): check {names}, and who may do it"
        return BucketPermissionError(msg, file=place)
    if status == 404:
        what = "no such bucket" if code == "NoSuchBucket" else "no such object"
        return NotFoundError(f"{what}; check the name", file=place)
    if status in {409, 412}:
        msg = "another process wrote it first, and nothing was written"
        return ObjectConflictError(msg, file=place)
    if status in {301, 307, 400} and code in {
        "PermanentRedirect",
        "TemporaryRedirect",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
    }:
        msg = f"the bucket is in another region ({details}): set AWS_REGION"
        return BucketError(msg, file=place)
    error = BucketServerError(f"the object storage failed ({details}); try again later", file=place)
    if status in {408, 429} or status >= 500:
        return Retriable(error)
    return BucketError(f"the object storage refused the request ({details})", file=place)


def too_large(place: str, nbytes: int, most: int) -> BucketError:
    """The error for an object that is not read in one piece."""
    return BucketError(f"has {nbytes} bytes; at most {most} are read in one piece", file=place)


def too_late(place: str) -> BucketTimeoutError:
    """Return the error for a server that did not answer in time."""
    msg = (
        f"the object storage did not answer within {timeout():.0f} s; try again later, or raise "
        f"{TIMEOUT}"
    )
    return BucketTimeoutError(msg, file=place)


def changed(place: str) -> ObjectConflictError:
    """Return the error for an object that was replaced while it was being read."""
    msg = "was replaced while it was being read; run again when nothing writes to it"
    return ObjectConflictError(msg, file=place)
