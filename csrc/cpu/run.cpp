#include "run.h"

#include <algorithm>
#include <atomic>
#include <climits>
#include <memory>
#include <new>
#include <numeric>
#include <vector>

#include "float_state.h"
#include "levels.h"
#include "threads.h"

namespace dlmt {
namespace {

// A part holds at least this many elements: below, waking a thread costs more than it saves.
constexpr int64_t kGrain = 32 * 1024;

// Parts a thread, where there is enough work, so that a thread which comes late or is held up leaves its share to
// others.
constexpr int64_t kPartsPerThread = 4;

// From this many bytes of results on, stores pass the caches: below it costs up to three times, above it wins half.
constexpr int64_t kStreamingBytes = 4 << 20;

int64_t bytes_of(Dtype dtype) {
    if (dtype == Dtype::uint8) return 1;
    return dtype == Dtype::int32 || dtype == Dtype::float32 ? 4 : 2;
}

// Positions that a part takes of every image at least, where parts are cut across all images.
constexpr int64_t kLeastShared = 4096;

// The images, in blocks of whole images; or, where images are few and large, each of them in blocks of positions. With
// `across`, large images are cut at the same positions: each part of the key is then read once, not once a block.
struct Blocks {
    Blocks(const Job& job, int threads, bool across = false) : images(job.n), size(job.size) {
        const int64_t most = static_cast<int64_t>(threads) * kPartsPerThread;
        const int64_t parts = std::max<int64_t>(1, std::min(most, job.n * job.size / kGrain));
        if (threads >= 2 && parts >= 2) {
            if (across && job.size / parts >= kLeastShared) {
                cut(job, parts);
            } else if (job.n >= parts) {
                blocks = parts;
            } else {
                blocks = job.n;
                cut(job, std::max<int64_t>(1, std::min((parts + job.n - 1) / job.n, job.size / kGrain)));
            }
        }
        if (chunks == 1) chunk = size;
    }

    // Into whole rows of spread-out parameters, and whole cache lines.
    void cut(const Job& job, int64_t wanted) {
        const int64_t unit = job.row != 0 ? job.row : 256;
        chunk = ((size + wanted - 1) / wanted + unit - 1) / unit * unit;
        chunks = (size + chunk - 1) / chunk;
    }

    int64_t count() const { return blocks * chunks; }
    int64_t first_image(int64_t part) const { return images * (part / chunks) / blocks; }
    int64_t last_image(int64_t part) const { return images * (part / chunks + 1) / blocks; }
    int64_t first(int64_t part) const { return part % chunks * chunk; }
    int64_t last(int64_t part) const { return std::min(size, first(part) + chunk); }

    int64_t images, size;
    int64_t blocks = 1;  // of images
    int64_t chunks = 1;  // of positions, of each image
    int64_t chunk = 0;   // positions in one
};

constexpr int64_t kFew = 16 * 1024;
constexpr int64_t kMany = 96 * 1024;

void clear_bounds(int32_t* found, int64_t pairs) {
    for (int64_t i = 0; i < pairs; ++i) {
        found[2 * i] = INT32_MAX;
        found[2 * i + 1] = INT32_MIN;
    }
}

// Memory between the passes is given to images larger than what the loops keep on the stack, up to where computing v
// again costs less than fetching it from the second-level cache.
void minmax_by_image(const Job& job, const Kernels& use, const Blocks& blocks, int threads) {
    auto body = [&](int64_t part) {
        const FloatState state;
        std::unique_ptr<uint16_t[]> memory;
        if (job.size > kFew && job.size <= kMany) memory.reset(new (std::nothrow) uint16_t[job.size + 128]);
        use.minmax_images(job, blocks.first_image(part), blocks.last_image(part), memory.get());
    };
    parallel(blocks.count(), threads, body);
}

// An image is shared between parts: every part's bounds first, then those of the images, then the results.
void minmax_by_chunk(const Job& job, const Kernels& use, const Blocks& blocks, int threads) {
    const int64_t pairs = job.groups;
    std::vector<int32_t> found(static_cast<size_t>(blocks.count() * pairs * 2));
    clear_bounds(found.data(), blocks.count() * pairs);
    auto bounds = [&](int64_t part) {
        use.bounds(job, part / blocks.chunks, blocks.first(part), blocks.last(part), &found[part * pairs * 2]);
    };
    parallel(blocks.count(), threads, bounds);
    clear_bounds(job.bounds, job.n * pairs);
    for (int64_t part = 0; part < blocks.count(); ++part) {
        int32_t* image = job.bounds + part / blocks.chunks * pairs * 2;
        for (int64_t i = 0; i < pairs * 2; i += 2) {
            image[i] = std::min(image[i], found[part * pairs * 2 + i]);
            image[i + 1] = std::max(image[i + 1], found[part * pairs * 2 + i + 1]);
        }
    }
    auto results = [&](int64_t part) {
        const FloatState state;
        use.minmax(job, part / blocks.chunks, blocks.first(part), blocks.last(part));
    };
    parallel(blocks.count(), threads, results);
}

// Whether some parameter of this job differs between channels.
bool depends_on_channel(const Job& job) {
    if (job.normalize == Normalize::minmax_channel) return true;
    if (job.bias == nullptr) return false;
    const auto differs = [&](const auto* values) {
        return values != nullptr && std::any_of(values, values + job.channels, [&](auto x) { return x != values[0]; });
    };
    return differs(job.bias) || differs(job.is_minmax() ? job.deviation : nullptr) || differs(job.g);
}

}  // namespace

void prepare(Job& job) {
    job.size = job.outer * job.channels * job.inner;
    job.groups = job.normalize == Normalize::minmax_channel ? job.channels : 1;
    if (job.channels == 1 || !depends_on_channel(job)) {
        job.outer = job.channels = 1;
        job.inner = job.size;
    }
    const int64_t period = job.channels * job.inner;
    job.row = 0;
    if (job.channels > 1 && job.inner < 32 && period <= kMaxRow / 2) {
        const int64_t whole_vectors = std::lcm(period, int64_t{64});
        job.row = whole_vectors <= kMaxRow ? whole_vectors : kMaxRow / period * period;
    }
}

void affine(const Job& given, int threads) {
    Job job = given;
    job.streaming = job.in != job.out && job.n * job.size * bytes_of(job.dtype) >= kStreamingBytes;
    const Kernels& use = kernels();
    if (job.n == 0) return;
    // With float results the key is the smaller part, and stores that pass the caches like whole images.
    const Blocks blocks(job, threads, !job.is_minmax() && job.dtype == Dtype::uint8);
    if (job.is_minmax()) {
        return blocks.chunks == 1 ? minmax_by_image(job, use, blocks, threads)
                                  : minmax_by_chunk(job, use, blocks, threads);
    }
    auto body = [&](int64_t part) {
        const FloatState state;
        use.affine(job, blocks.first_image(part), blocks.last_image(part), blocks.first(part), blocks.last(part));
    };
    parallel(blocks.count(), threads, body);
}

int64_t affine_inverse(const Job& job, int threads) {
    const Kernels& use = kernels();
    if (job.n == 0) return -1;
    const Blocks blocks(job, threads);
    std::atomic<int64_t> smallest{INT64_MAX};
    auto body = [&](int64_t part) {
        const FloatState state;
        for (int64_t n = blocks.first_image(part); n < blocks.last_image(part); ++n) {
            const int64_t bad = use.inverse(job, n, blocks.first(part), blocks.last(part));
            if (bad < 0) continue;
            int64_t known = smallest.load();
            while (n * job.size + bad < known && !smallest.compare_exchange_weak(known, n * job.size + bad)) {
            }
            return;  // what follows in this part is larger
        }
    };
    parallel(blocks.count(), threads, body);
    const int64_t found = smallest.load();
    return found == INT64_MAX ? -1 : found;
}

}  // namespace dlmt
