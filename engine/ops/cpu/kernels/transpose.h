// Sixteen keys side by side: [D][16], so that a query scores sixteen keys at once.
#pragma once

#include <cstdint>

#include "simd.h"

namespace fastslow {

#if defined(FASTSLOW_AVX512)
// A 16 x 16 block of 32-bit words, rows from pointers; to[i] is column i.
static inline void transpose_words(const void* const* rows, size_t offset, __m512i* to) {
    __m512i r[16], t[16];
    UNROLL for (int i = 0; i < 16; i++)
        r[i] = _mm512_loadu_si512((const char*)rows[i] + offset);
    UNROLL for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        to[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        to[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        to[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        to[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}
#endif

static inline void transpose(const float* const* keys, int dim, float* to) {
    int d = 0;
#if defined(FASTSLOW_AVX512)
    for (; d + 16 <= dim; d += 16) {
        __m512i columns[16];
        transpose_words((const void* const*)keys, sizeof(float) * d, columns);
        UNROLL for (int i = 0; i < 16; i++) store(to + (d + i) * 16, columns[i]);
    }
#endif
    for (int k = 0; k < 16; k++)
        for (int i = d; i < dim; i++) to[i * 16 + k] = keys[k][i];
}

static inline void transpose(const uint16_t* const* keys, int dim, float* to) {
    int d = 0;
#if defined(FASTSLOW_AVX512)
    for (; d + 32 <= dim; d += 32) {
        __m512i columns[16];  // each word two neighbours of one key
        transpose_words((const void* const*)keys, sizeof(uint16_t) * d, columns);
        UNROLL for (int i = 0; i < 16; i++) {
            store(to + (d + 2 * i) * 16, (vu)columns[i] << 16);
            store(to + (d + 2 * i + 1) * 16, (vu)columns[i] & splat(0xffff0000u));
        }
    }
#endif
    for (int k = 0; k < 16; k++)
        for (int i = d; i < dim; i++) to[i * 16 + k] = widen(keys[k][i]);
}

// The pairs of a bfloat16 dot instruction as they are: [D / 2][16] words. D is even.
static inline void transpose_pairs(const uint16_t* const* keys, int dim, uint32_t* to) {
    int d = 0;
#if defined(FASTSLOW_AVX512)
    for (; d + 32 <= dim; d += 32) {
        __m512i columns[16];
        transpose_words((const void* const*)keys, sizeof(uint16_t) * d, columns);
        UNROLL for (int i = 0; i < 16; i++) store(to + (d / 2 + i) * 16, columns[i]);
    }
#endif
    for (int k = 0; k < 16; k++)
        for (int i = d; i < dim; i += 2) std::memcpy(to + i / 2 * 16 + k, keys[k] + i, 4);
}

}  // namespace fastslow
