// The kernels as a Python module.
#include "arguments.hpp"
#include "small.hpp"

namespace {

using namespace rlsparse;

PyObject* paths(PyObject*, PyObject*) { return kernel_names(); }

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
        magnitudes.size() != bins * kMagnitudeClasses * 8 || !may_count(every)) {
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

PyObject* draft(PyObject*, PyObject* args) {
    Arguments a;
    ChangedArguments c;
    CostArguments costs;
    unsigned long long top_key, every;
    Py_ssize_t few;
    if (!PyArg_ParseTuple(args, "sy*iiy*z*KKy*y*y*KKnO&", &a.path, a.base.view(), &a.width,
                          &a.order, a.bounds.view(), a.rows.view(), &a.row_length, &a.row_offset,
                          c.mask.view(), c.before.view(), c.after.view(), &top_key, &every, &few,
                          cost_arguments, &costs)) {
        return nullptr;
    }
    const Kernels* kernels = find(a.path);
    if (!kernels || !a.check() || !c.check(a, *kernels)) return nullptr;
    if (!a.bins_fit() || top_key > a.top_key() || !may_count(every) || few < 0) {
        refuse("bins and counts do not fit together");
        return nullptr;
    }
    try {
        Scratch scratch;
        return draft_of(*kernels, a.chunk(), c.changed(a), a.limits(), top_key, every,
                        costs.with(few), scratch);
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    }
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
