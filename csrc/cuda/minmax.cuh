// uint8 and float min-max. Small units (an image, or a channel of one) are read once: a group of warps takes the bounds
// of v and, with v still in registers, gives the results. Larger ones take two launches: `bounds` here, then `stream`
// with those bounds, or a cluster of blocks (cluster.cuh). What none of them serves goes through general.cuh.
#pragma once

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

}  // namespace dlmt::cuda
