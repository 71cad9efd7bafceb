// Images in, results out, one read and one write: every result for itself ("none", "range"), or with parameters of its
// image that are known (the second launch of a large min-max). A block holds the key of its slice of a row and walks
// over rows, several of whose loads are under way at once.
#pragma once

#include <type_traits>

#include "ops.cuh"

namespace dlmt::cuda {

// Chunks of 16 positions for uint8, else 8 positions a thread: chunks of one thread lie a block apart, so that a warp's
// stores are next to each other.
template <class Op>
constexpr int kChunks = Op::V < 8 ? 8 / Op::V : 1;

constexpr int kRowsInFlight = 4;

// Fewer where the parameters of a row take registers too, beside a key of 16 positions.
template <class Op>
constexpr int kRows = !std::is_same<typename Op::Row, NoRow>::value && Op::V == 16 ? 2 : kRowsInFlight;

// The most threads of a block, and such blocks a multiprocessor: 72 registers a thread, or 144 where alignment takes
// more.
constexpr int kMostThreads = 224;
template <bool kAligned>
constexpr int kBlocks = kAligned ? 4 : 2;

// Where a block works: a slice of the rows first..first+count of a plane.
struct Slice {
    int32_t plane, slice, first, count;
};

// `backwards`: the last slices first, which are those that the launch before left in the cache.
DLMT_DEVICE Slice slice_of(const Args& args, bool backwards) {
    const uint32_t block = backwards ? grid_x() - 1 - block_x() : block_x();
    const uint32_t slices = static_cast<uint32_t>(args.slices);
    const int32_t y = static_cast<int32_t>(block_y()), more = args.rows_more;
    return {static_cast<int32_t>(block / slices), static_cast<int32_t>(block % slices),
            y * args.rows_each + (y < more ? y : more), args.rows_each + (y < more ? 1 : 0)};
}

// The first position of a thread's chunk k, of V positions.
template <int V, int K>
DLMT_DEVICE int64_t chunk_position(int32_t slice, int k) {
    return ((static_cast<int64_t>(slice) * K + k) * block_threads() + thread_index()) * V;
}

// x as an int, where only whether it is small matters.
DLMT_DEVICE int clamped(int64_t x) { return static_cast<int>(x < -64 ? -64 : x > 64 ? 64 : x); }

// Fills the table of a block's rows in shared memory.
template <class Op>
DLMT_DEVICE void fill_table(const Args& args, const Slice& at, typename Op::Row* table) {
    if constexpr (!std::is_same<typename Op::Row, NoRow>::value) {
        for (int32_t i = static_cast<int32_t>(thread_index()); i < at.count;
             i += static_cast<int32_t>(block_threads())) {
            table[i] = bounds_row(args, at.first + i, at.plane, Op::kFloat);
        }
        block_barrier();
    }
}

template <class Op>
DLMT_DEVICE typename Op::Row row_of(const typename Op::Row* table, int32_t row) {
    if constexpr (std::is_same<typename Op::Row, NoRow>::value) {
        return {};
    } else {
        return table[row];
    }
}

// What the end of the tensor leaves of a chunk in its last row.
template <class Op>
DLMT_DEVICE void end_of_tensor(const Args& args, int64_t element, const Op& op, typename Op::Row row) {
    constexpr int V = Op::V;
    const int left = clamped(args.total - element);
    if (left <= 0) return;
    const Results y = op(pixels_of<V, true>(load_bytes<V>(args.in + element, left)), row);
    store_elements<typename Op::Out>(args.out + element * static_cast<int64_t>(sizeof(typename Op::Out)), y, 0, left);
}

// Chunks that are read and written whole.
template <class Op>
DLMT_DEVICE void walk_aligned(const Args& args, const Slice& at, const Op (&op)[kChunks<Op>],
                              const typename Op::Row* table) {
    constexpr int V = Op::V, K = kChunks<Op>, N = kRows<Op>;
    constexpr int64_t kSize = sizeof(typename Op::Out);
    const int32_t apart = static_cast<int32_t>(block_threads()) * V;
    const int64_t position = chunk_position<V, K>(at.slice, 0);
    const int64_t element = at.first * args.row_step + at.plane * args.length + position;
    int32_t whole[K];  // rows in which the chunk is whole
#pragma unroll
    for (int k = 0; k < K; ++k) {
        const int64_t last = element + k * apart + (at.count - 1) * args.row_step;
        whole[k] = position + k * apart >= args.length ? 0 : last + V <= args.total ? at.count : at.count - 1;
        if (position + k * apart < args.length && last + V > args.total) {
            end_of_tensor(args, last, op[k], row_of<Op>(table, at.count - 1));
        }
    }
    const uint8_t* in = args.in + element;
    uint8_t* out = args.out + element * kSize;
    // A chunk is whole in no more rows than the one before it.
    for (; whole[0] > 0; table += N) {
        Raw<V> raw[N][K];
#pragma unroll
        for (int j = 0; j < N; ++j) {
#pragma unroll
            for (int k = 0; k < K; ++k) {
                if (j < whole[k]) raw[j][k] = load_aligned<V>(in + j * args.row_step + k * apart);
            }
        }
        in += N * args.row_step;
#pragma unroll
        for (int j = 0; j < N; ++j) {
#pragma unroll
            for (int k = 0; k < K; ++k) {
                if (j >= whole[k]) continue;
                const Results y = op[k](pixels_of<V, true>(raw[j][k]), row_of<Op>(table, j));
                store<Words4>(out + k * apart * kSize, y);
            }
            out += args.row_step * kSize;
        }
#pragma unroll
        for (int k = 0; k < K; ++k) whole[k] -= N;
    }
}

// The same at any alignment; the lanes of a warp stay together, since they hand each other results.
template <class Op>
DLMT_DEVICE void walk_anywhere(const Args& args, const Slice& at, const Op (&op)[kChunks<Op>],
                               const typename Op::Row* table) {
    constexpr int V = Op::V, K = kChunks<Op>, N = kRows<Op>;
    constexpr int64_t kSize = sizeof(typename Op::Out);
    const int64_t apart = chunk_position<V, K>(0, 1) - chunk_position<V, K>(0, 0);
    const int64_t position = chunk_position<V, K>(at.slice, 0);
    // How many elements there are from a chunk on, of its row and of the tensor; only whether it is small matters.
    const auto left_at = [&](int64_t element, int k) {
        const int64_t in_row = args.length - position, in_all = args.total - element;
        return clamped((in_row < in_all ? in_row : in_all) - k * apart);
    };
    int64_t element = at.first * args.row_step + at.plane * args.length + position;
    for (int32_t row = 0; row < at.count; row += N, element += N * args.row_step) {
        Raw<V> raw[N][K];
#pragma unroll
        for (int j = 0; j < N; ++j) {
#pragma unroll
            for (int k = 0; k < K; ++k) {
                const int64_t from = element + j * args.row_step;
                const int left = left_at(from, k);
                if (row + j < at.count && left > 0) {
                    raw[j][k] = load_anywhere<V>(args.in + from + k * apart, left, args.in, args.in + args.total);
                }
            }
        }
#pragma unroll
        for (int j = 0; j < N; ++j) {
            if (row + j >= at.count) break;
#pragma unroll
            for (int k = 0; k < K; ++k) {
                const int64_t from = element + j * args.row_step;
                const Results y = op[k](pixels_of<V, false>(raw[j][k]), row_of<Op>(table, row + j));
                store_anywhere<typename Op::Out>(args.out + (from + k * apart) * kSize, y, left_at(from, k));
            }
        }
    }
}

template <class Op, bool kAligned>
DLMT_KERNEL(kMostThreads, kBlocks<kAligned>)
stream(const Args args) {
    constexpr int K = kChunks<Op>;
    constexpr bool kTable = !std::is_same<typename Op::Row, NoRow>::value;
    const Slice at = slice_of(args, kTable);
    auto* const table = static_cast<typename Op::Row*>(shared_memory());
    fill_table<Op>(args, at, table);
    Op op[K];
#pragma unroll
    for (int k = 0; k < K; ++k) {
        const int64_t position = chunk_position<Op::V, K>(at.slice, k);
        // A chunk past the row's end computes with the key's first values, and nothing of it is stored.
        op[k].prepare(args, at.plane * args.key_step + (position < args.length ? position : 0), at.plane);
    }
    if constexpr (kAligned) {
        walk_aligned<Op>(args, at, op, table);
    } else {
        walk_anywhere<Op>(args, at, op, table);
    }
}

template <class Op>
auto stream_of(bool aligned) {
    return aligned ? stream<Op, true> : stream<Op, false>;
}

}  // namespace dlmt::cuda
