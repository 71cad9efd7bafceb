// What the levels with vectors of their own share. Included once per such level, after its vectors.

namespace dlmt {
namespace DLMT_LEVEL {
namespace {

constexpr int64_t kHalf = kBytes / 2;  // positions in one vector of 16-bit lanes

template <bool kStreaming>
DLMT_INLINE void put(void* to, Bytes x) {
    if (kStreaming) {
        stream(to, x);
    } else {
        store(to, x);
    }
}

// Elements before the first that a vector store aligned to its size can begin with, at most `count`.
template <class T>
DLMT_INLINE int64_t unaligned(const T* to, int64_t count) {
    const auto past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) % kBytes);
    const int64_t head = past == 0 ? 0 : (kBytes - past) / static_cast<int64_t>(sizeof(T));
    return head < count ? head : count;
}

// The first `count` bytes of x, and the rest of y.
DLMT_INLINE Bytes choose(Bytes x, Bytes y, int64_t count) { return select(first_bytes(count), x, y); }

}  // namespace
}  // namespace DLMT_LEVEL
}  // namespace dlmt
