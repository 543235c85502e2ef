// The one binding of both compiled modules: every exported kernel becomes a method of the module that checks the number
// and the kind of its arguments, releases the interpreter lock and turns a kernel's complaint into RuntimeError.
#pragma once

#include <pybind11/pybind11.h>

#include <cstring>
#include <string>

#include "export.h"

namespace pyfastgan {

namespace py = pybind11;

constexpr std::size_t kMaxArguments = 48;

inline void* to_pointer(const py::handle& h) {
    if (h.is_none()) return nullptr;
    void* p = PyLong_AsVoidPtr(h.ptr());
    if (!p && PyErr_Occurred()) throw py::error_already_set();
    return p;
}

inline int64_t to_integer(const py::handle& h) {
    const long long v = PyLong_AsLongLong(h.ptr());
    if (v == -1 && PyErr_Occurred()) throw py::error_already_set();
    return v;
}

inline double to_real(const py::handle& h) {
    const double v = PyFloat_AsDouble(h.ptr());
    if (v == -1.0 && PyErr_Occurred()) throw py::error_already_set();
    return v;
}

inline void invoke(const Export& e, const py::args& args) {
    const std::size_t n = std::strlen(e.signature);
    if (args.size() != n)
        throw py::type_error(std::string(e.name) + " takes " + std::to_string(n) + " arguments, got " +
                             std::to_string(args.size()));
    Value values[kMaxArguments];
    for (std::size_t k = 0; k < n; ++k) {
        const py::handle h = args[k];
        const char kind = e.signature[k];
        const bool good = kind == 'p'   ? h.is_none() || PyLong_Check(h.ptr())
                          : kind == 'i' ? PyLong_Check(h.ptr())
                                        : PyFloat_Check(h.ptr()) || PyLong_Check(h.ptr());
        if (!good)
            throw py::type_error(std::string(e.name) + ": argument " + std::to_string(k) + " must be " +
                                 (kind == 'p'   ? "an address (int) or None"
                                  : kind == 'i' ? "an int"
                                                : "a float") +
                                 ", got " + Py_TYPE(h.ptr())->tp_name);
        if (kind == 'p')
            values[k].pointer = to_pointer(h);
        else if (kind == 'i')
            values[k].integer = to_integer(h);
        else
            values[k].real = to_real(h);
    }
    const char* problem;
    {
        py::gil_scoped_release unlocked;
        problem = e.call(values);
    }
    if (problem) throw std::runtime_error(std::string(e.name) + ": " + problem);
}

// Binds every kernel that was compiled for `isa`.
inline void bind_exports(py::module_& m, const char* isa) {
    for (const Export* e = exports_head; e; e = e->next) {
        if (std::strcmp(e->isa, isa) != 0) continue;
        if (std::strlen(e->signature) > kMaxArguments)
            throw std::runtime_error(std::string(e->name) + " has more arguments than the binding can pass");
        m.def(e->name, [e](const py::args& args) { invoke(*e, args); });
    }
}

}  // namespace pyfastgan
