#include "schedule.h"

#include <algorithm>
#include <numeric>

namespace dlmt::cuda {
namespace {

constexpr int64_t kMaxGridY = 65535;
constexpr int64_t kShortRow = 4096;                // rows are made of several images up to here,
constexpr int64_t kLongRow = 1 << 16;              // and up to here where that makes rows a multiple of 16 bytes
constexpr int64_t kMaxImages = 1 << 24;            // of one launch of min-max: 512 rows a block, 65535 groups of rows
constexpr int64_t kThreadsAtOnce[2] = {448, 896};  // a multiprocessor's, by `aligned`: 144 or 72 registers each
constexpr int64_t kMostThreads = 224;
constexpr int64_t kRegisters = 65536;
constexpr int64_t kSmallRegisters[2] = {128, 80};  // of `minmax_small`, by `aligned`
constexpr int64_t kClusterRegisters = 104;
constexpr int64_t kSmallThreads[2] = {512, 768};

int64_t ceil_div(int64_t x, int64_t y) { return (x + y - 1) / y; }
int64_t round_up(int64_t x, int64_t unit) { return ceil_div(x, unit) * unit; }

// Whether chunks of `vector` positions can be read and written whole, `step` positions apart.
bool is_aligned(const Call& call, int64_t length, int64_t step, int64_t vector) {
    return reinterpret_cast<uintptr_t>(call.in) % static_cast<uintptr_t>(vector) == 0 &&
           reinterpret_cast<uintptr_t>(call.out) % 16 == 0 && length % vector == 0 && step % vector == 0;
}

Args arguments(const Shape& shape, const DeviceKey& key, const Call& call) {
    Args args = {};
    args.in = call.in, args.out = call.out, args.bounds = call.bounds, args.bad = call.bad;
    args.m = key.m, args.b = key.b;
    args.gain = key.gain, args.bias = key.bias, args.deviation = key.deviation;
    args.images = call.images;
    args.size = shape.size();
    args.total = args.images * args.size;
    args.channels = shape.channels, args.inner = shape.inner;
    args.pairs = static_cast<int32_t>(shape.pairs());
    args.planes = 1;
    args.slices = 1;
    args.lo = shape.lo, args.hi = shape.hi;
    args.normalize = shape.normalize, args.dtype = shape.dtype;
    return args;
}

void lay_rows(Args& args, const Layout& layout) {
    args.planes = static_cast<int32_t>(layout.planes);
    args.length = layout.length;
    args.key_step = layout.key_step;
    args.row_step = layout.planes > 1 ? args.size : layout.length;
    args.rows = static_cast<int32_t>(layout.planes > 1 ? args.images : ceil_div(args.images, layout.row_images));
}

// How well `blocks` equal blocks fill the device: the last of several waves, or, within one, multiprocessors that hold
// one block more than others, and too few loads under way.
double filled(int64_t blocks, int64_t at_once, int64_t multiprocessors) {
    const auto ratio = [](int64_t x, int64_t y) { return static_cast<double>(x) / static_cast<double>(y); };
    constexpr double kWave = 0.03;  // lost to the start of another wave, whose blocks read their key with nothing to do
    if (blocks > at_once) {
        return ratio(blocks, round_up(blocks, at_once)) - kWave * static_cast<double>(ceil_div(blocks, at_once) - 1);
    }
    return ratio(blocks, round_up(blocks, multiprocessors)) * std::min(1.0, 1.25 * ratio(blocks, at_once));
}

// Groups of rows: each reads the key anew, so the fewest that fill the device. `least` holds for the kernel's table.
int64_t row_groups(int64_t rows, int64_t across, int64_t at_once, int64_t bytes, int64_t least, const Device& device) {
    const int64_t most = std::max(least, std::min(rows, kMaxGridY));
    const int64_t each = at_once / device.multiprocessors;
    int64_t best = least;
    double best_score = -1;
    for (int64_t held = 0; held <= 3 * each; ++held) {
        const int64_t groups = std::clamp(held * device.multiprocessors / across, least, most);
        const double key = 2.0 * static_cast<double>(groups) / static_cast<double>(rows * bytes);  // from the cache
        const double score = filled(across * groups, at_once, device.multiprocessors) / (1.0 + key);
        if (score > best_score * 1.001) best = groups, best_score = score;
    }
    return best;
}

// The threads of a block, so that few of them lie beyond the end of a row of `chunks`.
uint32_t block_threads_for(int64_t chunks, int64_t a_thread) {
    int64_t best = kMostThreads;
    double best_score = 0;
    for (int64_t threads = kMostThreads; threads >= 128; threads -= 32) {
        const int64_t blocks = ceil_div(chunks, threads * a_thread);
        const double used = static_cast<double>(chunks) / static_cast<double>(blocks * threads * a_thread);
        const double score = used * static_cast<double>(kThreadsAtOnce[1] / threads * threads);
        if (score > best_score * 1.001) best = threads, best_score = score;
    }
    return static_cast<uint32_t>(best);
}

// A step of blocks that walk over rows; `args` has its rows.
Step row_step(Kernel kernel, Dtype dtype, const Args& args, bool aligned, bool table, const Device& device) {
    const int64_t result = kernel == Kernel::bounds ? 1 : bytes_of(dtype);
    const int64_t vector = 16 / result, a_thread = vector < 8 ? 8 / vector : 1;
    Step step;
    step.kernel = kernel, step.dtype = dtype, step.aligned = aligned, step.args = args;
    const int64_t chunks = ceil_div(std::min(args.length, args.total), vector);
    step.threads = block_threads_for(chunks, a_thread);
    const int64_t slices = ceil_div(chunks, step.threads * a_thread), across = slices * args.planes;
    const int64_t at_once = device.multiprocessors * (kThreadsAtOnce[aligned] / step.threads);
    const int64_t least = table ? ceil_div(args.rows, kTableRows) : 1;
    const int64_t groups = row_groups(args.rows, across, at_once, 1 + result, least, device);
    step.args.slices = static_cast<int32_t>(slices);
    step.grid_x = static_cast<uint32_t>(across);
    step.grid_y = static_cast<uint32_t>(groups);
    step.args.rows_each = static_cast<int32_t>(args.rows / groups);
    step.args.rows_more = static_cast<int32_t>(args.rows % groups);
    if (table) step.shared_bytes = static_cast<uint32_t>(8 * ceil_div(args.rows, groups));
    return step;
}

Step small_step(const Args& args, bool aligned, const Device& device) {
    constexpr int64_t kWarps = 6;  // of a block, about
    const int64_t warps = ceil_div(args.length, 512);
    const int64_t units = std::min<int64_t>(std::max<int64_t>(1, kWarps / warps), args.rows);
    Step step;
    step.kernel = Kernel::minmax_small, step.aligned = aligned, step.args = args;
    step.args.warps_per_unit = static_cast<int32_t>(warps);
    step.threads = static_cast<uint32_t>(32 * warps * units);
    const int64_t each = std::max<int64_t>(1, kRegisters / (kSmallRegisters[aligned] * step.threads));
    const int64_t blocks =
        std::clamp<int64_t>(each * device.multiprocessors / args.planes, 1, ceil_div(args.rows, units));
    step.grid_x = static_cast<uint32_t>(blocks * args.planes);
    step.shared_bytes = static_cast<uint32_t>(2 * 8 * warps * units);
    return step;
}

bool fits_cluster(const Args& args, bool aligned, const Device& device) {
    return aligned && device.capability >= 90 && device.multiprocessors >= kClusterBlocks &&
           args.length <= int64_t{16} * kClusterBlocks * kClusterThreads * kClusterChunks;
}

Step cluster_step(const Args& args, const Device& device) {
    constexpr int64_t kMemory = 224 << 10;  // shared, of a multiprocessor
    const int64_t chunks = ceil_div(args.length / 16, kClusterBlocks);
    Step step;
    step.kernel = Kernel::minmax_cluster, step.args = args;
    step.cluster = kClusterBlocks;
    step.threads = static_cast<uint32_t>(round_up(ceil_div(chunks, kClusterChunks), 32));
    const int64_t warps = step.threads / 32 * kClusterBlocks;
    const int64_t bytes = kClusterRing * (8 + 8 * warps + 16 * kClusterChunks * int64_t{step.threads});
    const int64_t each = std::min(kRegisters / (kClusterRegisters * step.threads), kMemory / (bytes + 1024));
    const int64_t clusters = std::max<int64_t>(1, device.multiprocessors * each / kClusterBlocks / args.planes);
    step.grid_x = static_cast<uint32_t>(std::min<int64_t>(clusters, args.rows) * args.planes * kClusterBlocks);
    step.shared_bytes = static_cast<uint32_t>(bytes);
    return step;
}

void minmax_steps(const Shape& shape, const Layout& layout, const DeviceKey& key, const Call& call,
                  const Device& device, std::vector<Step>& steps) {
    Args args = arguments(shape, key, call);
    if (layout.general) {
        Step step;
        step.kernel = Kernel::minmax_general, step.dtype = shape.dtype;
        step.args = args;
        step.args.m = key.plain_m, step.args.b = key.plain_b;
        step.grid_x = static_cast<uint32_t>(std::min<int64_t>(args.images * args.pairs, device.multiprocessors * 8));
        step.shared_bytes = 2 * 8 * (256 / 32);
        steps.push_back(step);
        return;
    }
    lay_rows(args, layout);
    const bool in_aligned = is_aligned({call.in}, layout.length, args.row_step, 16);
    const bool aligned = is_aligned(call, layout.length, args.row_step, 16 / bytes_of(shape.dtype));
    if (shape.dtype == Dtype::uint8 && layout.length <= 16 * kSmallThreads[aligned]) {
        steps.push_back(small_step(args, aligned, device));
        return;
    }
    if (shape.dtype == Dtype::uint8 && fits_cluster(args, aligned, device)) {
        steps.push_back(cluster_step(args, device));
        return;
    }
    Step clear;
    clear.kernel = Kernel::clear_bounds, clear.args = args;
    clear.grid_x = static_cast<uint32_t>(
        std::min<int64_t>(ceil_div(args.images * args.pairs, 256), device.multiprocessors * int64_t{4}));
    steps.push_back(clear);
    steps.push_back(row_step(Kernel::bounds, Dtype::uint8, args, in_aligned, true, device));
    steps.push_back(row_step(Kernel::minmax, shape.dtype, args, aligned, true, device));
}

}  // namespace

const char* name_of(Kernel kernel) {
    constexpr const char* names[] = {"range",          "none",    "unit",         "clear_bounds",
                                     "bounds",         "minmax",  "minmax_small", "minmax_cluster",
                                     "minmax_general", "inverse", "copy"};
    return names[static_cast<int>(kernel)];
}

int64_t bytes_of(Dtype dtype) {
    if (dtype == Dtype::uint8) return 1;
    return dtype == Dtype::int32 || dtype == Dtype::float32 ? 4 : 2;
}

int32_t images_in_flight(const Step& step) {
    switch (step.kernel) {
        case Kernel::range:
        case Kernel::none:
        case Kernel::unit:
        case Kernel::bounds:
        case Kernel::minmax:
            return 4;
        case Kernel::minmax_small:
            return 2;
        case Kernel::minmax_cluster:
            return kClusterRing - 1;
        default:
            return 1;
    }
}

Layout layout_of(const Shape& shape) {
    Layout layout;
    const int64_t size = shape.size();
    const bool by_channel = shape.channels > 1 && (shape.normalize == Normalize::minmax_channel ||
                                                   (shape.is_minmax() && shape.channels_differ));
    if (by_channel && shape.outer > 1) {
        layout.general = true;
    } else if (by_channel) {
        layout.planes = shape.channels;
    } else if (!shape.is_minmax()) {
        const int64_t unit = 16 / std::gcd(size, int64_t{16});
        const int64_t whole = unit * size <= kLongRow ? unit : 1;
        layout.row_images = whole * std::max<int64_t>(1, kShortRow / (whole * size));
    }
    layout.length = size / layout.planes * layout.row_images;
    layout.key_step = round_up(layout.length, 16);
    return layout;
}

std::vector<Step> affine_steps(const Shape& shape, const Layout& layout, const DeviceKey& key, const Call& call,
                               const Device& device) {
    std::vector<Step> steps;
    if (call.images == 0) return steps;
    if (shape.is_minmax()) {
        for (int64_t first = 0; first < call.images; first += kMaxImages) {
            Call part = call;
            part.images = std::min(kMaxImages, call.images - first);
            part.in += first * shape.size();
            part.out += first * shape.size() * bytes_of(shape.dtype);
            part.bounds += 2 * first * shape.pairs();
            minmax_steps(shape, layout, key, part, device, steps);
        }
        return steps;
    }
    Args args = arguments(shape, key, call);
    lay_rows(args, layout);
    const Kernel kernel = shape.normalize == Normalize::none ? Kernel::none
                          : shape.is_fixed()                 ? Kernel::range
                                                             : Kernel::unit;
    const bool aligned = is_aligned(call, layout.length, args.row_step, 16 / bytes_of(shape.dtype));
    steps.push_back(row_step(kernel, shape.dtype, args, aligned, false, device));
    return steps;
}

std::vector<Step> inverse_steps(const Shape& shape, const DeviceKey& key, const Call& call, const Device& device) {
    if (call.images == 0) return {};
    Step step;
    step.kernel = Kernel::inverse, step.dtype = shape.dtype;
    step.args = arguments(shape, key, call);
    step.args.m = key.plain_m, step.args.b = key.plain_b;
    const int64_t row_images = std::max<int64_t>(1, kShortRow / shape.size());
    step.args.length = row_images * shape.size();
    step.args.rows = static_cast<int32_t>(ceil_div(call.images, row_images));
    step.grid_x = static_cast<uint32_t>(ceil_div(std::min(step.args.length, step.args.total), 256));
    step.grid_y = static_cast<uint32_t>(
        std::clamp<int64_t>(device.multiprocessors * 8 / step.grid_x, 1, std::min<int64_t>(step.args.rows, kMaxGridY)));
    return {step};
}

std::vector<Step> copy_steps(const uint8_t* in, uint8_t* out, int64_t elements, Dtype dtype, const Device& device) {
    if (elements == 0) return {};
    Step step;
    step.kernel = Kernel::copy, step.dtype = dtype;
    step.args.in = in, step.args.out = out, step.args.total = elements;
    const int64_t a_block = 256 * (16 / bytes_of(dtype));
    step.grid_x = static_cast<uint32_t>(std::min<int64_t>(ceil_div(elements, a_block), device.multiprocessors * 8));
    return {step};
}

}  // namespace dlmt::cuda
