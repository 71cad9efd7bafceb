// Forms of a key that are faster to compute with than its int32 matrices. Made once; they always give the same bits:
// what cannot be shown to is left empty, and the loops take the matrices.
#pragma once

#include <cstdint>
#include <memory>

#include "job.h"

namespace dlmt {

// Pointers alone: the loops of each instruction set read this, and must not instantiate functions of containers.
struct Derived {
    // Images of a dense batch that make up one row, so that a row is a whole number of vectors (28*28 is not, four of
    // them are), and the positions of a row. The key of a row goes on for kBeyond positions past its end, from its
    // start again: a row may then begin anywhere in its first vector.
    static constexpr int64_t kBeyond = 128;
    int64_t row = 0;
    const uint32_t* m24 = nullptr;  // uint8 "range"
    const uint32_t* b24 = nullptr;
    const float* mf = nullptr;  // float32 "range": M and B - lo, where all of v - lo is below 2**24
    const float* bf = nullptr;
    // uint8 min-max: M and B modulo 2**16, where every v lies in 0..65535. One image, no row.
    const uint16_t* m16 = nullptr;
    const uint16_t* b16 = nullptr;
    // Large images, whose key is too large for the near caches: k*16 + M, with B = k*M (`product`) or B = k. One image,
    // no row. Beside the forms above where images may share those.
    const uint16_t* packed = nullptr;
    bool product = false;
    // How M24 and B24 follow from k and M: M24 = fixed[M], B24 = k*(product ? fixed[M] : one) + base +
    // ((k*rest[M] + half) >> shift), modulo 2**32.
    uint32_t fixed[16] = {};
    int32_t rest[16] = {};
    uint32_t one = 0, base = 0;
    int32_t half = 0, shift = 0;
};

// Null where no form serves this (prepared) job.
std::shared_ptr<const Derived> derive(const Job& job);

}  // namespace dlmt
