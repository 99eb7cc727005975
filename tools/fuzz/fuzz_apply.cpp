// A libFuzzer target: every path of the kernels that runs here, on one input, below the checksums.
//
// Paths must agree on what they refuse and on every result, and what `partition` makes must decode
// to the words it was made of. With a base that changes while a kernel runs, results are anything,
// but memory is still only touched where it may be. tools/fuzz/seeds.py writes inputs:
//
//   1 byte  width: 4, 8, 16, 32, 64       1 byte  order map
//   1 byte  flags, see below              1 byte  histogram: every so manieth tile
//   1 byte  number of bounds, less one    2 bytes words
//   8 bytes words of a row                8 bytes place of the first word in its row
//   2 bytes each: sizes of base, difference and row flags, each repeated as often as needed
//   8 bytes each: bounds, then changed words of each context
//   base, difference (tuned XOR base) and row flags, then the content
//
// With kDerived, the content is what `partition` makes, and what stands there are edits of it, of
// three bytes: a place, and what to XOR there or, if that is 0, the end of the content. The numbers
// of changed words are then added to the right ones.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kernels.hpp"
#include "leaves.hpp"

using namespace rlsparse;

namespace {

enum Flags { kRows = 1, kInPlace = 2, kChanging = 4, kThreaded = 8, kDerived = 16 };

constexpr size_t kMostWords = 10'000;  // more than two tiles, and room for escaped gaps
constexpr size_t kFewWords = 500;      // where the input asks for more than that

[[noreturn]] void fail(const char* path, const char* what) {
    std::fprintf(stderr, "%s: %s\n", path, what);
    std::abort();
}

using Bytes = std::vector<uint8_t>;

// A heap block of exactly this size, so that the sanitizer sees what passes its end.
class Block {
  public:
    explicit Block(size_t size) : data_(new uint8_t[size]), size_(size) {}
    explicit Block(const Bytes& from) : Block(from.size()) {
        std::copy(from.begin(), from.end(), data_.get());
    }
    uint8_t* data() const { return data_.get(); }
    Bytes bytes() const { return Bytes(data(), data() + size_); }
    Span span() const { return {data(), size_}; }

  private:
    std::unique_ptr<uint8_t[]> data_;
    size_t size_;
};

// The thread that rewrites a base while kernels run. There is one: to start another for each case
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
    static constexpr uint64_t kMostTurns = 200;  // where there is but one core, it would use it up

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

// A base that is rewritten: whenever a kernel takes memory, which each does between its passes,
// and by another thread at any time.
class Disturbance {
  public:
    Disturbance(Block& base, const Bytes& tuned, bool threaded)
        : place_(base.data()), sound_(base.bytes()), tuned_(tuned), threaded_(threaded) {
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

    // By turns: the tuned words, noise in some places, the words as they were.
    void rewrite(uint64_t turn) {
        if (turn % 3 == 0) std::copy(tuned_.begin(), tuned_.end(), place_);
        if (turn % 3 == 2) std::copy(sound_.begin(), sound_.end(), place_);
        if (turn % 3 != 1) return;
        uint64_t random = turn;
        for (size_t i = 0; i < sound_.size(); i += 1 + (random >> 60)) {
            random = random * 6364136223846793005 + 1442695040888963407;
            place_[i] = uint8_t(random >> 32);
        }
    }

    uint8_t* place_;
    const Bytes sound_;
    const Bytes& tuned_;
    const bool threaded_;
    uint64_t turn_ = 0;
};
thread_local Disturbance* Disturbance::current = nullptr;

}  // namespace

// In place of scratch.cpp: a block for each piece, so that the sanitizer sees what passes its end,
// filled with something else each time, so that paths disagree where they use what was never set.
namespace rlsparse {

constexpr size_t kFilled = 128 << 10;  // of a block: more than the words of a case take

struct Scratch::Block {
    Block* next;
    void* memory;
};

Scratch::Scratch() = default;

Scratch::~Scratch() {
    while (blocks_) {
        Block* next = blocks_->next;
        std::free(blocks_->memory);
        delete blocks_;
        blocks_ = next;
    }
}

void* Scratch::take(size_t bytes) {
    static uint8_t filling = 0;
    Disturbance::on_take();
    void* memory = nullptr;
    if (bytes > SIZE_MAX / 4 || posix_memalign(&memory, 64, bytes)) throw std::bad_alloc();
    std::memset(memory, filling += 0x5B, std::min(bytes, kFilled));
    blocks_ = new Block{blocks_, memory};
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
        const Bytes found = take(bytes);
        if (!found.empty()) std::memcpy(&value, found.data(), found.size());
        return value;
    }

    Bytes take(size_t bytes) {
        bytes = std::min(bytes, left_);
        const Bytes taken(at_, at_ + bytes);
        at_ += bytes;
        left_ -= bytes;
        return taken;
    }

    Bytes rest() { return take(left_); }

  private:
    const uint8_t* at_;
    size_t left_;
};

Bytes repeated(const Bytes& pattern, size_t size) {
    Bytes all(size);
    for (size_t i = 0; i < size && !pattern.empty(); i += pattern.size()) {
        std::memcpy(&all[i], pattern.data(), std::min(pattern.size(), size - i));
    }
    return all;
}

// One input, all of which is as module.cpp lets it pass.
struct Case {
    int width, flags;
    Order order;
    size_t words, every;
    uint64_t row_length, row_offset;
    std::vector<uint64_t> bounds, changed;
    Bytes base, tuned, active, rest;

    explicit Case(Input in) {
        constexpr int kWidths[] = {4, 8, 16, 32, 64};
        width = kWidths[in.number(1) % 5];
        order = Order(in.number(1) % 3);
        flags = int(in.number(1));
        every = size_t(1 + in.number(1) % 4);
        const size_t number = size_t(1 + in.number(1) % kMaxContexts);
        words = size_t(in.number(2));
        if (words > kMostWords) words %= kFewWords;
        row_length = std::max<uint64_t>(1, in.number(8));
        row_offset = in.number(8) % row_length;
        const size_t sizes[] = {size_t(in.number(2)), size_t(in.number(2)), size_t(in.number(2))};
        for (size_t i = 0; i < number; ++i) bounds.push_back(in.number(8));
        for (size_t i = 0; i < number; ++i) changed.push_back(in.number(8));
        std::sort(bounds.begin(), bounds.end());
        bounds.erase(std::unique(bounds.begin(), bounds.end()), bounds.end());
        changed.resize(bounds.size());
        base = repeated(in.take(sizes[0]), words * word_bytes());
        tuned = repeated(in.take(sizes[1]), base.size());
        for (size_t i = 0; i < base.size(); ++i) {
            if (width == 4) base[i] &= 15, tuned[i] &= 15;
            tuned[i] ^= base[i];
        }
        active = repeated(in.take(sizes[2]), words ? row_of(words - 1) + 1 : 0);
        for (uint8_t& flag : active) flag &= 1;
        rest = in.rest();
    }

    size_t word_bytes() const { return width == 4 ? 1 : size_t(width) / 8; }

    uint64_t top_key() const { return ~uint64_t(0) >> (64 - width + (order == kUnsigned ? 0 : 1)); }

    size_t row_of(size_t word) const {
        return size_t((static_cast<unsigned __int128>(row_offset) + word) / row_length);
    }

    uint64_t word(const Bytes& from, size_t i) const {
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
        return key(i) <= bounds.back() && (!(flags & kRows) || active[row_of(i)]);
    }

    // What remains of the tuned words where only the considered ones are coded, and whether every
    // flagged row has a change then.
    bool expect(Bytes& words_left) const {
        words_left = base;
        std::vector<bool> missing(active.begin(), active.end());
        for (size_t i = 0; i < words; ++i) {
            if (!considered(i) || word(base, i) == word(tuned, i)) continue;
            std::memcpy(&words_left[i * word_bytes()], &tuned[i * word_bytes()], word_bytes());
            missing[row_of(i)] = false;
        }
        return !(flags & kRows) || std::count(missing.begin(), missing.end(), true) == 0;
    }

    Chunk chunk(const Block& base_block, const Block& active_block) const {
        RowFlags rows;
        if (flags & kRows) rows = {active_block.data(), row_length, row_offset};
        return {base_block.data(), words, width, order, rows};
    }
};

// Numbers in a block of exactly their size.
class Numbers {
  public:
    explicit Numbers(const std::vector<uint64_t>& from)
        : block_(from.size() * sizeof(uint64_t)), number_(from.size()) {
        if (number_) std::memcpy(block_.data(), from.data(), number_ * sizeof(uint64_t));
    }
    uint64_t* data() const { return reinterpret_cast<uint64_t*>(block_.data()); }
    Bounds bounds() const { return {data(), number_}; }
    Bytes bytes() const { return block_.bytes(); }

  private:
    Block block_;
    size_t number_;
};

void append(Bytes& to, Span span) { to.insert(to.end(), span.data, span.data + span.size); }

// What `partition` makes, joined as it is in a file.
struct Encoded {
    std::vector<uint64_t> counts, changed, steps;
    Bytes content;

    bool operator==(const Encoded& other) const {
        return counts == other.counts && changed == other.changed && steps == other.steps &&
               content == other.content;
    }
};

// The changed words of a case, in blocks of exactly their size.
class Listed {
  public:
    Listed(const Kernels& path, const Case& c, const Chunk& chunk, const Block& tuned)
        : mask_((c.words + 7) / 8) {
        Block before(c.base.size()), after(c.base.size());
        changes = path.compare(chunk, tuned.data(), mask_.data(), before.data(), after.data());
        const size_t bytes = size_t(changes.number) * c.word_bytes();
        before_ = Block(Bytes(before.data(), before.data() + bytes));
        after_ = Block(Bytes(after.data(), after.data() + bytes));
        if (path.count_ones(mask_.data(), (c.words + 7) / 8) != changes.number) {
            fail(path.name, "mask and lists disagree");
        }
    }

    Changed get() const {
        return {mask_.data(), before_.data(), after_.data(), size_t(changes.number)};
    }

    bool operator==(const Listed& other) const {
        return changes.number == other.changes.number && changes.top_key == other.changes.top_key &&
               mask_.bytes() == other.mask_.bytes() && before_.bytes() == other.before_.bytes() &&
               after_.bytes() == other.after_.bytes();
    }

    Changes changes;

  private:
    Block mask_, before_{0}, after_{0};
};

Encoded encode(const Kernels& path, const Case& c, const Chunk& chunk, const Listed& listed) {
    const Numbers bounds(c.bounds);
    Streams streams;
    Scratch scratch;
    path.partition(chunk, listed.get(), bounds.bounds(), streams, scratch);
    const size_t number = c.bounds.size();
    Encoded found{{streams.counts, streams.counts + number},
                  {streams.changed, streams.changed + number},
                  {streams.steps, streams.steps + 8},
                  {}};
    for (size_t i = 0; i < number; ++i) append(found.content, streams.masks[i]);
    for (const Span& span : {streams.signs, streams.classes, streams.exponents, streams.low_bits}) {
        append(found.content, span);
    }
    return found;
}

// Counts of words and of steps by bin, one after the other.
Bytes count(const Kernels& path, const Case& c, const Chunk& chunk, const Listed& listed) {
    std::vector<uint64_t> upper;
    for (uint64_t bound : c.bounds) {
        if (bound < c.top_key()) upper.push_back(bound);
    }
    upper.push_back(c.top_key());
    const Numbers bins(upper);
    const Numbers words{std::vector<uint64_t>(upper.size())};
    const Numbers magnitudes{std::vector<uint64_t>(upper.size() * kMagnitudeClasses)};
    Scratch scratch;
    path.histogram(chunk, listed.get(), bins.bounds(), c.every,
                   reinterpret_cast<int64_t*>(words.data()),
                   reinterpret_cast<int64_t*>(magnitudes.data()), scratch);
    Bytes found = words.bytes();
    for (uint8_t byte : magnitudes.bytes()) found.push_back(byte);
    return found;
}

// The result and its leaf hashes, or nothing if the content is refused.
struct Applied {
    std::string problem;
    Bytes out, leaves;

    bool operator==(const Applied& other) const {
        return problem.empty() == other.problem.empty() &&
               (!problem.empty() || (out == other.out && leaves == other.leaves));
    }
};

// The bytes of words: two words of 4 bits share one.
Bytes stored_bytes(const Case& c, const Bytes& words) {
    if (c.width != 4) return words;
    Bytes packed(words.size() / 2);
    for (size_t i = 0; i < packed.size(); ++i) {
        packed[i] = uint8_t(words[2 * i] | words[2 * i + 1] << 4);
    }
    return packed;
}

Applied apply(const Kernels& path, const Case& c, const Chunk& chunk, const Block& base,
              const std::vector<uint64_t>& changed, const Bytes& content) {
    const Numbers bounds(c.bounds), numbers(changed);
    const Block given(content), apart(c.base.size());
    const Block& out = c.flags & kInPlace ? base : apart;
    const bool whole_bytes = c.width != 4 || c.words % 2 == 0;
    const size_t size = stored_bytes(c, c.base).size();
    const Xxh3 xxh3 = find_xxh3(path.name);
    const auto decode = [&](void* words, const Block& leaves) {
        Scratch scratch;
        uint64_t* hashes = whole_bytes ? reinterpret_cast<uint64_t*>(leaves.data()) : nullptr;
        const char* problem = path.apply(chunk, {words, hashes, xxh3}, bounds.bounds(),
                                         numbers.data(), given.span(), scratch);
        return std::string(problem ? problem : "");
    };
    const size_t room = whole_bytes ? leaves_of(size) * sizeof(uint64_t) : 0;
    const Block alone(room), beside(room);
    const std::string unwritten = whole_bytes ? decode(nullptr, alone) : "";
    const std::string problem = decode(out.data(), beside);
    if (!(c.flags & kChanging) && whole_bytes) {
        if (unwritten != problem) fail(path.name, "decoding without an output disagrees");
        if (problem.empty()) {
            const Bytes bytes = stored_bytes(c, out.bytes());
            const Numbers expected{std::vector<uint64_t>(leaves_of(size))};
            hash_leaves(xxh3, bytes.data(), size, expected.data());
            if (alone.bytes() != expected.bytes() || beside.bytes() != expected.bytes()) {
                fail(path.name, "leaf hashes disagree with the words");
            }
        }
    }
    return {problem, out.bytes(), beside.bytes()};
}

// Everything that a path says of a case, in a base of its own.
struct Findings {
    Listed listed;
    Bytes counts;
    Encoded encoded;
    Applied round_trip, applied;
};

Findings run(const Kernels& path, const Case& c) {
    const Block tuned(c.tuned), active(c.active), base(c.base), again(c.base);
    const Chunk chunk = c.chunk(base, active), same = c.chunk(again, active);
    Findings found{{path, c, chunk, tuned}, {}, {}, {}, {}};
    found.counts = count(path, c, chunk, found.listed);
    found.encoded = encode(path, c, chunk, found.listed);
    const Encoded& encoded = found.encoded;
    found.round_trip = apply(path, c, chunk, base, encoded.changed, encoded.content);
    if (!(c.flags & kDerived)) {
        found.applied = apply(path, c, same, again, c.changed, c.rest);
        return found;
    }
    std::vector<uint64_t> changed = encoded.changed;
    for (size_t i = 0; i < changed.size(); ++i) changed[i] += c.changed[i];
    Bytes content = encoded.content;
    for (size_t i = 0; i + 2 < c.rest.size() && !content.empty(); i += 3) {
        const size_t place = (c.rest[i] | size_t(c.rest[i + 1]) << 8) % content.size();
        if (c.rest[i + 2]) {
            content[place] ^= c.rest[i + 2];
        } else {
            content.resize(place);
        }
    }
    found.applied = apply(path, c, same, again, changed, content);
    return found;
}

void compare(const Case& c) {
    Bytes expected;
    const bool accepted = c.expect(expected);
    std::vector<Findings> all;
    for (const Kernels* path : kPaths) all.push_back(run(*path, c));
    const Findings& first = all.front();
    for (size_t i = 0; i < all.size(); ++i) {
        const Kernels* path = kPaths[i];
        const Findings& found = all[i];
        if (!(found.listed == first.listed)) fail(path->name, "compare disagrees");
        if (found.counts != first.counts) fail(path->name, "histogram disagrees");
        if (!(found.encoded == first.encoded)) fail(path->name, "partition disagrees");
        if (found.round_trip.problem.empty() != accepted) {
            fail(path->name, accepted ? "the streams are refused" : "a flagged row passes");
        }
        if (accepted && found.round_trip.out != expected) fail(path->name, "no round trip");
        if (!(found.applied == first.applied)) fail(path->name, "apply disagrees");
    }
}

void disturb(const Case& c) {
    const Block tuned(c.tuned), active(c.active);
    Encoded encoded{{}, c.changed, {}, c.rest};
    if (c.flags & kDerived) {
        const Block base(c.base);
        const Chunk chunk = c.chunk(base, active);
        encoded = encode(kPortable, c, chunk, {kPortable, c, chunk, tuned});
    }
    for (const Kernels* path : kPaths) {
        Block base(c.base);
        const Chunk chunk = c.chunk(base, active);
        const Disturbance disturbance(base, c.tuned, c.flags & kThreaded);
        apply(*path, c, chunk, base, encoded.changed, encoded.content);
        const Listed listed(*path, c, chunk, tuned);
        count(*path, c, chunk, listed);
        encode(*path, c, chunk, listed);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const Case c{Input(data, size)};
    if (c.flags & kChanging) {
        disturb(c);
    } else {
        compare(c);
    }
    return 0;
}
