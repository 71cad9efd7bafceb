// Which instruction set the loops use: the best that was built and that this machine has, unless the environment
// variable DLMT_CPU_LEVEL or a call names another.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "job.h"

namespace dlmt {

// A level that is unknown, or that this machine lacks.
struct LevelError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Names of the levels built and supported by this machine, best first. "baseline" is always the last.
std::vector<std::string> levels();

// The loops in use. The first call settles the level; throws LevelError where DLMT_CPU_LEVEL names none that works.
const Kernels& kernels();

// Throws LevelError and changes nothing where `name` is none of `levels()`.
void set_level(const std::string& name);

}  // namespace dlmt
