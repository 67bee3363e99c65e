// Rows for the integer weights of GGUF's blocks, one kind for all of them: the runs of a matrix may be in
// several formats and still read the same rows.
#pragma once

#include "byte_tiles.h"

namespace fastslow {

// 32 inputs in int8, their scale, scale times sum, and the sums of both halves, negated.
struct FileRow {
    static constexpr int QUAD = 4;
    static constexpr int SCALE = BLOCK;
    static constexpr int SCALED = SCALE + 4;
    static constexpr int LESS = SCALED + 4;
    static constexpr int BYTES = LESS + 2 * 4;
    static constexpr int STEP = 2 * BLOCK;  // inputs: some formats read two blocks at a time

    static size_t row_bytes(int inputs) { return to64((size_t)BYTES * (padded(inputs, STEP) / BLOCK)); }

    static void prepare(uint8_t* row, const float* x, int inputs) {
        for (int k = 0; k < padded(inputs, STEP); k += BLOCK, row += BYTES) {
            float rest[BLOCK] = {};
            const float* from = x + k;
            if (inputs - k < BLOCK) {
                if (k < inputs) std::memcpy(rest, from, 4 * (size_t)(inputs - k));
                from = rest;
            }
            const int32_t total = write_block<FileRow>(row, from);
            int32_t first = 0;
            for (int i = 0; i < HALF; i++) first += (int8_t)row[i];
            store(row + SCALED, load<float>(row + SCALE) * (float)total);
            store(row + LESS, -first);
            store(row + LESS + 4, first - total);
        }
    }
};

// W signed bytes as words; compilers take their own conversion apart.
static inline vi load_bytes(const uint8_t* at) {
#if defined(FASTSLOW_AVX512)
    return (vi)_mm512_cvtepi8_epi32(load<__m128i>(at));
#elif defined(FASTSLOW_AVX2)
    return (vi)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)at));
#elif defined(FASTSLOW_NEON)
    const int8x8_t bytes = (int8x8_t)vdup_n_s32(load<int32_t>(at));
    return (vi)vmovl_s16(vget_low_s16(vmovl_s8(bytes)));
#else
    typedef int8_t vb __attribute__((vector_size(W)));
    return __builtin_convertvector(load<vb>(at), vi);
#endif
}

#if !defined(FASTSLOW_VNNI) && !defined(FASTSLOW_NEON) && !defined(FASTSLOW_AVX2)
typedef int16_t vs __attribute__((vector_size(4 * W)));

// A quad of bytes times a quad of inputs, by way of 16 bits.
static inline vi dot_wide(vi sum, vu weights, vi inputs) {
    const vi even = (vi)((vs)inputs << 8 >> 8), odd = (vi)((vs)inputs >> 8);
    return sum + dot_halves((vi)(weights & 0x00ff00ffu), even) +
           dot_halves((vi)(weights >> 8 & 0x00ff00ffu), odd);
}
#endif

// sum + two quads of unsigned weights times their inputs; narrow weights are 63 at most.
template <bool WIDE> INLINE vi add_quads(vi sum, vu low, vu high, const uint8_t* x) {
#if defined(FASTSLOW_VNNI)
    return dot_bytes(dot_bytes(sum, low, x), high, x + FileRow::QUAD);
#elif defined(FASTSLOW_NEON)
    if constexpr (!WIDE) return dot_both(sum, low, high, x);
    return dot_bytes(dot_bytes(sum, to_dot(low), x), to_dot(high), x + FileRow::QUAD);
#else
    const vi first = splat(load<int32_t>(x)), second = splat(load<int32_t>(x + FileRow::QUAD));
#if defined(FASTSLOW_AVX512)
    if constexpr (!WIDE)
        return sum + dot_halves((vi)((vs)_mm512_maddubs_epi16((__m512i)low, (__m512i)first) +
                                     (vs)_mm512_maddubs_epi16((__m512i)high, (__m512i)second)),
                                splat(0x00010001));
#elif defined(FASTSLOW_AVX2)
    const vi ones = splat(0x00010001);
    if constexpr (!WIDE) return sum + dot_halves((vi)((vs)dot_pairs(low, first) + (vs)dot_pairs(high, second)), ones);
    return sum + dot_halves(dot_signed(low ^ 0x80808080u, first), ones) +
           dot_halves(dot_signed(high ^ 0x80808080u, second), ones);
#endif
#if !defined(FASTSLOW_AVX2)
    return dot_wide(dot_wide(sum, low, first), high, second);
#endif
#endif
}

}  // namespace fastslow
