"""The NumPy backend: the definition of what every backend must give.

It is written to be read. Blocks bound its working memory; nothing depends on their size.
"""

from rlsparse_store.kernels.numpy.kernels import NumpyBackend

__all__ = ["NumpyBackend"]
