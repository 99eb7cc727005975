// The kernels for any processor.
#include <cstring>
#include <type_traits>

#include "kernels.hpp"
#include "leaves.hpp"

namespace rlsparse {
namespace portable {

// How many bits are set. Not every x86-64 processor has an instruction for it.
inline int popcount(uint64_t bits) {
#if defined(RLSPARSE_X86)
    bits -= bits >> 1 & 0x5555555555555555;
    bits = (bits & 0x3333333333333333) + (bits >> 2 & 0x3333333333333333);
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F0F0F0F0F;
    return int(bits * 0x0101010101010101 >> 56);
#else
    return __builtin_popcountll(bits);
#endif
}

#include "words.hpp"
#include "bits.hpp"
#include "generic.hpp"
using Simd = Generic;
#include "chunk.hpp"

}  // namespace portable

extern const Kernels kPortable = {"portable",          portable::compare,   portable::count_ones,
                                  portable::histogram, portable::partition, portable::apply,
                                  portable::record,    portable::exchange};

}  // namespace rlsparse
