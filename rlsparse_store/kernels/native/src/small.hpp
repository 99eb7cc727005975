// Functions of the Python module for many small tensors.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

namespace rlsparse {

PyObject* draft_each(PyObject* module, PyObject* args);
PyObject* apply_each(PyObject* module, PyObject* args);
PyObject* hash_each(PyObject* module, PyObject* args);

}  // namespace rlsparse
