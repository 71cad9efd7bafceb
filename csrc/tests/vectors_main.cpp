// The loops without Python: reads records of arguments and known answers (written by tests/test_aarch64.py), runs both
// directions at every level and with several numbers of threads, and compares every bit.
//
// A record is, in this order and without padding: eight int32 (normalize, dtype, outer, channels, inner, lo, hi, n),
// M, B, [M24, B24: uint8 "range"], [std, b: floats], [g: float "range"], images, results, [bounds: min-max], images
// decrypted from the results. A negative `normalize` ends them.
//
// Then PNG images: three int32 (height, width, channels), rows with their filters, pixels. A negative height ends the
// file.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "../cpu/derived.h"
#include "../cpu/levels.h"
#include "../cpu/run.h"

namespace {

using dlmt::Dtype;
using dlmt::Job;
using dlmt::Normalize;

template <class T>
std::vector<T> read(std::FILE* file, int64_t count) {
    std::vector<T> values(static_cast<size_t>(count));
    if (std::fread(values.data(), sizeof(T), values.size(), file) != values.size()) {
        std::fprintf(stderr, "the file ends too early\n");
        std::exit(2);
    }
    return values;
}

int64_t bytes_of(Dtype dtype) {
    if (dtype == Dtype::uint8) return 1;
    return dtype == Dtype::int32 || dtype == Dtype::float32 ? 4 : 2;
}

struct Counts {
    int64_t records = 0, values = 0, wrong = 0;

    // `wrong` elements of `size` bytes.
    void compare(const void* got, const void* want, int64_t count, int64_t size, const std::string& what) {
        int64_t differ = 0;
        for (int64_t i = 0; i < count; ++i) {
            const char *a = static_cast<const char*>(got) + i * size, *b = static_cast<const char*>(want) + i * size;
            differ += std::memcmp(a, b, static_cast<size_t>(size)) != 0;
        }
        values += count;
        wrong += differ;
        if (differ != 0) std::printf("%s: %lld values differ\n", what.c_str(), static_cast<long long>(differ));
    }
};

bool check_record(std::FILE* file, Counts& counts) {
    const std::vector<int32_t> head = read<int32_t>(file, 8);
    if (head[0] < 0) return false;
    Job job;
    job.normalize = static_cast<Normalize>(head[0]);
    job.dtype = static_cast<Dtype>(head[1]);
    job.outer = head[2], job.channels = head[3], job.inner = head[4];
    job.lo = head[5], job.hi = head[6], job.n = head[7];
    const int64_t size = job.outer * job.channels * job.inner, all = job.n * size, bytes = bytes_of(job.dtype);
    const bool is_float = job.normalize != Normalize::none && job.dtype != Dtype::uint8;
    const bool fixed = job.normalize == Normalize::range;
    const int64_t pairs = !job.is_minmax() ? 0 : job.normalize == Normalize::minmax ? 1 : job.channels;

    const auto m = read<int32_t>(file, size), b = read<int32_t>(file, size);
    const auto m24 = read<uint32_t>(file, fixed && !is_float ? size : 0);
    const auto b24 = read<uint32_t>(file, fixed && !is_float ? size : 0);
    const auto deviation = read<double>(file, is_float ? job.channels : 0);
    const auto bias = read<float>(file, is_float ? job.channels : 0);
    const auto g = read<float>(file, is_float && fixed ? job.channels : 0);
    const auto images = read<char>(file, all);
    const auto results = read<char>(file, all * bytes);
    auto bounds = read<int32_t>(file, job.n * pairs * 2);
    const auto decrypted = read<char>(file, all);
    job.m = m.data(), job.b = b.data();
    job.m24 = m24.empty() ? nullptr : m24.data(), job.b24 = b24.empty() ? nullptr : b24.data();
    job.deviation = deviation.empty() ? nullptr : deviation.data();
    job.bias = bias.empty() ? nullptr : bias.data();
    job.g = g.empty() ? nullptr : g.data();
    dlmt::prepare(job);
    const auto derived = dlmt::derive(job);

    for (const std::string& level : dlmt::levels()) {
        dlmt::set_level(level);
        for (const int threads : {1, 3, -1}) {  // the last with the matrices alone
            job.derived = threads < 0 ? nullptr : derived.get();
            const std::string where =
                "record " + std::to_string(counts.records) + ", " + level + ", threads " + std::to_string(threads);
            std::vector<char> out(results.size()), back(images.size());
            std::vector<int32_t> found(bounds.size());
            job.in = images.data(), job.out = out.data(), job.bounds = found.data();
            job.in_step = size, job.out_step = size * bytes;
            dlmt::affine(job, threads);
            counts.compare(out.data(), results.data(), all, bytes, where + ", affine");
            counts.compare(found.data(), bounds.data(), job.n * pairs * 2, 4, where + ", bounds");
            job.in = results.data(), job.out = back.data(), job.bounds = bounds.data();
            job.in_step = size * bytes, job.out_step = size;
            const int64_t bad = dlmt::affine_inverse(job, threads), none = -1;
            counts.compare(&bad, &none, 1, sizeof bad, where + ", the index of a bad value");
            counts.compare(back.data(), decrypted.data(), all, 1, where + ", affine_inverse");
        }
    }
    ++counts.records;
    return true;
}

bool check_png(std::FILE* file, Counts& counts) {
    const std::vector<int32_t> head = read<int32_t>(file, 3);
    if (head[0] < 0) return false;
    const int64_t size = int64_t{head[0]} * head[1] * head[2];
    const auto rows = read<uint8_t>(file, size + head[0]);
    const auto pixels = read<uint8_t>(file, size);
    for (const std::string& level : dlmt::levels()) {
        dlmt::set_level(level);
        std::vector<uint8_t> out(pixels.size());
        const bool known = dlmt::kernels().unfilter(rows.data(), out.data(), head[0], head[1], head[2]), yes = true;
        const std::string where = "record " + std::to_string(counts.records) + ", " + level;
        counts.compare(&known, &yes, 1, sizeof yes, where + ", whether each filter is one");
        counts.compare(out.data(), pixels.data(), size, 1, where + ", unfilter");
    }
    ++counts.records;
    return true;
}

}  // namespace

int main(int argc, char** argv) {
    std::FILE* file = argc == 2 ? std::fopen(argv[1], "rb") : nullptr;
    if (file == nullptr) {
        std::fprintf(stderr, "usage: vectors FILE\n");
        return 2;
    }
    Counts counts;
    while (check_record(file, counts)) {
    }
    while (check_png(file, counts)) {
    }
    std::fclose(file);
    std::printf("%lld records, %lld values compared, %lld differ; levels:", static_cast<long long>(counts.records),
                static_cast<long long>(counts.values), static_cast<long long>(counts.wrong));
    for (const std::string& level : dlmt::levels()) std::printf(" %s", level.c_str());
    std::printf("\n");
    return counts.wrong == 0 && counts.records > 0 ? 0 : 1;
}
