// Threads that stay: a call that uses them costs microseconds.
#pragma once

#include <cstdint>

namespace dlmt {

// Calls body(context, part) for every part of 0..parts-1, on the calling thread and up to threads-1 others, and returns
// when all are done. Parts are taken in order, by whoever is free. `body` must not throw.
//
// Where the threads are busy with another caller's work, or cannot be started, the calling thread does everything. A
// forked child has none of its parent's threads, so it makes its own.
void parallel(int64_t parts, int threads, void (*body)(void* context, int64_t part), void* context);

template <class F>
void parallel(int64_t parts, int threads, F& body) {
    parallel(parts, threads, [](void* context, int64_t part) { (*static_cast<F*>(context))(part); }, &body);
}

}  // namespace dlmt
