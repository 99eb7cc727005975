// The kernels for a chunk of words of any width.
// Included inside the namespace of one instruction set, which has defined `Simd`.

#include "codes.hpp"
#include "streams.hpp"
#include "tiles.hpp"
#include "counting.hpp"
#include "dense.hpp"
#include "partition.hpp"
#include "apply.hpp"
#include "exchange.hpp"

inline Changes changes(const Chunk& chunk, const void* tuned) {
    switch (chunk.width) {
        case 16:
            return count_changes<uint16_t>(chunk, tuned);
        case 32:
            return count_changes<uint32_t>(chunk, tuned);
        case 64:
            return count_changes<uint64_t>(chunk, tuned);
        default:
            return count_changes<uint8_t>(chunk, tuned);
    }
}

inline void histogram(const Chunk& chunk, const void* tuned, const Bounds& bins, size_t every,
                      int64_t* words, int64_t* magnitudes, Scratch& scratch) {
    switch (chunk.width) {
        case 16:
            return histogram_words<uint16_t>(chunk, tuned, bins, every, words, magnitudes, scratch);
        case 32:
            return histogram_words<uint32_t>(chunk, tuned, bins, every, words, magnitudes, scratch);
        case 64:
            return histogram_words<uint64_t>(chunk, tuned, bins, every, words, magnitudes, scratch);
        default:
            return histogram_words<uint8_t>(chunk, tuned, bins, every, words, magnitudes, scratch);
    }
}

inline void partition(const Chunk& chunk, const void* tuned, const Bounds& bounds, Streams& out,
                      Scratch& scratch) {
    switch (chunk.width) {
        case 16:
            return partition_words<uint16_t>(chunk, tuned, bounds, out, scratch);
        case 32:
            return partition_words<uint32_t>(chunk, tuned, bounds, out, scratch);
        case 64:
            return partition_words<uint64_t>(chunk, tuned, bounds, out, scratch);
        default:
            return partition_words<uint8_t>(chunk, tuned, bounds, out, scratch);
    }
}

inline const char* apply(const Chunk& chunk, void* out, const Bounds& bounds,
                         const uint64_t* changed, Span content, Scratch& scratch) {
    switch (chunk.width) {
        case 16:
            return apply_words<uint16_t>(chunk, out, bounds, changed, content, scratch);
        case 32:
            return apply_words<uint32_t>(chunk, out, bounds, changed, content, scratch);
        case 64:
            return apply_words<uint64_t>(chunk, out, bounds, changed, content, scratch);
        default:
            return apply_words<uint8_t>(chunk, out, bounds, changed, content, scratch);
    }
}

inline size_t record(const void* before, const void* after, size_t words, int width, uint8_t* mask,
                     void* values) {
    switch (width) {
        case 16:
            return record_words(static_cast<const uint16_t*>(before),
                                static_cast<const uint16_t*>(after), words, mask,
                                static_cast<uint16_t*>(values));
        case 32:
            return record_words(static_cast<const uint32_t*>(before),
                                static_cast<const uint32_t*>(after), words, mask,
                                static_cast<uint32_t*>(values));
        case 64:
            return record_words(static_cast<const uint64_t*>(before),
                                static_cast<const uint64_t*>(after), words, mask,
                                static_cast<uint64_t*>(values));
        default:
            return record_words(static_cast<const uint8_t*>(before),
                                static_cast<const uint8_t*>(after), words, mask,
                                static_cast<uint8_t*>(values));
    }
}

inline const char* exchange(void* words, size_t number, int width, const uint8_t* mask,
                            void* values, size_t left, Scratch& scratch) {
    switch (width) {
        case 16:
            return exchange_words(static_cast<uint16_t*>(words), number, mask,
                                  static_cast<uint16_t*>(values), left, scratch);
        case 32:
            return exchange_words(static_cast<uint32_t*>(words), number, mask,
                                  static_cast<uint32_t*>(values), left, scratch);
        case 64:
            return exchange_words(static_cast<uint64_t*>(words), number, mask,
                                  static_cast<uint64_t*>(values), left, scratch);
        default:
            return exchange_words(static_cast<uint8_t*>(words), number, mask,
                                  static_cast<uint8_t*>(values), left, scratch);
    }
}
