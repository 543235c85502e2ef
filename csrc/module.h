// The one binding of both compiled modules: every exported kernel becomes a function of the module that checks the
// number and the kind of its arguments, releases the interpreter lock and turns a kernel's complaint into RuntimeError.
// It is Python's own kind of function: pybind11's way to one costs as much as a small kernel.
#pragma once

#include <pybind11/pybind11.h>

#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#include "export.h"

namespace pyfastgan {

namespace py = pybind11;

constexpr std::size_t kMaxArguments = 48;

// Reads an argument of the kind that a letter of the signature names; false with Python's error set if it is another.
inline bool read_argument(const Export& e, std::size_t k, PyObject* given, Value* value) {
    const char kind = e.signature[k];
    const bool is_integer = PyLong_Check(given);
    if (kind == 'p' && given == Py_None) {
        value->pointer = nullptr;
        return true;
    }
    if (kind == 'd' && (is_integer || PyFloat_Check(given))) {
        value->real = PyFloat_AsDouble(given);
        return !(value->real == -1.0 && PyErr_Occurred());
    }
    if (kind == 'd' || !is_integer) {
        const char* wanted = kind == 'p' ? "an address (int) or None" : kind == 'i' ? "an int" : "a float";
        PyErr_Format(PyExc_TypeError, "%s: argument %zu must be %s, got %s", e.name, k, wanted,
                     Py_TYPE(given)->tp_name);
        return false;
    }
    if (kind == 'p') {
        value->pointer = PyLong_AsVoidPtr(given);
        return value->pointer || !PyErr_Occurred();
    }
    value->integer = PyLong_AsLongLong(given);
    return !(value->integer == -1 && PyErr_Occurred());
}

inline PyObject* invoke(PyObject* self, PyObject* const* given, Py_ssize_t count) {
    const Export& e = *static_cast<const Export*>(PyCapsule_GetPointer(self, nullptr));
    const std::size_t n = std::strlen(e.signature);
    if (static_cast<std::size_t>(count) != n)
        return PyErr_Format(PyExc_TypeError, "%s takes %zu arguments, got %zd", e.name, n, count);
    Value values[kMaxArguments];
    for (std::size_t k = 0; k < n; ++k)
        if (!read_argument(e, k, given[k], &values[k])) return nullptr;
    const char* problem = nullptr;
    try {
        py::gil_scoped_release unlocked;
        problem = e.call(values);
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    } catch (const std::exception& error) {
        return PyErr_Format(PyExc_RuntimeError, "%s: %s", e.name, error.what());
    }
    if (problem) return PyErr_Format(PyExc_RuntimeError, "%s: %s", e.name, problem);
    Py_RETURN_NONE;
}

// Binds every kernel that was compiled for `isa`.
inline void bind_exports(py::module_& m, const char* isa) {
    for (const Export* e = exports_head; e; e = e->next) {
        if (std::strcmp(e->isa, isa) != 0) continue;
        if (std::strlen(e->signature) > kMaxArguments)
            throw std::runtime_error(std::string(e->name) + " has more arguments than the binding can pass");
        // The function points to its definition, and is there as long as the process.
        auto* definition = new PyMethodDef{e->name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&invoke)),
                                           METH_FASTCALL, nullptr};
        const py::capsule self(static_cast<const void*>(e));
        m.attr(e->name) = py::reinterpret_steal<py::object>(PyCFunction_New(definition, self.ptr()));
    }
}

}  // namespace pyfastgan
