// A plan's coefficients as one block of bytes that is copied to a device as it is.
#pragma once

#include <cstddef>
#include <vector>

#include "schedule.h"

namespace dlmt::cuda {

// The arrays of a plan, of shape (outer, channels, inner) or (channels); null where the plan has none.
struct HostArrays {
    const int32_t* m = nullptr;
    const int32_t* b = nullptr;
    const uint32_t* m24 = nullptr;
    const uint32_t* b24 = nullptr;
    const double* deviation = nullptr;
    const float* gain = nullptr;
    const float* bias = nullptr;
};

// Whether a parameter that the plan uses differs between channels.
bool channels_differ(const Shape& shape, const HostArrays& arrays);

class KeyBlock {
  public:
    KeyBlock(const Shape& shape, const Layout& layout, const HostArrays& arrays);
    ~KeyBlock();
    KeyBlock(const KeyBlock&) = delete;
    KeyBlock& operator=(const KeyBlock&) = delete;

    const void* data() const { return bytes_.data(); }
    size_t size() const { return bytes_.size(); }

    // Where everything lies in a copy of the block at `base`, a multiple of 256.
    DeviceKey at(const void* base) const;

  private:
    template <class T>
    size_t add(const T* values, int64_t count);
    size_t add_rows(const void* values, const Shape& shape, const Layout& layout);

    static constexpr size_t kAbsent = ~size_t{0};
    std::vector<unsigned char> bytes_;
    size_t m_ = kAbsent, b_ = kAbsent, plain_m_ = kAbsent, plain_b_ = kAbsent;
    size_t gain_ = kAbsent, bias_ = kAbsent, deviation_ = kAbsent;
};

}  // namespace dlmt::cuda
