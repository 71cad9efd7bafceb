// A machine for the kernels of csrc/cuda on a host: the names of device.cuh, with one fiber a thread. Nothing is fast
// here, and everything is checked: every access to global memory lies within an array that the call may touch and is
// aligned as the hardware asks, every byte of the results is written once, warps and blocks come together at barriers
// complete. Included by device.cuh where the compiler is not nvcc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#define DLMT_DEVICE static inline
#define DLMT_DEVICE_MEMBER inline
#define DLMT_KERNEL(...) static void

namespace dlmt::cuda {

struct alignas(8) Words2 {
    uint32_t w[2];
};
struct alignas(16) Words4 {
    uint32_t w[4];
};

namespace machine {

// Where the running thread is.
struct Position {
    uint32_t thread = 0, threads = 0, block_x = 0, block_y = 0, grid_x = 0, grid_y = 0;
};
extern Position position;
extern void* shared;

// Checks an access; false where it must not happen, which is recorded.
bool may_load(const void* at, size_t bytes);
bool may_store(const void* at, size_t bytes);
bool may_change(const void* at, size_t bytes);  // an atomic operation, which may come again

void barrier();
void cluster_barrier();
uint32_t cluster_rank();
void* in_block(void* here, uint32_t rank);  // the same place in another block of the cluster
void wait_for_phase(const void* gate_phase, uint32_t parity);
void copy_later(void* to, const void* from);
void close_group();
void finish_groups(int later);
// The values that the 32 lanes of this warp brought to their next common operation, `kind` of them.
const uint32_t* together(char kind, uint32_t own);

}  // namespace machine

DLMT_DEVICE uint32_t thread_index() { return machine::position.thread; }
DLMT_DEVICE uint32_t block_threads() { return machine::position.threads; }
DLMT_DEVICE uint32_t block_x() { return machine::position.block_x; }
DLMT_DEVICE uint32_t block_y() { return machine::position.block_y; }
DLMT_DEVICE uint32_t grid_x() { return machine::position.grid_x; }
DLMT_DEVICE uint32_t grid_y() { return machine::position.grid_y; }

template <class T>
DLMT_DEVICE T min(T x, T y) {
    return y < x ? y : x;
}
template <class T>
DLMT_DEVICE T max(T x, T y) {
    return x < y ? y : x;
}

template <class T>
DLMT_DEVICE T load(const void* at) {
    T value;
    __builtin_memset(&value, 0x5A, sizeof value);
    if (machine::may_load(at, sizeof(T))) __builtin_memcpy(&value, at, sizeof value);
    return value;
}
template <class T>
DLMT_DEVICE void store(void* at, T value) {
    if (machine::may_store(at, sizeof(T))) __builtin_memcpy(at, &value, sizeof value);
}

DLMT_DEVICE void* shared_memory() { return machine::shared; }
DLMT_DEVICE void block_barrier() { machine::barrier(); }

DLMT_DEVICE uint32_t from_lane_below(uint32_t x) {
    const uint32_t* all = machine::together('u', x);
    const uint32_t lane = thread_index() % 32;
    return all[lane == 0 ? 0 : lane - 1];
}
DLMT_DEVICE int32_t warp_min(int32_t x) {
    const uint32_t* all = machine::together('-', static_cast<uint32_t>(x));
    for (int i = 0; i < 32; ++i) x = min(x, static_cast<int32_t>(all[i]));
    return x;
}
DLMT_DEVICE int32_t warp_max(int32_t x) {
    const uint32_t* all = machine::together('+', static_cast<uint32_t>(x));
    for (int i = 0; i < 32; ++i) x = max(x, static_cast<int32_t>(all[i]));
    return x;
}

// A fiber gives way at barriers and common operations alone, so nothing comes in between.
DLMT_DEVICE void shared_min(int32_t* at, int32_t x) { *at = min(*at, x); }
DLMT_DEVICE void shared_max(int32_t* at, int32_t x) { *at = max(*at, x); }
template <class T>
DLMT_DEVICE void global_min(T* at, T x) {
    if (machine::may_change(at, sizeof(T))) *at = min(*at, x);
}
template <class T>
DLMT_DEVICE void global_max(T* at, T x) {
    if (machine::may_change(at, sizeof(T))) *at = max(*at, x);
}

// A copy is made when it is waited for, and no earlier.
DLMT_DEVICE void copy_async(void* to, const void* from) { machine::copy_later(to, from); }
DLMT_DEVICE void close_group() { machine::close_group(); }
template <int kLater>
DLMT_DEVICE void wait_for_groups() {
    machine::finish_groups(kLater);
}

struct alignas(8) Gate {
    uint16_t phase, arrivals;
    int32_t bytes;
};

DLMT_DEVICE void pass(Gate* gate) {
    if (gate->arrivals != 0 || gate->bytes != 0) return;
    ++gate->phase;
    gate->arrivals = 1;
}
DLMT_DEVICE uint32_t cluster_rank() { return machine::cluster_rank(); }
DLMT_DEVICE void cluster_barrier() { machine::cluster_barrier(); }
DLMT_DEVICE void open_gate(Gate* gate) { *gate = {0, 1, 0}; }
DLMT_DEVICE void expect(Gate* gate, uint32_t bytes) {
    gate->bytes += static_cast<int32_t>(bytes);
    --gate->arrivals;
    pass(gate);
}
DLMT_DEVICE void wait_at(Gate* gate, uint32_t parity) { machine::wait_for_phase(&gate->phase, parity); }
DLMT_DEVICE void send(void* to, Gate* gate, uint32_t rank, int32_t low, int32_t high) {
    const int32_t words[2] = {low, high};
    __builtin_memcpy(machine::in_block(to, rank), words, sizeof words);
    auto* there = static_cast<Gate*>(machine::in_block(gate, rank));
    there->bytes -= 8;
    pass(there);
}

DLMT_DEVICE uint32_t funnel(uint32_t low, uint32_t high, uint32_t shift) {
    return static_cast<uint32_t>(((static_cast<uint64_t>(high) << 32) | low) >> (shift & 31));
}

template <uint32_t choice>
DLMT_DEVICE uint32_t bytes_of(uint32_t low, uint32_t high) {
    const uint64_t both = (static_cast<uint64_t>(high) << 32) | low;
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i) {
        result |= static_cast<uint32_t>((both >> (8 * ((choice >> (4 * i)) & 7))) & 0xFF) << (8 * i);
    }
    return result;
}

DLMT_DEVICE uint32_t byte_of(uint32_t word, int i) { return (word >> (8 * i)) & 0xFF; }
DLMT_DEVICE uint32_t kept(uint32_t x) { return x; }

DLMT_DEVICE uint32_t halves_of(float low, float high) {
    return half_of(low) | static_cast<uint32_t>(half_of(high)) << 16;
}
DLMT_DEVICE uint32_t bfloats_of(float low, float high) {
    return bfloat_of(low) | static_cast<uint32_t>(bfloat_of(high)) << 16;
}

}  // namespace dlmt::cuda
