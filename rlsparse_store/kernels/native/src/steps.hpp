// Steps as the bytes of specs/format.md section 4.2, and back.
// Included inside the namespace of one instruction set, which has defined `Simd`.

inline void count_steps(const StepPlanes& p, uint64_t inside, uint64_t* counts) {
    for (int side = 0; side < 2; ++side) {
        const uint64_t mine = inside & (side ? ~p.negative : p.negative);
        counts[4 * side + 0] += uint64_t(popcount(mine & ~p.low & ~p.high));
        counts[4 * side + 1] += uint64_t(popcount(mine & p.low & ~p.high));
        counts[4 * side + 2] += uint64_t(popcount(mine & ~p.low & p.high));
        counts[4 * side + 3] += uint64_t(popcount(mine & p.low & p.high));
    }
}

inline int exponent_bits(int width) { return width <= 16 ? 4 : 8; }

// The bits of group g of `count` values that there are.
inline uint64_t inside_group(size_t count, size_t g) {
    return count - g * 64 < 64 ? (uint64_t(1) << (count - g * 64)) - 1 : ~uint64_t(0);
}

// Codes `count` steps; 64 more values behind them may be read.
template <class W>
void encode_steps(const Signed<W>* steps, size_t count, int width, Streams& out, Scratch& scratch) {
    const size_t groups = (count + 63) / 64;
    uint8_t* signs = scratch.array<uint8_t>(groups * 8);
    uint8_t* classes = scratch.array<uint8_t>(groups * 16);
    uint64_t* far_steps = scratch.array<uint64_t>(groups);
    size_t far = 0;
    for (size_t g = 0; g < groups; ++g) {
        const uint64_t inside = inside_group(count, g);
        StepPlanes planes = Simd::split_steps(steps + g * 64);
        planes.negative &= inside;
        planes.low &= inside;
        planes.high &= inside;
        store64(signs + g * 8, planes.negative);
        Simd::store_classes(classes + g * 16, planes.low, planes.high);
        count_steps(planes, inside, out.steps);
        far_steps[g] = planes.low & planes.high;
        far += size_t(popcount(far_steps[g]));
    }
    W* magnitudes = scratch.array<W>(far + 64);
    W* to = magnitudes;
    for (size_t g = 0; g < groups; ++g) {
        Simd::gather_magnitudes(steps + g * 64, far_steps[g], to);
        to += popcount(far_steps[g]);
    }
    std::memset(to, 0, 64 * sizeof(W));
    const int field = exponent_bits(width);
    uint8_t* exponents = scratch.array<uint8_t>((far * size_t(field) + 7) / 8 + 16);
    uint8_t* low = scratch.array<uint8_t>(far * sizeof(W) + 16);
    const uint64_t low_bits = Simd::pack_far(magnitudes, far, field, exponents, low);
    out.signs = {signs, (count + 7) / 8};
    out.classes = {classes, (2 * count + 7) / 8};
    out.exponents = {exponents, (far * size_t(field) + 7) / 8};
    out.low_bits = {low, size_t((low_bits + 7) / 8)};
}

// Decoded steps. Most fit a byte; a byte of 0 stands for the next of those that do not.
template <class W>
struct Steps {
    int8_t* near = nullptr;  // with kTile + 64 more behind them
    Signed<W>* wide = nullptr;
    uint64_t* wide_places = nullptr;  // which steps the wide ones are, ascending
    size_t number_of_wide = 0;

    // How many of the first `number` steps are wide.
    size_t wide_before(uint64_t number) const {
        size_t low = 0, high = number_of_wide;
        while (low < high) {
            const size_t middle = (low + high) / 2;
            if (wide_places[middle] < number) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        return low;
    }
};

// Whether steps of these magnitudes, in order, fit words of `width` bits. Magnitudes that overflow
// a W are 0 to 2: no other is below 4.
template <class W>
bool far_steps_fit(const W* magnitudes, const uint8_t* signs, const uint64_t* far, size_t groups,
                   uint64_t number, int width) {
    const W limit = W((uint64_t(1) << (width - 1)) - 1);
    W largest = 0, least = limit;
    for (uint64_t i = 0; i < number; ++i) {
        largest = magnitudes[i] > largest ? magnitudes[i] : largest;
        least = magnitudes[i] < least ? magnitudes[i] : least;
    }
    if (largest <= limit && (number == 0 || least > 3)) return true;
    // Only the one magnitude that negative steps alone can have is worth a closer look.
    for (size_t g = 0; g < groups; ++g) {
        for (uint64_t bits = far[g]; bits; bits &= bits - 1) {
            const uint64_t sign = load64(signs + g * 8) >> __builtin_ctzll(bits) & 1;
            const W magnitude = *magnitudes++;
            if (magnitude <= 3 || W(magnitude - W(sign)) > limit) return false;
        }
    }
    return true;
}

// The steps of class 3: `far` says which.
template <class W>
const char* decode_far_steps(Reader& reader, const uint8_t* signs, const uint64_t* far,
                             size_t groups, uint64_t number, int width, Steps<W>& steps,
                             Scratch& scratch) {
    const int field = exponent_bits(width);
    bool padded;
    const uint8_t* packed = reader.take_bits(number * field, &padded);
    if (!packed) return "the streams end early";
    if (padded) return "a padding bit is set";
    // A byte for each exponent: what follows is then free of shifts that depend on the width.
    uint8_t* exponents = scratch.array<uint8_t>(number + 1);
    if (field == 8) {
        std::memcpy(exponents, packed, number);
    } else {
        for (uint64_t i = 0; i < number; i += 2) {
            exponents[i] = packed[i / 2] & 15;
            exponents[i + 1] = packed[i / 2] >> 4;
        }
    }
    uint64_t low_bits = 0;
    uint8_t largest = 0;
    for (uint64_t i = 0; i < number; ++i) {
        low_bits += exponents[i];
        largest = exponents[i] > largest ? exponents[i] : largest;
    }
    if (largest >= width) return "a step has an exponent that its words cannot have";
    const uint8_t* low = reader.take_bits(low_bits, &padded);
    if (!low) return "the streams end early";
    if (padded) return "a padding bit is set";
    W* magnitudes = scratch.array<W>(number + 64);
    Simd::unpack_far(exponents, low, size_t(number), magnitudes);
    if (!far_steps_fit<W>(magnitudes, signs, far, groups, number, width)) {
        return "a step does not fit its words";
    }
    steps.wide = scratch.array<Signed<W>>(number + 1);
    steps.wide_places = scratch.array<uint64_t>(number + 1);
    const W* next = magnitudes;
    size_t wide = 0;
    for (size_t g = 0; g < groups; ++g) {
        const uint64_t negative = load64(signs + g * 8);
        const uint64_t is_wide = Simd::place_far(next, far[g], negative, steps.near + g * 64);
        for (uint64_t bits = is_wide; bits; bits &= bits - 1) {
            const int at = __builtin_ctzll(bits);
            const uint64_t before = far[g] & ((uint64_t(1) << at) - 1);
            const W magnitude = next[popcount(before)];
            const W sign = W(W(0) - W(negative >> at & 1));
            steps.wide[wide] = Signed<W>(W(W(magnitude ^ sign) - sign));
            steps.wide_places[wide++] = g * 64 + uint64_t(at);
        }
        next += popcount(far[g]);
    }
    steps.number_of_wide = wide;
    return nullptr;
}

// Reads `count` steps. The content has slack.
template <class W>
const char* decode_steps(Reader& reader, size_t count, int width, Steps<W>& steps,
                         Scratch& scratch) {
    bool sign_padded, class_padded;
    const uint8_t* signs = reader.take_bits(count, &sign_padded);
    const uint8_t* classes = reader.take_bits(2 * uint64_t(count), &class_padded);
    if (!signs || !classes) return "the streams end early";
    if (sign_padded || class_padded) return "a padding bit is set";
    const size_t groups = (count + 63) / 64;
    uint64_t* far = scratch.array<uint64_t>(groups);
    steps.near = scratch.array<int8_t>(groups * 64 + kTile + 64);
    uint64_t number_of_far = 0;
    for (size_t g = 0; g < groups; ++g) {
        StepPlanes planes = {load64(signs + g * 8), 0, 0};
        Simd::load_classes(classes + g * 16, planes.low, planes.high);
        Simd::join_steps(planes, steps.near + g * 64);
        far[g] = planes.low & planes.high & inside_group(count, g);
        number_of_far += uint64_t(popcount(far[g]));
    }
    std::memset(steps.near + groups * 64, 1, kTile + 64);
    return decode_far_steps<W>(reader, signs, far, groups, number_of_far, width, steps, scratch);
}
