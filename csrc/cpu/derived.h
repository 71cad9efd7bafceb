// Forms of a key that are faster to compute with than its int32 matrices. Made once; they always give the same bits:
// what cannot be shown to is left empty, and the loops take the matrices.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "job.h"

namespace dlmt {

// Allocates on whole cache lines, so that vectors of the key never straddle two.
template <class T>
struct AlignedAllocator {
    using value_type = T;
    AlignedAllocator() = default;
    template <class U>
    AlignedAllocator(const AlignedAllocator<U>&) {}
    T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{64})); }
    void deallocate(T* memory, size_t) { ::operator delete(memory, std::align_val_t{64}); }
    bool operator==(const AlignedAllocator&) const { return true; }
    bool operator!=(const AlignedAllocator&) const { return false; }
};

template <class T>
using Aligned = std::vector<T, AlignedAllocator<T>>;

struct Derived {
    // Images of a dense batch that make up one row, so that a row is a whole number of vectors (28*28 is not, four of
    // them are), and the positions of a row. The key of a row goes on for kBeyond positions past its end, from its
    // start again: a row may then begin anywhere in its first vector.
    static constexpr int64_t kBeyond = 128;
    int64_t row_images = 1;
    int64_t row = 0;
    Aligned<uint32_t> m24, b24;  // uint8 "range"
    Aligned<float> mf, bf;       // float32 "range": M and B - lo, where all of v - lo is below 2**24
};

// Null where no form serves this (prepared) job.
std::shared_ptr<const Derived> derive(const Job& job);

}  // namespace dlmt
