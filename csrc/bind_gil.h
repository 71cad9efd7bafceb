// Work without Python's global lock.
#pragma once

#include <pybind11/pybind11.h>
#include <unistd.h>

#include <exception>

namespace dlmt {

// Runs `function` while other Python threads run.
//
// Not py::gil_scoped_release: once the interpreter ends, Python before 3.14 ends a daemon thread at the point where it
// asks for the GIL, by unwinding its stack, and destructors on the way would need the GIL that is never to be had. The
// thread waits for the end of the process instead, as Python 3.14 lets it.
template <class Function>
void without_gil(Function function) {
    std::exception_ptr error;
    PyThreadState* const state = PyEval_SaveThread();
    try {
        function();
    } catch (...) {
        error = std::current_exception();
    }
    try {
        PyEval_RestoreThread(state);
    } catch (...) {
        for (;;) pause();
    }
    if (error) std::rethrow_exception(error);
}

}  // namespace dlmt
