#include "key.h"

#include <algorithm>
#include <cstring>

namespace dlmt::cuda {
namespace {

constexpr size_t kAlignment = 256;

size_t round_up(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// The compiler may not leave it out, as it may with what is freed next.
void clear(std::vector<unsigned char>& bytes) {
    volatile unsigned char* at = bytes.data();
    for (size_t i = 0; i < bytes.size(); ++i) at[i] = 0;
}

}  // namespace

bool channels_differ(const Shape& shape, const HostArrays& arrays) {
    const auto differ = [&](const auto* values) {
        return values != nullptr &&
               std::any_of(values, values + shape.channels, [&](auto x) { return x != values[0]; });
    };
    return shape.is_float() && (differ(arrays.bias) || differ(shape.is_minmax() ? arrays.deviation : nullptr) ||
                                differ(shape.is_minmax() ? nullptr : arrays.gain));
}

KeyBlock::KeyBlock(const Shape& shape, const Layout& layout, const HostArrays& arrays) {
    const bool plain_rows = !shape.is_fixed() && !layout.general && layout.key_step == layout.length;
    const int64_t key = layout.planes * layout.key_step, size = shape.size();
    // Once: growing would leave copies of the key behind in freed memory.
    bytes_.reserve(4 * round_up(4 * static_cast<size_t>(key)) + 2 * round_up(4 * static_cast<size_t>(size)) +
                   3 * round_up(8 * static_cast<size_t>(shape.channels)));
    if (!layout.general) {
        m_ = add_rows(shape.is_fixed() ? static_cast<const void*>(arrays.m24) : arrays.m, shape, layout);
        b_ = add_rows(shape.is_fixed() ? static_cast<const void*>(arrays.b24) : arrays.b, shape, layout);
    }
    plain_m_ = plain_rows ? m_ : add(arrays.m, size);  // the first image of the row is an image
    plain_b_ = plain_rows ? b_ : add(arrays.b, size);
    if (shape.is_float()) {
        bias_ = add(arrays.bias, shape.channels);
        if (shape.is_minmax()) {
            deviation_ = add(arrays.deviation, shape.channels);
        } else {
            gain_ = add(arrays.gain, shape.channels);
        }
    }
}

KeyBlock::~KeyBlock() { clear(bytes_); }

template <class T>
size_t KeyBlock::add(const T* values, int64_t count) {
    const size_t at = bytes_.size(), length = sizeof(T) * static_cast<size_t>(count);
    bytes_.resize(at + round_up(length));
    std::memcpy(bytes_.data() + at, values, length);
    return at;
}

size_t KeyBlock::add_rows(const void* values, const Shape& shape, const Layout& layout) {
    const size_t at = bytes_.size(), word = 4;
    bytes_.resize(at + round_up(word * static_cast<size_t>(layout.planes * layout.key_step)));
    const int64_t unit = shape.size() / layout.planes;
    const auto* from = static_cast<const unsigned char*>(values);
    for (int64_t plane = 0; plane < layout.planes; ++plane) {
        unsigned char* to = bytes_.data() + at + word * static_cast<size_t>(plane * layout.key_step);
        for (int64_t image = 0; image < layout.row_images; ++image) {
            std::memcpy(to + word * static_cast<size_t>(image * unit), from + word * static_cast<size_t>(plane * unit),
                        word * static_cast<size_t>(unit));
        }
    }
    return at;
}

DeviceKey KeyBlock::at(const void* base) const {
    const auto* bytes = static_cast<const unsigned char*>(base);
    const auto place = [&](size_t offset) { return offset == kAbsent ? nullptr : bytes + offset; };
    DeviceKey key;
    key.m = reinterpret_cast<const uint32_t*>(place(m_));
    key.b = reinterpret_cast<const uint32_t*>(place(b_));
    key.plain_m = reinterpret_cast<const uint32_t*>(place(plain_m_));
    key.plain_b = reinterpret_cast<const uint32_t*>(place(plain_b_));
    key.gain = reinterpret_cast<const float*>(place(gain_));
    key.bias = reinterpret_cast<const float*>(place(bias_));
    key.deviation = reinterpret_cast<const double*>(place(deviation_));
    return key;
}

}  // namespace dlmt::cuda
