// What works on groups of 64 words, for any processor. An instruction set overrides what it does
// better. Included inside the namespace of one instruction set.

constexpr uint64_t kEachByte = 0x0101010101010101;

struct Generic {
    // Which of 64 words differ.
    template <class W>
    static uint64_t differ(const W* a, const W* b) {
        uint8_t flags[64];  // bytes first: compilers make vectors of that, but not of bits
        for (int i = 0; i < 64; ++i) flags[i] = a[i] != b[i];
        return bit_plane(flags, 0);
    }

    // Which of 64 codes are at most `bound`; both are below 128.
    static uint64_t at_most(const uint8_t* codes, uint8_t bound) {
        uint64_t mask = 0;
        for (int i = 0; i < 8; ++i) {
            // The high bit of each byte survives the subtraction where the code is not above.
            const uint64_t kept = (kEachByte * (bound | 0x80)) - load64(codes + 8 * i);
            mask |= ((kept >> 7 & kEachByte) * 0x0102040810204080) >> 56 << 8 * i;
        }
        return mask;
    }

    // For each of `number` bounds and each group, which of its codes are at most the bound.
    static void find_inside(const uint8_t* codes, size_t groups, const uint8_t* bounds,
                            size_t number, uint64_t (*inside)[64]) {
        for (size_t g = 0; g < groups; ++g) {
            for (size_t c = 0; c < number; ++c) inside[c][g] = at_most(codes + g * 64, bounds[c]);
        }
    }

    // For each group, the words inside an upper bound but not inside a lower one. Returns which
    // groups have any. The arrays have room for 64 groups.
    static uint64_t members(const uint64_t* lower, const uint64_t* upper, size_t groups,
                            uint64_t* member) {
        uint64_t some = 0;
        for (size_t g = 0; g < groups; ++g) {
            member[g] = upper[g] ^ lower[g];
            some |= uint64_t(member[g] != 0) << g;
        }
        return some;
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

    // One bit of each of 64 bytes.
    static uint64_t bit_plane(const uint8_t* bytes, int bit) {
        uint64_t mask = 0;
        for (int i = 0; i < 8; ++i) {
            const uint64_t bits = load64(bytes + 8 * i) >> bit & kEachByte;
            mask |= (bits * 0x0102040810204080) >> 56 << 8 * i;
        }
        return mask;
    }

    // 64 bytes of 0 or 1.
    static void to_bytes(uint64_t mask, uint8_t* bytes) {
        for (int i = 0; i < 8; ++i) {
            const uint64_t spread = (kEachByte * (mask >> 8 * i & 0xFF)) & 0x8040201008040201;
            store64(bytes + 8 * i, (spread + 0x7F * kEachByte) >> 7 & kEachByte);
        }
    }
};
