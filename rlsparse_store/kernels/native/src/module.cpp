// The kernels as a Python module. Python checks types; what arrays must agree on is checked here,
// so that no call from Python can read or write outside of what it hands over.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstring>
#include <new>

#include "cuts.hpp"
#include "draft.hpp"
#include "kernels.hpp"
#include "leaves.hpp"

namespace {

using namespace rlsparse;

// A buffer of Python's, released at the end.
class Buffer {
  public:
    Buffer() = default;
    ~Buffer() {
        if (view_.obj) PyBuffer_Release(&view_);
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    Py_buffer* view() { return &view_; }
    void* data() const { return view_.buf; }
    size_t size() const { return size_t(view_.len); }
    bool given() const { return view_.obj != nullptr; }

  private:
    Py_buffer view_ = {};
};

// A converter of PyArg_ParseTuple: fills a Buffer that may be written; None leaves it empty.
int writable_or_none(PyObject* object, void* buffer) {
    if (object == Py_None) return 1;
    return PyObject_GetBuffer(object, static_cast<Buffer*>(buffer)->view(), PyBUF_WRITABLE) == 0;
}

// Where the kernels run without the interpreter's lock.
class Unlocked {
  public:
    Unlocked() : state_(PyEval_SaveThread()) {}
    ~Unlocked() { PyEval_RestoreThread(state_); }
    Unlocked(const Unlocked&) = delete;
    Unlocked& operator=(const Unlocked&) = delete;

  private:
    PyThreadState* state_;
};

// Bytes of input up to which a kernel may keep the lock: handing it over takes longer than so
// little work, and much longer if others wait for it.
constexpr size_t kHeldBytes = 64 << 10;

// Calls a function without the interpreter's lock.
template <class Work>
auto unlocked(const Work& work) {
    Unlocked state;
    return work();
}

const Kernels* const kAll[] = {
#if defined(RLSPARSE_X86)
    &kAvx512,
    &kAvx2,
#endif
    &kPortable,
};

bool runs_here(const Kernels* kernels) {
#if defined(RLSPARSE_X86)
    __builtin_cpu_init();
    // Zen 1 and 2 have BMI2, but run its bit extraction in microcode, slower than a loop.
    const bool slow_bmi2 = __builtin_cpu_is("znver1") || __builtin_cpu_is("znver2");
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
                      __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt") &&
                      !slow_bmi2;
    if (kernels == &kAvx2) return avx2;
    if (kernels == &kAvx512) {
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512vbmi") &&
               __builtin_cpu_supports("avx512vbmi2");
    }
#endif
    return kernels == &kPortable;
}

const Kernels* find(const char* name) {
    for (const Kernels* kernels : kAll) {
        if (std::strcmp(kernels->name, name) == 0 && runs_here(kernels)) return kernels;
    }
    PyErr_Format(PyExc_ValueError, "no kernels named %s run here", name);
    return nullptr;
}

PyObject* paths(PyObject*, PyObject*) {
    PyObject* names = PyList_New(0);
    for (const Kernels* kernels : kAll) {
        if (!names || !runs_here(kernels)) continue;
        PyObject* name = PyUnicode_FromString(kernels->name);
        if (!name || PyList_Append(names, name) < 0) Py_CLEAR(names);
        Py_XDECREF(name);
    }
    return names;
}

bool refuse(const char* message) {
    PyErr_SetString(PyExc_ValueError, message);
    return false;
}

bool aligned(const Buffer& buffer, size_t to) {
    return reinterpret_cast<uintptr_t>(buffer.data()) % to == 0;
}

// What every kernel is told of a chunk, and the arrays that back it.
struct Arguments {
    const char* path;
    int width, order;
    unsigned long long row_length = 1, row_offset = 0;
    Buffer base, other, bounds, rows;

    bool check() const {
        if (width != 4 && width != 8 && width != 16 && width != 32 && width != 64) {
            return refuse("width must be 4, 8, 16, 32 or 64");
        }
        if (order < kUnsigned || order > kSignMagnitude) return refuse("unknown order map");
        const size_t bytes = word_bytes();
        if (base.size() % bytes || (other.given() && base.size() != other.size())) {
            return refuse("base and tuned must hold the same whole number of words");
        }
        if (base.size() / bytes >= uint64_t(1) << 32) return refuse("too many words");
        if (!aligned(base, bytes) || !aligned(other, bytes) || !aligned(bounds, 8)) {
            return refuse("an array is not aligned");
        }
        if (bounds.given() && (bounds.size() == 0 || bounds.size() % 8)) return refuse("no bounds");
        for (size_t i = 1; i < bounds.size() / 8; ++i) {
            if (upper()[i - 1] >= upper()[i]) return refuse("bounds must ascend");
        }
        return check_rows(base.size() / bytes);
    }

    Chunk chunk() const {
        const size_t bytes = word_bytes();
        RowFlags flags;
        if (rows.given()) {
            flags = {static_cast<const uint8_t*>(rows.data()), row_length, row_offset};
        }
        return {base.data(), base.size() / bytes, width, Order(order), flags};
    }

    Bounds limits() const { return {upper(), bounds.size() / 8}; }

    uint64_t top_key() const {
        const int bits = width - (order != kUnsigned);
        return bits == 64 ? ~uint64_t(0) : (uint64_t(1) << bits) - 1;
    }

    // Whether the bounds are bins of all keys.
    bool bins_fit() const {
        const Bounds bins = limits();
        return bins.number && bins.number < 65536 && bins.upper[bins.number - 1] >= top_key();
    }

    size_t word_bytes() const { return width == 4 ? 1 : size_t(width) / 8; }

  private:
    const uint64_t* upper() const { return static_cast<const uint64_t*>(bounds.data()); }

    bool check_rows(uint64_t words) const {
        if (!rows.given()) return true;
        if (row_length == 0 || row_offset >= row_length) return refuse("an offset beyond its row");
        const uint64_t whole =
            words > row_length - row_offset ? words - (row_length - row_offset) : 0;
        const uint64_t touched =
            words == 0 ? 0 : 1 + whole / row_length + (whole % row_length != 0);
        return rows.size() == touched || refuse("not one flag per row");
    }
};

// The changed words of a chunk: a mask, and the words before and after.
struct ChangedArguments {
    Buffer mask, before, after;

    bool check(const Arguments& a, const Kernels& kernels) const {
        const size_t words = a.chunk().words, bytes = a.word_bytes();
        const auto* bits = static_cast<const uint8_t*>(mask.data());
        if (mask.size() != words / 8 + (words % 8 != 0)) return refuse("not one bit per word");
        if (words % 8 && bits[words / 8] >> words % 8) return refuse("a bit is set for no word");
        const size_t set = kernels.count_ones(bits, mask.size());
        if (before.size() != set * bytes || after.size() != before.size()) {
            return refuse("not one word before and after for each bit of the mask");
        }
        return (aligned(before, bytes) && aligned(after, bytes)) ||
               refuse("an array is not aligned");
    }

    Changed changed(const Arguments& a) const {
        return {static_cast<const uint8_t*>(mask.data()), before.data(), after.data(),
                before.size() / a.word_bytes()};
    }
};

PyObject* histogram(PyObject*, PyObject* args) {
    Arguments a;
    ChangedArguments c;
    Buffer words, magnitudes;
    unsigned long long every;
    if (!PyArg_ParseTuple(args, "sy*iiy*z*KKy*y*y*Kw*w*", &a.path, a.base.view(), &a.width,
                          &a.order, a.bounds.view(), a.rows.view(), &a.row_length, &a.row_offset,
                          c.mask.view(), c.before.view(), c.after.view(), &every, words.view(),
                          magnitudes.view())) {
        return nullptr;
    }
    const Kernels* kernels = find(a.path);
    if (!kernels || !a.check() || !c.check(a, *kernels)) return nullptr;
    const size_t bins = a.limits().number;
    if (!a.bins_fit() || words.size() != bins * 8 ||
        magnitudes.size() != bins * kMagnitudeClasses * 8 || every == 0) {
        refuse("bins and counts do not fit together");
        return nullptr;
    }
    try {
        Unlocked unlocked;
        Scratch scratch;
        kernels->histogram(a.chunk(), c.changed(a), a.limits(), every,
                           static_cast<int64_t*>(words.data()),
                           static_cast<int64_t*>(magnitudes.data()), scratch);
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    }
    Py_RETURN_NONE;
}

PyObject* numbers(const uint64_t* values, size_t number) {
    PyObject* list = PyList_New(Py_ssize_t(number));
    for (size_t i = 0; list && i < number; ++i) {
        PyObject* value = PyLong_FromUnsignedLongLong(values[i]);
        if (!value || PyList_SetItem(list, Py_ssize_t(i), value) < 0) Py_CLEAR(list);
    }
    return list;
}

// Spans one behind the other.
PyObject* joined(const Span* parts, size_t number) {
    size_t size = 0;
    for (size_t i = 0; i < number; ++i) size += parts[i].size;
    PyObject* bytes = PyBytes_FromStringAndSize(nullptr, Py_ssize_t(size));
    if (!bytes) return nullptr;
    char* out = PyBytes_AsString(bytes);
    // Nobody else has these bytes yet.
    Unlocked unlocked;
    for (size_t i = 0; i < number; ++i) {
        if (parts[i].size) std::memcpy(out, parts[i].data, parts[i].size);
        out += parts[i].size;
    }
    return bytes;
}

PyObject* partition(PyObject*, PyObject* args) {
    Arguments a;
    ChangedArguments c;
    if (!PyArg_ParseTuple(args, "sy*iiy*z*KKy*y*y*", &a.path, a.base.view(), &a.width, &a.order,
                          a.bounds.view(), a.rows.view(), &a.row_length, &a.row_offset,
                          c.mask.view(), c.before.view(), c.after.view())) {
        return nullptr;
    }
    const Kernels* kernels = find(a.path);
    if (!kernels || !a.check() || !c.check(a, *kernels)) return nullptr;
    const size_t number = a.limits().number;
    if (number > kMaxContexts) {
        refuse("too many contexts");
        return nullptr;
    }
    Scratch scratch;
    Streams streams;
    try {
        Unlocked unlocked;
        kernels->partition(a.chunk(), c.changed(a), a.limits(), streams, scratch);
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    }
    Span parts[kMaxContexts + 4];
    for (size_t i = 0; i < number; ++i) parts[i] = streams.masks[i];
    Span* values = parts + number;
    values[0] = streams.signs, values[1] = streams.classes;
    values[2] = streams.exponents, values[3] = streams.low_bits;
    uint64_t sizes[kMaxContexts + 4];
    for (size_t i = 0; i < number + 4; ++i) sizes[i] = parts[i].size;
    // "N" takes the reference over; a null one becomes the error that is set already.
    return Py_BuildValue("(NNNNN)", numbers(streams.counts, number),
                         numbers(streams.changed, number), joined(parts, number + 4),
                         numbers(sizes, number + 4), numbers(streams.steps, 8));
}

PyObject* apply(PyObject*, PyObject* args) {
    Arguments a;
    Buffer changed, content, leaves;
    if (!PyArg_ParseTuple(args, "sy*O&iiy*z*KKy*y*O&", &a.path, a.base.view(), writable_or_none,
                          &a.other, &a.width, &a.order, a.bounds.view(), a.rows.view(),
                          &a.row_length, &a.row_offset, changed.view(), content.view(),
                          writable_or_none, &leaves)) {
        return nullptr;
    }
    const Kernels* kernels = find(a.path);
    if (!kernels || !a.check()) return nullptr;
    const size_t number = a.limits().number;
    if (number > kMaxContexts || changed.size() != number * 8) {
        refuse("too many contexts, or not one number of changes for each");
        return nullptr;
    }
    const Chunk chunk = a.chunk();
    if (!a.other.given() && !leaves.given()) {
        refuse("nothing to write to");
        return nullptr;
    }
    const size_t bytes = a.width == 4 ? chunk.words / 2 : a.base.size();
    if (leaves.given() && (leaves.size() != leaves_of(bytes) * 8 || !aligned(leaves, 8) ||
                           (a.width == 4 && chunk.words % 2))) {
        refuse("not one hash per leaf");
        return nullptr;
    }
    const Output out = {a.other.data(), static_cast<uint64_t*>(leaves.data()),
                        find_xxh3(kernels->name)};
    const char* problem;
    try {
        Unlocked unlocked;
        Scratch scratch;
        problem =
            kernels->apply(chunk, out, a.limits(), static_cast<const uint64_t*>(changed.data()),
                           {static_cast<const uint8_t*>(content.data()), content.size()}, scratch);
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    }
    if (!problem) Py_RETURN_NONE;
    return PyUnicode_FromString(problem);
}

// Whether any of `count` bits from `place` on is set.
bool any_set(const uint8_t* bits, size_t place, size_t count) {
    for (; count && place % 8; ++place, --count) {
        if (bits[place / 8] >> place % 8 & 1) return true;
    }
    for (; count >= 64; place += 64, count -= 64) {
        uint64_t word;
        std::memcpy(&word, bits + place / 8, 8);
        if (word) return true;
    }
    for (; count; ++place, --count) {
        if (bits[place / 8] >> place % 8 & 1) return true;
    }
    return false;
}

// Flags the rows of `length` words that hold a changed word, and returns how many do.
size_t flag_rows(const uint8_t* mask, size_t words, uint64_t length, uint64_t offset,
                 uint8_t* flags) {
    size_t active = 0;
    for (size_t place = 0, row = 0; place < words; ++row) {
        const auto room = size_t(length - (row ? 0 : offset));
        const size_t run = words - place < room ? words - place : room;
        active += flags[row] = any_set(mask, place, run);
        place += run;
    }
    return active;
}

PyObject* active_rows(PyObject*, PyObject* args) {
    Buffer mask, flags;
    unsigned long long words, length, offset;
    if (!PyArg_ParseTuple(args, "y*KKKw*", mask.view(), &words, &length, &offset, flags.view())) {
        return nullptr;
    }
    if (mask.size() != words / 8 + (words % 8 != 0) || length == 0 || offset >= length ||
        flags.size() != rows_of(words, length, offset)) {
        refuse("mask and flags do not fit together");
        return nullptr;
    }
    unlocked([&] {
        return flag_rows(static_cast<const uint8_t*>(mask.data()), size_t(words), length, offset,
                         static_cast<uint8_t*>(flags.data()));
    });
    Py_RETURN_NONE;
}

PyObject* compare(PyObject*, PyObject* args) {
    Arguments a;
    Buffer mask, before, after;
    if (!PyArg_ParseTuple(args, "sy*y*iiw*w*w*", &a.path, a.base.view(), a.other.view(), &a.width,
                          &a.order, mask.view(), before.view(), after.view())) {
        return nullptr;
    }
    const Kernels* kernels = find(a.path);
    if (!kernels || !a.check()) return nullptr;
    const size_t words = a.chunk().words;
    if (mask.size() != words / 8 + (words % 8 != 0) || before.size() < a.base.size() ||
        after.size() < a.base.size() || !aligned(before, a.word_bytes()) ||
        !aligned(after, a.word_bytes())) {
        refuse("mask and lists do not have room for every word");
        return nullptr;
    }
    Changes found;
    {
        Unlocked unlocked;
        found = kernels->compare(a.chunk(), a.other.data(), static_cast<uint8_t*>(mask.data()),
                                 before.data(), after.data());
    }
    return Py_BuildValue("(KK)", static_cast<unsigned long long>(found.number),
                         static_cast<unsigned long long>(found.top_key));
}

// Whether arrays hold whole words of this many bytes, and the mask has a bit for each of the first.
bool fit(const Buffer& words, const Buffer& others, const Buffer& mask, Py_ssize_t bytes) {
    if (bytes != 1 && bytes != 2 && bytes != 4 && bytes != 8) {
        return refuse("words must be of 1, 2, 4 or 8 bytes");
    }
    const auto to = size_t(bytes);
    if (words.size() % to || others.size() % to) return refuse("not a whole number of words");
    if (!aligned(words, to) || !aligned(others, to)) return refuse("an array is not aligned");
    const size_t number = words.size() / to;
    return mask.size() == number / 8 + (number % 8 != 0) || refuse("not one bit per word");
}

PyObject* record(PyObject*, PyObject* args) {
    const char* path;
    Buffer before, after, mask, values;
    Py_ssize_t bytes;
    if (!PyArg_ParseTuple(args, "sy*y*nw*w*", &path, before.view(), after.view(), &bytes,
                          mask.view(), values.view())) {
        return nullptr;
    }
    const Kernels* kernels = find(path);
    if (!kernels || !fit(before, values, mask, bytes)) return nullptr;
    if (before.size() != after.size() || before.size() != values.size() ||
        !aligned(after, size_t(bytes))) {
        refuse("before, after and values do not fit together");
        return nullptr;
    }
    size_t number;
    {
        Unlocked unlocked;
        number = kernels->record(before.data(), after.data(), before.size() / size_t(bytes),
                                 int(8 * bytes), static_cast<uint8_t*>(mask.data()), values.data());
    }
    return PyLong_FromSize_t(number);
}

PyObject* exchange(PyObject*, PyObject* args) {
    const char* path;
    Buffer words, mask, values;
    Py_ssize_t bytes;
    if (!PyArg_ParseTuple(args, "sw*ny*w*", &path, words.view(), &bytes, mask.view(),
                          values.view())) {
        return nullptr;
    }
    const Kernels* kernels = find(path);
    if (!kernels || !fit(words, values, mask, bytes)) return nullptr;
    const char* problem;
    try {
        Unlocked unlocked;
        Scratch scratch;
        problem = kernels->exchange(words.data(), words.size() / size_t(bytes), int(8 * bytes),
                                    static_cast<const uint8_t*>(mask.data()), values.data(),
                                    values.size() / size_t(bytes), scratch);
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    }
    if (problem) {
        refuse(problem);
        return nullptr;
    }
    Py_RETURN_NONE;
}

bool is_log2(const Buffer& log2) {
    return log2.size() == kLogarithms * 8 || refuse("not the table of logarithms");
}

PyObject* cut(PyObject*, PyObject* args) {
    Buffer words, magnitudes, log2;
    long long context_cost, empty_cost;
    Py_ssize_t most;
    if (!PyArg_ParseTuple(args, "y*y*y*LLn", words.view(), magnitudes.view(), log2.view(),
                          &context_cost, &empty_cost, &most) ||
        !is_log2(log2)) {
        return nullptr;
    }
    const size_t bins = words.size() / 8;
    if (bins == 0 || bins > 4096 || words.size() % 8 || most < 1 || most > kMaxContexts ||
        magnitudes.size() != words.size() * kMagnitudeClasses) {
        refuse("words and magnitudes do not fit together");
        return nullptr;
    }
    uint64_t ends[kMaxContexts];
    int64_t cost = 0;
    size_t number;
    try {
        Unlocked unlocked;
        Scratch scratch;
        number = cheapest_cut(static_cast<const int64_t*>(words.data()),
                              static_cast<const int64_t*>(magnitudes.data()), bins,
                              static_cast<const int64_t*>(log2.data()), context_cost, empty_cost,
                              size_t(most), ends, &cost, scratch);
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    }
    return Py_BuildValue("(NL)", numbers(ends, number), static_cast<long long>(cost));
}

PyObject* blocks(PyObject*, PyObject* args) {
    Buffer content, ends, log2;
    Py_ssize_t sampled;
    long long block, table, symbol;
    if (!PyArg_ParseTuple(args, "y*y*y*nLLL", content.view(), ends.view(), log2.view(), &sampled,
                          &block, &table, &symbol) ||
        !is_log2(log2)) {
        return nullptr;
    }
    constexpr size_t kMost = 256;
    const size_t number = ends.size() / 8;
    if (number > kMost || ends.size() % 8 || sampled < 1) {
        refuse("too many streams");
        return nullptr;
    }
    uint64_t places[kMost];
    std::memcpy(places, ends.data(), ends.size());
    for (size_t i = 0; i < number; ++i) {
        if (places[i] <= (i ? places[i - 1] : 0) || places[i] > content.size()) {
            refuse("streams do not fit into the content");
            return nullptr;
        }
    }
    size_t found;
    {
        Unlocked unlocked;
        found = block_ends(
            static_cast<const uint8_t*>(content.data()), places, number,
            {static_cast<const int64_t*>(log2.data()), size_t(sampled), block, table, symbol},
            places);
    }
    return numbers(places, found);
}

PyObject* leaf_hashes(PyObject*, PyObject* args) {
    const char* path;
    Buffer data, hashes;
    if (!PyArg_ParseTuple(args, "sy*w*", &path, data.view(), hashes.view())) return nullptr;
    const Kernels* kernels = find(path);
    if (!kernels) return nullptr;
    if (hashes.size() != leaves_of(data.size()) * 8 || !aligned(hashes, 8)) {
        refuse("not one hash per leaf");
        return nullptr;
    }
    const auto hash = [&] {
        hash_leaves(find_xxh3(kernels->name), static_cast<const uint8_t*>(data.data()), data.size(),
                    static_cast<uint64_t*>(hashes.data()));
    };
    data.size() <= kHeldBytes ? hash() : unlocked(hash);
    Py_RETURN_NONE;
}

// The draft of a chunk as a tuple, for the caller to own. None if the chunk has too many bins.
PyObject* draft_of(const Kernels& kernels, const Chunk& chunk, const Changed& changed,
                   const Bounds& bins, uint64_t top_key, size_t every, const DraftCosts& costs,
                   Scratch& scratch) {
    Draft found;
    const auto work = [&] {
        return draft_chunk(kernels, chunk, changed, bins, top_key, every, costs, found, scratch);
    };
    const bool is_small = chunk.words * size_t(chunk.width) <= kHeldBytes * 8;
    if (!(is_small ? work() : unlocked(work))) Py_RETURN_NONE;
    PyObject* content = PyBytes_FromStringAndSize(nullptr, Py_ssize_t(found.size()));
    if (!content) return nullptr;
    auto* bytes = reinterpret_cast<uint8_t*>(PyBytes_AsString(content));
    uint64_t ends[Draft::kMostEnds];
    const auto finish = [&] {
        found.join(bytes);
        return found.block_ends(bytes, costs.blocks, ends);
    };
    const size_t number = is_small ? finish() : unlocked(finish);
    return Py_BuildValue("(NNNNNN)", numbers(found.bounds, found.contexts),
                         numbers(found.streams.changed, found.contexts), content,
                         numbers(ends, number), numbers(found.streams.steps, 8),
                         PyBool_FromLong(found.rows.size != 0));
}

// What the drafts of one or many chunks need besides the chunks.
struct DraftArguments {
    Buffer log2;
    long long context, empty, block, table, symbol, margin;
    Py_ssize_t most, few, sampled;

    bool check() const {
        if (!is_log2(log2)) return false;
        return (most >= 1 && most <= kMaxContexts && few >= 0 && sampled >= 1) ||
               refuse("limits that make no sense");
    }

    DraftCosts costs() const {
        const auto* logarithms = static_cast<const int64_t*>(log2.data());
        return {context,     empty,  size_t(most),
                size_t(few), margin, {logarithms, size_t(sampled), block, table, symbol}};
    }
};

PyObject* draft(PyObject*, PyObject* args) {
    Arguments a;
    ChangedArguments c;
    DraftArguments d;
    unsigned long long top_key, every;
    if (!PyArg_ParseTuple(args, "sy*iiy*z*KKy*y*y*KKny*LLnnLLLL", &a.path, a.base.view(), &a.width,
                          &a.order, a.bounds.view(), a.rows.view(), &a.row_length, &a.row_offset,
                          c.mask.view(), c.before.view(), c.after.view(), &top_key, &every, &d.few,
                          d.log2.view(), &d.context, &d.empty, &d.most, &d.sampled, &d.block,
                          &d.table, &d.symbol, &d.margin)) {
        return nullptr;
    }
    const Kernels* kernels = find(a.path);
    if (!kernels || !a.check() || !c.check(a, *kernels) || !d.check()) return nullptr;
    if (!a.bins_fit() || top_key > a.top_key() || every == 0) {
        refuse("bins and counts do not fit together");
        return nullptr;
    }
    try {
        Scratch scratch;
        return draft_of(*kernels, a.chunk(), c.changed(a), a.limits(), top_key, every, d.costs(),
                        scratch);
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    }
}

// --- many small tensors in one call: each is one chunk, and at most one leaf long ---------------

// Where each of several tensors ends, in words of the chunk that holds them all.
struct EndArguments {
    Buffer ends;

    bool check(const Arguments& a) const {
        const size_t words = a.chunk().words;
        if (a.width == 4) return refuse("4-bit words have no bytes of their own");
        if (ends.size() % 8 || !aligned(ends, 8)) return refuse("ends must be 64-bit integers");
        for (size_t i = 0; i < number(); ++i) {
            if (end(i) <= start(i) || end(i) > words ||
                (end(i) - start(i)) * a.word_bytes() > kLeafBytes) {
                return refuse("a tensor is empty, longer than a leaf, or not in the words");
            }
        }
        return start(number()) == words || refuse("words behind the last tensor");
    }

    size_t number() const { return ends.size() / 8; }
    size_t start(size_t i) const { return i ? size_t(end(i - 1)) : 0; }
    uint64_t end(size_t i) const { return static_cast<const uint64_t*>(ends.data())[i]; }

    Chunk chunk(const Arguments& a, size_t i) const {
        const auto* base = static_cast<const uint8_t*>(a.base.data());
        return {base + start(i) * a.word_bytes(),
                size_t(end(i)) - start(i),
                a.width,
                Order(a.order),
                {}};
    }
};

// Compares one tensor and drafts its changes. None if it has none, or cannot be drafted.
PyObject* draft_tensor(const Kernels& kernels, Chunk chunk, const void* tuned, size_t word_bytes,
                       const Bounds& bins, uint64_t row_length, uint64_t sample,
                       uint64_t most_every, uint64_t inactive, const DraftCosts& costs,
                       uint64_t& changes) {
    Scratch scratch;
    auto* mask = scratch.array<uint8_t>(chunk.words / 8 + 8);
    void* before = scratch.take(chunk.words * word_bytes);
    void* after = scratch.take(chunk.words * word_bytes);
    const Changes found = kernels.compare(chunk, tuned, mask, before, after);
    changes = found.number;
    if (found.number == 0) Py_RETURN_NONE;
    if (row_length) {
        const size_t rows = rows_of(chunk.words, row_length, 0);
        auto* flags = scratch.array<uint8_t>(rows);
        const size_t active = flag_rows(mask, chunk.words, row_length, 0, flags);
        if ((rows - active) * inactive >= rows) chunk.rows = {flags, row_length, 0};
    }
    uint64_t every = found.number / sample;
    every = every < 1 ? 1 : every > most_every ? most_every : every;
    return draft_of(kernels, chunk, {mask, before, after, size_t(found.number)}, bins,
                    found.top_key, size_t(every), costs, scratch);
}

PyObject* draft_each(PyObject*, PyObject* args) {
    Arguments a;
    EndArguments e;
    DraftArguments d;
    Buffer row_lengths, changes;
    unsigned long long sample, most_every, inactive;
    if (!PyArg_ParseTuple(args, "sy*y*iiy*y*y*w*KKKny*LLnnLLLL", &a.path, a.base.view(),
                          a.other.view(), &a.width, &a.order, a.bounds.view(), e.ends.view(),
                          row_lengths.view(), changes.view(), &sample, &most_every, &inactive,
                          &d.few, d.log2.view(), &d.context, &d.empty, &d.most, &d.sampled,
                          &d.block, &d.table, &d.symbol, &d.margin)) {
        return nullptr;
    }
    const Kernels* kernels = find(a.path);
    if (!kernels || !a.check() || !e.check(a) || !d.check()) return nullptr;
    const size_t number = e.number();
    if (!a.bins_fit() || sample == 0 || most_every == 0 || row_lengths.size() != number * 8 ||
        changes.size() != number * 8 || !aligned(row_lengths, 8) || !aligned(changes, 8)) {
        refuse("bins and counts do not fit together");
        return nullptr;
    }
    PyObject* drafts = PyList_New(Py_ssize_t(number));
    const auto* tuned = static_cast<const uint8_t*>(a.other.data());
    try {
        for (size_t i = 0; drafts && i < number; ++i) {
            PyObject* found = draft_tensor(
                *kernels, e.chunk(a, i), tuned + e.start(i) * a.word_bytes(), a.word_bytes(),
                a.limits(), static_cast<const uint64_t*>(row_lengths.data())[i], sample, most_every,
                inactive, d.costs(), static_cast<uint64_t*>(changes.data())[i]);
            if (!found || PyList_SetItem(drafts, Py_ssize_t(i), found) < 0) Py_CLEAR(drafts);
        }
    } catch (const std::bad_alloc&) {
        Py_XDECREF(drafts);
        return PyErr_NoMemory();
    }
    return drafts;
}

// Reads a tuple of at most `most` integers; returns how many, or -1 with an error set.
Py_ssize_t read_numbers(PyObject* tuple, uint64_t* values, Py_ssize_t most) {
    const Py_ssize_t number = PyTuple_Size(tuple);
    if (number > most) refuse("too many contexts");
    if (number < 0 || number > most) return -1;
    for (Py_ssize_t i = 0; i < number; ++i) {
        values[i] = PyLong_AsUnsignedLongLong(PyTuple_GetItem(tuple, i));
        if (PyErr_Occurred()) return -1;
    }
    return number;
}

// Decodes a chunk: (bounds, changed, content). Returns false with an error set, or with what is
// wrong with the content in `problem`.
bool apply_streams(const Kernels& kernels, const Chunk& chunk, uint64_t top_key, const Output& out,
                   PyObject* streams, const char*& problem) {
    PyObject *upper, *changes;
    Buffer content;
    uint64_t bounds[kMaxContexts], changed[kMaxContexts];
    if (!PyTuple_Check(streams)) return refuse("streams must be a tuple");
    if (!PyArg_ParseTuple(streams, "O!O!y*", &PyTuple_Type, &upper, &PyTuple_Type, &changes,
                          content.view())) {
        return false;
    }
    const Py_ssize_t number = read_numbers(upper, bounds, kMaxContexts);
    if (number < 0 || read_numbers(changes, changed, kMaxContexts) != number) {
        return PyErr_Occurred() ? false : refuse("not one number of changes for each context");
    }
    for (Py_ssize_t i = 0; i < number; ++i) {
        if (bounds[i] > top_key || (i && bounds[i - 1] >= bounds[i])) {
            return refuse("bounds must ascend, up to the largest key");
        }
    }
    if (number == 0) return refuse("no bounds");
    Scratch scratch;
    problem = kernels.apply(chunk, out, {bounds, size_t(number)}, changed,
                            {static_cast<const uint8_t*>(content.data()), content.size()}, scratch);
    return problem == nullptr;
}

PyObject* apply_each(PyObject*, PyObject* args) {
    Arguments a;
    EndArguments e;
    Buffer leaves;
    PyObject* chunks;
    if (!PyArg_ParseTuple(args, "sy*O&iiy*O!w*", &a.path, a.base.view(), writable_or_none, &a.other,
                          &a.width, &a.order, e.ends.view(), &PyList_Type, &chunks,
                          leaves.view())) {
        return nullptr;
    }
    const Kernels* kernels = find(a.path);
    if (!kernels || !a.check() || !e.check(a)) return nullptr;
    if (PyList_Size(chunks) != Py_ssize_t(e.number()) || leaves.size() != e.number() * 8 ||
        !aligned(leaves, 8)) {
        refuse("not one chunk and one hash for each tensor");
        return nullptr;
    }
    auto* hashes = static_cast<uint64_t*>(leaves.data());
    const Xxh3 xxh3 = find_xxh3(kernels->name);
    const char* problem = nullptr;
    try {
        for (size_t i = 0; i < e.number(); ++i) {
            PyObject* streams = PyList_GetItem(chunks, Py_ssize_t(i));
            const size_t place = e.start(i) * a.word_bytes();
            void* words = a.other.given() ? static_cast<uint8_t*>(a.other.data()) + place : nullptr;
            if (streams == Py_None) continue;
            if (!apply_streams(*kernels, e.chunk(a, i), a.top_key(), {words, hashes + i, xxh3},
                               streams, problem)) {
                return problem ? PyUnicode_FromString(problem) : nullptr;
            }
        }
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    }
    Py_RETURN_NONE;
}

PyObject* hash_each(PyObject*, PyObject* args) {
    const char* path;
    Buffer data, hashes;
    EndArguments e;
    if (!PyArg_ParseTuple(args, "sy*y*w*", &path, data.view(), e.ends.view(), hashes.view())) {
        return nullptr;
    }
    const Kernels* kernels = find(path);
    if (!kernels) return nullptr;
    if (e.ends.size() % 8 || !aligned(e.ends, 8) || hashes.size() != e.ends.size() ||
        !aligned(hashes, 8)) {
        refuse("not one hash for each tensor");
        return nullptr;
    }
    const Xxh3 xxh3 = find_xxh3(kernels->name);
    const auto* bytes = static_cast<const uint8_t*>(data.data());
    for (size_t i = 0; i < e.number(); ++i) {
        const size_t start = e.start(i), end = size_t(e.end(i));
        if (end < start || end > data.size() || end - start > kLeafBytes) {
            refuse("a tensor is longer than a leaf, or not in the data");
            return nullptr;
        }
        static_cast<uint64_t*>(hashes.data())[i] = xxh3(bytes + start, end - start);
    }
    Py_RETURN_NONE;
}

PyMethodDef kMethods[] = {
    {"paths", paths, METH_NOARGS, "Names of the kernels that run here, fastest first."},
    {"compare", compare, METH_VARARGS,
     "List changed words; returns how many, and the largest key."},
    {"active_rows", active_rows, METH_VARARGS, "Flag the rows that hold a changed word."},
    {"histogram", histogram, METH_VARARGS, "Add to counts of words and steps by bin."},
    {"partition", partition, METH_VARARGS, "Split a chunk into streams."},
    {"apply", apply, METH_VARARGS, "Decode streams; returns what is wrong with them, if anything."},
    {"draft", draft, METH_VARARGS, "Choose contexts, and split a chunk into streams and blocks."},
    {"draft_each", draft_each, METH_VARARGS, "Compare and draft many small tensors."},
    {"apply_each", apply_each, METH_VARARGS, "Decode many small chunks, as apply does one."},
    {"hash_each", hash_each, METH_VARARGS, "Hash many byte strings, each at most one leaf long."},
    {"record", record, METH_VARARGS, "Find the words that differ; returns how many."},
    {"exchange", exchange, METH_VARARGS, "Swap the words of a mask with values."},
    {"cheapest_cut", cut, METH_VARARGS, "Cut bins into contexts."},
    {"leaf_hashes", leaf_hashes, METH_VARARGS, "Hash every 16 KiB of a byte string."},
    {"block_ends", blocks, METH_VARARGS, "Where blocks of streams end."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef kModule = {
    PyModuleDef_HEAD_INIT,
    "_kernels",
    "The hot loops.",
    0,
    kMethods,
    nullptr,
    nullptr,
    nullptr,
    nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__kernels() { return PyModule_Create(&kModule); }
