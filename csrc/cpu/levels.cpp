#include "levels.h"

#include <atomic>
#include <cstdlib>

namespace dlmt {

extern const Kernels kKernels_baseline;
#if defined(__x86_64__)
extern const Kernels kKernels_avx512vbmi;
extern const Kernels kKernels_avx512;
extern const Kernels kKernels_avx2;
#endif

namespace {

std::atomic<const Kernels*> in_use{nullptr};

std::vector<const Kernels*> supported() {
    std::vector<const Kernels*> found;
#if defined(__x86_64__)
    // These ask the processor and whether the operating system saves the registers.
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        if (__builtin_cpu_supports("avx512vbmi")) found.push_back(&kKernels_avx512vbmi);
        found.push_back(&kKernels_avx512);
    }
    if (avx2) found.push_back(&kKernels_avx2);
#endif
    found.push_back(&kKernels_baseline);
    return found;
}

const Kernels& named(const std::string& name, const std::string& role) {
    std::string have;
    for (const Kernels* each : supported()) {
        if (name == each->name) return *each;
        have += (have.empty() ? "" : ", ") + std::string(each->name);
    }
    throw LevelError(role + "=\"" + name + "\" is no CPU level of this machine and build; there are: " + have);
}

}  // namespace

std::vector<std::string> levels() {
    std::vector<std::string> names;
    for (const Kernels* each : supported()) names.emplace_back(each->name);
    return names;
}

const Kernels& kernels() {
    const Kernels* found = in_use.load(std::memory_order_acquire);
    if (found == nullptr) {
        const char* asked = std::getenv("DLMT_CPU_LEVEL");
        found = asked != nullptr && *asked != '\0' ? &named(asked, "DLMT_CPU_LEVEL") : supported().front();
        const Kernels* nobody = nullptr;  // a set_level() of another thread in between wins
        if (!in_use.compare_exchange_strong(nobody, found)) found = nobody;
    }
    return *found;
}

void set_level(const std::string& name) { in_use.store(&named(name, "level"), std::memory_order_release); }

}  // namespace dlmt
