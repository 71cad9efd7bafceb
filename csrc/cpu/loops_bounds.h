// Min-max: bounds of images, and their results. Included once per instruction set, as loops.h and under the same rules.

namespace dlmt {
namespace DLMT_LEVEL {
namespace {

#if defined(DLMT_VECTORS)
// In loops_minmax.h. They return whether they did the work.
bool minmax16_images(const Job& job, int64_t first_image, int64_t last_image, uint16_t* memory);
bool bounds16_of_run(const Job& job, int64_t image, int64_t first, int64_t last, int32_t* found);
bool results16(const Job& job, int64_t image, int64_t first, int64_t last);
#endif

void minmax(const Job& job, int64_t image, int64_t first, int64_t last) {
#if defined(DLMT_VECTORS)
    if (results16(job, image, first, last)) return;
#endif
    by_dtype(job, job.bounds + image * job.groups * 2, 1, image, first, last);
}

// Merges the bounds of a run of one channel into found[0] and found[1].
void bounds_of_run(const Job& job, int64_t image, int64_t first, int64_t last, int32_t* found) {
#if defined(DLMT_VECTORS)
    if (bounds16_of_run(job, image, first, last, found)) return;
#endif
    const uint8_t* in = reinterpret_cast<const uint8_t*>(job.in + image * job.in_step);
    int32_t lo = found[0], hi = found[1];
    for (int64_t i = first; i < last; ++i) {
        const int32_t v = affine_value(in[i], job.m[i], job.b[i]);
        lo = v < lo ? v : lo;
        hi = v > hi ? v : hi;
    }
    found[0] = lo;
    found[1] = hi;
}

// Channels last: bounds of each place in the row, then of the channel that each place belongs to.
void bounds_of_rows(const Job& job, int64_t image, int64_t first, int64_t last, int32_t* found) {
    const uint8_t* in = reinterpret_cast<const uint8_t*>(job.in + image * job.in_step);
    int32_t lo[kMaxRow], hi[kMaxRow];
    for (int64_t i = 0; i < job.row; ++i) lo[i] = INT32_MAX, hi[i] = INT32_MIN;
    for (int64_t at = first; at < last; at += job.row) {
        const int64_t length = last - at < job.row ? last - at : job.row;
        const uint8_t* a = in + at;
        const int32_t *m = job.m + at, *b = job.b + at;
        DLMT_INDEPENDENT
        for (int64_t i = 0; i < length; ++i) {
            const int32_t v = affine_value(a[i], m[i], b[i]);
            lo[i] = v < lo[i] ? v : lo[i];
            hi[i] = v > hi[i] ? v : hi[i];
        }
    }
    for (int64_t i = 0, channel = 0; i < job.row; channel = channel + 1 == job.channels ? 0 : channel + 1) {
        int32_t* pair = found + 2 * channel;
        for (int64_t k = 0; k < job.inner; ++k, ++i) {
            pair[0] = lo[i] < pair[0] ? lo[i] : pair[0];
            pair[1] = hi[i] > pair[1] ? hi[i] : pair[1];
        }
    }
}

void bounds(const Job& job, int64_t image, int64_t first, int64_t last, int32_t* found) {
    if (job.groups == 1) return bounds_of_run(job, image, first, last, found);
    if (job.row != 0) return bounds_of_rows(job, image, first, last, found);
    for (int64_t at = first, next; at < last; at = next) {
        const int64_t run = at / job.inner;
        next = (run + 1) * job.inner > last ? last : (run + 1) * job.inner;
        bounds_of_run(job, image, at, next, found + 2 * (run % job.channels));
    }
}

// Bounds and results of whole images, one after the other: the second pass finds its image in the cache.
void minmax_images(const Job& job, int64_t first_image, int64_t last_image, uint16_t* memory) {
#if defined(DLMT_VECTORS)
    if (minmax16_images(job, first_image, last_image, memory)) return;
#endif
    (void)memory;
    for (int64_t image = first_image; image < last_image; ++image) {
        int32_t* found = job.bounds + image * job.groups * 2;
        for (int64_t i = 0; i < job.groups; ++i) found[2 * i] = INT32_MAX, found[2 * i + 1] = INT32_MIN;
        bounds(job, image, 0, job.size, found);
        minmax(job, image, 0, job.size);
    }
}

}  // namespace
}  // namespace DLMT_LEVEL
}  // namespace dlmt
