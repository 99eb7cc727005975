// Groups of 64 words with AVX2 and BMI2. Included inside the namespace of one instruction set.

struct Avx2 : Generic {
    static __m256i load(const void* from) {
        return _mm256_loadu_si256(static_cast<const __m256i*>(from));
    }

    static void store(void* to, __m256i value) {
        _mm256_storeu_si256(static_cast<__m256i*>(to), value);
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

    static constexpr bool kByLists = false;
    static constexpr size_t kTileWords = 1024;
    static constexpr bool kMakesCodes = true;

    // 32 codes, as bytes in order; those above 127 are 127.
    static __m256i make_codes(const uint16_t* words, __m256i key_mask, __m256i rest, __m256i first,
                              __m128i shift) {
        __m256i codes[2];
        for (int i = 0; i < 2; ++i) {
            const __m256i key = _mm256_and_si256(load(words + 16 * i), key_mask);
            const __m256i second = _mm256_srl_epi16(_mm256_add_epi16(key, rest), shift);
            codes[i] = _mm256_add_epi16(_mm256_srl_epi16(key, shift), second);
            codes[i] = _mm256_subs_epu16(codes[i], first);
        }
        const __m256i bytes = _mm256_packus_epi16(codes[0], codes[1]);
        return _mm256_min_epu8(_mm256_permute4x64_epi64(bytes, 0xD8), _mm256_set1_epi8(127));
    }

    static void find_contexts(const uint16_t* words, size_t number, uint16_t key_mask,
                              const KeyCodes& codes, uint8_t* names) {
        const __m256i keys = _mm256_set1_epi16(short(key_mask));
        const __m256i rest = _mm256_set1_epi16(short((1 << codes.shift) - 1));
        const __m256i first = _mm256_set1_epi16(short(codes.first));
        const __m128i shift = _mm_cvtsi32_si128(codes.shift);
        __m256i tables[8];
        int used = 0;
        for (int i = 0; i < 8; ++i) {
            const __m128i table = load128(codes.names + 16 * i);
            tables[i] = _mm256_broadcastsi128_si256(table);
            if (!_mm_testz_si128(table, table)) used = i + 1;
        }
        for (size_t i = 0; i < number; i += 32) {
            __m256i code = make_codes(words + i, keys, rest, first, shift);
            __m256i name = _mm256_setzero_si256();
            for (int t = 0; t < used; ++t) {
                // Looks up codes 0 to 15, and gives 0 for others: the sum has its highest bit set.
                const __m256i place = _mm256_adds_epu8(code, _mm256_set1_epi8(0x70));
                name = _mm256_or_si256(name, _mm256_shuffle_epi8(tables[t], place));
                code = _mm256_sub_epi8(code, _mm256_set1_epi8(16));
            }
            store(names + i, name);
        }
    }

    template <class C>
    static void count_names(const uint8_t* names, size_t groups, size_t number, C* counts) {
        constexpr int kTogether = 8;
        for (size_t first = 0; first < number; first += kTogether) {
            __m256i sums[kTogether] = {};
            for (size_t i = 0; i < groups * 64; i += 32) {
                const __m256i own = load(names + i);
                for (int j = 0; j < kTogether; ++j) {
                    const __m256i wanted = _mm256_set1_epi8(char(first + size_t(j) + 1));
                    sums[j] = _mm256_sub_epi8(sums[j], _mm256_cmpeq_epi8(own, wanted));
                }
            }
            for (size_t j = 0; j < kTogether && first + j < number; ++j) {
                alignas(32) uint64_t parts[4];
                store(parts, _mm256_sad_epu8(sums[j], _mm256_setzero_si256()));
                counts[first + j] += C(parts[0] + parts[1] + parts[2] + parts[3]);
            }
        }
    }

    static uint64_t equal(const uint8_t* names, uint8_t name) {
        const __m256i wanted = _mm256_set1_epi8(char(name));
        return to_mask(_mm256_cmpeq_epi8(load(names), wanted),
                       _mm256_cmpeq_epi8(load(names + 32), wanted));
    }

    static uint64_t above(const uint8_t* names, uint8_t name) {
        const __m256i limit = _mm256_set1_epi8(char(name));
        return to_mask(_mm256_cmpgt_epi8(load(names), limit),
                       _mm256_cmpgt_epi8(load(names + 32), limit));
    }

    static uint64_t high_bits(const uint8_t* bytes) {
        return to_mask(load(bytes), load(bytes + 32));
    }

    static void store_classes(uint8_t* to, uint64_t low, uint64_t high) {
        store64(to, _pdep_u64(low, kEven) | _pdep_u64(high, ~kEven));
        store64(to + 8, _pdep_u64(low >> 32, kEven) | _pdep_u64(high >> 32, ~kEven));
    }

    static void load_classes(const uint8_t* from, uint64_t& low, uint64_t& high) {
        const uint64_t first = load64(from), second = load64(from + 8);
        low = _pext_u64(first, kEven) | _pext_u64(second, kEven) << 32;
        high = _pext_u64(first, ~kEven) | _pext_u64(second, ~kEven) << 32;
    }

    template <class W>
    static void move_words(const W* base, size_t words, const uint64_t* changed,
                           const int8_t* steps, size_t found, const WordMap<W>& map, W* result) {
        if constexpr (sizeof(W) == 2) {
            if (found * kManyInTile >= words) {
                move_all(base, words, changed, steps, map, result);
                return;
            }
        }
        Generic::move_words(base, words, changed, steps, found, map, result);
    }

    // As move_words, 16 words at a time, whether they changed or not.
    static void move_all(const uint16_t* base, size_t words, const uint64_t* changed,
                         const int8_t* steps, const WordMap<uint16_t>& map, uint16_t* result) {
        const __m256i flip = _mm256_set1_epi16(short(map.order_flip));
        auto place = [&](__m256i word) {
            return _mm256_xor_si256(word, _mm256_and_si256(_mm256_srai_epi16(word, 15), flip));
        };
        auto take = [&](uint64_t mask) {
            const auto* from = reinterpret_cast<const uint8_t*>(steps);
            steps += _mm_popcnt_u64(mask & 0xFF);
            return int64_t(_pdep_u64(load64(from), each_byte(mask)));
        };
        auto move = [&](const uint16_t* from, uint64_t mask, uint16_t* to) {
            const __m128i low = _mm_cvtsi64_si128(take(mask));
            const __m128i both = _mm_insert_epi64(low, take(mask >> 8), 1);
            const __m256i step = _mm256_cvtepi8_epi16(both);
            store(to, place(_mm256_add_epi16(place(load(from)), step)));
        };
        const size_t whole = words / 16 * 16;
        for (size_t i = 0; i < whole; i += 16) {
            move(base + i, changed[i / 64] >> i % 64, result + i);
        }
        if (words == whole) return;
        uint16_t room[16] = {};
        std::memcpy(room, base + whole, (words - whole) * 2);
        move(room, changed[whole / 64] >> whole % 64, room);
        std::memcpy(result + whole, room, (words - whole) * 2);
    }

    // The two halves of the names take turns: neighbours often share a context, and would wait for
    // each other.
    static void take_steps(const uint8_t* names, size_t number, size_t named, const int8_t* near,
                           uint64_t* places, int8_t* steps) {
        constexpr size_t kMost = 2048;  // at a time
        for (; number > kMost; number -= kMost, names += kMost, steps += kMost) {
            take_some(names, kMost, named, near, places, steps);
        }
        take_some(names, number, named, near, places, steps);
    }

    static void take_some(const uint8_t* names, size_t number, size_t named, const int8_t* near,
                          uint64_t* places, int8_t* steps) {
        const size_t half = number / 128 * 64;
        uint64_t later[kMaxContexts + 1];
        std::memcpy(later, places, sizeof later);
        count_names(names, half / 64, named, later + 1);
        for (size_t i = 0; i < half; ++i) {
            steps[i] = near[places[names[i]]++];
            steps[half + i] = near[later[names[half + i]]++];
        }
        std::memcpy(places, later, sizeof later);
        Generic::take_steps(names + 2 * half, number - 2 * half, named, near, places,
                            steps + 2 * half);
    }

    // 64 bytes, all ones where the bit is set.
    static __m256i to_flags(uint64_t mask, int half) {
        const __m256i own = _mm256_set1_epi32(int(mask >> 32 * half));
        const __m256i bytes = _mm256_shuffle_epi8(
            own, _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303));
        const __m256i bits = _mm256_set1_epi64x(int64_t(0x8040201008040201));
        return _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bits), bits);
    }

    static void join_steps(const StepPlanes& planes, int8_t* steps) {
        for (int half = 0; half < 2; ++half) {
            const __m256i sign = to_flags(planes.negative, half);
            const __m256i high = _mm256_and_si256(to_flags(planes.high, half), _mm256_set1_epi8(2));
            const __m256i size = _mm256_sub_epi8(_mm256_sub_epi8(high, to_flags(planes.low, half)),
                                                 _mm256_set1_epi8(-1));
            store(steps + 32 * half, _mm256_sub_epi8(_mm256_xor_si256(size, sign), sign));
        }
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
    static constexpr uint64_t kEven = 0x5555555555555555;
    static constexpr uint64_t kPlaces = 0x0706050403020100;
    static constexpr size_t kManyInTile = 64;  // one changed word in so many

    static constexpr int kMany = 10;  // of 64, as measured on one processor
};
