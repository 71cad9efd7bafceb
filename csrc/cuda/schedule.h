// Which kernels run for a call, over which blocks: plain arithmetic, so that it is tested where there is no GPU.
#pragma once

#include <cstdint>
#include <vector>

#include "args.h"

namespace dlmt::cuda {

enum class Kernel : uint8_t {
    range,
    none,
    unit,
    clear_bounds,
    bounds,
    minmax,
    minmax_small,
    minmax_cluster,
    minmax_general,
    inverse,
    copy,
};

const char* name_of(Kernel kernel);

// `minmax_cluster`: blocks of a cluster (as many as every device has that knows clusters), their most threads, chunks
// of 16 positions a thread, and images under way.
constexpr int kClusterBlocks = 8;
constexpr int kClusterThreads = 608;
constexpr int kClusterChunks = 2;
constexpr int kClusterRing = 4;

struct Device {
    int32_t capability = 90;  // 10 * major + minor
    int32_t multiprocessors = 132;
};

// What a plan computes, with images of (outer, channels, inner).
struct Shape {
    Normalize normalize = Normalize::none;
    Dtype dtype = Dtype::uint8;
    int32_t lo = 0, hi = 0;
    int64_t outer = 0, channels = 0, inner = 0;
    bool channels_differ = false;  // in std or bias

    int64_t size() const { return outer * channels * inner; }
    bool is_minmax() const { return normalize == Normalize::minmax || normalize == Normalize::minmax_channel; }
    bool is_float() const { return normalize != Normalize::none && dtype != Dtype::uint8; }
    bool is_fixed() const { return normalize == Normalize::range && dtype == Dtype::uint8; }
    int64_t pairs() const { return normalize == Normalize::minmax_channel ? channels : 1; }
};

// How the key lies in the device's memory, and what a row is (see args.h).
struct Layout {
    bool general = false;  // no rows: `minmax_general` alone
    int64_t planes = 1;
    int64_t length = 0;      // positions of a row
    int64_t key_step = 0;    // `length` rounded up to a multiple of 16
    int64_t row_images = 1;  // images in a row, where there is one plane
};

Layout layout_of(const Shape& shape);

struct Step {
    Kernel kernel = Kernel::range;
    Dtype dtype = Dtype::uint8;
    bool aligned = true;
    uint32_t grid_x = 1, grid_y = 1, threads = 256;
    uint32_t cluster = 1;  // blocks
    uint32_t shared_bytes = 0;
    Args args = {};
};

// The memory of a call. `key` is Args with everything that a plan on its device has: pointers to the key and to the
// parameters of channels.
struct Call {
    const uint8_t* in = nullptr;
    uint8_t* out = nullptr;
    int32_t* bounds = nullptr;
    unsigned long long* bad = nullptr;
    int64_t images = 0;
};

// In this order on one stream. `plain_m` and `plain_b` are M and B in the order of an image.
struct DeviceKey {
    const uint32_t* m = nullptr;
    const uint32_t* b = nullptr;
    const uint32_t* plain_m = nullptr;
    const uint32_t* plain_b = nullptr;
    const float* gain = nullptr;
    const float* bias = nullptr;
    const double* deviation = nullptr;
};

std::vector<Step> affine_steps(const Shape& shape, const Layout& layout, const DeviceKey& key, const Call& call,
                               const Device& device);
std::vector<Step> inverse_steps(const Shape& shape, const DeviceKey& key, const Call& call, const Device& device);
std::vector<Step> copy_steps(const uint8_t* in, uint8_t* out, int64_t elements, Dtype dtype, const Device& device);

int64_t bytes_of(Dtype dtype);

// Images whose loads a thread has under way at once; 1 where the kernel does not arrange for it.
int32_t images_in_flight(const Step& step);

}  // namespace dlmt::cuda
