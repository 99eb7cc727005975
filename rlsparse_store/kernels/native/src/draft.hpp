// A chunk, split into streams in one call: contexts, row flags, streams and blocks. What
// codec/chunk.py does in steps, whose overhead exceeds the work on a small tensor.
#pragma once

#include "cuts.hpp"
#include "kernels.hpp"

namespace rlsparse {

struct DraftCosts {
    int64_t context, empty;
    size_t most_contexts;
    size_t few;      // a chunk with at most this many changes gets one context
    int64_t margin;  // minimum net saving of row flags
    BlockCosts blocks;
};

struct Draft {
    static constexpr size_t kMostEnds = 3 * kMaxContexts + 5;

    size_t contexts = 0;
    uint64_t bounds[kMaxContexts];
    Streams streams;
    Span rows;  // one byte per row flag; empty without row flags

    // Writes row flags and streams one after the other; their sizes add up to `size()`.
    size_t size() const;
    void join(uint8_t* out) const;
    // Writes the ends of the blocks of what `join` wrote, and returns how many there are.
    size_t block_ends(const uint8_t* content, const BlockCosts& costs, uint64_t* ends) const;
};

// How many rows of `length` words the words of a chunk touch, the first `offset` words into its
// row.
inline size_t rows_of(uint64_t words, uint64_t length, uint64_t offset) {
    return words ? size_t((offset + words - 1) / length + 1) : 0;
}

// Flags the rows of `length` words that hold a changed word, and returns how many do.
size_t flag_rows(const uint8_t* mask, size_t words, uint64_t length, uint64_t offset,
                 uint8_t* flags);

// The bins of which the cheapest contexts are found, at most.
constexpr size_t kMostCutBins = 128;

// Drafts a chunk that has a changed word. It gets the row flags that it comes with only where they
// save space. Returns false if it has too many bins.
bool draft_chunk(const Kernels& kernels, const Chunk& chunk, const Changed& changed,
                 const Bounds& bins, uint64_t top_key, size_t every, const DraftCosts& costs,
                 Draft& draft, Scratch& scratch);

}  // namespace rlsparse
