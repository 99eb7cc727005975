// XXH3 of more than 240 bytes, written from its published specification.
// Included inside the namespace of one instruction set, which has defined `Lanes`: the eight
// accumulators, with `add` for a stripe of 64 bytes and `scramble` for the end of a block.

inline uint64_t xxh3(const uint8_t* data, size_t size) {
    if (size <= kShortBytes) return xxh3_short(data, size);
    constexpr size_t kStripe = 64, kStripes = 16, kBlock = kStripes * kStripe;
    const uint8_t* const end = data + size;
    Lanes lanes(kStart);
    // A block or stripe that ends with the data is not whole: the last stripe ends with it.
    for (; size_t(end - data) > kBlock; data += kBlock) {
        for (size_t i = 0; i < kStripes; ++i) lanes.add(data + i * kStripe, kSecret + i * 8);
        lanes.scramble(kSecret + kSecretBytes - kStripe);
    }
    for (const uint8_t* secret = kSecret; size_t(end - data) > kStripe; secret += 8) {
        lanes.add(data, secret);
        data += kStripe;
    }
    lanes.add(end - kStripe, kSecret + kSecretBytes - kStripe - 7);
    alignas(64) uint64_t sums[8];
    lanes.store(sums);
    uint64_t hash = size * kPrime64[0];
    for (int i = 0; i < 8; i += 2) {
        hash += fold(sums[i] ^ load64(kSecret + 11 + 8 * i),
                     sums[i + 1] ^ load64(kSecret + 19 + 8 * i));
    }
    return avalanche(hash);
}
