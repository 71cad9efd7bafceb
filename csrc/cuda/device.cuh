// What kernels use of the machine, under names of our own: csrc/tests/emulated_device.h gives the same names on a host,
// where the very same kernels then run, one fiber a thread, with every access to global memory checked.
#pragma once

#include "../affine.h"
#include "args.h"

#if !defined(__CUDACC__)

#include "../tests/emulated_device.h"

#else

#define DLMT_DEVICE static __device__ __forceinline__
#define DLMT_DEVICE_MEMBER __device__ __forceinline__
#define DLMT_KERNEL(...) __global__ void __launch_bounds__(__VA_ARGS__)

namespace dlmt::cuda {

struct alignas(8) Words2 {
    uint32_t w[2];
};
struct alignas(16) Words4 {
    uint32_t w[4];
};

DLMT_DEVICE uint32_t thread_index() { return threadIdx.x; }
DLMT_DEVICE uint32_t block_threads() { return blockDim.x; }
DLMT_DEVICE uint32_t block_x() { return blockIdx.x; }
DLMT_DEVICE uint32_t block_y() { return blockIdx.y; }
DLMT_DEVICE uint32_t grid_x() { return gridDim.x; }
DLMT_DEVICE uint32_t grid_y() { return gridDim.y; }

// Global memory; T is aligned as its size. Loads are plain ones: images and results may be the same memory.
template <class T>
DLMT_DEVICE T load(const void* at) {
    return *static_cast<const T*>(at);
}
template <class T>
DLMT_DEVICE void store(void* at, T value) {
    *static_cast<T*>(at) = value;
}

DLMT_DEVICE void* shared_memory() {
    extern __shared__ Words4 memory[];
    return memory;
}
DLMT_DEVICE void block_barrier() { __syncthreads(); }

// All 32 lanes take part.
DLMT_DEVICE uint32_t from_lane_below(uint32_t x) { return __shfl_up_sync(0xFFFFFFFFu, x, 1); }
DLMT_DEVICE int32_t warp_min(int32_t x) { return __reduce_min_sync(0xFFFFFFFFu, x); }
DLMT_DEVICE int32_t warp_max(int32_t x) { return __reduce_max_sync(0xFFFFFFFFu, x); }

DLMT_DEVICE void shared_min(int32_t* at, int32_t x) { atomicMin(at, x); }
DLMT_DEVICE void shared_max(int32_t* at, int32_t x) { atomicMax(at, x); }
DLMT_DEVICE void global_min(int32_t* at, int32_t x) { atomicMin(at, x); }
DLMT_DEVICE void global_max(int32_t* at, int32_t x) { atomicMax(at, x); }
DLMT_DEVICE void global_min(unsigned long long* at, unsigned long long x) { atomicMin(at, x); }

// The low word of (high:low) >> shift, with 0 <= shift < 32.
DLMT_DEVICE uint32_t funnel(uint32_t low, uint32_t high, uint32_t shift) { return __funnelshift_r(low, high, shift); }

// Four of the eight bytes of (high:low), as the nibbles of `choice` say.
template <uint32_t choice>
DLMT_DEVICE uint32_t bytes_of(uint32_t low, uint32_t high) {
    return __byte_perm(low, high, choice);
}

// Byte i in 0..3 of a word: one permutation, where a shift and a mask would be two instructions.
DLMT_DEVICE uint32_t byte_of(uint32_t word, int i) { return __byte_perm(word, 0, 0x4440u + static_cast<uint32_t>(i)); }

// x, and the compiler does not know how it came about: it is kept in a register instead of computed anew.
DLMT_DEVICE uint32_t kept(uint32_t x) {
    asm volatile("" : "+r"(x));
    return x;
}

// Two floats to 16 bits each, to nearest even, `low` in the low half.
DLMT_DEVICE uint32_t halves_of(float low, float high) {
    uint32_t packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}
DLMT_DEVICE uint32_t bfloats_of(float low, float high) {
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

}  // namespace dlmt::cuda

#endif
