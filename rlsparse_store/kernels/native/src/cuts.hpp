// Cutting bins into contexts and streams into blocks by what they would cost: the encoder's
// choices, of which the NumPy backend is the definition. In integers, so that every machine makes
// the same.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.hpp"

namespace rlsparse {

// Logarithms of 1 + i / 2048 in fixed point of kFraction bits, for i from 0 to kLogarithms - 1.
constexpr int kFraction = 16;
constexpr size_t kLogarithms = 2049;

// Writes the ends of the contexts, at most `most` of them, and returns how many there are.
size_t cheapest_cut(const int64_t* words, const int64_t* magnitudes, size_t bins,
                    const int64_t* log2, int64_t context_cost, int64_t empty_cost, size_t most,
                    uint64_t* ends, int64_t* cost, Scratch& scratch);

// Cost of a mask with `k` of `n` bits set; n is below 2^40.
int64_t mask_cost(int64_t n, int64_t k, const int64_t* log2);

struct BlockCosts {
    const int64_t* log2;
    size_t sampled_bytes;
    int64_t block, table, symbol;
};

// Where streams end, none of them empty, decides which end a block; writes those ends to `found`,
// which may be `ends`, and returns how many there are.
size_t block_ends(const uint8_t* content, const uint64_t* ends, size_t number,
                  const BlockCosts& costs, uint64_t* found);

}  // namespace rlsparse
