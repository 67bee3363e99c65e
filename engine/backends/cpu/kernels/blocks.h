// Rows for integer weights: blocks of 32 inputs in int8, each with its own scale.
//
// One scale for a whole row would lose far more: a few large inputs would flatten all others.
// Block: the inputs as 32-bit words of quads, then two words that its format defines.
#pragma once

#include "product.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace fastslow {

constexpr int BLOCK = 32;       // inputs of a block; the last may have half of them
constexpr int HALF = BLOCK / 2;
constexpr int QUADS = BLOCK / 4;

// With this many rows or fewer, sums stay in registers, or nearly; with more, weights do.
#if defined(FASTSLOW_VNNI) || defined(FASTSLOW_NEON)
constexpr int FEW = 8;
#else
constexpr int FEW = 6;
#endif

static inline vf to_float(vi x) { return __builtin_convertvector(x, vf); }
static inline vi splat(int32_t x) { return x + vi{}; }

// Sum of products of the signed 16-bit halves of each lane.
static inline vi dot_halves(vi a, vi b) {
#if defined(FASTSLOW_AVX512)
    return (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(FASTSLOW_AVX2)
    return (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return (vi)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    return ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
}

#if defined(FASTSLOW_AVX512) && defined(FASTSLOW_VNNI)
static inline vi dot_bytes(vi sum, vu weights, const uint8_t* quad) {
    return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)weights, (__m512i)splat(load<int32_t>(quad)));
}
#elif defined(FASTSLOW_VNNI)
static inline vi dot_bytes(vi sum, vu weights, const uint8_t* quad) {
    return (vi)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)weights, (__m256i)splat(load<int32_t>(quad)));
}
#elif defined(FASTSLOW_NEON)
static inline vi dot_bytes(vi sum, vu weights, const uint8_t* quad) {
#if defined(__ARM_FEATURE_DOTPROD)
    const int8x8_t inputs = vcreate_s8(load<uint32_t>(quad));
#if defined(__ARM_FEATURE_MATMUL_INT8)
    return (vi)vusdotq_lane_s32((int32x4_t)sum, (uint8x16_t)weights, inputs, 0);
#else
    return (vi)vdotq_lane_s32((int32x4_t)sum, (int8x16_t)weights, inputs, 0);
#endif
#else
    const int8x16_t w = (int8x16_t)weights, x = (int8x16_t)vdupq_n_s32(load<int32_t>(quad));
    const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(x)), high = vmull_high_s8(w, x);
    return (vi)vpadalq_s16((int32x4_t)sum, vpaddq_s16(low, high));  // two products of bytes fit 16 bits
#endif
}
#endif

#if defined(FASTSLOW_NEON)
// Two quads of weights of 0 to 63: four of their products fit 16 bits, too.
static inline vi dot_both(vi sum, vu low, vu high, const uint8_t* quads) {
#if defined(__ARM_FEATURE_DOTPROD)
    return dot_bytes(dot_bytes(sum, low, quads), high, quads + 4);
#else
    const int8x16_t a = (int8x16_t)low, b = (int8x16_t)high;
    const int8x16_t x = (int8x16_t)vdupq_n_s32(load<int32_t>(quads)), y = (int8x16_t)vdupq_n_s32(load<int32_t>(quads + 4));
    const int16x8_t left = vmlal_s8(vmull_s8(vget_low_s8(a), vget_low_s8(x)), vget_low_s8(b), vget_low_s8(y));
    const int16x8_t right = vmlal_high_s8(vmull_high_s8(a, x), b, y);
    return (vi)vpadalq_s16((int32x4_t)sum, vpaddq_s16(left, right));
#endif
}
#endif

// The upper halves of bytes.
static inline vu upper(vu both) {
#if defined(FASTSLOW_NEON)
    return (vu)vshrq_n_u8((uint8x16_t)both, 4);
#else
    return both >> 4 & 0x0f0f0f0fu;
#endif
}

// What is taken from whole bytes first where instructions multiply signed ones only.
#if defined(FASTSLOW_NEON) && !defined(__ARM_FEATURE_MATMUL_INT8)
constexpr int TAKEN = 128;
#else
constexpr int TAKEN = 0;
#endif
static inline vu to_dot(vu quads) { return TAKEN ? quads ^ 0x80808080u : quads; }

#if defined(FASTSLOW_AVX2) && !defined(FASTSLOW_VNNI)
constexpr int FILE_TAKEN = 128;  // the same of a file's bytes
typedef int16_t vs __attribute__((vector_size(4 * W)));

// Sums of pairs of products, which must fit 16 bits: of unsigned weights, and of signed ones.
static inline vi dot_pairs(vu weights, vi inputs) {
    return (vi)_mm256_maddubs_epi16((__m256i)weights, (__m256i)inputs);
}
static inline vi dot_signed(vu weights, vi inputs) {
    const __m256i w = (__m256i)weights;
    return (vi)_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8((__m256i)inputs, w));
}
#else
constexpr int FILE_TAKEN = TAKEN;
#endif

// What compilers hold in a register here: they would put off the additions of an unrolled loop, and spill what is to
// be added.
static inline void hold(vi& x) {
#if defined(FASTSLOW_AVX2)
    asm("" : "+x"(x));
#endif
}

// Ask for a line once x is there: compilers ask for all lines of an unrolled block at its beginning, where they wait
// for each other. TO_L2: lines that miss hold no place of L1, which formats that take long to unpack wait for.
template <bool TO_L2> static inline void prefetch_after(vi& x, const uint8_t* at) {
#if defined(FASTSLOW_AVX2) || defined(FASTSLOW_AVX512)
    if (TO_L2) asm("prefetcht1 %1" : "+v"(x) : "m"(*at));
    else asm("prefetcht0 %1" : "+v"(x) : "m"(*at));
#else
    (void)x;
    prefetch(at);
#endif
}

// Where a prepared block keeps what: Q bytes for each quad of inputs, then two words.
template <int Q> struct Block {
    static constexpr int QUAD = Q;
    static constexpr int SCALE = QUADS * Q;  // a float
    static constexpr int EXTRA = SCALE + 4;  // the word that the format needs with it
    static constexpr int BYTES = EXTRA + 4;

    static size_t row_bytes(int inputs) {
        return to64((size_t)BYTES * ((inputs + BLOCK - 1) / BLOCK));
    }
};

// Weights of one quad per lane, unsigned, times a quad of inputs in every lane. Without a dot
// product of bytes, inputs are kept as two pairs of 16-bit numbers, (0, 2) and (1, 3): those that
// a mask and a shift part weights into.
#if defined(FASTSLOW_VNNI) || defined(FASTSLOW_NEON)
template <bool WIDE> struct Quads : Block<4> {
    vu quads;
    Quads() {}
    explicit Quads(vu given) : quads(WIDE ? to_dot(given) : given) {}
    vi times(const uint8_t* quad, vi sum) const {
        return dot_bytes(sum, quads, quad);
    }
    static vi join(vi a, vi b) { return a + b; }
    static vi finish(vi sum) { return sum; }
};
typedef Quads<true> Bytes;
typedef Quads<false> Nibbles;

#else
struct Bytes : Block<8> {
    vi even, odd;
    Bytes() {}
    explicit Bytes(vu quads)
        : even((vi)(quads & 0x00ff00ffu)), odd((vi)(quads >> 8 & 0x00ff00ffu)) {}
    vi times(const uint8_t* quad, vi sum) const {
        return sum + dot_halves(even, splat(load<int32_t>(quad))) +
               dot_halves(odd, splat(load<int32_t>(quad + 4)));
    }
    static vi join(vi a, vi b) { return a + b; }
    static vi finish(vi sum) { return sum; }
};
#endif

// The same for weights of 0 to 15. Their products are so small that a whole block's, 8 times
// 2 * 15 * 127, fit 16 bits: the pairs' sums are joined only at its end.
#if !defined(FASTSLOW_VNNI) && (defined(FASTSLOW_AVX512) || defined(FASTSLOW_AVX2))
typedef int16_t vs __attribute__((vector_size(4 * W)));

struct Nibbles : Block<4> {
    vu quads;
    Nibbles() {}
    explicit Nibbles(vu quads) : quads(quads) {}
    vi times(const uint8_t* quad, vi sum) const {
        const vi inputs = splat(load<int32_t>(quad));
#if defined(FASTSLOW_AVX512)
        const vs pairs = (vs)_mm512_maddubs_epi16((__m512i)quads, (__m512i)inputs);
#else
        const vs pairs = (vs)_mm256_maddubs_epi16((__m256i)quads, (__m256i)inputs);
#endif
        return (vi)((vs)sum + pairs);
    }
    static vi join(vi a, vi b) { return (vi)((vs)a + (vs)b); }
    static vi finish(vi sum) { return dot_halves(sum, splat(0x00010001)); }
};
#elif !defined(FASTSLOW_VNNI) && !defined(FASTSLOW_NEON)
typedef Bytes Nibbles;
#endif

// Two quads of weights of 0 to 63, or their halves' sums.
INLINE vi times_both(const Nibbles& low, const Nibbles& high, const uint8_t* x, vi sum) {
#if defined(FASTSLOW_NEON)
    return dot_both(sum, low.quads, high.quads, x);
#else
    return high.times(x + Nibbles::QUAD, low.times(x, sum));
#endif
}

// Unrolling a block's quads makes compilers hoist their loads: where few registers are free, sums
// then spill.
#if (defined(FASTSLOW_AVX512) && defined(FASTSLOW_VNNI)) || defined(FASTSLOW_AVX2)
#define UNROLL_QUADS UNROLL
#else
#define UNROLL_QUADS _Pragma("GCC unroll 1")
#endif

// 127 / largest, or 0 where the largest is so small that this overflows, or is not finite.
static inline float steps(float largest) { return largest > 1e-36f ? 127.0f / largest : 0.0f; }

// The size of a step: 0 where `largest` is too small, not finite where it is not finite.
static inline float step_of(float largest) { return largest <= 1e-36f ? 0.0f : largest / 127.0f; }

static inline int32_t sum(vi v) {
#if defined(FASTSLOW_AVX512)
    return _mm512_reduce_add_epi32((__m512i)v);
#elif defined(FASTSLOW_AVX2)
    __m128i some = _mm_add_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
    some = _mm_add_epi32(some, _mm_unpackhi_epi64(some, some));
    return _mm_cvtsi128_si32(some) + _mm_extract_epi32(some, 1);
#elif defined(FASTSLOW_NEON)
    return vaddvq_s32((int32x4_t)v);
#else
    int32_t total = 0;
    for (int i = 0; i < W; i++) total += v[i];
    return total;
#endif
}

static inline int32_t largest(vi v) {
#if defined(FASTSLOW_AVX512)
    return _mm512_reduce_max_epi32((__m512i)v);
#elif defined(FASTSLOW_AVX2)
    __m128i some = _mm_max_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
    some = _mm_max_epi32(some, _mm_unpackhi_epi64(some, some));
    return _mm_cvtsi128_si32(_mm_max_epi32(some, _mm_shuffle_epi32(some, 1)));
#elif defined(FASTSLOW_NEON)
    return vmaxvq_s32((int32x4_t)v);
#else
    int32_t top = v[0];
    for (int i = 1; i < W; i++) top = v[i] > top ? v[i] : top;
    return top;
#endif
}

// W numbers as bytes.
static inline void store_bytes(uint8_t* to, vi number) {
#if defined(FASTSLOW_AVX2)
    const __m128i low = _mm256_castsi256_si128((__m256i)number);
    const __m128i words = _mm_packs_epi32(low, _mm256_extracti128_si256((__m256i)number, 1));
    _mm_storel_epi64((__m128i*)to, _mm_packs_epi16(words, words));
#elif defined(FASTSLOW_NEON)
    const int16x4_t words = vmovn_s32((int32x4_t)number);
    store(to, vget_lane_s32((int32x2_t)vmovn_s16(vcombine_s16(words, words)), 0));
#else
    typedef int8_t vb __attribute__((vector_size(W)));
    store(to, __builtin_convertvector(number, vb));
#endif
}

// W numbers as pairs of 16 bits, (0, 2) and (1, 3) of each quad.
static inline void store_pairs(uint8_t* to, vi number) {
#if defined(FASTSLOW_AVX2)
    const __m256i upper = _mm256_slli_epi32(_mm256_unpackhi_epi64((__m256i)number, (__m256i)number), 16);
    const __m256i pairs = _mm256_blend_epi16((__m256i)number, upper, 0xaa);
    store(to, _mm256_castsi256_si128(_mm256_permute4x64_epi64(pairs, 0x08)));
#else
    const uint64_t low = 0x0000ffff0000ffff;
    int32_t lane[W];
    store(lane, number);
    for (int i = 0; i < W; i += 4)
        store(to + 2 * i,
              (load<uint64_t>(lane + i) & low) | (load<uint64_t>(lane + i + 2) & low) << 16);
#endif
}

// Write the quads and the scale of a block B; returns the sum of its numbers.
//
// A block with an input that is not finite has zeros and a scale that is not finite either, so
// every output of its row shows it.
template <class B> static inline int write_block(uint8_t* block, const float* x) {
    vi most = {};
    for (int k = 0; k < BLOCK; k += W) {
        const vi bits = (vi)abs(load<vf>(x + k));  // ordered as the numbers, NaN above all
        most = bits > most ? bits : most;
    }
    const int32_t top = largest(most);
    const float magnitude = load<float>(&top), inverse = steps(magnitude);
    store(block + B::SCALE, step_of(magnitude));
    if (inverse == 0.0f) {
        std::memset(block, 0, B::SCALE);
        return 0;
    }
    const vf big = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
    vi total = {};
    for (int k = 0; k < BLOCK; k += W) {
        const vi number = (vi)fma(load<vf>(x + k), splat(inverse), big) - (vi)big;
        total += number;
        if constexpr (B::QUAD == 4) store_bytes(block + k, number);
        else store_pairs(block + 2 * k, number);
    }
    return sum(total);
}

// Write a whole row of blocks B; extra(at, scale, total) writes the word that the format needs.
template <class B, class Extra>
static inline void write_blocks(uint8_t* row, const float* x, int inputs, Extra extra) {
    for (int k = 0; k < inputs; k += BLOCK, row += B::BYTES) {
        float rest[BLOCK] = {};
        const float* from = x + k;
        if (inputs - k < BLOCK) {
            std::memcpy(rest, from, 4 * (size_t)(inputs - k));
            from = rest;
        }
        const int total = write_block<B>(row, from);
        extra(row + B::EXTRA, load<float>(row + B::SCALE), total);
    }
}

}  // namespace fastslow
