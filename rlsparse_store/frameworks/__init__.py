"""How a tensor's bytes are handed out: as NumPy words, or as a torch tensor."""

from rlsparse_store.frameworks.choice import FRAMEWORKS, Framework, get_framework
from rlsparse_store.frameworks.memory import Bytes, MainMemory, Memory

__all__ = ["FRAMEWORKS", "Bytes", "Framework", "MainMemory", "Memory", "get_framework"]
