// A thread's chunk: V consecutive positions whose results fill 16 bytes (V = 16 for uint8, 8 for 16 bits, 4 for 32),
// read and written wherever they lie. Where everything is aligned that is one load and one store. Else loads are of
// whole words, shifted together; and the lanes of a warp hand each other the bytes that their neighbour's 16 aligned
// bytes need, so that the bulk is still stored 16 bytes at a time. Lines that two chunks share are never read to be
// written back: what does not fill 16 bytes is stored element by element.
#pragma once

#include <type_traits>

#include "device.cuh"

namespace dlmt::cuda {

// The bytes of a chunk as loaded: the first byte is byte `shift` of the first word.
template <int V>
struct Raw {
    uint32_t w[V / 4 + 1];
    uint32_t shift;
};

template <int V>
struct Pixels {
    uint32_t w[V / 4];
    DLMT_DEVICE_MEMBER uint8_t operator[](int i) const { return static_cast<uint8_t>(byte_of(w[i / 4], i % 4)); }
};

template <int V>
DLMT_DEVICE Raw<V> load_aligned(const uint8_t* at) {
    Raw<V> raw;
    raw.shift = 0;
    raw.w[V / 4] = 0;
    if constexpr (V == 16) {
        const Words4 words = load<Words4>(at);
        for (int i = 0; i < 4; ++i) raw.w[i] = words.w[i];
    } else if constexpr (V == 8) {
        const Words2 words = load<Words2>(at);
        raw.w[0] = words.w[0], raw.w[1] = words.w[1];
    } else {
        raw.w[0] = load<uint32_t>(at);
    }
    return raw;
}

// The first `count` bytes, one by one; 0 beyond.
template <int V>
DLMT_DEVICE Raw<V> load_bytes(const uint8_t* at, int count) {
    Raw<V> raw;
    raw.shift = 0;
    for (int i = 0; i <= V / 4; ++i) raw.w[i] = 0;
#pragma unroll
    for (int i = 0; i < V; ++i) {
        if (i < count) raw.w[i / 4] |= static_cast<uint32_t>(load<uint8_t>(at + i)) << (8 * (i % 4));
    }
    return raw;
}

// The bytes at any address; the words they lie in are read whole where those lie in [begin, end).
template <int V>
DLMT_DEVICE Raw<V> load_anywhere(const uint8_t* at, int count, const uint8_t* begin, const uint8_t* end) {
    const uint32_t past = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(at) & 3);
    const uint8_t* from = at - past;
    if (from < begin || end - from < V + 4) return load_bytes<V>(at, count);
    Raw<V> raw;
    raw.shift = 8 * past;
#pragma unroll
    for (int i = 0; i <= V / 4; ++i) raw.w[i] = load<uint32_t>(from + 4 * i);
    return raw;
}

template <int V, bool kAligned>
DLMT_DEVICE Pixels<V> pixels_of(const Raw<V>& raw) {
    Pixels<V> pixels;
#pragma unroll
    for (int i = 0; i < V / 4; ++i) pixels.w[i] = kAligned ? raw.w[i] : funnel(raw.w[i], raw.w[i + 1], raw.shift);
    return pixels;
}

// 16 bytes of results.
using Results = Words4;

// The bits of an element.
template <class T>
using Bits = std::conditional_t<sizeof(T) == 1, uint8_t, std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>>;

// The elements [first, last) of `results`, one by one, where element 0 belongs at `at`.
template <class T>
DLMT_DEVICE void store_elements(uint8_t* at, const Results& results, int first, int last) {
    constexpr int kSize = sizeof(T), kPerWord = 4 / kSize;
#pragma unroll
    for (int i = 0; i < 16 / kSize; ++i) {
        const uint32_t word = results.w[i / kPerWord] >> (8 * kSize * (i % kPerWord));
        if (i >= first && i < last) store<Bits<T>>(at + i * kSize, static_cast<Bits<T>>(word));
    }
}

// The 16 bytes from byte 16 - back (back in 0..15) of (below, own).
DLMT_DEVICE Results window_of(const Results& below, const Results& own, uint32_t back) {
    const uint32_t from = 16 - back, words = from / 4, shift = 8 * (from % 4);
    uint32_t x[9];
    for (int i = 0; i < 4; ++i) x[i] = below.w[i], x[i + 4] = own.w[i];
    x[8] = 0;
#pragma unroll
    for (int i = 0; i < 5; ++i) x[i] = words & 4 ? x[i + 4] : x[i];
    // Of words 5 to 7 only those below 4 + 3 can be asked for, and then bit 4 of `words` is clear.
#pragma unroll
    for (int i = 0; i < 6; ++i) x[i] = words & 2 ? x[i + 2] : x[i];
#pragma unroll
    for (int i = 0; i < 5; ++i) x[i] = words & 1 ? x[i + 1] : x[i];
    Results window;
#pragma unroll
    for (int i = 0; i < 4; ++i) window.w[i] = funnel(x[i], x[i + 1], shift);
    return window;
}

// Every lane of a warp stores the results of the chunk that follows its lower neighbour's. `left` is how many elements
// of the row there are from this chunk on, none where it is not positive.
template <class T>
DLMT_DEVICE void store_anywhere(uint8_t* at, const Results& own, int left) {
    constexpr int kSize = sizeof(T);
    const int back = static_cast<int>(reinterpret_cast<uintptr_t>(at) & 15);  // the same in every lane
    Results below;
    for (int i = 0; i < 4; ++i) below.w[i] = from_lane_below(own.w[i]);
    const int lane = static_cast<int>(thread_index() % 32);
    // In bytes from `at`, this lane answers for [begin, end) of the 16 aligned bytes that begin at -back.
    const int begin = lane == 0 ? 0 : -back;
    const int row_end = (left < -16 ? -16 : left > 16 ? 16 : left) * kSize;
    const int end = row_end < 16 - back ? row_end : 16 - back;
    if (begin < end) {
        const Results window = window_of(below, own, static_cast<uint32_t>(back));
        if (begin == -back && end == 16 - back) {
            store<Words4>(at - back, window);
        } else {
            store_elements<T>(at - back, window, (begin + back) / kSize, (end + back) / kSize);
        }
    }
    if (lane == 31 && row_end > 16 - back) {  // what no lane above takes
        const Results rest = window_of(own, Results{}, static_cast<uint32_t>(back));
        const int last = (row_end < 16 ? row_end : 16) - (16 - back);
        store_elements<T>(at + 16 - back, rest, 0, last / kSize);
    }
}

}  // namespace dlmt::cuda
