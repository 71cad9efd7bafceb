// The kernels of csrc/cuda on the machine of emulated_device.h, for tests/test_cuda_kernels.py (through ctypes): the
// same kernels, the same launch arithmetic, the same layout of the key as on a GPU.
#include <cstdio>
#include <string>

#include "../cuda/inverse.cu"
#include "../cuda/key.h"
#include "../cuda/minmax.cu"
#include "../cuda/stream.cu"
#include "emulated_machine.h"

namespace {

using namespace dlmt::cuda;

struct Request {
    int32_t normalize, dtype, lo, hi;
    int64_t outer, channels, inner, images;
    const int32_t* m;
    const int32_t* b;
    const uint32_t* m24;
    const uint32_t* b24;
    const double* deviation;
    const float* gain;
    const float* bias;
    const uint8_t* in;
    uint8_t* out;
    int32_t* bounds;
    int64_t* bad;  // an inverse where not null
    int32_t capability, multiprocessors;
    uint32_t seed;
    int32_t last_blocks;  // where not 0, only so many run, the last ones of each launch
    int64_t withheld;     // bytes at the end of images and results that the machine forbids
};

size_t bytes(int64_t elements, int64_t each) { return static_cast<size_t>(elements * each); }

std::string run_all(const std::vector<Step>& steps, uint32_t seed, int32_t last_blocks = 0) {
    std::string names;
    for (const Step& step : steps) {
        const Function function = function_of(step);
        if (function == nullptr) return "no function for " + std::string(name_of(step.kernel));
        machine::run(step, function, seed, last_blocks);
        names += (names.empty() ? "" : " ") + std::string(name_of(step.kernel)) +
                 (step.kernel == Kernel::clear_bounds ? ""
                  : step.aligned                      ? "/aligned"
                                                      : "/anywhere");
    }
    return names;
}

}  // namespace

// Fills `words` with the kernels that ran, or, where the result is not 0, with what was wrong.
extern "C" int dlmt_emulate(const Request* request, char* words, size_t room) {
    const Request& r = *request;
    Shape shape;
    shape.normalize = static_cast<dlmt::Normalize>(r.normalize), shape.dtype = static_cast<dlmt::Dtype>(r.dtype);
    shape.lo = r.lo, shape.hi = r.hi;
    shape.outer = r.outer, shape.channels = r.channels, shape.inner = r.inner;
    const HostArrays arrays = {r.m, r.b, r.m24, r.b24, r.deviation, r.gain, r.bias};
    shape.channels_differ = channels_differ(shape, arrays);
    const Layout layout = layout_of(shape);
    const KeyBlock block(shape, layout, arrays);
    // As a device's memory: aligned to 256 bytes, and not the host's copy.
    std::vector<unsigned char> memory(block.size() + 256);
    auto* base = reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(memory.data()) + 255) / 256 * 256);
    __builtin_memcpy(base, block.data(), block.size());
    const DeviceKey key = block.at(base);
    const Device device = {r.capability, r.multiprocessors};
    const Call call = {r.in, r.out, r.bounds, reinterpret_cast<unsigned long long*>(r.bad), r.images};

    const int64_t all = r.images * shape.size(), each = dlmt::cuda::bytes_of(shape.dtype);
    const bool inverse = r.bad != nullptr;
    machine::clear_arrays();
    machine::add_array({base, block.size()});
    const size_t in_bytes = bytes(all, inverse ? each : 1), out_bytes = bytes(all, inverse ? 1 : each);
    const size_t withheld = static_cast<size_t>(r.withheld);
    machine::add_array({r.out, out_bytes - withheld, true, r.last_blocks == 0});
    if (static_cast<const void*>(r.in) != r.out) machine::add_array({r.in, in_bytes - withheld});
    machine::add_array({r.bounds, bytes(r.images * shape.pairs() * 2, 4), !inverse});
    if (inverse) machine::add_array({r.bad, sizeof *r.bad, true}), *r.bad = -1;
    const auto steps =
        inverse ? inverse_steps(shape, key, call, device) : affine_steps(shape, layout, key, call, device);
    std::string said = run_all(steps, r.seed, r.last_blocks);
    const auto& wrong = machine::complaints();
    for (const std::string& each_complaint : wrong) said += "\n" + each_complaint;
    const int64_t left_out = machine::unwritten();
    if (left_out != 0) said += "\n" + std::to_string(left_out) + " bytes of the results were not written";
    std::snprintf(words, room, "%s", said.c_str());
    return wrong.empty() && left_out == 0 ? 0 : 1;
}

// Only moves bytes, as `copy` of the module does.
extern "C" int dlmt_emulate_copy(const uint8_t* in, uint8_t* out, int64_t elements, int32_t dtype, uint32_t seed) {
    const auto type = static_cast<dlmt::Dtype>(dtype);
    machine::clear_arrays();
    machine::add_array({in, bytes(elements, 1)});
    machine::add_array({out, bytes(elements, dlmt::cuda::bytes_of(type)), true, true});
    run_all(copy_steps(in, out, elements, type, Device()), seed);
    return static_cast<int>(machine::complaints().size()) + (machine::unwritten() != 0);
}
