// A plan's coefficients as Python hands them over, checked: the same for every native module.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "bind_arrays.h"

namespace dlmt {

template <class T, size_t N>
T named(const std::string& name, const char* role, const std::pair<const char*, T> (&known)[N]) {
    for (const auto& [each, value] : known) {
        if (name == each) return value;
    }
    throw py::value_error("unknown " + std::string(role) + "=\"" + name + "\"");
}

inline Normalize normalize_of(const std::string& name) {
    static constexpr std::pair<const char*, Normalize> known[] = {{"none", Normalize::none},
                                                                  {"range", Normalize::range},
                                                                  {"minmax", Normalize::minmax},
                                                                  {"minmax_channel", Normalize::minmax_channel}};
    return named(name, "normalize", known);
}

inline Dtype dtype_of(const std::string& name) {
    static constexpr std::pair<const char*, Dtype> known[] = {
        {"uint8", Dtype::uint8},     {"uint16", Dtype::uint16},   {"int32", Dtype::int32},
        {"float32", Dtype::float32}, {"float16", Dtype::float16}, {"bfloat16", Dtype::bfloat16}};
    return named(name, "dtype", known);
}

// Pointers into the arrays, null where the plan has none.
struct Coefficients {
    Normalize normalize = Normalize::none;
    Dtype dtype = Dtype::uint8;
    int32_t lo = 0, hi = 0;
    py::ssize_t outer = 0, channels = 0, inner = 0;
    const int32_t* m = nullptr;
    const int32_t* b = nullptr;
    const uint32_t* m24 = nullptr;
    const uint32_t* b24 = nullptr;
    const double* deviation = nullptr;
    const float* g = nullptr;
    const float* bias = nullptr;
};

// M is (outer, C, inner), as B, M24 and B24 are; std, g and b are (C,).
inline Coefficients check_coefficients(const std::string& normalize, const std::string& dtype, int64_t lo, int64_t hi,
                                       const py::array& m, const OptionalArray& b, const OptionalArray& m24,
                                       const OptionalArray& b24, const OptionalArray& deviation, const OptionalArray& g,
                                       const OptionalArray& bias) {
    Coefficients k;
    k.normalize = normalize_of(normalize);
    k.dtype = dtype_of(dtype);
    const bool none = k.normalize == Normalize::none, integer = k.dtype == Dtype::uint16 || k.dtype == Dtype::int32;
    if (k.dtype != Dtype::uint8 && integer != none) {
        throw py::value_error("this normalize does not give dtype " + dtype);
    }
    if (lo < INT32_MIN || hi > INT32_MAX || hi < lo || hi - lo > INT32_MAX) {
        throw py::value_error("lo and hi are no bounds of int32 values");
    }
    k.lo = static_cast<int32_t>(lo);
    k.hi = static_cast<int32_t>(hi);

    check_elements(m, "M", kInt32, false);
    if (m.ndim() != 3 || m.size() == 0 || !is_dense(m, 0)) {
        throw py::value_error("M must be (outer, C, inner), contiguous and not empty, got " + text(m));
    }
    k.outer = m.shape(0), k.channels = m.shape(1), k.inner = m.shape(2);
    k.m = static_cast<const int32_t*>(m.data());
    k.b = parameters<int32_t>(b, "B", kInt32, {k.outer, k.channels, k.inner});
    const bool is_float = k.dtype != Dtype::uint8 && !none;
    if (k.normalize == Normalize::range && !is_float) {
        k.m24 = parameters<uint32_t>(m24, "M24", kUint32, {k.outer, k.channels, k.inner});
        k.b24 = parameters<uint32_t>(b24, "B24", kUint32, {k.outer, k.channels, k.inner});
    }
    if (is_float) {
        k.bias = parameters<float>(bias, "b", kFloat32, {k.channels});
        if (k.normalize == Normalize::range) {
            k.g = parameters<float>(g, "g", kFloat32, {k.channels});
        } else {
            k.deviation = parameters<double>(deviation, "std", kFloat64, {k.channels});
        }
    }
    return k;
}

}  // namespace dlmt
