#include "derived.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>

namespace dlmt {
namespace {

constexpr int64_t kVector = 64;           // positions in the longest vector of bytes
constexpr int64_t kLongestRow = 1 << 15;  // of several images
constexpr int64_t kLargest = 1 << 20;     // positions of an image whose key is copied

// `row` values that repeat the `size` values of `from`, and kBeyond more.
template <class T, class From>
Aligned<T> repeated(int64_t size, int64_t row, From from) {
    Aligned<T> values(static_cast<size_t>(row + Derived::kBeyond));
    for (size_t i = 0; i < values.size(); ++i) values[i] = from(static_cast<int64_t>(i) % size);
    return values;
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

}  // namespace

std::shared_ptr<const Derived> derive(const Job& job) {
    const bool fixed = job.m24 != nullptr;
    const bool floats = job.normalize == Normalize::range && job.dtype == Dtype::float32 && job.row == 0;
    if (job.size > kLargest || !(fixed || (floats && fits_float(job)))) return nullptr;
    auto made = std::make_shared<Derived>();
    const int64_t images = kVector / std::gcd(job.size, kVector);
    made->row_images = images * job.size <= kLongestRow ? images : 1;
    const int64_t row = made->row = made->row_images * job.size;
    if (fixed) {
        made->m24 = repeated<uint32_t>(job.size, row, [&](int64_t i) { return job.m24[i]; });
        made->b24 = repeated<uint32_t>(job.size, row, [&](int64_t i) { return job.b24[i]; });
    } else {
        made->mf = repeated<float>(job.size, row, [&](int64_t i) { return static_cast<float>(job.m[i]); });
        made->bf = repeated<float>(
            job.size, row, [&](int64_t i) { return static_cast<float>(static_cast<int64_t>(job.b[i]) - job.lo); });
    }
    return made;
}

}  // namespace dlmt
