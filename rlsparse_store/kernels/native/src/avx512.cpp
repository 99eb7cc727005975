// The kernels for x86 processors with AVX-512, its byte and word instructions included.
#include "kernels.hpp"

#if defined(RLSPARSE_X86)
#include <immintrin.h>

#include <cstring>

#include "target.hpp"

RLSPARSE_TARGET_BEGIN(
    "avx2,bmi,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vbmi2")

namespace rlsparse {
namespace avx512 {

#include "words.hpp"
#include "bits.hpp"
#include "generic.hpp"

#include "avx2.hpp"

struct Simd : Avx2 {
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

    static uint64_t at_most(const uint8_t* codes, uint8_t bound) {
        return _mm512_cmple_epu8_mask(load512(codes), _mm512_set1_epi8(char(bound)));
    }

    static void find_inside(const uint8_t* codes, size_t groups, const uint8_t* bounds,
                            size_t number, uint64_t (*inside)[64]) {
        for (size_t g = 0; g < groups; ++g) {
            const __m512i group = load512(codes + g * 64);
            for (size_t c = 0; c < number; ++c) {
                inside[c][g] = _mm512_cmple_epu8_mask(group, _mm512_set1_epi8(char(bounds[c])));
            }
        }
    }

    static uint64_t members(const uint64_t* lower, const uint64_t* upper, size_t groups,
                            uint64_t* member) {
        uint64_t some = 0;
        for (size_t g = 0; g < groups; g += 8) {
            const __m512i added = _mm512_xor_si512(load512(upper + g), load512(lower + g));
            _mm512_storeu_si512(member + g, added);
            some |= uint64_t(_mm512_test_epi64_mask(added, added)) << g;
        }
        return some & (~uint64_t(0) >> (64 - groups));
    }

    static void to_bytes(uint64_t mask, uint8_t* bytes) {
        _mm512_storeu_si512(bytes, _mm512_maskz_set1_epi8(mask, 1));
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

extern const Kernels kAvx512 = {"avx512",          avx512::changes, avx512::histogram,
                                avx512::partition, avx512::apply,   avx512::record,
                                avx512::exchange};

}  // namespace rlsparse
RLSPARSE_TARGET_END
#endif
