// The loops for what every machine of this architecture has: SSE2 on x86-64, NEON on aarch64.
#include "level_begin.h"

#define DLMT_LEVEL baseline
#include "loops.h"
#include "loops_bounds.h"
#include "loops_copy.h"
#include "loops_inverse.h"
#include "loops_unfilter.h"

namespace dlmt {
extern const Kernels kKernels_baseline;
const Kernels kKernels_baseline = {"baseline",       baseline::affine,  baseline::minmax_images,
                                   baseline::bounds, baseline::minmax,  baseline::inverse,
                                   baseline::copy,   baseline::convert, baseline::unfilter};
}  // namespace dlmt
