// What the C++ and the CUDA side share below the arithmetic: the host/device marker, single correctly rounded float
// operations, bit casts, and the conversions to 16-bit floats.
//
// Everything here is always inlined: the CPU loops are compiled once per instruction set, and an out-of-line copy from
// one of them must never serve another.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define DLMT_HD static __host__ __device__ __forceinline__
#else
#define DLMT_HD static inline __attribute__((always_inline))
#endif

#if defined(__FAST_MATH__)
#error "the contract is exact to the bit; build without -ffast-math"
#endif
#if defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0 && !defined(__CUDA_ARCH__)
#error "float32 must be computed in float32, not in a wider register"
#endif

namespace dlmt {

// One rounding each, never fused: nvcc would contract a plain a*b + c. The host is built with -ffp-contract=off.
#if defined(__CUDA_ARCH__)
DLMT_HD float mul_rn(float a, float b) { return __fmul_rn(a, b); }
DLMT_HD float add_rn(float a, float b) { return __fadd_rn(a, b); }
DLMT_HD float div_rn(float a, float b) { return __fdiv_rn(a, b); }
DLMT_HD float float_of(int32_t x) { return __int2float_rn(x); }
DLMT_HD float float_of(uint32_t x) { return __uint2float_rn(x); }
DLMT_HD double mul_rn(double a, double b) { return __dmul_rn(a, b); }
DLMT_HD double add_rn(double a, double b) { return __dadd_rn(a, b); }
DLMT_HD double div_rn(double a, double b) { return __ddiv_rn(a, b); }
DLMT_HD float narrow_rn(double x) { return __double2float_rn(x); }
DLMT_HD uint32_t bits_of(float x) { return __float_as_uint(x); }
DLMT_HD float from_bits(uint32_t x) { return __uint_as_float(x); }
#else
DLMT_HD float mul_rn(float a, float b) { return a * b; }
DLMT_HD float add_rn(float a, float b) { return a + b; }
DLMT_HD float div_rn(float a, float b) { return a / b; }
DLMT_HD float float_of(int32_t x) { return static_cast<float>(x); }
DLMT_HD float float_of(uint32_t x) { return static_cast<float>(x); }
DLMT_HD double mul_rn(double a, double b) { return a * b; }
DLMT_HD double add_rn(double a, double b) { return a + b; }
DLMT_HD double div_rn(double a, double b) { return a / b; }
DLMT_HD float narrow_rn(double x) { return static_cast<float>(x); }
DLMT_HD uint32_t bits_of(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits;
}
DLMT_HD float from_bits(uint32_t bits) {
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}
#endif

// rint(x) for 0 <= x < 2**22. The sum with 1.5 * 2**23 has a spacing of 1, so the addition itself rounds, ties to even,
// and leaves the integer in the low bits: no rounding instruction is needed, which SSE2 lacks and GPUs have few of.
constexpr float kRounder = 12582912.0f;
DLMT_HD uint32_t rint_small(float x) { return bits_of(add_rn(x, kRounder)) - 0x4B400000u; }

// float32 to float16, to nearest even, for finite |x| < 65520 (a plan that could reach more is refused).
// A subnormal result has a spacing of 2**-24, which is that of float32 at 0.5: adding 0.5 rounds it.
DLMT_HD uint16_t half_of(float x) {
    const uint32_t bits = bits_of(x);
    const uint32_t u = bits & 0x7FFFFFFFu;
    const uint32_t subnormal = bits_of(add_rn(from_bits(u), 0.5f)) - 0x3F000000u;
    const uint32_t normal = (u - 0x38000000u + 0xFFFu + ((u >> 13) & 1u)) >> 13;
    return static_cast<uint16_t>((u < 0x38800000u ? subnormal : normal) | ((bits >> 16) & 0x8000u));
}

// float16 to float32, exactly, infinities and NaN included.
DLMT_HD float float_of_half(uint16_t h) {
    const uint32_t u = (h & 0x7FFFu) << 13;
    const uint32_t exponent = u & 0x0F800000u;
    const uint32_t subnormal = bits_of(add_rn(from_bits(u + 0x38800000u), -from_bits(0x38800000u)));
    const uint32_t normal = u + (exponent == 0x0F800000u ? 0x70000000u : 0x38000000u);
    return from_bits((exponent == 0 ? subnormal : normal) | (static_cast<uint32_t>(h & 0x8000u) << 16));
}

// float32 to bfloat16, to nearest even, for finite x.
DLMT_HD uint16_t bfloat_of(float x) {
    const uint32_t bits = bits_of(x);
    return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

DLMT_HD float float_of_bfloat(uint16_t h) { return from_bits(static_cast<uint32_t>(h) << 16); }

}  // namespace dlmt
