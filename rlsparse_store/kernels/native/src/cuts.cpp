#include "cuts.hpp"

#include <cstring>

namespace rlsparse {

namespace {

constexpr int64_t kOneBit = int64_t(1) << kFraction;
constexpr int64_t kImpossible = int64_t(1) << 61;
constexpr size_t kClasses = kMagnitudeClasses;

// n * log2(n); n is below 2^40.
int64_t n_log_n(int64_t n, const int64_t* log2) {
    if (n <= 0) return 0;
    const int exponent = 63 - __builtin_clzll(uint64_t(n));
    const int64_t normal = (n << (40 - exponent)) & ((int64_t(1) << 40) - 1);
    const size_t place = size_t(normal >> 29);
    const int64_t rest = normal >> 17 & 0xFFF;
    const int64_t low = log2[place];
    const int64_t fraction = low + ((log2[place + 1] - low) * rest >> 12);
    return n * ((int64_t(exponent) << kFraction) + fraction);
}

// Cost of making bins i to j - 1 a context, for all i < j.
int64_t* interval_costs(const int64_t* words, const int64_t* magnitudes, size_t bins,
                        const int64_t* log2, int64_t context_cost, int64_t empty_cost,
                        Scratch& scratch) {
    const size_t stride = bins + 1;
    auto* costs = scratch.array<int64_t>(stride * stride);
    for (size_t i = 0; i < bins; ++i) {
        int64_t n = 0, changed[kClasses] = {};
        for (size_t j = i + 1; j <= bins; ++j) {
            n += words[j - 1];
            int64_t k = 0, steps = 0;
            for (size_t m = 0; m < kClasses; ++m) {
                changed[m] += magnitudes[(j - 1) * kClasses + m];
                k += changed[m];
                steps += n_log_n(changed[m], log2);
            }
            costs[i * stride + j] = n_log_n(n, log2) - n_log_n(n - k, log2) - steps +
                                    (k > 0 ? context_cost : empty_cost);
        }
    }
    return costs;
}

int64_t floor_of_hundredth(int64_t value) { return value / 100 - (value % 100 < 0); }

struct Block {
    int64_t counts[256];

    void add(const Block& other) {
        for (int i = 0; i < 256; ++i) counts[i] += other.counts[i];
    }
};

Block histogram_of(Span stream, size_t sampled_bytes) {
    const size_t every = stream.size / sampled_bytes > 1 ? stream.size / sampled_bytes : 1;
    Block block = {};
    for (size_t i = 0; i < stream.size; i += every) block.counts[stream.data[i]] += int64_t(every);
    return block;
}

// About what zstd makes of bytes with this histogram as one block of its own.
int64_t cost_of(const Block& block, const BlockCosts& costs) {
    int64_t size = 0, symbols = 0, parts = 0;
    for (const int64_t count : block.counts) {
        size += count;
        symbols += count != 0;
        parts += n_log_n(count, costs.log2);
    }
    if (symbols <= 1) return costs.block + 8 * kOneBit;
    const int64_t ideal = n_log_n(size, costs.log2) - parts;
    // Huffman spends at least one bit per byte, and about a percent more than the entropy.
    const int64_t fair = ideal + floor_of_hundredth(ideal);
    const int64_t coded =
        (fair > size * kOneBit ? fair : size * kOneBit) + costs.table + symbols * costs.symbol;
    return costs.block + (coded < size * 8 * kOneBit ? coded : size * 8 * kOneBit);
}

}  // namespace

int64_t mask_cost(int64_t n, int64_t k, const int64_t* log2) {
    return n_log_n(n, log2) - n_log_n(k, log2) - n_log_n(n - k, log2);
}

size_t cheapest_cut(const int64_t* words, const int64_t* magnitudes, size_t bins,
                    const int64_t* log2, int64_t context_cost, int64_t empty_cost, size_t most,
                    uint64_t* ends, int64_t* cost, Scratch& scratch) {
    const size_t stride = bins + 1;
    const int64_t* costs =
        interval_costs(words, magnitudes, bins, log2, context_cost, empty_cost, scratch);
    const size_t levels = most < bins ? most : bins;
    // Per number of contexts and end: the least cost, and where the last context begins.
    auto* best = scratch.array<int64_t>(levels * stride);
    auto* source = scratch.array<uint64_t>(levels * stride);
    best[0] = kImpossible;
    for (size_t j = 1; j <= bins; ++j) best[j] = costs[j];
    size_t chosen = 0;
    for (size_t level = 1; level < levels; ++level) {
        const int64_t* before = best + (level - 1) * stride;
        int64_t* now = best + level * stride;
        for (size_t j = 0; j <= bins; ++j) {
            now[j] = kImpossible;
            for (size_t i = 1; i < j; ++i) {
                if (before[i] == kImpossible) continue;
                const int64_t through = before[i] + costs[i * stride + j];
                if (through < now[j]) {
                    now[j] = through;
                    source[level * stride + j] = i;
                }
            }
        }
        if (now[bins] < best[chosen * stride + bins]) chosen = level;
    }
    *cost = best[chosen * stride + bins];
    uint64_t end = bins;
    for (size_t level = chosen + 1; level-- > 0;) {
        ends[level] = end;
        if (level) end = source[level * stride + end];
    }
    return chosen + 1;
}

size_t block_ends(const uint8_t* content, const uint64_t* ends, size_t number,
                  const BlockCosts& costs, uint64_t* found) {
    if (number == 0) return 0;
    Block block = histogram_of({content, size_t(ends[0])}, costs.sampled_bytes);
    int64_t cost = cost_of(block, costs);
    uint64_t start = ends[0];
    size_t blocks = 0;
    for (size_t i = 1; i < number; ++i) {
        const uint64_t end = ends[i];
        const Block next =
            histogram_of({content + start, size_t(end - start)}, costs.sampled_bytes);
        const int64_t alone = cost_of(next, costs);
        Block joined = block;
        joined.add(next);
        const int64_t together = cost_of(joined, costs);
        const bool apart = cost + alone < together;
        if (apart) found[blocks++] = start;
        block = apart ? next : joined;
        cost = apart ? alone : together;
        start = end;
    }
    found[blocks++] = start;
    return blocks;
}

}  // namespace rlsparse
