// Going through a chunk tile by tile.
// Included inside the namespace of one instruction set.

constexpr size_t kTile = 4096;  // words: a tile of everything fits the first-level cache
constexpr size_t kGroups = kTile / 64;

// From this many changed words in a tile on, its steps are treated as vectors.
constexpr size_t kManyChanges = kTile / 16;

inline size_t tile_words(const Chunk& chunk, size_t start) {
    return chunk.words - start < kTile ? chunk.words - start : kTile;
}

inline size_t groups_of(size_t words) { return (words + 63) / 64; }

// Moves the values of a tile whose bits are set to `to`, which has room for 64 more; returns how
// many they are.
template <class S>
size_t gather_groups(const S* values, size_t groups, const uint64_t* mask, S* to) {
    size_t found = 0;
    for (size_t g = 0; g < groups; ++g) {
        if (!mask[g]) continue;
        Simd::gather(values + g * 64, mask[g], to + found);
        found += size_t(__builtin_popcountll(mask[g]));
    }
    return found;
}

// The words of a tile; of the last one a copy, so that whole groups can be read.
template <class W>
const W* whole_groups(const void* words, size_t start, size_t number, W* room) {
    const W* from = static_cast<const W*>(words) + start;
    if (number % 64 == 0) return from;
    std::memcpy(room, from, number * sizeof(W));
    return room;
}

// Asks for the tile that comes `ahead` words later: the processor's own prefetching stops between
// the passes over a tile.
template <class W, int kForWriting = 0>
void prefetch(const Chunk& chunk, const void* words, size_t start, size_t ahead) {
    if (start + ahead + kTile > chunk.words) return;
    const auto* next = reinterpret_cast<const char*>(static_cast<const W*>(words) + start + ahead);
    for (size_t at = 0; at < kTile * sizeof(W); at += 64)
        __builtin_prefetch(next + at, kForWriting);
}
