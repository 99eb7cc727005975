// What works on groups of 64 words, for any processor. An instruction set overrides what it does
// better. Included inside the namespace of one instruction set.

constexpr uint64_t kEachByte = 0x0101010101010101;

// What compilers make a register of on any processor that has one of this size.
typedef uint8_t Bytes __attribute__((vector_size(16)));
typedef uint16_t Halves __attribute__((vector_size(16)));

// For keys of 15 bits: (key >> shift) + ((key + 2^shift - 1) >> shift), less `first`, is a code
// with two values for each value of the leading bits, the first for a key whose other bits are
// zero. Bounds that an encoder of this project chooses fall between codes.
struct KeyCodes {
    int shift = 0;
    uint32_t first = 0;  // what becomes 0; smaller ones do, too
    uint8_t names[128];  // the context of each code; of the last one, and of those above, none

    uint32_t of(uint32_t key) const {
        return (key >> shift) + ((key + (uint32_t(1) << shift) - 1) >> shift);
    }
};

// 64 steps as bit planes: whether each is negative, and its class min(|step| - 1, 3).
struct StepPlanes {
    uint64_t negative, low, high;
};

struct Generic {
    // Which of 64 words differ.
    template <class W>
    static uint64_t differ(const W* a, const W* b) {
        if constexpr (sizeof(W) == 2) {
            return pack([&](int i) { return (Halves)(halves(a + i) != halves(b + i)); });
        } else {
            uint8_t flags[64];
            for (int i = 0; i < 64; ++i) flags[i] = uint8_t(a[i] != b[i] ? 0xFF : 0);
            return high_bits(flags);
        }
    }

    // Whether chunks are decoded from lists of places, or 64 words at a time.
    static constexpr bool kByLists = true;
    static constexpr size_t kTileWords = 2048;

    // Whether 16-bit words get their contexts by arithmetic, or from a table.
    static constexpr bool kMakesCodes = false;

    static void find_contexts(const uint16_t*, size_t, uint16_t, const KeyCodes&, uint8_t*) {}

    // Adds to counts[0], counts[1] ... how often the names 1, 2 ... up to `number` occur in at most
    // 64 groups.
    template <class C>
    static void count_names(const uint8_t* names, size_t groups, size_t number, C* counts) {
        while (groups) {
            const size_t some = groups < 4 ? groups : 4;  // a byte holds their sum in each lane
            for (size_t name = 1; name <= number; ++name) {
                Bytes sum = {};
                for (size_t i = 0; i < some * 64; i += 16) {
                    Bytes own;
                    std::memcpy(&own, names + i, 16);
                    sum -= (Bytes)(own == uint8_t(name));
                }
                uint64_t halves[2];
                std::memcpy(halves, &sum, 16);
                counts[name - 1] = C(counts[name - 1] + C(halves[0] * kEachByte >> 56) +
                                     C(halves[1] * kEachByte >> 56));
            }
            names += some * 64;
            groups -= some;
        }
    }

    // The highest bit of each of 64 bytes.
    static uint64_t high_bits(const uint8_t* bytes) {
        uint64_t mask = 0;
        for (int i = 0; i < 8; ++i) {
            const uint64_t bits = load64(bytes + 8 * i) >> 7 & kEachByte;
            mask |= (bits * 0x0102040810204080) >> 56 << 8 * i;
        }
        return mask;
    }

    // Which of 64 words are at most `last`, less the bits that are not in `mask`.
    static uint64_t at_most(const uint16_t* words, uint16_t mask, uint16_t last) {
        return pack([&](int i) { return (Halves)((halves(words + i) & mask) <= last); });
    }

    // Which of 64 names are this one. Names are below 128.
    static uint64_t equal(const uint8_t* names, uint8_t name) {
        uint8_t flags[64];  // bytes first: compilers make vectors of that, but not of bits
        for (int i = 0; i < 64; ++i) flags[i] = uint8_t(names[i] == name ? 0xFF : 0);
        return high_bits(flags);
    }

    // Which of 64 names are above this one.
    static uint64_t above(const uint8_t* names, uint8_t name) {
        uint8_t flags[64];
        for (int i = 0; i < 64; ++i) flags[i] = uint8_t(names[i] > name ? 0xFF : 0);
        return high_bits(flags);
    }

    // Sets those of 64 names to 0 whose bit is not set.
    static void keep(uint8_t* names, uint64_t mask) {
        if (mask == ~uint64_t(0)) return;
        for (int i = 0; i < 64; ++i) names[i] = uint8_t(mask >> i & 1 ? names[i] : 0);
    }

    // The bits at the places of `mask`, packed.
    static uint64_t extract(uint64_t bits, uint64_t mask) {
        if (!(bits & mask)) return 0;
        uint64_t packed = 0;
        for (int i = 0; mask; mask &= mask - 1, ++i) {
            packed |= (bits >> __builtin_ctzll(mask) & 1) << i;
        }
        return packed;
    }

    // Inverse of extract; bits of `packed` beyond those of `mask` are ignored.
    static uint64_t deposit(uint64_t packed, uint64_t mask) {
        uint64_t bits = 0;
        for (; mask && packed; mask &= mask - 1, packed >>= 1) {
            bits |= (packed & 1) << __builtin_ctzll(mask);
        }
        return bits;
    }

    // Moves those of 64 values that are in `mask` to `to`, which has room for 64 more.
    template <class S>
    static void gather(const S* values, uint64_t mask, S* to) {
        for (; mask; mask &= mask - 1) *to++ = values[__builtin_ctzll(mask)];
    }

    // Inverse of gather; 64 values may be read.
    template <class S>
    static void scatter(const S* from, uint64_t mask, S* values) {
        for (; mask; mask &= mask - 1) values[__builtin_ctzll(mask)] = *from++;
    }

    // Moves those of 64 values that are in `mask` to `to`, and what is in `from` to their places.
    // 64 values may be read, and `to` has room for 64 more.
    template <class S>
    static void swap(S* values, uint64_t mask, const S* from, S* to) {
        for (; mask; mask &= mask - 1) {
            S& value = values[__builtin_ctzll(mask)];
            *to++ = value;
            value = *from++;
        }
    }

    // 64 bytes of 0 or 1.
    static void to_bytes(uint64_t mask, uint8_t* bytes) {
        for (int i = 0; i < 8; ++i) {
            const uint64_t spread = (kEachByte * (mask >> 8 * i & 0xFF)) & 0x8040201008040201;
            store64(bytes + 8 * i, (spread + 0x7F * kEachByte) >> 7 & kEachByte);
        }
    }

    // --- steps: 64 values may be read and written ---------------------------------------------

    template <class S>
    static StepPlanes split_steps(const S* steps) {
        uint8_t negative[64], low[64], high[64];
        for (int i = 0; i < 64; ++i) {
            const S sign = S(steps[i] < 0 ? -1 : 0);
            const S nearest = S((steps[i] ^ sign) - 1 - sign);  // |step| - 1
            const auto number = uint8_t(nearest < 3 ? nearest : 3);
            negative[i] = uint8_t(sign);
            low[i] = uint8_t(number << 7);
            high[i] = uint8_t(number << 6);
        }
        return {high_bits(negative), high_bits(low), high_bits(high)};
    }

    // Inverse of split_steps but for steps of class 3, whose magnitude becomes 4.
    static void join_steps(const StepPlanes& planes, int8_t* steps) {
        uint8_t negative[64], low[64], high[64];
        to_bytes(planes.negative, negative);
        to_bytes(planes.low, low);
        to_bytes(planes.high, high);
        for (int i = 0; i < 64; ++i) {
            const auto sign = int8_t(-int8_t(negative[i]));
            steps[i] = int8_t(int8_t(int8_t(1 + low[i] + 2 * high[i]) ^ sign) - sign);
        }
    }

    // Moves the magnitudes of those of 64 steps that are in `mask` to `to`, which has room for 64.
    template <class S, class W>
    static void gather_magnitudes(const S* steps, uint64_t mask, W* to) {
        for (; mask; mask &= mask - 1) *to++ = magnitude_of<W>(steps[__builtin_ctzll(mask)]);
    }

    // Codes magnitudes above 3: the exponent of each less 3, in fields of 4 or 8 bits, and the bits
    // below its leading one. Returns how many bits those are.
    template <class W>
    static uint64_t pack_far(const W* magnitudes, size_t number, int field, uint8_t* exponents,
                             uint8_t* low) {
        BitWriter exponent_writer(exponents), low_writer(low);
        uint64_t low_bits = 0;
        for (size_t i = 0; i < number; ++i) {
            // At most 3 if the words changed after they were compared; the result is wrong then.
            const uint64_t excess = magnitudes[i] > 3 ? uint64_t(magnitudes[i]) - 3 : 1;
            const int exponent = bit_length(excess) - 1;
            exponent_writer.put(uint64_t(exponent), field);
            low_writer.put(excess & ((uint64_t(1) << exponent) - 1), exponent);
            low_bits += uint64_t(exponent);
        }
        exponent_writer.finish();
        low_writer.finish();
        return low_bits;
    }

    // Inverse of pack_far, of exponents that are a byte each and below the width of a word.
    template <class W>
    static void unpack_far(const uint8_t* exponents, const uint8_t* low, size_t number,
                           W* magnitudes) {
        uint64_t place = 0;
        for (size_t i = 0; i < number; ++i) {
            const uint64_t one = uint64_t(1) << exponents[i];
            // 57 bits are enough for words of 32.
            const uint64_t bits =
                sizeof(W) < 8 ? load64(low + place / 8) >> place % 8 : bits_at(low, place);
            magnitudes[i] = W((one | (bits & (one - 1))) + 3);
            place += exponents[i];
        }
    }

    // Puts steps to their places among 64, or 0 where a byte does not hold one; returns which those
    // are. 64 magnitudes may be read.
    template <class W>
    static uint64_t place_far(const W* magnitudes, uint64_t far, uint64_t negative, int8_t* steps) {
        uint64_t wide = 0;
        for (; far; far &= far - 1) {
            const int at = __builtin_ctzll(far);
            const W magnitude = *magnitudes++;
            const auto near = int8_t(magnitude > 127 ? 0 : magnitude);
            // Without a branch, which would be mispredicted for every other step.
            const auto sign = int8_t(0 - int(negative >> at & 1));
            steps[at] = int8_t((near ^ sign) - sign);
            wide |= uint64_t(magnitude > 127) << at;
        }
        return wide;
    }

    // Two bits for each of 64 values: 16 bytes.
    static void store_classes(uint8_t* to, uint64_t low, uint64_t high) {
        store64(to, spread(uint32_t(low)) | spread(uint32_t(high)) << 1);
        store64(to + 8, spread(uint32_t(low >> 32)) | spread(uint32_t(high >> 32)) << 1);
    }

    static void load_classes(const uint8_t* from, uint64_t& low, uint64_t& high) {
        const uint64_t first = load64(from), second = load64(from + 8);
        low = squeeze(first) | uint64_t(squeeze(second)) << 32;
        high = squeeze(first >> 1) | uint64_t(squeeze(second >> 1)) << 32;
    }

    // Takes the steps of changed words from those of their contexts, which begin at `places` of
    // `near` and go on there; both stand by name.
    static void take_steps(const uint8_t* names, size_t number, size_t /*named*/,
                           const int8_t* near, uint64_t* places, int8_t* steps) {
        for (size_t i = 0; i < number; ++i) steps[i] = near[places[names[i]]++];
    }

    // Inverse of take_steps: moves the steps of changed words to those of their contexts.
    template <class S>
    static void sort_steps(const uint8_t* names, size_t number, size_t /*named*/, const S* steps,
                           uint64_t* places, S* ordered) {
        for (size_t i = 0; i < number; ++i) ordered[places[names[i]]++] = steps[i];
    }

    // Applies the steps of `found` changed words of a tile.
    template <class W>
    static void move_words(const W* base, size_t words, const uint64_t* changed,
                           const int8_t* steps, size_t /*found*/, const WordMap<W>& chunk_map,
                           W* result) {
        const WordMap<W> map = chunk_map;  // words may alias the other, which would be read anew
        if (result != base) std::memcpy(result, base, words * sizeof(W));
        for (size_t start = 0; start < words; start += 64) {
            for (uint64_t bits = *changed++; bits; bits &= bits - 1) {
                W& word = result[start + size_t(__builtin_ctzll(bits))];
                word = map.moved(word, Signed<W>(*steps++));
            }
        }
    }

  private:
    static Halves halves(const uint16_t* from) {
        Halves loaded;
        std::memcpy(&loaded, from, sizeof loaded);
        return loaded;
    }

    // A bit for each of 64 halves, of which flags(i) gives eight, all ones or all zeros.
    template <class Flags>
    static uint64_t pack(Flags flags) {
        constexpr Halves kLow = {1, 2, 4, 8, 16, 32, 64, 128};
        uint64_t mask = 0;
        for (int i = 0; i < 64; i += 16) {
            const Halves bits = (flags(i) & kLow) | (flags(i + 8) & (kLow << 8));
            uint64_t parts[2];
            std::memcpy(parts, &bits, sizeof parts);
            // No two of the sixteen have a bit in common, so that they can be added.
            mask |= ((parts[0] | parts[1]) * 0x0001000100010001 >> 48) << i;
        }
        return mask;
    }

    // 32 bits, each moved to an even place.
    static uint64_t spread(uint32_t bits) {
        uint64_t x = bits;
        x = (x | x << 16) & 0x0000FFFF0000FFFF;
        x = (x | x << 8) & 0x00FF00FF00FF00FF;
        x = (x | x << 4) & 0x0F0F0F0F0F0F0F0F;
        x = (x | x << 2) & 0x3333333333333333;
        return (x | x << 1) & 0x5555555555555555;
    }

    // Inverse of spread; odd places are ignored.
    static uint32_t squeeze(uint64_t x) {
        x &= 0x5555555555555555;
        x = (x | x >> 1) & 0x3333333333333333;
        x = (x | x >> 2) & 0x0F0F0F0F0F0F0F0F;
        x = (x | x >> 4) & 0x00FF00FF00FF00FF;
        x = (x | x >> 8) & 0x0000FFFF0000FFFF;
        return uint32_t(x | x >> 16);
    }
};
