#include "bind_prepared.h"

#include <algorithm>
#include <array>

#include "bind_coefficients.h"
#include "bind_gil.h"
#include "cpu/levels.h"
#include "cpu/run.h"

namespace dlmt {
namespace {

// Below this many elements a call is over before another thread could have used the lock.
constexpr int64_t kKeepGil = 32 * 1024;

// The few fields of a NumPy array that `direct` looks at, without a call into Python.
struct Plain {
    explicit Plain(py::handle object) {
        const auto& api = py::detail::npy_api::get();
        if (Py_TYPE(object.ptr()) != api.PyArray_Type_) return;
        const auto* array = py::detail::array_proxy(object.ptr());
        const auto* descriptor = reinterpret_cast<const py::detail::PyArrayDescr_Proxy*>(array->descr);
        constexpr int needed = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
        if ((array->flags & needed) != needed || descriptor->byteorder == '>') return;
        constexpr int warns_on_write = static_cast<int>(1u << 31);
        writeable = (array->flags & (py::detail::npy_api::NPY_ARRAY_WRITEABLE_ | warns_on_write)) ==
                    py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
        number = descriptor->type_num;
        data = array->data;
        axes = array->nd;
        sizes = array->dimensions;
    }

    // The number of images, or -1 where the shape is no batch of `shape3`.
    py::ssize_t count(const std::vector<py::ssize_t>& shape3) const {
        if (axes != 3 && axes != 4) return -1;
        for (int i = 0; i < 3; ++i) {
            if (sizes[axes - 3 + i] != shape3[static_cast<size_t>(i)]) return -1;
        }
        return axes == 3 ? 1 : sizes[0];
    }

    int number = -1;
    bool writeable = false;
    char* data = nullptr;
    int axes = 0;
    const py::ssize_t* sizes = nullptr;
};

}  // namespace

Prepared::Prepared(const std::string& normalize, const std::string& dtype, int64_t lo, int64_t hi, const py::array& m,
                   const OptionalArray& b, const OptionalArray& m24, const OptionalArray& b24,
                   const OptionalArray& deviation, const OptionalArray& g, const OptionalArray& bias,
                   const std::optional<std::vector<int64_t>>& shape3) {
    const Coefficients k = check_coefficients(normalize, dtype, lo, hi, m, b, m24, b24, deviation, g, bias);
    Job& job = job_;
    job.normalize = k.normalize, job.dtype = k.dtype;
    job.lo = k.lo, job.hi = k.hi;
    job.outer = outer_ = k.outer, job.channels = channels_ = k.channels, job.inner = inner_ = k.inner;
    job.m = k.m, job.b = k.b, job.m24 = k.m24, job.b24 = k.b24;
    job.deviation = k.deviation, job.g = k.g, job.bias = k.bias;
    stored_ = storage(job.dtype);
    plain_dtype_ = job.dtype != Dtype::bfloat16;
    kept_.push_back(m);
    for (const OptionalArray* each : {&b, &m24, &b24, &deviation, &g, &bias}) {
        if (*each) kept_.push_back(**each);
    }
    prepare(job);
    without_gil([&] { derived_ = derive(job); });
    job.derived = derived_.get();
    if (shape3) *this = with_shape(*shape3);
}

Prepared Prepared::with_shape(const std::vector<int64_t>& shape3) const {
    int64_t left = job_.size;
    bool fits = shape3.size() == 3;
    for (const int64_t size : shape3) {
        fits = fits && size > 0 && left % size == 0;
        if (fits) left /= size;
    }
    if (!fits || left != 1) throw py::value_error("shape3 is not the shape of one image of these matrices");
    Prepared other = *this;
    other.shape3_.assign(shape3.begin(), shape3.end());
    return other;
}

// Distance in bytes between images that are each contiguous.
ptrdiff_t Prepared::check_images(const py::array& array, const char* role, Stored stored, int64_t n,
                                 bool written) const {
    check_elements(array, role, stored, written);
    if (array.ndim() != 4 || array.shape(1) != outer_ || array.shape(2) != channels_ || array.shape(3) != inner_) {
        throw py::value_error(std::string(role) + " of shape " + text(array) + " does not fit the matrix M");
    }
    if (array.shape(0) != n) throw py::value_error("images and out have different numbers of images");
    if (n == 0) return 0;
    if (!is_dense(array, 1)) throw py::value_error("each image of " + std::string(role) + " must be contiguous");
    const ptrdiff_t bytes = job_.size * stored.size;
    if (n == 1) return bytes;
    const ptrdiff_t step = array.strides(0);
    if (step % stored.size != 0) throw py::value_error(std::string(role) + " is not aligned to its elements");
    if (written && (step < 0 ? -step : step) < bytes) throw py::value_error("images of out overlap each other");
    return step;
}

// Both directions take the same arguments; `inverse` swaps what is uint8 and what is `dtype`.
Job Prepared::checked(bool inverse, const py::array& images, const py::array& out, const OptionalArray& bounds) const {
    Job job = job_;
    if (images.ndim() != 4) throw py::value_error("images must be (N, outer, C, inner), got " + text(images));
    job.n = images.shape(0);
    job.in_step = check_images(images, "images", inverse ? stored_ : kUint8, job.n, false);
    job.out_step = check_images(out, "out", inverse ? kUint8 : stored_, job.n, true);
    if (job.n > INT64_MAX / 64 / job.size) throw py::value_error("too many images");
    if (job.is_minmax()) {
        const py::ssize_t groups = job.normalize == Normalize::minmax_channel ? channels_ : 1;
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

void Prepared::affine(const py::array& images, const py::array& out, const OptionalArray& bounds, int threads) const {
    const Job job = checked(false, images, out, bounds);
    without_gil([&] { dlmt::affine(job, threads); });
}

int64_t Prepared::affine_inverse(const py::array& images, const py::array& out, const OptionalArray& bounds,
                                 int threads) const {
    const Job job = checked(true, images, out, bounds);
    int64_t found = -1;
    without_gil([&] { found = dlmt::affine_inverse(job, threads); });
    return found;
}

// `job` with memory and a number of images, but perhaps without bounds.
void Prepared::run(Job& job, int threads, bool keep_gil) const {
    job.in_step = job.size;
    job.out_step = job.size * stored_.size;
    std::array<int32_t, 64> few;
    std::vector<int32_t> many;
    if (job.is_minmax()) {
        const auto pairs = static_cast<size_t>(job.n * job.groups);
        if (pairs * 2 > few.size()) many.resize(pairs * 2);
        job.bounds = many.empty() ? few.data() : many.data();
    }
    if (keep_gil) return dlmt::affine(job, 1);
    without_gil([&] { dlmt::affine(job, threads); });
}

bool Prepared::direct(py::handle images, py::handle out, py::handle threads) const {
    if (shape3_.empty() || !plain_dtype_) return false;
    const Plain source(images), target(out);
    if (source.number != kUint8.number || target.number != stored_.number || !target.writeable) return false;
    Job job = job_;
    job.n = source.count(shape3_);
    if (job.n < 0 || target.axes != source.axes || target.count(shape3_) != job.n) return false;
    const int64_t in_bytes = job.n * job.size, out_bytes = in_bytes * stored_.size;
    const auto in_at = reinterpret_cast<uintptr_t>(source.data), out_at = reinterpret_cast<uintptr_t>(target.data);
    const bool apart =
        in_at + static_cast<size_t>(in_bytes) <= out_at || out_at + static_cast<size_t>(out_bytes) <= in_at;
    if (!apart && !(in_at == out_at && stored_.size == 1)) return false;
    if (!PyLong_CheckExact(threads.ptr())) return false;
    int overflow = 0;
    const long asked = PyLong_AsLongAndOverflow(threads.ptr(), &overflow);
    if (overflow != 0 || asked < 1) return false;
    job.in = source.data;
    job.out = target.data;
    try {
        kernels();
    } catch (const LevelError&) {
        return false;
    }
    run(job, static_cast<int>(std::min(asked, 1L << 20)), in_bytes <= kKeepGil);
    return true;
}

void Prepared::direct_pointers(uintptr_t in, uintptr_t out, int64_t n, int threads) const {
    if (n <= 0) return;
    Job job = job_;
    job.n = n;
    job.in = reinterpret_cast<const char*>(in);
    job.out = reinterpret_cast<char*>(out);
    run(job, threads, n * job.size <= kKeepGil);
}

}  // namespace dlmt
