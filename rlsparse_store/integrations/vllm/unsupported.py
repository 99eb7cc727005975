"""What cannot be served right from a delta, refused by name before weights are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from vllm.platforms import current_platform

from rlsparse_store.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["check_live_update", "check_quantization", "check_ties"]

OWN_LOADERS: Final = ("bitsandbytes", "gguf", "torchao")
"""Quantisations whose checkpoints vLLM reads by loaders of their own."""


def check_quantization(model_config: Any) -> None:  # noqa: ANN401 - vLLM's
    """Refuse quantisations whose weights do not come from the loader's tensors.

    Raises:
        UnsupportedModelError: The model has one.
    """
    if model_config.quantization in OWN_LOADERS:
        msg = (
            f"{model_config.quantization} reads its checkpoints by a loader of its own, not from a "
            "delta; rebuild the checkpoint (rlsparse apply) and serve that"
        )
        raise UnsupportedModelError(msg)


def check_ties(
    model_config: Any,  # noqa: ANN401 - vLLM's
    digests: Mapping[str, bytes],
) -> None:
    """Refuse an output layer of its own in a checkpoint whose configuration ties it.

    vLLM looks into a full checkpoint for one, which it does not find in a delta's files.

    Args:
        model_config: The engine's configuration of the model.
        digests: The digest of each tensor of the tuned checkpoint, by name.

    Raises:
        UnsupportedModelError: The checkpoint has one that differs from the embeddings.
    """
    if not model_config.hf_text_config.tie_word_embeddings:
        return
    embeddings = {digests[name] for name in digests if name.endswith("embed_tokens.weight")}
    heads = {digests[name] for name in digests if name.endswith("lm_head.weight")}
    if embeddings and heads - embeddings:
        msg = (
            "its configuration ties the output layer to the embeddings, but it stores another one; "
            "set tie_word_embeddings to false in the tuned checkpoint, or serve it rebuilt "
            "(rlsparse apply)"
        )
        raise UnsupportedModelError(msg)


def check_live_update(model_config: Any, *, mends_ties: bool) -> None:  # noqa: ANN401 - vLLM's
    """Refuse to exchange weights where vLLM itself does not do it right.

    Args:
        model_config: The engine's configuration of the model.
        mends_ties: Whether the caller processes tied embeddings again afterwards.

    Raises:
        UnsupportedModelError: The engine runs on the CPU, and the model is a mixture of experts, or
            has tied embeddings that stay as they were.
    """
    if not current_platform.is_cpu():
        return
    if model_config.is_moe:
        msg = (
            "on the CPU, vLLM repacks experts and does not exchange them right: load each "
            "checkpoint into an engine of its own"
        )
        raise UnsupportedModelError(msg)
    if model_config.hf_text_config.tie_word_embeddings and not mends_ties:
        msg = (
            "on the CPU, reload_weights leaves the output layer of tied embeddings as it was; use "
            'update_weights, of an engine with --weight-transfer-config \'{"backend": "rlsparse"}\''
        )
        raise UnsupportedModelError(msg)
