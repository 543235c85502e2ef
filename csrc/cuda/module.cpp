// pyfastgan._cuda: the kernels for NVIDIA GPUs. Importing it asks nothing of a driver, so that it does no harm where
// there is none; the first launch does.
#include "../module.h"

PYBIND11_MODULE(_cuda, m) {
    m.attr("architectures") = PF_ARCHITECTURES;
    m.attr("version") = PF_VERSION;
    pyfastgan::bind_exports(m, "cuda");
}
