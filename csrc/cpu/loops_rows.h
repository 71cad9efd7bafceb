// Rows of images in vectors: the forms of the key in derived.h, several rows that share each load of it, and stores
// past the caches. Included once per instruction set that has vectors of its own, as loops.h and under the same rules.
//
// A kernel has: Out; `load(i)`, which takes the key of kBytes positions from i on into registers; `apply<streaming>`,
// which computes those positions of one row; and `plain()`, the functor of loops.h for what no vector covers.

namespace dlmt {
namespace DLMT_LEVEL {
namespace {

template <bool kStreaming>
DLMT_INLINE void put(void* to, Bytes x) {
    if (kStreaming) {
        stream(to, x);
    } else {
        store(to, x);
    }
}

struct RangeUint8Vectors {
    using Out = uint8_t;
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
    DLMT_INLINE static Bytes one(const uint8_t* in, Bytes m, Bytes b) {
        return top_byte(add32(mul32(widen4(in), m), b));
    }
    template <bool kStreaming>
    DLMT_INLINE void apply(const uint8_t* in, Out* out) const {
        constexpr int64_t k = kBytes / 4;
        const Bytes y0 = one(in, m0, b0), y1 = one(in + k, m1, b1);
        const Bytes y2 = one(in + 2 * k, m2, b2), y3 = one(in + 3 * k, m3, b3);
        put<kStreaming>(out, narrow4(y0, y1, y2, y3));
    }
    DLMT_INLINE RangeUint8 plain(int64_t i) const { return RangeUint8{m24 + i, b24 + i}; }
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

// Where rows lie, in elements: `in_step` and `out_step` from one to the next.
template <class Out>
struct Rows {
    const uint8_t* in;
    Out* out;
    ptrdiff_t in_step;
    ptrdiff_t out_step;
};

// kRows rows, positions first..last, of which first is a whole vector of `out` where kStreaming; last - first is a
// multiple of kBytes.
template <int kRows, bool kStreaming, class K>
void vectors(Rows<typename K::Out> rows, int64_t first, int64_t last, K k, ptrdiff_t ahead) {
    for (int64_t i = first; i < last; i += kBytes) {
        k.load(i);
        for (int row = 0; row < kRows; ++row) {
            const uint8_t* in = rows.in + row * rows.in_step + i;
            if (ahead != 0) prefetch(in + ahead);
            k.template apply<kStreaming>(in, rows.out + row * rows.out_step + i);
        }
    }
}

// As `vectors`, for any first and last.
template <int kRows, bool kStreaming, class K>
DLMT_INLINE void some_rows(const Rows<typename K::Out>& rows, int64_t first, int64_t last, const K& k,
                           ptrdiff_t ahead) {
    const int64_t head = first + unaligned(rows.out + first, last - first);
    const int64_t tail = head + (last - head) / kBytes * kBytes;
    for (int row = 0; row < kRows; ++row) {
        const uint8_t* in = rows.in + row * rows.in_step;
        auto* out = rows.out + row * rows.out_step;
        one_image(in + first, out + first, head - first, k.plain(first));
        one_image(in + tail, out + tail, last - tail, k.plain(tail));
    }
    vectors<kRows, kStreaming>(rows, head, tail, k, ahead);
}

// Positions whose key stays in the second-level cache while all rows pass over it.
constexpr int64_t kTile = 8 * 1024;

// kRows rows at a time while there are so many; moves `rows` and `count` on.
template <int kRows, bool kStreaming, class K>
DLMT_INLINE void groups(Rows<typename K::Out>& rows, int64_t& count, int64_t first, int64_t last, const K& k) {
    // Rows that pass through the caches are fetched while the group before them is computed.
    const ptrdiff_t ahead = kStreaming ? kRows * rows.in_step : 0;
    for (; count >= kRows; count -= kRows) {
        some_rows<kRows, kStreaming>(rows, first, last, k, ahead);
        rows.in += kRows * rows.in_step;
        rows.out += kRows * rows.out_step;
    }
}

// `count` rows, positions first..last of each.
template <bool kStreaming, class K>
void all_rows(const Rows<typename K::Out>& rows, int64_t count, int64_t first, int64_t last, const K& k) {
    for (int64_t next; first < last; first = next) {
        next = last - first > kTile + kTile / 2 ? first + kTile : last;
        Rows<typename K::Out> rest = rows;
        int64_t left = count;
        groups<4, kStreaming>(rest, left, first, next, k);
        groups<1, kStreaming>(rest, left, first, next, k);
    }
}

// A dense run of `count` elements whose key repeats every `row`. Streaming begins at the first whole vector of `out`,
// and every row there: only the very first and the very last elements are outside of vectors.
template <bool kStreaming, class K>
void dense(const uint8_t* in, typename K::Out* out, int64_t count, int64_t row, const K& k) {
    const int64_t head = unaligned(out, count);
    one_image(in, out, head, k.plain(0));
    const Rows<typename K::Out> rows{in, out, row, row};
    const int64_t whole = (count - head) / row;
    all_rows<kStreaming>(rows, whole, head, head + row, k);
    const Rows<typename K::Out> rest{in + whole * row, out + whole * row, row, row};
    some_rows<1, kStreaming>(rest, head, count - whole * row, k, 0);
    if (kStreaming) finish_streams();
}

template <class K>
void by_rows(const Job& job, int64_t first_image, int64_t last_image, int64_t first, int64_t last, const K& k) {
    using Out = typename K::Out;
    const auto* in = reinterpret_cast<const uint8_t*>(job.in + first_image * job.in_step);
    Out* out = reinterpret_cast<Out*>(job.out + first_image * job.out_step);
    const ptrdiff_t out_step = job.out_step / static_cast<ptrdiff_t>(sizeof(Out));
    const int64_t images = last_image - first_image, row = job.derived->row;
    if (job.in_step == job.size && out_step == job.size && first == 0 && last == job.size) {
        const bool streaming = job.streaming && (row * sizeof(Out)) % kBytes == 0;
        return streaming ? dense<true>(in, out, images * job.size, row, k)
                         : dense<false>(in, out, images * job.size, row, k);
    }
    const Rows<Out> rows{in, out, job.in_step, out_step};
    if (job.streaming && (images == 1 || job.out_step % kBytes == 0)) {
        all_rows<true>(rows, images, first, last, k);
        finish_streams();
    } else {
        all_rows<false>(rows, images, first, last, k);
    }
}

// Whether this job has a form of the key for these loops, and if so, does it.
bool range_by_rows(const Job& job, int64_t first_image, int64_t last_image, int64_t first, int64_t last) {
    const Derived* key = job.derived;
    if (key == nullptr) return false;
    if (key->m24 != nullptr) {
        const RangeUint8Vectors k(key->m24, key->b24);
        by_rows(job, first_image, last_image, first, last, k);
        return true;
    }
    if (key->mf == nullptr) return false;
    if (job.channels == 1) {
        const RangeFloatVectors k(key->mf, key->bf, job.g[0], job.bias[0]);
        by_rows(job, first_image, last_image, first, last, k);
        return true;
    }
    for (int64_t at = first, next; at < last; at = next) {
        const int64_t run = at / job.inner, channel = run % job.channels;
        next = (run + 1) * job.inner > last ? last : (run + 1) * job.inner;
        const RangeFloatVectors k(key->mf, key->bf, job.g[channel], job.bias[channel]);
        by_rows(job, first_image, last_image, at, next, k);
    }
    return true;
}

}  // namespace
}  // namespace DLMT_LEVEL
}  // namespace dlmt
