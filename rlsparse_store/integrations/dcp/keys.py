"""Keys of a state dict and the names of a checkpoint's tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlsparse_store.errors import CheckpointError
from rlsparse_store.format.names import printable
from rlsparse_store.torch.live_names import plain_names
from rlsparse_store.torch.saved_parts import whole_parts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rlsparse_store.torch.saved_parts import Part

__all__ = ["Keys"]


class Keys:
    """Translates between keys and names.

    Args:
        prefix: What all keys begin with, and names do not: ``"model."`` for
            ``{"model": model.state_dict()}``.
        names: Names by the rest of the key, where they differ.
        parts: What a model saves each key as, if it is known.

    Attributes:
        prefix: The prefix.
    """

    def __init__(
        self, prefix: str, names: Mapping[str, str], parts: Mapping[str, list[Part]] | None = None
    ) -> None:
        self.prefix = prefix
        self._names = dict(names)
        self._parts = dict(parts or {})
        self._keys = {name: key for key, name in self._names.items()}

    def parts_of(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[Part]]:
        """Return the tensors that keys are saved as, by key.

        Args:
            shapes: The dimensions of each key's tensor.

        Raises:
            CheckpointError: A key lacks the prefix.
            RlsparseError: The keys are of a wrapped model, or of an adapter.
        """
        found: dict[str, list[Part]] = {}
        names: dict[str, str] = {}
        others: dict[str, str] = {}
        for key in shapes:
            if not key.startswith(self.prefix):
                msg = (
                    f"its key does not begin with {self.prefix!r}, so it is no weight of the "
                    "model: save it with another writer"
                )
                raise CheckpointError(msg, tensor=printable(key))
            rest = key.removeprefix(self.prefix)
            if rest in self._names:
                names[key] = self._names[rest]
            elif rest in self._parts:
                found[key] = self._parts[rest]
            else:
                others[rest] = key
        names |= {key: name for name, key in plain_names(others).items()}
        return found | whole_parts(names, shapes)

    @property
    def parts(self) -> dict[str, list[Part]]:
        """What a model saves each key as, by whole keys."""
        named = self._names.keys()
        return {self.prefix + key: p for key, p in self._parts.items() if key not in named}

    def key(self, name: str) -> str:
        """Return the key under which a tensor of a checkpoint is loaded."""
        return self.prefix + self._keys.get(name, name)
