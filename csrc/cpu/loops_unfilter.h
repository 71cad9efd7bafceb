// Undoing the filters of PNG's rows (ISO/IEC 15948, 9.2 to 9.4). Included once per instruction set, as loops.h and
// under the same rules. A byte is predicted from those to the left, above, and above to the left, so that positions of
// a row come one after the other: what counts is the length of that chain.

namespace dlmt {
namespace DLMT_LEVEL {
namespace {

// The channels of one pixel in 16 bits each; the lanes past them hold anything.
typedef int16_t Channels __attribute__((vector_size(16)));
typedef uint8_t NarrowChannels __attribute__((vector_size(8)));

// Reads 4 bytes.
DLMT_INLINE Channels channels_at(const uint8_t* from) {
    NarrowChannels four = {};
    __builtin_memcpy(&four, from, 4);
    return __builtin_convertvector(four, Channels);
}

// Writes 4 bytes: a fourth one that the next pixel overwrites.
DLMT_INLINE void put_channels(uint8_t* to, Channels x) {
    const NarrowChannels four = __builtin_convertvector(x, NarrowChannels);
    __builtin_memcpy(to, &four, 4);
}

DLMT_INLINE Channels magnitude(Channels x) { return x > -x ? x : -x; }

DLMT_INLINE int nearest(int left, int above, int corner) {
    const int towards_left = above - corner, towards_above = left - corner,
              towards_corner = towards_left + towards_above;
    const int l = towards_left < 0 ? -towards_left : towards_left;
    const int a = towards_above < 0 ? -towards_above : towards_above;
    const int c = towards_corner < 0 ? -towards_corner : towards_corner;
    return l <= a && l <= c ? left : (a <= c ? above : corner);
}

template <int kChannels>
void unfilter_sub(const uint8_t* __restrict from, uint8_t* __restrict to, int64_t count) {
    uint8_t left[kChannels] = {};
    for (int64_t i = 0; i < count; i += kChannels) {
        for (int c = 0; c < kChannels; ++c) {
            left[c] = static_cast<uint8_t>(left[c] + from[i + c]);
            to[i + c] = left[c];
        }
    }
}

inline void unfilter_up(const uint8_t* __restrict from, const uint8_t* __restrict above, uint8_t* __restrict to,
                        int64_t count) {
    DLMT_INDEPENDENT
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<uint8_t>(from[i] + above[i]);
}

// `above` is null in the first row.
template <int kChannels, bool kAbove>
void unfilter_average(const uint8_t* __restrict from, const uint8_t* __restrict above, uint8_t* __restrict to,
                      int64_t count) {
    int left[kChannels] = {};
    for (int64_t i = 0; i < count; i += kChannels) {
        for (int c = 0; c < kChannels; ++c) {
            left[c] = (from[i + c] + ((left[c] + (kAbove ? above[i + c] : 0)) >> 1)) & 0xFF;
            to[i + c] = static_cast<uint8_t>(left[c]);
        }
    }
}

template <int kChannels>
void unfilter_paeth(const uint8_t* __restrict from, const uint8_t* __restrict above, uint8_t* __restrict to,
                    int64_t count) {
    int64_t i = 0;
    int left[kChannels] = {}, corner[kChannels] = {};
    if (kChannels == 3 && count > 3) {  // in vectors, but for the last pixel: they touch a byte past their own
        Channels l = {}, c = {};
        for (; i + 3 < count; i += 3) {
            const Channels a = channels_at(above + i), towards_left = a - c, towards_above = l - c;
            const Channels to_left = magnitude(towards_left), to_above = magnitude(towards_above);
            const Channels to_corner = magnitude(towards_left + towards_above);
            const Channels least = to_left < to_above ? to_left : to_above;
            const Channels of_two = to_left <= to_above ? l : a;
            const Channels predicted = least <= to_corner ? of_two : c;
            l = (channels_at(from + i) + predicted) & 0xFF;
            c = a;
            put_channels(to + i, l);
        }
        for (int k = 0; k < kChannels; ++k) left[k] = to[i - 3 + k], corner[k] = above[i - 3 + k];
    }
    for (; i < count; i += kChannels) {
        for (int c = 0; c < kChannels; ++c) {
            left[c] = (from[i + c] + nearest(left[c], above[i + c], corner[c])) & 0xFF;
            corner[c] = above[i + c];
            to[i + c] = static_cast<uint8_t>(left[c]);
        }
    }
}

// In the first row nothing is above: "up" predicts nothing there, and "Paeth" what "sub" does.
template <int kChannels>
bool unfilter_rows(const uint8_t* from, uint8_t* to, int64_t height, int64_t count) {
    const uint8_t* above = nullptr;
    for (int64_t y = 0; y < height; ++y, from += count, above = to, to += count) {
        const int filter = *from++;
        if (filter > 4) return false;
        if (filter == 0 || (filter == 2 && above == nullptr)) {
            __builtin_memcpy(to, from, static_cast<size_t>(count));
        } else if (filter == 1 || (filter == 4 && above == nullptr)) {
            unfilter_sub<kChannels>(from, to, count);
        } else if (filter == 2) {
            unfilter_up(from, above, to, count);
        } else if (filter == 4) {
            unfilter_paeth<kChannels>(from, above, to, count);
        } else if (above == nullptr) {
            unfilter_average<kChannels, false>(from, above, to, count);
        } else {
            unfilter_average<kChannels, true>(from, above, to, count);
        }
    }
    return true;
}

bool unfilter(const uint8_t* from, uint8_t* to, int64_t height, int64_t width, int channels) {
    const int64_t count = width * channels;
    return channels == 3 ? unfilter_rows<3>(from, to, height, count) : unfilter_rows<1>(from, to, height, count);
}

}  // namespace
}  // namespace DLMT_LEVEL
}  // namespace dlmt
