"""Keys of a state dict and the names of a checkpoint's tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlsparse_store.errors import CheckpointError
from rlsparse_store.format.names import printable
from rlsparse_store.torch.live_names import plain_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Keys"]


class Keys:
    """Translates between keys and names.

    Args:
        prefix: What all keys begin with, and names do not: ``"model."`` for
            ``{"model": model.state_dict()}``.
        names: Names by the rest of the key, where they differ.
    """

    def __init__(self, prefix: str, names: Mapping[str, str]) -> None:
        self._prefix = prefix
        self._names = dict(names)
        self._keys = {name: key for key, name in self._names.items()}

    def names_of(self, keys: Iterable[str]) -> dict[str, str]:
        """Return the checkpoint's names of keys, by key.

        Raises:
            CheckpointError: A key lacks the prefix.
            RlsparseError: The keys are of a wrapped model, or of an adapter.
        """
        found: dict[str, str] = {}
        others: dict[str, str] = {}
        for key in keys:
            if not key.startswith(self._prefix):
                msg = (
                    f"its key does not begin with {self._prefix!r}, so it is no weight of the "
                    "model: save it with another writer"
                )
                raise CheckpointError(msg, tensor=printable(key))
            rest = key.removeprefix(self._prefix)
            if rest in self._names:
                found[key] = self._names[rest]
            else:
                others[rest] = key
        return found | {key: name for name, key in plain_names(others).items()}

    def key(self, name: str) -> str:
        """Return the key under which a tensor of a checkpoint is loaded."""
        return self._prefix + self._keys.get(name, name)
