#include "minmax.cuh"

#include "cluster.cuh"
#include "general.cuh"
#include "kernels.h"

namespace dlmt::cuda {

Function minmax_function(const Step& step) {
    switch (step.kernel) {
        case Kernel::clear_bounds:
            return clear_bounds;
        case Kernel::bounds:
            return step.aligned ? bounds<true> : bounds<false>;
        case Kernel::minmax_small:
            return step.aligned ? minmax_small<true> : minmax_small<false>;
        case Kernel::minmax_cluster:
            return minmax_cluster;
        case Kernel::minmax_general:
            return minmax_general;
        case Kernel::minmax:
            if (step.dtype == Dtype::uint8) return stream_of<MinmaxOp>(step.aligned);
            if (step.dtype == Dtype::float16) return stream_of<MinmaxUnitOp<Float16>>(step.aligned);
            if (step.dtype == Dtype::bfloat16) return stream_of<MinmaxUnitOp<Bfloat16>>(step.aligned);
            return stream_of<MinmaxUnitOp<float>>(step.aligned);
        default:
            return nullptr;
    }
}

}  // namespace dlmt::cuda
