// Splitting a chunk by context, 64 words at a time.
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

template <class W>
class GroupSplitter {
  public:
    GroupSplitter(const Chunk& chunk, const Changed& changed, const Contexts<W>& contexts,
                  const Populous& populous, Scratch& scratch)
        : chunk_(chunk),
          changed_(changed),
          contexts_(contexts),
          populous_(populous),
          has_rest_(populous.named > populous.most),
          scratch_(scratch) {}

    void run(Split& out) {
        collect(out);
        if (has_rest_) split_rest(out);
        for (size_t name = 1; name <= populous_.named; ++name) {
            out.counts[name] = found_.masks[name].finish(out.bitmaps[name]);
            out.changed[name] = found_.masks[name].ones;
        }
    }

  private:
    void collect(Split& out) {
        const size_t most = populous_.most;
        for (size_t name = has_rest_ ? 0 : 1; name <= most; ++name) {
            start_mask(name, chunk_.words, out);
        }
        // Memory that is not written costs nothing.
        if (has_rest_) rest_ = scratch_.array<uint8_t>(chunk_.words + 64);
        found_.rest = rest_;
        found_.changed = out.names;
        Tiles<W> tiles(chunk_, contexts_, scratch_);
        uint64_t changed[kGroups];
        while (tiles.next()) {
            tiles.read_mask(changed_.mask, changed);
            RLSPARSE_BY_MOST(most, collect_names, tiles.find_names(), tiles.groups(), has_rest_,
                             changed, found_);
        }
    }

    // Gives the bits of the rest to its contexts.
    void split_rest(Split& out) {
        const size_t words = size_t(found_.rest - rest_);
        found_.masks[0].finish(out.bitmaps[0]);
        std::memset(found_.rest, 0, 64);
        const size_t groups = groups_of(words);
        for (size_t name = populous_.most + 1; name <= populous_.named; ++name) {
            start_mask(name, words, out);
            BitAppender mask = found_.masks[name];
            for (size_t g = 0; g < groups; ++g) {
                const uint64_t members = Simd::equal(rest_ + g * 64, uint8_t(name));
                const uint64_t changed = load64(out.bitmaps[0] + g * 8);
                mask.put(Simd::extract(changed, members), popcount(members));
            }
            found_.masks[name] = mask;
        }
    }

    void start_mask(size_t name, size_t words, Split& out) {
        found_.masks[name].to = out.bitmaps[name] = scratch_.array<uint8_t>(words / 8 + 16);
    }

    const Chunk& chunk_;
    const Changed& changed_;
    const Contexts<W>& contexts_;
    const Populous& populous_;
    const bool has_rest_;
    Scratch& scratch_;
    uint8_t* rest_ = nullptr;
    Collected found_;
};
