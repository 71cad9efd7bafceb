// The loops for avx512. Empty on other machines than x86-64.
#include "level_begin.h"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
// GCC 12 suspects its own avx512fintrin.h.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,f16c")
#endif

#define DLMT_LEVEL avx512
#include "vectors_avx512.h"
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
extern const Kernels kKernels_avx512;
const Kernels kKernels_avx512 = {"avx512",       avx512::affine,  avx512::minmax_images,
                                 avx512::bounds, avx512::minmax,  avx512::inverse,
                                 avx512::copy,   avx512::convert, avx512::unfilter};
}  // namespace dlmt

#endif
