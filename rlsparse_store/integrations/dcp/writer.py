"""``DeltaStorageWriter``: saves a state dict as a delta, each rank its own rows."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlsparse_store.buckets.bucket_url import parse_bucket_url
from rlsparse_store.delta.encode import dtype_policy
from rlsparse_store.delta.resolve import find_checkpoint
from rlsparse_store.files.checkpoint import open_checkpoint
from rlsparse_store.hub.access import HubAccess
from rlsparse_store.integrations.dcp.keys import Keys
from rlsparse_store.torch.saved_parts import saved_parts
from rlsparse_store.torch.slab_writer import SlabWriter

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

__all__ = ["DeltaStorageWriter"]


class DeltaStorageWriter(SlabWriter):
    """Saves a model's state dict as a delta with ``torch.distributed.checkpoint``.

    Each rank encodes the rows that it holds and writes them into its own file; rank 0 adds the
    index. Nothing is gathered. The delta has its name once it is complete: a rank that fails or
    dies leaves none. Replicated and tied tensors are stored once.

    The state dict holds a model's weights and nothing else, as whole tensors or as DTensors that
    are split by rows (FSDP2, HSDP, column-wise parallel layers). For those split by columns
    (row-wise parallel layers), save ``by_rows(state_dict)``. All ranks need the base, and the
    folder of the delta on a file system that they share, or its URL in object storage.

    Plans are made from names, dtypes and shapes. So a tensor that was renamed beyond recognition
    is stored whole; a float32 tensor over a bfloat16 base has to be its exact widening, unless
    ``cast`` or ``keep_dtype`` says otherwise.

    Args:
        base: The base: a folder, a ``.safetensors`` file or ``org/name[@revision]``.
        path: Folder of the delta, which must not exist or must be empty, or its URL in object
            storage. ``checkpoint_id`` of the save replaces it.
        prefix: What all keys of the state dict begin with, and the checkpoint's names do not.
        names: The checkpoint's names by the rest of the key, where they differ.
        model: The model of transformers that the state dict is of, if it renames weights or fuses
            experts: they get the names that it saves them under. Only its names and shapes are
            read.
        cast: ``"bf16"`` rounds float32 tensors of a bfloat16 base. Lossy, and recorded.
        keep_dtype: Store a tensor whole if its dtype does not fit the base's.
        threads: Threads of each rank; by default its share of the machine's processors.
        base_revision: Branch, tag or commit of the base on the Hub, if the id does not name one.
        token: Access token for the Hub; by default the stored one.
        cache_dir: Cache folder of the Hub; by default that of ``huggingface_hub``.
        local_files_only: Use only the cache and make no requests.

    Attributes:
        report: On rank 0, the report of the last delta that is complete. Every rank gets it as
            the ``storage_data`` of what ``save`` returns.

    Raises:
        NotFoundError: The base does not exist.

    Example:
        >>> import torch.distributed.checkpoint as dcp
        >>> writer = DeltaStorageWriter("Qwen/Qwen2.5-7B", "run/step-100")  # doctest: +SKIP
        >>> dcp.save(model.state_dict(), storage_writer=writer)  # doctest: +SKIP
    """

    def __init__(  # noqa: PLR0913 - Hub options as in from_pretrained
        self,
        base: str | PathLike[str],
        path: str | PathLike[str] | None = None,
        *,
        prefix: str = "",
        names: Mapping[str, str] | None = None,
        model: Any = None,  # noqa: ANN401 - a module
        cast: Literal["bf16"] | None = None,
        keep_dtype: bool = False,
        threads: int | None = None,
        base_revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> None:
        access = HubAccess(token=token, cache_dir=cache_dir, local_files_only=local_files_only)
        place = find_checkpoint(base, "base", access, base_revision)
        parts = None if model is None else saved_parts(model)
        super().__init__(
            partial(open_checkpoint, place),
            None if path is None else parse_bucket_url(path) or Path(path),
            dtype_policy(cast, keep=keep_dtype),
            parts_of=Keys(prefix, names or {}, parts).parts_of,
            threads=threads,
        )
