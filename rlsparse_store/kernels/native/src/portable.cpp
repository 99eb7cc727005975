// The kernels for any processor.
#include <cstring>

#include "kernels.hpp"
#include "leaves.hpp"

namespace rlsparse {
namespace portable {

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
