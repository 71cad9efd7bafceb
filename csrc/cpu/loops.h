// The loops from images to results. Included once per instruction set, inside a target region and with DLMT_LEVEL
// defined as the namespace; so no include guard, and nothing here may instantiate a function of the standard library,
// whose one copy would then hold instructions that another machine lacks.
//
// Loops are plain: what a functor says about one element, vectorised by the compiler. Output and input may be the same
// memory element for element, which is what DLMT_INDEPENDENT promises the compiler.

namespace dlmt {
namespace DLMT_LEVEL {
namespace {

// Parameters that are the same along a run of elements.
struct Constant {
    int32_t lo_;
    float scale_;
    float bias_;
    DLMT_INLINE int32_t lo(int64_t) const { return lo_; }
    DLMT_INLINE float scale(int64_t) const { return scale_; }
    DLMT_INLINE float bias(int64_t) const { return bias_; }
};

// Parameters spread out over one row of elements.
struct Spread {
    const int32_t* lo_;
    const float* scale_;
    const float* bias_;
    DLMT_INLINE int32_t lo(int64_t i) const { return lo_[i]; }
    DLMT_INLINE float scale(int64_t i) const { return scale_[i]; }
    DLMT_INLINE float bias(int64_t i) const { return bias_[i]; }
};

struct RangeUint8 {
    using Out = uint8_t;
    const uint32_t* m24;
    const uint32_t* b24;
    DLMT_INLINE Out operator()(uint8_t a, int64_t i) const { return range_uint8(a, m24[i], b24[i]); }
};

template <class T>
struct Raw {
    using Out = T;
    const int32_t* m;
    const int32_t* b;
    DLMT_INLINE Out operator()(uint8_t a, int64_t i) const { return static_cast<T>(affine_value(a, m[i], b[i])); }
};

template <class P>
struct MinmaxUint8 {
    using Out = uint8_t;
    const int32_t* m;
    const int32_t* b;
    P p;
    DLMT_INLINE Out operator()(uint8_t a, int64_t i) const {
        return minmax_uint8(affine_value(a, m[i], b[i]), p.lo(i), p.scale(i));
    }
    // The same for positions from `i` on; constant parameters only.
    DLMT_INLINE MinmaxUint8 from(int64_t i) const { return MinmaxUint8{m + i, b + i, p}; }
};

struct AsFloat32 {
    using Out = float;
    DLMT_INLINE static Out store(float y) { return y; }
};
struct AsFloat16 {
    using Out = uint16_t;
    DLMT_INLINE static Out store(float y) { return half_of(y); }
};
struct AsBfloat16 {
    using Out = uint16_t;
    DLMT_INLINE static Out store(float y) { return bfloat_of(y); }
};

template <class As, class P>
struct Unit {
    using Out = typename As::Out;
    const int32_t* m;
    const int32_t* b;
    P p;
    DLMT_INLINE Out operator()(uint8_t a, int64_t i) const {
        return As::store(unit_float(affine_value(a, m[i], b[i]), p.lo(i), p.scale(i), p.bias(i)));
    }
};

template <class F>
DLMT_INLINE void one_image(const uint8_t* in, typename F::Out* out, int64_t count, F f) {
    DLMT_INDEPENDENT
    for (int64_t i = 0; i < count; ++i) out[i] = f(in[i], i);
}

// Four images share each load of the key, whose 8 bytes a position outweigh the image itself.
template <class F>
DLMT_INLINE void four_images(const uint8_t* in, ptrdiff_t in_step, char* out, ptrdiff_t out_step, int64_t count, F f) {
    using Out = typename F::Out;
    const uint8_t *in0 = in, *in1 = in + in_step, *in2 = in + 2 * in_step, *in3 = in + 3 * in_step;
    Out* out0 = reinterpret_cast<Out*>(out);
    Out* out1 = reinterpret_cast<Out*>(out + out_step);
    Out* out2 = reinterpret_cast<Out*>(out + 2 * out_step);
    Out* out3 = reinterpret_cast<Out*>(out + 3 * out_step);
    DLMT_INDEPENDENT
    for (int64_t i = 0; i < count; ++i) {
        const Out y0 = f(in0[i], i), y1 = f(in1[i], i), y2 = f(in2[i], i), y3 = f(in3[i], i);
        out0[i] = y0, out1[i] = y1, out2[i] = y2, out3[i] = y3;
    }
}

// `images` images, 1 or 4, from `first` on, positions at..at+count; `f` counts positions from 0.
template <class F>
DLMT_INLINE void images(const Job& job, int64_t images, int64_t image, int64_t at, int64_t count, F f) {
    using Out = typename F::Out;
    const uint8_t* in = reinterpret_cast<const uint8_t*>(job.in + image * job.in_step) + at;
    char* out = job.out + image * job.out_step + at * static_cast<int64_t>(sizeof(Out));
    if (images == 4) {
        four_images(in, job.in_step, out, job.out_step, count, f);
    } else {
        one_image(in, reinterpret_cast<Out*>(out), count, f);
    }
}

template <class F>
void uniform(const Job& job, int64_t first_image, int64_t last_image, int64_t first, int64_t last, F f) {
    int64_t image = first_image;
    for (; image + 4 <= last_image; image += 4) images(job, 4, image, first, last - first, f);
    for (; image < last_image; ++image) images(job, 1, image, first, last - first, f);
}

// What a channel's lo, scale and bias are; `found` holds an image's bounds, or is null where the plan's serve.
DLMT_INLINE Constant channel_of(const Job& job, const int32_t* found, int64_t channel) {
    if (found == nullptr) return Constant{job.lo, job.g[channel], job.bias[channel]};
    found += 2 * (job.groups == 1 ? 0 : channel);
    if (job.dtype == Dtype::uint8) return Constant{found[0], minmax_scale(found[0], found[1]), 0.0f};
    return Constant{found[0], unit_gain(found[0], found[1], job.deviation[channel]), job.bias[channel]};
}

// `count` images, 1 or 4, whose parameters differ between channels; F<P> is the functor for parameters of kind P.
template <template <class> class F>
void by_channel(const Job& job, const int32_t* found, int64_t count, int64_t image, int64_t first, int64_t last) {
    if (job.row != 0) {
        int32_t lo[kMaxRow];
        float scale[kMaxRow], bias[kMaxRow];
        const int64_t period = job.channels * job.inner;
        for (int64_t channel = 0, i = 0; channel < job.channels; ++channel) {
            const Constant p = channel_of(job, found, channel);
            for (int64_t k = 0; k < job.inner; ++k, ++i) lo[i] = p.lo_, scale[i] = p.scale_, bias[i] = p.bias_;
        }
        for (int64_t i = period; i < job.row; ++i) {
            lo[i] = lo[i - period], scale[i] = scale[i - period], bias[i] = bias[i - period];
        }
        for (int64_t at = first; at < last; at += job.row) {
            const int64_t length = last - at < job.row ? last - at : job.row;
            images(job, count, image, at, length, F<Spread>{job.m + at, job.b + at, Spread{lo, scale, bias}});
        }
        return;
    }
    for (int64_t at = first, next; at < last; at = next) {
        const int64_t run = job.channels == 1 ? 0 : at / job.inner;
        next = job.channels == 1 || (run + 1) * job.inner > last ? last : (run + 1) * job.inner;
        const Constant p = channel_of(job, found, run % job.channels);
        images(job, count, image, at, next - at, F<Constant>{job.m + at, job.b + at, p});
    }
}

template <class P>
using UnitFloat32 = Unit<AsFloat32, P>;
template <class P>
using UnitFloat16 = Unit<AsFloat16, P>;
template <class P>
using UnitBfloat16 = Unit<AsBfloat16, P>;

void by_dtype(const Job& job, const int32_t* found, int64_t count, int64_t image, int64_t first, int64_t last) {
    switch (job.dtype) {
        case Dtype::float32:
            return by_channel<UnitFloat32>(job, found, count, image, first, last);
        case Dtype::float16:
            return by_channel<UnitFloat16>(job, found, count, image, first, last);
        case Dtype::bfloat16:
            return by_channel<UnitBfloat16>(job, found, count, image, first, last);
        default:
            return by_channel<MinmaxUint8>(job, found, count, image, first, last);
    }
}

#if defined(DLMT_VECTORS)
// In loops_rows.h. Returns whether it did the work.
bool range_by_rows(const Job& job, int64_t first_image, int64_t last_image, int64_t first, int64_t last);
#endif

void affine(const Job& job, int64_t first_image, int64_t last_image, int64_t first, int64_t last) {
#if defined(DLMT_VECTORS)
    if (range_by_rows(job, first_image, last_image, first, last)) return;
#endif
    const int32_t *m = job.m + first, *b = job.b + first;
    if (job.m24 != nullptr) {
        return uniform(job, first_image, last_image, first, last, RangeUint8{job.m24 + first, job.b24 + first});
    }
    if (job.normalize == Normalize::none) {
        if (job.dtype == Dtype::uint8) {
            uniform(job, first_image, last_image, first, last, Raw<uint8_t>{m, b});
        } else if (job.dtype == Dtype::uint16) {
            uniform(job, first_image, last_image, first, last, Raw<uint16_t>{m, b});
        } else {
            uniform(job, first_image, last_image, first, last, Raw<int32_t>{m, b});
        }
        return;
    }
    int64_t image = first_image;
    for (; image + 4 <= last_image; image += 4) by_dtype(job, nullptr, 4, image, first, last);
    for (; image < last_image; ++image) by_dtype(job, nullptr, 1, image, first, last);
}

}  // namespace
}  // namespace DLMT_LEVEL
}  // namespace dlmt
