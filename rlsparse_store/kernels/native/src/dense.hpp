// The words of a chunk that are in contexts, closed up.
// Included inside the namespace of one instruction set, which has defined `Simd`.

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
