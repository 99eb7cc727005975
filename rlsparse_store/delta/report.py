"""Reports of encoding and inspecting: counts, sizes, densities."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from rlsparse_store.delta.html_table import SummaryRepr
from rlsparse_store.delta.module_names import layer_of, module_of
from rlsparse_store.format.index.records import ChunkCoding, Index, Kind, TensorRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rlsparse_store.delta.html_table import Rows
    from rlsparse_store.format.manifest import Manifest

__all__ = [
    "STEP_LABELS",
    "DeltaReport",
    "EncodeReport",
    "Group",
    "TensorReport",
    "WholeTensor",
    "report_tensors",
]

SCHEMA_VERSION = 1
"""Version of the JSON form."""

STEP_LABELS = ("-1", "-2", "-3", "<=-4", "+1", "+2", "+3", ">=+4")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TensorReport(SummaryRepr):
    """One tensor.

    Attributes:
        name: Its name.
        kind: ``same``, ``delta``, ``whole`` or ``alias``.
        dtype: Its dtype code.
        shape: Its dimensions.
        elements: Its elements (words, where a dtype packs several numbers into one).
        changed: Elements that differ from its source's.
        density: changed / elements; 0 for an empty tensor.
        steps: Changed elements by step, in the order of :data:`STEP_LABELS`, without those in
            chunks that are stored whole.
        whole_changed: Changed elements in chunks that are stored whole: ``changed - sum(steps)``.
        whole_bytes: Bytes of those chunks, as they are in the checkpoint.
        stored_bytes: Bytes of its chunks.
        source: Name of its source in the base, or of the tensor that it aliases.
        tail: Elements beyond the end of its source.
    """

    name: str
    kind: str
    dtype: str
    shape: list[int]
    elements: int
    changed: int
    density: float
    steps: list[int]
    whole_changed: int
    whole_bytes: int
    stored_bytes: int
    source: str
    tail: int

    def _summary(self) -> Rows:
        yield "name", self.name
        yield "kind", self.kind
        yield "dtype", self.dtype
        yield "shape", " x ".join(map(str, self.shape))
        yield "density", self.density
        yield "changed", self.changed


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Group(SummaryRepr):
    """Sums over the tensors of one layer or one kind of module."""

    name: str
    tensors: int
    elements: int
    changed: int
    density: float

    def _summary(self) -> Rows:
        yield "name", self.name
        yield "tensors", self.tensors
        yield "changed", self.changed
        yield "density", self.density


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class WholeTensor(SummaryRepr):
    """A tensor with words that are stored whole.

    Attributes:
        name: Its name.
        reason: Why.
        raw_bytes: Bytes stored whole, as in the checkpoint.
        stored_bytes: Their bytes in the delta.
    """

    name: str
    reason: str
    raw_bytes: int
    stored_bytes: int

    def _summary(self) -> Rows:
        yield "name", self.name
        yield "reason", self.reason
        yield "stored_bytes", self.stored_bytes


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DeltaReport(SummaryRepr):
    """What a delta holds, and its size.

    Attributes:
        format: Version of the format.
        elements: Elements of the tuned checkpoint.
        changed: Elements that differ from their source's.
        density: changed / elements.
        delta_bytes: Bytes of the format's files, without the small files beside them.
        bits_per_changed: 8 * delta_bytes / changed, or ``None`` if nothing changed.
        tuned_bytes: Bytes of the tuned checkpoint's tensors.
        base_digest: State digest of the base.
        tuned_digest: State digest of the tuned checkpoint.
        base_repo: Repository of the base, if known.
        base_revision: Its commit.
        cast: Dtype to which the tuned checkpoint was rounded, if any: the delta is then lossy.
        steps: Changed elements by step, in the order of :data:`STEP_LABELS`, without those in
            chunks that are stored whole.
        whole_changed: Changed elements in chunks that are stored whole: ``changed - sum(steps)``.
        whole_bytes: Bytes of those chunks, as they are in the checkpoint.
        whole_stored_bytes: Bytes of those chunks in the delta.
        kinds: Tensors of each kind.
        removed: Base tensors that the tuned checkpoint lacks.
        layers: Sums by layer.
        modules: Sums by kind of module.
        tensors: Every tensor.
    """

    format: str
    elements: int
    changed: int
    density: float
    delta_bytes: int
    bits_per_changed: float | None
    tuned_bytes: int
    base_digest: str
    tuned_digest: str
    base_repo: str | None
    base_revision: str | None
    cast: str | None
    steps: list[int]
    whole_changed: int
    whole_bytes: int
    whole_stored_bytes: int
    kinds: dict[str, int]
    removed: list[str]
    layers: list[Group]
    modules: list[Group]
    tensors: list[TensorReport]

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values, under a versioned schema."""
        return {"schema_version": SCHEMA_VERSION, "step_labels": STEP_LABELS, **asdict(self)}

    def _summary(self) -> Rows:
        yield "density", self.density
        yield "changed", self.changed
        yield "elements", self.elements
        yield "delta_bytes", self.delta_bytes
        yield "tuned_bytes", self.tuned_bytes
        yield "base_repo", self.base_repo
        yield "cast", self.cast
        yield from ((f"density[{g.name}]", g.density) for g in self.modules)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class EncodeReport(DeltaReport):
    """What encoding stored.

    Attributes:
        base_bytes: Bytes of the base's tensors.
        whole: Tensors with words that are stored whole, and why.
        carried_files: Small files copied beside the delta.
        carried_bytes: Their bytes.
        skipped_files: Files of the tuned folder that were not read or copied.
        warnings: Why the pair is probably not what its user takes it for.
        notes: What else a user should know of the files that were read, or were not.
    """

    base_bytes: int
    whole: list[WholeTensor]
    carried_files: list[str]
    carried_bytes: int
    skipped_files: list[str]
    warnings: list[str]
    notes: list[str]


def report_tensors(index: Index, manifest: Manifest, delta_bytes: int) -> dict[str, Any]:
    """The fields of a :class:`DeltaReport`."""
    stored, whole = [0] * len(index.tensors), [0] * len(index.tensors)
    whole_stored = 0
    for chunk in index.chunks:
        stored[chunk.tensor] += chunk.stored
        coding = index.tensors[chunk.tensor].coding
        if chunk.coding is ChunkCoding.WHOLE and coding is not None:
            whole[chunk.tensor] += coding.nbytes(chunk.length)
            whole_stored += chunk.stored
    tensors = [_tensor(*each) for each in zip(index.tensors, stored, whole, strict=True)]
    totals = manifest.totals
    kinds = dict.fromkeys((kind.name.lower() for kind in Kind), 0)
    for tensor in tensors:
        kinds[tensor.kind] += 1
    return {
        "format": manifest.version,
        "elements": totals.elements,
        "changed": totals.changed,
        "density": _ratio(totals.changed, totals.elements),
        "delta_bytes": delta_bytes,
        "bits_per_changed": 8 * delta_bytes / totals.changed if totals.changed else None,
        "tuned_bytes": totals.tuned_bytes,
        "base_digest": manifest.base_digest,
        "tuned_digest": manifest.tuned_digest,
        "base_repo": manifest.repo,
        "base_revision": manifest.revision,
        "cast": manifest.cast,
        "steps": [sum(counts) for counts in zip(*(t.steps for t in tensors), strict=True)]
        or [0] * len(STEP_LABELS),
        "whole_changed": sum(t.whole_changed for t in tensors),
        "whole_bytes": sum(whole),
        "whole_stored_bytes": whole_stored,
        "kinds": kinds,
        "removed": index.removed,
        "layers": _groups(tensors, layer_of),
        "modules": _groups(tensors, module_of),
        "tensors": tensors,
    }


_KINDS: Final = tuple(kind.name.lower() for kind in sorted(Kind))
"""Names of kinds, by their numbers."""


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _tensor(t: TensorRecord, stored_bytes: int, whole_bytes: int) -> TensorReport:
    return TensorReport(
        name=t.name,
        kind=_KINDS[t.kind],
        dtype=t.dtype.code,
        shape=list(t.shape),
        elements=t.words,
        changed=t.changed,
        density=_ratio(t.changed, t.words),
        steps=list(t.steps),
        whole_changed=t.moved,
        whole_bytes=whole_bytes,
        stored_bytes=stored_bytes,
        source=t.origin,
        tail=t.tail,
    )


def _groups(tensors: Iterable[TensorReport], key: Callable[[str], str]) -> list[Group]:
    members: dict[str, list[TensorReport]] = {}
    for tensor in tensors:
        members.setdefault(key(tensor.name), []).append(tensor)

    def order(name: str) -> tuple[int, int, str]:
        return (0, int(name), "") if name.isdigit() else (1, 0, name)

    groups = []
    for name in sorted(members, key=order):
        elements = sum(t.elements for t in members[name])
        changed = sum(t.changed for t in members[name])
        groups.append(
            Group(
                name=name,
                tensors=len(members[name]),
                elements=elements,
                changed=changed,
                density=_ratio(changed, elements),
            )
        )
    return groups
