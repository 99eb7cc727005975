// Arguments from Python: taken, checked, and given back. Python checks types; what arrays must
// agree on is checked here, so that no call from Python can read or write outside of what it hands
// over.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstring>
#include <new>

#include "cuts.hpp"
#include "draft.hpp"
#include "kernels.hpp"
#include "leaves.hpp"

namespace rlsparse {

// The kernels of this name; nullptr with an error set if they do not run here.
const Kernels* find(const char* name);

// The names of the kernels that run here, the fastest first.
PyObject* kernel_names();

// A list of integers.
PyObject* numbers(const uint64_t* values, size_t number);

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
inline int writable_or_none(PyObject* object, void* buffer) {
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

inline bool refuse(const char* message) {
    PyErr_SetString(PyExc_ValueError, message);
    return false;
}

inline bool aligned(const Buffer& buffer, size_t to) {
    return reinterpret_cast<uintptr_t>(buffer.data()) % to == 0;
}

// Whether each word may count for this many: fewer than 2^32 words do not overflow 63 bits then.
inline bool may_count(uint64_t every) { return every >= 1 && every <= uint64_t(1) << 31; }

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

inline bool is_log2(const Buffer& log2) {
    return log2.size() == kLogarithms * 8 || refuse("not the table of logarithms");
}

// What things cost where a chunk is drafted.
struct CostArguments {
    Buffer log2;
    long long context, empty, block, table, symbol, margin;
    Py_ssize_t most, sampled;

    bool check() const {
        if (!is_log2(log2)) return false;
        return (most >= 1 && most <= kMaxContexts && sampled >= 1) ||
               refuse("limits that make no sense");
    }

    DraftCosts with(Py_ssize_t few) const {
        const auto* logarithms = static_cast<const int64_t*>(log2.data());
        return {context,     empty,  size_t(most),
                size_t(few), margin, {logarithms, size_t(sampled), block, table, symbol}};
    }
};

// A converter of PyArg_ParseTuple: fills CostArguments from a tuple.
inline int cost_arguments(PyObject* tuple, void* to) {
    auto& costs = *static_cast<CostArguments*>(to);
    if (!PyTuple_Check(tuple)) return refuse("costs must be a tuple");
    return PyArg_ParseTuple(tuple, "y*LLnnLLLL", costs.log2.view(), &costs.context, &costs.empty,
                            &costs.most, &costs.sampled, &costs.block, &costs.table, &costs.symbol,
                            &costs.margin) &&
           costs.check();
}

// The draft of a chunk as a tuple, for the caller to own. None if the chunk has too many bins.
PyObject* draft_of(const Kernels& kernels, const Chunk& chunk, const Changed& changed,
                   const Bounds& bins, uint64_t top_key, size_t every, const DraftCosts& costs,
                   Scratch& scratch);

}  // namespace rlsparse
