// Min-max that no faster kernel serves, as channels last with bounds or parameters of each channel: nothing but the
// definition.
#pragma once

#include "minmax.cuh"

namespace dlmt::cuda {

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
