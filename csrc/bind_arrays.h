// What the Python module asks of an array before it takes a pointer: in words, and without converting anything.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <initializer_list>
#include <optional>
#include <string>

#include "cpu/job.h"

namespace dlmt {

namespace py = pybind11;
using OptionalArray = std::optional<py::array>;

// How a dtype lies in memory; `number` is NumPy's, -1 where this module never looks for it.
struct Stored {
    char kind;
    py::ssize_t size;
    const char* name;
    int number;
};
constexpr Stored kUint8{'u', 1, "uint8", 2}, kUint16{'u', 2, "uint16", 4}, kUint32{'u', 4, "uint32", -1},
    kInt32{'i', 4, "int32", 5}, kFloat16{'f', 2, "float16", 23}, kFloat32{'f', 4, "float32", 11},
    kFloat64{'f', 8, "float64", -1};

inline Stored storage(Dtype dtype) {
    switch (dtype) {
        case Dtype::uint8:
            return kUint8;
        case Dtype::int32:
            return kInt32;
        case Dtype::float32:
            return kFloat32;
        case Dtype::float16:
            return kFloat16;
        default:
            return kUint16;  // bfloat16 as its bits
    }
}

inline std::string text(const py::array& array) { return std::string(py::str(array.attr("shape"))); }

inline void check_elements(const py::array& array, const char* role, Stored stored, bool written) {
    const py::dtype dtype = array.dtype();
    if (dtype.kind() != stored.kind || dtype.itemsize() != stored.size || dtype.byteorder() == '>') {
        throw py::type_error(std::string(role) + " must have dtype " + stored.name + ", got " +
                             std::string(py::str(dtype)));
    }
    if (written && !array.writeable()) throw py::value_error(std::string(role) + " is read-only");
    if (array.size() != 0 && reinterpret_cast<uintptr_t>(array.data()) % static_cast<size_t>(stored.size) != 0) {
        throw py::value_error(std::string(role) + " is not aligned to its elements");
    }
}

// Whether axes `from` and later lie in memory one element after the other, in C order.
inline bool is_dense(const py::array& array, py::ssize_t from) {
    if (array.size() == 0) return true;
    py::ssize_t expected = array.itemsize();
    for (py::ssize_t axis = array.ndim() - 1; axis >= from; --axis) {
        if (array.shape(axis) != 1 && array.strides(axis) != expected) return false;
        expected *= array.shape(axis);
    }
    return true;
}

// A small array of parameters: exactly this dtype and shape, contiguous.
template <class T>
const T* parameters(const OptionalArray& array, const char* role, Stored stored,
                    std::initializer_list<py::ssize_t> shape) {
    if (!array) throw py::value_error(std::string(role) + " is missing");
    check_elements(*array, role, stored, false);
    bool same = array->ndim() == static_cast<py::ssize_t>(shape.size());
    for (py::ssize_t axis = 0; same && axis < array->ndim(); ++axis) same = array->shape(axis) == shape.begin()[axis];
    if (!same || !is_dense(*array, 0)) {
        throw py::value_error(std::string(role) + " of shape " + text(*array) + " does not fit the matrix M, or is " +
                              "not contiguous");
    }
    return static_cast<const T*>(array->data());
}

}  // namespace dlmt
