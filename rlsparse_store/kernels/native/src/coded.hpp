// Decoding: what the streams of a chunk say of its contexts.
// Included inside the namespace of one instruction set, which has defined `Simd`.
//
// A chunk is decoded in two passes over its words. The first one counts the words of each context,
// without which no mask can be read. The second one goes through the words once more, each context
// with its own place in its mask and in its steps. So no step is ever sorted by context.
//
// The base may be mapped and change between the passes: the result is wrong then, and its check
// says so, but nothing is read or written where it should not be.

// Checks that every row that is flagged holds a changed word.
class RowCheck {
  public:
    explicit RowCheck(const Chunk& chunk)
        : rows_(chunk.rows),
          row_left_(chunk.rows.length - chunk.rows.offset),
          is_needed_(chunk.rows.active && chunk.words) {}

    // Takes which words of a tile changed.
    void add_tile(const uint64_t* changed, size_t words) {
        if (!is_needed_) return;
        for (size_t start = 0; start < words; start += 64) {
            add(changed[start / 64], words - start < 64 ? words - start : 64);
        }
    }

    // Returns what is wrong, or nullptr; the last row may end with the chunk.
    const char* finish() {
        if (!is_needed_) return nullptr;
        if (row_left_ != rows_.length) end_row();
        return sound_ ? nullptr : "a flagged row has no change";
    }

  private:
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

    void end_row() {
        sound_ &= rows_.active[row_] == 0 || seen_;
        ++row_;
        row_left_ = rows_.length;
        seen_ = false;
    }

    RowFlags rows_;
    uint64_t row_left_;
    size_t row_ = 0;
    const bool is_needed_;
    bool seen_ = false;
    bool sound_ = true;
};

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

// The masks and steps of a chunk's contexts, by name.
template <class W>
struct Coded {
    Mask masks[kMaxContexts + 1];
    Steps<W> steps;
    StepPlaces places;
    uint64_t changed = 0;  // words

    // Reads the content, given the changed words of each context and its words by name. Returns
    // what is wrong, or nullptr.
    const char* read(Span content, const Chunk& chunk, const Populous& populous, size_t contexts,
                     const uint64_t* numbers, const uint64_t* counts, Scratch& scratch) {
        // A copy with slack behind it, so that whole words can be loaded up to the end.
        uint8_t* copy = scratch.array<uint8_t>(content.size + kSlack);
        if (content.size) std::memcpy(copy, content.data, content.size);
        std::memset(copy + content.size, 0, kSlack);
        Reader reader({copy, content.size});
        for (size_t c = 0; c < contexts; ++c) {
            if (numbers[c] == 0) continue;
            const size_t name = populous.names[c];
            const uint64_t n = counts[name], k = numbers[c];
            if (k > n) return "a context cannot have more changed words than words";
            if (const char* problem = decode_mask(reader, n, k, masks[name], scratch)) {
                return problem;
            }
            places.near[name] = changed;
            places.near_end[name] = changed += k;
        }
        if (const char* problem =
                decode_steps<W>(reader, size_t(changed), chunk.width, steps, scratch)) {
            return problem;
        }
        if (reader.left()) return "bytes are left after the last stream";
        for (size_t name = 1; name <= populous.named; ++name) {
            places.wide[name] = steps.wide_before(places.near[name]);
            places.wide_end[name] = steps.wide_before(places.near_end[name]);
        }
        return nullptr;
    }
};
