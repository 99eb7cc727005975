// The context of each word, as a byte. Included inside the namespace of one instruction set, which
// has defined `Simd`.
//
// Everything else follows from these bytes by comparing 64 of them at a time. A context has a name:
// a number from 1 on. The name 0 is that of the words in no context.

template <class W>
class Contexts {
  public:
    Contexts(const Bounds& bounds, const WordMap<W>& map, Scratch& scratch)
        : map_(map), number_(bounds.number) {
        for (size_t c = 0; c < number_; ++c) {
            upper_[c] = bounds.upper[c] < map.key_mask ? W(bounds.upper[c]) : map.key_mask;
        }
        if constexpr (sizeof(W) == 2) has_codes_ = Simd::kMakesCodes && find_codes();
        if constexpr (sizeof(W) <= 2) {
            if (!has_codes_) table_ = scratch.array<uint8_t>(size_t(1) << 8 * sizeof(W));
        }
        for (size_t c = 0; c < number_; ++c) names_[c] = uint8_t(c + 1);
        build();
    }

    size_t number() const { return number_; }

    // Gives the contexts other names; 0 is for one that is not looked for.
    void rename(const uint8_t* names) {
        std::memcpy(names_, names, number_);
        build();
    }

    // The name of the context of each of `words` words, a multiple of 64.
    void find(const W* words, size_t number, uint8_t* names) const {
        if constexpr (sizeof(W) == 2) {
            if (has_codes_) return Simd::find_contexts(words, number, map_.key_mask, codes_, names);
        }
        if constexpr (sizeof(W) <= 2) {
            const uint8_t* table = table_;  // names may alias the member, which would be read anew
            for (size_t i = 0; i < number; ++i) names[i] = table[words[i]];
        } else {
            compare(words, number, names);
        }
    }

    // Which words of whole groups are in a context, those that are not looked for included.
    void find_inside(const W* words, size_t groups, uint64_t* inside) const {
        const WordMap<W> map = map_;
        const W last = upper_[number_ - 1];
        for (size_t g = 0; g < groups; ++g, words += 64) {
            if constexpr (sizeof(W) == 2) {
                if (!map.key_flip) {
                    inside[g] = Simd::at_most(words, map.key_mask, last);
                    continue;
                }
            }
            uint8_t flags[64];
            for (int i = 0; i < 64; ++i) flags[i] = uint8_t(map.key(words[i]) <= last ? 0xFF : 0);
            inside[g] = Simd::high_bits(flags);
        }
    }

    // The names of the contexts of the words at some places.
    void find_at(const W* words, const uint16_t* places, size_t number, uint8_t* names) const {
        if constexpr (sizeof(W) <= 2) {
            const uint8_t* table = table_;  // as in find
            for (size_t i = 0; i < number; ++i) names[i] = table[words[places[i]]];
        } else {
            for (size_t i = 0; i < number; ++i) {
                const W key = map_.key(words[places[i]]);
                size_t above = 0;
                while (above < number_ && key > upper_[above]) ++above;
                names[i] = above < number_ ? names_[above] : uint8_t(0);
            }
        }
    }

  private:
    // The largest shift for which the other bits of every bound are all zeros or all ones.
    bool find_codes() {
        if (map_.key_mask != 0x7FFF || map_.key_flip) return false;
        for (codes_.shift = 14; codes_.shift > 0; --codes_.shift) {
            const uint32_t rest = (uint32_t(1) << codes_.shift) - 1;
            bool fits = true;
            for (size_t c = 0; c < number_; ++c) {
                const uint32_t low = uint32_t(upper_[c]) & rest;
                fits &= low == 0 || low == rest;
            }
            if (!fits) continue;
            codes_.first = codes_.of(uint32_t(upper_[0]));
            return codes_.of(uint32_t(upper_[number_ - 1])) - codes_.first < 127;
        }
        return false;
    }

    void build() {
        if (has_codes_) {
            size_t code = 0;
            for (size_t c = 0; c < number_; ++c) {
                const uint32_t last = codes_.of(uint32_t(upper_[c])) - codes_.first;
                for (; code <= last && code < 127; ++code) codes_.names[code] = names_[c];
            }
            std::memset(codes_.names + code, 0, sizeof codes_.names - code);
        } else if constexpr (sizeof(W) <= 2) {
            build_table();
        }
    }

    void build_table() {
        const size_t keys = size_t(map_.key_mask) + 1, size = size_t(1) << 8 * sizeof(W);
        size_t key = 0;
        for (size_t c = 0; c < number_; ++c) {
            const size_t end = size_t(upper_[c]) + 1;
            std::memset(table_ + key, names_[c], end - key);
            key = end;
        }
        std::memset(table_ + key, 0, keys - key);
        for (size_t word = keys; word < size; ++word) table_[word] = table_[map_.key(W(word))];
    }

    // By counting the bounds that a key is above: no bits of wide keys tell their context.
    void compare(const W* words, size_t number, uint8_t* names) const {
        for (size_t start = 0; start < number; start += 64) {
            W keys[64], above[64] = {};
            for (int i = 0; i < 64; ++i) keys[i] = map_.key(words[start + i]);
            for (size_t c = 0; c < number_; ++c) {
                const W bound = upper_[c];
                for (int i = 0; i < 64; ++i) above[i] = W(above[i] + W(keys[i] > bound));
            }
            for (int i = 0; i < 64; ++i) {
                names[start + i] = above[i] < number_ ? names_[above[i]] : uint8_t(0);
            }
        }
    }

    const WordMap<W>& map_;
    size_t number_;
    W upper_[kMaxContexts];
    uint8_t names_[kMaxContexts];
    bool has_codes_ = false;
    KeyCodes codes_;
    uint8_t* table_ = nullptr;
};

// Which contexts have most of the words.
//
// Those are looked for in every group of words. All others, the rest, are closed up first: to look
// for a dozen contexts that have a word or none in most groups would take longest of all. The names
// 1 to `most` are those of the populous contexts, and those above it of the rest, in no order.
struct Populous {
    static constexpr size_t kMost = 4;
    static constexpr size_t kShare = 12;  // one word in this many makes a context populous

    size_t most = 0, named = 0;
    bool is_sparse = false;              // whether few words are in contexts
    uint8_t names[kMaxContexts] = {};    // of each context; 0 if it is left out
    uint8_t contexts[kMaxContexts + 1];  // the context of each name from 1 on

    // Names the contexts, by a sample of a chunk's words: all, or given the changed words of each,
    // those that have some. None is populous if they have fewer than one word in `few` together.
    template <class W>
    void choose(const Chunk& chunk, Contexts<W>& finder, const uint64_t* changed, size_t few) {
        const auto wanted = [&](size_t c) { return !changed || changed[c] != 0; };
        constexpr size_t kSamples = 48;
        const size_t groups = chunk.words / 64, number = finder.number();
        size_t counts[kMaxContexts + 1] = {}, sampled = 0;
        alignas(64) uint8_t found[64];
        for (size_t i = 0; i < kSamples && i < groups; ++i) {
            const size_t group = groups < kSamples ? i : i * (groups / kSamples);
            finder.find(static_cast<const W*>(chunk.base) + group * 64, 64, found);
            for (uint8_t name : found) ++counts[name];
            sampled += 64;
        }
        size_t left = 0;
        for (size_t c = 0; c < number; ++c) left += wanted(c);
        size_t inside = 0;
        for (size_t c = 0; c < number; ++c) inside += wanted(c) ? counts[c + 1] : 0;
        is_sparse = inside < sampled / few;
        const size_t limit = is_sparse ? 0 : kMost;
        const size_t enough = left <= kMost ? 0 : sampled / kShare;
        for (; most < limit && most < left; ++most) {
            size_t best = number;
            for (size_t c = 0; c < number; ++c) {
                if (!wanted(c) || names[c]) continue;
                if (best == number || counts[c + 1] > counts[best + 1]) best = c;
            }
            if (counts[best + 1] < enough) break;
            name(best);
        }
        for (size_t c = 0; c < number; ++c) {
            if (wanted(c) && !names[c]) name(c);
        }
        finder.rename(names);
    }

  private:
    void name(size_t context) {
        names[context] = uint8_t(++named);
        contexts[named] = uint8_t(context);
    }
};

// Calls function<kMost>(...) for the number of populous contexts there are.
#define RLSPARSE_BY_MOST(most, function, ...) \
    ((most) == 0   ? function<0>(__VA_ARGS__) \
     : (most) == 1 ? function<1>(__VA_ARGS__) \
     : (most) == 2 ? function<2>(__VA_ARGS__) \
     : (most) == 3 ? function<3>(__VA_ARGS__) \
                   : function<4>(__VA_ARGS__))
