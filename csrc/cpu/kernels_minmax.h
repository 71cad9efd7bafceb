// uint8 min-max in 16-bit lanes, where every v of the key fits them (derived.h): twice the values a vector, and half
// the key. Included once per instruction set that has vectors of its own, as loops.h and under the same rules.
//
// The first pass finds an image's bounds and, where there is room near the processor, keeps its v; the second pass
// normalises them: v - lo, converted by placing it below the exponent of 2**23, times s, to nearest even.

namespace dlmt {
namespace DLMT_LEVEL {
namespace {

// What the second pass needs of an image's bounds.
struct Normaliser {
    Bytes lo;
    Floats scale;
    Floats shift;
    explicit Normaliser(const int32_t* found)
        : lo(all16(static_cast<uint16_t>(found[0]))),
          scale(all(minmax_scale(found[0], found[1]))),
          shift(all(minmax_scale(found[0], found[1]) * -8388608.0f)) {}  // exact: only the exponent changes

    // kBytes results.
    DLMT_INLINE Bytes operator()(Bytes v0, Bytes v1) const {
        const Bytes d0 = sub16(v0, lo), d1 = sub16(v1, lo), exponents = all16(0x4B00);
        return rounded_bytes(scaled(low_pairs(d0, exponents)), scaled(high_pairs(d0, exponents)),
                             scaled(low_pairs(d1, exponents)), scaled(high_pairs(d1, exponents)));
    }
    DLMT_INLINE Floats scaled(Bytes bits) const { return shifted_mul(floats_of_bytes(bits), scale, shift); }
};

struct Extremes {
    Bytes lo, hi;
    // Written out: a constructor that the compiler makes up is not compiled for the level.
    DLMT_INLINE Extremes() : lo(all16(0xFFFF)), hi(all16(0)) {}
    DLMT_INLINE void take(Bytes v) { lo = min16(lo, v), hi = max16(hi, v); }
    // Merged into found[0] and found[1].
    DLMT_INLINE void merge(int32_t* found) const {
        const int32_t least = least16(lo), most = 0xFFFF - least16(not_bits(hi));
        found[0] = least < found[0] ? least : found[0];
        found[1] = most > found[1] ? most : found[1];
    }
};

// M and B of kHalf positions, in 16-bit lanes.
struct Halves {
    const Derived& key;
    DLMT_INLINE void operator()(int64_t i, Bytes& m, Bytes& b) const { m = load(key.m16 + i), b = load(key.b16 + i); }
};
template <bool kProduct>
struct PackedHalves {
    const Derived& key;
    DLMT_INLINE void operator()(int64_t i, Bytes& m, Bytes& b) const {
        const Bytes word = load(key.packed + i);
        m = and_bits(word, all16(15));
        b = shift_right16<4>(word);
        if (kProduct) b = mul16(b, m);
    }
};

// Calls f with the form of the key that there is.
template <class F>
DLMT_INLINE void with_key16(const Derived& key, F f) {
    if (key.packed == nullptr) return f(Halves{key});
    if (key.product) return f(PackedHalves<true>{key});
    f(PackedHalves<false>{key});
}

bool has_key16(const Job& job) {
    return job.derived != nullptr && (job.derived->m16 != nullptr || job.derived->packed != nullptr);
}

// 16-bit v of kHalf positions.
DLMT_INLINE Bytes values16(const uint8_t* in, Bytes m, Bytes b) { return add16(mul16(widen2(in), m), b); }

// kRows images, `in_step` apart, positions first..last (at least kBytes of them): bounds, merged into `found` (a pair
// an image), and where kKeep v, from v[image * step] on. The last vector overlaps the one before it.
template <int kRows, bool kKeep, class Key>
void bounds16(const uint8_t* in, ptrdiff_t in_step, const Key& key, int64_t first, int64_t last, int32_t* found,
              uint16_t* v, int64_t v_step) {
    Extremes extremes[kRows];
    for (int64_t i = first; i < last; i += kBytes) {
        const int64_t at = i + kBytes <= last ? i : last - kBytes;
        Bytes m0, m1, b0, b1;
        key(at, m0, b0), key(at + kHalf, m1, b1);
        for (int row = 0; row < kRows; ++row) {
            const uint8_t* from = in + row * in_step + at;
            if (kKeep) prefetch(from + kRows * in_step);  // the next images
            const Bytes v0 = values16(from, m0, b0), v1 = values16(from + kHalf, m1, b1);
            extremes[row].take(v0);
            extremes[row].take(v1);
            if (kKeep) store(v + row * v_step + at, v0), store(v + row * v_step + at + kHalf, v1);
        }
    }
    for (int row = 0; row < kRows; ++row) extremes[row].merge(found + 2 * row);
}

// The second pass from the image again.
template <bool kStreaming, class Key>
void results16_again(const uint8_t* in, uint8_t* out, const Job& job, const Key& key, int64_t first, int64_t last,
                     const int32_t* found) {
    const MinmaxUint8<Constant> f{job.m, job.b, Constant{found[0], minmax_scale(found[0], found[1]), 0.0f}};
    const Normaliser normal(found);
    const int64_t head = first + unaligned(out + first, last - first);
    const int64_t tail = head + (last - head) / kBytes * kBytes;
    one_image(in + first, out + first, head - first, f.from(first));
    for (int64_t i = head; i < tail; i += kBytes) {
        Bytes m0, m1, b0, b1;
        key(i, m0, b0), key(i + kHalf, m1, b1);
        put<kStreaming>(out + i, normal(values16(in + i, m0, b0), values16(in + i + kHalf, m1, b1)));
    }
    one_image(in + tail, out + tail, last - tail, f.from(tail));
    if (kStreaming) finish_streams();
}

}  // namespace
}  // namespace DLMT_LEVEL
}  // namespace dlmt
