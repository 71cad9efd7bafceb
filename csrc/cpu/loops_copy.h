// Moving bytes and nothing else. Included once per instruction set, as loops.h and under the same rules.

namespace dlmt {
namespace DLMT_LEVEL {
namespace {

void copy(const uint8_t* from, uint8_t* to, int64_t count, bool streaming) {
    int64_t done = 0;
#if defined(DLMT_VECTORS)
    if (streaming) {
        const int64_t head = unaligned(to, count);
        __builtin_memcpy(to, from, static_cast<size_t>(head));
        for (done = head; done + 4 * kBytes <= count; done += 4 * kBytes) {
            const Bytes x0 = load(from + done), x1 = load(from + done + kBytes);
            const Bytes x2 = load(from + done + 2 * kBytes), x3 = load(from + done + 3 * kBytes);
            stream(to + done, x0), stream(to + done + kBytes, x1);
            stream(to + done + 2 * kBytes, x2), stream(to + done + 3 * kBytes, x3);
        }
        finish_streams();
    }
#endif
    (void)streaming;
    __builtin_memcpy(to + done, from + done, static_cast<size_t>(count - done));
}

void convert(const uint8_t* from, float* to, int64_t count, bool streaming) {
    int64_t done = 0;
#if defined(DLMT_VECTORS)
    if (streaming) {
        for (const int64_t head = unaligned(to, count); done < head; ++done) to[done] = static_cast<float>(from[done]);
        for (; done + kBytes <= count; done += kBytes) {
            for (int64_t i = 0; i < kBytes; i += kBytes / 4) {
                stream(to + done + i, bytes_of_floats(to_floats(widen4(from + done + i))));
            }
        }
        finish_streams();
    }
#endif
    (void)streaming;
    DLMT_INDEPENDENT
    for (int64_t i = done; i < count; ++i) to[i] = static_cast<float>(from[i]);
}

}  // namespace
}  // namespace DLMT_LEVEL
}  // namespace dlmt
