// The loops for avx2. Empty on other machines than x86-64.
#include "level_begin.h"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,f16c")
#endif

#define DLMT_LEVEL avx2
#include "vectors_avx2.h"
// What the vectors serve comes after them.
#include "vectors_common.h"
// The loops.
#include "loops.h"
#include "loops_bounds.h"
#include "loops_copy.h"
#include "loops_inverse.h"
#include "loops_unfilter.h"
// Those in vectors, which take the others for what no vector covers.
#include "kernels_minmax.h"
#include "kernels_range.h"
// And in which order they go over images.
#include "loops_minmax.h"
#include "loops_rows.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace dlmt {
extern const Kernels kKernels_avx2;
const Kernels kKernels_avx2 = {"avx2",        avx2::affine, avx2::minmax_images, avx2::bounds,  avx2::minmax,
                               avx2::inverse, avx2::copy,   avx2::convert,       avx2::unfilter};
}  // namespace dlmt

#endif
