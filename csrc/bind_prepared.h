// A plan's coefficients, checked once and kept: what Python calls for every batch.
#pragma once

#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bind_arrays.h"
#include "cpu/derived.h"

namespace dlmt {

class Prepared {
  public:
    Prepared(const std::string& normalize, const std::string& dtype, int64_t lo, int64_t hi, const py::array& m,
             const OptionalArray& b, const OptionalArray& m24, const OptionalArray& b24, const OptionalArray& deviation,
             const OptionalArray& g, const OptionalArray& bias, const std::optional<std::vector<int64_t>>& shape3);

    // The same, with the axes of one image in the caller's order, for `direct`.
    Prepared with_shape(const std::vector<int64_t>& shape3) const;

    void affine(const py::array& images, const py::array& out, const OptionalArray& bounds, int threads) const;
    int64_t affine_inverse(const py::array& images, const py::array& out, const OptionalArray& bounds,
                           int threads) const;

    // Does the work and returns true where both are plain, dense and separate NumPy arrays of the right dtype and
    // shape; returns false, having done nothing, where anything is out of the ordinary.
    bool direct(py::handle images, py::handle out, py::handle threads) const;

    // `n` dense images, one after the other; the caller answers for the memory.
    void direct_pointers(uintptr_t in, uintptr_t out, int64_t n, int threads) const;

  private:
    Job checked(bool inverse, const py::array& images, const py::array& out, const OptionalArray& bounds) const;
    ptrdiff_t check_images(const py::array& array, const char* role, Stored stored, int64_t n, bool written) const;
    void run(Job& job, int threads, bool keep_gil) const;

    Job job_;                               // prepared, and without images
    py::ssize_t outer_, channels_, inner_;  // of the matrices as they were given
    Stored stored_;                         // how `dtype` lies in memory
    bool plain_dtype_;                      // whether NumPy has it
    std::vector<py::ssize_t> shape3_;       // empty: `direct` takes nothing
    std::vector<py::array> kept_;           // what job_ points into
    std::shared_ptr<const Derived> derived_;
};

}  // namespace dlmt
