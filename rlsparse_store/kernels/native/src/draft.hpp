// A chunk without row flags, split into streams in one call: contexts, streams and blocks. What
// codec/chunk.py does in steps, whose overhead exceeds the work on a small tensor.
#pragma once

#include "cuts.hpp"
#include "kernels.hpp"

namespace rlsparse {

struct DraftCosts {
    int64_t context, empty;
    size_t most_contexts;
    size_t few;  // a chunk with at most so many changes gets one context
    BlockCosts blocks;
};

struct Draft {
    static constexpr size_t kMostEnds = 3 * kMaxContexts + 4;

    size_t contexts = 0;
    uint64_t bounds[kMaxContexts];
    Streams streams;

    // Writes the streams one behind the other; their sizes add up to `size()`.
    size_t size() const;
    void join(uint8_t* out) const;
    // Writes the ends of the blocks of the joined streams, and returns how many there are.
    size_t block_ends(const uint8_t* content, const BlockCosts& costs, uint64_t* ends) const;
};

// The bins of which the cheapest contexts are found, at most.
constexpr size_t kMostCutBins = 128;

// Drafts a chunk that has a changed word. Returns false if it has too many bins.
bool draft_chunk(const Kernels& kernels, const Chunk& chunk, const Changed& changed,
                 const Bounds& bins, uint64_t top_key, size_t every, const DraftCosts& costs,
                 Draft& draft, Scratch& scratch);

}  // namespace rlsparse
