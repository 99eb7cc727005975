// Many small tensors in one call: each is one chunk, and at most one leaf long. The overhead of a
// call exceeds the work on one of them.
#include "small.hpp"

#include "arguments.hpp"

namespace rlsparse {

namespace {

// Where each of several tensors ends, in words of the chunk that holds them all.
struct EndArguments {
    Buffer ends;

    bool check(const Arguments& a) const {
        if (a.width == 4) return refuse("4-bit words have no bytes of their own");
        return check(a.chunk().words, a.word_bytes());
    }

    bool check(size_t words, size_t word_bytes) const {
        if (ends.size() % 8 || !aligned(ends, 8)) return refuse("ends must be 64-bit integers");
        for (size_t i = 0; i < number(); ++i) {
            if (end(i) <= start(i) || end(i) > words ||
                (end(i) - start(i)) * word_bytes > kLeafBytes) {
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

}  // namespace

PyObject* draft_each(PyObject*, PyObject* args) {
    Arguments a;
    EndArguments e;
    CostArguments costs;
    Buffer row_lengths, changes;
    unsigned long long sample, most_every, inactive;
    Py_ssize_t few;
    if (!PyArg_ParseTuple(args, "sy*y*iiy*y*y*w*KKKnO&", &a.path, a.base.view(), a.other.view(),
                          &a.width, &a.order, a.bounds.view(), e.ends.view(), row_lengths.view(),
                          changes.view(), &sample, &most_every, &inactive, &few, cost_arguments,
                          &costs)) {
        return nullptr;
    }
    const Kernels* kernels = find(a.path);
    if (!kernels || !a.check() || !e.check(a)) return nullptr;
    const size_t number = e.number();
    if (!a.bins_fit() || sample == 0 || most_every == 0 || few < 0 ||
        row_lengths.size() != number * 8 || changes.size() != number * 8 ||
        !aligned(row_lengths, 8) || !aligned(changes, 8)) {
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
                inactive, costs.with(few), static_cast<uint64_t*>(changes.data())[i]);
            if (!found || PyList_SetItem(drafts, Py_ssize_t(i), found) < 0) Py_CLEAR(drafts);
        }
    } catch (const std::bad_alloc&) {
        Py_XDECREF(drafts);
        return PyErr_NoMemory();
    }
    return drafts;
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
    if (!kernels || !e.check(data.size(), 1)) return nullptr;
    if (hashes.size() != e.number() * 8 || !aligned(hashes, 8)) {
        refuse("not one hash for each tensor");
        return nullptr;
    }
    const Xxh3 xxh3 = find_xxh3(kernels->name);
    const auto* bytes = static_cast<const uint8_t*>(data.data());
    for (size_t i = 0; i < e.number(); ++i) {
        const size_t start = e.start(i);
        static_cast<uint64_t*>(hashes.data())[i] = xxh3(bytes + start, size_t(e.end(i)) - start);
    }
    Py_RETURN_NONE;
}

}  // namespace rlsparse
