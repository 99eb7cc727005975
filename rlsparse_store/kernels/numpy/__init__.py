"""The NumPy backend: the definition that every other backend must equal.

It is written for clarity. Blocks bound its working memory; no result depends on their size.
"""

from rlsparse_store.kernels.numpy.kernels import NumpyBackend

__all__ = ["NumpyBackend"]
