"""Which deltas and checkpoints a server reads: those that it was configured with, and no others."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rlsparse_store.buckets.bucket_url import parse_bucket_url
from rlsparse_store.delta.resolve import as_repo_id
from rlsparse_store.errors import PlaceError
from rlsparse_store.format.names import printable
from rlsparse_store.hub.repo_id import parse_repo_id

if TYPE_CHECKING:
    from collections.abc import MutableMapping

__all__ = ["ServedPlaces"]

_TEXTS: Final = ("base", "base_revision", "delta", "delta_revision", "subfolder")


@dataclass
class ServedPlaces:
    """The places that a server is configured with.

    Attributes:
        option: The engine's option that holds them, for errors.
        base: The base; the model that is served, or what its delta names, if not given.
        base_revision: Its revision on the Hub.
        delta: The delta to load over the model that is served, if that is the base.
        delta_revision: Its revision on the Hub.
        subfolder: Its folder within a repository or folder of several deltas.
        roots: Folders, repositories and URLs in object storage that a running server may load
            from. What it is started with belongs to them.
    """

    option: str
    base: str | None = None
    base_revision: str | None = None
    delta: str | None = None
    delta_revision: str | None = None
    subfolder: str = ""
    roots: list[str] = field(default_factory=list)

    @classmethod
    def take(cls, option: str, values: MutableMapping[str, Any]) -> ServedPlaces:
        """Remove the places from a loader's options, since it refuses those that it does not know.

        Args:
            option: The engine's option that holds them, for errors.
            values: What the option holds. The places are removed from it.

        Raises:
            PlaceError: An option has the wrong type.
        """
        found = {name: values.pop(name) for name in (*_TEXTS, "roots") if name in values}
        roots = found.pop("roots", [])
        wrong = next((name for name, value in found.items() if not isinstance(value, str)), None)
        if not (isinstance(roots, list) and all(isinstance(root, str) for root in roots)):
            wrong = "roots"
        if wrong is not None:
            kind = "a list of texts" if wrong == "roots" else "a text"
            msg = f"{option}: {wrong} must be {kind}"
            raise PlaceError(msg)
        return cls(option, **found, roots=list(roots))

    def fields(self) -> dict[str, Any]:
        """The options that hold these places."""
        texts = {name: getattr(self, name) for name in _TEXTS if getattr(self, name)}
        return {**texts, "roots": self.roots}

    def check(self, place: str) -> None:
        """Require that a place lies under a root.

        Args:
            place: A local path, ``org/name[@revision]``, or a URL in object storage.

        Raises:
            PlaceError: It does not.
        """
        if not any(_is_within(place, root) for root in self.roots):
            msg = (
                "this server may not load from there; name a folder above it, or its repository, "
                f"in the roots of {self.option} when you start the server"
            )
            raise PlaceError(msg, file=printable(place))


def _is_within(place: str, root: str) -> bool:
    """Whether a place is a root, or below it; links are followed first."""
    url, url_above = parse_bucket_url(place), parse_bucket_url(root)
    if url is not None or url_above is not None:
        return url is not None and url_above is not None and url.is_within(url_above)
    repo, above = as_repo_id(place), parse_repo_id(root)
    if repo is not None:
        return above is not None and above.repo == repo.repo and as_repo_id(root) is not None
    return Path(place).resolve().is_relative_to(Path(root).resolve())
