#include "derived.h"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <numeric>
#include <vector>

namespace dlmt {
namespace {

constexpr int64_t kVector = 64;           // positions in the longest vector of bytes
constexpr int64_t kLongestRow = 1 << 15;  // of several images
constexpr int64_t kLargest = 1 << 20;     // positions of an image whose key is copied

// Allocates on whole cache lines, so that vectors of the key never straddle two.
template <class T>
struct LineAllocator {
    using value_type = T;
    LineAllocator() = default;
    template <class U>
    LineAllocator(const LineAllocator<U>&) {}
    T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{64})); }
    void deallocate(T* memory, size_t) { ::operator delete(memory, std::align_val_t{64}); }
    bool operator==(const LineAllocator&) const { return true; }
    bool operator!=(const LineAllocator&) const { return false; }
};

template <class T>
using Values = std::vector<T, LineAllocator<T>>;

// What the pointers point into.
struct Owned : Derived {
    Values<uint32_t> fixed[2];
    Values<float> floats[2];
    Values<uint16_t> halves[2];
};

// from(0), from(1), ...: `count` values in `memory`.
template <class T, class From>
const T* fill(Values<T>& memory, int64_t count, From from) {
    memory.resize(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) memory[static_cast<size_t>(i)] = from(i);
    return memory.data();
}

// Whether v - lo is an integer below 2**24 in size for every pixel, and so exact in float32, as M and B - lo are then.
bool fits_float(const Job& job) {
    constexpr int64_t limit = 1 << 24;
    for (int64_t i = 0; i < job.size; ++i) {
        const int64_t first = int64_t{job.b[i]} - job.lo, last = first + 255 * int64_t{job.m[i]};
        if (std::abs(first) >= limit || std::abs(last) >= limit) return false;
    }
    return true;
}

// Whether every v fits an unsigned 16-bit integer.
bool fits_16_bits(const Job& job) {
    for (int64_t i = 0; i < job.size; ++i) {
        const int64_t first = job.b[i], last = first + 255 * int64_t{job.m[i]};
        if (std::min(first, last) < 0 || std::max(first, last) > UINT16_MAX) return false;
    }
    return true;
}

void derive_rows(const Job& job, Owned& made) {
    const int64_t images = kVector / std::gcd(job.size, kVector), size = job.size;
    made.row = images * size <= kLongestRow ? images * size : size;
    const int64_t count = made.row + Derived::kBeyond;
    if (job.m24 != nullptr) {
        made.m24 = fill(made.fixed[0], count, [&](int64_t i) { return job.m24[i % size]; });
        made.b24 = fill(made.fixed[1], count, [&](int64_t i) { return job.b24[i % size]; });
    } else {
        made.mf = fill(made.floats[0], count, [&](int64_t i) { return static_cast<float>(job.m[i % size]); });
        made.bf = fill(made.floats[1], count,
                       [&](int64_t i) { return static_cast<float>(int64_t{job.b[i % size]} - job.lo); });
    }
}

void derive_halves(const Job& job, Owned& made) {
    made.m16 = fill(made.halves[0], job.size, [&](int64_t i) { return static_cast<uint16_t>(job.m[i]); });
    made.b16 = fill(made.halves[1], job.size, [&](int64_t i) { return static_cast<uint16_t>(job.b[i]); });
}

}  // namespace

std::shared_ptr<const Derived> derive(const Job& job) {
    if (job.size > kLargest || job.row != 0) return nullptr;
    auto made = std::make_shared<Owned>();
    if (job.m24 != nullptr || (job.normalize == Normalize::range && job.dtype == Dtype::float32 && fits_float(job))) {
        derive_rows(job, *made);
    } else if (job.is_minmax() && job.dtype == Dtype::uint8 && job.outer == 1 && fits_16_bits(job)) {
        derive_halves(job, *made);
    } else {
        return nullptr;
    }
    return made;
}

}  // namespace dlmt
