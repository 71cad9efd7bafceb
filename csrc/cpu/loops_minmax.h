// uint8 min-max of whole images and of parts of one, by the passes of kernels_minmax.h. Included once per instruction
// set that has vectors of its own, as loops.h and under the same rules.

namespace dlmt {
namespace DLMT_LEVEL {
namespace {

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
template <int kRows, bool kStreaming, class Key>
DLMT_INLINE void kept_images(const Job& job, const Key& key, int64_t image, int64_t pair, int64_t first, int64_t last,
                             uint16_t* v, Flow<kStreaming>& flow) {
    const auto* in = reinterpret_cast<const uint8_t*>(job.in + image * job.in_step);
    int32_t found[2 * kRows];
    for (int row = 0; row < kRows; ++row) found[2 * row] = INT32_MAX, found[2 * row + 1] = INT32_MIN;
    const int64_t count = last - first;
    bounds16<kRows, true>(in, job.in_step, key, first, last, found, v - first, count);
    for (int row = 0; row < kRows; ++row) {
        int32_t* bounds = job.bounds + ((image + row) * job.groups + pair) * 2;
        bounds[0] = found[2 * row], bounds[1] = found[2 * row + 1];
        flow.take(v + row * count, count, Normaliser(bounds));
    }
}

// Images whose v, or those of a channel, can be kept.
template <bool kStreaming, class Key>
void all_kept_images(const Job& job, const Key& key, int64_t first_image, int64_t last_image, uint16_t* v) {
    const int64_t runs = job.groups, size = job.size / runs;  // a run of positions for each pair of bounds
    const bool dense = job.out_step == job.size;
    // As many images share the key as leave their v in the first-level cache beside it.
    const int64_t share = runs != 1 || !dense ? 1 : size <= 1024 ? 4 : size <= 4096 ? 2 : 1;
    Flow<kStreaming> flow(reinterpret_cast<uint8_t*>(job.out + first_image * job.out_step));
    for (int64_t image = first_image; image < last_image;) {
        if (share > 1 && image + share <= last_image) {
            if (share == 4) {
                kept_images<4>(job, key, image, 0, 0, size, v, flow);
            } else {
                kept_images<2>(job, key, image, 0, 0, size, v, flow);
            }
            image += share;
            continue;
        }
        if (!dense && image > first_image) {
            flow.finish();
            flow = Flow<kStreaming>(reinterpret_cast<uint8_t*>(job.out + image * job.out_step));
        }
        for (int64_t run = 0; run < runs; ++run) {
            kept_images<1>(job, key, image, run, run * size, (run + 1) * size, v, flow);
        }
        ++image;
    }
    flow.finish();
}

// The bounds and results of whole images; returns false, having done nothing, where v does not fit 16 bits.
bool minmax16_images(const Job& job, int64_t first_image, int64_t last_image, uint16_t* memory) {
    const int64_t runs = job.groups, size = job.size / runs;
    if (!has_key16(job) || size < kBytes) return false;
    alignas(64) uint16_t few[kKept + 2 * kBytes];
    uint16_t* const v = size <= kKept ? few : memory;
    if (v != nullptr) {
        with_key16(*job.derived, [&](const auto& key) {
            if (job.streaming) {
                all_kept_images<true>(job, key, first_image, last_image, v + kBytes);
            } else {
                all_kept_images<false>(job, key, first_image, last_image, v + kBytes);
            }
        });
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
    if (!has_key16(job) || last - first < kBytes) return false;
    const auto* in = reinterpret_cast<const uint8_t*>(job.in + image * job.in_step);
    with_key16(*job.derived, [&](const auto& key) { bounds16<1, false>(in, 0, key, first, last, found, nullptr, 0); });
    return true;
}

bool results16(const Job& job, int64_t image, int64_t first, int64_t last) {
    if (!has_key16(job)) return false;
    const auto* in = reinterpret_cast<const uint8_t*>(job.in + image * job.in_step);
    auto* out = reinterpret_cast<uint8_t*>(job.out + image * job.out_step);
    const int64_t size = job.size / job.groups;
    for (int64_t at = first, next; at < last; at = next) {
        const int64_t run = at / size;
        next = (run + 1) * size < last ? (run + 1) * size : last;
        const int32_t* found = job.bounds + (image * job.groups + run) * 2;
        with_key16(*job.derived, [&](const auto& key) {
            if (job.streaming) {
                results16_again<true>(in, out, job, key, at, next, found);
            } else {
                results16_again<false>(in, out, job, key, at, next, found);
            }
        });
    }
    return true;
}

}  // namespace
}  // namespace DLMT_LEVEL
}  // namespace dlmt
