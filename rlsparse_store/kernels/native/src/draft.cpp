#include "draft.hpp"

#include <algorithm>
#include <cstring>

namespace rlsparse {

namespace {

// Calls `take` with each stream, in the order of the content.
template <class Take>
void each_stream(const Draft& draft, const Take& take) {
    for (size_t c = 0; c < draft.contexts; ++c) take(draft.streams.masks[c]);
    for (const Span& span : {draft.streams.signs, draft.streams.classes, draft.streams.exponents,
                             draft.streams.low_bits}) {
        take(span);
    }
}

// Chooses the contexts from a histogram of the bins up to `last`, which holds the largest key.
bool choose_bounds(const Kernels& kernels, const Chunk& chunk, const Changed& changed,
                   const Bounds& bins, size_t last, size_t every, const DraftCosts& costs,
                   Draft& draft, Scratch& scratch) {
    auto* words = scratch.array<int64_t>(bins.number);
    auto* magnitudes = scratch.array<int64_t>(bins.number * kMagnitudeClasses);
    std::memset(words, 0, bins.number * sizeof *words);
    std::memset(magnitudes, 0, bins.number * kMagnitudeClasses * sizeof *magnitudes);
    kernels.histogram(chunk, changed, bins, every, words, magnitudes, scratch);
    size_t used[kMostCutBins], number = 0;
    int64_t changes = 0;
    for (size_t bin = 0; bin <= last; ++bin) {
        if (words[bin] == 0 && bin != last) continue;
        if (number == kMostCutBins) return false;
        words[number] = words[bin];
        int64_t* const counts = magnitudes + number * kMagnitudeClasses;
        std::memmove(counts, magnitudes + bin * kMagnitudeClasses,
                     kMagnitudeClasses * sizeof *counts);
        for (int m = 0; m < kMagnitudeClasses; ++m) changes += counts[m];
        used[number++] = bin;
    }
    if (uint64_t(changes) <= costs.few) return true;
    int64_t cost;
    draft.contexts = cheapest_cut(words, magnitudes, number, costs.blocks.log2, costs.context,
                                  costs.empty, costs.most_contexts, draft.bounds, &cost, scratch);
    for (size_t c = 0; c < draft.contexts; ++c) {
        draft.bounds[c] = bins.upper[used[draft.bounds[c] - 1]];
    }
    return true;
}

}  // namespace

size_t Draft::size() const {
    size_t size = 0;
    each_stream(*this, [&](const Span& span) { size += span.size; });
    return size;
}

void Draft::join(uint8_t* out) const {
    each_stream(*this, [&](const Span& span) {
        if (span.size) std::memcpy(out, span.data, span.size);
        out += span.size;
    });
}

size_t Draft::block_ends(const uint8_t* content, const BlockCosts& costs, uint64_t* ends) const {
    size_t number = 0;
    const auto add = [&](uint64_t end) {
        if (end && (number == 0 || ends[number - 1] != end)) ends[number++] = end;
    };
    // Signs and classes may change their distribution where a context ends.
    const auto add_contexts = [&](uint64_t start, uint64_t per_byte) {
        uint64_t before = 0;
        for (size_t c = 0; c + 1 < contexts; ++c) {
            add(start + (before += streams.changed[c]) / per_byte);
        }
    };
    uint64_t end = 0;
    for (size_t c = 0; c < contexts; ++c) add(end += streams.masks[c].size);
    add_contexts(end, 8);
    add(end += streams.signs.size);
    add_contexts(end, 4);
    add(end += streams.classes.size);
    add(end += streams.exponents.size);
    add(end += streams.low_bits.size);
    return rlsparse::block_ends(content, ends, number, costs, ends);
}

bool draft_chunk(const Kernels& kernels, const Chunk& chunk, const Changed& changed,
                 const Bounds& bins, uint64_t top_key, size_t every, const DraftCosts& costs,
                 Draft& draft, Scratch& scratch) {
    const size_t last =
        size_t(std::lower_bound(bins.upper, bins.upper + bins.number, top_key) - bins.upper);
    draft.contexts = 1;
    draft.bounds[0] = bins.upper[last];
    if (changed.number > costs.few &&
        !choose_bounds(kernels, chunk, changed, bins, last, every, costs, draft, scratch)) {
        return false;
    }
    kernels.partition(chunk, changed, {draft.bounds, draft.contexts}, draft.streams, scratch);
    return true;
}

}  // namespace rlsparse
