// uint8 and float min-max. Small units (an image, or a channel of one) are read once: a group of warps takes the bounds
// of v and, with v still in registers, gives the results. Larger ones take two launches: `bounds` here, then `stream`
// with those bounds. What neither serves (channels last with parameters of each channel) goes through
// `minmax_general`, which knows nothing but the definition.
#pragma once

#include "schedule.h"
#include "stream.cuh"

namespace dlmt::cuda {

struct Pair {
    int32_t lo, hi;
};

DLMT_DEVICE Pair nothing() { return {INT32_MAX, INT32_MIN}; }

DLMT_DEVICE Pair warp_pair(Pair x) { return {warp_min(x.lo), warp_max(x.hi)}; }

// v of a chunk, and the bounds of its first `count` positions.
DLMT_DEVICE Pair values_of(const Key<16>& key, const Pixels<16>& a, int count, int32_t (&v)[16]) {
    Pair found = nothing();
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        v[i] = key.value(a[i], i);
        if (i < count) found = {min(found.lo, v[i]), max(found.hi, v[i])};
    }
    return found;
}

template <bool kAligned>
DLMT_DEVICE Raw<16> load_chunk(const Args& args, const uint8_t* at, int left) {
    if constexpr (kAligned) {
        return load_aligned<16>(at);
    } else {
        return load_anywhere<16>(at, left, args.in, args.in + args.total);
    }
}

// v of a chunk and its bounds. Chunks that lie past the row's end are given the row's first one, which the bounds hold
// already; chunks that reach past it count for as much as they hold.
template <bool kAligned>
DLMT_DEVICE Pair chunk_values(const Key<16>& key, const Raw<16>& raw, int left, int32_t (&v)[16]) {
    const Pixels<16> a = pixels_of<16, kAligned>(raw);
    return kAligned || left >= 16 ? values_of(key, a, 16, v) : values_of(key, a, left, v);
}

// Bounds that `bounds` narrows.
DLMT_KERNEL(256)
clear_bounds(const Args args) {
    const int64_t pairs = args.images * args.pairs, step = static_cast<int64_t>(grid_x()) * block_threads();
    for (int64_t i = static_cast<int64_t>(block_x()) * block_threads() + thread_index(); i < pairs; i += step) {
        store<int32_t>(args.bounds + 2 * i, nothing().lo);
        store<int32_t>(args.bounds + 2 * i + 1, nothing().hi);
    }
}

// The bounds of every row, gathered in shared memory while a block walks over its rows, and once a row and block in
// global memory.
template <bool kAligned>
DLMT_KERNEL(kMostThreads, kBlocks<kAligned>)
bounds(const Args args) {
    constexpr int N = kRowsInFlight;
    const Slice at = slice_of(args, false);
    auto* const table = static_cast<Pair*>(shared_memory());
    for (int32_t i = static_cast<int32_t>(thread_index()); i < at.count; i += static_cast<int32_t>(block_threads())) {
        table[i] = nothing();
    }
    block_barrier();
    const int64_t asked = chunk_position<16, 1>(at.slice, 0), position = asked < args.length ? asked : 0;
    const int left = clamped(args.length - position);
    Key<16> key;
    key.load_from(args, at.plane * args.key_step + position);
    for (int32_t row = 0; row < at.count; row += N) {
        const int64_t element = (at.first + row) * args.row_step + at.plane * args.length + position;
        Raw<16> raw[N];
#pragma unroll
        for (int j = 0; j < N; ++j) {
            if (row + j < at.count) raw[j] = load_chunk<kAligned>(args, args.in + element + j * args.row_step, left);
        }
#pragma unroll
        for (int j = 0; j < N; ++j) {
            if (row + j >= at.count) break;
            int32_t v[16];
            const Pair found = warp_pair(chunk_values<kAligned>(key, raw[j], left, v));
            if (thread_index() % 32 == 0) {
                shared_min(&table[row + j].lo, found.lo);
                shared_max(&table[row + j].hi, found.hi);
            }
        }
    }
    block_barrier();
    for (int32_t i = static_cast<int32_t>(thread_index()); i < at.count; i += static_cast<int32_t>(block_threads())) {
        int32_t* pair = args.bounds + 2 * (int64_t{at.first + i} * args.pairs + (args.pairs > 1 ? at.plane : 0));
        global_min(pair, table[i].lo);
        global_max(pair + 1, table[i].hi);
    }
}

// The longest unit that `minmax_small` takes, in threads of 16 positions each. Results at any alignment need more
// registers, and so fewer threads.
template <bool kAligned>
constexpr int kSmallThreads = kAligned ? 768 : 512;

// The warps that share a unit: `count` of them from `first` on.
struct Warps {
    uint32_t first, count;
};

// The bounds of a unit from those of its warps, given to all of them. One barrier a unit: the next one's partial bounds
// go to the other half of the table.
DLMT_DEVICE Pair unit_pair(Pair own, Pair* table, Warps warps) {
    const Pair mine = warp_pair(own);
    if (warps.count == 1) return mine;
    const uint32_t lane = thread_index() % 32;
    if (lane == 0) table[thread_index() / 32] = mine;
    block_barrier();
    return warp_pair(lane < warps.count ? table[warps.first + lane] : nothing());
}

// One read of the images: v stays in registers between the two passes, and two more units are on their way.
template <bool kAligned>
DLMT_KERNEL(kSmallThreads<kAligned>)
minmax_small(const Args args) {
    const uint32_t width = static_cast<uint32_t>(args.warps_per_unit) * 32, units = block_threads() / width;
    const uint32_t unit = thread_index() / width;
    const Warps warps = {unit * width / 32, width / 32};
    const int32_t plane = static_cast<int32_t>(block_x() % static_cast<uint32_t>(args.planes));
    const uint32_t block = block_x() / static_cast<uint32_t>(args.planes), blocks = grid_x() / args.planes;
    auto* const table = static_cast<Pair*>(shared_memory());
    const int asked = static_cast<int>(thread_index() % width) * 16, length = static_cast<int>(args.length);
    const int position = asked < length ? asked : 0, left = length - position;
    const int32_t step = static_cast<int32_t>(blocks * units);
    Key<16> key;
    key.load_from(args, plane * args.key_step + position);

    int32_t row = static_cast<int32_t>(block * units + unit);
    const int64_t before = row * args.row_step + plane * args.length, stride = step * args.row_step;
    uint8_t* to = args.out + before + asked;
    const uint8_t* from = args.in + before + position;
    Raw<16> now, next;
    const auto fetch = [&](int32_t of_row, Raw<16>& raw) {
        if (of_row < args.rows) raw = load_chunk<kAligned>(args, from, left);
        from += stride;
    };
    fetch(row, now);
    fetch(row + step, next);
    uint32_t half = 0;
    // Every warp of the block goes round equally often: the barrier counts them all.
    for (int32_t first = static_cast<int32_t>(block * units); first < args.rows; first += step, row += step) {
        int32_t v[16];
        const Pair own = chunk_values<kAligned>(key, now, left, v);
        now = next;
        fetch(row + 2 * step, next);
        const Pair found = unit_pair(own, table + half, warps);
        half = block_threads() / 32 - half;
        if (row >= args.rows) continue;  // whole units, and so whole warps
        if (asked == 0) {
            int32_t* pair = args.bounds + 2 * (int64_t{row} * args.pairs + (args.pairs > 1 ? plane : 0));
            store<int32_t>(pair, found.lo);
            store<int32_t>(pair + 1, found.hi);
        }
        const float scale = minmax_scale(found.lo, found.hi);
        Results y;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            uint32_t x[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) x[j] = minmax_bits(v[4 * i + j], found.lo, scale);
            y.w[i] = pack_low(x);
        }
        if constexpr (kAligned) {
            if (asked < length) store<Words4>(to, y);
        } else {
            store_anywhere<uint8_t>(to, y, clamped(length - asked));
        }
        to += stride;
    }
}

// One read of larger images: the eight blocks of a cluster share a row, each with its part of the key in registers and
// of the next images in a ring in shared memory. Every warp sends its bounds straight to all eight blocks; what waits
// for them is a gate of each block that counts their bytes, so that no barrier, which would wait for the stores of
// results too, stands in the loop. The bounds of an image are on their way while the results of the one before are
// computed.
//
// Bounds are kept for kRing images. A warp sends those of image j only when it has the results of j - 2, and so the
// bounds of all warps for j - 2; these sent them with the results of j - 4 done. So nobody still reads what the bounds
// of image j take the place of.
struct ClusterMemory {
    static constexpr int kChunks = kClusterChunks, kRing = kClusterRing;
    Gate* gates;     // kRing
    Pair* partial;   // kRing times one of each warp of the cluster
    Words4* images;  // kRing times kChunks of each thread

    DLMT_DEVICE_MEMBER explicit ClusterMemory(void* memory)
        : gates(static_cast<Gate*>(memory)),
          partial(reinterpret_cast<Pair*>(gates + kRing)),
          images(reinterpret_cast<Words4*>(partial + kRing * kClusterBlocks * (block_threads() / 32))) {}
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

DLMT_KERNEL(kClusterThreads, 1)
minmax_cluster(const Args args) {
    constexpr int K = kClusterChunks, kRing = kClusterRing;
    const ClusterMemory memory(shared_memory());
    const uint32_t thread = thread_index(), threads = block_threads(), rank = cluster_rank();
    const uint32_t lane = thread % 32, warp = thread / 32, warps = threads / 32, all_warps = warps * kClusterBlocks;
    const uint32_t cluster = block_x() / kClusterBlocks, planes = static_cast<uint32_t>(args.planes);
    const int32_t plane = static_cast<int32_t>(cluster % planes);
    const int32_t row = static_cast<int32_t>(cluster / planes),
                  step = static_cast<int32_t>(grid_x() / kClusterBlocks / planes);
    const int32_t count = row < args.rows ? (args.rows - row + step - 1) / step : 0;

    // A block's chunks in K runs of up to one a thread; who has none repeats the row's first and stores nothing.
    const uint32_t chunks = static_cast<uint32_t>(args.length) / 16;
    const uint32_t each = (chunks + kClusterBlocks - 1) / kClusterBlocks, run = (each + K - 1) / K;
    Key<16> key[K];
    uint32_t position[K];
    bool mine[K];
#pragma unroll
    for (int k = 0; k < K; ++k) {
        const uint32_t in_block = k * run + thread, chunk = rank * each + in_block;
        mine[k] = thread < run && in_block < each && chunk < chunks;
        position[k] = mine[k] ? chunk * 16 : 0;
        key[k].load_from(args, plane * args.key_step + position[k]);
    }
    const int64_t stride = step * args.row_step, before = row * args.row_step + plane * args.length;
    const uint8_t* from = args.in + before;
    uint8_t* to = args.out + before;

    const auto fetch = [&](int32_t j) {
        if (j < count) {
#pragma unroll
            for (int k = 0; k < K; ++k) {
                copy_async(memory.images + (j % kRing * K + k) * threads + thread, from + position[k]);
            }
        }
        from += stride;
        close_group();
    };
    const auto pixels = [&](int32_t j, int k) {
        const Words4 words = memory.images[(j % kRing * K + k) * threads + thread];
        return Pixels<16>{{words.w[0], words.w[1], words.w[2], words.w[3]}};
    };
    const auto send_bounds = [&](int32_t j) {
        Pair own = nothing();
#pragma unroll
        for (int k = 0; k < K; ++k) {
            int32_t v[16];
            const Pair found = values_of(key[k], pixels(j, k), 16, v);
            own = {min(own.lo, found.lo), max(own.hi, found.hi)};
        }
        own = warp_pair(own);
        const uint32_t slot = static_cast<uint32_t>(j % kRing);
        if (thread == 0) expect(memory.gates + slot, all_warps * static_cast<uint32_t>(sizeof(Pair)));
        if (lane < kClusterBlocks) {
            Pair* place = memory.partial + slot * all_warps + rank * warps + warp;
            send(place, memory.gates + slot, lane, own.lo, own.hi);
        }
    };
    const auto take_bounds = [&](int32_t j) {
        const uint32_t slot = static_cast<uint32_t>(j % kRing);
        wait_at(memory.gates + slot, static_cast<uint32_t>(j / kRing % 2));
        Pair found = nothing();
#pragma unroll
        for (uint32_t i = 0; i < kClusterThreads / 32 * kClusterBlocks; i += 32) {
            if (i + lane >= all_warps) break;
            const Pair one = memory.partial[slot * all_warps + i + lane];
            found = {min(found.lo, one.lo), max(found.hi, one.hi)};
        }
        return warp_pair(found);
    };

    for (int32_t j = 0; j < kRing; ++j) fetch(j);
    if (thread == 0) {
        for (int i = 0; i < kRing; ++i) open_gate(memory.gates + i);
    }
    cluster_barrier();  // nobody sends to a gate that is not there
    if (count > 0) {
        wait_for_groups<kRing - 1>();
        send_bounds(0);
    }
    for (int32_t j = 0; j < count; ++j) {
        // Image j + 1 is there when all but the two after it are.
        wait_for_groups<kRing - 2>();
        if (j + 1 < count) send_bounds(j + 1);
        const Pair found = take_bounds(j);
        const float scale = minmax_scale(found.lo, found.hi);
        if (rank == 0 && thread == 0) {
            int32_t* pair = args.bounds + 2 * (int64_t{row + j * step} * args.pairs + (args.pairs > 1 ? plane : 0));
            store<int32_t>(pair, found.lo);
            store<int32_t>(pair + 1, found.hi);
        }
#pragma unroll
        for (int k = 0; k < K; ++k) {
            const Pixels<16> a = pixels(j, k);
            Results y;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                uint32_t x[4];
#pragma unroll
                for (int l = 0; l < 4; ++l) {
                    x[l] = minmax_bits(key[k].value(a[4 * i + l], 4 * i + l), found.lo, scale);
                }
                y.w[i] = pack_low(x);
            }
            if (mine[k]) store<Words4>(to + position[k], y);
        }
        to += stride;
        fetch(j + kRing);
    }
}

#else

DLMT_KERNEL(kClusterThreads, 1)
minmax_cluster(const Args) {}  // never launched on a device without clusters

#endif

// Any order of axes and any parameters, one result at a time. A block takes one unit after the other: a whole image, or
// one channel of one.
DLMT_DEVICE uint32_t general_result(const Args& args, int32_t v, Pair found, float scale, uint32_t channel) {
    if (args.dtype == Dtype::uint8) return minmax_bits(v, found.lo, scale);
    const float gain = unit_gain(found.lo, found.hi, load<double>(args.deviation + channel));
    const float y = unit_float(v, found.lo, gain, load<float>(args.bias + channel));
    if (args.dtype == Dtype::float32) return dlmt::bits_of(y);
    return args.dtype == Dtype::float16 ? halves_of(y, 0.0f) : bfloats_of(y, 0.0f);
}

DLMT_DEVICE void general_store(const Args& args, int64_t element, uint32_t y) {
    if (args.dtype == Dtype::uint8) {
        store<uint8_t>(args.out + element, static_cast<uint8_t>(y));
    } else if (args.dtype == Dtype::float32) {
        store<uint32_t>(args.out + 4 * element, y);
    } else {
        store<uint16_t>(args.out + 2 * element, static_cast<uint16_t>(y));
    }
}

DLMT_KERNEL(256)
minmax_general(const Args args) {
    auto* const table = static_cast<Pair*>(shared_memory());
    const uint32_t inner = static_cast<uint32_t>(args.inner), channels = static_cast<uint32_t>(args.channels);
    const uint32_t size = static_cast<uint32_t>(args.size), count = args.pairs > 1 ? size / channels : size;
    const Warps warps = {0, block_threads() / 32};
    uint32_t half = 0;
    for (int64_t unit = block_x(); unit < args.images * args.pairs; unit += grid_x()) {
        const int64_t first = unit / args.pairs * args.size;
        const uint32_t channel = static_cast<uint32_t>(unit % args.pairs);
        const auto position_of = [&](uint32_t i) {
            return args.pairs == 1 ? i : (i / inner * channels + channel) * inner + i % inner;
        };
        const auto value_of = [&](uint32_t position) {
            return affine_value(load<uint8_t>(args.in + first + position), load<int32_t>(args.m + position),
                                load<int32_t>(args.b + position));
        };
        Pair own = nothing();
        for (uint32_t i = thread_index(); i < count; i += block_threads()) {
            const int32_t v = value_of(position_of(i));
            own = {min(own.lo, v), max(own.hi, v)};
        }
        const Pair found = unit_pair(own, table + half, warps);
        half = warps.count - half;
        if (thread_index() == 0) {
            store<int32_t>(args.bounds + 2 * unit, found.lo);
            store<int32_t>(args.bounds + 2 * unit + 1, found.hi);
        }
        const float scale = args.dtype == Dtype::uint8 ? minmax_scale(found.lo, found.hi) : 0.0f;
        for (uint32_t i = thread_index(); i < count; i += block_threads()) {
            const uint32_t position = position_of(i);
            const uint32_t y = general_result(args, value_of(position), found, scale, position / inner % channels);
            general_store(args, first + position, y);
        }
    }
}

}  // namespace dlmt::cuda
