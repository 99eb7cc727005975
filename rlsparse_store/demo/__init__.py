"""A real case to try the package on: a small language model, tuned by reinforcement learning.

:mod:`~rlsparse_store.demo.case` makes it. That module needs torch and transformers, which are
optional, and which take seconds to import: nothing is imported here.
"""
