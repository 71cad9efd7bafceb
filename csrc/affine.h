// The arithmetic of one element, compiled by both the C++ and the CUDA side. Sections are those of the arithmetic
// contract dlmt-fast/v1; the results are the same bits everywhere.
#pragma once

#include "hd.h"

namespace dlmt {

// Section 1: v = A*M + B, an exact int32. Computed unsigned, where a negative M wraps to the same bits and values that
// no valid plan has cannot overflow.
DLMT_HD int32_t affine_value(uint8_t a, int32_t m, int32_t b) {
    return static_cast<int32_t>(static_cast<uint32_t>(a) * static_cast<uint32_t>(m) + static_cast<uint32_t>(b));
}

// x - y of two int32 that no valid plan lets overflow.
DLMT_HD int32_t difference(int32_t x, int32_t y) {
    return static_cast<int32_t>(static_cast<uint32_t>(x) - static_cast<uint32_t>(y));
}

// Section 3, uint8 "range": 24 fraction bits, modulo 2**32; y is the highest byte.
DLMT_HD uint32_t range_fixed(uint8_t a, uint32_t m24, uint32_t b24) { return a * m24 + b24; }
DLMT_HD uint8_t range_uint8(uint8_t a, uint32_t m24, uint32_t b24) {
    return static_cast<uint8_t>(range_fixed(a, m24, b24) >> 24);
}

// Section 3, uint8 min-max: s = 255f / float32(hi - lo); 0 where hi == lo, which makes every y 0.
DLMT_HD float minmax_scale(int32_t lo, int32_t hi) {
    return hi == lo ? 0.0f : div_rn(255.0f, float_of(static_cast<uint32_t>(difference(hi, lo))));
}

// Section 3, uint8 min-max. float32(v - lo) <= float32(hi - lo), so the product is below 255.5 and clipping to 0..255
// would change nothing. y is the lowest byte of the sum whose addition rounds (see `rint_small`).
DLMT_HD uint32_t minmax_bits(int32_t v, int32_t lo, float s) {
    return bits_of(add_rn(mul_rn(float_of(difference(v, lo)), s), kRounder));
}
DLMT_HD uint8_t minmax_uint8(int32_t v, int32_t lo, float s) {
    return static_cast<uint8_t>(rint_small(mul_rn(float_of(difference(v, lo)), s)));
}

// Section 3, float32: g = float32(1.0 / (float64(hi - lo) * std)); 0 where hi == lo.
DLMT_HD float unit_gain(int32_t lo, int32_t hi, double std_of_channel) {
    if (hi == lo) return 0.0f;
    const double span = static_cast<double>(static_cast<uint32_t>(difference(hi, lo)));
    return narrow_rn(div_rn(1.0, mul_rn(span, std_of_channel)));
}

// Section 3, float32: two roundings.
DLMT_HD float unit_float(int32_t v, int32_t lo, float g, float b) {
    return add_rn(mul_rn(float_of(difference(v, lo)), g), b);
}

// Section 4: clip(floor(x), 0, 255); NaN gives 0. Clipping comes first, so the conversion is always defined.
DLMT_HD uint8_t clip_floor(double x) {
    x = x > 0.0 ? x : 0.0;
    x = x < 255.0 ? x : 255.0;
    return static_cast<uint8_t>(static_cast<int32_t>(x));
}

// Section 4, from "none": A = (v - B)/M, with `bad` set where it is no integer of 0..255 or v is outside [lo, hi].
// In float64: v - B, and the quotient where it is an integer, are exact; a quotient in 0..255 that is none differs from
// one by at least 2**-31, far above its rounding; one outside is clipped, and then the product differs.
DLMT_HD uint8_t inverse_none(int32_t v, int32_t m, int32_t b, int32_t lo, int32_t hi, uint32_t& bad) {
    const double d = add_rn(static_cast<double>(v), -static_cast<double>(b));
    const double md = static_cast<double>(m);
    const uint8_t a = clip_floor(div_rn(d, md));
    bad |= static_cast<uint32_t>(mul_rn(static_cast<double>(a), md) != d);
    bad |= static_cast<uint32_t>(v < lo) | static_cast<uint32_t>(v > hi);
    return a;
}

// Section 4, from uint8: clip(div(y*D + 255*(lo - B), 255*M), 0, 255), where div rounds halves up.
// In float64: p and q are integers below 2**53. A p/q that is no half-integer is at least 1/(2q) > 2**-41 away from
// one, and inside [-1, 256] rounding moves it by less than 2**-44; outside, clipping decides. A negative M needs no
// care: p/q is (-p)/(-q).
DLMT_HD uint8_t inverse_uint8(uint8_t y, int32_t m, int32_t b, double lo, double span) {
    const double p = mul_rn(static_cast<double>(y), span) + mul_rn(255.0, lo - static_cast<double>(b));
    return clip_floor(div_rn(p, mul_rn(255.0, static_cast<double>(m))) + 0.5);
}

// Section 4, from floats, in float64 and in this order. `g` is infinite where hi == lo, which makes the first quotient
// 0 without a branch.
DLMT_HD uint8_t inverse_float(double y, int32_t m, int32_t b, double lo, double g, double bias) {
    const double v = add_rn(div_rn(add_rn(y, -bias), g), lo);
    return clip_floor(add_rn(div_rn(add_rn(v, -static_cast<double>(b)), static_cast<double>(m)), 0.5));
}

// The divisor that `inverse_float` takes for a gain.
DLMT_HD double inverse_gain(float g) { return g > 0.0f ? static_cast<double>(g) : __builtin_inf(); }

}  // namespace dlmt
