// Going through a chunk tile by tile.
// Included inside the namespace of one instruction set.

constexpr size_t kTile = Simd::kTileWords;  // a tile of everything fits the first-level cache
constexpr size_t kGroups = kTile / 64;

// The parts of a tile. Where words are counted one by one, they take turns: neighbours often share
// a context, and would wait for each other.
constexpr size_t kParts = 4, kPart = kTile / kParts;

inline size_t tile_words(const Chunk& chunk, size_t start) {
    return chunk.words - start < kTile ? chunk.words - start : kTile;
}

inline size_t groups_of(size_t words) { return (words + 63) / 64; }

// The words of a tile; of the last one a copy, so that whole groups can be read.
template <class W>
const W* whole_groups(const void* words, size_t start, size_t number, W* room) {
    const W* from = static_cast<const W*>(words) + start;
    if (number % 64 == 0) return from;
    std::memset(room + number / 64 * 64, 0, 64 * sizeof(W));
    std::memcpy(room, from, number * sizeof(W));
    return room;
}

// Lists the places of the set bits, and returns how many there are; there is room for 3 more.
inline size_t list_places(const uint64_t* groups, size_t number, uint16_t* places) {
    size_t found = 0;
    for (size_t g = 0; g < number; ++g) {
        uint64_t bits = groups[g];
        const size_t end = found + size_t(popcount(bits));
        // Four together, because where a loop ends is mispredicted.
        for (; found < end; found += 4) {
            for (size_t i = 0; i < 4; ++i, bits &= bits - 1) {
                const int bit = __builtin_ctzll(bits | uint64_t(1) << 63);
                places[found + i] = uint16_t(g * 64 + size_t(bit));
            }
        }
        found = end;
    }
    return found;
}

// Asks for words that come `ahead` bytes later: the processor's own prefetching stops at the end of
// a page, and between the passes over a tile.
template <int kForWriting = 0, class W>
void prefetch(const W* words, size_t left, size_t number) {
    constexpr size_t kAhead = 8192;
    const auto* next = reinterpret_cast<const char*>(words) + kAhead;
    const size_t end = left * sizeof(W), wanted = kAhead + number * sizeof(W);
    if (wanted > end) return;
    for (size_t at = 0; at < number * sizeof(W); at += 64) {
        __builtin_prefetch(next + at, kForWriting, 2);
    }
}

// The contexts of a chunk's words, tile by tile.
template <class W>
class Tiles {
  public:
    Tiles(const Chunk& chunk, const Contexts<W>& contexts, Scratch& scratch)
        : chunk_(chunk), contexts_(contexts), room_(scratch.array<W>(kTile)), live_(chunk) {}

    // Goes to the next tile. Returns whether there is one.
    bool next() {
        start_ += words_;
        if (start_ == chunk_.words) return false;
        words_ = tile_words(chunk_, start_);
        base_ = whole_groups(chunk_.base, start_, words_, room_);
        return true;
    }

    // The names of the contexts of a tile's words, and 0 behind the last one; or else:
    const uint8_t* find_names() {
        by_parts([&](size_t first, size_t number) {
            contexts_.find(base_ + first, number, names_ + first);
        });
        if (chunk_.rows.active) {
            for (size_t g = 0; g < groups(); ++g) Simd::keep(names_ + g * 64, live_.next());
        } else if (words_ % 64) {
            const uint64_t inside = (uint64_t(1) << words_ % 64) - 1;
            Simd::keep(names_ + words_ / 64 * 64, inside);
        }
        std::memset(names_ + groups() * 64, 0, kTile - groups() * 64);
        return names_;
    }

    // Closes up these names and the places of those words that are in a context, where they are
    // few, and returns how many; name 0 and place kTile fill up what is behind them to kParts equal
    // parts. There is room for kParts more.
    size_t find_few(uint8_t* names, uint16_t* places) {
        uint64_t inside[kGroups];
        by_parts([&](size_t first, size_t number) {
            contexts_.find_inside(base_ + first, number / 64, inside + first / 64);
        });
        for (size_t g = 0; g < groups(); ++g) inside[g] &= live_.next();
        const size_t found = list_places(inside, groups(), places);
        contexts_.find_at(base_, places, found, names);
        std::memset(names + found, 0, kParts);
        for (size_t i = found; i < found + kParts; ++i) places[i] = uint16_t(kTile);
        return found;
    }

    // The bits of a mask of the chunk's words that belong to the tile.
    void read_mask(const uint8_t* mask, uint64_t* bits) const {
        bits[groups() - 1] = 0;
        std::memcpy(bits, mask + start_ / 8, (words_ + 7) / 8);
    }

    size_t start() const { return start_; }
    size_t words() const { return words_; }
    size_t groups() const { return groups_of(words_); }
    const W* base() const { return base_; }

  private:
    // Calls find(first, number) for the words of each part, and asks for as many that come later:
    // for all at once, it would have to wait.
    template <class Find>
    void by_parts(Find find) const {
        const W* words = static_cast<const W*>(chunk_.base) + start_;
        const size_t end = groups() * 64;
        for (size_t first = 0; first < end; first += kPart) {
            const size_t number = end - first < kPart ? end - first : kPart;
            prefetch(words + first, chunk_.words - start_ - first, number);
            find(first, number);
        }
    }

    const Chunk& chunk_;
    const Contexts<W>& contexts_;
    W* room_;
    Live live_;
    size_t start_ = 0, words_ = 0;
    const W* base_ = nullptr;
    alignas(64) uint8_t names_[kTile];
};

// The words of each context in each part of some words, by name.
using PartCounts = uint16_t[kParts][kMaxContexts + 1];

// Counts those of a tile.
inline void count_parts(const uint8_t* names, size_t groups, size_t named, PartCounts& counts) {
    constexpr size_t kGroupsOfPart = kGroups / kParts;
    for (size_t part = 0; part * kGroupsOfPart < groups; ++part) {
        const size_t left = groups - part * kGroupsOfPart;
        Simd::count_names(names + part * kPart, left < kGroupsOfPart ? left : kGroupsOfPart, named,
                          counts[part] + 1);
    }
}

// Counts those of few words, in parts of `number` words.
inline void count_few(const uint8_t* names, size_t number, PartCounts& counts) {
    for (size_t i = 0; i < number; ++i) {
        for (size_t part = 0; part < kParts; ++part) ++counts[part][names[part * number + i]];
    }
}

inline size_t part_of(size_t words) { return (words + kParts - 1) / kParts; }
