// Rows of images in vectors: several rows that share each load of the key (kernels_range.h), and stores past the
// caches. Included once per instruction set that has vectors of its own, as loops.h and under the same rules.

namespace dlmt {
namespace DLMT_LEVEL {
namespace {

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

// A key of more positions than kUntiled is taken tile by tile, whose 8 KiB stay in the first-level cache while all rows
// pass over them. Shorter rows are cheaper to take whole: they lie one after the other in memory.
constexpr int64_t kUntiled = 16 * 1024;
constexpr int64_t kTile = 1024;

// kRows rows at a time while there are so many; moves `rows` and `count` on.
template <int kRows, bool kStreaming, class K>
DLMT_INLINE void groups(Rows<typename K::Out>& rows, int64_t& count, int64_t first, int64_t last, const K& k) {
    // Rows that pass through the caches are fetched two groups before they are computed.
    const ptrdiff_t ahead = !kStreaming ? 0 : kRows == 1 ? 2048 : 2 * kRows * rows.in_step;
    for (; count >= kRows; count -= kRows) {
        some_rows<kRows, kStreaming>(rows, first, last, k, ahead);
        rows.in += kRows * rows.in_step;
        rows.out += kRows * rows.out_step;
    }
}

// `count` rows, positions first..last of each.
template <bool kStreaming, class K>
void all_rows(const Rows<typename K::Out>& rows, int64_t count, int64_t first, int64_t last, const K& k) {
    const bool tiled = last - first > kUntiled;
    for (int64_t next; first < last; first = next) {
        next = tiled && last - first > 2 * kTile ? first + unaligned(rows.out + first, kTile) + kTile : last;
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

// The images of a job, `k.plain` and `k.load` counting from the image's first position.
template <class K>
void by_rows(const Job& job, int64_t first_image, int64_t last_image, int64_t first, int64_t last, const K& k) {
    using Out = typename K::Out;
    const auto* in = reinterpret_cast<const uint8_t*>(job.in + first_image * job.in_step);
    Out* out = reinterpret_cast<Out*>(job.out + first_image * job.out_step);
    const ptrdiff_t out_step = job.out_step / static_cast<ptrdiff_t>(sizeof(Out));
    const int64_t images = last_image - first_image, row = K::kRepeats ? job.derived->row : 0;
    if (row != 0 && job.in_step == job.size && out_step == job.size && first == 0 && last == job.size) {
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

// Images that come alone would fetch the whole key each: then its packed form is the faster one. Four and more share
// every part of it that is fetched.
bool take_packed(const Derived& key, int64_t images) {
    const bool copied = key.m24 != nullptr || key.mf != nullptr;
    return key.packed != nullptr && (images < 4 || !copied);
}

// float32, one channel after the other where they differ.
void floats_by_rows(const Job& job, int64_t first_image, int64_t last_image, int64_t first, int64_t last) {
    const Derived& key = *job.derived;
    const bool packed = take_packed(key, last_image - first_image);
    for (int64_t at = first, next; at < last; at = next) {
        const int64_t run = job.channels == 1 ? 0 : at / job.inner, channel = run % job.channels;
        next = job.channels == 1 || (run + 1) * job.inner > last ? last : (run + 1) * job.inner;
        if (!packed) {
            const RangeFloatVectors k(key.mf, key.bf, job.g[channel], job.bias[channel]);
            by_rows(job, first_image, last_image, at, next, k);
        } else if (key.product) {
            by_rows(job, first_image, last_image, at, next, PackedFloatVectors<true>(job, channel));
        } else {
            by_rows(job, first_image, last_image, at, next, PackedFloatVectors<false>(job, channel));
        }
    }
}

// Whether this job has a form of the key for these loops, and if so, does it.
bool range_by_rows(const Job& job, int64_t first_image, int64_t last_image, int64_t first, int64_t last) {
    const Derived* key = job.derived;
    if (key == nullptr) return false;
    if (job.m24 == nullptr) {
        floats_by_rows(job, first_image, last_image, first, last);
    } else if (!take_packed(*key, last_image - first_image)) {
        by_rows(job, first_image, last_image, first, last, RangeUint8Vectors(key->m24, key->b24));
    } else if (key->product) {
        by_rows(job, first_image, last_image, first, last, PackedUint8Vectors<true>(*key, job));
    } else {
        by_rows(job, first_image, last_image, first, last, PackedUint8Vectors<false>(*key, job));
    }
    return true;
}

}  // namespace
}  // namespace DLMT_LEVEL
}  // namespace dlmt
