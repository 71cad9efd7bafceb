#include "stream.cuh"

#include "kernels.h"

namespace dlmt::cuda {
Function stream_function(const Step& step) {
    if (step.kernel == Kernel::range) return stream_of<RangeOp>(step.aligned);
    if (step.kernel == Kernel::none) {
        if (step.dtype == Dtype::uint8) return stream_of<NoneOp<uint8_t>>(step.aligned);
        if (step.dtype == Dtype::uint16) return stream_of<NoneOp<uint16_t>>(step.aligned);
        return stream_of<NoneOp<int32_t>>(step.aligned);
    }
    if (step.kernel == Kernel::unit) {
        if (step.dtype == Dtype::float16) return stream_of<UnitOp<Float16>>(step.aligned);
        if (step.dtype == Dtype::bfloat16) return stream_of<UnitOp<Bfloat16>>(step.aligned);
        return stream_of<UnitOp<float>>(step.aligned);
    }
    return nullptr;
}

}  // namespace dlmt::cuda
