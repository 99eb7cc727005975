// A byte per word that tells its context. Included inside the namespace of one instruction set.
//
// Masks of contexts are made by comparing these bytes, 64 at a time. Where the bounds fall on
// exponents, as an encoder of this project chooses them, the bytes follow from the keys by
// arithmetic that compilers turn into vectors; otherwise a table is asked word by word.

constexpr uint8_t kNoContext = 127;  // above every code

// (key >> shift) + ((key + 2^shift - 1) >> shift): two codes for each value of the leading bits,
// the first for a key whose other bits are zero.
struct Steps {
    int shift = 0;
    uint32_t first = 0;  // the code that becomes 0; smaller ones do, too
    bool usable = false;

    uint32_t of(uint32_t key) const {
        return (key >> shift) + ((key + (uint32_t(1) << shift) - 1) >> shift);
    }
};

template <class W>
class Codes {
  public:
    Codes(const Bounds& bounds, const WordMap<W>& map, size_t words, Scratch& scratch)
        : map_(map), context_of_(bounds, map, words, scratch), number_(bounds.number) {
        if constexpr (sizeof(W) == 2 || sizeof(W) == 4) {
            // A key and the bits below a shift are added in a W.
            if (bit_length(map.key_mask) < int(8 * sizeof(W))) steps_ = find_steps();
        }
        for (size_t c = 0; c < number_; ++c) {
            bound_[c] = uint8_t(
                steps_.usable ? steps_.of(uint32_t(context_of_.upper()[c])) - steps_.first : c);
        }
        size_t context = 0;
        for (uint8_t code = 0; code < kNoContext; ++code) {
            while (context + 1 < number_ && code > bound_[context]) ++context;
            contexts_[code] = uint8_t(context);
        }
    }

    size_t number() const { return number_; }

    // The context of a word that is in one.
    size_t context(uint8_t code) const { return contexts_[code]; }

    // The largest code of each context.
    const uint8_t* bounds() const { return bound_; }

    // The largest code of a word that is in a context.
    uint8_t last() const { return bound_[number_ - 1]; }

    // The codes of `words` words.
    void make(const W* base, size_t words, uint8_t* codes) const {
        if (steps_.usable) {
            by_steps(base, words, codes);
            return;
        }
        for (size_t i = 0; i < words; ++i) {
            const size_t context = context_of_(map_.key(base[i]));
            codes[i] = context < number_ ? uint8_t(context) : kNoContext;
        }
    }

  private:
    // The largest shift for which the other bits of every bound are all zeros or all ones.
    Steps find_steps() const {
        for (int shift = bit_length(map_.key_mask) - 1; shift > 0; --shift) {
            const uint32_t rest = (uint32_t(1) << shift) - 1;
            bool fits = true;
            for (size_t c = 0; c < number_; ++c) {
                const uint32_t low = uint32_t(context_of_.upper()[c]) & rest;
                fits &= low == 0 || low == rest;
            }
            if (fits) {
                Steps steps{shift, 0, true};
                steps.first = steps.of(uint32_t(context_of_.upper()[0]));
                const uint32_t last = steps.of(uint32_t(context_of_.upper()[number_ - 1]));
                steps.usable = last - steps.first < kNoContext;
                return steps;
            }
        }
        return {};
    }

    void by_steps(const W* base, size_t words, uint8_t* codes) const {
        const auto shift = W(steps_.shift);
        const auto rest = W((W(1) << shift) - 1);
        const auto first = W(steps_.first);
        each_key(base, words, map_, [&](size_t i, W key) {
            const auto places = W(W(key >> shift) + W(W(key + rest) >> shift));
            const auto code = W(places > first ? places - first : 0);
            codes[i] = uint8_t(code < kNoContext ? code : kNoContext);
        });
    }

    const WordMap<W>& map_;
    Lookup<W, uint8_t> context_of_;
    size_t number_;
    Steps steps_;
    uint8_t bound_[kMaxContexts];
    uint8_t contexts_[kNoContext];
};

// Where each changed word stands once they are sorted by context: first those of the first one.
//
// The place of a word depends on the one before of its context, for which a processor waits. So
// the words are treated in several parts at a time, whose places do not depend on each other.
template <class W>
class ContextOrder {
  public:
    // `codes` are those of `number` changed words.
    ContextOrder(const uint8_t* codes, size_t number, const Codes<W>& coder)
        : codes_(codes), number_(number), coder_(coder) {
        each([&](size_t, size_t& count) { ++count; });
        size_t next = 0;
        for (size_t c = 0; c < coder.number(); ++c) {
            const size_t first = next;
            for (auto& places : places_) {
                const size_t count = places[c];
                places[c] = next;
                next += count;
            }
            counts_[c] = next - first;
        }
    }

    // How many changed words a context has.
    size_t count(size_t context) const { return counts_[context]; }

    // Calls move(i, place) for each changed word, once.
    template <class Move>
    void each_place(const Move& move) {
        each([&](size_t i, size_t& place) { move(i, place++); });
    }

  private:
    static constexpr size_t kParts = 4;

    template <class Take>
    void each(const Take& take) {
        const size_t part = number_ / kParts;
        for (size_t i = 0; i < part; ++i) {
            for (size_t p = 0; p < kParts; ++p) take_one(p, p * part + i, take);
        }
        for (size_t i = kParts * part; i < number_; ++i) take_one(kParts - 1, i, take);
    }

    template <class Take>
    void take_one(size_t part, size_t i, const Take& take) {
        take(i, places_[part][coder_.context(codes_[i])]);
    }

    const uint8_t* codes_;
    size_t number_;
    const Codes<W>& coder_;
    size_t places_[kParts][kMaxContexts] = {};
    size_t counts_[kMaxContexts] = {};
};
