"""The Triton kernels. One launch works on several chunks.

With ``TRITON_INTERPRET=1`` the kernels run on the CPU, as in the tests. Words are signed integers
of their width, as in torch. The kernels get a chunk table with the addresses of the words. A chunk
is cut into tiles of 16384 words, and a tile into groups of 32 words, whose bits are an int32.

Kernels are not specialized on arguments that differ between launches: Triton would compile another
version for 1 and for multiples of 16.
"""

from rlsparse_store.gpu.kernels.contexts import count_context_words, map_contexts
from rlsparse_store.gpu.kernels.diff import compare_words, count_bins, flag_rows
from rlsparse_store.gpu.kernels.hashing import hash_leaves
from rlsparse_store.gpu.kernels.join import (
    check_dense_masks,
    count_far_steps,
    count_low_bits,
    count_ones,
    patch_changes,
    read_steps,
    set_gaps,
    sum_gaps,
)
from rlsparse_store.gpu.kernels.split import (
    count_escapes,
    count_steps,
    scatter_changes,
    write_masks,
    write_steps,
)

__all__ = [
    "check_dense_masks",
    "compare_words",
    "count_bins",
    "count_context_words",
    "count_escapes",
    "count_far_steps",
    "count_low_bits",
    "count_ones",
    "count_steps",
    "flag_rows",
    "hash_leaves",
    "map_contexts",
    "patch_changes",
    "read_steps",
    "scatter_changes",
    "set_gaps",
    "sum_gaps",
    "write_masks",
    "write_steps",
]
