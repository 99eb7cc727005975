// What the kernels take and give, for every instruction set. What they must compute is defined by
// the NumPy backend and, in words, by specs/format.md section 4.
#pragma once

#include <cstddef>
#include <cstdint>

// The faster paths need x86 and the intrinsics and attributes that GCC and Clang share.
#if defined(__x86_64__) && defined(__GNUC__)
#define RLSPARSE_X86 1
#endif

namespace rlsparse {

constexpr int kMaxContexts = 16;
constexpr int kMagnitudeClasses = 12;  // MAGNITUDE_CLASSES of the interface

enum Order { kUnsigned = 0, kTwosComplement = 1, kSignMagnitude = 2 };

// One flag per row that a chunk touches; no flags at all where every word counts.
struct RowFlags {
    const uint8_t* active = nullptr;
    uint64_t length = 1;  // words of a row
    uint64_t offset = 0;  // place of the chunk's first word in its row
};

// The words of a chunk and how they are to be read.
struct Chunk {
    const void* base;
    size_t words;
    int width;  // 4 (one per byte), 8, 16, 32 or 64
    Order order;
    RowFlags rows;
};

struct Bounds {
    const uint64_t* upper;  // ascending inclusive keys
    size_t number;
};

struct Span {
    const uint8_t* data = nullptr;
    size_t size = 0;
};

// Memory that is given back as a whole. Each thread keeps some for its next call, because fresh
// memory costs a page fault for every 4 KiB, which can cost more than the work done in it. Kept out
// of the files that are compiled for one instruction set, so that nothing compiled for a newer
// processor can be linked into the path of an older one.
class Scratch {
  public:
    Scratch();
    ~Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    // Uninitialized memory, aligned for vectors. Throws std::bad_alloc.
    void* take(size_t bytes);
    template <class T>
    T* array(size_t count) {
        return static_cast<T*>(take(count * sizeof(T)));
    }

  private:
    struct Block;
    Block* blocks_ = nullptr;  // the newest first
    size_t free_ = 0;          // bytes left in it
};

// How many words changed, and the largest key of a base word that did.
struct Changes {
    uint64_t number = 0;
    uint64_t top_key = 0;
};

// The changed words of a chunk: a bit per word, zero behind the last one; and those words before
// and after, closed up.
struct Changed {
    const uint8_t* mask;
    const void* before;
    const void* after;
    size_t number;
};

// The streams of a chunk; the spans lie in the scratch memory they were made with.
struct Streams {
    uint64_t counts[kMaxContexts] = {};
    uint64_t changed[kMaxContexts] = {};
    uint64_t steps[8] = {};  // -1, -2, -3, <= -4, 1, 2, 3, >= 4
    Span masks[kMaxContexts];
    Span signs, classes, exponents, low_bits;
};

// XXH3-64 of a byte string of any size.
using Xxh3 = uint64_t (*)(const uint8_t* data, size_t size);

// What decoding gives: the tuned words, or the leaf hashes of their bytes, or both.
struct Output {
    void* words = nullptr;       // may be the base itself; nullptr where only the hashes are wanted
    uint64_t* leaves = nullptr;  // one hash per leaf; nullptr where none is wanted
    Xxh3 xxh3 = nullptr;
};

// One implementation of the kernels. None of them reads past what it is given, whatever is in it.
struct Kernels {
    const char* name;
    // Writes a bit per word that tells whether it differs, and those that do, before and after, to
    // lists that have room for all words.
    Changes (*compare)(const Chunk&, const void* tuned, uint8_t* mask, void* before, void* after);
    // How many bits are set.
    size_t (*count_ones)(const uint8_t* bits, size_t bytes);
    // Adds to words[bins] and magnitudes[bins * kMagnitudeClasses], `every` for each word of one in
    // `every` tiles.
    void (*histogram)(const Chunk&, const Changed&, const Bounds& bins, size_t every,
                      int64_t* words, int64_t* magnitudes, Scratch&);
    void (*partition)(const Chunk&, const Changed&, const Bounds& bounds, Streams&, Scratch&);
    // Decodes the tuned words. Returns what is wrong with the content, or nullptr; where something
    // is wrong, the output is anything.
    const char* (*apply)(const Chunk&, const Output& out, const Bounds& bounds,
                         const uint64_t* changed, Span content, Scratch&);
    // Writes a bit per word that tells whether it differs, and those of `before` that do to
    // `values`, which has room for all words. Returns how many do.
    size_t (*record)(const void* before, const void* after, size_t words, int width, uint8_t* mask,
                     void* values);
    // Swaps the words whose bit is set with the values. Returns what is wrong with the mask, or
    // nullptr; where it was wrong from the start, nothing was written.
    const char* (*exchange)(void* words, size_t number, int width, const uint8_t* mask,
                            void* values, size_t number_of_values, Scratch&);
};

extern const Kernels kPortable;
#if defined(RLSPARSE_X86)
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#endif

}  // namespace rlsparse
