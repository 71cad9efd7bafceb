// uint8 min-max of images too large for one block, in one read.
#pragma once

#include "minmax.cuh"
#include "schedule.h"

namespace dlmt::cuda {

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

}  // namespace dlmt::cuda
