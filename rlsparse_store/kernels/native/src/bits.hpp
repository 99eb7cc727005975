// Bit strings, least significant bit first. Included inside the namespace of one instruction set.

inline uint64_t load64(const uint8_t* from) {
    uint64_t value;
    std::memcpy(&value, from, 8);
    return value;
}

inline void store64(uint8_t* to, uint64_t value) { std::memcpy(to, &value, 8); }

// 64 bits from bit `place` on; 9 bytes are read.
inline uint64_t bits_at(const uint8_t* from, uint64_t place) {
    const uint8_t* byte = from + (place >> 3);
    const int shift = int(place & 7);
    return load64(byte) >> shift | (uint64_t(byte[8]) << 1) << (63 - shift);
}

inline size_t count_ones(const uint8_t* bits, size_t bytes) {
    size_t ones = 0, i = 0;
    for (; i + 8 <= bytes; i += 8) ones += size_t(popcount(load64(bits + i)));
    for (; i < bytes; ++i) ones += size_t(popcount(bits[i]));
    return ones;
}

// Appends bits. The memory needs room for 8 bytes beyond the last bit.
class BitWriter {
  public:
    BitWriter() = default;
    explicit BitWriter(uint8_t* to) : to_(to) {}

    // `count` <= 64; the bits above the lowest `count` must be zero.
    void put(uint64_t bits, int count) {
        open_ |= bits << filled_;
        store64(to_, open_);
        // Without a branch, which would be mispredicted whenever a word is full.
        const uint64_t full = uint64_t(filled_ + count) >> 6;
        const uint64_t rest = (bits >> 1) >> (63 - filled_);
        open_ = (open_ & (full - 1)) | (rest & (0 - full));
        to_ += full * 8;
        filled_ = (filled_ + count) & 63;
    }

    // Ends the string and returns the byte after its last one.
    uint8_t* finish() {
        store64(to_, open_);
        return to_ + (filled_ + 7) / 8;
    }

    // Bits written since `start`.
    uint64_t bits_since(const uint8_t* start) const {
        return uint64_t(to_ - start) * 8 + uint64_t(filled_);
    }

    // Goes on in a copy of what was written, of which the last bytes may be missing.
    void move(const uint8_t* start, uint8_t* copy) { to_ = copy + (to_ - start); }

  private:
    uint8_t* to_ = nullptr;
    uint64_t open_ = 0;
    int filled_ = 0;
};

// Reads parts of the content one after the other, never past its end.
class Reader {
  public:
    // 16 bytes after the content must be readable.
    explicit Reader(Span content) : at_(content.data), left_(content.size) {}

    // The next `bytes` bytes, or nullptr if there are fewer.
    const uint8_t* take(uint64_t bytes) {
        if (bytes > left_) return nullptr;
        const uint8_t* taken = at_;
        at_ += bytes;
        left_ -= bytes;
        return taken;
    }

    // The bytes of the next `bits` bits; nullptr if there are fewer. `padded` tells whether one
    // of those that fill up the last byte is set.
    const uint8_t* take_bits(uint64_t bits, bool* padded) {
        const uint8_t* taken = take(bits / 8 + (bits % 8 != 0));
        *padded = taken && bits % 8 && (taken[bits / 8] >> (bits % 8));
        return taken;
    }

    size_t left() const { return left_; }

  private:
    const uint8_t* at_;
    size_t left_;
};
