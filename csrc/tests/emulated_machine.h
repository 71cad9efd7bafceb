// Runs kernels on the machine of emulated_device.h.
#pragma once

#include <string>
#include <vector>

#include "../cuda/kernels.h"

namespace dlmt::cuda::machine {

// Memory that a call may touch; what lies outside of all of them it may not.
struct Array {
    const void* data = nullptr;
    size_t bytes = 0;
    bool written = false;  // by stores
    bool once = false;     // every byte by one store exactly; see `unwritten`
};

void clear_arrays();
void add_array(const Array& array);

// The bytes of arrays to be written once that were not.
int64_t unwritten();

// Runs all blocks, or so many of the last, in an order that `seed` decides, as it does that of threads.
void run(const Step& step, Function function, uint32_t seed, int32_t last_blocks = 0);

// What was wrong since `clear_arrays`; empty where nothing was.
const std::vector<std::string>& complaints();

}  // namespace dlmt::cuda::machine
