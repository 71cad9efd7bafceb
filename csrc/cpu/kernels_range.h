// "range" in vectors, for each form of the key in derived.h. Included once per instruction set that has vectors of its
// own, as loops.h and under the same rules.
//
// A kernel has: Out; `load(i)`, which takes the key of kBytes positions from i on into registers; `apply<streaming>`,
// which computes those positions of one row; `plain(i)`, the functor of loops.h for single positions from i on; and
// kRepeats, whether its key goes on as Derived::row says.

namespace dlmt {
namespace DLMT_LEVEL {
namespace {

struct RangeUint8Vectors {
    using Out = uint8_t;
    static constexpr bool kRepeats = true;
    const uint32_t* m24;
    const uint32_t* b24;
    Bytes m0, m1, m2, m3, b0, b1, b2, b3;
    RangeUint8Vectors(const uint32_t* m, const uint32_t* b) : m24(m), b24(b) {}

    DLMT_INLINE void load(int64_t i) {
        constexpr int64_t k = kBytes / 4;
        m0 = DLMT_LEVEL::load(m24 + i), m1 = DLMT_LEVEL::load(m24 + i + k);
        m2 = DLMT_LEVEL::load(m24 + i + 2 * k), m3 = DLMT_LEVEL::load(m24 + i + 3 * k);
        b0 = DLMT_LEVEL::load(b24 + i), b1 = DLMT_LEVEL::load(b24 + i + k);
        b2 = DLMT_LEVEL::load(b24 + i + 2 * k), b3 = DLMT_LEVEL::load(b24 + i + 3 * k);
    }
    DLMT_INLINE static Bytes one(const uint8_t* in, Bytes m, Bytes b) { return add32(mul32(widen4(in), m), b); }
    template <bool kStreaming>
    DLMT_INLINE void apply(const uint8_t* in, Out* out) const {
        constexpr int64_t k = kBytes / 4;
        const Bytes y0 = one(in, m0, b0), y1 = one(in + k, m1, b1);
        const Bytes y2 = one(in + 2 * k, m2, b2), y3 = one(in + 3 * k, m3, b3);
        put<kStreaming>(out, top_bytes(y0, y1, y2, y3));
    }
    DLMT_INLINE RangeUint8 plain(int64_t i) const { return RangeUint8{m24 + i, b24 + i}; }
};

// M and B of a quarter of a vector's positions, from packed words.
template <bool kProduct>
DLMT_INLINE void unpack(const uint16_t* words, Bytes& m, Bytes& b) {
    const Bytes word = widen_words(words);
    m = and_bits(word, all32(15));
    b = shift_right<4>(word);
    if (kProduct) b = mul32(b, m);
}

// As RangeUint8Vectors, with the key packed.
template <bool kProduct>
struct PackedUint8Vectors : RangeUint8Vectors {
    static constexpr bool kRepeats = false;
    const Derived& key;
    Table fixed, rest;
    Bytes base, half;
    __m128i shift;
    PackedUint8Vectors(const Derived& k, const Job& job)
        : RangeUint8Vectors(job.m24, job.b24),
          key(k),
          fixed(k.fixed),
          rest(k.rest),
          base(all32(k.base)),
          half(all32(static_cast<uint32_t>(k.half))),
          shift(_mm_cvtsi32_si128(k.shift)) {}

    DLMT_INLINE void load(int64_t i) {
        constexpr int64_t k = kBytes / 4;
        one_key(i, m0, b0), one_key(i + k, m1, b1), one_key(i + 2 * k, m2, b2), one_key(i + 3 * k, m3, b3);
    }
    DLMT_INLINE void one_key(int64_t i, Bytes& m, Bytes& b) const {
        const Bytes word = widen_words(key.packed + i), k = shift_right<4>(word);
        m = fixed[word];
        const Bytes product = mul32(k, kProduct ? m : all32(key.one));
        b = add32(add32(product, base), shift_right_signed(add32(mul32(k, rest[word]), half), shift));
    }
};

// float32 of v - lo from float32 M and B - lo: exact, as derived.h promises.
struct RangeFloatPlain {
    using Out = float;
    const float* mf;
    const float* bf;
    float g, bias;
    DLMT_INLINE Out operator()(uint8_t a, int64_t i) const {
        return add_rn(mul_rn(add_rn(mul_rn(float_of(static_cast<uint32_t>(a)), mf[i]), bf[i]), g), bias);
    }
};

struct RangeFloatVectors {
    using Out = float;
    static constexpr bool kRepeats = true;
    const float* mf;
    const float* bf;
    float g, bias;
    Floats m0, m1, m2, m3, b0, b1, b2, b3, gs, biases;
    RangeFloatVectors(const float* m, const float* b, float gain, float bias_)
        : mf(m), bf(b), g(gain), bias(bias_), gs(all(gain)), biases(all(bias_)) {}

    DLMT_INLINE void load(int64_t i) {
        constexpr int64_t k = kBytes / 4;
        m0 = load_floats(mf + i), m1 = load_floats(mf + i + k);
        m2 = load_floats(mf + i + 2 * k), m3 = load_floats(mf + i + 3 * k);
        b0 = load_floats(bf + i), b1 = load_floats(bf + i + k);
        b2 = load_floats(bf + i + 2 * k), b3 = load_floats(bf + i + 3 * k);
    }
    template <bool kStreaming>
    DLMT_INLINE void one(const uint8_t* in, Out* out, Floats m, Floats b) const {
        const Floats v = exact_mul_add(to_floats(widen4(in)), m, b);
        put<kStreaming>(out, bytes_of_floats(add(mul(v, gs), biases)));
    }
    template <bool kStreaming>
    DLMT_INLINE void apply(const uint8_t* in, Out* out) const {
        constexpr int64_t k = kBytes / 4;
        one<kStreaming>(in, out, m0, b0), one<kStreaming>(in + k, out + k, m1, b1);
        one<kStreaming>(in + 2 * k, out + 2 * k, m2, b2), one<kStreaming>(in + 3 * k, out + 3 * k, m3, b3);
    }
    DLMT_INLINE RangeFloatPlain plain(int64_t i) const { return RangeFloatPlain{mf + i, bf + i, g, bias}; }
};

// As RangeFloatVectors, with the key packed; the matrices serve single positions.
template <bool kProduct>
struct PackedFloatVectors : RangeFloatVectors {
    static constexpr bool kRepeats = false;
    const Job& job;
    int64_t channel;
    Bytes lo;
    PackedFloatVectors(const Job& j, int64_t c)
        : RangeFloatVectors(nullptr, nullptr, j.g[c], j.bias[c]),
          job(j),
          channel(c),
          lo(all32(static_cast<uint32_t>(j.lo))) {}

    DLMT_INLINE void load(int64_t i) {
        constexpr int64_t k = kBytes / 4;
        one_key(i, m0, b0), one_key(i + k, m1, b1), one_key(i + 2 * k, m2, b2), one_key(i + 3 * k, m3, b3);
    }
    DLMT_INLINE void one_key(int64_t i, Floats& mf, Floats& bf) const {
        Bytes m, b;
        unpack<kProduct>(job.derived->packed + i, m, b);
        mf = to_floats(m), bf = to_floats(sub32(b, lo));
    }
    DLMT_INLINE UnitFloat32<Constant> plain(int64_t i) const {
        return UnitFloat32<Constant>{job.m + i, job.b + i, Constant{job.lo, g, bias}};
    }
};

}  // namespace
}  // namespace DLMT_LEVEL
}  // namespace dlmt
