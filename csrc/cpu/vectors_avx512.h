// Vectors of the avx512 level, for the loops that say more than a compiler finds: the same names as in
// vectors_avx2.h, one instruction each. Included inside the target region.

#define DLMT_VECTORS

namespace dlmt {
namespace avx512 {
namespace {

constexpr int64_t kBytes = 64;  // in one vector
using Bytes = __m512i;
using Floats = __m512;

DLMT_INLINE Bytes load(const void* from) { return _mm512_loadu_si512(from); }
DLMT_INLINE void store(void* to, Bytes x) { _mm512_storeu_si512(to, x); }
DLMT_INLINE void stream(void* to, Bytes x) { _mm512_stream_si512(static_cast<__m512i*>(to), x); }
DLMT_INLINE void finish_streams() { _mm_sfence(); }

// A quarter of a vector of bytes, each widened to 32 bits.
DLMT_INLINE Bytes widen4(const uint8_t* from) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
DLMT_INLINE Floats to_floats(Bytes x) { return _mm512_cvtepi32_ps(x); }
DLMT_INLINE Bytes bytes_of_floats(Floats x) { return _mm512_castps_si512(x); }

}  // namespace
}  // namespace avx512
}  // namespace dlmt
