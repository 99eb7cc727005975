// Encoding: from the words of a chunk to the streams of its contexts, in one pass over the base.
// Included inside the namespace of one instruction set, which has defined `Simd`.

// Appends bits byte by byte. The memory needs room for 8 bytes beyond the last bit.
struct BitAppender {
    uint8_t* to = nullptr;
    uint64_t open = 0;  // the bits of the byte at `to`
    int filled = 0;
    uint64_t ones = 0;  // bits appended that are 1

    // `count` <= 64; the bits above the lowest `count` are zero.
    void put(uint64_t bits, int count) {
        ones += uint64_t(popcount(bits));
        if (count > 56) {
            put_some(bits & 0xFFFFFFFF, 32);
            bits >>= 32;
            count -= 32;
        }
        put_some(bits, count);
    }

    // Ends the bits with zeros up to the end of a word, and says how many they were.
    uint64_t finish(const uint8_t* start) {
        store64(to, open);
        return uint64_t(to - start) * 8 + uint64_t(filled);
    }

  private:
    void put_some(uint64_t bits, int count) {
        open |= bits << filled;
        store64(to, open);
        filled += count;
        const int bytes = filled >> 3;
        to += bytes;
        open >>= 8 * bytes;
        filled &= 7;
    }
};

// What one pass over a chunk collects.
struct Collected {
    BitAppender masks[kMaxContexts + 1];  // by name; that of name 0 is for the rest
    uint8_t* rest;                        // names of the rest, closed up
    uint8_t* changed;                     // names of the changed words, closed up
};

template <int kMost>
void collect_names(const uint8_t* names, size_t groups, bool has_rest, const uint64_t* changed,
                   Collected& to) {
    BitAppender masks[kMost + 1];
    for (int name = 0; name <= kMost; ++name) masks[name] = to.masks[name];
    uint8_t *rest = to.rest, *changed_names = to.changed;
    for (size_t g = 0; g < groups; ++g, names += 64) {
        for (int name = 1; name <= kMost; ++name) {
            const uint64_t members = Simd::equal(names, uint8_t(name));
            masks[name].put(Simd::extract(changed[g], members), popcount(members));
        }
        if (has_rest) {
            const uint64_t members = Simd::above(names, kMost);
            masks[0].put(Simd::extract(changed[g], members), popcount(members));
            Simd::gather(names, members, rest);
            rest += popcount(members);
        }
        Simd::gather(names, changed[g], changed_names);
        changed_names += popcount(changed[g]);
    }
    for (int name = 0; name <= kMost; ++name) to.masks[name] = masks[name];
    to.rest = rest, to.changed = changed_names;
}

// The state of splitting one chunk.
template <class W>
class Encoder {
  public:
    Encoder(const Chunk& chunk, const Changed& changed, const Bounds& bounds, Scratch& scratch)
        : chunk_(chunk),
          changed_(changed),
          map_(chunk.width, chunk.order),
          contexts_(bounds, map_, scratch),
          scratch_(scratch) {
        bool wanted[kMaxContexts];
        for (size_t c = 0; c < bounds.number; ++c) wanted[c] = true;
        populous_.choose(chunk, contexts_, wanted, Populous::kMost, chunk.words + 1);
        has_rest_ = populous_.named > populous_.most;
    }

    void run(Streams& out) {
        collect();
        if (has_rest_) split_rest();
        uint64_t starts[kMaxContexts + 1] = {}, total = 0;
        for (size_t c = 0; c < contexts_.number(); ++c) {
            const size_t name = populous_.names[c];
            out.counts[c] = found_.masks[name].finish(bitmaps_[name]);
            const uint64_t k = out.changed[c] = found_.masks[name].ones;
            out.masks[c] = encode_mask(bitmaps_[name], out.counts[c], k, scratch_);
            starts[name] = total;
            total += k;
        }
        starts[0] = total;  // changed words in no context, which are not coded
        const auto* before = static_cast<const W*>(changed_.before);
        const auto* after = static_cast<const W*>(changed_.after);
        auto* steps = scratch_.array<Signed<W>>(changed_.number + 64);
        for (size_t i = 0; i < changed_.number; ++i) steps[i] = map_.step(before[i], after[i]);
        auto* ordered = scratch_.array<Signed<W>>(changed_.number + 64);
        Simd::sort_steps(changed_names_, changed_.number, populous_.named, steps, starts, ordered);
        std::memset(ordered + total, 0, 64 * sizeof(W));
        encode_steps<W>(ordered, total, chunk_.width, out, scratch_);
    }

  private:
    void collect() {
        const size_t most = populous_.most;
        for (size_t name = has_rest_ ? 0 : 1; name <= most; ++name) start_mask(name, chunk_.words);
        // Memory that is not written costs nothing.
        if (has_rest_) rest_ = scratch_.array<uint8_t>(chunk_.words + 64);
        changed_names_ = scratch_.array<uint8_t>(changed_.number + 128);
        found_.rest = rest_;
        found_.changed = changed_names_;
        Tiles<W> tiles(chunk_, contexts_, scratch_);
        uint64_t changed[kGroups];
        while (tiles.next()) {
            changed[tiles.groups() - 1] = 0;
            std::memcpy(changed, changed_.mask + tiles.start() / 8, (tiles.words() + 7) / 8);
            RLSPARSE_BY_MOST(most, collect_names, tiles.find_names(), tiles.groups(), has_rest_,
                             changed, found_);
        }
        std::memset(found_.changed, 0, 64);
    }

    // Gives the bits of the rest to its contexts.
    void split_rest() {
        const size_t words = size_t(found_.rest - rest_);
        found_.masks[0].finish(bitmaps_[0]);
        std::memset(found_.rest, 0, 64);
        const size_t groups = groups_of(words);
        for (size_t name = populous_.most + 1; name <= populous_.named; ++name) {
            start_mask(name, words);
            BitAppender mask = found_.masks[name];
            for (size_t g = 0; g < groups; ++g) {
                const uint64_t members = Simd::equal(rest_ + g * 64, uint8_t(name));
                const uint64_t changed = load64(bitmaps_[0] + g * 8);
                mask.put(Simd::extract(changed, members), popcount(members));
            }
            found_.masks[name] = mask;
        }
    }

    void start_mask(size_t name, size_t words) {
        found_.masks[name].to = bitmaps_[name] = scratch_.array<uint8_t>(words / 8 + 16);
    }

    const Chunk& chunk_;
    const Changed& changed_;
    const WordMap<W> map_;
    Contexts<W> contexts_;
    Populous populous_;
    Scratch& scratch_;
    bool has_rest_;
    uint8_t *rest_ = nullptr, *changed_names_ = nullptr;
    uint8_t* bitmaps_[kMaxContexts + 1] = {};
    Collected found_;
};

template <class W>
void partition_words(const Chunk& chunk, const Changed& changed, const Bounds& bounds, Streams& out,
                     Scratch& scratch) {
    Encoder<W>(chunk, changed, bounds, scratch).run(out);
}
