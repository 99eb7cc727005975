"""The layer and the kind of module of a tensor, by its name."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["block_of", "layer_of", "module_of"]

_LAYER: Final = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|block)\.(\d+)(?:\.|$)")
_STACK: Final = frozenset(
    {"model", "encoder", "decoder", "transformer", "layer", "layers", "h", "blocks"}
)
_GENERIC: Final = frozenset({"dense", "LayerNorm", "gate", "linear", "proj"})
_ENDING: Final = frozenset({"weight", "bias", "weight_packed", "qweight", "scales", "qzeros"})


_BLOCKS: Final = (
    ("norm", re.compile(r"norm|\bln_|layer_?norm", re.IGNORECASE)),
    ("head", re.compile(r"lm_head|classifier|score|pooler", re.IGNORECASE)),
    ("embedding", re.compile(r"embed|\bwte\b|\bwpe\b", re.IGNORECASE)),
    ("attention", re.compile(r"attn|attention|linear_att", re.IGNORECASE)),
    (
        "mlp",
        re.compile(r"mlp|feed_forward|ffn|experts|intermediate|\boutput\.dense", re.IGNORECASE),
    ),
)


def block_of(name: str) -> str:
    """The kind of block: ``norm``, ``head``, ``embedding``, ``attention``, ``mlp`` or ``other``.

    Example:
        >>> block_of("model.layers.12.self_attn.q_proj.weight")
        'attention'
        >>> block_of("model.layers.12.mlp.experts.3.up_proj.weight")
        'mlp'
        >>> block_of("model.layers.12.input_layernorm.weight")
        'norm'
    """
    return next((kind for kind, pattern in _BLOCKS if pattern.search(name)), "other")


def layer_of(name: str) -> str:
    """The layer's number, or ``other`` for a tensor outside the stack.

    Example:
        >>> layer_of("model.layers.12.self_attn.q_proj.weight")
        '12'
        >>> layer_of("lm_head.weight")
        'other'
    """
    found = _LAYER.search(name)
    return found[1] if found else "other"


def module_of(name: str) -> str:
    """The kind of module: its name without layer numbers, with ``.bias`` for biases.

    Example:
        >>> module_of("model.layers.12.self_attn.q_proj.weight")
        'q_proj'
        >>> module_of("encoder.layer.3.output.dense.bias")
        'output.dense.bias'
        >>> module_of("encoder.layer.3.attention.output.dense.weight")
        'attention.output.dense'
    """
    parts = [part for part in name.split(".") if not part.isdigit()]
    ending = parts.pop() if len(parts) > 1 and parts[-1] in _ENDING else ""
    module = parts[-1]
    if module in _GENERIC:
        # "dense" is the name of half a dozen modules of an encoder.
        module = ".".join([part for part in parts if part not in _STACK][-3:])
    return module if ending in ("", "weight") else f"{module}.{ending}"
