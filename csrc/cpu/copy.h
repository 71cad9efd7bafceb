// Moving bytes and nothing else, which bounds how fast anything here can be: the benchmarks divide by it.
#pragma once

#include <cstdint>

namespace dlmt {

// Copies `count` bytes, or converts each to a float32. `streaming` asks for stores past the caches, where the level in
// use has them. `to` and `from` do not overlap.
void copy(const uint8_t* from, char* to, int64_t count, bool convert, bool streaming, int threads);

}  // namespace dlmt
