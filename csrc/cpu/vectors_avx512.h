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

DLMT_INLINE void prefetch(const void* from) { _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T0); }

// A quarter of a vector of bytes, each widened to 32 bits.
DLMT_INLINE Bytes widen4(const uint8_t* from) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
DLMT_INLINE Bytes add32(Bytes x, Bytes y) { return _mm512_add_epi32(x, y); }
DLMT_INLINE Bytes mul32(Bytes x, Bytes y) { return _mm512_mullo_epi32(x, y); }
DLMT_INLINE Bytes top_byte(Bytes x) { return _mm512_srli_epi32(x, 24); }

// Four vectors of 32-bit values up to 255, as bytes. Packing works within 128 bits, so 32-bit groups are put in order.
DLMT_INLINE Bytes narrow4(Bytes x0, Bytes x1, Bytes x2, Bytes x3) {
    const Bytes mixed = _mm512_packus_epi16(_mm512_packus_epi32(x0, x1), _mm512_packus_epi32(x2, x3));
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), mixed);
}

DLMT_INLINE Floats load_floats(const float* from) { return _mm512_loadu_ps(from); }
DLMT_INLINE Floats all(float x) { return _mm512_set1_ps(x); }
DLMT_INLINE Floats add(Floats x, Floats y) { return _mm512_add_ps(x, y); }
DLMT_INLINE Floats mul(Floats x, Floats y) { return _mm512_mul_ps(x, y); }
// For values where both the product and the sum are exact, so that one rounding or two are the same.
DLMT_INLINE Floats exact_mul_add(Floats x, Floats y, Floats z) { return _mm512_fmadd_ps(x, y, z); }
DLMT_INLINE Floats to_floats(Bytes x) { return _mm512_cvtepi32_ps(x); }
DLMT_INLINE Bytes bytes_of_floats(Floats x) { return _mm512_castps_si512(x); }

}  // namespace
}  // namespace avx512
}  // namespace dlmt
