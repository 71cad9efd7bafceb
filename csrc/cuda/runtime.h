// The CUDA runtime, without its header: what the module asks of devices, and launches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "key.h"

namespace dlmt::cuda {

// "ok", or a sentence that says why no kernel can run in this process.
std::string status();

struct DeviceFacts {
    std::string name;
    int major, minor;
    size_t memory;  // bytes
    int multiprocessors;
};
std::vector<DeviceFacts> devices();

// A plan: its key on the host, laid out for devices.
struct PlanKey {
    PlanKey(const Shape& shape_, const HostArrays& arrays)
        : shape(shape_), layout(layout_of(shape_)), block(shape_, layout, arrays) {}
    const Shape shape;
    const Layout layout;
    const KeyBlock block;
};

// A plan's key in the memory of one device; freed and zeroed with the object. Throws std::runtime_error with what CUDA
// says.
class Resident {
  public:
    Resident(std::shared_ptr<const PlanKey> plan, int device);
    ~Resident();
    Resident(const Resident&) = delete;
    Resident& operator=(const Resident&) = delete;

    // Asynchronous on `stream`, a cudaStream_t of this device; see schedule.h for the pointers.
    void affine(const Call& call, uintptr_t stream) const;
    void affine_inverse(const Call& call, uintptr_t stream) const;

    int device() const { return device_; }
    size_t bytes() const { return plan_->block.size(); }
    const Shape& shape() const { return plan_->shape; }

  private:
    std::shared_ptr<const PlanKey> plan_;
    int device_;
    Device facts_;
    void* memory_ = nullptr;
    DeviceKey key_;
    int64_t process_;
};

void copy(const uint8_t* in, uint8_t* out, int64_t elements, Dtype dtype, int device, uintptr_t stream);

}  // namespace dlmt::cuda
