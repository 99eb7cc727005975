// A libFuzzer target: two paths of the kernels that run here, on one input, below the checksums.
//
// Paths must agree on what they refuse and on every result, and what `partition` makes must decode
// to the words it was made of. With memory that changes while a kernel runs, results are anything,
// but memory is still only touched where it may be. tools/fuzz/seeds.py writes inputs:
//
//   1 byte  width: 4, 8, 16, 32, 64       1 byte  order map
//   1 byte  flags, see below              1 byte  task, see below
//   1 byte  histogram: every so many tiles, less one; from bit 2 on, which two paths
//   1 byte  number of bounds, less one    2 bytes words
//   8 bytes words of a row                8 bytes place of the first word in its row
//   2 bytes each: sizes of base, difference and row flags, each repeated as often as needed
//   8 bytes each: bounds, then changed words of each context
//   base, difference (tuned XOR base) and row flags, then the rest
//
// For the task kDecode the rest is the content. For others, with kEdited, it is edits of what the
// encoder makes, of three bytes: a place, and what to XOR there or, if that is 0, the end of the
// content. The numbers of changed words are then added to the right ones.
//
// An input does one task with two paths, as its bytes choose: all tasks with all paths would take
// ten times as long to learn the same from most inputs.
#include <sanitizer/asan_interface.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <new>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kernels.hpp"
#include "leaves.hpp"

using namespace rlsparse;

namespace {

enum Flags { kRows = 1, kInPlace = 2, kChanging = 4, kThreaded = 8, kEdited = 16, kUnwritten = 32 };
enum Task { kDecode, kEncode, kCount, kExchange, kTasks };

constexpr size_t kMostWords = 10'000;  // more than two tiles, and room for escaped gaps
constexpr size_t kFewWords = 500;      // where the input asks for more than that

[[noreturn]] void fail(const char* path, const char* what) {
    std::fprintf(stderr, "%s: %s\n", path, what);
    std::abort();
}

// Memory that is given back as a whole. All but the blocks taken is poisoned, so that the sanitizer
// reports accesses past the end of one, as in the heap, which would take longer than the kernels.
class Arena {
  public:
    Arena() {
        memory_ = static_cast<uint8_t*>(mmap(nullptr, kSize, PROT_READ | PROT_WRITE,
                                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (memory_ == MAP_FAILED) std::abort();
        __asan_poison_memory_region(memory_, kSize);
    }

    // Uninitialized, with the smallest alignment that the sanitizer supports: vectors that need
    // more are found.
    uint8_t* take(size_t bytes, size_t alignment = 8) {
        const size_t start = (used_ + kGap + alignment - 1) / alignment * alignment;
        if (bytes > kSize - kGap || start > kSize - kGap - bytes) throw std::bad_alloc();
        used_ = start + bytes;
        __asan_unpoison_memory_region(memory_ + start, bytes);
        return memory_ + start;
    }

    size_t used() const { return used_; }

    void give_back(size_t all_but) {
        __asan_poison_memory_region(memory_ + all_but, used_ - all_but);
        used_ = all_but;
    }

  private:
    static constexpr size_t kSize = 64 << 20;  // no case needs a tenth of it
    static constexpr size_t kGap = 1024;

    uint8_t* memory_;
    size_t used_ = 0;
};

// What cases hold, and what kernels ask for.
Arena case_memory, scratch_memory;

// Memory of exactly this size, until the case ends.
class Block {
  public:
    explicit Block(size_t size) : data_(case_memory.take(size)), size_(size) {}
    explicit Block(Span from) : Block(from.size) {
        if (size_) std::memcpy(data_, from.data, size_);
    }
    static Block of_zeros(size_t size) {
        const Block block(size);
        std::memset(block.data_, 0, size);
        return block;
    }

    uint8_t* data() const { return data_; }
    size_t size() const { return size_; }
    Span span() const { return {data_, size_}; }
    Block copy() const { return Block(span()); }
    Block first(size_t size) const { return Block(Span{data_, size}); }

    bool operator==(const Block& other) const {
        return size_ == other.size_ && std::memcmp(data_, other.data_, size_) == 0;
    }
    bool operator!=(const Block& other) const { return !(*this == other); }

  private:
    uint8_t* data_;
    size_t size_;
};

// Numbers in a block of exactly their size.
class Numbers {
  public:
    explicit Numbers(size_t number) : block_(Block::of_zeros(number * sizeof(uint64_t))) {}
    Numbers(const uint64_t* from, size_t number)
        : block_(Span{reinterpret_cast<const uint8_t*>(from), number * sizeof(uint64_t)}) {}

    uint64_t* data() const { return reinterpret_cast<uint64_t*>(block_.data()); }
    size_t number() const { return block_.size() / sizeof(uint64_t); }
    uint64_t last() const { return data()[number() - 1]; }
    Bounds bounds() const { return {data(), number()}; }
    Numbers copy() const { return {data(), number()}; }

    bool operator==(const Numbers& other) const { return block_ == other.block_; }
    bool operator!=(const Numbers& other) const { return block_ != other.block_; }

  private:
    Block block_;
};

// The thread that rewrites memory while kernels run. There is one: to start another for each case
// takes longer than the case.
class Rewriter {
  public:
    static Rewriter& only() {
        static Rewriter* const rewriter = new Rewriter;
        return *rewriter;
    }

    // Calls rewrite(turn), at most kMostTurns times.
    void begin(std::function<void(uint64_t)> rewrite) {
        const std::lock_guard<std::mutex> lock(mutex_);
        rewrite_ = std::move(rewrite);
        stop_ = false;
        begun_.notify_one();
    }

    // Nothing is called once this returns: the mutex is held while something is.
    void end() {
        stop_ = true;
        const std::lock_guard<std::mutex> lock(mutex_);
        rewrite_ = nullptr;
    }

  private:
    static constexpr uint64_t kMostTurns = 200;  // on a single core, more would starve the kernels

    Rewriter() {
        std::thread([this] { run(); }).detach();
    }

    void run() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            begun_.wait(lock, [this] { return bool(rewrite_); });
            for (uint64_t turn = 0; turn < kMostTurns && !stop_; ++turn) rewrite_(turn);
            rewrite_ = nullptr;
        }
    }

    std::mutex mutex_;
    std::condition_variable begun_;
    std::function<void(uint64_t)> rewrite_;
    std::atomic<bool> stop_{false};
};

// Memory that is rewritten: whenever a kernel takes memory, which each does between its passes, and
// by another thread at any time.
class Disturbance {
  public:
    Disturbance(const Block& place, const Block& other, bool threaded)
        : place_(place.data()), sound_(place.copy()), other_(other), threaded_(threaded) {
        current = this;
        if (threaded) Rewriter::only().begin([this](uint64_t turn) { rewrite(turn); });
    }
    ~Disturbance() {
        current = nullptr;
        if (threaded_) Rewriter::only().end();
    }
    static void on_take() {
        if (current) current->rewrite(current->turn_++);
    }

  private:
    static thread_local Disturbance* current;

    // By turns: other bytes, noise in some places, the bytes as they were.
    void rewrite(uint64_t turn) {
        if (turn % 3 == 0) std::memcpy(place_, other_.data(), other_.size());
        if (turn % 3 == 2) std::memcpy(place_, sound_.data(), sound_.size());
        if (turn % 3 != 1) return;
        uint64_t random = turn;
        for (size_t i = 0; i < sound_.size(); i += 1 + (random >> 60)) {
            random = random * 6364136223846793005 + 1442695040888963407;
            place_[i] = uint8_t(random >> 32);
        }
    }

    uint8_t* place_;
    const Block sound_, other_;
    const bool threaded_;
    uint64_t turn_ = 0;
};
thread_local Disturbance* Disturbance::current = nullptr;

}  // namespace

// In place of scratch.cpp: a block for each piece, filled with another value each time, so that
// paths disagree where they read what was never set.
namespace rlsparse {

constexpr size_t kFilled = 16 << 10;  // of a block: only tables of all words are longer, as a rule

Scratch::Scratch() : free_(scratch_memory.used()) {}

Scratch::~Scratch() { scratch_memory.give_back(free_); }

void* Scratch::take(size_t bytes) {
    static uint8_t filling = 0;
    Disturbance::on_take();
    void* memory = scratch_memory.take(bytes, 64);
    std::memset(memory, filling += 0x5B, std::min(bytes, kFilled));
    return memory;
}

}  // namespace rlsparse

namespace {

std::vector<const Kernels*> paths_here() {
    std::vector<const Kernels*> found = {&kPortable};
#if defined(RLSPARSE_X86)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("bmi2")) return found;
    found.push_back(&kAvx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2")) {
        found.push_back(&kAvx512);
    }
#endif
    return found;
}

const std::vector<const Kernels*> kPaths = paths_here();

// Reads the input; past its end there are zeros.
class Input {
  public:
    Input(const uint8_t* data, size_t size) : at_(data), left_(size) {}

    uint64_t number(size_t bytes) {
        uint64_t value = 0;
        const Span found = take(bytes);
        if (found.size) std::memcpy(&value, found.data, found.size);
        return value;
    }

    Span take(size_t bytes) {
        bytes = std::min(bytes, left_);
        const Span taken{at_, bytes};
        at_ += bytes;
        left_ -= bytes;
        return taken;
    }

    Span rest() { return take(left_); }

  private:
    const uint8_t* at_;
    size_t left_;
};

Block repeated(Span pattern, size_t size) {
    if (pattern.size == 0) return Block::of_zeros(size);
    const Block all(size);
    for (size_t i = 0; i < size; i += pattern.size) {
        std::memcpy(all.data() + i, pattern.data, std::min(pattern.size, size - i));
    }
    return all;
}

// One input, all of which is as module.cpp lets it pass.
class Case {
  public:
    int width, flags;
    Order order;
    Task task;
    const Kernels *path, *rival;
    size_t words, every;
    uint64_t row_length, row_offset;
    Numbers bounds{0}, changed{0};
    Block base{0}, tuned{0}, active{0};
    Span rest;

    explicit Case(Input in) {
        constexpr int kWidths[] = {4, 8, 16, 32, 64};
        width = kWidths[in.number(1) % 5];
        order = Order(in.number(1) % 3);
        flags = int(in.number(1));
        task = Task(in.number(1) % kTasks);
        const size_t choice = in.number(1);
        every = 1 + choice % 4;
        path = kPaths[choice / 4 % kPaths.size()];
        rival = kPaths[(choice / 4 + 1) % kPaths.size()];
        const size_t number = size_t(1 + in.number(1) % kMaxContexts);
        words = size_t(in.number(2));
        if (words > kMostWords) words %= kFewWords;
        row_length = std::max<uint64_t>(1, in.number(8));
        row_offset = in.number(8) % row_length;
        const size_t sizes[] = {size_t(in.number(2)), size_t(in.number(2)), size_t(in.number(2))};
        uint64_t upper[kMaxContexts], changes[kMaxContexts];
        for (size_t i = 0; i < number; ++i) upper[i] = in.number(8);
        for (size_t i = 0; i < number; ++i) changes[i] = in.number(8);
        std::sort(upper, upper + number);
        const size_t contexts = size_t(std::unique(upper, upper + number) - upper);
        bounds = Numbers(upper, contexts);
        changed = Numbers(changes, contexts);
        base = repeated(in.take(sizes[0]), words * word_bytes());
        tuned = repeated(in.take(sizes[1]), base.size());
        for (size_t i = 0; i < base.size(); ++i) {
            if (width == 4) base.data()[i] &= 15, tuned.data()[i] &= 15;
            tuned.data()[i] ^= base.data()[i];
        }
        const Span row_flags = in.take(sizes[2]);
        if (flags & kRows) active = repeated(row_flags, words ? row_of(words - 1) + 1 : 0);
        for (size_t i = 0; i < active.size(); ++i) active.data()[i] &= 1;
        rest = in.rest();
    }

    size_t word_bytes() const { return width == 4 ? 1 : size_t(width) / 8; }

    // Two words of 4 bits share a byte.
    size_t stored_bytes() const { return words * size_t(width) / 8; }
    bool is_whole_bytes() const { return width != 4 || words % 2 == 0; }

    uint64_t top_key() const { return ~uint64_t(0) >> (64 - width + (order == kUnsigned ? 0 : 1)); }

    size_t row_of(size_t word) const {
        const uint64_t left = row_length - row_offset;
        return word < left ? 0 : size_t(1 + (word - left) / row_length);
    }

    uint64_t word(const Block& from, size_t i) const {
        uint64_t value = 0;
        std::memcpy(&value, from.data() + i * word_bytes(), word_bytes());
        return value;
    }

    uint64_t key(size_t i) const {  // specs/format.md section 2
        const uint64_t value = word(base, i);
        const bool negative = value >> (width - 1);
        return (order == kTwosComplement && negative ? ~value : value) & top_key();
    }

    bool considered(size_t i) const {
        return key(i) <= bounds.last() && (!(flags & kRows) || active.data()[row_of(i)]);
    }

    // What remains of the tuned words where only the considered ones are coded, and whether every
    // flagged row has a change then.
    bool expect(const Block& words_left) const {
        const Block missing = active.copy();
        for (size_t i = 0; i < words; ++i) {
            const bool is_coded = considered(i) && word(base, i) != word(tuned, i);
            const Block& from = is_coded ? tuned : base;
            const size_t place = i * word_bytes();
            std::memcpy(words_left.data() + place, from.data() + place, word_bytes());
            if (is_coded && (flags & kRows)) missing.data()[row_of(i)] = 0;
        }
        return missing == Block::of_zeros(missing.size());
    }

    Chunk chunk(const Block& words_block) const {
        RowFlags rows;
        if (flags & kRows) rows = {active.data(), row_length, row_offset};
        return {words_block.data(), words, width, order, rows};
    }
};

// The changed words of a case, in blocks of exactly their size.
class Listed {
  public:
    Listed(const Kernels& path, const Case& c, const Chunk& chunk) : mask_((c.words + 7) / 8) {
        const Block before(c.base.size()), after(c.base.size());
        changes = path.compare(chunk, c.tuned.data(), mask_.data(), before.data(), after.data());
        const size_t bytes = size_t(changes.number) * c.word_bytes();
        before_ = before.first(bytes);
        after_ = after.first(bytes);
        if (path.count_ones(mask_.data(), mask_.size()) != changes.number) {
            fail(path.name, "mask and lists disagree");
        }
    }

    Changed get() const {
        return {mask_.data(), before_.data(), after_.data(), size_t(changes.number)};
    }

    bool operator==(const Listed& other) const {
        return changes.number == other.changes.number && changes.top_key == other.changes.top_key &&
               mask_ == other.mask_ && before_ == other.before_ && after_ == other.after_;
    }

    Changes changes;

  private:
    Block mask_, before_{0}, after_{0};
};

// Counts of words and of steps by bin.
struct Counts {
    Numbers words, magnitudes;

    bool operator==(const Counts& other) const {
        return words == other.words && magnitudes == other.magnitudes;
    }
};

Counts count(const Kernels& path, const Case& c, const Chunk& chunk, const Listed& listed) {
    uint64_t upper[kMaxContexts + 1];
    const uint64_t* const bounds = c.bounds.data();
    size_t number = 0;
    while (number < c.bounds.number() && bounds[number] < c.top_key()) {
        upper[number] = bounds[number];
        ++number;
    }
    upper[number++] = c.top_key();
    const Numbers bins(upper, number);
    const Counts found{Numbers(number), Numbers(number * kMagnitudeClasses)};
    Scratch scratch;
    path.histogram(chunk, listed.get(), bins.bounds(), c.every,
                   reinterpret_cast<int64_t*>(found.words.data()),
                   reinterpret_cast<int64_t*>(found.magnitudes.data()), scratch);
    return found;
}

// What `partition` makes, joined as it is in a file.
struct Encoded {
    Numbers counts, changed, steps;
    Block content;

    bool operator==(const Encoded& other) const {
        return counts == other.counts && changed == other.changed && steps == other.steps &&
               content == other.content;
    }
};

Encoded encode(const Kernels& path, const Case& c, const Chunk& chunk, const Listed& listed) {
    Streams streams;
    Scratch scratch;
    path.partition(chunk, listed.get(), c.bounds.bounds(), streams, scratch);
    const size_t number = c.bounds.number();
    std::vector<Span> spans(streams.masks, streams.masks + number);
    spans.insert(spans.end(),
                 {streams.signs, streams.classes, streams.exponents, streams.low_bits});
    size_t size = 0;
    for (const Span& span : spans) size += span.size;
    const Block content(size);
    size_t end = 0;
    for (const Span& span : spans) {
        if (span.size) std::memcpy(content.data() + end, span.data, span.size);
        end += span.size;
    }
    return {Numbers(streams.counts, number), Numbers(streams.changed, number),
            Numbers(streams.steps, 8), content};
}

// With the edits of the case, of three bytes: a place, and what to XOR there.
Block edited(const Case& c, const Block& block) {
    const Block found = block.copy();
    for (size_t i = 0; i + 2 < c.rest.size && found.size(); i += 3) {
        const size_t place = c.rest.data[i] | size_t(c.rest.data[i + 1]) << 8;
        found.data()[place % found.size()] ^= c.rest.data[i + 2];
    }
    return found;
}

// Of the content, an edit that changes nothing is the end.
Encoded edited(const Case& c, const Encoded& encoded) {
    Encoded found{encoded.counts, encoded.changed.copy(), encoded.steps, encoded.content};
    uint64_t* const changed = found.changed.data();
    for (size_t i = 0; i < found.changed.number(); ++i) changed[i] += c.changed.data()[i];
    size_t size = found.content.size();
    for (size_t i = 0; i + 2 < c.rest.size && size != 0; i += 3) {
        const size_t place = c.rest.data[i] | size_t(c.rest.data[i + 1]) << 8;
        if (c.rest.data[i + 2] == 0) size = place % size;
    }
    found.content = edited(c, encoded.content).first(size);
    return found;
}

// The result and its leaf hashes, or what is wrong with the content.
struct Applied {
    const char* problem;
    Block out;  // empty where only the hashes are wanted
    Numbers leaves;

    bool operator==(const Applied& other) const {
        if (problem || other.problem) return problem && other.problem;
        return leaves == other.leaves && (!out.size() || !other.out.size() || out == other.out);
    }
};

Applied apply(const Kernels& path, const Case& c, const Block& base, const Numbers& changed,
              const Block& content, bool is_written) {
    const Block out = !is_written ? Block(0) : c.flags & kInPlace ? base : Block(base.size());
    const Numbers leaves(c.is_whole_bytes() ? leaves_of(c.stored_bytes()) : 0);
    const Output output{is_written ? out.data() : nullptr,
                        c.is_whole_bytes() ? leaves.data() : nullptr, find_xxh3(path.name)};
    Scratch scratch;
    const char* problem = path.apply(c.chunk(base), output, c.bounds.bounds(), changed.data(),
                                     content.span(), scratch);
    return {problem, out, leaves};
}

// The leaf hashes of some words.
Numbers hashed(const Kernels& path, const Case& c, const Block& words) {
    const Block bytes = c.width == 4 ? Block(c.stored_bytes()) : words;
    for (size_t i = 0; c.width == 4 && i < bytes.size(); ++i) {
        bytes.data()[i] = uint8_t(words.data()[2 * i] | words.data()[2 * i + 1] << 4);
    }
    const Numbers leaves(leaves_of(bytes.size()));
    hash_leaves(find_xxh3(path.name), bytes.data(), bytes.size(), leaves.data());
    return leaves;
}

// The words of a mask, and what they are swapped with.
struct Recorded {
    Block mask, values;

    bool operator==(const Recorded& other) const {
        return mask == other.mask && values == other.values;
    }
};

Recorded record(const Kernels& path, const Case& c, const Block& before, const Block& after) {
    const Block mask((c.words + 7) / 8), room(before.size());
    const size_t number = path.record(before.data(), after.data(), c.words, int(8 * c.word_bytes()),
                                      mask.data(), room.data());
    return {mask, room.first(number * c.word_bytes())};
}

// Swaps words and values, or says what is wrong with the mask.
const char* exchange(const Kernels& path, const Case& c, const Block& words, const Recorded& with) {
    Scratch scratch;
    return path.exchange(words.data(), c.words, int(8 * c.word_bytes()), with.mask.data(),
                         with.values.data(), with.values.size() / c.word_bytes(), scratch);
}

// --- Two paths compared --------------------------------------------------------------------------

// Decodes with both paths; what the first finds.
Applied compare_apply(const Case& c, const Numbers& changed, const Block& content) {
    const Applied found = apply(*c.path, c, c.base.copy(), changed, content, true);
    const bool is_written = !(c.flags & kUnwritten) || !c.is_whole_bytes();
    const Applied other = apply(*c.rival, c, c.base.copy(), changed, content, is_written);
    if (!(found == other)) fail(c.path->name, "apply disagrees");
    if (!found.problem && c.is_whole_bytes() && found.leaves != hashed(*c.rival, c, found.out)) {
        fail(c.path->name, "leaf hashes disagree with the words");
    }
    return found;
}

Listed compare_lists(const Case& c) {
    const Listed found(*c.path, c, c.chunk(c.base));
    if (!(found == Listed(*c.rival, c, c.chunk(c.base)))) fail(c.path->name, "compare disagrees");
    return found;
}

void compare_counts(const Case& c) {
    const Listed listed = compare_lists(c);
    const Counts found = count(*c.path, c, c.chunk(c.base), listed);
    if (!(found == count(*c.rival, c, c.chunk(c.base), listed))) {
        fail(c.path->name, "histogram disagrees");
    }
}

void compare_encoded(const Case& c) {
    const Listed listed = compare_lists(c);
    const Encoded encoded = encode(*c.path, c, c.chunk(c.base), listed);
    if (!(encoded == encode(*c.rival, c, c.chunk(c.base), listed))) {
        fail(c.path->name, "partition disagrees");
    }
    if (c.flags & kEdited) {
        const Encoded other = edited(c, encoded);
        compare_apply(c, other.changed, other.content);
        return;
    }
    const Block expected(c.base.size());
    const bool is_accepted = c.expect(expected);
    const Applied found = compare_apply(c, encoded.changed, encoded.content);
    if (is_accepted == bool(found.problem)) {
        fail(c.path->name, is_accepted ? "the streams are refused" : "a flagged row passes");
    }
    if (is_accepted && found.out != expected) fail(c.path->name, "no round trip");
}

void compare_exchanged(const Case& c) {
    const Recorded forward = record(*c.path, c, c.base, c.tuned);
    const Recorded backward = record(*c.rival, c, c.tuned, c.base);
    if (forward.mask != backward.mask) fail(c.path->name, "record disagrees");
    Recorded found{forward.mask, forward.values.copy()};
    if (c.flags & kEdited) found.mask = edited(c, forward.mask);
    const Recorded other{found.mask, found.values.copy()};
    const Block words = c.tuned.copy(), others = c.tuned.copy();
    const char* problem = exchange(*c.path, c, words, found);
    const char* others_problem = exchange(*c.rival, c, others, other);
    if (bool(problem) != bool(others_problem) || words != others || !(found == other)) {
        fail(c.path->name, "exchange disagrees");
    }
    if (problem ? words != c.tuned : found.mask == forward.mask && words != c.base) {
        fail(c.path->name, problem ? "a refused exchange changes words" : "no exchange");
    }
    if (found.mask == forward.mask && found.values != backward.values) {
        fail(c.path->name, "values that are exchanged are not those recorded");
    }
}

void compare(const Case& c) {
    switch (c.task) {
        case kDecode:
            compare_apply(c, c.changed, Block(c.rest));
            return;
        case kEncode:
            return compare_encoded(c);
        case kCount:
            return compare_counts(c);
        default:
            return compare_exchanged(c);
    }
}

// --- One path while memory changes ---------------------------------------------------------------

void disturb(const Case& c) {
    const Kernels& path = *c.path;
    const Block base = c.base.copy();
    const bool threaded = c.flags & kThreaded, is_written = !(c.flags & kUnwritten);
    if (c.task == kDecode) {
        const Disturbance disturbance(base, c.tuned, threaded);
        apply(path, c, base, c.changed, Block(c.rest), is_written || !c.is_whole_bytes());
    } else if (c.task == kEncode) {
        Encoded encoded = encode(path, c, c.chunk(base), Listed(path, c, c.chunk(base)));
        if (c.flags & kEdited) encoded = edited(c, encoded);
        const Disturbance disturbance(base, c.tuned, threaded);
        apply(path, c, base, encoded.changed, encoded.content, is_written || !c.is_whole_bytes());
    } else if (c.task == kCount) {
        const Disturbance disturbance(base, c.tuned, threaded);
        const Listed listed(path, c, c.chunk(base));
        count(path, c, c.chunk(base), listed);
        encode(path, c, c.chunk(base), listed);
    } else {
        const Recorded recorded = record(path, c, base, c.tuned);
        const Disturbance disturbance(recorded.mask, edited(c, recorded.mask), threaded);
        exchange(path, c, base, recorded);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    {
        const Case c{Input(data, size)};
        c.flags& kChanging ? disturb(c) : compare(c);
    }
    case_memory.give_back(0);
    return 0;
}

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t most);

// Mutates as libFuzzer does, but keeps what takes long rare: long inputs and threads reach little
// that others do not, and would take most of the time.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t most, unsigned seed) {
    constexpr size_t kFlagsPlace = 2, kWordsPlace = 6, kLongOneIn = 4, kThreadedOneIn = 16;
    std::minstd_rand random(seed);
    size = LLVMFuzzerMutate(data, size, most);
    if (size < kWordsPlace + 2) return size;
    uint16_t words;
    std::memcpy(&words, data + kWordsPlace, 2);
    if (random() % kLongOneIn) words = uint16_t(words % kFewWords);
    std::memcpy(data + kWordsPlace, &words, 2);
    if (random() % kThreadedOneIn) data[kFlagsPlace] &= uint8_t(~kThreaded);
    return size;
}
