// Encoding: from the words of a chunk to the streams of its contexts, in one pass over the base.
// Included inside the namespace of one instruction set, which has defined `Simd`.

// The words of a chunk by context, by name: how many there are, how many changed, and a bit for
// each that tells whether it did, zero up to the end of a word. And the names of all changed words.
struct Split {
    uint64_t counts[kMaxContexts + 1] = {}, changed[kMaxContexts + 1] = {};
    uint8_t* bitmaps[kMaxContexts + 1] = {};
    uint8_t* names;
};

#include "split_groups.hpp"
#include "split_ranks.hpp"

// The state of encoding one chunk.
template <class W>
class Encoder {
  public:
    Encoder(const Chunk& chunk, const Changed& changed, const Bounds& bounds, Scratch& scratch)
        : chunk_(chunk),
          changed_(changed),
          map_(chunk.width, chunk.order),
          contexts_(bounds, map_, scratch),
          scratch_(scratch) {
        populous_.choose(chunk, contexts_, nullptr, Simd::kByLists ? kFew : chunk.words + 1);
    }

    void run(Streams& out) {
        Split split;
        split.names = scratch_.array<uint8_t>(changed_.number + 128);
        using Splitter = std::conditional_t<Simd::kByLists, RankSplitter<W>, GroupSplitter<W>>;
        Splitter(chunk_, changed_, contexts_, populous_, scratch_).run(split);
        std::memset(split.names + changed_.number, 0, 64);
        uint64_t starts[kMaxContexts + 1] = {}, total = 0;
        for (size_t c = 0; c < contexts_.number(); ++c) {
            const size_t name = populous_.names[c];
            out.counts[c] = split.counts[name];
            const uint64_t k = out.changed[c] = split.changed[name];
            out.masks[c] = encode_mask(split.bitmaps[name], out.counts[c], k, scratch_);
            starts[name] = total;
            total += k;
        }
        starts[0] = total;  // changed words in no context, which are not coded
        const auto* before = static_cast<const W*>(changed_.before);
        const auto* after = static_cast<const W*>(changed_.after);
        auto* steps = scratch_.array<Signed<W>>(changed_.number + 64);
        for (size_t i = 0; i < changed_.number; ++i) steps[i] = map_.step(before[i], after[i]);
        auto* ordered = scratch_.array<Signed<W>>(changed_.number + 64);
        Simd::sort_steps(split.names, changed_.number, populous_.named, steps, starts, ordered);
        std::memset(ordered + total, 0, 64 * sizeof(W));
        encode_steps<W>(ordered, total, chunk_.width, out, scratch_);
    }

  private:
    static constexpr size_t kFew = 4;  // words in contexts are few, or one in so many is

    const Chunk& chunk_;
    const Changed& changed_;
    const WordMap<W> map_;
    Contexts<W> contexts_;
    Populous populous_;
    Scratch& scratch_;
};

template <class W>
void partition_words(const Chunk& chunk, const Changed& changed, const Bounds& bounds, Streams& out,
                     Scratch& scratch) {
    Encoder<W>(chunk, changed, bounds, scratch).run(out);
}
