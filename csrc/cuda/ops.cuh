// What a chunk of V positions becomes: the key of the positions in registers, and the arithmetic of csrc/affine.h over
// them, packed into 16 bytes.
#pragma once

#include <type_traits>

#include "chunk.cuh"

namespace dlmt::cuda {

template <class T>
constexpr int kVector = 16 / sizeof(T);

// M and B of V positions from `position` on; at a multiple of V, and the key goes on to a multiple of 16.
template <int V>
struct Key {
    uint32_t m[V], b[V];

    DLMT_DEVICE_MEMBER void load_from(const Args& args, int64_t position) {
#pragma unroll
        for (int i = 0; i < V; i += 4) {
            const Words4 some_m = load<Words4>(args.m + position + i), some_b = load<Words4>(args.b + position + i);
#pragma unroll
            for (int j = 0; j < 4; ++j) m[i + j] = some_m.w[j], b[i + j] = some_b.w[j];
        }
    }
    // As B, so that v becomes v - lo.
    DLMT_DEVICE_MEMBER void subtract(int32_t lo) {
#pragma unroll
        for (int i = 0; i < V; ++i) b[i] = kept(b[i] - static_cast<uint32_t>(lo));
    }
    DLMT_DEVICE_MEMBER int32_t value(uint8_t a, int i) const {
        return affine_value(a, static_cast<int32_t>(m[i]), static_cast<int32_t>(b[i]));
    }
};

// Byte 0 of each, or byte 3 of each, in order.
DLMT_DEVICE uint32_t pack_low(const uint32_t (&x)[4]) {
    return bytes_of<0x5410>(bytes_of<0x0040>(x[0], x[1]), bytes_of<0x0040>(x[2], x[3]));
}
DLMT_DEVICE uint32_t pack_high(const uint32_t (&x)[4]) {
    return bytes_of<0x5410>(bytes_of<0x0073>(x[0], x[1]), bytes_of<0x0073>(x[2], x[3]));
}

// The parameters of a row; nothing where all rows have the same.
struct NoRow {};
struct BoundsRow {
    int32_t lo;
    float scale;
};

DLMT_DEVICE BoundsRow bounds_row(const Args& args, int32_t row, int32_t plane, bool is_float) {
    const int64_t pair = static_cast<int64_t>(row) * args.pairs + (args.pairs > 1 ? plane : 0);
    const int32_t lo = load<int32_t>(args.bounds + 2 * pair), hi = load<int32_t>(args.bounds + 2 * pair + 1);
    if (!is_float) return {lo, minmax_scale(lo, hi)};
    return {lo, unit_gain(lo, hi, load<double>(args.deviation + plane))};
}

// uint8 "range": M24 and B24 are the key.
struct RangeOp {
    using Out = uint8_t;
    using Row = NoRow;
    static constexpr int V = 16;
    Key<V> key;

    DLMT_DEVICE_MEMBER void prepare(const Args& args, int64_t position, int32_t) { key.load_from(args, position); }
    DLMT_DEVICE_MEMBER Results operator()(const Pixels<V>& a, NoRow) const {
        Results y;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            uint32_t x[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) x[j] = range_fixed(a[4 * i + j], key.m[4 * i + j], key.b[4 * i + j]);
            y.w[i] = pack_high(x);
        }
        return y;
    }
};

// "none": v itself, in as many bytes as T has.
template <class T>
struct NoneOp {
    using Out = T;
    using Row = NoRow;
    static constexpr int V = kVector<T>;
    Key<V> key;

    DLMT_DEVICE_MEMBER void prepare(const Args& args, int64_t position, int32_t) { key.load_from(args, position); }
    DLMT_DEVICE_MEMBER Results operator()(const Pixels<V>& a, NoRow) const {
        uint32_t v[V];
#pragma unroll
        for (int i = 0; i < V; ++i) v[i] = static_cast<uint32_t>(key.value(a[i], i));
        Results y;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if constexpr (sizeof(T) == 1) {
                const uint32_t x[4] = {v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]};
                y.w[i] = pack_low(x);
            } else if constexpr (sizeof(T) == 2) {
                y.w[i] = bytes_of<0x5410>(v[2 * i], v[2 * i + 1]);
            } else {
                y.w[i] = v[i];
            }
        }
        return y;
    }
};

// How float results are stored; Float16 and Bfloat16 only name their formats.
enum class Float16 : uint16_t {};
enum class Bfloat16 : uint16_t {};

template <class T>
DLMT_DEVICE Results pack_floats(const float (&x)[kVector<T>]) {
    Results y;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if constexpr (sizeof(T) == 4) {
            y.w[i] = dlmt::bits_of(x[i]);
        } else if constexpr (std::is_same<T, Float16>::value) {
            y.w[i] = halves_of(x[2 * i], x[2 * i + 1]);
        } else {
            y.w[i] = bfloats_of(x[2 * i], x[2 * i + 1]);
        }
    }
    return y;
}

// Float "range": gain and bias of each position's channel.
template <class T>
struct UnitOp {
    using Out = T;
    using Row = NoRow;
    static constexpr int V = kVector<T>;
    Key<V> key;
    float gain[V], bias[V];

    DLMT_DEVICE_MEMBER void prepare(const Args& args, int64_t position, int32_t) {
        key.load_from(args, position);
        key.subtract(args.lo);
#pragma unroll
        for (int i = 0; i < V; ++i) {
            const uint32_t at = static_cast<uint32_t>(position + i);
            const uint32_t channel = at / static_cast<uint32_t>(args.inner) % static_cast<uint32_t>(args.channels);
            gain[i] = load<float>(args.gain + channel);
            bias[i] = load<float>(args.bias + channel);
        }
    }
    DLMT_DEVICE_MEMBER Results operator()(const Pixels<V>& a, NoRow) const {
        float x[V];
#pragma unroll
        for (int i = 0; i < V; ++i) x[i] = unit_float(key.value(a[i], i), 0, gain[i], bias[i]);
        return pack_floats<T>(x);
    }
};

// uint8 min-max whose bounds are known.
struct MinmaxOp {
    using Out = uint8_t;
    using Row = BoundsRow;
    static constexpr int V = 16;
    static constexpr bool kFloat = false;
    Key<V> key;

    DLMT_DEVICE_MEMBER void prepare(const Args& args, int64_t position, int32_t) { key.load_from(args, position); }
    DLMT_DEVICE_MEMBER Results operator()(const Pixels<V>& a, BoundsRow row) const {
        Results y;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            uint32_t x[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                x[j] = minmax_bits(key.value(a[4 * i + j], 4 * i + j), row.lo, row.scale);
            }
            y.w[i] = pack_low(x);
        }
        return y;
    }
};

// Float min-max whose bounds are known; a plane is a channel where the channels differ.
template <class T>
struct MinmaxUnitOp {
    using Out = T;
    using Row = BoundsRow;
    static constexpr int V = kVector<T>;
    static constexpr bool kFloat = true;
    Key<V> key;
    float bias;

    DLMT_DEVICE_MEMBER void prepare(const Args& args, int64_t position, int32_t plane) {
        key.load_from(args, position);
        bias = load<float>(args.bias + plane);
    }
    DLMT_DEVICE_MEMBER Results operator()(const Pixels<V>& a, BoundsRow row) const {
        float x[V];
#pragma unroll
        for (int i = 0; i < V; ++i) x[i] = unit_float(key.value(a[i], i), row.lo, row.scale, bias);
        return pack_floats<T>(x);
    }
};

}  // namespace dlmt::cuda
