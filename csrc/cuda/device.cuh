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

// 16 bytes from global to shared memory, behind the thread's back: what a group of copies has brought is there once no
// more than kLater later groups are under way.
DLMT_DEVICE void copy_async(void* to, const void* from) {
    const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
}
DLMT_DEVICE void close_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kLater>
DLMT_DEVICE void wait_for_groups() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kLater) : "memory");
}

// Blocks of one cluster (compute capability 9.0), and a barrier in shared memory that counts bytes sent to it. It has
// phases, of parity 0, 1, 0, ...: a phase is over when its bytes, as `expect` gives them once, have all come.
struct alignas(8) Gate {
    uint64_t state;
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

DLMT_DEVICE uint32_t cluster_rank() {
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
DLMT_DEVICE void cluster_barrier() {
    asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
DLMT_DEVICE void open_gate(Gate* gate) {
    const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(gate));
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\n\tfence.mbarrier_init.release.cluster;" ::"r"(at) : "memory");
}
DLMT_DEVICE void expect(Gate* gate, uint32_t bytes) {
    const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(gate));
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
}
// Acquires for this block: what is sent lies in its own shared memory. For the cluster, it would empty the first-level
// cache every time.
DLMT_DEVICE void wait_at(Gate* gate, uint32_t parity) {
    const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(gate));
    uint32_t over = 0;
    while (over == 0) {
        asm volatile(
            "{\n\t.reg .pred p;\n\t"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
            "selp.u32 %0, 1, 0, p;\n\t}"
            : "=r"(over)
            : "r"(at), "r"(parity)
            : "memory");
    }
}
// Two words to where `to` and `gate` are in the block of that rank; 8 bytes for its gate.
DLMT_DEVICE void send(void* to, Gate* gate, uint32_t rank, int32_t low, int32_t high) {
    const auto here = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    const auto gate_here = static_cast<uint32_t>(__cvta_generic_to_shared(gate));
    asm volatile(
        "{\n\t.reg .u32 there, gate_there;\n\t"
        "mapa.shared::cluster.u32 there, %0, %2;\n\t"
        "mapa.shared::cluster.u32 gate_there, %1, %2;\n\t"
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.s32 [there], {%3, %4}, [gate_there];\n\t}" ::"r"(
            here),
        "r"(gate_here), "r"(rank), "r"(low), "r"(high)
        : "memory");
}

#endif

}  // namespace dlmt::cuda

#endif
