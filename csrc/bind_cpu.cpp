// The Python module _cpu. It is private, and still nothing that Python can pass makes it touch memory outside of the
// arrays (but for `direct_pointers`, which takes addresses): everything is checked, in words, before a pointer is
// taken. No argument is ever converted or copied.
#include "bind_arrays.h"
#include "bind_gil.h"
#include "bind_prepared.h"
#include "cpu/copy.h"
#include "cpu/levels.h"

namespace {

namespace py = pybind11;
using dlmt::Prepared;

// uint8 to uint8 or float32, both contiguous, of one shape; the same memory or separate memory.
void copy(const py::array& images, const py::array& out, bool streaming, int threads) {
    dlmt::check_elements(images, "images", dlmt::kUint8, false);
    const bool convert = out.dtype().kind() == 'f';
    dlmt::check_elements(out, "out", convert ? dlmt::kFloat32 : dlmt::kUint8, true);
    bool same = images.ndim() == out.ndim();
    for (py::ssize_t axis = 0; same && axis < images.ndim(); ++axis) same = images.shape(axis) == out.shape(axis);
    if (!same) throw py::value_error("images and out have different shapes");
    if (!dlmt::is_dense(images, 0) || !dlmt::is_dense(out, 0)) {
        throw py::value_error("images and out must be contiguous");
    }
    const auto* from = static_cast<const uint8_t*>(images.data());
    auto* to = static_cast<char*>(const_cast<void*>(out.data()));
    const int64_t count = images.size();
    const auto from_at = reinterpret_cast<uintptr_t>(from), to_at = reinterpret_cast<uintptr_t>(to);
    if (from_at < to_at + static_cast<size_t>(out.nbytes()) && to_at < from_at + static_cast<size_t>(count)) {
        if (from_at != to_at || convert) throw py::value_error("images and out overlap");
        return;
    }
    dlmt::without_gil([&] { dlmt::copy(from, to, count, convert, streaming, threads); });
}

// Rows of a PNG image, each behind its filter, to pixels (H, W, C).
bool unfilter(const py::array& rows, const py::array& out) {
    dlmt::check_elements(rows, "rows", dlmt::kUint8, false);
    dlmt::check_elements(out, "out", dlmt::kUint8, true);
    if (!dlmt::is_dense(rows, 0) || !dlmt::is_dense(out, 0)) throw py::value_error("rows and out must be contiguous");
    if (out.ndim() != 3 || (out.shape(2) != 1 && out.shape(2) != 3)) {
        throw py::value_error("out must have shape (H, W, C) with C 1 or 3, got " + dlmt::text(out));
    }
    const int64_t height = out.shape(0), width = out.shape(1);
    if (rows.size() != out.size() + height) throw py::value_error("rows do not have the size of out and its filters");
    const auto* from = static_cast<const uint8_t*>(rows.data());
    auto* to = static_cast<uint8_t*>(const_cast<void*>(out.data()));
    if (from < to + out.size() && to < from + rows.size()) throw py::value_error("rows and out overlap");
    const int channels = static_cast<int>(out.shape(2));
    const dlmt::Kernels& use = dlmt::kernels();
    bool known = false;
    dlmt::without_gil([&] { known = use.unfilter(from, to, height, width, channels); });
    return known;
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
    module.doc() = "The CPU loops of dlmt_fast; use dlmt_fast.backends.native.";
    py::register_exception<dlmt::LevelError>(module, "LevelError", PyExc_ValueError);
    // Local to the module, so that two builds can be loaded and compared.
    py::class_<Prepared>(module, "Prepared", py::module_local(), "A plan's coefficients, checked once and kept.")
        .def(py::init<const std::string&, const std::string&, int64_t, int64_t, const py::array&,
                      const dlmt::OptionalArray&, const dlmt::OptionalArray&, const dlmt::OptionalArray&,
                      const dlmt::OptionalArray&, const dlmt::OptionalArray&, const dlmt::OptionalArray&,
                      const std::optional<std::vector<int64_t>>&>(),
             py::arg("normalize"), py::arg("dtype"), py::arg("lo"), py::arg("hi"), py::arg("M"), py::arg("B"),
             py::arg("M24"), py::arg("B24"), py::arg("std"), py::arg("g"), py::arg("b"), py::arg("shape3") = py::none())
        .def("with_shape", &Prepared::with_shape, py::arg("shape3"), "The same, with the shape that `direct` takes.")
        .def("affine", &Prepared::affine, py::arg("images"), py::arg("out"), py::arg("bounds"), py::arg("threads"))
        .def("affine_inverse", &Prepared::affine_inverse, py::arg("images"), py::arg("out"), py::arg("bounds"),
             py::arg("threads"))
        .def("direct", &Prepared::direct, py::arg("images"), py::arg("out"), py::arg("threads"),
             "Does the work where nothing is out of the ordinary and returns True; else does nothing.")
        .def("direct_pointers", &Prepared::direct_pointers, py::arg("in_ptr"), py::arg("out_ptr"), py::arg("n"),
             py::arg("threads"), "Dense images at addresses that the caller answers for.");
    module.def("copy", &copy, py::arg("images"), py::arg("out"), py::arg("streaming"), py::arg("threads"),
               "Only moves the bytes: uint8 to uint8 or float32.");
    module.def("unfilter", &unfilter, py::arg("rows"), py::arg("out"),
               "Undoes the filters of a PNG image's rows; False where one is no filter.");
    module.def("levels", &dlmt::levels, "CPU levels built and supported by this machine, best first.");
    module.def("level", [] { return std::string(dlmt::kernels().name); }, "The CPU level in use.");
    module.def("set_level", &dlmt::set_level, py::arg("name"), "Use another of levels(); raises LevelError.");
}
