// Groups of 64 words with AVX2 and BMI2. Included inside the namespace of one instruction set.

struct Avx2 : Generic {
    static __m256i load(const void* from) {
        return _mm256_loadu_si256(static_cast<const __m256i*>(from));
    }

    // One bit per byte of 64, two vectors of all ones or all zeros.
    static uint64_t to_mask(__m256i first, __m256i second) {
        return uint32_t(_mm256_movemask_epi8(first)) |
               uint64_t(uint32_t(_mm256_movemask_epi8(second))) << 32;
    }

    // Which of 32 words of 16 bits are equal, as bytes in order.
    static __m256i equal_words(const uint16_t* a, const uint16_t* b) {
        const __m256i first = _mm256_cmpeq_epi16(load(a), load(b));
        const __m256i second = _mm256_cmpeq_epi16(load(a + 16), load(b + 16));
        return _mm256_permute4x64_epi64(_mm256_packs_epi16(first, second), 0xD8);
    }

    template <class W>
    static uint64_t differ(const W* a, const W* b) {
        if constexpr (sizeof(W) == 1) {
            return ~to_mask(_mm256_cmpeq_epi8(load(a), load(b)),
                            _mm256_cmpeq_epi8(load(a + 32), load(b + 32)));
        } else if constexpr (sizeof(W) == 2) {
            return ~to_mask(equal_words(a, b), equal_words(a + 32, b + 32));
        } else {
            return Generic::differ(a, b);
        }
    }

    static uint64_t at_most(const uint8_t* codes, uint8_t bound) {
        const __m256i limit = _mm256_set1_epi8(char(bound));
        return ~to_mask(_mm256_cmpgt_epi8(load(codes), limit),
                        _mm256_cmpgt_epi8(load(codes + 32), limit));
    }

    static void find_inside(const uint8_t* codes, size_t groups, const uint8_t* bounds,
                            size_t number, uint64_t (*inside)[64]) {
        for (size_t g = 0; g < groups; ++g) {
            for (size_t c = 0; c < number; ++c) inside[c][g] = at_most(codes + g * 64, bounds[c]);
        }
    }

    static uint64_t bit_plane(const uint8_t* bytes, int bit) {
        const __m128i shift = _mm_cvtsi32_si128(7 - bit);
        return to_mask(_mm256_sll_epi16(load(bytes), shift),
                       _mm256_sll_epi16(load(bytes + 32), shift));
    }

    static uint64_t extract(uint64_t bits, uint64_t mask) { return _pext_u64(bits, mask); }
    static uint64_t deposit(uint64_t packed, uint64_t mask) { return _pdep_u64(packed, mask); }

    // Bytes move eight at a time: each bit of the mask stands for one.
    template <class S>
    static void gather(const S* values, uint64_t mask, S* to) {
        if constexpr (sizeof(S) == 1) {
            auto* place = reinterpret_cast<uint8_t*>(to);
            const auto* from = reinterpret_cast<const uint8_t*>(values);
            for (int i = 0; i < 64; i += 8) {
                const uint64_t mine = mask >> i & 0xFF;
                const uint64_t bytes = _pdep_u64(mine, kEachByte) * 0xFF;
                store64(place, _pext_u64(load64(from + i), bytes));
                place += _mm_popcnt_u64(mine);
            }
        } else {
            Generic::gather(values, mask, to);
        }
    }
};
