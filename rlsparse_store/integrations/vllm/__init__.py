"""Serving deltas with vLLM, and walking an engine through a run. Importing it loads no vLLM."""

from rlsparse_store.integrations.vllm.run_walk import walk

__all__ = ["walk"]
