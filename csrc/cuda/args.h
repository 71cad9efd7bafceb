// What a CUDA kernel is told: one struct, passed by value, the same for every kernel. No CUDA header is needed here:
// the arithmetic that fills it (schedule.cpp) is plain C++.
//
// A kernel walks over rows. A row is a stretch of `length` positions that share nothing but their key: several small
// images one after the other, one image, or one channel of one image. The key of a row is stationary: a block holds its
// slice of it and walks over rows.
#pragma once

#include <cstdint>

#include "../cpu/job.h"

namespace dlmt::cuda {

struct Args {
    const uint8_t* in;
    uint8_t* out;

    // `planes` keys of `key_step` positions each, a multiple of 16; uint32 patterns of M and B, or M24 and B24.
    const uint32_t* m;
    const uint32_t* b;
    const float* gain;        // of each channel; "range" with float results only
    const float* bias;        // of each channel; float results only
    const double* deviation;  // of each channel; min-max with float results only
    int32_t* bounds;          // (images, pairs, 2): lo and hi; min-max only
    unsigned long long* bad;  // the smallest flat index that cannot come from this key; inverses only

    int64_t images;
    int64_t size;      // positions of an image
    int64_t total;     // images * size
    int64_t channels;  // position p is of channel p / inner % channels
    int64_t inner;
    int64_t length;     // positions of a row
    int64_t row_step;   // positions from a row of one plane to the next
    int64_t key_step;   // positions from the key of one plane to the next
    int32_t rows;       // of one plane
    int32_t rows_each;  // of a group of rows; the first `rows_more` groups have one more
    int32_t rows_more;
    int32_t planes;
    int32_t slices;          // blocks along a row
    int32_t warps_per_unit;  // `minmax_small` only

    int32_t pairs;  // of bounds an image: 1 or `channels`
    int32_t lo;
    int32_t hi;
    Normalize normalize;
    Dtype dtype;
};

// Rows that a block of a kernel with a table of rows in shared memory may walk over.
constexpr int32_t kTableRows = 512;

}  // namespace dlmt::cuda
