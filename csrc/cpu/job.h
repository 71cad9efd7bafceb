// One call of the CPU backend: what to compute, on which memory, and how parameters that differ between channels are
// laid along an image.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dlmt {

enum class Normalize : uint8_t { none, range, minmax, minmax_channel };
enum class Dtype : uint8_t { uint8, uint16, int32, float32, float16, bfloat16 };

// The longest row of parameters that is spread out element by element (see `Job::row`).
constexpr int64_t kMaxRow = 512;

struct Derived;

// Images are (n, outer, channels, inner), each contiguous, `step` bytes apart. Of `in` and `out`, one is uint8 and the
// other `dtype`: images are transformed to `dtype`, and back from it.
struct Job {
    const char* in = nullptr;
    char* out = nullptr;
    ptrdiff_t in_step = 0;
    ptrdiff_t out_step = 0;
    int64_t n = 0;
    int64_t outer = 0;
    int64_t channels = 0;
    int64_t inner = 0;

    Normalize normalize = Normalize::none;
    Dtype dtype = Dtype::uint8;
    int32_t lo = 0;
    int32_t hi = 0;
    const int32_t* m = nullptr;
    const int32_t* b = nullptr;
    const uint32_t* m24 = nullptr;  // uint8 "range" only, as b24
    const uint32_t* b24 = nullptr;
    const double* deviation = nullptr;  // the std of each channel
    const float* g = nullptr;           // float "range" only
    const float* bias = nullptr;        // float dtypes only
    int32_t* bounds = nullptr;          // (n, groups, 2): lo and hi of each image; min-max only

    const Derived* derived = nullptr;  // faster forms of the key, or null

    // Set by `affine`: the result is too large for the caches to keep, so stores pass them by.
    bool streaming = false;

    // Set by `prepare`.
    int64_t size = 0;    // elements of one image
    int64_t groups = 1;  // pairs of bounds an image
    // Parameters that differ between channels take one of three forms: channels == 1 (they do not differ after all),
    // runs of `inner` elements with constant parameters (row == 0), or, where the runs are short (channels last),
    // parameters spread out over `row` elements, a multiple of channels * inner.
    int64_t row = 0;

    bool is_minmax() const { return normalize == Normalize::minmax || normalize == Normalize::minmax_channel; }
};

// Fills the derived fields, and drops the channel axis where no parameter depends on it.
void prepare(Job& job);

// The loops of one instruction set. `first` and `last` bound images or positions, half open; positions of one image
// start at a multiple of channels * inner where `row` is set.
struct Kernels {
    const char* name;
    // Everything but min-max, over several images.
    void (*affine)(const Job& job, int64_t first_image, int64_t last_image, int64_t first, int64_t last);
    // Min-max: bounds and results of whole images. `memory` is null or room for job.size + 128 values of an image.
    void (*minmax_images)(const Job& job, int64_t first_image, int64_t last_image, uint16_t* memory);
    // The bounds of one image's positions, merged into `found` (groups pairs).
    void (*bounds)(const Job& job, int64_t image, int64_t first, int64_t last, int32_t* found);
    // Min-max of one image whose bounds are known.
    void (*minmax)(const Job& job, int64_t image, int64_t first, int64_t last);
    // Returns the first position of a value that cannot come from this key, or -1.
    int64_t (*inverse)(const Job& job, int64_t image, int64_t first, int64_t last);
    // Only moves bytes (see copy.h).
    void (*copy)(const uint8_t* from, uint8_t* to, int64_t count, bool streaming);
    void (*convert)(const uint8_t* from, float* to, int64_t count, bool streaming);
    // Undoes the filters of a PNG image's rows: `from` is `height` times a filter and width * channels bytes (1 or 3
    // channels), `to` the same without the filters. Returns whether every filter is one.
    bool (*unfilter)(const uint8_t* from, uint8_t* to, int64_t height, int64_t width, int channels);
};

}  // namespace dlmt
