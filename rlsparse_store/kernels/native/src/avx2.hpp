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

    // Which of 32 words are equal, as bytes in order.
    static __m256i equal_words(const uint16_t* a, const uint16_t* b) {
        const __m256i first = _mm256_cmpeq_epi16(load(a), load(b));
        const __m256i second = _mm256_cmpeq_epi16(load(a + 16), load(b + 16));
        return _mm256_permute4x64_epi64(_mm256_packs_epi16(first, second), 0xD8);
    }

    static __m256i equal_words(const uint32_t* a, const uint32_t* b) {
        __m256i equal[4];
        for (int i = 0; i < 4; ++i) {
            equal[i] = _mm256_cmpeq_epi32(load(a + 8 * i), load(b + 8 * i));
        }
        const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(equal[0], equal[1]),
                                                 _mm256_packs_epi32(equal[2], equal[3]));
        return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    }

    template <class W>
    static uint64_t differ(const W* a, const W* b) {
        if constexpr (sizeof(W) == 1) {
            return ~to_mask(_mm256_cmpeq_epi8(load(a), load(b)),
                            _mm256_cmpeq_epi8(load(a + 32), load(b + 32)));
        } else if constexpr (sizeof(W) <= 4) {
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

    // Values move eight at a time: each bit of the mask stands for a byte, which holds a place.
    static uint64_t each_byte(uint64_t mask) { return _pdep_u64(mask & 0xFF, kEachByte) * 0xFF; }

    // For a shuffle of eight words of 16 bits, from the place of each.
    static __m128i order(uint64_t places) {
        const __m128i wide = _mm_cvtepu8_epi16(_mm_cvtsi64_si128(int64_t(places)));
        return _mm_add_epi16(_mm_mullo_epi16(wide, _mm_set1_epi16(0x0202)), _mm_set1_epi16(0x0100));
    }

    static __m128i load128(const void* from) {
        return _mm_loadu_si128(static_cast<const __m128i*>(from));
    }

    static void store128(void* to, __m128i value) {
        _mm_storeu_si128(static_cast<__m128i*>(to), value);
    }

    // Whether values are moved faster eight at a time than one by one.
    template <class S>
    static bool are_many(uint64_t mask) {
        return sizeof(S) == 2 && _mm_popcnt_u64(mask) >= kMany;
    }

    template <class S>
    static void gather(const S* values, uint64_t mask, S* to) {
        if constexpr (sizeof(S) == 1) {
            auto* place = reinterpret_cast<uint8_t*>(to);
            const auto* from = reinterpret_cast<const uint8_t*>(values);
            for (int i = 0; i < 64; i += 8) {
                store64(place, _pext_u64(load64(from + i), each_byte(mask >> i)));
                place += _mm_popcnt_u64(mask >> i & 0xFF);
            }
        } else if (are_many<S>(mask)) {
            for (int i = 0; i < 64; i += 8) {
                const uint64_t places = _pext_u64(kPlaces, each_byte(mask >> i));
                store128(to, _mm_shuffle_epi8(load128(values + i), order(places)));
                to += _mm_popcnt_u64(mask >> i & 0xFF);
            }
        } else {
            Generic::gather(values, mask, to);
        }
    }

    template <class S>
    static void scatter(const S* from, uint64_t mask, S* values) {
        if (!are_many<S>(mask)) {
            Generic::scatter(from, mask, values);
            return;
        }
        for (int i = 0; i < 64; i += 8) {
            const uint64_t bytes = each_byte(mask >> i);
            const __m128i moved = _mm_shuffle_epi8(load128(from), order(_pdep_u64(kPlaces, bytes)));
            const __m128i wanted = _mm_cvtepi8_epi16(_mm_cvtsi64_si128(int64_t(bytes)));
            store128(values + i, _mm_blendv_epi8(load128(values + i), moved, wanted));
            from += _mm_popcnt_u64(mask >> i & 0xFF);
        }
    }

    template <class S>
    static void swap(S* values, uint64_t mask, const S* from, S* to) {
        if (are_many<S>(mask)) {
            gather(values, mask, to);
            scatter(from, mask, values);
        } else {
            Generic::swap(values, mask, from, to);
        }
    }

  private:
    static constexpr uint64_t kPlaces = 0x0706050403020100;
    static constexpr int kMany = 10;  // of 64, as measured on one processor
};
