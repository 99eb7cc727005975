// The kernels for a chunk of words of any width.
// Included inside the namespace of one instruction set, which has defined `Simd`.

#include "contexts.hpp"
#include "tiles.hpp"
#include "masks.hpp"
#include "steps.hpp"
#include "compare.hpp"
#include "histogram.hpp"
#include "encode.hpp"
#include "result.hpp"
#include "decode.hpp"
#include "exchange.hpp"

// Calls function<W>(...) for the words of a width; those of 4 bits are in bytes.
#define RLSPARSE_BY_WIDTH(width, function, ...)     \
    switch (width) {                                \
        case 16:                                    \
            return function<uint16_t>(__VA_ARGS__); \
        case 32:                                    \
            return function<uint32_t>(__VA_ARGS__); \
        case 64:                                    \
            return function<uint64_t>(__VA_ARGS__); \
        default:                                    \
            return function<uint8_t>(__VA_ARGS__);  \
    }

inline Changes compare(const Chunk& chunk, const void* tuned, uint8_t* mask, void* before,
                       void* after) {
    RLSPARSE_BY_WIDTH(chunk.width, compare_words, chunk, tuned, mask, before, after)
}

inline void histogram(const Chunk& chunk, const Changed& changed, const Bounds& bins, size_t every,
                      int64_t* words, int64_t* magnitudes, Scratch& scratch) {
    RLSPARSE_BY_WIDTH(chunk.width, histogram_words, chunk, changed, bins, every, words, magnitudes,
                      scratch)
}

inline void partition(const Chunk& chunk, const Changed& changed, const Bounds& bounds,
                      Streams& out, Scratch& scratch) {
    RLSPARSE_BY_WIDTH(chunk.width, partition_words, chunk, changed, bounds, out, scratch)
}

inline const char* apply(const Chunk& chunk, const Output& out, const Bounds& bounds,
                         const uint64_t* changed, Span content, Scratch& scratch) {
    RLSPARSE_BY_WIDTH(chunk.width, apply_words, chunk, out, bounds, changed, content, scratch)
}

inline size_t record(const void* before, const void* after, size_t words, int width, uint8_t* mask,
                     void* values) {
    RLSPARSE_BY_WIDTH(width, record_words, before, after, words, mask, values)
}

inline const char* exchange(void* words, size_t number, int width, const uint8_t* mask,
                            void* values, size_t left, Scratch& scratch) {
    RLSPARSE_BY_WIDTH(width, exchange_words, words, number, mask, values, left, scratch)
}
