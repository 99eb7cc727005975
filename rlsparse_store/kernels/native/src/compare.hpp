// Comparing base and tuned words: the one pass that reads both.
// Included inside the namespace of one instruction set, which has defined `Simd`.

// Writes which words differ to `mask`, and those, before and after, to lists that have room for all
// words. The lists are written 64 words at a time, and no more were taken so far than compared.
template <class W>
size_t list_changes(const W* base, const W* tuned, size_t words, uint8_t* mask, W* before,
                    W* after) {
    size_t found = 0;
    auto compare = [&](const W* old, const W* now, W* to_before, W* to_after) {
        const uint64_t changed = Simd::differ(old, now);
        Simd::gather(old, changed, to_before);
        Simd::gather(now, changed, to_after);
        return changed;
    };
    const size_t whole = words / 64 * 64;
    for (size_t start = 0; start < whole; start += 64) {
        prefetch(base + start, words - start, 64);
        prefetch(tuned + start, words - start, 64);
        const uint64_t changed =
            compare(base + start, tuned + start, before + found, after + found);
        store64(mask + start / 8, changed);
        found += size_t(popcount(changed));
    }
    if (const size_t rest = words - whole) {
        W old[64] = {}, now[64] = {}, rest_before[64], rest_after[64];
        std::memcpy(old, base + whole, rest * sizeof(W));
        std::memcpy(now, tuned + whole, rest * sizeof(W));
        const uint64_t changed = compare(old, now, rest_before, rest_after);
        const auto number = size_t(popcount(changed));
        std::memcpy(mask + whole / 8, &changed, (rest + 7) / 8);
        std::memcpy(before + found, rest_before, number * sizeof(W));
        std::memcpy(after + found, rest_after, number * sizeof(W));
        found += number;
    }
    return found;
}

template <class W>
Changes compare_words(const Chunk& chunk, const void* tuned, uint8_t* mask, void* before,
                      void* after) {
    const WordMap<W> map(chunk.width, chunk.order);
    auto* list = static_cast<W*>(before);
    const size_t number =
        list_changes(static_cast<const W*>(chunk.base), static_cast<const W*>(tuned), chunk.words,
                     mask, list, static_cast<W*>(after));
    W top = 0;
    for (size_t i = 0; i < number; ++i) {
        const W key = map.key(list[i]);
        top = key > top ? key : top;
    }
    return {number, top};
}
