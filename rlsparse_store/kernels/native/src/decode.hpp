// Decoding: from streams to the tuned words of a chunk.
// Included inside the namespace of one instruction set, which has defined `Simd`.

#include "coded.hpp"
#include "decode_groups.hpp"
#include "decode_lists.hpp"

template <class W>
const char* apply_words(const Chunk& chunk, const Output& out, const Bounds& bounds,
                        const uint64_t* numbers, Span content, Scratch& scratch) {
    Result<W> result(chunk, out, scratch);
    if constexpr (Simd::kByLists) {
        return ListDecoder<W>(chunk, bounds, numbers, scratch).run(content, result);
    } else {
        return GroupDecoder<W>(chunk, bounds, numbers, scratch).run(content, result);
    }
}
