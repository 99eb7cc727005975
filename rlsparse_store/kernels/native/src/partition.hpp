// Encoding: from the words of a chunk to the streams of its contexts.
// Included inside the namespace of one instruction set, which has defined `Simd`.

// One context's part of a chunk, while it is collected.
struct Context {
    List<uint8_t> bitmap;
    BitWriter writer;

    // Makes room for a tile.
    void reserve(Scratch& scratch) {
        const uint8_t* before = bitmap.data;
        bitmap.size = before ? size_t(writer.bits_since(before) / 8) : 0;
        bitmap.reserve(kTile / 8 + 16, scratch);
        if (!before) {
            writer = BitWriter(bitmap.data);
        } else {
            writer.move(before, bitmap.data);
        }
    }

    // Takes which of the context's words changed, of a tile of the dense words.
    void take(const Insides& insides, size_t context, const uint64_t* changed_words) {
        alignas(64) uint64_t member[kGroups];
        BitWriter to = writer;
        for (uint64_t left = insides.members(context, member); left; left &= left - 1) {
            const int g = __builtin_ctzll(left);
            to.put(Simd::extract(changed_words[g], member[g]), __builtin_popcountll(member[g]));
        }
        writer = to;
    }
};

// The steps of the changed words of a tile, in order.
template <class W>
void collect_steps(const W* base, const W* tuned, size_t groups, const WordMap<W>& map,
                   const uint64_t* changed, bool many, Signed<W>* all, Signed<W>* steps) {
    if (many) {
        for (size_t i = 0; i < groups * 64; ++i) all[i] = map.step(base[i], tuned[i]);
        gather_groups(all, groups, changed, steps);
        return;
    }
    for (size_t g = 0; g < groups; ++g) {
        for (uint64_t bits = changed[g]; bits; bits &= bits - 1) {
            const size_t i = g * 64 + size_t(__builtin_ctzll(bits));
            *steps++ = map.step(base[i], tuned[i]);
        }
    }
}

// The dense words of a chunk, which of them changed, and by how much.
template <class W>
struct ChangedWords {
    DenseWords dense;
    List<uint8_t> bitmap;
    List<Signed<W>> steps;

    ChangedWords(const Chunk& chunk, const void* tuned_words, const WordMap<W>& map,
                 const Codes<W>& coder, Scratch& scratch)
        : dense(chunk.words, scratch) {
        W* room = scratch.array<W>(2 * kTile);
        auto* all = scratch.array<Signed<W>>(kTile);
        bitmap.reserve(chunk.words / 8 + kTile / 8 + 16, scratch);
        BitWriter writer(bitmap.data);
        uint64_t live_words[kGroups], changed[kGroups];
        Live live(chunk);
        for (size_t start = 0; start < chunk.words; start += kTile) {
            const size_t words = tile_words(chunk, start), groups = groups_of(words);
            const W* base = whole_groups<W>(chunk.base, start, words, room);
            const W* tuned = whole_groups<W>(tuned_words, start, words, room + kTile);
            prefetch<W>(chunk, chunk.base, start, kTile);
            prefetch<W>(chunk, tuned_words, start, kTile);
            for (size_t g = 0; g < groups; ++g) live_words[g] = live.next();
            dense.add(base, start, groups, live_words, coder, scratch);
            size_t found = 0;
            for (size_t g = 0; g < groups; ++g) {
                const uint64_t taken = dense.taken[start / 64 + g];
                changed[g] = taken & Simd::differ(base + g * 64, tuned + g * 64);
                found += size_t(__builtin_popcountll(changed[g]));
                writer.put(Simd::extract(changed[g], taken), __builtin_popcountll(taken));
            }
            steps.reserve(found + 128, scratch);
            collect_steps(base, tuned, groups, map, changed, found >= kManyChanges, all,
                          steps.data + steps.size);
            steps.size += found;
        }
        dense.finish(scratch);
        std::memset(writer.finish(), 0, 8);
        steps.reserve(128, scratch);
    }
};

template <class W>
void partition_words(const Chunk& chunk, const void* tuned_words, const Bounds& bounds,
                     Streams& out, Scratch& scratch) {
    const WordMap<W> map(chunk.width, chunk.order);
    const Codes<W> coder(bounds, map, chunk.words, scratch);
    const size_t number = bounds.number;
    const ChangedWords<W> words(chunk, tuned_words, map, coder, scratch);
    const size_t total = words.steps.size;
    Context contexts[kMaxContexts];
    Insides insides(words.dense, coder.bounds(), number);
    auto* changed_codes = scratch.array<uint8_t>(total + 64);
    size_t found = 0;
    uint64_t changed[kGroups];
    for (size_t start = 0; start < words.dense.codes.size; start += kTile) {
        const size_t groups = insides.find(start);
        std::memcpy(changed, words.bitmap.data + start / 8, groups * 8);
        found +=
            gather_groups(words.dense.codes.data + start, groups, changed, changed_codes + found);
        for (size_t c = 0; c < number; ++c) {
            contexts[c].reserve(scratch);
            contexts[c].take(insides, c, changed);
        }
    }
    ContextOrder<W> order(changed_codes, total, coder);
    auto* steps = scratch.array<Signed<W>>(total + 64);
    order.each_place([&](size_t i, size_t place) { steps[place] = words.steps.data[i]; });
    std::memset(steps + total, 0, 64 * sizeof(W));
    for (size_t c = 0; c < number; ++c) {
        contexts[c].reserve(scratch);  // also where there were no words at all
        contexts[c].writer.finish();
        const size_t changes = order.count(c);
        out.changed[c] = changes;
        out.counts[c] = contexts[c].writer.bits_since(contexts[c].bitmap.data);
        out.masks[c] = encode_mask(contexts[c].bitmap.data, out.counts[c], changes, scratch);
    }
    encode_steps<W>(steps, total, chunk.width, out, scratch);
}
