#include "emulated_machine.h"

#include <ucontext.h>

#include <algorithm>
#include <cstring>
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

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    uint32_t thread = 0;
    bool done = true;
    uint64_t operations = 0;  // common operations and barriers that it has come to
    uint64_t barriers = 0;
    enum { running, at_warp, at_barrier } waits = running;
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack = nullptr;
#endif
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
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
    if (fiber.waits == Fiber::at_warp) return block.warps[fiber.thread / 32].complete >= fiber.operations;
    return fiber.waits != Fiber::at_barrier || block.barriers >= fiber.barriers;
}

void start(Fiber& fiber, uint32_t thread) {
    const bool fresh = fiber.stack == nullptr;
    if (fresh) fiber.stack = std::make_unique<char[]>(kStack);
    fiber.thread = thread, fiber.done = false, fiber.waits = Fiber::running;
    fiber.operations = fiber.barriers = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, body, 0);
}

void run_block(const Step& step, std::vector<uint32_t>& order) {
    block.warps.assign(step.threads / 32, Warp());
    block.at_barrier = 0, block.barriers = 0;
    if (block.fibers.size() < step.threads) block.fibers.resize(step.threads);
    for (uint32_t i = 0; i < step.threads; ++i) start(block.fibers[i], i);
    for (size_t left = step.threads; left > 0;) {
        bool moved = false;
        for (const uint32_t i : order) {
            if (!may_run(block.fibers[i])) continue;
            enter(block.fibers[i]);
            moved = true;
            left -= block.fibers[i].done;
        }
        if (!moved) return complain("a barrier or common operation that not all come to, met");
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
    ++own.barriers;
    if (++block.at_barrier == position.threads) {
        block.at_barrier = 0;
        ++block.barriers;
        return;
    }
    while (block.barriers < own.barriers) {
        own.waits = Fiber::at_barrier;
        leave(false);
    }
}

const uint32_t* together(char kind, uint32_t value) {
    Fiber& own = *block.current;
    Warp& warp = block.warps[own.thread / 32];
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
    const uint64_t all = uint64_t{step.grid_x} * step.grid_y;
    const uint64_t count = last_blocks == 0 ? all : std::min<uint64_t>(all, static_cast<uint64_t>(last_blocks));
    std::vector<uint64_t> blocks(count);
    std::iota(blocks.begin(), blocks.end(), all - count);
    std::shuffle(blocks.begin(), blocks.end(), random);
    std::vector<uint32_t> order(step.threads);
    std::iota(order.begin(), order.end(), 0);
    if (seed % 2 == 1) std::reverse(order.begin(), order.end());
    const size_t words = (step.shared_bytes + 15) / 16 + kGuard / 16;
    std::vector<Words4> memory(words);
    shared = memory.data();
    block.function = function;
    block.args = &step.args;
    position = {0, step.threads, 0, 0, step.grid_x, step.grid_y};
    if (step.threads % 32 != 0) complain("a block that is no whole number of warps, run");
    for (const uint64_t index : blocks) {
        std::memset(shared, kFill, 16 * words);
        position.block_x = static_cast<uint32_t>(index % step.grid_x);
        position.block_y = static_cast<uint32_t>(index / step.grid_x);
        run_block(step, order);
        const auto* bytes = static_cast<const unsigned char*>(shared);
        for (size_t i = step.shared_bytes; i < 16 * words; ++i) {
            if (bytes[i] != kFill) {
                complain("a store past the end of shared memory");
                break;
            }
        }
        if (found.size() == kComplaints) return;
    }
}

}  // namespace dlmt::cuda::machine
