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
        if (sizeof(W) == 2 && map.key_mask <= 0x7FFF) steps_ = find_steps();
        for (size_t c = 0; c < number_; ++c) {
            bound_[c] = uint8_t(
                steps_.usable ? steps_.of(uint32_t(context_of_.upper()[c])) - steps_.first : c);
        }
    }

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
        for (int shift = 14; shift > 0; --shift) {
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
        const auto shift = uint16_t(steps_.shift);
        const auto rest = uint16_t((1 << shift) - 1);
        const auto first = uint16_t(steps_.first);
        each_key(base, words, map_, [&](size_t i, W key) {
            const auto places =
                uint16_t(uint16_t(key >> shift) + uint16_t(uint16_t(key + rest) >> shift));
            const auto code = uint16_t(places > first ? places - first : 0);
            codes[i] = uint8_t(code < kNoContext ? code : kNoContext);
        });
    }

    const WordMap<W>& map_;
    Lookup<W, uint8_t> context_of_;
    size_t number_;
    Steps steps_;
    uint8_t bound_[kMaxContexts];
};
