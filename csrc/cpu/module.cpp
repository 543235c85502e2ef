// pyfastgan._cpu: the kernels for the best instruction set of this processor, chosen when the module is loaded.
// PYFASTGAN_CPU_ISA=portable|avx2|avx512 asks for another one that the processor has.
#include <cstdlib>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "outputs.h"

namespace {

#if defined(__x86_64__)
// Not every clang knows this name in __builtin_cpu_supports.
bool has_f16c() {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

bool supported(const std::string& isa) {
    if (isa == "portable") return true;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (isa == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    if (isa == "avx512")
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#endif
    return false;
}

std::string choose() {
    std::string built;
    for (const char* isa : {"avx512", "avx2", "portable"})
        for (const auto* e = pyfastgan::exports_head; e; e = e->next)
            if (std::string(isa) == e->isa) {
                built += built.empty() ? isa : std::string(", ") + isa;
                break;
            }
    const char* wanted = std::getenv("PYFASTGAN_CPU_ISA");
    if (wanted && *wanted) {
        if ((", " + built + ", ").find(std::string(", ") + wanted + ", ") == std::string::npos)
            throw pybind11::import_error("PYFASTGAN_CPU_ISA=" + std::string(wanted) + ": this build holds " + built);
        if (!supported(wanted))
            throw pybind11::import_error("PYFASTGAN_CPU_ISA=" + std::string(wanted) +
                                         ": this processor does not have it");
        return wanted;
    }
    for (const char* isa : {"avx512", "avx2"})
        if ((", " + built + ", ").find(std::string(", ") + isa + ", ") != std::string::npos && supported(isa))
            return isa;
    return "portable";
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    const std::string isa = choose();
    m.attr("isa") = isa;
    m.attr("version") = PF_VERSION;
#ifdef _OPENMP
    m.attr("openmp") = true;
#else
    m.attr("openmp") = false;
#endif
    pyfastgan::bind_exports(m, isa.c_str());
    pyfastgan::bind_outputs(m);
}
