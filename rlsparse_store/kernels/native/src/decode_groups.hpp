// Decoding 64 words at a time.
// Included inside the namespace of one instruction set, which has defined `Simd`.
//
// The second pass finds, for 64 words at a time, which changed, from each context's mask; then, for
// 64 changed words at a time, their steps; and moves them. Where no context has many words, the
// first pass notes which words are in one, and the second does not look for contexts again. A base
// that changed may take a place beyond its end: at each tile it is brought back.

// Counts the words of the populous contexts in a tile, by name, and closes up the names of the
// rest.
template <int kMost>
uint8_t* count_names(const uint8_t* names, size_t groups, bool has_rest, uint64_t* counts,
                     uint8_t* rest) {
    uint64_t count[kMost + 1] = {};
    for (size_t g = 0; g < groups; ++g, names += 64) {
        for (int name = 1; name <= kMost; ++name) {
            count[name] += uint64_t(popcount(Simd::equal(names, uint8_t(name))));
        }
        if (!has_rest) continue;
        const uint64_t others = Simd::above(names, kMost);
        Simd::gather(names, others, rest);
        rest += popcount(others);
    }
    for (int name = 1; name <= kMost; ++name) counts[name] += count[name];
    return rest;
}

// Finds which words of a tile have a name, and closes up their names.
inline uint8_t* take_named(const uint8_t* names, size_t groups, uint64_t* taken, uint8_t* to) {
    for (size_t g = 0; g < groups; ++g, names += 64) {
        taken[g] = Simd::above(names, 0);
        Simd::gather(names, taken[g], to);
        to += popcount(taken[g]);
    }
    return to;
}

// Finds which words of a tile changed, and closes up the names of their contexts. Masks stand by
// name; that of name 0 is for the rest. Returns how many words changed.
template <int kMost>
size_t mark_changed(const uint8_t* names, size_t groups, bool has_rest, Mask* masks,
                    uint64_t* changed, uint8_t* changed_names) {
    Mask mask[kMost + 1];
    for (int name = 0; name <= kMost; ++name) mask[name] = masks[name];
    uint8_t* to = changed_names;
    for (size_t g = 0; g < groups; ++g, names += 64) {
        uint64_t found = 0;
        for (int name = 1; name <= kMost; ++name) {
            const uint64_t members = Simd::equal(names, uint8_t(name));
            found |= Simd::deposit(mask[name].take(popcount(members)), members);
        }
        if (has_rest) {
            const uint64_t members = Simd::above(names, kMost);
            found |= Simd::deposit(mask[0].take(popcount(members)), members);
        }
        changed[g] = found;
        Simd::gather(names, found, to);
        to += popcount(found);
    }
    for (int name = 0; name <= kMost; ++name) masks[name].place = mask[name].place;
    return size_t(to - changed_names);
}

// The state of decoding one chunk.
template <class W>
class GroupDecoder {
  public:
    GroupDecoder(const Chunk& chunk, const Bounds& bounds, const uint64_t* numbers,
                 Scratch& scratch)
        : chunk_(chunk),
          map_(chunk.width, chunk.order),
          contexts_(bounds, map_, scratch),
          numbers_(numbers),
          scratch_(scratch) {
        populous_.choose(chunk, contexts_, numbers, kFew);
        has_rest_ = populous_.named > populous_.most;
    }

    const char* run(Span content, Result<W>& out) {
        count();
        if (const char* problem = coded_.read(content, chunk_, populous_, contexts_.number(),
                                              numbers_, counts_, scratch_)) {
            return problem;
        }
        if (has_rest_) join_rest();
        return is_sparse() ? write_sparse(out) : write_dense(out);
    }

  private:
    static constexpr size_t kFew = 3;

    void count() {
        // Memory that is not written costs nothing.
        if (has_rest_) rest_ = scratch_.array<uint8_t>(chunk_.words + kTile + 64);
        if (is_sparse()) taken_ = scratch_.array<uint64_t>(groups_of(chunk_.words));
        uint8_t* rest = rest_;
        Tiles<W> tiles(chunk_, contexts_, scratch_);
        while (tiles.next()) {
            if (is_sparse()) {
                rest = take_named(tiles.find_names(), tiles.groups(), taken_ + tiles.start() / 64,
                                  rest);
            } else {
                rest = RLSPARSE_BY_MOST(populous_.most, count_names, tiles.find_names(),
                                        tiles.groups(), has_rest_, counts_, rest);
            }
        }
        if (!has_rest_) return;
        rest_words_ = size_t(rest - rest_);
        std::memset(rest, 0, 64);
        for (size_t start = 0; start < rest_words_; start += kTile) {
            const size_t left = rest_words_ - start;
            Simd::count_names(rest_ + start, groups_of(left < kTile ? left : kTile),
                              populous_.named, counts_ + 1);
        }
    }

    // Whether no context is populous: most words are in none, then, and the second pass has to look
    // at those that changed only.
    bool is_sparse() const { return populous_.most == 0 && has_rest_; }

    // Makes one mask of those of the rest.
    void join_rest() {
        const size_t groups = groups_of(rest_words_);
        uint8_t* bitmap = scratch_.array<uint8_t>(groups * 8 + kSlack);
        for (size_t g = 0; g < groups; ++g) {
            uint64_t changed = 0;
            for (size_t name = populous_.most + 1; name <= populous_.named; ++name) {
                const uint64_t members = Simd::equal(rest_ + g * 64, uint8_t(name));
                const uint64_t bits = coded_.masks[name].take(popcount(members));
                changed |= Simd::deposit(bits, members);
            }
            store64(bitmap + g * 8, changed);
        }
        std::memset(bitmap + groups * 8, 0, kSlack);
        coded_.masks[0] = {bitmap, 0, rest_words_};
    }

    // Moves the words that changed. Where few did, the others are not even read; all are asked for,
    // because that is faster than to wait for some of them.
    const char* write_sparse(Result<W>& out) {
        uint64_t* changed = find_changed();
        const uint8_t* names = changed_names();
        int8_t* steps = scratch_.array<int8_t>(coded_.changed + 128);
        Simd::take_steps(names, coded_.changed, populous_.named, coded_.steps.near,
                         coded_.places.near, steps);
        RowCheck rows(chunk_);
        for (size_t start = 0; start < chunk_.words; start += kTile) {
            const size_t words = tile_words(chunk_, start);
            const W* base = static_cast<const W*>(chunk_.base) + start;
            W* result = out.tile(start);
            size_t found = 0;
            for (size_t first = 0; first < words; first += kPart) {
                const size_t number = words - first < kPart ? words - first : kPart;
                prefetch<1>(base + first, chunk_.words - start - first, number);
                size_t some = 0;
                for (size_t g = 0; g < groups_of(number); ++g) {
                    some += size_t(popcount(changed[first / 64 + g]));
                }
                Simd::move_words(base + first, number, changed + first / 64, steps + found, some,
                                 map_, result + first);
                found += some;
            }
            move_wide(names, steps, found, changed, result);
            names += found, steps += found;
            out.end_tile(start + words);
            rows.add_tile(changed, words);
            changed += kGroups;
        }
        return rows.finish();
    }

    // Which words of the chunk changed, where is_sparse(): in place of which are in a context.
    uint64_t* find_changed() {
        for (size_t g = 0; g < groups_of(chunk_.words); ++g) {
            const uint64_t taken = taken_[g];
            taken_[g] = Simd::deposit(coded_.masks[0].take(popcount(taken)), taken);
        }
        return taken_;
    }

    // The names of the changed words of the rest, closed up.
    const uint8_t* changed_names() {
        uint8_t* names = scratch_.array<uint8_t>(coded_.changed + 128);
        uint8_t* to = names;
        for (size_t start = 0; start < rest_words_; start += 64) {
            const uint64_t bits = load64(coded_.masks[0].bitmap + start / 8);
            Simd::gather(rest_ + start, bits, to);
            to += popcount(bits);
        }
        std::memset(to, 0, 64);
        return names;
    }

    const char* write_dense(Result<W>& out) {
        alignas(64) uint8_t names[kTile + 64];  // of changed words
        alignas(64) int8_t steps[kTile + 64];
        uint64_t changed[kGroups];
        RowCheck rows(chunk_);
        Tiles<W> tiles(chunk_, contexts_, scratch_);
        while (tiles.next()) {
            for (size_t name = 0; name <= populous_.most; ++name) coded_.masks[name].begin_tile();
            coded_.places.begin_tile(populous_.named);
            const size_t found =
                RLSPARSE_BY_MOST(populous_.most, mark_changed, tiles.find_names(), tiles.groups(),
                                 has_rest_, coded_.masks, changed, names);
            std::memset(names + found, 0, 64);
            Simd::take_steps(names, found, populous_.named, coded_.steps.near, coded_.places.near,
                             steps);
            const W* base = static_cast<const W*>(chunk_.base) + tiles.start();
            W* result = out.tile(tiles.start());
            if (found) {
                Simd::move_words(base, tiles.words(), changed, steps, found, map_, result);
                move_wide(names, steps, found, changed, result);
            } else if (result != base) {
                std::memcpy(result, base, tiles.words() * sizeof(W));
            }
            out.end_tile(tiles.start() + tiles.words());
            rows.add_tile(changed, tiles.words());
        }
        return rows.finish();
    }

    // Moves the words of a tile whose steps fit no byte; they were left as they are.
    void move_wide(const uint8_t* names, const int8_t* steps, size_t found, const uint64_t* changed,
                   W* result) {
        size_t group = 0, before = 0;  // changed words before the group
        for (size_t start = 0; start < found; start += 64) {
            uint64_t wide = Simd::equal(reinterpret_cast<const uint8_t*>(steps + start), 0);
            wide &= inside_group(found, start / 64);
            for (; wide; wide &= wide - 1) {
                const size_t i = start + size_t(__builtin_ctzll(wide));
                size_t count;
                while ((count = size_t(popcount(changed[group]))) <= i - before) {
                    before += count;
                    ++group;
                }
                const size_t name = names[i];
                if (coded_.places.wide[name] >= coded_.places.wide_end[name]) continue;
                const uint64_t bit = Simd::deposit(uint64_t(1) << (i - before), changed[group]);
                W& word = result[group * 64 + size_t(__builtin_ctzll(bit))];
                word = map_.moved(word, coded_.steps.wide[coded_.places.wide[name]++]);
            }
        }
    }

    const Chunk& chunk_;
    const WordMap<W> map_;
    Contexts<W> contexts_;
    Populous populous_;
    const uint64_t* numbers_;
    Scratch& scratch_;
    bool has_rest_;
    uint8_t* rest_ = nullptr;    // the names of the rest, closed up
    uint64_t* taken_ = nullptr;  // where is_sparse(): which words of the chunk those are
    size_t rest_words_ = 0;
    uint64_t counts_[kMaxContexts + 1] = {};  // by name
    Coded<W> coded_;
};
