"""A demonstration: a small language model, tuned by reinforcement learning.

:mod:`~rlsparse_store.demo.case` trains it. That module needs torch and transformers, which are
optional and take seconds to import, so the package itself imports nothing.
"""
