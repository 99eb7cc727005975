// The histogram that a chunk's contexts are chosen by.
// Included inside the namespace of one instruction set, which has defined `Simd`.

constexpr size_t kSampledTile = 4096;  // TILE of the interface

// The class of |step| in a histogram. A step is 0 only if the words changed after they were
// compared.
inline size_t magnitude_class(uint64_t magnitude) {
    if (magnitude <= 3) return size_t(magnitude - (magnitude != 0));
    const int far = 2 + bit_length(magnitude - 3);
    const int most = kMagnitudeClasses - 1;
    return size_t(far < most ? far : most);
}

// Finds the bin of a key. The bins of floats are two for each value of the leading bits, one of
// them for a key whose other bits are zero: their numbers follow by arithmetic. Others are searched
// for.
template <class W>
class Bins {
  public:
    Bins(const Bounds& bins, const WordMap<W>& map) : bins_(bins) {
        const int key_bits = bit_length(map.key_mask);
        if (bins.number < 4 || bins.upper[0] != 0) return;
        shift_ = bit_length(bins.upper[1]);
        if (shift_ == 0 || shift_ >= key_bits) return;
        regular_ = key_bits - shift_ < 16 && bins.number == size_t(2) << (key_bits - shift_);
        const uint64_t rest = (uint64_t(1) << shift_) - 1;
        for (size_t i = 0; i < bins.number && regular_; ++i) {
            regular_ = bins.upper[i] == ((uint64_t(i / 2) << shift_) | (i % 2 ? rest : 0));
        }
    }

    bool regular() const { return regular_; }
    int shift() const { return shift_; }

    size_t operator()(uint64_t key) const {
        if (regular_) {
            return size_t(key >> shift_) * 2 + size_t((key & ((uint64_t(1) << shift_) - 1)) != 0);
        }
        size_t low = 0, high = bins_.number - 1;
        while (low < high) {
            const size_t middle = (low + high) / 2;
            if (bins_.upper[middle] < key) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        return low;
    }

    // The bins of the keys of 64 words, where they are regular.
    void find(const W* words, const WordMap<W>& map, uint16_t* bins) const {
        const WordMap<W> own = map;
        const int shift = shift_;
        const W rest = W((uint64_t(1) << shift) - 1);
        for (int i = 0; i < 64; ++i) {
            const W key = own.key(words[i]);
            bins[i] = uint16_t(uint16_t(key >> shift) * 2 + uint16_t((key & rest) != 0));
        }
    }

  private:
    const Bounds& bins_;
    int shift_ = 0;
    bool regular_ = false;
};

// Counts words by bin: those of a window of bins, where nearly all words are, by comparing vectors.
template <class W>
class WordCounter {
  public:
    WordCounter(const Bins<W>& bins, const WordMap<W>& map, size_t number, Scratch& scratch)
        : bins_(bins), map_(map), number_(number), counts_(scratch.array<uint32_t>(4 * number)) {
        std::memset(counts_, 0, 4 * number * sizeof(uint32_t));
        if constexpr (sizeof(W) == 2) {
            has_window_ =
                Simd::kMakesCodes && bins.regular() && map.key_mask == 0x7FFF && !map.key_flip;
        }
    }

    // Adds the words of a tile that are in `live`, whose last group is filled up.
    void add(const W* base, size_t groups, const uint64_t* live) {
        if constexpr (sizeof(W) == 2) {
            if (has_window_) return add_window(base, groups, live);
        }
        for (size_t g = 0; g < groups; ++g) add_words(base + g * 64, live[g]);
    }

    void add_to(int64_t* totals, size_t every) const {
        for (size_t i = 0; i < number_; ++i) {
            int64_t sum = 0;
            for (size_t table = 0; table < 4; ++table) sum += counts_[table * number_ + i];
            totals[i] += sum * int64_t(every);
        }
    }

  private:
    static constexpr uint8_t kOutside = 127;
    static constexpr size_t kWindow = 32;  // bins

    // Neighbouring words often share a bin, and would wait for each other in one table.
    void add_words(const W* base, uint64_t live) {
        if (live == ~uint64_t(0) && bins_.regular()) {
            uint16_t bins[64];
            bins_.find(base, map_, bins);
            for (size_t i = 0; i < 64; ++i) ++counts_[i % 4 * number_ + bins[i]];
            return;
        }
        for (; live; live &= live - 1) {
            const auto i = size_t(__builtin_ctzll(live));
            ++counts_[i % 4 * number_ + bins_(map_.key(base[i]))];
        }
    }

    void add_window(const uint16_t* base, size_t groups, const uint64_t* live) {
        if (!is_placed_) place_window(base, groups * 64);
        Simd::find_contexts(base, groups * 64, map_.key_mask, window_, names_);
        uint32_t counts[kWindow] = {};
        for (size_t g = 0; g < groups; ++g) Simd::keep(names_ + g * 64, live[g]);
        Simd::count_names(names_, groups, kWindow, counts);
        for (size_t i = 0; i < kWindow && first_ + i < number_; ++i) {
            counts_[first_ + i] += counts[i];
        }
        for (size_t g = 0; g < groups; ++g) {
            add_words(base + g * 64, Simd::equal(names_ + g * 64, kOutside));
        }
    }

    // Puts the window below the largest key of a tile: keys fall off quickly above it, and slowly
    // below.
    void place_window(const uint16_t* base, size_t words) {
        uint16_t top = 0;
        for (size_t i = 0; i < words; ++i) {
            const auto key = uint16_t(base[i] & map_.key_mask);
            top = key > top ? key : top;
        }
        const size_t last = bins_(top);
        first_ = last + 1 > kWindow ? last + 1 - kWindow : 0;
        window_.shift = bins_.shift();
        // Code 0 is that of the bin before the window, and of all before that; the first window has
        // none.
        window_.first = uint32_t(first_ ? first_ - 1 : 0);
        const size_t skip = first_ ? 1 : 0;
        std::memset(window_.names, kOutside, sizeof window_.names);
        for (size_t i = 0; i < kWindow; ++i) window_.names[skip + i] = uint8_t(i + 1);
        is_placed_ = true;
    }

    const Bins<W>& bins_;
    const WordMap<W>& map_;
    size_t number_;
    uint32_t* counts_;
    bool has_window_ = false, is_placed_ = false;
    size_t first_ = 0;  // the first bin of the window
    KeyCodes window_;
    alignas(64) uint8_t names_[kSampledTile];
};

template <class W>
void histogram_words(const Chunk& chunk, const Changed& changed, const Bounds& bounds, size_t every,
                     int64_t* words, int64_t* magnitudes, Scratch& scratch) {
    const WordMap<W> map(chunk.width, chunk.order);
    const Bins<W> bins(bounds, map);
    W* room = scratch.array<W>(kSampledTile);
    WordCounter<W> counter(bins, map, bounds.number, scratch);
    const W *before = static_cast<const W*>(changed.before),
            *after = static_cast<const W*>(changed.after);
    uint64_t live[kSampledTile / 64], moved[kSampledTile / 64];
    Live rows(chunk);
    size_t done = 0;  // changed words before the tile
    for (size_t start = 0; start < chunk.words; start += kSampledTile) {
        const size_t left = chunk.words - start;
        const size_t number = left < kSampledTile ? left : kSampledTile;
        const size_t groups = groups_of(number);
        const bool counted = start / kSampledTile % every == 0;
        if (chunk.rows.active || counted) {
            for (size_t g = 0; g < groups; ++g) live[g] = rows.next();
        } else {
            rows.skip(number);
        }
        moved[groups - 1] = 0;
        std::memcpy(moved, changed.mask + start / 8, (number + 7) / 8);
        if (!counted) {
            for (size_t g = 0; g < groups; ++g) done += size_t(popcount(moved[g]));
            continue;
        }
        counter.add(whole_groups<W>(chunk.base, start, number, room), groups, live);
        for (size_t g = 0; g < groups; ++g) {
            for (uint64_t bits = moved[g]; bits; bits &= bits - 1, ++done) {
                if (!(live[g] >> __builtin_ctzll(bits) & 1)) continue;
                const W magnitude = magnitude_of<W>(map.step(before[done], after[done]));
                magnitudes[bins(map.key(before[done])) * kMagnitudeClasses +
                           magnitude_class(magnitude)] += int64_t(every);
            }
        }
    }
    counter.add_to(words, every);
}
