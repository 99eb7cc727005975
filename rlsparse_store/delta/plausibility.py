"""Checking that a checkpoint was probably tuned from its base.

What the structure of the pair shows is refused before any coding. What only its content shows is a
warning, never a refusal: full fine-tuning changes 99 % of the weights, and step 0 changes none.
"""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Final

from rlsparse_store.delta.units import format_bytes, format_percent
from rlsparse_store.errors import ImplausibleError, ImplausibleWarning
from rlsparse_store.files.side_files import NO_RESUME, holds_training_state
from rlsparse_store.files.trainer_folders import is_step
from rlsparse_store.files.weight_files import parse_shard_name
from rlsparse_store.format.names import printable
from rlsparse_store.pipeline.tensor_matching import is_wrapped, shared_elements, suffixes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rlsparse_store.delta.report import DeltaReport, EncodeReport
    from rlsparse_store.files.checkpoint import Checkpoint, TensorRef
    from rlsparse_store.files.side_files import SideFiles

__all__ = [
    "content_warnings",
    "is_adapter_name",
    "issue_warnings",
    "pair_notes",
    "structure_warnings",
]

_ADAPTER: Final = re.compile(
    r"(?:^|\.)(?:lora_\w+|lora\.(?:down|up)|base_layer|ia3_l|hada_w\w+|lokr_w\w+"
    r"|oft_[rRs]\w*|prompt_embeddings|modules_to_save|original_module)(?:\.|$)"
)
"""Components of names that PEFT, diffusers, kohya and MLX give to the tensors of adapters and of
the layers that these wrap."""

_LEFTOVERS: Final = re.compile(
    r"trainer_state\.json|training_args\.bin|optimizer\.(?:pt|bin)|scheduler\.pt|rng_state.*\.pth"
)
"""Files that a trainer leaves beside a checkpoint."""

_HALF: Final = 0.4
"""Share of the base's tensors whose absence makes a checkpoint a part of one; pruning a third of
the layers or leaving out a tower is less."""

_FEWEST: Final = 8
"""Tensors of the smallest base that these refusals are for; with fewer, they are warnings."""

_NEARLY_ALL: Final = 0.98
"""Density that tuning reaches rarely, and another base always."""

_SMALLEST_SAVING: Final = 0.1
"""Share of the checkpoint below which storing a delta saves nothing worth having."""

_SMALL: Final = 1 << 16
"""Bytes: the fixed size of a delta outweighs a smaller checkpoint."""

_NAMED: Final = 3
"""Tensors that a message lists."""


def is_adapter_name(name: str) -> bool:
    """Whether a name is that of a tensor of an adapter, or of a layer that an adapter wraps.

    Example:
        >>> is_adapter_name("base_model.model.layers.0.q_proj.lora_A.default.weight")
        True
    """
    return _ADAPTER.search(name) is not None


def structure_warnings(
    base: Checkpoint, tuned: Checkpoint, sources: Mapping[str, TensorRef], *, force: bool
) -> list[str]:
    """Judge a pair by its names, shapes and files.

    Args:
        base: The base.
        tuned: The tuned checkpoint.
        sources: The base tensors that the tuned ones come from, by their names.
        force: Return what would be refused as a warning.

    Returns:
        Warnings, each one sentence without a full stop.

    Raises:
        ImplausibleError: The tuned checkpoint is not one of this base, as its structure shows.
    """
    shared = {
        name: source.name
        for name, source in sources.items()
        if _is_shared(tuned.tensors[name].shape, source.shape)
    }
    problem = _placeholders(base, tuned) or _adapter(base, tuned) or _one_shard(base, tuned)
    # Shares of a few tensors mean nothing.
    if not problem and len(base.tensors) >= _FEWEST:
        problem = _nothing_in_common(base, tuned, shared) or _part_only(base, tuned, shared)
    if problem and not force:
        msg = f"{problem} (--force or force=True stores it anyway)"
        raise ImplausibleError(msg, file=tuned.path)
    found = problem or _nothing_in_common(base, tuned, shared) or _mostly_strange(tuned, shared)
    return [*filter(None, (found, _swapped(base, tuned)))]


def _is_shared(shape: tuple[int, ...], source: tuple[int, ...]) -> bool:
    """Whether a tensor is its source's, as shapes tell: vectors of other models only look grown."""
    is_vector = len(shape) < 2
    return shape == source or (not is_vector and shared_elements(shape, source) is not None)


def _placeholders(base: Checkpoint, tuned: Checkpoint) -> str:
    """Tensors of shape [0] where the base has weights."""
    empty = [name for name, tensor in tuned.tensors.items() if tensor.shape == (0,)]
    if not empty:
        return ""
    filled = {name for name, tensor in base.tensors.items() if tensor.nbytes}
    found = [name for name in empty if any(suffix in filled for suffix in suffixes(name))]
    if not found:
        return ""
    return (
        f"{_listed(found)} empty where the base has weights: placeholders that ZeRO-3 or FSDP "
        "leaves on a rank; gather the weights when saving "
        "(stage3_gather_16bit_weights_on_model_save, FULL_STATE_DICT)"
    )


def _adapter(base: Checkpoint, tuned: Checkpoint) -> str:
    """Weights of an adapter, or of layers that one wraps."""
    added = tuned.tensors.keys() - base.tensors.keys()
    parts = [name for name in tuned.tensors if name in added and is_adapter_name(name)]
    has_config = "adapter_config.json" in tuned.listing
    is_alone = has_config and not base.tensors.keys() & tuned.tensors.keys()
    if not parts and not is_alone:
        return ""
    if is_alone or len(parts) == len(tuned.tensors):
        return (
            "is an adapter and small: store it as it is, or merge it into "
            "the base first (merge_and_unload())"
        )
    return (
        f"holds an unmerged adapter ({printable(parts[0])}): its changes are not in the weights; "
        "merge it first (merge_and_unload()) and save that"
    )


def _one_shard(base: Checkpoint, tuned: Checkpoint) -> str:
    """One shard, given as the whole checkpoint. The same shard of both sides is a pair."""
    left, right = (parse_shard_name(checkpoint.path.name) for checkpoint in (base, tuned))
    places = [shard and (shard.number, shard.total) for shard in (left, right)]
    shard = right or left
    if shard is None or shard.total == 1 or places[0] == places[1]:
        return ""
    which = "is" if right else f"its base, {printable(base.path.name)}, is"
    return (
        f"{which} only shard {shard.number} of {shard.total} of a checkpoint; give the folder with "
        "all of them"
    )


def _nothing_in_common(base: Checkpoint, tuned: Checkpoint, shared: Mapping[str, str]) -> str:
    """Another model, or another architecture."""
    if shared or not base.nbytes or not tuned.nbytes:
        return ""
    return (
        "has no tensor with a name and shape of the base: it is of another model; give the base "
        "that it was tuned from"
    )


def _mostly_strange(tuned: Checkpoint, shared: Mapping[str, str]) -> str:
    """Most of the weights in tensors that have no counterpart in the base."""
    strange = [tensor for name, tensor in tuned.tensors.items() if name not in shared]
    nbytes = sum(tensor.nbytes for tensor in strange)
    if not nbytes or nbytes < tuned.nbytes / 2:
        return ""
    return (
        f"{format_percent(nbytes / tuned.nbytes)} of the weights are in tensors that the base does "
        f"not have, such as {printable(strange[0].name)}: is it the base that this was tuned from?"
    )


def _part_only(base: Checkpoint, tuned: Checkpoint, shared: Mapping[str, str]) -> str:
    """A part of a checkpoint: many of the base's tensors are missing."""
    present = {*shared.values(), *tuned.tensors}
    missing = [tensor for name, tensor in base.tensors.items() if name not in present]
    lost = sum(tensor.nbytes for tensor in missing)
    if len(missing) < _HALF * len(base.tensors) or lost < _HALF / 2 * base.nbytes:
        return ""
    return (
        f"lacks {len(missing)} of the base's {len(base.tensors)} tensors "
        f"({format_percent(lost / base.nbytes)} of its bytes), such as "
        f"{printable(missing[0].name)}: it is a part of a checkpoint; give the whole one"
    )


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{printable(', '.join(sorted(names)[:_NAMED]))}{more}"


def _listed(names: Sequence[str]) -> str:
    return f"{_named(names)} {'is' if len(names) == 1 else 'are'}"


def _swapped(base: Checkpoint, tuned: Checkpoint) -> str:
    """Base and tuned checkpoint in the wrong order, as far as a trainer's files tell."""
    left = sorted(name for name in base.listing if _LEFTOVERS.fullmatch(name))
    if not left or not tuned.listing or any(map(_LEFTOVERS.fullmatch, tuned.listing)):
        return ""
    return (
        f"the base holds a trainer's files ({printable(left[0])}) and the tuned checkpoint none: "
        "are they in the right order, BASE TUNED?"
    )


def content_warnings(report: DeltaReport) -> list[str]:
    """Judge a delta by what it stores.

    Args:
        report: The delta's report.

    Returns:
        Warnings, each one sentence without a full stop.
    """
    found = []
    whole = report.kinds["whole"]
    if report.elements and not report.changed and whole:
        found.append(
            f"nothing changed: no weight of the base has another value, and {whole} tensors are "
            "stored whole"
        )
    elif report.elements and not report.changed:
        found.append(
            "nothing changed: every weight is identical to the base's, so this is the base again, "
            "or a checkpoint before its first step"
        )
    elif report.density >= _NEARLY_ALL:
        found.append(
            f"nearly everything changed ({format_percent(report.density)} of the weights): is it "
            "the base that this was tuned from?"
        )
    most = (1 - _SMALLEST_SAVING) * report.tuned_bytes
    if report.tuned_bytes >= _SMALL and report.delta_bytes >= most:
        found.append(
            f"nothing saved: the delta takes {format_bytes(report.delta_bytes)}, the checkpoint "
            f"{format_bytes(report.tuned_bytes)}; store the checkpoint as it is"
        )
    return found


def pair_notes(base: Checkpoint, tuned: Checkpoint, sides: SideFiles) -> list[str]:
    """What a user should know of the files that were read, and of those that were not."""
    notes = [f"base: {note}" for note in (*base.notes, *base.oddities)]
    notes += [*tuned.notes, *sides.notes, *filter(None, (_wrapped(base, tuned), _adapted(tuned)))]
    steps = [
        name
        for name in tuned.listing
        # DeepSpeed keeps its parts in folders of such names, too.
        if is_step(name) and any((tuned.path / name).glob("*.safetensors"))
    ]
    if steps:
        notes.append(
            f"the folder also holds {_named(steps)}: give these folders to store them as a run"
        )
    if holds_training_state(sides.skipped):
        notes.append(NO_RESUME)
    return notes


def _wrapped(base: Checkpoint, tuned: Checkpoint) -> str:
    """A model that was saved with the wrappers of its layers."""
    found = [name for name in tuned.tensors if name not in base.tensors and is_wrapped(name)]
    if not found:
        return ""
    return (
        f"names are those of a wrapped model ({printable(found[0])}), which loaders do not find: "
        "unwrap it (torch.compile, FSDP) before saving"
    )


def _adapted(tuned: Checkpoint) -> str:
    """An adapter beside a whole model."""
    if "adapter_config.json" not in tuned.listing:
        return ""
    return (
        "the adapter beside the model is not stored (adapter_config.json), though transformers "
        "loads it instead of the model: merge it first (merge_and_unload()), or store it as it is"
    )


def issue_warnings(report: EncodeReport, name: str = "", stacklevel: int = 3) -> None:
    """Issue the warnings of a report as Python warnings.

    Args:
        report: The report.
        name: The checkpoint, if it is one of several.
        stacklevel: Frames up to the caller to name.
    """
    for text in report.warnings:
        message = f"{printable(name)}: {text}" if name else text
        warnings.warn(message, ImplausibleWarning, stacklevel=stacklevel)
