#include "copy.h"

#include <algorithm>

#include "levels.h"
#include "threads.h"

namespace dlmt {

void copy(const uint8_t* from, char* to, int64_t count, bool convert, bool streaming, int threads) {
    constexpr int64_t kGrain = 64 * 1024;  // bytes read
    constexpr int64_t kPage = 4096;
    const Kernels& use = kernels();
    const int64_t most = threads < 2 ? 1 : int64_t{threads} * 4;
    const int64_t parts = std::max<int64_t>(1, std::min(most, count / kGrain));
    const int64_t length = ((count + parts - 1) / parts + kPage - 1) / kPage * kPage;
    auto body = [&](int64_t part) {
        const int64_t first = std::min(count, part * length), last = std::min(count, first + length);
        if (convert) {
            use.convert(from + first, reinterpret_cast<float*>(to) + first, last - first, streaming);
        } else {
            use.copy(from + first, reinterpret_cast<uint8_t*>(to) + first, last - first, streaming);
        }
    };
    parallel(parts, threads, body);
}

}  // namespace dlmt
