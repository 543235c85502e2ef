// Memory of the kernels' outputs, which is kept when a tensor goes and given to the next of its size.
//
// New memory costs a page fault for every 4 KiB when it is first written to: on a virtual machine 1.5 us each, several
// times what a kernel takes to write that much. The allocator behind torch returns large memory to the system as soon
// as it is free, so a training step pays for its outputs in every step; here it pays in the first. Outputs of 2 MiB and
// more ask for huge pages, which come far sooner.
//
// What is free and kept stays below kMostKept, and the oldest goes first. The tensors are torch's own, made by DLPack,
// whose deleter brings the memory back.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "../module.h"

// Kept memory would hide from the sanitizer what a kernel writes beyond its output.
#if defined(__SANITIZE_ADDRESS__)
#define PF_KEEPS_OUTPUTS 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define PF_KEEPS_OUTPUTS 0
#endif
#endif
#ifndef PF_KEEPS_OUTPUTS
#define PF_KEEPS_OUTPUTS 1
#endif

namespace pyfastgan {
namespace {

constexpr std::size_t kMostKept = std::size_t{256} << 20;
constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kPage = std::size_t{16} << 10;  // of any system

struct Memory {
    void* start;
    std::size_t bytes;
};

inline Memory from_system(std::size_t bytes) {
#if PF_KEEPS_OUTPUTS
    // Whole huge pages begin at their multiples; what lies before and behind goes back.
    const std::size_t alignment = bytes < kHugePage ? kPage : kHugePage;
    bytes = (bytes + kPage) / kPage * kPage;  // never nothing
    const std::size_t reserved = bytes + (alignment == kHugePage ? kHugePage : 0);
    void* found = mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (found == MAP_FAILED) throw std::bad_alloc();
    char* const begin = static_cast<char*>(found);
    char* start = begin;
    if (alignment == kHugePage) {
        start += (kHugePage - reinterpret_cast<std::uintptr_t>(begin) % kHugePage) % kHugePage;
        if (start != begin) munmap(begin, static_cast<std::size_t>(start - begin));
        char* const end = start + bytes;
        if (end != begin + reserved) munmap(end, static_cast<std::size_t>(begin + reserved - end));
#if defined(MADV_HUGEPAGE)
        (void)madvise(start, bytes, MADV_HUGEPAGE);  // a hint: nothing depends on whether it is taken
#endif
    }
    return {start, bytes};
#else
    return {::operator new(bytes, std::align_val_t{64}), bytes};
#endif
}

inline void to_system(Memory m) {
#if PF_KEEPS_OUTPUTS
    munmap(m.start, m.bytes);
#else
    ::operator delete(m.start, std::align_val_t{64});
#endif
}

// Nobody waits for the lock: who does not get it goes to the system. So a process forked while another thread held it
// works on, too.
class KeptMemory {
public:
    Memory take(std::size_t bytes) {
        if (lock_.try_lock()) {
            const std::lock_guard<std::mutex> held(lock_, std::adopt_lock);
            for (std::size_t k = free_.size(); k-- > 0;)  // the latest may still lie in the caches
                if (free_[k].bytes >= bytes && free_[k].bytes - bytes <= bytes / 8 + kPage) {
                    const Memory found = free_[k];
                    free_.erase(free_.begin() + static_cast<std::ptrdiff_t>(k));
                    free_bytes_ -= found.bytes;
                    return found;
                }
        }
        return from_system(bytes);
    }

    void give(Memory m) {
        if (!PF_KEEPS_OUTPUTS || m.bytes > kMostKept || !lock_.try_lock()) return to_system(m);
        const std::lock_guard<std::mutex> held(lock_, std::adopt_lock);
        free_.push_back(m);
        free_bytes_ += m.bytes;
        std::size_t gone = 0;
        while (free_bytes_ > kMostKept) {
            free_bytes_ -= free_[gone].bytes;
            to_system(free_[gone++]);
        }
        free_.erase(free_.begin(), free_.begin() + static_cast<std::ptrdiff_t>(gone));
    }

    void forget() {
        const std::lock_guard<std::mutex> held(lock_);
        for (const Memory& m : free_) to_system(m);
        free_.clear();
        free_bytes_ = 0;
    }

    std::size_t free_bytes() {
        const std::lock_guard<std::mutex> held(lock_);
        return free_bytes_;
    }

private:
    std::mutex lock_;
    std::vector<Memory> free_;
    std::size_t free_bytes_ = 0;
};

// Never destroyed: tensors may go after the module has.
inline KeptMemory& kept_memory() {
    static auto* memory = new KeptMemory;
    return *memory;
}

// The structures of DLPack 0.x, https://dmlc.github.io/dlpack: what `torch.from_dlpack` takes.
struct DLTensor {
    void* data;
    std::int32_t device_type, device_id;
    std::int32_t dimensions;
    std::uint8_t type_code, type_bits;
    std::uint16_t type_lanes;
    std::int64_t* shape;
    std::int64_t* strides;
    std::uint64_t offset;
};
struct DLManagedTensor {
    DLTensor tensor;
    void* context;
    void (*deleter)(DLManagedTensor*);
};

constexpr int kMostDimensions = 16;

struct Output {
    DLManagedTensor managed;
    Memory memory;
    std::int64_t sizes[2 * kMostDimensions];
};

inline void delete_output(DLManagedTensor* managed) {
    auto* output = static_cast<Output*>(managed->context);
    kept_memory().give(output->memory);
    delete output;
}

// Nobody took the tensor out of the capsule.
inline void delete_capsule(PyObject* capsule) {
    if (void* managed = PyCapsule_IsValid(capsule, "dltensor") ? PyCapsule_GetPointer(capsule, "dltensor") : nullptr)
        delete_output(static_cast<DLManagedTensor*>(managed));
}

// output(shape, strides, type): a DLPack capsule of new memory on the CPU. The strides are empty for a contiguous
// tensor, else they cover the same memory; the type is DLPack's code times 256 and the bits.
inline PyObject* output(PyObject*, PyObject* const* given, Py_ssize_t count) {
    if (count != 3 || !PyTuple_Check(given[0]) || !PyTuple_Check(given[1]))
        return PyErr_Format(PyExc_TypeError, "output takes a tuple of sizes, a tuple of strides and a type");
    const Py_ssize_t dimensions = PyTuple_GET_SIZE(given[0]), strides = PyTuple_GET_SIZE(given[1]);
    const long type = PyLong_AsLong(given[2]);
    if (type == -1 && PyErr_Occurred()) return nullptr;
    const auto code = static_cast<std::uint8_t>(type >> 8), bits = static_cast<std::uint8_t>(type & 255);
    if (dimensions > kMostDimensions || (strides && strides != dimensions) || type < 0 || bits % 8 || !bits)
        return PyErr_Format(PyExc_ValueError, "output: %zd sizes, %zd strides, type %ld", dimensions, strides, type);
    try {
        auto output = std::make_unique<Output>();
        std::int64_t* const stride = output->sizes + kMostDimensions;
        std::int64_t elements = 1, bytes = 0;
        for (Py_ssize_t k = dimensions; k-- > 0;) {
            const std::int64_t size = output->sizes[k] = PyLong_AsLongLong(PyTuple_GET_ITEM(given[0], k));
            stride[k] = strides ? PyLong_AsLongLong(PyTuple_GET_ITEM(given[1], k)) : elements;
            if (PyErr_Occurred()) return nullptr;
            if (size < 0 || __builtin_mul_overflow(elements, size, &elements))
                return PyErr_Format(PyExc_ValueError, "output: a size of %lld", static_cast<long long>(size));
        }
        if (__builtin_mul_overflow(elements, bits / 8, &bytes)) throw std::bad_alloc();
        output->memory = kept_memory().take(static_cast<std::size_t>(bytes));
        output->managed = {{output->memory.start, 1, 0, static_cast<std::int32_t>(dimensions), code, bits, 1,
                            output->sizes, stride, 0},
                           output.get(),
                           &delete_output};
        PyObject* const capsule = PyCapsule_New(&output->managed, "dltensor", &delete_capsule);
        if (capsule)
            output.release();
        else
            kept_memory().give(output->memory);
        return capsule;
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    }
}

// kept(): bytes that no tensor uses now.
inline PyObject* kept(PyObject*, PyObject*) { return PyLong_FromSize_t(kept_memory().free_bytes()); }

// forget(): gives these back to the system.
inline PyObject* forget(PyObject*, PyObject*) {
    kept_memory().forget();
    Py_RETURN_NONE;
}

inline void bind_outputs(py::module_& m) {
    static PyMethodDef definitions[] = {
        {"output", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&output)), METH_FASTCALL, nullptr},
        {"kept", &kept, METH_NOARGS, nullptr},
        {"forget", &forget, METH_NOARGS, nullptr},
    };
    for (PyMethodDef& definition : definitions)
        m.attr(definition.ml_name) = py::reinterpret_steal<py::object>(PyCFunction_New(&definition, nullptr));
}

}  // namespace
}  // namespace pyfastgan
