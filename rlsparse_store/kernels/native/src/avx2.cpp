// The kernels for x86 processors with AVX2 and fast BMI2.
#include "kernels.hpp"
#include "leaves.hpp"

#if defined(RLSPARSE_X86)
#include <immintrin.h>

#include <cstring>
#include <type_traits>

#include "target.hpp"

RLSPARSE_TARGET_BEGIN("avx2,bmi,bmi2,lzcnt,popcnt")

namespace rlsparse {
namespace avx2 {

// How many bits are set.
inline int popcount(uint64_t bits) { return int(_mm_popcnt_u64(bits)); }

#include "words.hpp"
#include "bits.hpp"
#include "generic.hpp"

#include "avx2.hpp"
using Simd = Avx2;
#include "chunk.hpp"

}  // namespace avx2

extern const Kernels kAvx2 = {"avx2",          avx2::compare, avx2::count_ones, avx2::histogram,
                              avx2::partition, avx2::apply,   avx2::record,     avx2::exchange};

}  // namespace rlsparse
RLSPARSE_TARGET_END
#endif
