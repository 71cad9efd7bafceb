// uint8 min-max in 16-bit lanes, where every v of the key fits them (Derived::m16): twice the values a vector, and half
// the key. Included once per instruction set that has vectors of its own, as loops.h and under the same rules.
//
// The first pass finds an image's bounds and, where there is room near the processor, keeps its v; the second pass
// normalises them: v - lo, converted by placing it below the exponent of 2**23, times s, to nearest even.

namespace dlmt {
namespace DLMT_LEVEL {
namespace {

constexpr int64_t kHalf = kBytes / 2;  // positions in one vector of 16-bit lanes

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
        const Bytes d0 = sub16(v0, lo), d1 = sub16(v1, lo);
        return narrow2(half(d0), half(d1));
    }
    DLMT_INLINE Bytes half(Bytes d) const {
        const Bytes exponents = all16(0x4B00);
        return narrow_pair(one(low_pairs(d, exponents)), one(high_pairs(d, exponents)));
    }
    DLMT_INLINE Bytes one(Bytes bits) const { return rounded(shifted_mul(floats_of_bytes(bits), scale, shift)); }
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

// 16-bit v of kHalf positions.
DLMT_INLINE Bytes values16(const uint8_t* in, Bytes m, Bytes b) { return add16(mul16(widen2(in), m), b); }

// kRows images, `in_step` apart, positions first..last (at least kBytes of them): bounds, merged into `found` (a pair
// an image), and where kKeep v, from v[image * step] on. The last vector overlaps the one before it.
template <int kRows, bool kKeep>
void bounds16(const uint8_t* in, ptrdiff_t in_step, const Derived& key, int64_t first, int64_t last, int32_t* found,
              uint16_t* v, int64_t v_step) {
    Extremes extremes[kRows];
    for (int64_t i = first; i < last; i += kBytes) {
        const int64_t at = i + kBytes <= last ? i : last - kBytes;
        const Bytes m0 = load(key.m16 + at), m1 = load(key.m16 + at + kHalf);
        const Bytes b0 = load(key.b16 + at), b1 = load(key.b16 + at + kHalf);
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
template <bool kStreaming>
void results16_again(const uint8_t* in, uint8_t* out, const Job& job, int64_t first, int64_t last,
                     const int32_t* found) {
    const Derived& key = *job.derived;
    const MinmaxUint8<Constant> f{job.m, job.b, Constant{found[0], minmax_scale(found[0], found[1]), 0.0f}};
    const Normaliser normal(found);
    const int64_t head = first + unaligned(out + first, last - first);
    const int64_t tail = head + (last - head) / kBytes * kBytes;
    one_image(in + first, out + first, head - first, f.from(first));
    for (int64_t i = head; i < tail; i += kBytes) {
        const uint16_t *m = key.m16 + i, *b = key.b16 + i;
        const Bytes v0 = values16(in + i, load(m), load(b));
        const Bytes v1 = values16(in + i + kHalf, load(m + kHalf), load(b + kHalf));
        put<kStreaming>(out + i, normal(v0, v1));
    }
    one_image(in + tail, out + tail, last - tail, f.from(tail));
    if (kStreaming) finish_streams();
}

// Results that follow each other in memory, image after image, written in whole lines: what an image leaves of its last
// line waits for the next image.
template <bool kStreaming>
class Flow {
  public:
    DLMT_INLINE explicit Flow(uint8_t* out)
        : begin_(static_cast<int64_t>(reinterpret_cast<uintptr_t>(out) % kBytes)),
          held_(begin_),
          line_(out - begin_),
          carry_(all16(0)) {}

    // The second pass over an image's v, of which kBytes before and after can be read; at least kBytes of them.
    DLMT_INLINE void take(const uint16_t* v, int64_t count, const Normaliser& normal) {
        int64_t i = -held_;
        if (held_ != 0) {
            carry_ = choose(carry_, normal(load(v + i), load(v + i + kHalf)), held_);
            if (begin_ != 0) {
                part(begin_, kBytes);
                begin_ = 0;
            } else {
                put<kStreaming>(line_, carry_);
            }
            line_ += kBytes;
            i += kBytes;
        }
        for (; i + kBytes <= count; i += kBytes, line_ += kBytes) {
            put<kStreaming>(line_, normal(load(v + i), load(v + i + kHalf)));
        }
        held_ = count - i;
        if (held_ != 0) carry_ = normal(load(v + i), load(v + i + kHalf));
    }
    DLMT_INLINE void finish() {
        part(begin_, held_);
        if (kStreaming) finish_streams();
    }

  private:
    DLMT_INLINE void part(int64_t first, int64_t last) const {
        uint8_t line[kBytes];
        store(line, carry_);
        __builtin_memcpy(line_ + first, line + first, static_cast<size_t>(last - first));
    }

    int64_t begin_;  // of the very first line, before which nothing may be written; then 0
    int64_t held_;   // bytes of the line that `carry_` holds
    uint8_t* line_;
    Bytes carry_;
};

// Positions whose v are kept on the stack: 32 KiB of them, beside which the key has room. For more the caller gives
// memory, where that still serves (see `Kernels::minmax_images`).
constexpr int64_t kKept = 16 * 1024;

// kRows images from `image` on, positions first..last, whose bounds are pair number `pair`; `v` has room for them all.
template <int kRows, bool kStreaming>
DLMT_INLINE void kept_images(const Job& job, int64_t image, int64_t pair, int64_t first, int64_t last, uint16_t* v,
                             Flow<kStreaming>& flow) {
    const auto* in = reinterpret_cast<const uint8_t*>(job.in + image * job.in_step);
    int32_t found[2 * kRows];
    for (int row = 0; row < kRows; ++row) found[2 * row] = INT32_MAX, found[2 * row + 1] = INT32_MIN;
    const int64_t count = last - first;
    bounds16<kRows, true>(in, job.in_step, *job.derived, first, last, found, v - first, count);
    for (int row = 0; row < kRows; ++row) {
        int32_t* bounds = job.bounds + ((image + row) * job.groups + pair) * 2;
        bounds[0] = found[2 * row], bounds[1] = found[2 * row + 1];
        flow.take(v + row * count, count, Normaliser(bounds));
    }
}

// Images whose v, or those of a channel, can be kept.
template <bool kStreaming>
void all_kept_images(const Job& job, int64_t first_image, int64_t last_image, uint16_t* v) {
    const int64_t runs = job.groups, size = job.size / runs;  // a run of positions for each pair of bounds
    const bool dense = job.out_step == job.size;
    // As many images share the key as leave their v in the first-level cache beside it.
    const int64_t share = runs != 1 || !dense ? 1 : size <= 1024 ? 4 : size <= 4096 ? 2 : 1;
    Flow<kStreaming> flow(reinterpret_cast<uint8_t*>(job.out + first_image * job.out_step));
    for (int64_t image = first_image; image < last_image;) {
        if (share > 1 && image + share <= last_image) {
            if (share == 4) {
                kept_images<4>(job, image, 0, 0, size, v, flow);
            } else {
                kept_images<2>(job, image, 0, 0, size, v, flow);
            }
            image += share;
            continue;
        }
        if (!dense && image > first_image) {
            flow.finish();
            flow = Flow<kStreaming>(reinterpret_cast<uint8_t*>(job.out + image * job.out_step));
        }
        for (int64_t run = 0; run < runs; ++run) {
            kept_images<1>(job, image, run, run * size, (run + 1) * size, v, flow);
        }
        ++image;
    }
    flow.finish();
}

// The bounds and results of whole images; returns false, having done nothing, where v does not fit 16 bits.
bool minmax16_images(const Job& job, int64_t first_image, int64_t last_image, uint16_t* memory) {
    const int64_t runs = job.groups, size = job.size / runs;
    if (job.derived == nullptr || job.derived->m16 == nullptr || size < kBytes) return false;
    alignas(64) uint16_t few[kKept + 2 * kBytes];
    uint16_t* const v = size <= kKept ? few : memory;
    if (v != nullptr) {
        if (job.streaming) {
            all_kept_images<true>(job, first_image, last_image, v + kBytes);
        } else {
            all_kept_images<false>(job, first_image, last_image, v + kBytes);
        }
        return true;
    }
    for (int64_t image = first_image; image < last_image; ++image) {
        for (int64_t run = 0; run < runs; ++run) {
            int32_t* found = job.bounds + (image * runs + run) * 2;
            found[0] = INT32_MAX, found[1] = INT32_MIN;
            bounds_of_run(job, image, run * size, (run + 1) * size, found);
        }
        minmax(job, image, 0, job.size);
    }
    return true;
}

// As `bounds_of_run` and `minmax` of loops.h.
bool bounds16_of_run(const Job& job, int64_t image, int64_t first, int64_t last, int32_t* found) {
    if (job.derived == nullptr || job.derived->m16 == nullptr || last - first < kBytes) return false;
    const auto* in = reinterpret_cast<const uint8_t*>(job.in + image * job.in_step);
    bounds16<1, false>(in, 0, *job.derived, first, last, found, nullptr, 0);
    return true;
}

bool results16(const Job& job, int64_t image, int64_t first, int64_t last) {
    if (job.derived == nullptr || job.derived->m16 == nullptr) return false;
    const auto* in = reinterpret_cast<const uint8_t*>(job.in + image * job.in_step);
    auto* out = reinterpret_cast<uint8_t*>(job.out + image * job.out_step);
    const int64_t size = job.size / job.groups;
    for (int64_t at = first, next; at < last; at = next) {
        const int64_t run = at / size;
        next = (run + 1) * size < last ? (run + 1) * size : last;
        const int32_t* found = job.bounds + (image * job.groups + run) * 2;
        if (job.streaming) {
            results16_again<true>(in, out, job, at, next, found);
        } else {
            results16_again<false>(in, out, job, at, next, found);
        }
    }
    return true;
}

}  // namespace
}  // namespace DLMT_LEVEL
}  // namespace dlmt
