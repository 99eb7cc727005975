// What changed in a chunk, and the histogram that its contexts are chosen by.
// Included inside the namespace of one instruction set, which has defined `Simd`.

template <class W>
Changes count_changes(const Chunk& chunk, const void* tuned_words) {
    const WordMap<W> map(chunk.width, chunk.order);
    const W* base = static_cast<const W*>(chunk.base);
    const W* tuned = static_cast<const W*>(tuned_words);
    constexpr size_t kBlock = sizeof(W) == 1 ? 128 : kTile;  // its count fits a word
    Changes found;
    W top = 0;
    for (size_t start = 0; start < chunk.words; start += kBlock) {
        const size_t left = chunk.words - start;
        const size_t words = left < kBlock ? left : kBlock;
        const W *old = base + start, *now = tuned + start;
        W count = 0;
        each_key(old, words, map, [&](size_t i, W key) {
            const W changed = old[i] != now[i] ? W(~W(0)) : W(0);
            const W moved = W(key & changed);
            top = moved > top ? moved : top;
            count = W(count - changed);
        });
        found.number += count;
    }
    found.top_key = top;
    return found;
}

// The class of |step| in a histogram. A step is 0 only if the words changed after they were compared.
inline size_t magnitude_class(uint64_t magnitude) {
    if (magnitude <= 3) return size_t(magnitude - (magnitude != 0));
    const int far = 2 + bit_length(magnitude - 3);
    const int most = kMagnitudeClasses - 1;
    return size_t(far < most ? far : most);
}

// Counters in several tables: neighbouring words often share a bin and would wait for each other.
class Counters {
  public:
    Counters(size_t cells, Scratch& scratch)
        : cells_(cells), counts_(scratch.array<uint32_t>(kTables * cells)) {
        std::memset(counts_, 0, kTables * cells * sizeof(uint32_t));
    }

    void add(size_t cell, size_t turn) { ++counts_[turn % kTables * cells_ + cell]; }

    void add_to(int64_t* totals) const {
        for (size_t table = 0; table < kTables; ++table) {
            for (size_t i = 0; i < cells_; ++i) totals[i] += counts_[table * cells_ + i];
        }
    }

  private:
    static constexpr size_t kTables = 8;
    size_t cells_;
    uint32_t* counts_;
};

template <class W>
void histogram_words(const Chunk& chunk, const void* tuned_words, const Bounds& bins, size_t every,
                     int64_t* words, int64_t* magnitudes, Scratch& scratch) {
    const WordMap<W> map(chunk.width, chunk.order);
    const Lookup<W, uint16_t> bin_of(bins, map, chunk.words, scratch);
    W* room = scratch.array<W>(2 * kTile);
    Counters word_counts(bins.number, scratch);
    Counters step_counts(bins.number * kMagnitudeClasses, scratch);
    Live live(chunk);
    for (size_t start = 0; start < chunk.words; start += kTile) {
        const size_t number = tile_words(chunk, start);
        if (start / kTile % every) {
            for (size_t at = 0; at < number; at += 64) live.next();
            continue;
        }
        const W* base = whole_groups<W>(chunk.base, start, number, room);
        const W* tuned = whole_groups<W>(tuned_words, start, number, room + kTile);
        prefetch<W>(chunk, chunk.base, start, every * kTile);
        prefetch<W>(chunk, tuned_words, start, every * kTile);
        for (size_t at = 0; at < number; at += 64) {
            const uint64_t mask = live.next();
            if (mask == ~uint64_t(0)) {
                for (size_t i = at; i < at + 64; ++i) word_counts.add(bin_of(map.key(base[i])), i);
            } else {
                for (uint64_t bits = mask; bits; bits &= bits - 1) {
                    const size_t i = at + size_t(__builtin_ctzll(bits));
                    word_counts.add(bin_of(map.key(base[i])), i);
                }
            }
            for (uint64_t bits = mask & Simd::differ(base + at, tuned + at); bits; bits &= bits - 1) {
                const size_t i = at + size_t(__builtin_ctzll(bits));
                const W magnitude = magnitude_of<W>(map.step(base[i], tuned[i]));
                step_counts.add(bin_of(map.key(base[i])) * kMagnitudeClasses +
                                    magnitude_class(magnitude),
                                i);
            }
        }
    }
    word_counts.add_to(words);
    step_counts.add_to(magnitudes);
}
