// Masks and steps as the bytes of specs/format.md section 4.2, and back.
// Included inside the namespace of one instruction set, which has defined `Simd`.

constexpr uint64_t kDense = 6;     // a context with a change in this many words has a bit per word
constexpr uint64_t kEscape = 255;  // the high part of a gap that does not fit its byte

inline bool is_dense(uint64_t n, uint64_t k) { return k * kDense >= n; }

inline int gap_width(uint64_t n, uint64_t k) { return bit_length(n / (kDense * k)) - 1; }

// --- masks ---------------------------------------------------------------------------------

// Codes a mask of n bits, k of them set; the bitmap is zero beyond bit n up to its word's end.
inline Span encode_mask(const uint8_t* bitmap, uint64_t n, uint64_t k, Scratch& scratch) {
    if (k == 0 || k == n) return {};
    if (is_dense(n, k)) return {bitmap, size_t((n + 7) / 8)};
    const int width = gap_width(n, k);
    const uint64_t low_mask = (uint64_t(1) << width) - 1;
    const size_t low_bytes = (k * width + 7) / 8;
    uint8_t* mask = scratch.array<uint8_t>(low_bytes + 5 * k + 8);
    uint8_t* high = scratch.array<uint8_t>(k);
    uint32_t* escaped = scratch.array<uint32_t>(k);
    size_t found = 0, escapes = 0;
    uint64_t next = 0;  // the rank after the last one found
    BitWriter low(mask);
    for (uint64_t first = 0; first < n; first += 64) {
        for (uint64_t bits = load64(bitmap + first / 8); bits; bits &= bits - 1) {
            const uint64_t rank = first + __builtin_ctzll(bits);
            const uint64_t gap = rank - next;
            next = rank + 1;
            low.put(gap & low_mask, width);
            const uint64_t rest = gap >> width;
            high[found++] = uint8_t(rest < kEscape ? rest : kEscape);
            if (rest >= kEscape) escaped[escapes++] = uint32_t(rest - kEscape);
        }
    }
    low.finish();
    std::memcpy(mask + low_bytes, high, k);
    std::memcpy(mask + low_bytes + k, escaped, 4 * escapes);
    return {mask, low_bytes + k + 4 * escapes};
}

inline const char* decode_gaps(Reader& reader, uint64_t n, uint64_t k, uint8_t* bitmap) {
    const int width = gap_width(n, k);
    const uint64_t low_mask = (uint64_t(1) << width) - 1;
    bool padded;
    const uint8_t* low = reader.take_bits(k * width, &padded);
    if (padded) return "a padding bit is set";
    const uint8_t* high = reader.take(k);
    if (!low || !high) return "the streams end early";
    uint64_t escapes = 0;
    for (uint64_t i = 0; i < k; ++i) escapes += high[i] == kEscape;
    const uint8_t* escaped = reader.take(4 * escapes);
    if (!escaped) return "the streams end early";
    uint64_t next = 0;
    for (uint64_t i = 0; i < k; ++i) {
        uint64_t rest = high[i];
        if (rest == kEscape) {
            uint32_t more;
            std::memcpy(&more, escaped, 4);
            escaped += 4;
            rest += more;
        }
        const uint64_t gap = rest << width | (bits_at(low, i * width) & low_mask);
        if (gap >= n - next) return "the gaps overrun their context";
        const uint64_t rank = next + gap;
        bitmap[rank / 8] = uint8_t(bitmap[rank / 8] | 1 << rank % 8);
        next = rank + 1;
    }
    return nullptr;
}

// Reads a mask of n bits into `bitmap`, which is zero and has room; exactly k bits become set.
inline const char* decode_mask(Reader& reader, uint64_t n, uint64_t k, uint8_t* bitmap) {
    if (k == n) {
        std::memset(bitmap, 0xFF, n / 8);
        if (n % 8) bitmap[n / 8] = uint8_t((1 << n % 8) - 1);
        return nullptr;
    }
    if (!is_dense(n, k)) return decode_gaps(reader, n, k, bitmap);
    bool padded;
    const uint8_t* bits = reader.take_bits(n, &padded);
    if (!bits) return "the streams end early";
    if (padded) return "a padding bit is set";
    std::memcpy(bitmap, bits, (n + 7) / 8);
    uint64_t marked = 0;
    for (uint64_t first = 0; first < n; first += 64) {
        marked += __builtin_popcountll(load64(bitmap + first / 8));
    }
    return marked == k ? nullptr : "a mask marks another number of words than it should";
}

// --- steps ---------------------------------------------------------------------------------

// 32 bits, each moved to an even place.
inline uint64_t spread(uint32_t bits) {
    uint64_t x = bits;
    x = (x | x << 16) & 0x0000FFFF0000FFFF;
    x = (x | x << 8) & 0x00FF00FF00FF00FF;
    x = (x | x << 4) & 0x0F0F0F0F0F0F0F0F;
    x = (x | x << 2) & 0x3333333333333333;
    return (x | x << 1) & 0x5555555555555555;
}

// Inverse of spread; odd places are ignored.
inline uint32_t squeeze(uint64_t x) {
    x &= 0x5555555555555555;
    x = (x | x >> 1) & 0x3333333333333333;
    x = (x | x >> 2) & 0x0F0F0F0F0F0F0F0F;
    x = (x | x >> 4) & 0x00FF00FF00FF00FF;
    x = (x | x >> 8) & 0x0000FFFF0000FFFF;
    return uint32_t(x | x >> 16);
}

// 64 steps as bit planes: whether each is negative, and its class min(|step| - 1, 3).
struct StepPlanes {
    uint64_t negative, low, high;
};

template <class S>
StepPlanes split_steps(const S* steps) {
    alignas(64) uint8_t bytes[64];
    for (int i = 0; i < 64; ++i) {
        const S sign = S(steps[i] < 0 ? -1 : 0);
        const S nearest = S((steps[i] ^ sign) - 1 - sign);  // |step| - 1
        bytes[i] = uint8_t(uint8_t(nearest < 3 ? nearest : 3) | (sign & 4));
    }
    return {Simd::bit_plane(bytes, 2), Simd::bit_plane(bytes, 0), Simd::bit_plane(bytes, 1)};
}

// Inverse of split_steps but for steps of class 3, whose magnitude becomes 4.
template <class S>
void join_steps(const StepPlanes& planes, S* steps) {
    alignas(64) uint8_t negative[64], low[64], high[64];
    Simd::to_bytes(planes.negative, negative);
    Simd::to_bytes(planes.low, low);
    Simd::to_bytes(planes.high, high);
    for (int i = 0; i < 64; ++i) {
        const S sign = S(-S(negative[i]));
        steps[i] = S(S(S(1 + low[i] + 2 * high[i]) ^ sign) - sign);
    }
}

inline void count_steps(const StepPlanes& p, uint64_t inside, uint64_t* counts) {
    for (int side = 0; side < 2; ++side) {
        const uint64_t mine = inside & (side ? ~p.negative : p.negative);
        counts[4 * side + 0] += __builtin_popcountll(mine & ~p.low & ~p.high);
        counts[4 * side + 1] += __builtin_popcountll(mine & p.low & ~p.high);
        counts[4 * side + 2] += __builtin_popcountll(mine & ~p.low & p.high);
        counts[4 * side + 3] += __builtin_popcountll(mine & p.low & p.high);
    }
}

inline int exponent_bits(int width) { return width <= 16 ? 4 : 8; }

// Codes `count` steps; 64 more values behind them may be read.
template <class W>
void encode_steps(const Signed<W>* steps, size_t count, int width, Streams& out, Scratch& scratch) {
    const size_t groups = (count + 63) / 64;
    uint8_t* signs = scratch.array<uint8_t>(groups * 8);
    uint8_t* classes = scratch.array<uint8_t>(groups * 16);
    uint64_t* far_steps = scratch.array<uint64_t>(groups);
    size_t far = 0;
    uint64_t low_bits = 0;
    for (size_t g = 0; g < groups; ++g) {
        const size_t left = count - g * 64;
        const uint64_t inside = left < 64 ? (uint64_t(1) << left) - 1 : ~uint64_t(0);
        StepPlanes planes = split_steps(steps + g * 64);
        planes.negative &= inside;
        planes.low &= inside;
        planes.high &= inside;
        store64(signs + g * 8, planes.negative);
        store64(classes + g * 16, spread(uint32_t(planes.low)) | spread(uint32_t(planes.high))
                                                                     << 1);
        store64(classes + g * 16 + 8,
                spread(uint32_t(planes.low >> 32)) | spread(uint32_t(planes.high >> 32)) << 1);
        count_steps(planes, inside, out.steps);
        far_steps[g] = planes.low & planes.high;
        far += size_t(__builtin_popcountll(far_steps[g]));
    }
    const int field = exponent_bits(width);
    uint8_t* exponents = scratch.array<uint8_t>((far * field + 7) / 8 + 16);
    uint8_t* low = scratch.array<uint8_t>(far * sizeof(W) + 16);
    BitWriter exponent_writer(exponents), low_writer(low);
    for (size_t g = 0; g < groups; ++g) {
        for (uint64_t is_far = far_steps[g]; is_far; is_far &= is_far - 1) {
            const uint64_t magnitude =
                magnitude_of<W>(steps[g * 64 + size_t(__builtin_ctzll(is_far))]);
            // 0 if the words changed after they were compared; the result is wrong then anyway.
            const uint64_t excess = magnitude > 3 ? magnitude - 3 : 1;
            const int exponent = bit_length(excess) - 1;
            exponent_writer.put(uint64_t(exponent), field);
            low_writer.put(excess & ((uint64_t(1) << exponent) - 1), exponent);
            low_bits += exponent;
        }
    }
    exponent_writer.finish();
    low_writer.finish();
    out.signs = {signs, (count + 7) / 8};
    out.classes = {classes, (2 * count + 7) / 8};
    out.exponents = {exponents, (far * field + 7) / 8};
    out.low_bits = {low, size_t((low_bits + 7) / 8)};
}

// The steps of class 3, which `steps` holds the sign of and nothing else.
template <class W>
const char* decode_far_steps(Reader& reader, const uint8_t* signs, const uint8_t* classes,
                             size_t count, int width, Signed<W>* steps, Scratch& scratch) {
    const size_t groups = (count + 63) / 64;
    auto far_of = [&](size_t g) {
        const uint64_t first = load64(classes + g * 16), second = load64(classes + g * 16 + 8);
        return uint64_t(squeeze(first & first >> 1)) | uint64_t(squeeze(second & second >> 1))
                                                           << 32;
    };
    auto inside = [&](size_t g) {
        return count - g * 64 < 64 ? (uint64_t(1) << (count - g * 64)) - 1 : ~uint64_t(0);
    };
    uint64_t far = 0;
    for (size_t g = 0; g < groups; ++g) far += __builtin_popcountll(far_of(g) & inside(g));
    const int field = exponent_bits(width);
    bool padded;
    const uint8_t* packed = reader.take_bits(far * field, &padded);
    if (!packed) return "the streams end early";
    if (padded) return "a padding bit is set";
    // A byte for each exponent: what follows is then free of shifts that depend on the width.
    uint8_t* exponents = scratch.array<uint8_t>(far + 1);
    if (field == 8) {
        std::memcpy(exponents, packed, far);
    } else {
        for (uint64_t i = 0; i < far; i += 2) {
            exponents[i] = packed[i / 2] & 15;
            exponents[i + 1] = packed[i / 2] >> 4;
        }
    }
    uint64_t low_bits = 0;
    uint8_t largest = 0;
    for (uint64_t i = 0; i < far; ++i) {
        low_bits += exponents[i];
        largest = exponents[i] > largest ? exponents[i] : largest;
    }
    if (largest >= width) return "a step has an exponent that its words cannot have";
    const uint8_t* low = reader.take_bits(low_bits, &padded);
    if (!low) return "the streams end early";
    if (padded) return "a padding bit is set";
    const uint64_t limit = (uint64_t(1) << (width - 1)) - 1;
    uint64_t place = 0;
    bool fits = true;
    const uint8_t* exponent = exponents;
    for (size_t g = 0; g < groups; ++g) {
        const uint64_t negative = load64(signs + g * 8);
        for (uint64_t bits = far_of(g) & inside(g); bits; bits &= bits - 1) {
            const int at = __builtin_ctzll(bits);
            const uint64_t one = uint64_t(1) << *exponent;
            const uint64_t excess = one | (bits_at(low, place) & (one - 1));
            place += *exponent++;
            const W is_negative = W(negative >> at & 1);
            fits &= excess <= limit + is_negative - 3;
            const W magnitude = W(excess + 3);
            steps[g * 64 + at] = Signed<W>(W(W(magnitude ^ W(W(0) - is_negative)) + is_negative));
        }
    }
    if (!fits) return "a step does not fit its words";
    return nullptr;
}

// Reads `count` steps; the memory has room for a multiple of 64.
template <class W>
const char* decode_steps(Reader& reader, size_t count, int width, Signed<W>* steps,
                         Scratch& scratch) {
    bool sign_padded, class_padded;
    const uint8_t* signs = reader.take_bits(count, &sign_padded);
    const uint8_t* classes = reader.take_bits(2 * uint64_t(count), &class_padded);
    if (!signs || !classes) return "the streams end early";
    if (sign_padded || class_padded) return "a padding bit is set";
    for (size_t g = 0; g < (count + 63) / 64; ++g) {
        const uint64_t first = load64(classes + g * 16), second = load64(classes + g * 16 + 8);
        const StepPlanes planes = {
            load64(signs + g * 8),
            squeeze(first) | uint64_t(squeeze(second)) << 32,
            squeeze(first >> 1) | uint64_t(squeeze(second >> 1)) << 32,
        };
        join_steps(planes, steps + g * 64);
    }
    return decode_far_steps<W>(reader, signs, classes, count, width, steps, scratch);
}
