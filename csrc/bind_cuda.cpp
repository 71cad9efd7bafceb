// The Python module _cuda: the CUDA kernels over device pointers and a stream, without torch and without the driver's
// library at load time. It is private. What is on the host is checked, in words; addresses are the caller's to answer
// for, as far as numbers show nothing wrong.
#include <pybind11/stl.h>

#include <sstream>

#include "bind_coefficients.h"
#include "bind_gil.h"
#include "cuda/runtime.h"

namespace {

namespace py = pybind11;
using namespace dlmt;
using namespace dlmt::cuda;

// Checks what a call can be checked for. `in_size` and `out_size` are bytes an element.
void check_call(const Call& call, const Shape& shape, int64_t in_size, int64_t out_size) {
    if (call.images < 0) throw py::value_error("n must not be negative");
    if (call.images > (int64_t{1} << 50) / shape.size()) throw py::value_error("n is too large");
    if (shape.is_minmax() != (call.bounds != nullptr) && call.images > 0) {
        throw py::value_error(shape.is_minmax() ? "min-max needs bounds, int32 (n, 1 or C, 2) on the device"
                                                : "bounds belong to min-max only; pass 0");
    }
    const auto in = reinterpret_cast<uintptr_t>(call.in), out = reinterpret_cast<uintptr_t>(call.out);
    if (call.images > 0 && (in == 0 || out == 0)) throw py::value_error("images and out must not be null");
    const auto aligned = [](uintptr_t at, int64_t size) { return at % static_cast<uintptr_t>(size) == 0; };
    if (!aligned(in, in_size) || !aligned(out, out_size) || !aligned(reinterpret_cast<uintptr_t>(call.bounds), 4)) {
        throw py::value_error("images, out and bounds must be aligned to their elements");
    }
    const auto all = static_cast<uintptr_t>(call.images * shape.size());
    const bool apart =
        in + all * static_cast<uintptr_t>(in_size) <= out || out + all * static_cast<uintptr_t>(out_size) <= in;
    if (!apart && !(in == out && in_size == out_size)) throw py::value_error("images and out overlap");
}

Call call_of(uintptr_t in, uintptr_t out, uintptr_t bounds, int64_t n) {
    Call call;
    call.in = reinterpret_cast<const uint8_t*>(in);
    call.out = reinterpret_cast<uint8_t*>(out);
    call.bounds = reinterpret_cast<int32_t*>(bounds);
    call.images = n;
    return call;
}

class OnDevice {
  public:
    OnDevice(std::shared_ptr<const PlanKey> plan, int device) : key_(std::move(plan), device) {}

    void affine(uintptr_t images, uintptr_t out, uintptr_t bounds, int64_t n, uintptr_t stream) const {
        const Call call = call_of(images, out, bounds, n);
        check_call(call, key_.shape(), 1, dlmt::cuda::bytes_of(key_.shape().dtype));
        without_gil([&] { key_.affine(call, stream); });
    }

    void affine_inverse(uintptr_t images, uintptr_t bounds, uintptr_t out, uintptr_t bad, int64_t n,
                        uintptr_t stream) const {
        Call call = call_of(images, out, bounds, n);
        call.bad = reinterpret_cast<unsigned long long*>(bad);
        check_call(call, key_.shape(), dlmt::cuda::bytes_of(key_.shape().dtype), 1);
        if (bad == 0 || bad % 8 != 0) throw py::value_error("bad must be the address of an int64 on the device");
        without_gil([&] { key_.affine_inverse(call, stream); });
    }

    int device() const { return key_.device(); }
    size_t bytes() const { return key_.bytes(); }

  private:
    Resident key_;
};

class Prepared {
  public:
    Prepared(const std::string& normalize, const std::string& dtype, int64_t lo, int64_t hi, const py::array& m,
             const OptionalArray& b, const OptionalArray& m24, const OptionalArray& b24, const OptionalArray& deviation,
             const OptionalArray& g, const OptionalArray& bias) {
        const Coefficients k = check_coefficients(normalize, dtype, lo, hi, m, b, m24, b24, deviation, g, bias);
        if (m.size() > INT32_MAX / 2) throw py::value_error("an image of more than 2**30 values is too large");
        HostArrays arrays;
        arrays.m = k.m, arrays.b = k.b, arrays.m24 = k.m24, arrays.b24 = k.b24;
        arrays.deviation = k.deviation, arrays.gain = k.g, arrays.bias = k.bias;
        Shape shape;
        shape.normalize = k.normalize, shape.dtype = k.dtype, shape.lo = k.lo, shape.hi = k.hi;
        shape.outer = k.outer, shape.channels = k.channels, shape.inner = k.inner;
        shape.channels_differ = channels_differ(shape, arrays);
        without_gil([&] { plan_ = std::make_shared<const PlanKey>(shape, arrays); });
    }

    std::unique_ptr<OnDevice> on(int device) const {
        std::unique_ptr<OnDevice> made;
        without_gil([&] { made = std::make_unique<OnDevice>(plan_, device); });
        return made;
    }

    py::dict launch(int64_t n, const std::string& capability, int multiprocessors) const {
        int major = 0, minor = 0;
        char point = 0;
        std::istringstream words(capability);
        if (!(words >> major >> point >> minor) || point != '.' || major < 1 || minor < 0 || minor > 9) {
            throw py::value_error("capability must be as \"9.0\", got \"" + capability + "\"");
        }
        if (n < 0 || multiprocessors < 1) throw py::value_error("n and multiprocessors must be positive");
        Call call;
        call.images = n;
        const Device device = {10 * major + minor, multiprocessors};
        py::list all;
        for (const Step& step : affine_steps(plan_->shape, plan_->layout, DeviceKey(), call, device)) {
            py::dict each;
            each["kernel"] = name_of(step.kernel);
            each["aligned"] = step.aligned;
            each["grid"] = py::make_tuple(step.grid_x, step.grid_y, 1);
            each["block"] = py::make_tuple(step.threads, 1, 1);
            each["cluster"] = step.cluster;
            each["shared"] = step.shared_bytes;
            each["in_flight"] = images_in_flight(step);
            all.append(each);
        }
        py::dict found;
        if (!all.empty()) found.attr("update")(all[all.size() - 1]);  // the last one writes the results
        found["launches"] = all.size();
        found["steps"] = all;
        return found;
    }

  private:
    std::shared_ptr<const PlanKey> plan_;
};

std::vector<std::string> architectures() {
    std::istringstream words(DLMT_CUDA_ARCHITECTURES);
    std::vector<std::string> all;
    for (std::string each; words >> each;) all.push_back(each);
    return all;
}

py::list device_list() {
    py::list all;
    for (const DeviceFacts& facts : devices()) {
        py::dict each;
        each["name"] = facts.name;
        each["capability"] = std::to_string(facts.major) + "." + std::to_string(facts.minor);
        each["memory"] = facts.memory;
        each["multiprocessors"] = facts.multiprocessors;
        all.append(each);
    }
    return all;
}

void copy_images(uintptr_t images, uintptr_t out, int64_t elements, const std::string& dtype, int device,
                 uintptr_t stream) {
    const Dtype type = dtype_of(dtype);
    if (type == Dtype::uint16 || type == Dtype::int32) throw py::value_error("dtype must be uint8 or a float");
    if (elements < 0) throw py::value_error("elements must not be negative");
    if (images % 16 != 0 || out % 16 != 0) throw py::value_error("images and out must be aligned to 16 bytes");
    const auto call = call_of(images, out, 0, elements);
    without_gil([&] { dlmt::cuda::copy(call.in, call.out, elements, type, device, stream); });
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
    module.doc() = "The CUDA kernels of dlmt_fast; use dlmt_fast.backends.cuda.";
    py::class_<OnDevice>(module, "OnDevice", py::module_local(), "A plan's key in the memory of one device.")
        .def_property_readonly("device", &OnDevice::device)
        .def_property_readonly("bytes", &OnDevice::bytes)
        .def("affine", &OnDevice::affine, py::arg("images"), py::arg("out"), py::arg("bounds"), py::arg("n"),
             py::arg("stream"))
        .def("affine_inverse", &OnDevice::affine_inverse, py::arg("images"), py::arg("bounds"), py::arg("out"),
             py::arg("bad"), py::arg("n"), py::arg("stream"));
    py::class_<Prepared>(module, "Prepared", py::module_local(), "A plan's coefficients, checked once and kept.")
        .def(py::init<const std::string&, const std::string&, int64_t, int64_t, const py::array&, const OptionalArray&,
                      const OptionalArray&, const OptionalArray&, const OptionalArray&, const OptionalArray&,
                      const OptionalArray&>(),
             py::arg("normalize"), py::arg("dtype"), py::arg("lo"), py::arg("hi"), py::arg("M"), py::arg("B"),
             py::arg("M24"), py::arg("B24"), py::arg("std"), py::arg("g"), py::arg("b"))
        .def("on", &Prepared::on, py::arg("device"), "The key on a device; not while a graph is captured.")
        .def("launch", &Prepared::launch, py::arg("n"), py::arg("capability") = "9.0", py::arg("multiprocessors") = 132,
             "What `affine` would launch for n images, by arithmetic alone.");
    module.def("status", [] {
        std::string found;
        without_gil([&] { found = status(); });
        return found;
    });
    module.def("architectures", &architectures);
    module.def("devices", &device_list);
    module.def("copy", &copy_images, py::arg("images"), py::arg("out"), py::arg("elements"), py::arg("dtype"),
               py::arg("device"), py::arg("stream"), "Only moves the bytes: uint8 to uint8 or to a float.");
}
