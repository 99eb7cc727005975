// Where the words of a decoded chunk go, tile by tile.
// Included inside the namespace of one instruction set.
//
// They are hashed leaf by leaf, while a leaf is in the first-level cache. Where only the hashes are
// wanted, all leaves take turns in the memory of one.
template <class W>
class Result {
  public:
    Result(const Chunk& chunk, const Output& out, Scratch& scratch)
        : words_(static_cast<W*>(out.words)),
          number_(chunk.words),
          leaf_words_(kLeafBytes * 8 / size_t(chunk.width)),
          out_(out) {
        if (!words_) leaf_ = scratch.array<W>(leaf_words_);
        if (out.leaves && chunk.width == 4) packed_ = scratch.array<uint8_t>(kLeafBytes);
    }

    // Memory for the tile that starts with word `start`.
    W* tile(size_t start) const { return leaf_ ? leaf_ + start % leaf_words_ : words_ + start; }

    // Takes the tile that ends before word `end`: its words are final.
    void end_tile(size_t end) {
        if (!out_.leaves || (end % leaf_words_ && end != number_)) return;
        const size_t start = (end - 1) / leaf_words_ * leaf_words_;
        out_.leaves[start / leaf_words_] = hash(tile(start), end - start);
    }

  private:
    static_assert(kLeafBytes / sizeof(W) % kTile == 0, "a tile lies in one leaf");

    uint64_t hash(const W* leaf, size_t words) const {
        if (!packed_) return out_.xxh3(reinterpret_cast<const uint8_t*>(leaf), words * sizeof(W));
        for (size_t i = 0; i < words / 2; ++i) {
            packed_[i] = uint8_t(leaf[2 * i] | leaf[2 * i + 1] << 4);
        }
        return out_.xxh3(packed_, words / 2);
    }

    W* const words_;
    const size_t number_, leaf_words_;
    const Output out_;
    W* leaf_ = nullptr;          // where the words are not wanted: memory for one leaf of them
    uint8_t* packed_ = nullptr;  // memory for the bytes of a leaf of 4-bit words
};
