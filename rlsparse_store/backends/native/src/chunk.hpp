// Histogram, partition and application over the words of a chunk, tile by tile.
// Included inside the namespace of one instruction set, which has defined `Simd`.

constexpr size_t kTile = 4096;  // words: a tile of everything fits the first-level cache
constexpr size_t kGroups = kTile / 64;

// From this many changed words in a tile on, its steps are treated as vectors.
constexpr size_t kManyChanges = kTile / 16;

inline size_t tile_words(const Chunk& chunk, size_t start) {
    return chunk.words - start < kTile ? chunk.words - start : kTile;
}

inline size_t groups_of(size_t words) { return (words + 63) / 64; }

// The words of a tile; of the last one a copy, so that whole groups can be read.
template <class W>
const W* whole_groups(const void* words, size_t start, size_t number, W* room) {
    const W* from = static_cast<const W*>(words) + start;
    if (number % 64 == 0) return from;
    std::memcpy(room, from, number * sizeof(W));
    return room;
}

// Asks for the tile that comes `ahead` words later: the processor's own prefetching stops between
// the passes over a tile.
template <class W, int kForWriting = 0>
void prefetch(const Chunk& chunk, const void* words, size_t start, size_t ahead) {
    if (start + ahead + kTile > chunk.words) return;
    const auto* next = reinterpret_cast<const char*>(static_cast<const W*>(words) + start + ahead);
    for (size_t at = 0; at < kTile * sizeof(W); at += 64) __builtin_prefetch(next + at, kForWriting);
}

// --- what changed --------------------------------------------------------------------------

template <class W>
Changes count_changes(const Chunk& chunk, const void* tuned_words) {
    const WordMap<W> map(chunk.width, chunk.order);
    const W* base = static_cast<const W*>(chunk.base);
    const W* tuned = static_cast<const W*>(tuned_words);
    constexpr size_t kBlock = sizeof(W) == 1 ? 128 : kTile;  // its count fits a word
    Changes found;
    W top = 0;
    for (size_t start = 0; start < chunk.words; start += kBlock) {
        const size_t left = chunk.words - start;
        const size_t words = left < kBlock ? left : kBlock;
        const W *old = base + start, *now = tuned + start;
        W count = 0;
        each_key(old, words, map, [&](size_t i, W key) {
            const W changed = old[i] != now[i] ? W(~W(0)) : W(0);
            const W moved = W(key & changed);
            top = moved > top ? moved : top;
            count = W(count - changed);
        });
        found.number += count;
    }
    found.top_key = top;
    return found;
}

// --- histogram -----------------------------------------------------------------------------

// The class of |step| in a histogram.
inline size_t magnitude_class(uint64_t magnitude) {
    const int far = 2 + bit_length(magnitude - 3);
    const int most = kMagnitudeClasses - 1;
    return size_t(magnitude <= 3 ? int(magnitude) - 1 : far < most ? far : most);
}

// Counters in several tables: neighbouring words often share a bin and would wait for each other.
class Counters {
  public:
    Counters(size_t cells, Scratch& scratch)
        : cells_(cells), counts_(scratch.array<uint32_t>(kTables * cells)) {
        std::memset(counts_, 0, kTables * cells * sizeof(uint32_t));
    }

    void add(size_t cell, size_t turn) { ++counts_[turn % kTables * cells_ + cell]; }

    void add_to(int64_t* totals) const {
        for (size_t table = 0; table < kTables; ++table) {
            for (size_t i = 0; i < cells_; ++i) totals[i] += counts_[table * cells_ + i];
        }
    }

  private:
    static constexpr size_t kTables = 8;
    size_t cells_;
    uint32_t* counts_;
};

template <class W>
void histogram_words(const Chunk& chunk, const void* tuned_words, const Bounds& bins, size_t every,
                     int64_t* words, int64_t* magnitudes, Scratch& scratch) {
    const WordMap<W> map(chunk.width, chunk.order);
    const Lookup<W, uint16_t> bin_of(bins, map, chunk.words, scratch);
    W* room = scratch.array<W>(2 * kTile);
    Counters word_counts(bins.number, scratch);
    Counters step_counts(bins.number * kMagnitudeClasses, scratch);
    Live live(chunk);
    for (size_t start = 0; start < chunk.words; start += kTile) {
        const size_t number = tile_words(chunk, start);
        if (start / kTile % every) {
            for (size_t at = 0; at < number; at += 64) live.next();
            continue;
        }
        const W* base = whole_groups<W>(chunk.base, start, number, room);
        const W* tuned = whole_groups<W>(tuned_words, start, number, room + kTile);
        prefetch<W>(chunk, chunk.base, start, every * kTile);
        prefetch<W>(chunk, tuned_words, start, every * kTile);
        for (size_t at = 0; at < number; at += 64) {
            const uint64_t mask = live.next();
            if (mask == ~uint64_t(0)) {
                for (size_t i = at; i < at + 64; ++i) word_counts.add(bin_of(map.key(base[i])), i);
            } else {
                for (uint64_t bits = mask; bits; bits &= bits - 1) {
                    const size_t i = at + size_t(__builtin_ctzll(bits));
                    word_counts.add(bin_of(map.key(base[i])), i);
                }
            }
            for (uint64_t bits = mask & Simd::differ(base + at, tuned + at); bits; bits &= bits - 1) {
                const size_t i = at + size_t(__builtin_ctzll(bits));
                const W magnitude = magnitude_of<W>(map.step(base[i], tuned[i]));
                step_counts.add(bin_of(map.key(base[i])) * kMagnitudeClasses +
                                    magnitude_class(magnitude),
                                i);
            }
        }
    }
    word_counts.add_to(words);
    step_counts.add_to(magnitudes);
}

// --- the words that are in contexts --------------------------------------------------------

// A list that grows.
template <class T>
struct List {
    T* data = nullptr;
    size_t size = 0;
    size_t room = 0;

    void reserve(size_t more, Scratch& scratch) {
        if (size + more <= room) return;
        room = 2 * (size + more);
        T* larger = scratch.array<T>(room);
        if (size) std::memcpy(larger, data, size * sizeof(T));
        data = larger;
    }
};

// The words of a chunk that are in a context, closed up: where few weights change, most words are
// in none, and what follows works on a fraction of the chunk.
struct DenseWords {
    List<uint8_t> codes;  // filled up to whole groups
    uint64_t* taken;      // one bit per word of the chunk

    DenseWords(size_t words, Scratch& scratch)
        : taken(scratch.array<uint64_t>(groups_of(words))), tile_(scratch.array<uint8_t>(kTile)) {}

    // Takes over the next tile; `live` has one bit per word.
    template <class W>
    void add(const W* base, size_t start, size_t groups, const uint64_t* live,
             const Codes<W>& coder, Scratch& scratch) {
        coder.make(base, groups * 64, tile_);
        codes.reserve(kTile + 64, scratch);
        uint8_t* to = codes.data + codes.size;
        for (size_t g = 0; g < groups; ++g) {
            const uint64_t mine = live[g] & Simd::at_most(tile_ + g * 64, coder.last());
            taken[start / 64 + g] = mine;
            Simd::gather(tile_ + g * 64, mine, to);
            to += __builtin_popcountll(mine);
        }
        codes.size = size_t(to - codes.data);
    }

    void finish(Scratch& scratch) {
        codes.reserve(64, scratch);
        std::memset(codes.data + codes.size, kNoContext, 64);
    }

  private:
    uint8_t* tile_;
};

// For a tile of dense words, those of the first context, of the first two, and so on.
class Insides {
  public:
    Insides(const DenseWords& dense, const uint8_t* bounds, size_t number)
        : dense_(dense), bounds_(bounds), number_(number) {}

    // Goes to the tile at `start`, and says how many groups it has.
    size_t find(size_t start) {
        const size_t left = dense_.codes.size - start;
        groups_ = groups_of(left < kTile ? left : kTile);
        Simd::find_inside(dense_.codes.data + start, groups_, bounds_, number_, inside_ + 1);
        return groups_;
    }

    // The words of one context, and the groups that have any.
    uint64_t members(size_t context, uint64_t* member) const {
        return Simd::members(inside_[context], inside_[context + 1], groups_, member);
    }

    // How many words a context has.
    uint64_t count(size_t context) const {
        uint64_t count = 0;
        for (size_t g = 0; g < groups_; ++g) {
            count += uint64_t(__builtin_popcountll(inside_[context + 1][g] ^ inside_[context][g]));
        }
        return count;
    }

  private:
    const DenseWords& dense_;
    const uint8_t* bounds_;
    size_t number_;
    size_t groups_ = 0;
    alignas(64) uint64_t inside_[kMaxContexts + 1][kGroups] = {};
};

// --- encode --------------------------------------------------------------------------------

// One context's part of a chunk, while it is collected.
template <class W>
struct Context {
    List<uint8_t> bitmap;
    BitWriter writer;
    List<Signed<W>> steps;

    // Makes room for a tile with `changes` changed words.
    void reserve(size_t changes, Scratch& scratch) {
        const uint8_t* before = bitmap.data;
        bitmap.size = before ? size_t(writer.bits_since(before) / 8) : 0;
        bitmap.reserve(kTile / 8 + 16, scratch);
        if (!before) {
            writer = BitWriter(bitmap.data);
        } else {
            writer.move(before, bitmap.data);
        }
        steps.reserve(changes + 64, scratch);
    }

    // Takes the context's words of a tile of the dense words: which changed, and the steps of all.
    void take(const Insides& insides, size_t context, const uint64_t* changed_words,
              const Signed<W>* all_steps) {
        alignas(64) uint64_t member[kGroups];
        BitWriter to = writer;
        Signed<W>* step = steps.data + steps.size;
        for (uint64_t left = insides.members(context, member); left; left &= left - 1) {
            const int g = __builtin_ctzll(left);
            const uint64_t changed = changed_words[g] & member[g];
            to.put(Simd::extract(changed, member[g]), __builtin_popcountll(member[g]));
            if (!changed) continue;
            Simd::gather(all_steps + g * 64, changed, step);
            step += __builtin_popcountll(changed);
        }
        writer = to;
        steps.size = size_t(step - steps.data);
    }
};

// The steps of the changed words of a tile, in order.
template <class W>
void collect_steps(const W* base, const W* tuned, size_t groups, const WordMap<W>& map,
                   const uint64_t* changed, bool many, Signed<W>* all, Signed<W>* steps) {
    if (many) {
        for (size_t i = 0; i < groups * 64; ++i) all[i] = map.step(base[i], tuned[i]);
        for (size_t g = 0; g < groups; ++g) {
            Simd::gather(all + g * 64, changed[g], steps);
            steps += __builtin_popcountll(changed[g]);
        }
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
    Context<W> contexts[kMaxContexts];
    Insides insides(words.dense, coder.bounds(), number);
    const Signed<W>* changed_steps = words.steps.data;
    auto* all = scratch.array<Signed<W>>(kTile);
    std::memset(all, 0, kTile * sizeof(W));
    uint64_t changed[kGroups];
    for (size_t start = 0; start < words.dense.codes.size; start += kTile) {
        const size_t groups = insides.find(start);
        std::memcpy(changed, words.bitmap.data + start / 8, groups * 8);
        size_t found = 0;
        for (size_t g = 0; g < groups; ++g) {
            Simd::scatter(changed_steps + found, changed[g], all + g * 64);
            found += size_t(__builtin_popcountll(changed[g]));
        }
        changed_steps += found;
        for (size_t c = 0; c < number; ++c) {
            contexts[c].reserve(found, scratch);
            contexts[c].take(insides, c, changed, all);
        }
    }
    const size_t total = words.steps.size;
    auto* steps = scratch.array<Signed<W>>(total + 64);
    std::memset(steps + total, 0, 64 * sizeof(W));
    Signed<W>* place = steps;
    for (size_t c = 0; c < number; ++c) {
        const List<Signed<W>>& mine = contexts[c].steps;
        if (mine.size) std::memcpy(place, mine.data, mine.size * sizeof(W));
        place += mine.size;
        contexts[c].reserve(0, scratch);  // also where there were no words at all
        contexts[c].writer.finish();
        out.changed[c] = mine.size;
        out.counts[c] = contexts[c].writer.bits_since(contexts[c].bitmap.data);
        out.masks[c] = encode_mask(contexts[c].bitmap.data, out.counts[c], mine.size, scratch);
    }
    encode_steps<W>(steps, total, chunk.width, out, scratch);
}

// --- decode --------------------------------------------------------------------------------

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

// The mask of a context that has changes, and how far it and its steps were read.
template <class W>
struct Cursor {
    size_t context;
    const uint8_t* bitmap;
    uint64_t place;
    const Signed<W>* step;

    // Finds which of the context's words of a tile changed, adds them to `marked`, and puts their
    // steps where they stand among the words of the tile.
    void read(const Insides& insides, uint64_t* marked, Signed<W>* steps) {
        alignas(64) uint64_t member[kGroups];
        uint64_t at = place;
        for (uint64_t left = insides.members(context, member); left; left &= left - 1) {
            const int g = __builtin_ctzll(left);
            const uint64_t changed = Simd::deposit(bits_at(bitmap, at), member[g]);
            at += uint64_t(__builtin_popcountll(member[g]));
            if (!changed) continue;
            marked[g] |= changed;
            Simd::scatter(step, changed, steps + g * 64);
            step += __builtin_popcountll(changed);
        }
        place = at;
    }
};

// Reads the masks of all contexts that have changes.
template <class W>
const char* read_masks(Reader& reader, const uint64_t* counts, const uint64_t* numbers,
                       size_t number, Cursor<W>* cursors, size_t* found, Scratch& scratch) {
    *found = 0;
    for (size_t c = 0; c < number; ++c) {
        if (numbers[c] > counts[c]) return "a context is said to have more changes than words";
        if (numbers[c] == 0) continue;
        const size_t bytes = size_t(counts[c] / 8 + 24);  // whole words are read past the end
        uint8_t* bitmap = scratch.array<uint8_t>(bytes);
        std::memset(bitmap, 0, bytes);
        if (const char* problem = decode_mask(reader, counts[c], numbers[c], bitmap)) return problem;
        cursors[(*found)++] = {c, bitmap, 0, nullptr};
    }
    return nullptr;
}

// Decodes the streams: which of the dense words changed, as a bitmap with room behind it, and the
// steps of those, in order.
template <class W>
const char* decode_changes(const DenseWords& dense, const Codes<W>& coder, const Chunk& chunk,
                           size_t number, const uint64_t* numbers, Span content, uint8_t** bitmap,
                           Signed<W>** ordered, Scratch& scratch) {
    Insides insides(dense, coder.bounds(), number);
    uint64_t counts[kMaxContexts] = {};
    for (size_t start = 0; start < dense.codes.size; start += kTile) {
        insides.find(start);
        for (size_t c = 0; c < number; ++c) counts[c] += insides.count(c);
    }
    // A copy with room behind it, so that whole words can be loaded up to the end.
    uint8_t* copy = scratch.array<uint8_t>(content.size + 16);
    std::memcpy(copy, content.data, content.size);
    std::memset(copy + content.size, 0, 16);
    Reader reader({copy, content.size});
    Cursor<W> cursors[kMaxContexts];
    size_t found;
    if (const char* problem = read_masks(reader, counts, numbers, number, cursors, &found, scratch)) {
        return problem;
    }
    size_t total = 0;
    for (size_t i = 0; i < found; ++i) total += numbers[cursors[i].context];
    auto* steps = scratch.array<Signed<W>>(total + 128);
    if (const char* problem = decode_steps<W>(reader, total, chunk.width, steps, scratch)) {
        return problem;
    }
    if (reader.left()) return "bytes are left after the last stream";
    for (size_t i = 0; i < found; ++i) {
        cursors[i].step = steps;
        steps += numbers[cursors[i].context];
    }

    auto* to = *ordered = scratch.array<Signed<W>>(total + 128);
    *bitmap = scratch.array<uint8_t>((dense.codes.size / kTile + 1) * (kTile / 8) + 16);
    auto* all = scratch.array<Signed<W>>(kTile);
    std::memset(all, 0, kTile * sizeof(W));
    uint64_t marked[kGroups];
    for (size_t start = 0; start < dense.codes.size; start += kTile) {
        const size_t groups = insides.find(start);
        std::memset(marked, 0, sizeof marked);
        for (size_t i = 0; i < found; ++i) cursors[i].read(insides, marked, all);
        for (size_t g = 0; g < groups; ++g) {
            Simd::gather(all + g * 64, marked[g], to);
            to += __builtin_popcountll(marked[g]);
        }
        std::memcpy(*bitmap + start / 8, marked, sizeof marked);
    }
    return nullptr;
}

// Applies the steps, which stand in order, to the marked words of a tile.
template <class W>
void move_words(const W* base, size_t words, const WordMap<W>& map, const uint64_t* marked,
                const Signed<W>* steps, bool many, Signed<W>* all, W* result) {
    const size_t groups = groups_of(words);
    if (many) {
        std::memset(all, 0, groups * 64 * sizeof(W));
        for (size_t g = 0; g < groups; ++g) {
            Simd::scatter(steps, marked[g], all + g * 64);
            steps += __builtin_popcountll(marked[g]);
        }
        for (size_t i = 0; i < words; ++i) result[i] = map.moved(base[i], all[i]);
        return;
    }
    if (result != base) std::memcpy(result, base, words * sizeof(W));
    for (size_t g = 0; g < groups; ++g) {
        for (uint64_t bits = marked[g]; bits; bits &= bits - 1) {
            const size_t i = g * 64 + size_t(__builtin_ctzll(bits));
            result[i] = map.moved(result[i], *steps++);
        }
    }
}

template <class W>
const char* apply_words(const Chunk& chunk, void* out, const Bounds& bounds,
                        const uint64_t* numbers, Span content, Scratch& scratch) {
    const WordMap<W> map(chunk.width, chunk.order);
    const Codes<W> coder(bounds, map, chunk.words, scratch);
    DenseWords dense(chunk.words, scratch);
    W* room = scratch.array<W>(kTile);
    uint64_t words_of_tile[kGroups];
    Live live(chunk);
    for (size_t start = 0; start < chunk.words; start += kTile) {
        const size_t words = tile_words(chunk, start), groups = groups_of(words);
        const W* base = whole_groups<W>(chunk.base, start, words, room);
        prefetch<W>(chunk, chunk.base, start, kTile);
        for (size_t g = 0; g < groups; ++g) words_of_tile[g] = live.next();
        dense.add(base, start, groups, words_of_tile, coder, scratch);
    }
    dense.finish(scratch);
    uint8_t* bitmap = nullptr;
    Signed<W>* steps = nullptr;
    if (const char* problem = decode_changes<W>(dense, coder, chunk, bounds.number, numbers,
                                                content, &bitmap, &steps, scratch)) {
        return problem;
    }
    // From here on, the base only gives the words that are moved: if it is mapped and changes
    // between the two readings, the result is wrong, and its check says so, but nothing is read or
    // written where it should not be.
    auto* all = scratch.array<Signed<W>>(kTile);
    uint64_t place = 0;
    RowCheck rows(chunk);
    for (size_t start = 0; start < chunk.words; start += kTile) {
        const size_t words = tile_words(chunk, start), groups = groups_of(words);
        prefetch<W, 1>(chunk, out, start, kTile);
        size_t found = 0;
        for (size_t g = 0; g < groups; ++g) {
            const uint64_t taken = dense.taken[start / 64 + g];
            words_of_tile[g] = Simd::deposit(bits_at(bitmap, place), taken);
            place += uint64_t(__builtin_popcountll(taken));
            found += size_t(__builtin_popcountll(words_of_tile[g]));
        }
        move_words(static_cast<const W*>(chunk.base) + start, words, map, words_of_tile, steps,
                   found >= kManyChanges, all, static_cast<W*>(out) + start);
        steps += found;
        if (chunk.rows.active) {
            for (size_t g = 0; g < groups; ++g) {
                rows.add(words_of_tile[g], words - g * 64 < 64 ? words - g * 64 : 64);
            }
        }
    }
    if (chunk.rows.active && !rows.finish()) return "a row without changes is flagged";
    return nullptr;
}

// --- by width ------------------------------------------------------------------------------

inline Changes changes(const Chunk& chunk, const void* tuned) {
    switch (chunk.width) {
        case 16: return count_changes<uint16_t>(chunk, tuned);
        case 32: return count_changes<uint32_t>(chunk, tuned);
        case 64: return count_changes<uint64_t>(chunk, tuned);
        default: return count_changes<uint8_t>(chunk, tuned);
    }
}

inline void histogram(const Chunk& chunk, const void* tuned, const Bounds& bins, size_t every,
                      int64_t* words, int64_t* magnitudes, Scratch& scratch) {
    switch (chunk.width) {
        case 16: return histogram_words<uint16_t>(chunk, tuned, bins, every, words, magnitudes,
                                             scratch);
        case 32: return histogram_words<uint32_t>(chunk, tuned, bins, every, words, magnitudes,
                                             scratch);
        case 64: return histogram_words<uint64_t>(chunk, tuned, bins, every, words, magnitudes,
                                             scratch);
        default: return histogram_words<uint8_t>(chunk, tuned, bins, every, words, magnitudes,
                                             scratch);
    }
}

inline void partition(const Chunk& chunk, const void* tuned, const Bounds& bounds, Streams& out,
                      Scratch& scratch) {
    switch (chunk.width) {
        case 16: return partition_words<uint16_t>(chunk, tuned, bounds, out, scratch);
        case 32: return partition_words<uint32_t>(chunk, tuned, bounds, out, scratch);
        case 64: return partition_words<uint64_t>(chunk, tuned, bounds, out, scratch);
        default: return partition_words<uint8_t>(chunk, tuned, bounds, out, scratch);
    }
}

inline const char* apply(const Chunk& chunk, void* out, const Bounds& bounds,
                         const uint64_t* changed, Span content, Scratch& scratch) {
    switch (chunk.width) {
        case 16: return apply_words<uint16_t>(chunk, out, bounds, changed, content, scratch);
        case 32: return apply_words<uint32_t>(chunk, out, bounds, changed, content, scratch);
        case 64: return apply_words<uint64_t>(chunk, out, bounds, changed, content, scratch);
        default: return apply_words<uint8_t>(chunk, out, bounds, changed, content, scratch);
    }
}
