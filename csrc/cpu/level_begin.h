// What a level's source needs before its target region begins: everything that must not be compiled inside it.
#pragma once

#include <climits>
#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../affine.h"
#include "derived.h"
#include "job.h"

#define DLMT_INLINE inline __attribute__((always_inline))

// No iteration of the loop depends on another, whatever the pointers suggest.
#if defined(__clang__)
#define DLMT_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define DLMT_INDEPENDENT _Pragma("GCC ivdep")
#endif
