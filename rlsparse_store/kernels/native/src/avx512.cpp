// The kernels for x86 processors with AVX-512, its byte and word instructions included.
#include "kernels.hpp"
#include "leaves.hpp"

#if defined(RLSPARSE_X86)
#include <immintrin.h>

#include <cstring>
#include <type_traits>

#include "target.hpp"

RLSPARSE_TARGET_BEGIN(
    "avx2,bmi,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512vl,avx512dq,avx512cd,avx512vbmi,avx512vbmi2")

namespace rlsparse {
namespace avx512 {

// How many bits are set.
inline int popcount(uint64_t bits) { return int(_mm_popcnt_u64(bits)); }

#include "words.hpp"
#include "bits.hpp"
#include "generic.hpp"

#include "avx2.hpp"

struct Simd : Avx2 {
    static __m256i load256(const void* from) { return load(from); }
    static __m512i load512(const void* from) { return _mm512_loadu_si512(from); }

    template <class W>
    static uint64_t differ(const W* a, const W* b) {
        constexpr int kLanes = 64 / sizeof(W);
        uint64_t mask = 0;
        for (int i = 0; i < int(sizeof(W)); ++i) {
            const __m512i x = load512(a + i * kLanes), y = load512(b + i * kLanes);
            if constexpr (sizeof(W) == 1) mask = _mm512_cmpneq_epu8_mask(x, y);
            if constexpr (sizeof(W) == 2)
                mask |= uint64_t(_mm512_cmpneq_epu16_mask(x, y)) << 32 * i;
            if constexpr (sizeof(W) == 4)
                mask |= uint64_t(_mm512_cmpneq_epu32_mask(x, y)) << 16 * i;
            if constexpr (sizeof(W) == 8) mask |= uint64_t(_mm512_cmpneq_epu64_mask(x, y)) << 8 * i;
        }
        return mask;
    }

    static void find_contexts(const uint16_t* words, size_t number, uint16_t key_mask,
                              const KeyCodes& codes, uint8_t* names) {
        const __m512i keys = _mm512_set1_epi16(short(key_mask));
        const __m512i rest = _mm512_set1_epi16(short((1 << codes.shift) - 1));
        const __m512i first = _mm512_set1_epi16(short(codes.first));
        const __m512i shift = _mm512_set1_epi16(short(codes.shift));
        const __m512i low = load512(codes.names), high = load512(codes.names + 64);
        const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
        auto make = [&](const uint16_t* from) {
            const __m512i key = _mm512_and_si512(load512(from), keys);
            const __m512i second = _mm512_srlv_epi16(_mm512_add_epi16(key, rest), shift);
            return _mm512_subs_epu16(_mm512_add_epi16(_mm512_srlv_epi16(key, shift), second),
                                     first);
        };
        for (size_t i = 0; i < number; i += 64) {
            const __m512i packed = _mm512_packus_epi16(make(words + i), make(words + i + 32));
            const __m512i code =
                _mm512_min_epu8(_mm512_permutexvar_epi64(order, packed), _mm512_set1_epi8(127));
            _mm512_storeu_si512(names + i, _mm512_permutex2var_epi8(low, code, high));
        }
    }

    template <class C>
    static void count_names(const uint8_t* names, size_t groups, size_t number, C* counts) {
        constexpr int kTogether = 16;
        const __m512i one = _mm512_set1_epi8(1);
        for (size_t first = 0; first < number; first += kTogether) {
            __m512i sums[kTogether] = {};
            for (size_t g = 0; g < groups; ++g) {
                const __m512i own = load512(names + g * 64);
                for (int j = 0; j < kTogether; ++j) {
                    const __m512i wanted = _mm512_set1_epi8(char(first + size_t(j) + 1));
                    const uint64_t mask = _mm512_cmpeq_epi8_mask(own, wanted);
                    sums[j] = _mm512_mask_add_epi8(sums[j], mask, sums[j], one);
                }
            }
            for (size_t j = 0; j < kTogether && first + j < number; ++j) {
                const __m512i parts = _mm512_sad_epu8(sums[j], _mm512_setzero_si512());
                counts[first + j] += C(_mm512_reduce_add_epi64(parts));
            }
        }
    }

    static uint64_t equal(const uint8_t* names, uint8_t name) {
        return _mm512_cmpeq_epi8_mask(load512(names), _mm512_set1_epi8(char(name)));
    }

    static uint64_t above(const uint8_t* names, uint8_t name) {
        return _mm512_cmpgt_epu8_mask(load512(names), _mm512_set1_epi8(char(name)));
    }

    static void keep(uint8_t* names, uint64_t mask) {
        _mm512_storeu_si512(names, _mm512_maskz_mov_epi8(mask, load512(names)));
    }

    static uint64_t high_bits(const uint8_t* bytes) { return _mm512_movepi8_mask(load512(bytes)); }

    template <class S>
    static StepPlanes split_steps(const S* steps) {
        if constexpr (sizeof(S) == 2) {
            uint64_t planes[3] = {};
            for (int i = 0; i < 64; i += 32) {
                const __m512i step = load512(steps + i), one = _mm512_set1_epi16(1);
                const __m512i nearest = _mm512_min_epu16(
                    _mm512_sub_epi16(_mm512_abs_epi16(step), one), _mm512_set1_epi16(3));
                planes[0] |= uint64_t(_mm512_movepi16_mask(step)) << i;
                planes[1] |= uint64_t(_mm512_test_epi16_mask(nearest, one)) << i;
                planes[2] |= uint64_t(_mm512_test_epi16_mask(nearest, _mm512_set1_epi16(2))) << i;
            }
            return {planes[0], planes[1], planes[2]};
        } else {
            return Generic::split_steps(steps);
        }
    }

    static void join_steps(const StepPlanes& planes, int8_t* steps) {
        const __m512i one = _mm512_set1_epi8(1);
        const __m512i odd = _mm512_mask_add_epi8(one, planes.low, one, one);
        const __m512i size = _mm512_mask_add_epi8(odd, planes.high, odd, _mm512_set1_epi8(2));
        const __m512i none = _mm512_setzero_si512();
        _mm512_storeu_si512(steps, _mm512_mask_sub_epi8(size, planes.negative, none, size));
    }

    template <class S, class W>
    static void gather_magnitudes(const S* steps, uint64_t mask, W* to) {
        if constexpr (sizeof(S) == 2) {
            alignas(64) uint16_t magnitudes[64];
            _mm512_store_si512(magnitudes, _mm512_abs_epi16(load512(steps)));
            _mm512_store_si512(magnitudes + 32, _mm512_abs_epi16(load512(steps + 32)));
            gather(magnitudes, mask, to);
        } else {
            Generic::gather_magnitudes(steps, mask, to);
        }
    }

    template <class W>
    static uint64_t pack_far(const W* magnitudes, size_t number, int field, uint8_t* exponents,
                             uint8_t* low) {
        if constexpr (sizeof(W) != 2) {
            return Generic::pack_far(magnitudes, number, field, exponents, low);
        } else {
            // Sixteen at a time, of which the low bits are joined to four strings of at most 56.
            BitWriter writer(low);
            const __m512i one = _mm512_set1_epi32(1), three = _mm512_set1_epi32(3);
            for (size_t i = 0; i < number; i += 16) {
                const auto inside = __mmask16(number - i < 16 ? (1 << (number - i)) - 1 : 0xFFFF);
                const __m512i wide = _mm512_cvtepu16_epi32(load256(magnitudes + i));
                const __mmask16 far = _mm512_mask_cmpgt_epu32_mask(inside, wide, three);
                const __m512i excess = _mm512_mask_sub_epi32(one, far, wide, three);
                const __m512i exponent =
                    _mm512_sub_epi32(_mm512_set1_epi32(31), _mm512_lzcnt_epi32(excess));
                const __m512i bits = _mm512_xor_si512(excess, _mm512_sllv_epi32(one, exponent));
                // Two fields of four bits from the two halves of each 64 bits.
                const __m512i pairs = _mm512_or_si512(exponent, _mm512_srli_epi64(exponent, 28));
                const __m128i bytes = _mm512_cvtepi64_epi8(pairs);
                _mm_storel_epi64(reinterpret_cast<__m128i*>(exponents + i / 2), bytes);
                const __m512i half = _mm512_set1_epi64(0xFFFFFFFF);
                __m512i length = _mm512_and_si512(exponent, half);
                __m512i joined =
                    _mm512_or_si512(_mm512_and_si512(bits, half),
                                    _mm512_sllv_epi64(_mm512_srli_epi64(bits, 32), length));
                length = _mm512_add_epi64(length, _mm512_srli_epi64(exponent, 32));
                joined = _mm512_or_si512(
                    joined, _mm512_sllv_epi64(_mm512_permutex_epi64(joined, 0xF5), length));
                length = _mm512_add_epi64(length, _mm512_permutex_epi64(length, 0xF5));
                alignas(64) uint64_t strings[8], lengths[8];
                _mm512_store_si512(strings, joined);
                _mm512_store_si512(lengths, length);
                for (int j = 0; j < 8; j += 2) writer.put(strings[j], int(lengths[j]));
            }
            const uint64_t low_bits = writer.bits_since(low);
            writer.finish();
            return low_bits;
        }
    }

    template <class W>
    static void unpack_far(const uint8_t* exponents, const uint8_t* low, size_t number,
                           W* magnitudes) {
        if constexpr (sizeof(W) != 2) {
            Generic::unpack_far(exponents, low, number, magnitudes);
        } else {
            const __m512i one = _mm512_set1_epi32(1), three = _mm512_set1_epi32(3);
            uint64_t place = 0;  // of the first of sixteen; the others follow by a prefix sum
            for (size_t i = 0; i < number; i += 16) {
                const auto inside = __mmask16(number - i < 16 ? (1 << (number - i)) - 1 : 0xFFFF);
                const __m128i own = _mm_maskz_loadu_epi8(inside, exponents + i);
                const __m512i exponent = _mm512_cvtepu8_epi32(own);
                __m512i sum = exponent;
                const __m512i none = _mm512_setzero_si512();
                sum = _mm512_add_epi32(sum, _mm512_alignr_epi32(sum, none, 15));
                sum = _mm512_add_epi32(sum, _mm512_alignr_epi32(sum, none, 14));
                sum = _mm512_add_epi32(sum, _mm512_alignr_epi32(sum, none, 12));
                sum = _mm512_add_epi32(sum, _mm512_alignr_epi32(sum, none, 8));
                const __m512i start = _mm512_add_epi32(_mm512_sub_epi32(sum, exponent),
                                                       _mm512_set1_epi32(int(place & 7)));
                const __m512i found = _mm512_mask_i32gather_epi32(
                    none, inside, _mm512_srli_epi32(start, 3), low + place / 8, 1);
                const __m512i shifted =
                    _mm512_srlv_epi32(found, _mm512_and_si512(start, _mm512_set1_epi32(7)));
                const __m512i top = _mm512_sllv_epi32(one, exponent);
                const __m512i bits = _mm512_and_si512(shifted, _mm512_sub_epi32(top, one));
                const __m512i magnitude = _mm512_add_epi32(_mm512_or_si512(top, bits), three);
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(magnitudes + i),
                                    _mm512_cvtepi32_epi16(magnitude));
                const __m128i last = _mm512_extracti32x4_epi32(sum, 3);
                place += uint64_t(_mm_extract_epi32(last, 3));
            }
        }
    }

    template <class W>
    static uint64_t place_far(const W* magnitudes, uint64_t far, uint64_t negative, int8_t* steps) {
        if constexpr (sizeof(W) != 2) {
            return Generic::place_far(magnitudes, far, negative, steps);
        } else {
            const __m512i most = _mm512_set1_epi16(127), none = _mm512_setzero_si512();
            __m256i halves[2];
            for (int i = 0; i < 2; ++i) {
                const __m512i own = load512(magnitudes + 32 * i);
                const __mmask32 near = _mm512_cmple_epu16_mask(own, most);
                halves[i] = _mm512_maskz_cvtepi16_epi8(near, own);
            }
            const __m512i bytes =
                _mm512_inserti64x4(_mm512_castsi256_si512(halves[0]), halves[1], 1);
            const __m512i placed = _mm512_mask_expand_epi8(load512(steps), far, bytes);
            const __m512i moved = _mm512_mask_sub_epi8(placed, far & negative, none, placed);
            _mm512_storeu_si512(steps, moved);
            return _mm512_mask_testn_epi8_mask(far, placed, placed);
        }
    }

    static void take_steps(const uint8_t* names, size_t number, size_t named, const int8_t* near,
                           uint64_t* places, int8_t* steps) {
        for (size_t i = 0; i < number; i += 64) {
            const __m512i own = load512(names + i);
            __m512i found = _mm512_setzero_si512();
            for (size_t name = 1; name <= named; ++name) {
                const uint64_t mask = _mm512_cmpeq_epi8_mask(own, _mm512_set1_epi8(char(name)));
                found = _mm512_mask_expand_epi8(found, mask, load512(near + places[name]));
                places[name] += uint64_t(_mm_popcnt_u64(mask));
            }
            _mm512_storeu_si512(steps + i, found);
        }
    }

    template <class S>
    static void sort_steps(const uint8_t* names, size_t number, size_t named, const S* steps,
                           uint64_t* places, S* ordered) {
        if constexpr (sizeof(S) != 2) {
            Generic::sort_steps(names, number, named, steps, places, ordered);
        } else {
            for (size_t i = 0; i < number; i += 64) {
                const __m512i own = load512(names + i);
                const __m512i first = load512(steps + i), second = load512(steps + i + 32);
                for (size_t name = 1; name <= named; ++name) {
                    const uint64_t mask = _mm512_cmpeq_epi8_mask(own, _mm512_set1_epi8(char(name)));
                    append(first, __mmask32(mask), ordered, places[name]);
                    append(second, __mmask32(mask >> 32), ordered, places[name]);
                }
            }
        }
    }

    // Only as much is written as is appended: the next context's steps are there already.
    static void append(__m512i steps, __mmask32 mask, int16_t* to, uint64_t& place) {
        const auto number = unsigned(_mm_popcnt_u32(mask));
        const auto wanted = __mmask32(_bzhi_u64(0xFFFFFFFF, number));
        _mm512_mask_storeu_epi16(to + place, wanted, _mm512_maskz_compress_epi16(mask, steps));
        place += number;
    }

    template <class W>
    static void move_words(const W* base, size_t words, const uint64_t* changed,
                           const int8_t* steps, size_t found, const WordMap<W>& map, W* result) {
        // Where few words changed, only their cache lines are worth touching.
        if (sizeof(W) != 2 || found * kFewInTile < words) {
            Generic::move_words(base, words, changed, steps, found, map, result);
        } else if constexpr (sizeof(W) == 2) {
            move_all(base, words, changed, steps, map, result);
        }
    }

    static constexpr size_t kFewInTile = 128;  // one changed word in so many

    // As move_words, 64 words at a time, whether they changed or not.
    static void move_all(const uint16_t* base, size_t words, const uint64_t* changed,
                         const int8_t* steps, const WordMap<uint16_t>& map, uint16_t* result) {
        const __m512i flip = _mm512_set1_epi16(short(map.order_flip));
        auto place = [&](__m512i word) {
            return _mm512_xor_si512(word, _mm512_and_si512(_mm512_srai_epi16(word, 15), flip));
        };
        auto move = [&](const uint16_t* from, uint64_t mask, uint16_t* to) {
            const __m512i step = _mm512_maskz_expand_epi8(mask, load512(steps));
            const __m256i halves[] = {_mm512_castsi512_si256(step),
                                      _mm512_extracti64x4_epi64(step, 1)};
            const __m512i first = load512(from), second = load512(from + 32);
            _mm512_storeu_si512(
                to, place(_mm512_add_epi16(place(first), _mm512_cvtepi8_epi16(halves[0]))));
            _mm512_storeu_si512(
                to + 32, place(_mm512_add_epi16(place(second), _mm512_cvtepi8_epi16(halves[1]))));
            steps += _mm_popcnt_u64(mask);
        };
        const size_t whole = words / 64 * 64;
        for (size_t i = 0; i < whole; i += 64) move(base + i, changed[i / 64], result + i);
        if (words == whole) return;
        uint16_t room[64] = {};
        std::memcpy(room, base + whole, (words - whole) * 2);
        move(room, changed[whole / 64], room);
        std::memcpy(result + whole, room, (words - whole) * 2);
    }

    template <class S>
    static void gather(const S* values, uint64_t mask, S* to) {
        if constexpr (sizeof(S) == 2) {
            const auto low = __mmask32(mask), high = __mmask32(mask >> 32);
            _mm512_storeu_si512(to, _mm512_maskz_compress_epi16(low, load512(values)));
            _mm512_storeu_si512(to + __builtin_popcount(low),
                                _mm512_maskz_compress_epi16(high, load512(values + 32)));
        } else if constexpr (sizeof(S) == 1) {
            _mm512_storeu_si512(to, _mm512_maskz_compress_epi8(mask, load512(values)));
        } else {
            Generic::gather(values, mask, to);
        }
    }

    template <class S>
    static void scatter(const S* from, uint64_t mask, S* values) {
        if constexpr (sizeof(S) == 2) {
            const auto low = __mmask32(mask), high = __mmask32(mask >> 32);
            const __m512i first = _mm512_mask_expand_epi16(load512(values), low, load512(from));
            const __m512i second = _mm512_mask_expand_epi16(
                load512(values + 32), high, load512(from + __builtin_popcount(low)));
            _mm512_storeu_si512(values, first);
            _mm512_storeu_si512(values + 32, second);
        } else if constexpr (sizeof(S) == 1) {
            _mm512_storeu_si512(values,
                                _mm512_mask_expand_epi8(load512(values), mask, load512(from)));
        } else {
            Generic::scatter(from, mask, values);
        }
    }

    template <class S>
    static void swap(S* values, uint64_t mask, const S* from, S* to) {
        if constexpr (sizeof(S) <= 2) {
            gather(values, mask, to);
            scatter(from, mask, values);
        } else {
            Generic::swap(values, mask, from, to);
        }
    }
};

#include "chunk.hpp"

}  // namespace avx512

extern const Kernels kAvx512 = {"avx512",          avx512::compare,   avx512::count_ones,
                                avx512::histogram, avx512::partition, avx512::apply,
                                avx512::record,    avx512::exchange};

}  // namespace rlsparse
RLSPARSE_TARGET_END
#endif
