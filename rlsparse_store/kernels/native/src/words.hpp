// Words of one coding: keys, order maps and steps.
// Included inside the namespace of one instruction set.

template <class W>
struct SignedOf;
template <>
struct SignedOf<uint8_t> {
    using type = int8_t;
};
template <>
struct SignedOf<uint16_t> {
    using type = int16_t;
};
template <>
struct SignedOf<uint32_t> {
    using type = int32_t;
};
template <>
struct SignedOf<uint64_t> {
    using type = int64_t;
};
template <class W>
using Signed = typename SignedOf<W>::type;

// specs/format.md section 2, on words of `width` bits that lie in a W.
template <class W>
struct WordMap {
    W top;         // all bits of a word
    W low;         // all but the sign
    W key_mask;    // bits of a key
    W key_flip;    // what a negative word is flipped by to give its key
    W order_flip;  // and to give its place in the order
    int spare;     // bits of W above the word

    WordMap(int width, Order order)
        : top(W(~W(0)) >> (8 * sizeof(W) - width)),
          low(W(top >> 1)),
          key_mask(order == kUnsigned ? top : low),
          key_flip(order == kTwosComplement ? W(~W(0)) : W(0)),
          order_flip(order == kSignMagnitude ? low : W(0)),
          spare(int(8 * sizeof(W)) - width) {}

    W sign(W word) const { return word > low ? W(~W(0)) : W(0); }
    W key(W word) const { return W((word ^ (sign(word) & key_flip)) & key_mask); }
    W place(W word) const { return W(word ^ (sign(word) & order_flip)); }

    Signed<W> step(W base, W tuned) const {
        const W distance = W(place(tuned) - place(base));
        // Most words fill their W, and without the shifts, vectors hold twice as many of them.
        if (!spare) return Signed<W>(distance);
        return Signed<W>(Signed<W>(W(distance << spare)) >> spare);
    }

    W moved(W base, Signed<W> step) const { return place(W((place(base) + W(step)) & top)); }
};

// The magnitude of a step; the most negative one has no positive twin, but these bits.
template <class W>
inline W magnitude_of(Signed<W> step) {
    return step < 0 ? W(W(0) - W(step)) : W(step);
}

inline int bit_length(uint64_t value) { return value ? 64 - __builtin_clzll(value) : 0; }

// Which of each 64 consecutive words of a chunk lie in it and in an active row.
class Live {
  public:
    Live(const Chunk& chunk)
        : rows_(chunk.rows), left_(chunk.words), row_left_(chunk.rows.length - chunk.rows.offset) {}

    uint64_t next() {
        uint64_t mask = left_ >= 64 ? ~uint64_t(0) : (uint64_t(1) << left_) - 1;
        left_ -= left_ >= 64 ? 64 : left_;
        return rows_.active ? mask & next_rows(mask) : mask;
    }

    // Passes over words where there are no rows.
    void skip(size_t words) { left_ -= words; }

  private:
    uint64_t next_rows(uint64_t inside) {
        uint64_t mask = 0;
        int place = 0;
        while (place < 64 && (inside >> place)) {
            const int room = 64 - place;
            const int run = row_left_ < uint64_t(room) ? int(row_left_) : room;
            if (rows_.active[row_]) {
                mask |= (run == 64 ? ~uint64_t(0) : (uint64_t(1) << run) - 1) << place;
            }
            place += run;
            row_left_ -= run;
            if (row_left_ == 0) {
                ++row_;
                row_left_ = rows_.length;
            }
        }
        return mask;
    }

    RowFlags rows_;
    size_t left_;
    uint64_t row_left_;
    size_t row_ = 0;
};
