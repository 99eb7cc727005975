#include "draft.hpp"

#include <algorithm>
#include <cstring>

namespace rlsparse {

namespace {

// Whether any of `count` bits from `place` on is set.
bool any_set(const uint8_t* bits, size_t place, size_t count) {
    for (; count && place % 8; ++place, --count) {
        if (bits[place / 8] >> place % 8 & 1) return true;
    }
    for (; count >= 64; place += 64, count -= 64) {
        uint64_t word;
        std::memcpy(&word, bits + place / 8, 8);
        if (word) return true;
    }
    for (; count; ++place, --count) {
        if (bits[place / 8] >> place % 8 & 1) return true;
    }
    return false;
}

size_t flag_bytes(const Span& rows) { return (rows.size + 7) / 8; }

// Calls `take` with each stream, in the order of the content.
template <class Take>
void each_stream(const Draft& draft, const Take& take) {
    for (size_t c = 0; c < draft.contexts; ++c) take(draft.streams.masks[c]);
    for (const Span& span : {draft.streams.signs, draft.streams.classes, draft.streams.exponents,
                             draft.streams.low_bits}) {
        take(span);
    }
}

// Words and changed words of a chunk by bin.
struct Histogram {
    int64_t *words, *magnitudes;

    int64_t changed(size_t bin) const {
        int64_t sum = 0;
        for (int m = 0; m < kMagnitudeClasses; ++m) sum += magnitudes[bin * kMagnitudeClasses + m];
        return sum;
    }
};

Histogram histogram_of(const Kernels& kernels, const Chunk& chunk, const Changed& changed,
                       const Bounds& bins, size_t every, Scratch& scratch) {
    const size_t sums = bins.number * kMagnitudeClasses;
    const Histogram found = {scratch.array<int64_t>(bins.number), scratch.array<int64_t>(sums)};
    std::memset(found.words, 0, bins.number * sizeof *found.words);
    std::memset(found.magnitudes, 0, sums * sizeof *found.magnitudes);
    kernels.histogram(chunk, changed, bins, every, found.words, found.magnitudes, scratch);
    return found;
}

// Whether row flags cost less than they save in the masks.
bool flags_save(const RowFlags& rows, size_t number, const Histogram& all, const Histogram& active,
                size_t bins, const DraftCosts& costs) {
    const int64_t* log2 = costs.blocks.log2;
    int64_t plain = 0, flagged = 0, ones = 0;
    for (size_t bin = 0; bin < bins; ++bin) {
        if (all.words[bin] == 0) continue;
        const int64_t changed = active.changed(bin);
        plain += mask_cost(all.words[bin], changed, log2);
        flagged += mask_cost(active.words[bin], changed, log2);
    }
    for (size_t row = 0; row < number; ++row) ones += rows.active[row];
    const int64_t flags = mask_cost(int64_t(number), ones, log2);
    return flagged + flags + flags / 10 + costs.margin < plain;
}

// Chooses the contexts from the bins up to `last`, which holds the largest key. Overwrites the
// histogram.
bool choose_bounds(const Histogram& histogram, const Bounds& bins, size_t last,
                   const DraftCosts& costs, Draft& draft, Scratch& scratch) {
    size_t used[kMostCutBins], number = 0;
    int64_t changes = 0;
    for (size_t bin = 0; bin <= last; ++bin) {
        if (histogram.words[bin] == 0 && bin != last) continue;
        if (number == kMostCutBins) return false;
        histogram.words[number] = histogram.words[bin];
        int64_t* const counts = histogram.magnitudes + number * kMagnitudeClasses;
        std::memmove(counts, histogram.magnitudes + bin * kMagnitudeClasses,
                     kMagnitudeClasses * sizeof *counts);
        changes += histogram.changed(number);
        used[number++] = bin;
    }
    if (uint64_t(changes) <= costs.few) return true;
    int64_t cost;
    draft.contexts =
        cheapest_cut(histogram.words, histogram.magnitudes, number, costs.blocks.log2,
                     costs.context, costs.empty, costs.most_contexts, draft.bounds, &cost, scratch);
    for (size_t c = 0; c < draft.contexts; ++c) {
        draft.bounds[c] = bins.upper[used[draft.bounds[c] - 1]];
    }
    return true;
}

}  // namespace

size_t flag_rows(const uint8_t* mask, size_t words, uint64_t length, uint64_t offset,
                 uint8_t* flags) {
    size_t active = 0;
    for (size_t place = 0, row = 0; place < words; ++row) {
        const auto room = size_t(length - (row ? 0 : offset));
        const size_t run = words - place < room ? words - place : room;
        active += flags[row] = any_set(mask, place, run);
        place += run;
    }
    return active;
}

size_t Draft::size() const {
    size_t size = flag_bytes(rows);
    each_stream(*this, [&](const Span& span) { size += span.size; });
    return size;
}

void Draft::join(uint8_t* out) const {
    std::memset(out, 0, flag_bytes(rows));
    for (size_t row = 0; row < rows.size; ++row) {
        out[row / 8] |= uint8_t((rows.data[row] != 0) << row % 8);
    }
    out += flag_bytes(rows);
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
    uint64_t end = flag_bytes(rows);
    add(end);
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
    Chunk plain = chunk;
    plain.rows = {};
    const Chunk* coded = &plain;
    if (changed.number > costs.few || chunk.rows.active) {
        Histogram histogram = histogram_of(kernels, plain, changed, bins, every, scratch);
        if (chunk.rows.active) {
            const Histogram active = histogram_of(kernels, chunk, changed, bins, every, scratch);
            const size_t rows = rows_of(chunk.words, chunk.rows.length, chunk.rows.offset);
            if (flags_save(chunk.rows, rows, histogram, active, bins.number, costs)) {
                coded = &chunk;
                histogram = active;
                draft.rows = {chunk.rows.active, rows};
            }
        }
        if (!choose_bounds(histogram, bins, last, costs, draft, scratch)) return false;
    }
    kernels.partition(*coded, changed, {draft.bounds, draft.contexts}, draft.streams, scratch);
    return true;
}

}  // namespace rlsparse
