"""Masks in memory, and training of what they allow."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from rlsparse_store.analysis.masks import count_ones
from rlsparse_store.errors import BaseMismatchError, CheckpointError, VerificationError
from rlsparse_store.format.names import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Frozen", "Mask", "freeze_outside"]


class Mask(Mapping[str, torch.Tensor]):
    """Which weights are to be trained: a mapping of names to boolean tensors, held as bits.

    ``|``, ``&``, ``-`` and ``~`` work on the bits; tensors that only one side has count as without
    trainable weights on the other.

    Args:
        bits: One bit per weight, the least significant first, by name: ``torch.uint8``.
        shapes: The dimensions of the tensors.
        base_digest: State digest of the base, if known.
    """

    def __init__(
        self,
        bits: Mapping[str, torch.Tensor],
        shapes: Mapping[str, tuple[int, ...]],
        base_digest: str | None = None,
    ) -> None:
        self._bits = dict(bits)
        self.shapes = dict(shapes)
        self.base_digest = base_digest

    def __getitem__(self, name: str) -> torch.Tensor:
        """The mask of a tensor, of its shape, as ``torch.bool``; made anew each time."""
        shape = self.shapes[name]
        bits = self._bits[name]
        flags = bits[:, None] >> torch.arange(8, dtype=torch.uint8, device=bits.device) & 1
        return flags.view(-1)[: torch.Size(shape).numel()].to(torch.bool).view(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._bits)

    def __len__(self) -> int:
        return len(self._bits)

    def count(self, name: str | None = None) -> int:
        """Trainable weights of a tensor, or of all."""
        names = self._bits if name is None else [name]
        return sum(count_ones(self._bits[n].cpu().numpy()) for n in names)

    @property
    def density(self) -> float:
        """Trainable weights over all weights that the mask is about."""
        words = sum(torch.Size(shape).numel() for shape in self.shapes.values())
        return self.count() / words if words else 0.0

    def __or__(self, other: Mask) -> Mask:
        """What either allows."""
        return self._combined(other, torch.bitwise_or)

    def __and__(self, other: Mask) -> Mask:
        """What both allow."""
        return self._combined(other, torch.bitwise_and)

    def __sub__(self, other: Mask) -> Mask:
        """What this one allows and the other does not."""
        return self._combined(other, lambda a, b: a & ~b)

    def __invert__(self) -> Mask:
        """What this one does not allow."""
        flipped = {}
        for name, bits in self._bits.items():
            flipped[name] = ~bits
            used = torch.Size(self.shapes[name]).numel() % 8
            if used:
                # Bits behind the last weight stay zero.
                flipped[name][-1] &= (1 << used) - 1
        return Mask(flipped, self.shapes, self.base_digest)

    def _combined(
        self, other: Mask, operation: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> Mask:
        known_bases = {self.base_digest, other.base_digest} - {None}
        if len(known_bases) > 1:
            msg = "the masks are of different bases"
            raise BaseMismatchError(msg)
        shapes = {**other.shapes, **self.shapes}
        bits = {}
        for name, shape in shapes.items():
            if other.shapes.get(name, shape) != shape:
                msg = "has other dimensions in the two masks"
                raise CheckpointError(msg, tensor=printable(name))
            mine, theirs = self._bits.get(name), other._bits.get(name)
            known = mine if mine is not None else theirs
            assert known is not None  # noqa: S101 - one of them has the name
            nothing = torch.zeros_like(known)
            bits[name] = operation(
                nothing if mine is None else mine, nothing if theirs is None else theirs
            )
        return Mask(bits, shapes, self.base_digest or other.base_digest)


class Frozen:
    """A model of which only part is trained. Made by :func:`freeze_outside`."""

    def __init__(
        self,
        model: torch.nn.Module,
        mask: Mask,
        optimizer: torch.optim.Optimizer,
        *,
        before_clipping: bool,
    ) -> None:
        self._model = model
        names = _names(model)
        # Buffers are no weights: no optimizer steps them.
        buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
        unknown = set(mask).difference(buffers, *names.values())
        if unknown:
            msg = "the mask names it, but it is no parameter of the model (give it unwrapped)"
            raise CheckpointError(msg, tensor=printable(min(unknown)))
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not stepped & names.keys():
            msg = "the optimizer steps none of the model's parameters; make it of these"
            raise CheckpointError(msg)
        self._parts = [_Part(names[id(p)], p, mask) for p in model.parameters()]
        self._hooks: list[Any] = []
        for part in self._parts:
            parameter: Any = part.parameter  # the hooks of tensors have no types
            if before_clipping and parameter.requires_grad:
                hook = parameter.register_post_accumulate_grad_hook(part.mask_gradient)
                self._hooks.append(hook)
        self._hooks.append(optimizer.register_step_pre_hook(self._before))
        self._hooks.append(optimizer.register_step_post_hook(self._after))

    def _before(self, *_: Any) -> None:  # noqa: ANN401 - what optimizers hand over
        # Gradients may have been written to since they were accumulated.
        for part in self._parts:
            part.mask_gradient(part.parameter)

    def _after(self, *_: Any) -> None:  # noqa: ANN401 - as above
        # Weight decay and momentum move weights whose gradient is zero.
        for part in self._parts:
            part.restore()

    def check(self) -> None:
        """Require that every weight outside the mask has the bits that it had.

        Raises:
            VerificationError: One has not.
            CheckpointError: The model has other parameters by now (it was wrapped, sharded, cast,
                or added to): what happened to those is not known.
        """
        _reshard(self._model)
        there = _names(self._model)
        for part in self._parts:
            if id(part.parameter) not in there:
                raise _replaced(part.name)
            part.check_alike()
        added = there.keys() - {id(part.parameter) for part in self._parts}
        if added:
            msg = "was added since: call freeze_outside when the model is as it is trained"
            raise CheckpointError(msg, tensor=printable(min(there[one][0] for one in added)))
        for part in self._parts:
            moved = part.moved()
            if moved:
                msg = f"{moved} weights outside the mask have changed"
                raise VerificationError(msg, tensor=printable(part.name))

    def release(self) -> None:
        """Train everything again."""
        for hook in self._hooks:
            hook.remove()


class _Part:
    """One parameter, or this rank's part of it, and what of it is not trained."""

    def __init__(self, names: list[str], parameter: torch.nn.Parameter, mask: Mask) -> None:
        self.name = names[0]
        self.parameter = parameter
        whole = torch.zeros(parameter.shape, dtype=torch.bool, device="cpu")
        for name in filter(mask.__contains__, names):
            shape = mask.shapes[name]
            if shape != tuple(parameter.shape):
                msg = f"is {list(parameter.shape)} in the model, {list(shape)} in the mask"
                raise CheckpointError(msg, tensor=printable(name))
            whole |= mask[name].cpu()
        # What is not in the mask at all is not trained.
        self._outside = ~_local_part(whole, parameter)
        # All of it: to pick out what is outside takes an index for each weight, at every step.
        self._base = _local(parameter.detach()).clone()

    def mask_gradient(self, parameter: torch.Tensor) -> None:
        """Leave no gradient outside the mask."""
        if parameter.grad is not None:
            # Not multiplied: a NaN times zero is a NaN.
            _local(parameter.grad).masked_fill_(self._outside, 0)

    @torch.no_grad()
    def restore(self) -> None:
        """Put back the bits outside the mask.

        Raises:
            CheckpointError: The parameter is not as it was.
        """
        self.check_alike()
        now = _bits(_local(self.parameter.detach()))
        torch.where(self._outside, _bits(self._base), now, out=now)

    def check_alike(self) -> None:
        """Require that the parameter still has its dtype and its dimensions.

        Raises:
            CheckpointError: It has not.
        """
        now = _local(self.parameter.detach())
        if (now.dtype, now.shape) != (self._base.dtype, self._base.shape):
            raise _replaced(self.name)

    def moved(self) -> int:
        """Weights outside the mask whose bits are others."""
        now = _local(self.parameter.detach())
        return int(((_bits(now) != _bits(self._base)) & self._outside).sum())


def _replaced(name: str) -> CheckpointError:
    msg = "was replaced since: call freeze_outside when the model is as it is trained"
    return CheckpointError(msg, tensor=printable(name))


def _names(model: torch.nn.Module) -> dict[int, list[str]]:
    """The names of each parameter by its identity: tied ones have several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names


def _reshard(model: torch.nn.Module) -> None:
    """Have FSDP2 put back the sharded parameters, which a pass without gradients takes away."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    for module in model.modules():
        if fsdp is not None and isinstance(module, fsdp.FSDPModule):
            module.reshard()


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor that is sharded; the tensor itself otherwise."""
    to_local = getattr(tensor, "to_local", None)
    found: torch.Tensor = tensor if to_local is None else to_local()
    return found


def _local_part(mask: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """The part of a mask that belongs to this rank's part of a parameter."""
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None:
        return mask.to(parameter.device)
    from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415 - only where it is used

    # As numbers, for not every backend moves booleans.
    placed: Any = parameter
    sharded = distribute_tensor(mask.to(torch.uint8).to(mesh.device_type), mesh, placed.placements)
    return sharded.to_local().to(torch.bool)


def _bits(values: torch.Tensor) -> torch.Tensor:
    """The bits of values where they are, contiguous or not, as integers."""
    ints = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return values.view(ints[values.element_size()])


def freeze_outside(
    model: torch.nn.Module,
    mask: Mask,
    optimizer: torch.optim.Optimizer,
    *,
    before_clipping: bool = True,
) -> Frozen:
    """Train only what a mask allows: every other weight keeps its bits, whatever the optimizer.

    Gradients are masked as they are accumulated, so that clipping by norm sees the subnetwork's
    only, and before the step, for what was written to them since. After the step, the bits outside
    are put back: weight decay and momentum move weights without a gradient. Call it when the model
    is where it will be trained (device, FSDP2), before the first step.

    Args:
        model: The model, at the base. Parameters that the mask does not name are not trained.
        mask: What is trained. Buffers that it names are left to the model.
        optimizer: Steps the model's parameters, which may be float32 masters of a 16-bit base.
            Where several do, call it for each.
        before_clipping: Whether gradients are masked as they are accumulated; otherwise only right
            before the step, and clipping sees all of them.

    Returns:
        What checks that nothing else moved (``check``), and ends it (``release``).

    Raises:
        CheckpointError: The mask names what the model does not have, or of another shape; or the
            optimizer steps other parameters than the model's.

    Example:
        >>> frozen = freeze_outside(model, load_mask("mask"), optimizer)  # doctest: +SKIP
        >>> train(model, optimizer)  # doctest: +SKIP
        >>> frozen.check()  # doctest: +SKIP
    """
    return Frozen(model, mask, optimizer, before_clipping=before_clipping)
