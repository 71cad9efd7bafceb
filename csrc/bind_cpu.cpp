// The Python module _cpu. It is private, and still nothing that Python can pass makes it touch memory outside of the
// arrays: everything is checked, in words, before a pointer is taken. No argument is ever converted or copied.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <exception>
#include <optional>
#include <string>

#include "cpu/levels.h"
#include "cpu/run.h"

namespace py = pybind11;

namespace {

using dlmt::Dtype;
using dlmt::Job;
using dlmt::Normalize;
using OptionalArray = std::optional<py::array>;

struct Stored {
    char kind;
    py::ssize_t size;
    const char* name;
};
constexpr Stored kUint8{'u', 1, "uint8"}, kUint16{'u', 2, "uint16"}, kUint32{'u', 4, "uint32"}, kInt32{'i', 4, "int32"},
    kFloat16{'f', 2, "float16"}, kFloat32{'f', 4, "float32"}, kFloat64{'f', 8, "float64"};

Stored storage(Dtype dtype) {
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

template <class T, size_t N>
T named(const std::string& name, const char* role, const std::pair<const char*, T> (&known)[N]) {
    for (const auto& [each, value] : known) {
        if (name == each) return value;
    }
    throw py::value_error("unknown " + std::string(role) + "=\"" + name + "\"");
}

Normalize normalize_of(const std::string& name) {
    static constexpr std::pair<const char*, Normalize> known[] = {{"none", Normalize::none},
                                                                  {"range", Normalize::range},
                                                                  {"minmax", Normalize::minmax},
                                                                  {"minmax_channel", Normalize::minmax_channel}};
    return named(name, "normalize", known);
}

Dtype dtype_of(const std::string& name, bool none) {
    static constexpr std::pair<const char*, Dtype> known[] = {
        {"uint8", Dtype::uint8},     {"uint16", Dtype::uint16},   {"int32", Dtype::int32},
        {"float32", Dtype::float32}, {"float16", Dtype::float16}, {"bfloat16", Dtype::bfloat16}};
    const Dtype dtype = named(name, "dtype", known);
    const bool integer = dtype == Dtype::uint16 || dtype == Dtype::int32;
    if (dtype != Dtype::uint8 && integer != none) throw py::value_error("this normalize does not give dtype " + name);
    return dtype;
}

void check_elements(const py::array& array, const char* role, Stored stored, bool written) {
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
bool is_dense(const py::array& array, py::ssize_t from) {
    if (array.size() == 0) return true;
    py::ssize_t expected = array.itemsize();
    for (py::ssize_t axis = array.ndim() - 1; axis >= from; --axis) {
        if (array.shape(axis) != 1 && array.strides(axis) != expected) return false;
        expected *= array.shape(axis);
    }
    return true;
}

std::string text(const py::array& array) { return std::string(py::str(array.attr("shape"))); }

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

// Distance in bytes between images that are each contiguous.
ptrdiff_t check_images(const py::array& array, const char* role, Stored stored, const Job& job, bool written) {
    check_elements(array, role, stored, written);
    if (array.ndim() != 4 || array.shape(1) != job.outer || array.shape(2) != job.channels ||
        array.shape(3) != job.inner) {
        throw py::value_error(std::string(role) + " of shape " + text(array) + " does not fit the matrix M");
    }
    if (array.shape(0) != job.n) throw py::value_error("images and out have different numbers of images");
    if (job.n == 0) return 0;
    if (!is_dense(array, 1)) throw py::value_error("each image of " + std::string(role) + " must be contiguous");
    if (job.n == 1) return 0;
    const ptrdiff_t step = array.strides(0);
    if (step % stored.size != 0) throw py::value_error(std::string(role) + " is not aligned to its elements");
    const ptrdiff_t bytes = job.outer * job.channels * job.inner * stored.size;
    if (written && (step < 0 ? -step : step) < bytes) throw py::value_error("images of out overlap each other");
    return step;
}

// Both directions take the same arguments; `inverse` swaps what is uint8 and what is `dtype`.
Job checked(bool inverse, const py::array& images, const py::array& out, const std::string& normalize,
            const std::string& dtype, int64_t lo, int64_t hi, const py::array& m, const OptionalArray& b,
            const OptionalArray& m24, const OptionalArray& b24, const OptionalArray& deviation, const OptionalArray& g,
            const OptionalArray& bias, const OptionalArray& bounds) {
    Job job;
    job.normalize = normalize_of(normalize);
    job.dtype = dtype_of(dtype, job.normalize == Normalize::none);
    if (lo < INT32_MIN || hi > INT32_MAX || hi < lo || hi - lo > INT32_MAX) {
        throw py::value_error("lo and hi are no bounds of int32 values");
    }
    job.lo = static_cast<int32_t>(lo);
    job.hi = static_cast<int32_t>(hi);

    check_elements(m, "M", kInt32, false);
    if (m.ndim() != 3 || m.size() == 0 || !is_dense(m, 0)) {
        throw py::value_error("M must be (outer, C, inner), contiguous and not empty, got " + text(m));
    }
    const py::ssize_t outer = job.outer = m.shape(0), channels = job.channels = m.shape(1),
                      inner = job.inner = m.shape(2);
    job.m = static_cast<const int32_t*>(m.data());
    job.b = parameters<int32_t>(b, "B", kInt32, {outer, channels, inner});
    const bool is_float = job.dtype != Dtype::uint8 && job.normalize != Normalize::none;
    if (job.normalize == Normalize::range && !is_float && !inverse) {
        job.m24 = parameters<uint32_t>(m24, "M24", kUint32, {outer, channels, inner});
        job.b24 = parameters<uint32_t>(b24, "B24", kUint32, {outer, channels, inner});
    }
    if (is_float) {
        job.bias = parameters<float>(bias, "b", kFloat32, {channels});
        if (job.is_minmax()) {
            job.deviation = parameters<double>(deviation, "std", kFloat64, {channels});
        } else {
            job.g = parameters<float>(g, "g", kFloat32, {channels});
        }
    }

    if (images.ndim() != 4) throw py::value_error("images must be (N, outer, C, inner), got " + text(images));
    job.n = images.shape(0);
    const Stored stored = storage(job.dtype);
    job.in_step = check_images(images, "images", inverse ? stored : kUint8, job, false);
    job.out_step = check_images(out, "out", inverse ? kUint8 : stored, job, true);
    if (job.n > INT64_MAX / 64 / (outer * channels * inner)) throw py::value_error("too many images");
    if (job.is_minmax()) {
        const py::ssize_t groups = job.normalize == Normalize::minmax_channel ? channels : 1;
        const int32_t* pairs = parameters<int32_t>(bounds, "bounds", kInt32, {job.n, groups, 2});
        if (!inverse && !bounds->writeable()) throw py::value_error("bounds is read-only");
        job.bounds = const_cast<int32_t*>(pairs);
    } else if (bounds) {
        throw py::value_error("bounds belong to min-max only");
    }
    job.in = static_cast<const char*>(images.data());
    job.out = static_cast<char*>(const_cast<void*>(out.data()));
    return job;
}

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

void affine(const py::array& images, const py::array& out, const std::string& normalize, const std::string& dtype,
            int64_t lo, int64_t hi, const py::array& m, const OptionalArray& b, const OptionalArray& m24,
            const OptionalArray& b24, const OptionalArray& deviation, const OptionalArray& g, const OptionalArray& bias,
            const OptionalArray& bounds, int threads) {
    const Job job = checked(false, images, out, normalize, dtype, lo, hi, m, b, m24, b24, deviation, g, bias, bounds);
    without_gil([&] { dlmt::affine(job, threads); });
}

int64_t affine_inverse(const py::array& images, const py::array& out, const std::string& normalize,
                       const std::string& dtype, int64_t lo, int64_t hi, const py::array& m, const OptionalArray& b,
                       const OptionalArray& deviation, const OptionalArray& g, const OptionalArray& bias,
                       const OptionalArray& bounds, int threads) {
    const Job job = checked(true, images, out, normalize, dtype, lo, hi, m, b, {}, {}, deviation, g, bias, bounds);
    int64_t found = -1;
    without_gil([&] { found = dlmt::affine_inverse(job, threads); });
    return found;
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
    module.doc() = "The CPU loops of dlmt_fast; use dlmt_fast.backends.native.";
    py::register_exception<dlmt::LevelError>(module, "LevelError", PyExc_ValueError);
    module.def("affine", &affine, py::arg("images"), py::arg("out"), py::arg("normalize"), py::arg("dtype"),
               py::arg("lo"), py::arg("hi"), py::arg("M"), py::arg("B"), py::arg("M24"), py::arg("B24"), py::arg("std"),
               py::arg("g"), py::arg("b"), py::arg("bounds"), py::arg("threads"));
    module.def("affine_inverse", &affine_inverse, py::arg("images"), py::arg("out"), py::arg("normalize"),
               py::arg("dtype"), py::arg("lo"), py::arg("hi"), py::arg("M"), py::arg("B"), py::arg("std"), py::arg("g"),
               py::arg("b"), py::arg("bounds"), py::arg("threads"));
    module.def("levels", &dlmt::levels, "CPU levels built and supported by this machine, best first.");
    module.def("level", [] { return std::string(dlmt::kernels().name); }, "The CPU level in use.");
    module.def("set_level", &dlmt::set_level, py::arg("name"), "Use another of levels(); raises LevelError.");
}
