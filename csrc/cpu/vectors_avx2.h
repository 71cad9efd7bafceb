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

DLMT_INLINE void prefetch(const void* from) { _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T0); }

// A quarter of a vector of bytes, each widened to 32 bits.
DLMT_INLINE Bytes widen4(const uint8_t* from) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
}
DLMT_INLINE Bytes add32(Bytes x, Bytes y) { return _mm256_add_epi32(x, y); }
DLMT_INLINE Bytes mul32(Bytes x, Bytes y) { return _mm256_mullo_epi32(x, y); }
DLMT_INLINE Bytes top_byte(Bytes x) { return _mm256_srli_epi32(x, 24); }

// Four vectors of 32-bit values up to 255, as bytes. Packing works within 128 bits, so 32-bit groups are put in order.
DLMT_INLINE Bytes narrow4(Bytes x0, Bytes x1, Bytes x2, Bytes x3) {
    const Bytes mixed = _mm256_packus_epi16(_mm256_packus_epi32(x0, x1), _mm256_packus_epi32(x2, x3));
    return _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

DLMT_INLINE Floats load_floats(const float* from) { return _mm256_loadu_ps(from); }
DLMT_INLINE Floats all(float x) { return _mm256_set1_ps(x); }
DLMT_INLINE Floats add(Floats x, Floats y) { return _mm256_add_ps(x, y); }
DLMT_INLINE Floats mul(Floats x, Floats y) { return _mm256_mul_ps(x, y); }
// For values where both the product and the sum are exact.
DLMT_INLINE Floats exact_mul_add(Floats x, Floats y, Floats z) { return add(mul(x, y), z); }
DLMT_INLINE Floats to_floats(Bytes x) { return _mm256_cvtepi32_ps(x); }
DLMT_INLINE Bytes bytes_of_floats(Floats x) { return _mm256_castps_si256(x); }

}  // namespace
}  // namespace avx2
}  // namespace dlmt
