// XXH3 for every instruction set. The x86 paths take all eight accumulators at once.
#include "leaves.hpp"

#include <cstring>

#include "kernels.hpp"
#include "target.hpp"

#if defined(RLSPARSE_X86)
#include <immintrin.h>
#endif

namespace rlsparse {

namespace {

constexpr size_t kShortBytes = 240, kSecretBytes = 192;

constexpr uint64_t kPrime32[] = {0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D};
constexpr uint64_t kPrime64[] = {0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9,
                                 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5};

constexpr uint64_t kStart[8] = {kPrime32[2], kPrime64[0], kPrime64[1], kPrime64[2],
                                kPrime64[3], kPrime32[1], kPrime64[4], kPrime32[0]};

alignas(64) constexpr uint8_t kSecret[kSecretBytes] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

// The format needs a little-endian machine (rlsparse_store/format/words.py).
inline uint64_t load64(const uint8_t* from) {
    uint64_t value;
    std::memcpy(&value, from, 8);
    return value;
}

inline uint64_t load32(const uint8_t* from) {
    uint32_t value;
    std::memcpy(&value, from, 4);
    return value;
}

// The halves of a 128-bit product, one XOR the other.
inline uint64_t fold(uint64_t a, uint64_t b) {
#if defined(__SIZEOF_INT128__)
    const auto product = static_cast<unsigned __int128>(a) * b;
    return uint64_t(product) ^ uint64_t(product >> 64);
#else
    const uint64_t a0 = uint32_t(a), a1 = a >> 32, b0 = uint32_t(b), b1 = b >> 32;
    const uint64_t low = a0 * b0, cross = a1 * b0 + (low >> 32), middle = a0 * b1 + uint32_t(cross);
    return (middle << 32 | uint32_t(low)) ^ (a1 * b1 + (cross >> 32) + (middle >> 32));
#endif
}

inline uint64_t avalanche(uint64_t hash) {
    hash = (hash ^ hash >> 37) * 0x165667919E3779F9;
    return hash ^ hash >> 32;
}

inline uint64_t avalanche_xxh64(uint64_t hash) {
    hash = (hash ^ hash >> 33) * kPrime64[1];
    hash = (hash ^ hash >> 29) * kPrime64[2];
    return hash ^ hash >> 32;
}

inline uint64_t rotate(uint64_t value, int bits) { return value << bits | value >> (64 - bits); }

inline uint64_t mix16(const uint8_t* data, const uint8_t* secret) {
    return fold(load64(data) ^ load64(secret), load64(data + 8) ^ load64(secret + 8));
}

uint64_t xxh3_at_most_16(const uint8_t* data, size_t size) {
    if (size > 8) {
        const uint64_t low = load64(data) ^ load64(kSecret + 24) ^ load64(kSecret + 32);
        const uint64_t high = load64(data + size - 8) ^ load64(kSecret + 40) ^ load64(kSecret + 48);
        return avalanche(size + __builtin_bswap64(low) + high + fold(low, high));
    }
    if (size >= 4) {
        uint64_t hash = load32(data + size - 4) + (load32(data) << 32);
        hash ^= load64(kSecret + 8) ^ load64(kSecret + 16);
        hash ^= rotate(hash, 49) ^ rotate(hash, 24);
        hash *= 0x9FB21C651E98DF25;
        hash = (hash ^ ((hash >> 35) + size)) * 0x9FB21C651E98DF25;
        return hash ^ hash >> 28;
    }
    if (size) {
        const uint64_t combined = uint64_t(data[0]) << 16 | uint64_t(data[size / 2]) << 24 |
                                  data[size - 1] | uint64_t(size) << 8;
        return avalanche_xxh64(combined ^ load32(kSecret) ^ load32(kSecret + 4));
    }
    return avalanche_xxh64(load64(kSecret + 56) ^ load64(kSecret + 64));
}

uint64_t xxh3_short(const uint8_t* data, size_t size) {
    if (size <= 16) return xxh3_at_most_16(data, size);
    uint64_t hash = size * kPrime64[0];
    if (size <= 128) {
        // From both ends inwards; the pairs may overlap in the middle.
        for (size_t i = (size - 1) / 32 + 1; i-- > 0;) {
            hash += mix16(data + 16 * i, kSecret + 32 * i);
            hash += mix16(data + size - 16 * (i + 1), kSecret + 32 * i + 16);
        }
        return avalanche(hash);
    }
    for (size_t i = 0; i < 8; ++i) hash += mix16(data + 16 * i, kSecret + 16 * i);
    hash = avalanche(hash);
    for (size_t i = 8; i < size / 16; ++i) hash += mix16(data + 16 * i, kSecret + (16 * i - 125));
    return avalanche(hash + mix16(data + size - 16, kSecret + 136 - 17));
}

}  // namespace

namespace portable {

namespace {

class Lanes {
  public:
    explicit Lanes(const uint64_t* start) { std::memcpy(lanes_, start, sizeof lanes_); }

    void add(const uint8_t* data, const uint8_t* secret) {
        for (int i = 0; i < 8; ++i) {
            const uint64_t value = load64(data + 8 * i), keyed = value ^ load64(secret + 8 * i);
            lanes_[i ^ 1] += value;
            lanes_[i] += uint64_t(uint32_t(keyed)) * (keyed >> 32);
        }
    }

    void scramble(const uint8_t* secret) {
        for (int i = 0; i < 8; ++i) {
            lanes_[i] = (lanes_[i] ^ lanes_[i] >> 47 ^ load64(secret + 8 * i)) * kPrime32[0];
        }
    }

    void store(uint64_t* to) const { std::memcpy(to, lanes_, sizeof lanes_); }

  private:
    uint64_t lanes_[8];
};

#include "xxh3.hpp"

}  // namespace

}  // namespace portable

#if defined(RLSPARSE_X86)

RLSPARSE_TARGET_BEGIN("avx2")

namespace avx2 {

namespace {

class Lanes {
  public:
    explicit Lanes(const uint64_t* start) : low_(load(start)), high_(load(start + 4)) {}

    void add(const uint8_t* data, const uint8_t* secret) {
        low_ = added(low_, load(data), load(secret));
        high_ = added(high_, load(data + 32), load(secret + 32));
    }

    void scramble(const uint8_t* secret) {
        low_ = scrambled(low_, load(secret));
        high_ = scrambled(high_, load(secret + 32));
    }

    void store(uint64_t* to) const {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), low_);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 4), high_);
    }

  private:
    static __m256i load(const void* from) {
        return _mm256_loadu_si256(static_cast<const __m256i*>(from));
    }

    static __m256i added(__m256i lanes, __m256i data, __m256i secret) {
        const __m256i keyed = _mm256_xor_si256(data, secret);
        const __m256i product = _mm256_mul_epu32(keyed, _mm256_srli_epi64(keyed, 32));
        lanes = _mm256_add_epi64(lanes, _mm256_shuffle_epi32(data, 0x4E));
        return _mm256_add_epi64(lanes, product);
    }

    static __m256i scrambled(__m256i lanes, __m256i secret) {
        lanes = _mm256_xor_si256(_mm256_xor_si256(lanes, _mm256_srli_epi64(lanes, 47)), secret);
        const __m256i prime = _mm256_set1_epi64x(int64_t(kPrime32[0]));
        const __m256i high = _mm256_mul_epu32(_mm256_srli_epi64(lanes, 32), prime);
        return _mm256_add_epi64(_mm256_mul_epu32(lanes, prime), _mm256_slli_epi64(high, 32));
    }

    __m256i low_, high_;
};

#include "xxh3.hpp"

}  // namespace

}  // namespace avx2

RLSPARSE_TARGET_END

RLSPARSE_TARGET_BEGIN("avx512f,avx512dq")

namespace avx512 {

namespace {

class Lanes {
  public:
    explicit Lanes(const uint64_t* start) : lanes_(_mm512_loadu_si512(start)) {}

    void add(const uint8_t* data, const uint8_t* secret) {
        const __m512i value = _mm512_loadu_si512(data);
        const __m512i keyed = _mm512_xor_si512(value, _mm512_loadu_si512(secret));
        const __m512i product = _mm512_mul_epu32(keyed, _mm512_srli_epi64(keyed, 32));
        const __m512i swapped = _mm512_shuffle_epi32(value, _MM_PERM_BADC);
        lanes_ = _mm512_add_epi64(lanes_, _mm512_add_epi64(swapped, product));
    }

    void scramble(const uint8_t* secret) {
        const __m512i shifted = _mm512_srli_epi64(lanes_, 47);
        // 0x96: the XOR of three.
        const __m512i keyed =
            _mm512_ternarylogic_epi64(lanes_, shifted, _mm512_loadu_si512(secret), 0x96);
        const __m512i prime = _mm512_set1_epi64(int64_t(kPrime32[0]));
        const __m512i high = _mm512_mul_epu32(_mm512_srli_epi64(keyed, 32), prime);
        lanes_ = _mm512_add_epi64(_mm512_mul_epu32(keyed, prime), _mm512_slli_epi64(high, 32));
    }

    void store(uint64_t* to) const { _mm512_storeu_si512(to, lanes_); }

  private:
    __m512i lanes_;
};

#include "xxh3.hpp"

}  // namespace

}  // namespace avx512

RLSPARSE_TARGET_END

#endif

Xxh3 find_xxh3(const char* name) {
#if defined(RLSPARSE_X86)
    if (std::strcmp(name, kAvx512.name) == 0) return avx512::xxh3;
    if (std::strcmp(name, kAvx2.name) == 0) return avx2::xxh3;
#endif
    (void)name;
    return portable::xxh3;
}

}  // namespace rlsparse
