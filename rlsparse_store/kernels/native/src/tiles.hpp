// Going through a chunk tile by tile.
// Included inside the namespace of one instruction set.

constexpr size_t kTile = 1024;  // words: a tile of everything fits the first-level cache
constexpr size_t kGroups = kTile / 64;

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
        prefetch(base_, chunk_.words - start_, words_);
        return true;
    }

    // The names of the contexts of a tile's words, and 0 behind the last one; or else:
    const uint8_t* find_names() {
        contexts_.find(base_, groups() * 64, names_);
        if (chunk_.rows.active) {
            for (size_t g = 0; g < groups(); ++g) Simd::keep(names_ + g * 64, live_.next());
        } else if (words_ % 64) {
            const uint64_t inside = (uint64_t(1) << words_ % 64) - 1;
            Simd::keep(names_ + words_ / 64 * 64, inside);
        }
        std::memset(names_ + groups() * 64, 0, kTile - groups() * 64);
        return names_;
    }

    // Closes up these names and the places of those words that are in a context. Returns how many.
    size_t find_few(uint8_t* names, uint16_t* places) {
        const Contexts<W>& contexts = contexts_;
        const W* base = base_;
        size_t found = 0;
        for (size_t start = 0; start < words_; start += 64) {
            uint64_t bits = contexts.inside(base + start) & live_.next();
            for (; bits; bits &= bits - 1) {
                const size_t place = start + size_t(__builtin_ctzll(bits));
                places[found] = uint16_t(place);
                names[found++] = contexts.name(base[place]);
            }
        }
        return found;
    }

    size_t start() const { return start_; }
    size_t words() const { return words_; }
    size_t groups() const { return groups_of(words_); }
    const W* base() const { return base_; }

  private:
    const Chunk& chunk_;
    const Contexts<W>& contexts_;
    W* room_;
    Live live_;
    size_t start_ = 0, words_ = 0;
    const W* base_ = nullptr;
    alignas(64) uint8_t names_[kTile];
};
