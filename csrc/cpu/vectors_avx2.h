// Vectors of the avx2 level; see vectors_avx512.h.

#define DLMT_VECTORS

namespace dlmt {
namespace avx2 {
namespace {

constexpr int64_t kBytes = 32;  // in one vector
using Bytes = __m256i;
using Floats = __m256;

DLMT_INLINE Bytes load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
DLMT_INLINE void store(void* to, Bytes x) { _mm256_storeu_si256(static_cast<__m256i*>(to), x); }
DLMT_INLINE void stream(void* to, Bytes x) { _mm256_stream_si256(static_cast<__m256i*>(to), x); }
DLMT_INLINE void finish_streams() { _mm_sfence(); }

// A quarter of a vector of bytes, each widened to 32 bits.
DLMT_INLINE Bytes widen4(const uint8_t* from) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
}
DLMT_INLINE Floats to_floats(Bytes x) { return _mm256_cvtepi32_ps(x); }
DLMT_INLINE Bytes bytes_of_floats(Floats x) { return _mm256_castps_si256(x); }

}  // namespace
}  // namespace avx2
}  // namespace dlmt
