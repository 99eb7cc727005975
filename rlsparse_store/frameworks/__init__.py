"""How a tensor's bytes are handed out: as NumPy words, or as a torch tensor."""

from rlsparse_store.frameworks.choice import FRAMEWORKS, Framework, get_framework

__all__ = ["FRAMEWORKS", "Framework", "get_framework"]
