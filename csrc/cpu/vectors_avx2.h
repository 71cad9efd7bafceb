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

// The highest byte of each 32-bit lane. Packing works within 128 bits, so 32-bit groups are put in order.
DLMT_INLINE Bytes top_bytes(Bytes x0, Bytes x1, Bytes x2, Bytes x3) {
    const Bytes low = _mm256_packus_epi32(_mm256_srli_epi32(x0, 24), _mm256_srli_epi32(x1, 24));
    const Bytes high = _mm256_packus_epi32(_mm256_srli_epi32(x2, 24), _mm256_srli_epi32(x3, 24));
    return _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

DLMT_INLINE Floats load_floats(const float* from) { return _mm256_loadu_ps(from); }
DLMT_INLINE Floats all(float x) { return _mm256_set1_ps(x); }
DLMT_INLINE Floats add(Floats x, Floats y) { return _mm256_add_ps(x, y); }
DLMT_INLINE Floats mul(Floats x, Floats y) { return _mm256_mul_ps(x, y); }
// For values where both the product and the sum are exact.
DLMT_INLINE Floats exact_mul_add(Floats x, Floats y, Floats z) { return add(mul(x, y), z); }
DLMT_INLINE Floats to_floats(Bytes x) { return _mm256_cvtepi32_ps(x); }
DLMT_INLINE Bytes bytes_of_floats(Floats x) { return _mm256_castps_si256(x); }

// 16-bit lanes. `widen2` takes half a vector of bytes.
DLMT_INLINE Bytes widen2(const uint8_t* from) {
    return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
DLMT_INLINE Bytes all16(uint16_t x) { return _mm256_set1_epi16(static_cast<int16_t>(x)); }
DLMT_INLINE Bytes add16(Bytes x, Bytes y) { return _mm256_add_epi16(x, y); }
DLMT_INLINE Bytes sub16(Bytes x, Bytes y) { return _mm256_sub_epi16(x, y); }
DLMT_INLINE Bytes mul16(Bytes x, Bytes y) { return _mm256_mullo_epi16(x, y); }
DLMT_INLINE Bytes min16(Bytes x, Bytes y) { return _mm256_min_epu16(x, y); }
DLMT_INLINE Bytes max16(Bytes x, Bytes y) { return _mm256_max_epu16(x, y); }

DLMT_INLINE Bytes not_bits(Bytes x) { return _mm256_xor_si256(x, all16(0xFFFF)); }
// The least of all 16-bit lanes.
DLMT_INLINE int32_t least16(Bytes x) {
    const __m128i half = _mm_min_epu16(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    return _mm_cvtsi128_si32(_mm_minpos_epu16(half)) & 0xFFFF;
}

// 32-bit lanes of x below y, from the lower and the upper half of each 128 bits.
DLMT_INLINE Bytes low_pairs(Bytes x, Bytes y) { return _mm256_unpacklo_epi16(x, y); }
DLMT_INLINE Bytes high_pairs(Bytes x, Bytes y) { return _mm256_unpackhi_epi16(x, y); }

DLMT_INLINE Floats floats_of_bytes(Bytes x) { return _mm256_castsi256_ps(x); }
// (x - 2**23) * y in one rounding, for integers x of 2**23 and more: the difference is exact.
DLMT_INLINE Floats shifted_mul(Floats x, Floats y, Floats) { return mul(_mm256_sub_ps(x, all(8388608.0f)), y); }
// Values below 255.5 to the nearest integer, ties to even, as bytes; each pair in the lanes of low_pairs and
// high_pairs.
DLMT_INLINE Bytes rounded_bytes(Floats low0, Floats high0, Floats low1, Floats high1) {
    const Bytes half0 = _mm256_packus_epi32(_mm256_cvtps_epi32(low0), _mm256_cvtps_epi32(high0));
    const Bytes half1 = _mm256_packus_epi32(_mm256_cvtps_epi32(low1), _mm256_cvtps_epi32(high1));
    return _mm256_permute4x64_epi64(_mm256_packus_epi16(half0, half1), 0xD8);
}

// A mask of the first `count` bytes (less than kBytes), and what it selects: x there, y elsewhere.
DLMT_INLINE Bytes first_bytes(int64_t count) {
    const Bytes numbers = _mm256_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
                                           22, 23, 24, 25, 26, 27, 28, 29, 30, 31);
    return _mm256_cmpgt_epi8(_mm256_set1_epi8(static_cast<char>(count)), numbers);
}
DLMT_INLINE Bytes select(Bytes mask, Bytes x, Bytes y) { return _mm256_blendv_epi8(y, x, mask); }

// A quarter of a vector's positions in 16-bit words, widened to 32 bits; shifts; a table of 16.
DLMT_INLINE Bytes widen_words(const uint16_t* from) {
    return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
DLMT_INLINE Bytes all32(uint32_t x) { return _mm256_set1_epi32(static_cast<int32_t>(x)); }
DLMT_INLINE Bytes sub32(Bytes x, Bytes y) { return _mm256_sub_epi32(x, y); }
DLMT_INLINE Bytes and_bits(Bytes x, Bytes y) { return _mm256_and_si256(x, y); }
template <int kCount>
DLMT_INLINE Bytes shift_right(Bytes x) {
    return _mm256_srli_epi32(x, kCount);
}
template <int kCount>
DLMT_INLINE Bytes shift_right16(Bytes x) {
    return _mm256_srli_epi16(x, kCount);
}
DLMT_INLINE Bytes shift_right_signed(Bytes x, __m128i count) { return _mm256_sra_epi32(x, count); }

// 32-bit values by the low four bits of each lane: bit 3 chooses the half.
struct Table {
    Bytes low, high;
    DLMT_INLINE explicit Table(const void* sixteen)
        : low(load(sixteen)), high(load(static_cast<const char*>(sixteen) + kBytes)) {}
    DLMT_INLINE Bytes operator[](Bytes index) const {
        const Floats x = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(low, index));
        const Floats y = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(high, index));
        return _mm256_castps_si256(_mm256_blendv_ps(x, y, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28))));
    }
};

}  // namespace
}  // namespace avx2
}  // namespace dlmt
