"""The Triton kernels. Each works on several chunks at a time, so that few launches do.

Under ``TRITON_INTERPRET=1`` they run on the CPU, as the tests do. Words come as signed integers of
their width, as torch has them, wherever they lie: a table of chunks tells the kernels their
addresses. A chunk is cut into tiles of 16384 words, and a tile into groups of 32 words, whose bits
are an int32.

Numbers that differ from launch to launch are not specialized on, or a kernel would be compiled anew
when one happens to be 1, or a multiple of 16.
"""

from rlsparse_store.gpu.kernels.contexts import mark_contexts, tally_marks
from rlsparse_store.gpu.kernels.diff import compare_words, count_bins, flag_rows
from rlsparse_store.gpu.kernels.hashing import hash_leaves
from rlsparse_store.gpu.kernels.join import (
    compare_marks,
    count_ones,
    patch_changes,
    read_steps,
    set_gaps,
    sum_gaps,
    tally_far,
    tally_lows,
)
from rlsparse_store.gpu.kernels.split import (
    scatter_changes,
    tally_gaps,
    tally_steps,
    write_masks,
    write_steps,
)

__all__ = [
    "compare_marks",
    "compare_words",
    "count_bins",
    "count_ones",
    "flag_rows",
    "hash_leaves",
    "mark_contexts",
    "patch_changes",
    "read_steps",
    "scatter_changes",
    "set_gaps",
    "sum_gaps",
    "tally_far",
    "tally_gaps",
    "tally_lows",
    "tally_marks",
    "tally_steps",
    "write_masks",
    "write_steps",
]
