// Decoding: from streams to the tuned words of a chunk.
// Included inside the namespace of one instruction set, which has defined `Simd`.

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

// The mask of a context that has changes, and how far it was read.
struct Cursor {
    size_t context;
    const uint8_t* bitmap;
    uint64_t place;

    // Finds which of the context's words of a tile changed, and adds them to `marked`.
    void read(const Insides& insides, uint64_t* marked) {
        alignas(64) uint64_t member[kGroups];
        uint64_t at = place;
        for (uint64_t left = insides.members(context, member); left; left &= left - 1) {
            const int g = __builtin_ctzll(left);
            marked[g] |= Simd::deposit(bits_at(bitmap, at), member[g]);
            at += uint64_t(__builtin_popcountll(member[g]));
        }
        place = at;
    }
};

// Reads the masks of all contexts that have changes.
inline const char* read_masks(Reader& reader, const uint64_t* counts, const uint64_t* numbers,
                              size_t number, Cursor* cursors, size_t* found, Scratch& scratch) {
    *found = 0;
    for (size_t c = 0; c < number; ++c) {
        if (numbers[c] > counts[c]) return "a context cannot have more changed words than words";
        if (numbers[c] == 0) continue;
        const size_t bytes = size_t(counts[c] / 8 + 24);  // whole words are read past the end
        uint8_t* bitmap = scratch.array<uint8_t>(bytes);
        std::memset(bitmap, 0, bytes);
        if (const char* problem = decode_mask(reader, counts[c], numbers[c], bitmap))
            return problem;
        cursors[(*found)++] = {c, bitmap, 0};
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
    Cursor cursors[kMaxContexts];
    size_t found;
    if (const char* problem =
            read_masks(reader, counts, numbers, number, cursors, &found, scratch)) {
        return problem;
    }
    size_t total = 0;
    for (size_t i = 0; i < found; ++i) total += numbers[cursors[i].context];
    auto* steps = scratch.array<Signed<W>>(total + 128);
    if (const char* problem = decode_steps<W>(reader, total, chunk.width, steps, scratch)) {
        return problem;
    }
    if (reader.left()) return "bytes are left after the last stream";
    *bitmap = scratch.array<uint8_t>((dense.codes.size / kTile + 1) * (kTile / 8) + 16);
    auto* codes = scratch.array<uint8_t>(total + 64);
    size_t marks = 0;
    uint64_t marked[kGroups];
    for (size_t start = 0; start < dense.codes.size; start += kTile) {
        const size_t groups = insides.find(start);
        std::memset(marked, 0, sizeof marked);
        for (size_t i = 0; i < found; ++i) cursors[i].read(insides, marked);
        marks += gather_groups(dense.codes.data + start, groups, marked, codes + marks);
        std::memcpy(*bitmap + start / 8, marked, sizeof marked);
    }
    auto* to = *ordered = scratch.array<Signed<W>>(total + 128);
    ContextOrder<W>(codes, total, coder).each_place([&](size_t i, size_t place) {
        to[i] = steps[place];
    });
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
    if (chunk.rows.active && chunk.words && !rows.finish()) return "a flagged row has no change";
    return nullptr;
}
