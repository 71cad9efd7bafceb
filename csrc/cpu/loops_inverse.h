// The loops from results back to images. Included once per instruction set, as loops.h and under the same rules.

namespace dlmt {
namespace DLMT_LEVEL {
namespace {

// As `Constant` and `Spread` of loops.h, in float64.
struct InverseConstant {
    double lo_;
    double scale_;  // the span for uint8, the divisor for floats
    double bias_;
    DLMT_INLINE double lo(int64_t) const { return lo_; }
    DLMT_INLINE double scale(int64_t) const { return scale_; }
    DLMT_INLINE double bias(int64_t) const { return bias_; }
};

struct InverseSpread {
    const double* lo_;
    const double* scale_;
    const double* bias_;
    DLMT_INLINE double lo(int64_t i) const { return lo_[i]; }
    DLMT_INLINE double scale(int64_t i) const { return scale_[i]; }
    DLMT_INLINE double bias(int64_t i) const { return bias_[i]; }
};

template <class T>
struct FromNone {
    using In = T;
    const int32_t* m;
    const int32_t* b;
    int32_t lo, hi;
    DLMT_INLINE uint8_t operator()(In v, int64_t i, uint32_t& bad) const {
        return inverse_none(v, m[i], b[i], lo, hi, bad);
    }
};

template <class P>
struct FromUint8 {
    using In = uint8_t;
    const int32_t* m;
    const int32_t* b;
    P p;
    DLMT_INLINE uint8_t operator()(In y, int64_t i, uint32_t&) const {
        return inverse_uint8(y, m[i], b[i], p.lo(i), p.scale(i));
    }
};

struct LoadFloat32 {
    using In = float;
    DLMT_INLINE static float load(In y) { return y; }
};
struct LoadFloat16 {
    using In = uint16_t;
    DLMT_INLINE static float load(In y) { return float_of_half(y); }
};
struct LoadBfloat16 {
    using In = uint16_t;
    DLMT_INLINE static float load(In y) { return float_of_bfloat(y); }
};

template <class Load, class P>
struct FromFloat {
    using In = typename Load::In;
    const int32_t* m;
    const int32_t* b;
    P p;
    DLMT_INLINE uint8_t operator()(In stored, int64_t i, uint32_t& bad) const {
        const float y = Load::load(stored);
        bad |= static_cast<uint32_t>((bits_of(y) & 0x7F800000u) == 0x7F800000u);
        return inverse_float(static_cast<double>(y), m[i], b[i], p.lo(i), p.scale(i), p.bias(i));
    }
};
template <class P>
using FromFloat32 = FromFloat<LoadFloat32, P>;
template <class P>
using FromFloat16 = FromFloat<LoadFloat16, P>;
template <class P>
using FromBfloat16 = FromFloat<LoadBfloat16, P>;

// Positions at..at+count of one image; returns the first bad one, or -1. The loop only tells whether a block holds one;
// the block waits in `done` until that is known, because `out` may be the memory of `in`, which is then read again.
template <class F>
DLMT_INLINE int64_t block_by_block(const Job& job, int64_t image, int64_t at, int64_t count, F f) {
    constexpr int64_t kBlock = 2048;
    const typename F::In* in = reinterpret_cast<const typename F::In*>(job.in + image * job.in_step) + at;
    uint8_t* out = reinterpret_cast<uint8_t*>(job.out + image * job.out_step) + at;
    uint8_t done[kBlock];
    for (int64_t start = 0; start < count; start += kBlock) {
        const int64_t length = count - start < kBlock ? count - start : kBlock;
        const typename F::In* from = in + start;
        uint32_t bad = 0;
        DLMT_INDEPENDENT
        for (int64_t i = 0; i < length; ++i) done[i] = f(from[i], start + i, bad);
        if (bad != 0) {
            bad = 0;
            int64_t i = 0;
            for (; bad == 0 && i < length; ++i) f(from[i], start + i, bad);
            return at + start + i - 1;
        }
        __builtin_memcpy(out + start, done, static_cast<size_t>(length));
    }
    return -1;
}

DLMT_INLINE InverseConstant inverse_channel_of(const Job& job, const int32_t* found, int64_t channel) {
    const int32_t* pair = found == nullptr ? nullptr : found + 2 * (job.groups == 1 ? 0 : channel);
    const int32_t lo = pair == nullptr ? job.lo : pair[0];
    const int32_t hi = pair == nullptr ? job.hi : pair[1];
    const double exact_lo = static_cast<double>(lo);
    if (job.dtype == Dtype::uint8) return InverseConstant{exact_lo, static_cast<double>(hi) - exact_lo, 0.0};
    const float g = pair == nullptr ? job.g[channel] : unit_gain(lo, hi, job.deviation[channel]);
    return InverseConstant{exact_lo, inverse_gain(g), static_cast<double>(job.bias[channel])};
}

template <template <class> class F>
int64_t inverse_by_channel(const Job& job, int64_t image, int64_t first, int64_t last) {
    const int32_t* found = job.is_minmax() ? job.bounds + image * job.groups * 2 : nullptr;
    if (job.row != 0) {
        double lo[kMaxRow], scale[kMaxRow], bias[kMaxRow];
        const int64_t period = job.channels * job.inner;
        for (int64_t channel = 0, i = 0; channel < job.channels; ++channel) {
            const InverseConstant p = inverse_channel_of(job, found, channel);
            for (int64_t k = 0; k < job.inner; ++k, ++i) lo[i] = p.lo_, scale[i] = p.scale_, bias[i] = p.bias_;
        }
        for (int64_t i = period; i < job.row; ++i) {
            lo[i] = lo[i - period], scale[i] = scale[i - period], bias[i] = bias[i - period];
        }
        for (int64_t at = first; at < last; at += job.row) {
            const int64_t length = last - at < job.row ? last - at : job.row;
            const F<InverseSpread> f{job.m + at, job.b + at, InverseSpread{lo, scale, bias}};
            const int64_t bad = block_by_block(job, image, at, length, f);
            if (bad >= 0) return bad;
        }
        return -1;
    }
    for (int64_t at = first, next; at < last; at = next) {
        const int64_t run = job.channels == 1 ? 0 : at / job.inner;
        next = job.channels == 1 || (run + 1) * job.inner > last ? last : (run + 1) * job.inner;
        const F<InverseConstant> f{job.m + at, job.b + at, inverse_channel_of(job, found, run % job.channels)};
        const int64_t bad = block_by_block(job, image, at, next - at, f);
        if (bad >= 0) return bad;
    }
    return -1;
}

template <class T>
int64_t from_none(const Job& job, int64_t image, int64_t first, int64_t last) {
    const FromNone<T> f{job.m + first, job.b + first, job.lo, job.hi};
    return block_by_block(job, image, first, last - first, f);
}

int64_t inverse(const Job& job, int64_t image, int64_t first, int64_t last) {
    const bool none = job.normalize == Normalize::none;
    switch (job.dtype) {
        case Dtype::uint8:
            return none ? from_none<uint8_t>(job, image, first, last)
                        : inverse_by_channel<FromUint8>(job, image, first, last);
        case Dtype::uint16:
            return from_none<uint16_t>(job, image, first, last);
        case Dtype::int32:
            return from_none<int32_t>(job, image, first, last);
        case Dtype::float32:
            return inverse_by_channel<FromFloat32>(job, image, first, last);
        case Dtype::float16:
            return inverse_by_channel<FromFloat16>(job, image, first, last);
        case Dtype::bfloat16:
            return inverse_by_channel<FromBfloat16>(job, image, first, last);
    }
    return -1;
}

}  // namespace
}  // namespace DLMT_LEVEL
}  // namespace dlmt
