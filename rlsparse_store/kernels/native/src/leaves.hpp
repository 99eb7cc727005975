// Leaf hashes (specs/format.md section 11): the XXH3 of every 16 KiB of a byte string, seed 0.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.hpp"

namespace rlsparse {

constexpr size_t kLeafBytes = 16384;

inline size_t leaves_of(size_t size) { return size / kLeafBytes + (size % kLeafBytes != 0); }

// The implementation for the instruction set of this name, which must run here.
Xxh3 find_xxh3(const char* name);

// Writes one hash per leaf.
inline void hash_leaves(Xxh3 xxh3, const uint8_t* data, size_t size, uint64_t* hashes) {
    for (size_t start = 0; start < size; start += kLeafBytes) {
        *hashes++ = xxh3(data + start, size - start < kLeafBytes ? size - start : kLeafBytes);
    }
}

}  // namespace rlsparse
