// From results back to images (section 4 of the contract), and the plain copy that benchmarks measure against. The
// arithmetic of an inverse is float64 and so its limit, not memory: every thread takes one position, keeps its key, and
// walks over rows of whole images.
#pragma once

#include "ops.cuh"

namespace dlmt::cuda {

// What each position keeps.
struct Place {
    int32_t m, b;
    uint32_t channel;
};

DLMT_DEVICE float float_at(const Args& args, int64_t element) {
    if (args.dtype == Dtype::float32) return from_bits(load<uint32_t>(args.in + 4 * element));
    const uint16_t stored = load<uint16_t>(args.in + 2 * element);
    return args.dtype == Dtype::float16 ? float_of_half(stored) : float_of_bfloat(stored);
}

DLMT_DEVICE int32_t integer_at(const Args& args, int64_t element) {
    if (args.dtype == Dtype::uint8) return load<uint8_t>(args.in + element);
    if (args.dtype == Dtype::uint16) return load<uint16_t>(args.in + 2 * element);
    return load<int32_t>(args.in + 4 * element);
}

// One pixel; sets `bad` where the value cannot come from this key.
DLMT_DEVICE uint8_t inverse_of(const Args& args, int64_t image, int64_t element, const Place& at, uint32_t& bad) {
    if (args.normalize == Normalize::none) {
        return inverse_none(integer_at(args, element), at.m, at.b, args.lo, args.hi, bad);
    }
    int32_t lo = args.lo, hi = args.hi;
    if (args.normalize != Normalize::range) {
        const int32_t* pair = args.bounds + 2 * (image * args.pairs + (args.pairs > 1 ? at.channel : 0));
        lo = load<int32_t>(pair), hi = load<int32_t>(pair + 1);
    }
    const double exact_lo = static_cast<double>(lo);
    if (args.dtype == Dtype::uint8) {
        return inverse_uint8(load<uint8_t>(args.in + element), at.m, at.b, exact_lo,
                             static_cast<double>(hi) - exact_lo);
    }
    const float y = float_at(args, element);
    bad |= static_cast<uint32_t>((dlmt::bits_of(y) & 0x7F800000u) == 0x7F800000u);
    const float gain = args.normalize == Normalize::range
                           ? load<float>(args.gain + at.channel)
                           : unit_gain(lo, hi, load<double>(args.deviation + at.channel));
    return inverse_float(static_cast<double>(y), at.m, at.b, exact_lo, inverse_gain(gain),
                         static_cast<double>(load<float>(args.bias + at.channel)));
}

DLMT_KERNEL(256)
inverse(const Args args) {
    const uint32_t position = block_x() * block_threads() + thread_index(), size = static_cast<uint32_t>(args.size);
    if (position >= args.length) return;
    const uint32_t in_image = position % size, image_of_row = position / size;
    const uint32_t row_images = static_cast<uint32_t>(args.length) / size;
    const Place at = {load<int32_t>(args.m + in_image), load<int32_t>(args.b + in_image),
                      in_image / static_cast<uint32_t>(args.inner) % static_cast<uint32_t>(args.channels)};
    for (int64_t row = block_y(); row < args.rows; row += grid_y()) {
        const int64_t element = row * args.length + position;
        if (element >= args.total) return;
        uint32_t bad = 0;
        const uint8_t a = inverse_of(args, row * row_images + image_of_row, element, at, bad);
        // The load may be old, and then too large: it only spares most of the atomics where everything is bad.
        const auto index = static_cast<unsigned long long>(element);
        if (bad != 0 && index < load<unsigned long long>(args.bad)) global_min(args.bad, index);
        store<uint8_t>(args.out + element, a);
    }
}

// uint8 to itself, or to a float: nothing but the traffic. `total` elements; both aligned to 16 bytes.
template <class T>
struct CopyOp {
    using Out = T;
    static constexpr int V = kVector<T>;
    DLMT_DEVICE_MEMBER Results operator()(const Pixels<V>& a) const {
        if constexpr (sizeof(T) == 1) {
            return {{a.w[0], a.w[1], a.w[2], a.w[3]}};
        } else {
            float x[V];
#pragma unroll
            for (int i = 0; i < V; ++i) x[i] = float_of(uint32_t{a[i]});
            return pack_floats<T>(x);
        }
    }
};

template <class T>
DLMT_KERNEL(256)
copy(const Args args) {
    using Op = CopyOp<T>;
    constexpr int V = Op::V, N = 4;
    const int64_t step = static_cast<int64_t>(grid_x()) * block_threads() * V;
    const int64_t first = (static_cast<int64_t>(block_x()) * block_threads() + thread_index()) * V;
    for (int64_t at = first; at < args.total; at += N * step) {
        Raw<V> raw[N];
#pragma unroll
        for (int j = 0; j < N; ++j) {
            if (at + j * step + V <= args.total) raw[j] = load_aligned<V>(args.in + at + j * step);
        }
#pragma unroll
        for (int j = 0; j < N; ++j) {
            const int64_t element = at + j * step;
            uint8_t* to = args.out + element * static_cast<int64_t>(sizeof(T));
            if (element + V <= args.total) {
                store<Words4>(to, Op()(pixels_of<V, true>(raw[j])));
            } else if (element < args.total) {
                const int left = static_cast<int>(args.total - element);
                store_elements<T>(to, Op()(pixels_of<V, true>(load_bytes<V>(args.in + element, left))), 0, left);
            }
        }
    }
}

}  // namespace dlmt::cuda
