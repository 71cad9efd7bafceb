#include "derived.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <new>
#include <numeric>
#include <vector>

namespace dlmt {
namespace {

constexpr int64_t kVector = 64;           // positions in the longest vector of bytes
constexpr int64_t kLongestRow = 1 << 15;  // of several images
constexpr int64_t kLargest = 1 << 20;     // positions of an image whose "range" key is copied
constexpr int64_t kLarge = 1 << 16;       // from here on it is packed as well, for images that come alone
constexpr int64_t kNear = 1 << 14;        // the same for min-max, where the key shares the near caches with v

constexpr size_t kLargePage = 2 << 20;

// Allocates on whole cache lines, so that vectors of the key never straddle two.
template <class T>
struct LineAllocator {
    using value_type = T;
    LineAllocator() = default;
    template <class U>
    LineAllocator(const LineAllocator<U>&) {}
    // Large ones on large pages where the system has them: a key is read from end to end, beside two arrays.
    static std::align_val_t alignment(size_t count) {
        return std::align_val_t{count * sizeof(T) < kLargePage ? size_t{64} : kLargePage};
    }
    T* allocate(size_t count) {
        void* memory = ::operator new(count * sizeof(T), alignment(count));
#if defined(MADV_HUGEPAGE)
        if (count * sizeof(T) >= kLargePage) madvise(memory, count * sizeof(T), MADV_HUGEPAGE);
#endif
        return static_cast<T*>(memory);
    }
    void deallocate(T* memory, size_t count) { ::operator delete(memory, alignment(count)); }
    bool operator==(const LineAllocator&) const { return true; }
    bool operator!=(const LineAllocator&) const { return false; }
};

template <class T>
using Values = std::vector<T, LineAllocator<T>>;

// What the pointers point into.
struct Owned : Derived {
    Values<uint32_t> integers[2];
    Values<float> reals[2];
    Values<uint16_t> halves[2];
    Values<uint16_t> words;
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
        made.m24 = fill(made.integers[0], count, [&](int64_t i) { return job.m24[i % size]; });
        made.b24 = fill(made.integers[1], count, [&](int64_t i) { return job.b24[i % size]; });
    } else {
        made.mf = fill(made.reals[0], count, [&](int64_t i) { return static_cast<float>(job.m[i % size]); });
        made.bf = fill(made.reals[1], count,
                       [&](int64_t i) { return static_cast<float>(int64_t{job.b[i % size]} - job.lo); });
    }
}

// k*16 + M of every position as `packed` holds it; false where a position does not fit.
bool pack(const Job& job, bool product, Values<uint16_t>& words) {
    constexpr int kBits = 20;  // b * (one / m, rounded up) is b / m exactly where m divides it, for all b below 2**16
    uint32_t inverse[16] = {};
    for (uint32_t m = 1; m < 16; ++m) inverse[m] = ((1u << kBits) + m - 1) / m;
    words.resize(static_cast<size_t>(job.size));
    for (int64_t i = 0; i < job.size; ++i) {
        const auto m = static_cast<uint32_t>(job.m[i]), b = static_cast<uint32_t>(job.b[i]);  // negative: too large
        if (m - 1 > 14 || b > UINT16_MAX) return false;
        const uint32_t k = product ? b * inverse[m] >> kBits : b;
        if (k > 4095 || (product && k * m != b)) return false;
        words[static_cast<size_t>(i)] = static_cast<uint16_t>(k << 4 | m);
    }
    return true;
}

// Works out the constants behind M24 and B24 (contract section 3: both are rounded quotients by the span) and compares
// every position: false where one differs, as where the values are not a plan's.
bool derive_fixed(const Job& job, Owned& made) {
    const int64_t span = int64_t{job.hi} - job.lo, unit = int64_t{255} << 24;
    if (span < 1) return false;
    const int64_t start = int64_t{job.lo} * unit, below = start / span + (start % span > 0 ? 1 : 0);
    const int64_t left = below * span - start;  // in 0..span - 1
    const auto rounded = [&](int64_t p) { return (2 * p + span) / (2 * span); };
    int64_t most = 1;
    for (int64_t i = 0; i < job.size; ++i) most = std::max<int64_t>(most, made.packed[i] >> 4);
    made.shift = 23;  // as many bits as k*rest + half leaves room for
    while ((most + 4) << made.shift > int64_t{1} << 31) --made.shift;
    const double scale = static_cast<double>(int64_t{1} << made.shift) / static_cast<double>(span);
    // A quarter of the smallest step is added, so that errors do not turn whole numbers down.
    made.half = static_cast<int32_t>((static_cast<double>(left) + 0.5 * static_cast<double>(span) + 0.25) * scale);
    made.base = static_cast<uint32_t>((1 << 23) - below);
    made.one = static_cast<uint32_t>(rounded(unit));
    for (int64_t m = 1; m < 16; ++m) {
        const int64_t fixed = rounded(m * unit), factor = made.product ? m : 1;
        made.fixed[m] = static_cast<uint32_t>(fixed);
        const int64_t missed = factor * unit - rounded(factor * unit) * span;
        made.rest[m] = static_cast<int32_t>(std::llround(static_cast<double>(missed) * scale));
    }
    for (int64_t i = 0; i < job.size; ++i) {
        const uint32_t m = made.packed[i] & 15, k = made.packed[i] >> 4;
        const int32_t rest = (static_cast<int32_t>(k) * made.rest[m] + made.half) >> made.shift;
        const uint32_t b24 = k * (made.product ? made.fixed[m] : made.one) + made.base + static_cast<uint32_t>(rest);
        if (made.fixed[m] != job.m24[i] || b24 != job.b24[i]) return false;
    }
    return true;
}

// Whether the key could be packed.
bool derive_packed(const Job& job, Owned& made) {
    made.product = pack(job, true, made.words);
    if (made.product || pack(job, false, made.words)) {
        made.packed = made.words.data();
        if (job.m24 == nullptr || derive_fixed(job, made)) return true;
    }
    made.packed = nullptr;
    made.words = {};
    return false;
}

void derive_halves(const Job& job, Owned& made) {
    made.m16 = fill(made.halves[0], job.size, [&](int64_t i) { return static_cast<uint16_t>(job.m[i]); });
    made.b16 = fill(made.halves[1], job.size, [&](int64_t i) { return static_cast<uint16_t>(job.b[i]); });
}

}  // namespace

std::shared_ptr<const Derived> derive(const Job& job) {
    const bool fixed = job.m24 != nullptr;
    const bool floats = job.normalize == Normalize::range && job.dtype == Dtype::float32;
    const bool halves = job.is_minmax() && job.dtype == Dtype::uint8 && job.outer == 1;
    if (job.row != 0 || !(fixed || floats || halves) || (floats && !fits_float(job))) return nullptr;
    auto made = std::make_shared<Owned>();
    const bool packed = job.size > (halves ? kNear : kLarge) && derive_packed(job, *made);
    if (halves) {
        if (packed) return made;
        if (!fits_16_bits(job)) return nullptr;
        derive_halves(job, *made);
    } else if (job.size <= kLargest) {
        derive_rows(job, *made);
    } else if (!packed) {
        return nullptr;
    }
    return made;
}

}  // namespace dlmt
