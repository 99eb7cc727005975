"""Masks of trainable weights, and training restricted to a mask."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import torch

from rlsparse_store.analysis.masks import count_ones
from rlsparse_store.errors import BaseMismatchError, CheckpointError, VerificationError
from rlsparse_store.format.names import printable
from rlsparse_store.pipeline.tensor_matching import plain_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Frozen", "Mask", "freeze_outside"]

_WHEN: Final = "call freeze_outside after wrapping, sharding and casting the model"


class Mask(Mapping[str, torch.Tensor]):
    """The trainable weights of a model: a mapping from names to boolean tensors, stored as bits.

    ``|``, ``&``, ``-`` and ``~`` combine masks. A tensor that is missing in one mask has no
    trainable weights there.

    Args:
        bits: By name, one bit per weight, least significant bit first: ``torch.uint8``.
        shapes: By name, the dimensions of the tensor.
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

    def __repr__(self) -> str:
        # Without the density: counting bits reads the whole mask.
        weights = self._num_weights()
        base = "" if self.base_digest is None else f", base_digest='{self.base_digest[:8]}…'"
        return f"Mask(tensors={len(self)}, {weights=}{base})"

    def __getitem__(self, name: str) -> torch.Tensor:
        """Return the mask of a tensor as a new ``torch.bool`` tensor of its shape."""
        shape = self.shapes[name]
        bits = self._bits[name]
        flags = bits[:, None] >> torch.arange(8, dtype=torch.uint8, device=bits.device) & 1
        return flags.view(-1)[: torch.Size(shape).numel()].to(torch.bool).view(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._bits)

    def __len__(self) -> int:
        return len(self._bits)

    def count(self, name: str | None = None) -> int:
        """Return the number of trainable weights of a tensor, or of all tensors."""
        names = self._bits if name is None else [name]
        return sum(count_ones(self._bits[n].cpu().numpy()) for n in names)

    @property
    def density(self) -> float:
        """Trainable weights ÷ all weights of the mask's tensors."""
        weights = self._num_weights()
        return self.count() / weights if weights else 0.0

    def _num_weights(self) -> int:
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())

    def __or__(self, other: Mask) -> Mask:
        """Weights that are trainable in either mask."""
        return self._combine(other, torch.bitwise_or)

    def __and__(self, other: Mask) -> Mask:
        """Weights that are trainable in both masks."""
        return self._combine(other, torch.bitwise_and)

    def __sub__(self, other: Mask) -> Mask:
        """Weights that are trainable in this mask and not in the other."""
        return self._combine(other, lambda a, b: a & ~b)

    def __invert__(self) -> Mask:
        """Weights that are not trainable in this mask."""
        flipped = {}
        for name, bits in self._bits.items():
            flipped[name] = ~bits
            used = torch.Size(self.shapes[name]).numel() % 8
            if used:
                # Padding bits stay 0.
                flipped[name][-1] &= (1 << used) - 1
        return Mask(flipped, self.shapes, self.base_digest)

    def _combine(
        self, other: Mask, operation: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> Mask:
        known_bases = {self.base_digest, other.base_digest} - {None}
        if len(known_bases) > 1:
            msg = "the masks belong to different bases"
            raise BaseMismatchError(msg)
        shapes = {**other.shapes, **self.shapes}
        bits = {}
        for name, shape in shapes.items():
            if other.shapes.get(name, shape) != shape:
                msg = f"is {list(shape)} in one mask, {list(other.shapes[name])} in the other"
                raise CheckpointError(msg, tensor=printable(name))
            left, right = self._bits.get(name), other._bits.get(name)
            either = left if left is not None else right
            assert either is not None  # noqa: S101 - one of the masks has the name
            empty = torch.zeros_like(either)
            bits[name] = operation(
                empty if left is None else left, empty if right is None else right
            )
        return Mask(bits, shapes, self.base_digest or other.base_digest)


class Frozen:
    """A model whose weights outside a mask are frozen. Created by :func:`freeze_outside`."""

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
        optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not optimized & names.keys():
            msg = "the optimizer has none of the model's parameters; pass the model's own optimizer"
            raise CheckpointError(msg)
        trainable = _Trainable(model, mask)
        self._parameters = [
            _FrozenParameter(names[id(p)][0], p, trainable.of(names[id(p)], p))
            for p in model.parameters()
        ]
        # The mask may name buffers: optimizers do not update them.
        buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
        unknown = set(mask).difference(buffers, trainable.found)
        if unknown:
            msg = (
                "is in the mask, but is not a parameter of the model or a saved part of one; "
                "pass the unwrapped model of the mask"
            )
            raise CheckpointError(msg, tensor=printable(min(unknown)))
        self._hooks: list[Any] = []
        for frozen in self._parameters:
            parameter: Any = frozen.parameter  # torch's tensor hooks have no types
            if before_clipping and parameter.requires_grad:
                hook = parameter.register_post_accumulate_grad_hook(frozen.mask_gradient)
                self._hooks.append(hook)
        self._hooks.append(optimizer.register_step_pre_hook(self._before_step))
        self._hooks.append(optimizer.register_step_post_hook(self._after_step))

    def __repr__(self) -> str:
        model, parameters = type(self._model).__name__, len(self._parameters)
        return f"Frozen({model}, {parameters=}, released={not self._hooks})"

    def _before_step(self, *_: Any) -> None:  # noqa: ANN401 - arguments of optimizer hooks
        # Gradients may have changed since they were accumulated.
        for frozen in self._parameters:
            frozen.mask_gradient(frozen.parameter)

    def _after_step(self, *_: Any) -> None:  # noqa: ANN401 - as above
        # Weight decay and momentum also change weights with zero gradient.
        for frozen in self._parameters:
            frozen.restore()

    def check(self) -> None:
        """Require that every weight outside the mask has its original bits.

        Raises:
            VerificationError: A weight outside the mask changed.
            CheckpointError: The model's parameters were replaced or extended (wrapped, sharded,
                cast), so they cannot be compared.
        """
        _reshard(self._model)
        names = _names(self._model)
        for frozen in self._parameters:
            if id(frozen.parameter) not in names:
                raise _replaced(frozen.name)
            frozen.check_not_replaced()
        added = names.keys() - {id(frozen.parameter) for frozen in self._parameters}
        if added:
            msg = f"was added since; {_WHEN}"
            raise CheckpointError(msg, tensor=printable(min(names[key][0] for key in added)))
        for frozen in self._parameters:
            changed = frozen.count_changed()
            if changed:
                msg = f"{changed} weights outside the mask have changed"
                raise VerificationError(msg, tensor=printable(frozen.name))

    def release(self) -> None:
        """Stop freezing: all weights are trainable again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


class _Trainable:
    """The trainable weights of each parameter, as a mask names them.

    A mask has the names of a checkpoint. A model of transformers may have other names in memory,
    and fuse several tensors of a checkpoint into one.

    Attributes:
        found: Names in the mask that belong to a parameter.
    """

    def __init__(self, model: torch.nn.Module, mask: Mask) -> None:
        self._model = model
        self._mask = mask
        self.found: set[str] = set()
        transformers = sys.modules.get("transformers")
        self._is_renamed = transformers is not None and isinstance(
            model, transformers.PreTrainedModel
        )

    def of(self, names: list[str], parameter: torch.nn.Parameter) -> torch.Tensor:
        """Return the trainable weights of a parameter, as ``torch.bool`` in main memory.

        Args:
            names: Its names in the model.
            parameter: The parameter, which may be one rank's part.

        Raises:
            CheckpointError: The mask has other dimensions.
        """
        whole = torch.zeros(parameter.shape, dtype=torch.bool, device="cpu")
        for name in names:
            for target, part in self._parts(name, whole).items():
                if target not in self._mask:
                    continue
                shape = self._mask.shapes[target]
                if shape != tuple(part.shape):
                    msg = f"is {list(part.shape)} in the model, {list(shape)} in the mask"
                    raise CheckpointError(msg, tensor=printable(target))
                self.found.add(target)
                part |= self._mask[target].cpu()  # noqa: PLW2901 - writes into `whole`
        return whole

    def _parts(self, name: str, whole: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return views of a parameter's mask by the names under which its parts are saved."""
        if name in self._mask or not self._is_renamed:
            return {name: whole}
        from rlsparse_store.torch.weight_views import views_of  # noqa: PLC0415 - takes seconds

        return views_of(self._model, name, whole)


class _FrozenParameter:
    """A parameter, or this rank's part of it, with the original bits of its frozen weights."""

    def __init__(self, name: str, parameter: torch.nn.Parameter, whole: torch.Tensor) -> None:
        self.name = name
        self.parameter = parameter
        # A parameter that the mask does not name is frozen.
        self._outside = ~_local_part(whole, parameter)
        # A full copy: storing only the frozen weights would take an index per weight at each step.
        self._original = _local(parameter.detach()).clone()

    def mask_gradient(self, parameter: torch.Tensor) -> None:
        """Set the gradient outside the mask to 0."""
        if parameter.grad is not None:
            # masked_fill_ also clears NaN, which a product with 0 would keep.
            _local(parameter.grad).masked_fill_(self._outside, 0)

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the original bits outside the mask.

        Raises:
            CheckpointError: The parameter was replaced.
        """
        self.check_not_replaced()
        now = _bits(_local(self.parameter.detach()))
        torch.where(self._outside, _bits(self._original), now, out=now)

    def check_not_replaced(self) -> None:
        """Require that the parameter kept its dtype and shape.

        Raises:
            CheckpointError: The parameter was replaced.
        """
        now = _local(self.parameter.detach())
        if (now.dtype, now.shape) != (self._original.dtype, self._original.shape):
            raise _replaced(self.name)

    def count_changed(self) -> int:
        """Return the number of weights outside the mask whose bits changed."""
        now = _local(self.parameter.detach())
        return int(((_bits(now) != _bits(self._original)) & self._outside).sum())


def _replaced(name: str) -> CheckpointError:
    return CheckpointError(f"was replaced since; {_WHEN}", tensor=printable(name))


def _names(model: torch.nn.Module) -> dict[int, list[str]]:
    """Return the names of each parameter by object id; tied parameters have several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(plain_name(name))
    return names


def _reshard(model: torch.nn.Module) -> None:
    """Reshard FSDP2 modules: a forward pass without gradients leaves unsharded parameters."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    for module in model.modules():
        if fsdp is not None and isinstance(module, fsdp.FSDPModule):
            module.reshard()


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of a DTensor, or another tensor itself."""
    to_local = getattr(tensor, "to_local", None)
    local: torch.Tensor = tensor if to_local is None else to_local()
    return local


def _local_part(mask: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Return the part of a mask for this rank's part of a parameter."""
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None:
        return mask.to(parameter.device)
    from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415 - slow import

    # As uint8: some communication backends do not support booleans.
    dtensor: Any = parameter
    sharded = distribute_tensor(mask.to(torch.uint8).to(mesh.device_type), mesh, dtensor.placements)
    return sharded.to_local().to(torch.bool)


def _bits(values: torch.Tensor) -> torch.Tensor:
    """View a tensor, contiguous or not, as integers of the same size."""
    ints = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return values.view(ints[values.element_size()])


def freeze_outside(
    model: torch.nn.Module,
    mask: Mask,
    optimizer: torch.optim.Optimizer,
    *,
    before_clipping: bool = True,
) -> Frozen:
    """Train only the weights of a mask; all others keep their bits under any optimizer.

    Gradients are masked when they are accumulated, so that gradient clipping sees only the
    subnetwork, and again before each optimizer step. After the step the bits outside the mask are
    restored, because weight decay and momentum also change weights with zero gradient. Call this
    after the model is moved and sharded (device, FSDP2) and before the first step.

    Args:
        model: The model, holding the base. Parameters that the mask does not name are frozen.
        mask: The trainable weights. Buffers in the mask are ignored.
        optimizer: Optimizer of the model's parameters, which may be float32 masters of a 16-bit
            base. If there are several optimizers, call this for each.
        before_clipping: Whether to mask gradients when they are accumulated. If false, they are
            masked only before the step, and clipping sees all gradients.

    Returns:
        An object that checks the frozen weights (``check``) and removes the hooks (``release``).

    Raises:
        CheckpointError: The mask and the model disagree on names or shapes, or the optimizer has
            none of the model's parameters.

    Example:
        >>> frozen = freeze_outside(model, load_mask("mask"), optimizer)  # doctest: +SKIP
        >>> train(model, optimizer)  # doctest: +SKIP
        >>> frozen.check()  # doctest: +SKIP
    """
    return Frozen(model, mask, optimizer, before_clipping=before_clipping)
