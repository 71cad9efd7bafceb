// Vectors of the avx512 levels, for the loops that say more than a compiler finds: the same names as in
// vectors_avx2.h, most of them one instruction. DLMT_VBMI says whether bytes can be chosen from two vectors at once.
// Included inside the target region.

#define DLMT_VECTORS

namespace dlmt {
namespace DLMT_LEVEL {
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

#if defined(DLMT_VBMI)
// 32 bytes of x0 and x1, then 32 of x2 and x3, each half chosen by the same half of `places`. Where its mask is 0 the
// first instruction leaves the second one's places alone, and the second one the first one's bytes.
DLMT_INLINE Bytes gather_bytes(Bytes x0, Bytes x1, Bytes x2, Bytes x3, Bytes places) {
    const __mmask64 low = 0xFFFFFFFF;
    return _mm512_mask2_permutex2var_epi8(x2, _mm512_mask2_permutex2var_epi8(x0, places, low, x1), ~low, x3);
}

// The highest byte of each 32-bit lane.
DLMT_INLINE Bytes top_bytes(Bytes x0, Bytes x1, Bytes x2, Bytes x3) {
    const Bytes places =
        _mm512_broadcast_i64x4(_mm256_setr_epi8(3, 7, 11, 15, 19, 23, 27, 31, 35, 39, 43, 47, 51, 55, 59, 63, 67, 71,
                                                75, 79, 83, 87, 91, 95, 99, 103, 107, 111, 115, 119, 123, 127));
    return gather_bytes(x0, x1, x2, x3, places);
}
#else
// The highest byte of each 32-bit lane. Packing works within 128 bits, so 32-bit groups are put in order.
DLMT_INLINE Bytes top_bytes(Bytes x0, Bytes x1, Bytes x2, Bytes x3) {
    const Bytes low = _mm512_packus_epi32(_mm512_srli_epi32(x0, 24), _mm512_srli_epi32(x1, 24));
    const Bytes high = _mm512_packus_epi32(_mm512_srli_epi32(x2, 24), _mm512_srli_epi32(x3, 24));
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
                                    _mm512_packus_epi16(low, high));
}
#endif

DLMT_INLINE Floats load_floats(const float* from) { return _mm512_loadu_ps(from); }
DLMT_INLINE Floats all(float x) { return _mm512_set1_ps(x); }
DLMT_INLINE Floats add(Floats x, Floats y) { return _mm512_add_ps(x, y); }
DLMT_INLINE Floats mul(Floats x, Floats y) { return _mm512_mul_ps(x, y); }
// For values where both the product and the sum are exact, so that one rounding or two are the same.
DLMT_INLINE Floats exact_mul_add(Floats x, Floats y, Floats z) { return _mm512_fmadd_ps(x, y, z); }
DLMT_INLINE Floats to_floats(Bytes x) { return _mm512_cvtepi32_ps(x); }
DLMT_INLINE Bytes bytes_of_floats(Floats x) { return _mm512_castps_si512(x); }

// 16-bit lanes. `widen2` takes half a vector of bytes.
DLMT_INLINE Bytes widen2(const uint8_t* from) {
    return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
DLMT_INLINE Bytes all16(uint16_t x) { return _mm512_set1_epi16(static_cast<int16_t>(x)); }
DLMT_INLINE Bytes add16(Bytes x, Bytes y) { return _mm512_add_epi16(x, y); }
DLMT_INLINE Bytes sub16(Bytes x, Bytes y) { return _mm512_sub_epi16(x, y); }
DLMT_INLINE Bytes mul16(Bytes x, Bytes y) { return _mm512_mullo_epi16(x, y); }
DLMT_INLINE Bytes min16(Bytes x, Bytes y) { return _mm512_min_epu16(x, y); }
DLMT_INLINE Bytes max16(Bytes x, Bytes y) { return _mm512_max_epu16(x, y); }

DLMT_INLINE Bytes not_bits(Bytes x) { return _mm512_xor_si512(x, all16(0xFFFF)); }
// The least of all 16-bit lanes.
DLMT_INLINE int32_t least16(Bytes x) {
    const __m256i half = _mm256_min_epu16(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    const __m128i quarter = _mm_min_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    return _mm_cvtsi128_si32(_mm_minpos_epu16(quarter)) & 0xFFFF;
}

// 32-bit lanes of x below y, from the lower and the upper half of each 128 bits.
DLMT_INLINE Bytes low_pairs(Bytes x, Bytes y) { return _mm512_unpacklo_epi16(x, y); }
DLMT_INLINE Bytes high_pairs(Bytes x, Bytes y) { return _mm512_unpackhi_epi16(x, y); }

DLMT_INLINE Floats floats_of_bytes(Bytes x) { return _mm512_castsi512_ps(x); }
// (x - 2**23) * y in one rounding, for integers x of 2**23 and more; `shift` is -2**23 * y.
DLMT_INLINE Floats shifted_mul(Floats x, Floats y, Floats shift) { return _mm512_fmadd_ps(x, y, shift); }

#if defined(DLMT_VBMI)
// Values below 255.5 to the nearest integer, ties to even, as bytes; each pair in the lanes of low_pairs and
// high_pairs. The sum with 1.5 * 2**23 is rounded to an integer and holds it in its lowest byte.
DLMT_INLINE Bytes rounded_bytes(Floats low0, Floats high0, Floats low1, Floats high1) {
    const Floats magic = all(12582912.0f);
    const Bytes places =
        _mm512_broadcast_i64x4(_mm256_setr_epi8(0, 4, 8, 12, 64, 68, 72, 76, 16, 20, 24, 28, 80, 84, 88, 92, 32, 36, 40,
                                                44, 96, 100, 104, 108, 48, 52, 56, 60, 112, 116, 120, 124));
    return gather_bytes(bytes_of_floats(add(low0, magic)), bytes_of_floats(add(high0, magic)),
                        bytes_of_floats(add(low1, magic)), bytes_of_floats(add(high1, magic)), places);
}
#else
// Values below 255.5 to the nearest integer, ties to even, as bytes; each pair in the lanes of low_pairs and
// high_pairs.
DLMT_INLINE Bytes rounded_bytes(Floats low0, Floats high0, Floats low1, Floats high1) {
    const Bytes half0 = _mm512_packus_epi32(_mm512_cvtps_epi32(low0), _mm512_cvtps_epi32(high0));
    const Bytes half1 = _mm512_packus_epi32(_mm512_cvtps_epi32(low1), _mm512_cvtps_epi32(high1));
    return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), _mm512_packus_epi16(half0, half1));
}
#endif

// A mask of the first `count` bytes (less than kBytes), and what it selects: x there, y elsewhere.
DLMT_INLINE __mmask64 first_bytes(int64_t count) { return (uint64_t{1} << count) - 1; }
DLMT_INLINE Bytes select(__mmask64 mask, Bytes x, Bytes y) { return _mm512_mask_blend_epi8(mask, y, x); }

// A quarter of a vector's positions in 16-bit words, widened to 32 bits; shifts; a table of 16.
DLMT_INLINE Bytes widen_words(const uint16_t* from) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
DLMT_INLINE Bytes all32(uint32_t x) { return _mm512_set1_epi32(static_cast<int32_t>(x)); }
DLMT_INLINE Bytes sub32(Bytes x, Bytes y) { return _mm512_sub_epi32(x, y); }
DLMT_INLINE Bytes and_bits(Bytes x, Bytes y) { return _mm512_and_si512(x, y); }
template <int kCount>
DLMT_INLINE Bytes shift_right(Bytes x) {
    return _mm512_srli_epi32(x, kCount);
}
template <int kCount>
DLMT_INLINE Bytes shift_right16(Bytes x) {
    return _mm512_srli_epi16(x, kCount);
}
DLMT_INLINE Bytes shift_right_signed(Bytes x, __m128i count) { return _mm512_sra_epi32(x, count); }

// 32-bit values by the low four bits of each lane.
struct Table {
    Bytes values;
    DLMT_INLINE explicit Table(const void* sixteen) : values(load(sixteen)) {}
    DLMT_INLINE Bytes operator[](Bytes index) const { return _mm512_permutexvar_epi32(index, values); }
};

}  // namespace
}  // namespace DLMT_LEVEL
}  // namespace dlmt
