// Decoding: from streams to the tuned words of a chunk, in two passes over its tiles.
// Included inside the namespace of one instruction set, which has defined `Simd`.
//
// The first pass counts the words of each context, without which no mask can be read. The second
// one finds, for 64 words at a time, which changed, from each context's mask at its own place;
// then, for 64 changed words at a time, their steps, again from each context's own place; and moves
// them. So nothing is ever sorted by context. Where no context has many words, the first pass
// notes which words are in one, and the second does not look for contexts again.
//
// The base may be mapped and change between the passes: the result is wrong then, and its check
// says so, but places are brought back to their ends at each tile, so that nothing is read or
// written where it should not be.

// Checks that every row that is flagged holds a changed word.
class RowCheck {
  public:
    explicit RowCheck(const Chunk& chunk)
        : rows_(chunk.rows), row_left_(chunk.rows.length - chunk.rows.offset) {}

    // Takes the changed words among the next `words` <= 64.
    void add(uint64_t changed, size_t words) {
        while (words) {
            const int run = row_left_ < words ? int(row_left_) : int(words);
            const uint64_t mine = run == 64 ? changed : changed & ((uint64_t(1) << run) - 1);
            seen_ |= mine != 0;
            changed = run == 64 ? 0 : changed >> run;
            words -= size_t(run);
            row_left_ -= uint64_t(run);
            if (row_left_ == 0) end_row();
        }
    }

    // Whether it held for every row; the last one may end with the chunk.
    bool finish() {
        if (row_left_ != rows_.length) end_row();
        return sound_;
    }

  private:
    void end_row() {
        sound_ &= rows_.active[row_] == 0 || seen_;
        ++row_;
        row_left_ = rows_.length;
        seen_ = false;
    }

    RowFlags rows_;
    uint64_t row_left_;
    size_t row_ = 0;
    bool seen_ = false;
    bool sound_ = true;
};

// Counts the words of the populous contexts in a tile, by name, and closes up the names of the
// rest.
template <int kMost>
uint8_t* count_names(const uint8_t* names, size_t groups, bool has_rest, uint64_t* counts,
                     uint8_t* rest) {
    uint64_t count[kMost + 1] = {};
    for (size_t g = 0; g < groups; ++g, names += 64) {
        for (int name = 1; name <= kMost; ++name) {
            count[name] += uint64_t(__builtin_popcountll(Simd::equal(names, uint8_t(name))));
        }
        if (!has_rest) continue;
        const uint64_t others = Simd::above(names, kMost);
        Simd::gather(names, others, rest);
        rest += __builtin_popcountll(others);
    }
    for (int name = 1; name <= kMost; ++name) counts[name] += count[name];
    return rest;
}

// Finds which words of a tile have a name, and closes up their names.
inline uint8_t* take_named(const uint8_t* names, size_t groups, uint64_t* taken, uint8_t* to) {
    for (size_t g = 0; g < groups; ++g, names += 64) {
        taken[g] = Simd::above(names, 0);
        Simd::gather(names, taken[g], to);
        to += __builtin_popcountll(taken[g]);
    }
    return to;
}

// As take_named, word by word: the places of these words in the tile are closed up, too.
inline uint8_t* take_named_words(const uint8_t* names, size_t groups, uint16_t* places,
                                 uint8_t* to) {
    size_t taken = 0;
    for (size_t start = 0; start < groups * 64; start += 8) {
        if (load64(names + start) == 0) continue;
        for (size_t i = start; i < start + 8; ++i) {
            const uint8_t name = names[i];
            to[taken] = name;
            places[taken] = uint16_t(i);
            taken += name != 0;
        }
    }
    return to + taken;
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
            found |= Simd::deposit(mask[name].take(__builtin_popcountll(members)), members);
        }
        if (has_rest) {
            const uint64_t members = Simd::above(names, kMost);
            found |= Simd::deposit(mask[0].take(__builtin_popcountll(members)), members);
        }
        changed[g] = found;
        Simd::gather(names, found, to);
        to += __builtin_popcountll(found);
    }
    for (int name = 0; name <= kMost; ++name) masks[name].place = mask[name].place;
    return size_t(to - changed_names);
}

// Where the next step of each context is, by name.
struct StepPlaces {
    uint64_t near[kMaxContexts + 1] = {}, near_end[kMaxContexts + 1] = {};
    size_t wide[kMaxContexts + 1] = {}, wide_end[kMaxContexts + 1] = {};

    void begin_tile(size_t named) {
        for (size_t name = 1; name <= named; ++name) {
            near[name] = near[name] < near_end[name] ? near[name] : near_end[name];
        }
    }
};

// The state of decoding one chunk.
template <class W>
class Decoder {
  public:
    Decoder(const Chunk& chunk, const Bounds& bounds, const uint64_t* numbers, Scratch& scratch)
        : chunk_(chunk),
          map_(chunk.width, chunk.order),
          contexts_(bounds, map_, scratch),
          numbers_(numbers),
          scratch_(scratch) {
        bool wanted[kMaxContexts];
        for (size_t c = 0; c < bounds.number; ++c) wanted[c] = numbers[c] != 0;
        populous_.choose(chunk, contexts_, wanted, Simd::kByWord ? 0 : Populous::kMost, kFew);
        has_rest_ = populous_.named > populous_.most;
    }

    const char* run(Span content, Result<W>& out) {
        count();
        if (const char* problem = read(content)) return problem;
        if constexpr (Simd::kByWord) return write_by_word(out);
        return is_sparse() ? write_sparse(out) : write_dense(out);
    }

  private:
    static constexpr size_t kFew = 3;

    void count() {
        // Memory that is not written costs nothing.
        if (has_rest_ || Simd::kByWord) rest_ = scratch_.array<uint8_t>(chunk_.words + kTile + 64);
        if (Simd::kByWord) {
            taken_places_ = scratch_.array<uint16_t>(chunk_.words + kTile);
            tile_ends_ = scratch_.array<uint8_t*>(chunk_.words / kTile + 1);
        } else if (is_sparse()) {
            taken_ = scratch_.array<uint64_t>(groups_of(chunk_.words));
        }
        uint8_t* rest = rest_;
        Tiles<W> tiles(chunk_, contexts_, scratch_);
        while (tiles.next()) {
            if constexpr (Simd::kByWord) {
                rest = take_named_words(tiles.names(), tiles.groups(),
                                        taken_places_ + (rest - rest_), rest);
                tile_ends_[tiles.start() / kTile] = rest;
            } else if (is_sparse()) {
                rest = take_named(tiles.names(), tiles.groups(), taken_ + tiles.start() / 64, rest);
            } else {
                rest = RLSPARSE_BY_MOST(populous_.most, count_names, tiles.names(), tiles.groups(),
                                        has_rest_, counts_, rest);
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

    // Reads masks and steps.
    const char* read(Span content) {
        // A copy with slack behind it, so that whole words can be loaded up to the end.
        uint8_t* copy = scratch_.array<uint8_t>(content.size + kSlack);
        if (content.size) std::memcpy(copy, content.data, content.size);
        std::memset(copy + content.size, 0, kSlack);
        Reader reader({copy, content.size});
        uint64_t total = 0;
        for (size_t c = 0; c < contexts_.number(); ++c) {
            if (numbers_[c] == 0) continue;
            const size_t name = populous_.names[c];
            const uint64_t n = counts_[name], k = numbers_[c];
            if (k > n) return "a context cannot have more changed words than words";
            if (const char* problem = decode_mask(reader, n, k, masks_[name], scratch_)) {
                return problem;
            }
            places_.near[name] = total;
            places_.near_end[name] = total += k;
        }
        if (const char* problem =
                decode_steps<W>(reader, size_t(total), chunk_.width, steps_, scratch_)) {
            return problem;
        }
        total_ = total;
        if (reader.left()) return "bytes are left after the last stream";
        for (size_t name = 1; name <= populous_.named; ++name) {
            places_.wide[name] = steps_.wide_before(places_.near[name]);
            places_.wide_end[name] = steps_.wide_before(places_.near_end[name]);
        }
        if (has_rest_ && !Simd::kByWord) join_rest();
        return nullptr;
    }

    // Makes one mask of those of the rest.
    void join_rest() {
        const size_t groups = groups_of(rest_words_);
        uint8_t* bitmap = scratch_.array<uint8_t>(groups * 8 + kSlack);
        for (size_t g = 0; g < groups; ++g) {
            uint64_t changed = 0;
            for (size_t name = populous_.most + 1; name <= populous_.named; ++name) {
                const uint64_t members = Simd::equal(rest_ + g * 64, uint8_t(name));
                const uint64_t bits = masks_[name].take(__builtin_popcountll(members));
                changed |= Simd::deposit(bits, members);
            }
            store64(bitmap + g * 8, changed);
        }
        std::memset(bitmap + groups * 8, 0, kSlack);
        masks_[0] = {bitmap, 0, rest_words_};
    }

    // Closes up the names and places of those words of a tile that changed.
    size_t take_changed(const uint8_t* from, const uint8_t* end, const uint16_t* from_places,
                        uint8_t* names, uint16_t* places) {
        size_t found = 0;
        for (; from != end; ++from, ++from_places) {
            names[found] = *from;
            places[found] = *from_places;
            found += masks_[*from].take_one();
        }
        return found;
    }

    // Looks at the words in contexts one by one.
    const char* write_by_word(Result<W>& out) {
        uint8_t names[kTile + 1];
        uint16_t places[kTile + 1];
        int8_t steps[kTile + 64];
        uint64_t changed[kGroups];
        RowCheck rows(chunk_);
        const uint8_t* name = rest_;
        const uint16_t* place = taken_places_;
        for (size_t start = 0; start < chunk_.words; start += kTile) {
            const size_t words = tile_words(chunk_, start);
            const uint8_t* end = tile_ends_[start / kTile];
            const size_t found = take_changed(name, end, place, names, places);
            place += end - name;
            name = end;
            std::memset(changed, 0, sizeof changed);
            for (size_t i = 0; i < found; ++i) {
                changed[places[i] / 64] |= uint64_t(1) << places[i] % 64;
            }
            Simd::take_steps(names, found, populous_.named, steps_.near, places_.near, steps);
            const W* base = static_cast<const W*>(chunk_.base) + start;
            W* result = out.tile(start);
            if (result != base) std::memcpy(result, base, words * sizeof(W));
            const WordMap<W> map = map_;
            for (size_t i = 0; i < found; ++i) {
                result[places[i]] = map.moved(result[places[i]], Signed<W>(steps[i]));
            }
            move_wide(names, steps, found, changed, result);
            out.end_tile(start + words);
            check_rows(rows, changed, words);
        }
        return end_rows(rows);
    }

    // Moves the words that changed. Where few did, the others are not even read; all are asked for,
    // because that is faster than to wait for some of them.
    const char* write_sparse(Result<W>& out) {
        uint64_t* changed = find_changed();
        const uint8_t* names = changed_names();
        int8_t* steps = scratch_.array<int8_t>(total_ + 128);
        Simd::take_steps(names, total_, populous_.named, steps_.near, places_.near, steps);
        RowCheck rows(chunk_);
        for (size_t start = 0; start < chunk_.words; start += kTile) {
            const size_t words = tile_words(chunk_, start);
            const W* base = static_cast<const W*>(chunk_.base) + start;
            W* result = out.tile(start);
            prefetch<1>(base, chunk_.words - start, words);
            size_t found = 0;
            for (size_t g = 0; g < groups_of(words); ++g) {
                found += size_t(__builtin_popcountll(changed[g]));
            }
            Simd::move_words(base, words, changed, steps, found, map_, result);
            move_wide(names, steps, found, changed, result);
            names += found, steps += found;
            out.end_tile(start + words);
            check_rows(rows, changed, words);
            changed += kGroups;
        }
        return end_rows(rows);
    }

    // Which words of the chunk changed, where is_sparse(): in place of which are in a context.
    uint64_t* find_changed() {
        for (size_t g = 0; g < groups_of(chunk_.words); ++g) {
            const uint64_t taken = taken_[g];
            taken_[g] = Simd::deposit(masks_[0].take(__builtin_popcountll(taken)), taken);
        }
        return taken_;
    }

    // The names of the changed words of the rest, closed up.
    const uint8_t* changed_names() {
        uint8_t* names = scratch_.array<uint8_t>(total_ + 128);
        uint8_t* to = names;
        for (size_t start = 0; start < rest_words_; start += 64) {
            const uint64_t bits = load64(masks_[0].bitmap + start / 8);
            Simd::gather(rest_ + start, bits, to);
            to += __builtin_popcountll(bits);
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
            for (size_t name = 0; name <= populous_.most; ++name) masks_[name].begin_tile();
            places_.begin_tile(populous_.named);
            const size_t found =
                RLSPARSE_BY_MOST(populous_.most, mark_changed, tiles.names(), tiles.groups(),
                                 has_rest_, masks_, changed, names);
            std::memset(names + found, 0, 64);
            Simd::take_steps(names, found, populous_.named, steps_.near, places_.near, steps);
            const W* base = static_cast<const W*>(chunk_.base) + tiles.start();
            W* result = out.tile(tiles.start());
            if (found) {
                Simd::move_words(base, tiles.words(), changed, steps, found, map_, result);
                move_wide(names, steps, found, changed, result);
            } else if (result != base) {
                std::memcpy(result, base, tiles.words() * sizeof(W));
            }
            out.end_tile(tiles.start() + tiles.words());
            check_rows(rows, changed, tiles.words());
        }
        return end_rows(rows);
    }

    void check_rows(RowCheck& rows, const uint64_t* changed, size_t words) const {
        if (!chunk_.rows.active) return;
        for (size_t start = 0; start < words; start += 64) {
            rows.add(changed[start / 64], words - start < 64 ? words - start : 64);
        }
    }

    const char* end_rows(RowCheck& rows) const {
        if (!chunk_.rows.active || chunk_.words == 0 || rows.finish()) return nullptr;
        return "a flagged row has no change";
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
                while ((count = size_t(__builtin_popcountll(changed[group]))) <= i - before) {
                    before += count;
                    ++group;
                }
                const size_t name = names[i];
                if (places_.wide[name] >= places_.wide_end[name]) continue;
                const uint64_t bit = Simd::deposit(uint64_t(1) << (i - before), changed[group]);
                W& word = result[group * 64 + size_t(__builtin_ctzll(bit))];
                word = map_.moved(word, steps_.wide[places_.wide[name]++]);
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
    uint8_t* rest_ = nullptr;           // the names of the rest, closed up
    uint16_t* taken_places_ = nullptr;  // where kByWord: the places of those words in their tiles
    uint8_t** tile_ends_ = nullptr;     // and of each tile the end of its names in rest_
    uint64_t* taken_ = nullptr;         // where is_sparse(): which words of the chunk those are
    size_t rest_words_ = 0;
    uint64_t total_ = 0;                      // changed words
    uint64_t counts_[kMaxContexts + 1] = {};  // by name, as are the next two
    Mask masks_[kMaxContexts + 1];
    StepPlaces places_;
    Steps<W> steps_;
};

template <class W>
const char* apply_words(const Chunk& chunk, const Output& out, const Bounds& bounds,
                        const uint64_t* numbers, Span content, Scratch& scratch) {
    Result<W> result(chunk, out, scratch);
    return Decoder<W>(chunk, bounds, numbers, scratch).run(content, result);
}
