#include "arguments.hpp"

namespace rlsparse {

namespace {

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

}  // namespace

const Kernels* find(const char* name) {
    for (const Kernels* kernels : kAll) {
        if (std::strcmp(kernels->name, name) == 0 && runs_here(kernels)) return kernels;
    }
    PyErr_Format(PyExc_ValueError, "no kernels named %s run here", name);
    return nullptr;
}

PyObject* kernel_names() {
    PyObject* names = PyList_New(0);
    for (const Kernels* kernels : kAll) {
        if (!names || !runs_here(kernels)) continue;
        PyObject* name = PyUnicode_FromString(kernels->name);
        if (!name || PyList_Append(names, name) < 0) Py_CLEAR(names);
        Py_XDECREF(name);
    }
    return names;
}

PyObject* numbers(const uint64_t* values, size_t number) {
    PyObject* list = PyList_New(Py_ssize_t(number));
    for (size_t i = 0; list && i < number; ++i) {
        PyObject* value = PyLong_FromUnsignedLongLong(values[i]);
        if (!value || PyList_SetItem(list, Py_ssize_t(i), value) < 0) Py_CLEAR(list);
    }
    return list;
}

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

}  // namespace rlsparse
