// How a kernel becomes a Python function without including Python.
//
// PF_EXPORT(f) records a plain function of pointers, integers and floats in a list that the module walks when it is
// imported. The signature is read off the type of f, so that the module can check every argument before the call.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

namespace pyfastgan {

// One argument of a call, already checked against its Kind.
union Value {
    void* pointer;
    int64_t integer;
    double real;
};

struct Export {
    const char* name;
    const char* isa;
    const char* signature;  // a letter per argument: 'p' pointer (or None), 'i' integer, 'd' real
    const char* (*call)(const Value*);  // nullptr, or what went wrong
    const Export* next;
};

// Head of the list. Constant-initialised, so registration order between files does not matter.
inline const Export* exports_head = nullptr;

// Internal linkage on purpose (here and in PF_EXPORT): every instruction set has its own copy of a kernel's file, and
// a symbol with external linkage would be merged into one of them.
namespace {

template <class T>
struct Kind {
    static_assert(std::is_integral_v<T>, "kernel arguments are pointers, integers, float or double");
    static constexpr char letter = 'i';
    static T read(const Value& v) { return static_cast<T>(v.integer); }
};
template <class T>
struct Kind<T*> {
    static constexpr char letter = 'p';
    static T* read(const Value& v) { return static_cast<T*>(v.pointer); }
};
template <>
struct Kind<double> {
    static constexpr char letter = 'd';
    static double read(const Value& v) { return v.real; }
};
template <>
struct Kind<float> {
    static constexpr char letter = 'd';
    static float read(const Value& v) { return static_cast<float>(v.real); }
};

template <auto F>
struct Thunk;

template <class... A, const char* (*F)(A...)>
struct Thunk<F> {
    static constexpr char signature[] = {Kind<A>::letter..., '\0'};
    static const char* call(const Value* v) { return call(v, std::index_sequence_for<A...>{}); }

private:
    template <std::size_t... I>
    static const char* call(const Value* v, std::index_sequence<I...>) {
        return F(Kind<A>::read(v[I])...);
    }
};

template <auto F>
struct Registration {
    Export entry;
    Registration(const char* name, const char* isa)
        : entry{name, isa, Thunk<F>::signature, &Thunk<F>::call, exports_head} {
        exports_head = &entry;
    }
};

}  // namespace
}  // namespace pyfastgan

#define PF_TEXT_(x) #x
#define PF_TEXT(x) PF_TEXT_(x)
#define PF_EXPORT(f) \
    static ::pyfastgan::Registration<&f> registration_of_##f { #f, PF_TEXT(PF_ISA) }
