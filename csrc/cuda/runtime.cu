#include "runtime.h"

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <stdexcept>

#include "kernels.h"

namespace dlmt::cuda {
namespace {

constexpr int kOldest = 80;  // compute capability 8.0: what the kernels' warp reductions need

constexpr const char* kForked =
    "this process was forked from one that had used CUDA, which does not survive a fork; start worker processes with "
    "the method spawn or forkserver";
constexpr const char* kCapturing = "a CUDA graph is being captured: run the plan once on this device before capturing";

// The process in which this module first spoke to the driver; 0 before.
std::atomic<int64_t> first_process{0};

bool is_forked() {
    const int64_t first = first_process.load();
    return first != 0 && first != getpid();
}

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

std::string explain(cudaError_t error) {
    switch (error) {
        case cudaErrorInitializationError:
            return kForked;
        case cudaErrorStreamCaptureUnsupported:
        case cudaErrorStreamCaptureImplicit:
        case cudaErrorStreamCaptureInvalidated:
            return std::string(kCapturing) + " (" + cudaGetErrorString(error) + ")";
        case cudaErrorNoKernelImageForDevice:
            return "the device is older than compute capability 8.0, or not among the architectures built for";
        default:
            return std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")";
    }
}

void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // else the next call of anybody would report it again
    throw std::runtime_error("dlmt_fast._cuda: " + std::string(what) + ": " + explain(error));
}

std::string driver_too_old() {
    int driver = 0;
    cudaDriverGetVersion(&driver);
    return "the NVIDIA driver serves CUDA " + version(driver) + " at most, and this module is built with CUDA " +
           version(CUDART_VERSION) + ": update the driver";
}

int attribute(cudaDeviceAttr which, int device) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
    return value;
}

int capability_of(int device) {
    return 10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
           attribute(cudaDevAttrComputeCapabilityMinor, device);
}

std::string find_status() {
    void* driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    if (driver == nullptr) return "there is no NVIDIA driver on this machine: libcuda.so.1 cannot be opened";
    dlclose(driver);
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    cudaGetLastError();
    if (error == cudaErrorInsufficientDriver) return driver_too_old();
    if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0)) {
        return "the NVIDIA driver shows no device (CUDA_VISIBLE_DEVICES may hide them)";
    }
    if (error != cudaSuccess) return "CUDA cannot start: " + explain(error);
    int newest = 0;
    for (int device = 0; device < count; ++device) newest = std::max(newest, capability_of(device));
    if (newest < kOldest) {
        return "the newest device has compute capability " + std::to_string(newest / 10) + "." +
               std::to_string(newest % 10) + ", and the kernels need 8.0";
    }
    return "ok";
}

// The caller's device comes back at the end.
class OnDevice {
  public:
    explicit OnDevice(int device) : device_(device) {
        check(cudaGetDevice(&before_), "cudaGetDevice");
        if (before_ != device_) check(cudaSetDevice(device_), "cudaSetDevice");
    }
    ~OnDevice() {
        if (before_ != device_) cudaSetDevice(before_);
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

  private:
    int device_;
    int before_ = 0;
};

void refuse_fork() {
    if (is_forked()) throw std::runtime_error("dlmt_fast._cuda: " + std::string(kForked));
}

Device facts_of(int device) {
    Device facts;
    facts.capability = capability_of(device);
    facts.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device);
    return facts;
}

void launch(const std::vector<Step>& steps, uintptr_t stream) {
    for (const Step& step : steps) {
        Args args = step.args;
        void* arguments[] = {&args};
        cudaLaunchConfig_t configuration = {};
        configuration.gridDim = dim3(step.grid_x, step.grid_y);
        configuration.blockDim = dim3(step.threads);
        configuration.dynamicSmemBytes = step.shared_bytes;
        configuration.stream = reinterpret_cast<cudaStream_t>(stream);
        cudaLaunchAttribute cluster = {};
        cluster.id = cudaLaunchAttributeClusterDimension;
        cluster.val.clusterDim.x = step.cluster, cluster.val.clusterDim.y = 1, cluster.val.clusterDim.z = 1;
        configuration.attrs = &cluster;
        configuration.numAttrs = step.cluster > 1 ? 1 : 0;
        check(cudaLaunchKernelExC(&configuration, reinterpret_cast<const void*>(function_of(step)), arguments),
              name_of(step.kernel));
    }
}

// Lets `minmax_cluster` have more shared memory than every kernel has, on the current device.
void allow_shared_memory(const Device& facts) {
    if (facts.capability < 90) return;
    constexpr int kMost = 96 << 10;  // schedule.cpp asks for less
    Step step;
    step.kernel = Kernel::minmax_cluster;
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(function_of(step)),
                               cudaFuncAttributeMaxDynamicSharedMemorySize, kMost),
          "minmax_cluster (cudaFuncSetAttribute)");
}

}  // namespace

std::string status() {
    static std::mutex mutex;
    static std::string found;
    if (is_forked()) return found.empty() || found == "ok" ? kForked : found;
    const std::lock_guard<std::mutex> lock(mutex);
    if (found.empty()) {
        found = find_status();
        // A driver that is not there has not been spoken to.
        if (found.find("libcuda.so.1") == std::string::npos) first_process = getpid();
    }
    return found;
}

std::vector<DeviceFacts> devices() {
    std::vector<DeviceFacts> all;
    if (status() != "ok") return all;
    int count = 0;
    check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
    for (int device = 0; device < count; ++device) {
        cudaDeviceProp facts;
        check(cudaGetDeviceProperties(&facts, device), "cudaGetDeviceProperties");
        all.push_back({facts.name, facts.major, facts.minor, facts.totalGlobalMem, facts.multiProcessorCount});
    }
    return all;
}

Resident::Resident(std::shared_ptr<const PlanKey> plan, int device)
    : plan_(std::move(plan)), device_(device), process_(getpid()) {
    const std::string state = status();
    if (state != "ok") throw std::runtime_error("dlmt_fast._cuda: " + state);
    const OnDevice guard(device_);
    facts_ = facts_of(device_);
    if (facts_.capability < kOldest) {
        throw std::runtime_error("dlmt_fast._cuda: device " + std::to_string(device_) +
                                 " is older than compute capability 8.0, which the kernels need");
    }
    allow_shared_memory(facts_);
    cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(cudaStreamLegacy, &capturing), "the key");
    check(cudaMalloc(&memory_, plan_->block.size()), "the key (cudaMalloc)");
    try {
        check(cudaMemcpy(memory_, plan_->block.data(), plan_->block.size(), cudaMemcpyHostToDevice), "the key");
        // A copy from pageable memory may return earlier than it ends, and other streams do not wait for this one.
        check(cudaStreamSynchronize(cudaStreamLegacy), "the key");
    } catch (...) {
        cudaFree(memory_);
        throw;
    }
    key_ = plan_->block.at(memory_);
}

// Errors are passed over: there is nobody to tell, and at the end of a process CUDA may be gone already.
Resident::~Resident() {
    if (process_ != getpid()) return;
    int before = 0;
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;  // a capture that goes on elsewhere is not disturbed
    cudaThreadExchangeStreamCaptureMode(&mode);
    if (cudaGetDevice(&before) == cudaSuccess && cudaSetDevice(device_) == cudaSuccess) {
        cudaDeviceSynchronize();  // kernels on any stream may still read the key
        cudaMemset(memory_, 0, plan_->block.size());
        cudaFree(memory_);
        cudaSetDevice(before);
    }
    cudaThreadExchangeStreamCaptureMode(&mode);
    cudaGetLastError();
}

void Resident::affine(const Call& call, uintptr_t stream) const {
    if (call.images == 0) return;
    refuse_fork();
    const OnDevice guard(device_);
    launch(affine_steps(plan_->shape, plan_->layout, key_, call, facts_), stream);
}

void Resident::affine_inverse(const Call& call, uintptr_t stream) const {
    refuse_fork();
    const OnDevice guard(device_);
    // All bits set: -1, and as an unsigned number larger than every index.
    check(cudaMemsetAsync(call.bad, 0xFF, sizeof *call.bad, reinterpret_cast<cudaStream_t>(stream)), "inverse");
    launch(inverse_steps(plan_->shape, key_, call, facts_), stream);
}

void copy(const uint8_t* in, uint8_t* out, int64_t elements, Dtype dtype, int device, uintptr_t stream) {
    const std::string state = status();
    if (state != "ok") throw std::runtime_error("dlmt_fast._cuda: " + state);
    const OnDevice guard(device);
    launch(copy_steps(in, out, elements, dtype, facts_of(device)), stream);
}

}  // namespace dlmt::cuda
