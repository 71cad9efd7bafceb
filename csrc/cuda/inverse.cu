#include "inverse.cuh"

#include "kernels.h"

namespace dlmt::cuda {

Function inverse_function(const Step& step) {
    if (step.kernel == Kernel::inverse) return inverse;
    if (step.kernel != Kernel::copy) return nullptr;
    if (step.dtype == Dtype::uint8) return copy<uint8_t>;
    if (step.dtype == Dtype::float16) return copy<Float16>;
    if (step.dtype == Dtype::bfloat16) return copy<Bfloat16>;
    return copy<float>;
}

}  // namespace dlmt::cuda
