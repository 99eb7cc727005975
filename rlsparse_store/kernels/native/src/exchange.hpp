// Moving words between what they were and what they became, in place.
// Included inside the namespace of one instruction set, which has defined `Simd`.

// Asks for the group a page after word `start`: one by one, because this is done in a single pass,
// and further than the processor's own prefetching, which stops at the end of a page.
template <class W, int kForWriting = 0>
void prefetch_group(const W* words, size_t number, size_t start) {
    constexpr size_t kAhead = 4096 / sizeof(W);
    if (number - start < kAhead + 64) return;
    const auto* next = reinterpret_cast<const char*>(words + start + kAhead);
    for (size_t at = 0; at < 64 * sizeof(W); at += 64) __builtin_prefetch(next + at, kForWriting);
}

// Writes which words differ to `mask`, and those of `before` to `values`, which has room for all
// words. Returns how many differ.
template <class W>
size_t record_words(const void* before_words, const void* after_words, size_t words, uint8_t* mask,
                    void* values) {
    const auto *before = static_cast<const W*>(before_words),
               *after = static_cast<const W*>(after_words);
    W* to = static_cast<W*>(values);
    const size_t whole = words / 64 * 64;
    for (size_t start = 0; start < whole; start += 64) {
        prefetch_group(before, words, start);
        prefetch_group(after, words, start);
        const uint64_t changed = Simd::differ(before + start, after + start);
        store64(mask + start / 8, changed);
        if (!changed) continue;
        // Up to 64 values are written, and no more were taken so far than `start`: there is room.
        Simd::gather(before + start, changed, to);
        to += popcount(changed);
    }
    if (const size_t rest = words - whole) {
        W old[64] = {}, now[64] = {}, moved[64];
        std::memcpy(old, before + whole, rest * sizeof(W));
        std::memcpy(now, after + whole, rest * sizeof(W));
        const uint64_t changed = Simd::differ(old, now);
        std::memcpy(mask + whole / 8, &changed, (rest + 7) / 8);
        Simd::gather(old, changed, moved);
        const auto number = size_t(popcount(changed));
        std::memcpy(to, moved, number * sizeof(W));
        to += number;
    }
    return size_t(to - static_cast<W*>(values));
}

// The bits of the groups from word `start` on, of a mask of `words` bits; returns how many are set.
inline size_t read_mask(const uint8_t* mask, size_t words, size_t start, uint64_t* groups) {
    const size_t number = words - start < kTile ? words - start : kTile;
    const size_t last = groups_of(number) - 1;
    groups[last] = 0;
    std::memcpy(groups, mask + start / 8, (number + 7) / 8);
    if (number % 64) groups[last] &= (uint64_t(1) << number % 64) - 1;
    size_t set = 0;
    for (size_t g = 0; g <= last; ++g) set += size_t(popcount(groups[g]));
    return set;
}

// Swaps the words of a tile whose bits are set with those in `from`, and writes what they were to
// `to`; both have room for 64 more. `many`: most of the memory will be needed, so it is asked for.
template <class W>
void swap_tile(W* words, size_t number, size_t tile, const uint64_t* groups, bool many,
               const W* from, W* to) {
    const size_t stop = number - tile < kTile ? number : tile + kTile;
    for (size_t start = tile; start < stop; start += 64) {
        const uint64_t bits = *groups++;
        if (many) prefetch_group<W, 1>(words, number, start);
        if (!bits) continue;
        if (stop - start >= 64) {
            Simd::swap(words + start, bits, from, to);
        } else {
            W room[64] = {};  // a copy, as a whole group is read and written
            std::memcpy(room, words + start, (stop - start) * sizeof(W));
            Simd::swap(room, bits, from, to);
            std::memcpy(words + start, room, (stop - start) * sizeof(W));
        }
        from += popcount(bits);
        to += popcount(bits);
    }
}

// Returns what is wrong with the mask, or nullptr. Nothing is written before all of it was checked.
template <class W>
const char* exchange_words(void* all_words, size_t number, const uint8_t* mask, void* all_values,
                           size_t left, Scratch& scratch) {
    auto *words = static_cast<W*>(all_words), *values = static_cast<W*>(all_values);
    uint64_t groups[kGroups];
    if (number % 8 && mask[number / 8] >> number % 8) return "a bit of the mask is set for no word";
    size_t set = 0;
    for (size_t start = 0; start < number; start += kTile) {
        set += read_mask(mask, number, start, groups);
    }
    if (set != left) return "not one value for each bit of the mask";
    // A tile's values are swapped by way of copies: vectors reach beyond the last value, and one
    // that loads what another has just stored in part would wait for it.
    W* incoming = scratch.array<W>(kTile + 64);
    W* outgoing = scratch.array<W>(kTile + 64);
    for (size_t tile = 0; tile < number; tile += kTile) {
        const size_t found = read_mask(mask, number, tile, groups);
        if (found == 0) continue;
        if (found > left) return "the mask changed while it was read";
        std::memcpy(incoming, values, found * sizeof(W));
        swap_tile(words, number, tile, groups, found >= kGroups, incoming, outgoing);
        std::memcpy(values, outgoing, found * sizeof(W));
        values += found;
        left -= found;
    }
    return nullptr;
}
