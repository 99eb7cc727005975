// Masks as the bytes of specs/format.md section 4.2, and back.
// Included inside the namespace of one instruction set.

constexpr uint64_t kDense = 6;     // a context with a change in this many words has a bit per word
constexpr uint64_t kEscape = 255;  // the high part of a gap that does not fit its byte

// Bytes behind a bitmap that may be read: those of the bits of a tile, and of a word.
constexpr size_t kSlack = kTile / 8 + 16;

inline bool is_dense(uint64_t n, uint64_t k) { return k * kDense >= n; }

inline int gap_width(uint64_t n, uint64_t k) { return bit_length(n / (kDense * k)) - 1; }

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
            const uint64_t rank = first + uint64_t(__builtin_ctzll(bits));
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

// A bitmap and how far it was read.
struct Mask {
    const uint8_t* bitmap = nullptr;
    uint64_t place = 0, end = 0;

    // Begins a tile. If the words changed after they were counted, the place may be beyond the end,
    // but is never by more than what may be read.
    void begin_tile() { place = place < end ? place : end; }

    // The next `count` <= 64 bits, and others above them.
    uint64_t take(int count) {
        const uint8_t* byte = bitmap + (place >> 3);
        const int shift = int(place & 7);
        uint64_t bits = load64(byte) >> shift;
        if (count > 57) bits |= (uint64_t(byte[8]) << 1) << (63 - shift);
        place += uint64_t(count);
        return bits;
    }
};

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
    uint64_t next = 0, open = 0, open_place = 0;
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
        const uint64_t rank = next + gap, place = rank / 64;
        // The word is built in a register: to read it back from memory would take longer.
        open = (place == open_place ? open : 0) | uint64_t(1) << rank % 64;
        store64(bitmap + 8 * place, open);
        open_place = place;
        next = rank + 1;
    }
    return nullptr;
}

// Reads a mask of n bits, of which exactly k must be set; k is not 0. The content has slack.
inline const char* decode_mask(Reader& reader, uint64_t n, uint64_t k, Mask& mask,
                               Scratch& scratch) {
    mask.end = n;
    if (k == n || !is_dense(n, k)) {
        const size_t bytes = size_t(n / 64 * 8 + 8 + kSlack);
        uint8_t* bitmap = scratch.array<uint8_t>(bytes);
        mask.bitmap = bitmap;
        std::memset(bitmap, k == n ? 0xFF : 0, bytes);
        return k == n ? nullptr : decode_gaps(reader, n, k, bitmap);
    }
    bool padded;
    mask.bitmap = reader.take_bits(n, &padded);
    if (!mask.bitmap) return "the streams end early";
    if (padded) return "a padding bit is set";
    const uint64_t marked = count_ones(mask.bitmap, size_t((n + 7) / 8));
    return marked == k ? nullptr : "a mask marks another number of words than it should";
}
