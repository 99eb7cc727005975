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

// The class of |step| in a histogram. A step is 0 only if the words changed after they were
// compared.
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

// Counts words by bin. Where the bins are two for each value of a key's leading bits (one for a key
// whose other bits are zero), their numbers follow by arithmetic that compilers turn into vectors;
// otherwise, and above bin 254, a table is asked.
template <class W>
class WordCounter {
  public:
    WordCounter(const Bounds& bins, const WordMap<W>& map, const Lookup<W, uint16_t>& bin_of,
                Scratch& scratch)
        : map_(map),
          bin_of_(bin_of),
          bins_(bins.number),
          few_(256, scratch),
          all_(bins.number, scratch),
          codes_(scratch.array<uint8_t>(kTile)) {
        if (sizeof(W) == 2 && map.key_mask == 0x7FFF && bins.number > 2) {
            shift_ = bit_length(bins.upper[1]);
            is_regular_ = bins.number == size_t(2) << (15 - shift_);
            for (size_t i = 0; i < bins.number && is_regular_; ++i) {
                const uint64_t last = i % 2 ? (uint64_t(1) << shift_) - 1 : 0;
                is_regular_ = bins.upper[i] == ((uint64_t(i / 2) << shift_) | last);
            }
        }
    }

    // Adds the words of a tile that are in `live`.
    void add(const W* base, size_t groups, const uint64_t* live) {
        if (is_regular_) make_codes(base, groups * 64);
        for (size_t g = 0; g < groups; ++g) {
            if (is_regular_ && live[g] == ~uint64_t(0)) {
                add_codes(base + g * 64, codes_ + g * 64);
                continue;
            }
            for (uint64_t bits = live[g]; bits; bits &= bits - 1) {
                const size_t i = g * 64 + size_t(__builtin_ctzll(bits));
                all_.add(bin_of_(map_.key(base[i])), i);
            }
        }
    }

    void add_to(int64_t* totals) const {
        all_.add_to(totals);
        if (!is_regular_) return;
        int64_t counts[256] = {};
        few_.add_to(counts);
        for (size_t i = 0; i < kBeyond && i < bins_; ++i) totals[i] += counts[i];
    }

  private:
    static constexpr size_t kBeyond = 255;

    void make_codes(const W* base, size_t words) {
        const auto shift = uint16_t(shift_);
        const auto rest = uint16_t((1 << shift_) - 1);
        uint8_t* codes = codes_;
        each_key(base, words, map_, [&](size_t i, W key) {
            const auto bin =
                uint16_t(uint16_t(key >> shift) + uint16_t(uint16_t(key + rest) >> shift));
            codes[i] = uint8_t(bin < kBeyond ? bin : kBeyond);
        });
    }

    // Adds a group of codes; the words of those that are no bin are counted one by one.
    void add_codes(const W* base, const uint8_t* codes) {
        for (size_t i = 0; i < 64; i += 8) {
            const uint64_t eight = load64(codes + i);
            for (size_t j = 0; j < 8; ++j) few_.add(eight >> 8 * j & 255, j);
        }
        uint64_t beyond = beyond_bins(codes);
        for (; beyond; beyond &= beyond - 1) {
            const size_t i = size_t(__builtin_ctzll(beyond));
            all_.add(bin_of_(map_.key(base[i])), i);
        }
    }

    // Which of 64 codes are kBeyond; almost always none.
    static uint64_t beyond_bins(const uint8_t* codes) {
        bool any = false;
        for (size_t i = 0; i < 64; ++i) any |= codes[i] == kBeyond;
        if (!any) return 0;
        uint64_t mask = 0;
        for (size_t i = 0; i < 64; ++i) mask |= uint64_t(codes[i] == kBeyond) << i;
        return mask;
    }

    const WordMap<W>& map_;
    const Lookup<W, uint16_t>& bin_of_;
    size_t bins_;
    Counters few_, all_;
    uint8_t* codes_;
    int shift_ = 0;
    bool is_regular_ = false;
};

template <class W>
void histogram_words(const Chunk& chunk, const void* tuned_words, const Bounds& bins, size_t every,
                     int64_t* words, int64_t* magnitudes, Scratch& scratch) {
    const WordMap<W> map(chunk.width, chunk.order);
    const Lookup<W, uint16_t> bin_of(bins, map, chunk.words, scratch);
    W* room = scratch.array<W>(2 * kTile);
    WordCounter<W> word_counts(bins, map, bin_of, scratch);
    Counters step_counts(bins.number * kMagnitudeClasses, scratch);
    uint64_t live_words[kGroups];
    Live live(chunk);
    for (size_t start = 0; start < chunk.words; start += kTile) {
        const size_t number = tile_words(chunk, start), groups = groups_of(number);
        for (size_t g = 0; g < groups; ++g) live_words[g] = live.next();
        if (start / kTile % every) continue;
        const W* base = whole_groups<W>(chunk.base, start, number, room);
        const W* tuned = whole_groups<W>(tuned_words, start, number, room + kTile);
        prefetch<W>(chunk, chunk.base, start, every * kTile);
        prefetch<W>(chunk, tuned_words, start, every * kTile);
        word_counts.add(base, groups, live_words);
        for (size_t g = 0; g < groups; ++g) {
            uint64_t bits = live_words[g] & Simd::differ(base + g * 64, tuned + g * 64);
            for (; bits; bits &= bits - 1) {
                const size_t i = g * 64 + size_t(__builtin_ctzll(bits));
                const W magnitude = magnitude_of<W>(map.step(base[i], tuned[i]));
                step_counts.add(
                    bin_of(map.key(base[i])) * kMagnitudeClasses + magnitude_class(magnitude), i);
            }
        }
    }
    word_counts.add_to(words);
    step_counts.add_to(magnitudes);
}
