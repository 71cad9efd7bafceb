#include "emulated_machine.h"

#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>
#include <numeric>
#include <random>

#include "../affine.h"
#include "emulated_device.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace dlmt::cuda::machine {

Position position;
void* shared = nullptr;

namespace {

constexpr size_t kStack = 128 * 1024;
constexpr size_t kComplaints = 20;

struct Watched : Array {
    std::vector<uint8_t> marks;  // of arrays to be written once
};

std::vector<Watched> arrays;
std::vector<std::string> found;

void complain(const std::string& what) {
    if (found.size() == kComplaints) return;
    found.push_back(what + " by thread " + std::to_string(position.thread) + " of block (" +
                    std::to_string(position.block_x) + ", " + std::to_string(position.block_y) + ")");
}

struct Warp {
    uint32_t values[2][32];
    uint32_t arrived[2] = {0, 0};
    char kind[2] = {0, 0};
    uint64_t complete = 0;  // common operations that all lanes have come to
};

struct Copy {
    void* to;
    const void* from;
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    uint32_t thread = 0;
    uint32_t rank = 0;  // of its block in the cluster
    uint32_t warp = 0;  // in the cluster
    std::deque<std::vector<Copy>> groups;
    std::vector<Copy> open_group;
    const uint16_t* phase = nullptr;  // what it waits for
    uint32_t parity = 0;
    bool done = true;
    uint64_t operations = 0;  // common operations and barriers that it has come to
    uint64_t barriers = 0, cluster_barriers = 0;
    enum { running, at_warp, at_barrier, at_cluster, at_gate } waits = running;
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack = nullptr;
#endif
};

// A block's part of a cluster.
struct Member {
    std::vector<Words4> memory;
    uint32_t at_barrier = 0;
    uint64_t barriers = 0;
};

// What runs together: the blocks of a cluster, most often one.
struct Cluster {
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<Member> members;
    uint32_t first_block = 0;
    uint32_t at_barrier = 0;
    uint64_t barriers = 0;
    Fiber* current = nullptr;
    ucontext_t scheduler;
    Function function = nullptr;
    const Args* args = nullptr;
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack = nullptr;
    const void* stack = nullptr;
    size_t stack_size = 0;
#endif
} block;

void leave(bool for_good) {
    Fiber& fiber = *block.current;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fiber.fake_stack, block.stack, block.stack_size);
#endif
    (void)for_good;
    swapcontext(&fiber.context, &block.scheduler);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fiber.fake_stack, &block.stack, &block.stack_size);
#endif
}

void enter(Fiber& fiber) {
    block.current = &fiber;
    position.thread = fiber.thread;
    position.block_x = block.first_block + fiber.rank;
    shared = block.members[fiber.rank].memory.data();
    fiber.waits = Fiber::running;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&block.fake_stack, fiber.stack.get(), kStack);
#endif
    swapcontext(&block.scheduler, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(block.fake_stack, nullptr, nullptr);
#endif
}

void body() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &block.stack, &block.stack_size);
#endif
    block.function(*block.args);
    block.current->done = true;
    leave(true);
}

bool may_run(const Fiber& fiber) {
    if (fiber.done) return false;
    switch (fiber.waits) {
        case Fiber::at_warp:
            return block.warps[fiber.warp].complete >= fiber.operations;
        case Fiber::at_barrier:
            return block.members[fiber.rank].barriers >= fiber.barriers;
        case Fiber::at_cluster:
            return block.barriers >= fiber.cluster_barriers;
        case Fiber::at_gate:
            return *fiber.phase % 2 != fiber.parity;
        default:
            return true;
    }
}

void start(Fiber& fiber, uint32_t rank, uint32_t thread) {
    if (fiber.stack == nullptr) fiber.stack = std::make_unique<char[]>(kStack);
    fiber.rank = rank, fiber.thread = thread;
    fiber.warp = (rank * position.threads + thread) / 32;
    fiber.done = false, fiber.waits = Fiber::running;
    fiber.operations = fiber.barriers = fiber.cluster_barriers = 0;
    fiber.groups.clear();
    fiber.open_group.clear();
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, body, 0);
}

// `hesitant`: warps do not always go on though they could, one of them hardly ever, so that others get ahead.
void run_cluster(const Step& step, const std::vector<uint32_t>& order, bool hesitant, std::mt19937& random) {
    const size_t all = size_t{step.threads} * step.cluster;
    block.warps.assign(all / 32, Warp());
    block.at_barrier = 0, block.barriers = 0;
    if (block.fibers.size() < all) block.fibers.resize(all);
    for (uint32_t i = 0; i < all; ++i) start(block.fibers[i], i / step.threads, i % step.threads);
    const size_t slow = random() % block.warps.size();
    std::vector<char> waits(block.warps.size(), 0);
    for (size_t left = all; left > 0;) {
        for (size_t warp = 0; hesitant && warp < waits.size(); ++warp)
            waits[warp] = random() % (warp == slow ? 16 : 2) != 0;
        bool could = false;
        for (const uint32_t i : order) {
            if (!may_run(block.fibers[i])) continue;
            could = true;
            if (waits[block.fibers[i].warp] != 0) continue;
            enter(block.fibers[i]);
            left -= block.fibers[i].done;
        }
        if (!could) return complain("a barrier or common operation that not all come to, met");
    }
}

const Watched* watched(const void* at, size_t bytes, const char* what) {
    const auto* from = static_cast<const char*>(at);
    if (reinterpret_cast<uintptr_t>(at) % bytes != 0) {
        complain(std::string("a misaligned ") + what + " of " + std::to_string(bytes) + " bytes");
        return nullptr;
    }
    for (const Watched& array : arrays) {
        const auto* begin = static_cast<const char*>(array.data);
        if (from >= begin && from + bytes <= begin + array.bytes) return &array;
    }
    complain(std::string("a ") + what + " of " + std::to_string(bytes) + " bytes outside of every array");
    return nullptr;
}

}  // namespace

bool may_load(const void* at, size_t bytes) { return watched(at, bytes, "load") != nullptr; }

bool may_change(const void* at, size_t bytes) {
    const Watched* array = watched(at, bytes, "change");
    if (array != nullptr && !array->written) complain("a change of an array that is only read");
    return array != nullptr && array->written;
}

bool may_store(const void* at, size_t bytes) {
    const Watched* array = watched(at, bytes, "store");
    if (array == nullptr) return false;
    if (!array->written) {
        complain("a store to an array that is only read");
        return false;
    }
    if (array->once) {
        auto& marks = const_cast<Watched*>(array)->marks;
        const auto first = static_cast<const char*>(at) - static_cast<const char*>(array->data);
        for (size_t i = 0; i < bytes; ++i) {
            if (marks[static_cast<size_t>(first) + i]++ != 0) complain("a second store to the same byte");
        }
    }
    return true;
}

void barrier() {
    Fiber& own = *block.current;
    Member& member = block.members[own.rank];
    ++own.barriers;
    if (++member.at_barrier == position.threads) {
        member.at_barrier = 0;
        ++member.barriers;
        return;
    }
    while (member.barriers < own.barriers) {
        own.waits = Fiber::at_barrier;
        leave(false);
    }
}

void cluster_barrier() {
    Fiber& own = *block.current;
    ++own.cluster_barriers;
    if (++block.at_barrier == position.threads * block.members.size()) {
        block.at_barrier = 0;
        ++block.barriers;
        return;
    }
    while (block.barriers < own.cluster_barriers) {
        own.waits = Fiber::at_cluster;
        leave(false);
    }
}

uint32_t cluster_rank() { return block.current->rank; }

void* in_block(void* here, uint32_t rank) {
    const auto offset = static_cast<char*>(here) - static_cast<char*>(shared);
    return reinterpret_cast<char*>(block.members.at(rank).memory.data()) + offset;
}

void wait_for_phase(const void* gate_phase, uint32_t parity) {
    Fiber& own = *block.current;
    own.phase = static_cast<const uint16_t*>(gate_phase), own.parity = parity;
    while (*own.phase % 2 == parity) {
        own.waits = Fiber::at_gate;
        leave(false);
    }
}

void copy_later(void* to, const void* from) { block.current->open_group.push_back({to, from}); }

void close_group() {
    Fiber& own = *block.current;
    own.groups.push_back(std::move(own.open_group));
    own.open_group.clear();
}

void finish_groups(int later) {
    Fiber& own = *block.current;
    for (; own.groups.size() > static_cast<size_t>(later); own.groups.pop_front()) {
        for (const Copy& copy : own.groups.front()) {
            if (may_load(copy.from, sizeof(Words4))) std::memcpy(copy.to, copy.from, sizeof(Words4));
        }
    }
}

const uint32_t* together(char kind, uint32_t value) {
    Fiber& own = *block.current;
    Warp& warp = block.warps[own.warp];
    const size_t slot = own.operations++ % 2;
    if (warp.arrived[slot] != 0 && warp.kind[slot] != kind) complain("different common operations in one warp, begun");
    warp.kind[slot] = kind;
    warp.values[slot][own.thread % 32] = value;
    if (++warp.arrived[slot] == 32) {
        warp.arrived[slot] = 0;
        ++warp.complete;
    }
    while (warp.complete < own.operations) {
        own.waits = Fiber::at_warp;
        leave(false);
    }
    return warp.values[slot];
}

void clear_arrays() {
    arrays.clear();
    found.clear();
}

void add_array(const Array& array) {
    arrays.push_back({array, {}});
    if (array.once) arrays.back().marks.assign(array.bytes, 0);
}

int64_t unwritten() {
    int64_t count = 0;
    for (const Watched& array : arrays) count += std::count(array.marks.begin(), array.marks.end(), 0);
    return count;
}

const std::vector<std::string>& complaints() { return found; }

void run(const Step& step, Function function, uint32_t seed, int32_t last_blocks) {
    constexpr size_t kGuard = 64;
    constexpr unsigned char kFill = 0xA5;
    std::mt19937 random(seed);
    if (step.grid_x % step.cluster != 0) complain("a grid that is no whole number of clusters, run");
    const uint64_t all = uint64_t{step.grid_x} * step.grid_y / step.cluster;
    const uint64_t count = last_blocks == 0 ? all : std::min<uint64_t>(all, static_cast<uint64_t>(last_blocks));
    std::vector<uint64_t> clusters(count);
    std::iota(clusters.begin(), clusters.end(), all - count);
    std::shuffle(clusters.begin(), clusters.end(), random);
    std::vector<uint32_t> order(size_t{step.threads} * step.cluster);
    std::iota(order.begin(), order.end(), 0);
    if (seed % 2 == 1) std::reverse(order.begin(), order.end());
    const size_t words = (step.shared_bytes + 15) / 16 + kGuard / 16;
    block.members.resize(step.cluster);
    for (Member& member : block.members) member.memory.resize(words);
    block.function = function;
    block.args = &step.args;
    position = {0, step.threads, 0, 0, step.grid_x, step.grid_y};
    if (step.threads % 32 != 0) complain("a block that is no whole number of warps, run");
    for (const uint64_t index : clusters) {
        for (Member& member : block.members) {
            std::memset(static_cast<void*>(member.memory.data()), kFill, 16 * words);
            member.at_barrier = 0, member.barriers = 0;
        }
        block.first_block = static_cast<uint32_t>(index * step.cluster % step.grid_x);
        position.block_y = static_cast<uint32_t>(index * step.cluster / step.grid_x);
        run_cluster(step, order, seed % 3 != 0, random);
        for (const Member& member : block.members) {
            const auto* bytes = reinterpret_cast<const unsigned char*>(member.memory.data());
            if (std::any_of(bytes + step.shared_bytes, bytes + 16 * words, [](auto byte) { return byte != kFill; })) {
                complain("a store past the end of shared memory");
            }
        }
        if (found.size() == kComplaints) return;
    }
}

}  // namespace dlmt::cuda::machine
