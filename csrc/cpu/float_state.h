// The processor's float state as the contract needs it, for the life of the object: rounding to nearest, subnormal
// numbers kept. A program may have set it otherwise (torch.set_flush_denormal, fesetround).
#pragma once

#include <cstdint>

namespace dlmt {

class FloatState {
  public:
#if defined(__x86_64__)
    FloatState() : before_(__builtin_ia32_stmxcsr()) { __builtin_ia32_ldmxcsr(0x1F80); }
    ~FloatState() { __builtin_ia32_ldmxcsr(before_); }
#elif defined(__aarch64__)
    FloatState() {
        asm volatile("mrs %0, fpcr" : "=r"(before_));
        asm volatile("msr fpcr, %0" : : "r"(uint64_t{0}) : "memory");
    }
    ~FloatState() { asm volatile("msr fpcr, %0" : : "r"(before_) : "memory"); }
#else
    FloatState() = default;
#endif
    FloatState(const FloatState&) = delete;
    FloatState& operator=(const FloatState&) = delete;

  private:
#if defined(__x86_64__)
    uint32_t before_;
#elif defined(__aarch64__)
    uint64_t before_;
#endif
};

}  // namespace dlmt
