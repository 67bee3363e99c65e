// Vectors of the width this build has: 16, 8 or 4 floats.
//
// Written with the compiler's own vector types, so one source serves AVX-512, AVX2 and plain builds.
// Contraction is off for the whole library: only fma() fuses, so every instance of a template
// rounds alike, and a row's bits do not depend on how many rows share its kernel.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__ARM_NEON) && !defined(FASTSLOW_PLAIN)
#define FASTSLOW_NEON 1
#include <arm_neon.h>
#endif

namespace fastslow {

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define FASTSLOW_AVX512 1
constexpr int W = 16;
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define FASTSLOW_AVX2 1
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

// Arm's sums are those of 8 floats, in two vectors that take turns.
#if defined(FASTSLOW_NEON)
constexpr int TURNS = 2, REGISTERS = 32;
#else
constexpr int TURNS = 1, REGISTERS = W == 16 ? 32 : 16;
#endif
constexpr int SPAN = TURNS * W;

// Dot products of bytes.
#if defined(FASTSLOW_AVX512) && defined(__AVX512VNNI__)
#define FASTSLOW_VNNI 1
#elif defined(FASTSLOW_AVX2) && defined(__AVXVNNI__)
#define FASTSLOW_VNNI 1
#endif

// Products of tiles, see amx.h.
#if defined(FASTSLOW_AVX512) && defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__) && \
    defined(__AVX512BF16__)
#define FASTSLOW_AMX 1
#endif

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef uint32_t vu __attribute__((vector_size(4 * W)));
typedef uint16_t vh __attribute__((vector_size(2 * W)));

// Inner loops over rows and vectors must unroll fully, or their sums leave the registers.
#define UNROLL _Pragma("GCC unroll 32")

template <class V> static inline V load(const void* from) {
    V v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

template <class V> static inline void store(void* to, V v) { std::memcpy(to, &v, sizeof v); }

static inline vf splat(float x) { return x - vf{}; }
static inline vu splat(uint32_t x) { return x + vu{}; }

static inline vf fma(vf a, vf b, vf c) {
#if defined(FASTSLOW_AVX512)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(FASTSLOW_AVX2)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(FASTSLOW_NEON)
    return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

// The second number where one is NaN.
#if defined(FASTSLOW_AVX512)
static inline vf max(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
static inline vf min(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
#else
static inline vf max(vf a, vf b) { return a > b ? a : b; }
static inline vf min(vf a, vf b) { return a < b ? a : b; }
#endif
static inline vf abs(vf a) { return (vf)((vu)a & splat(0x7fffffffu)); }

// Sum of the lanes, halves upon halves: one fixed order.
static inline float sum(vf v) {
#if defined(FASTSLOW_AVX512)
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
    __m128 rest = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    rest = _mm_add_ps(rest, _mm_movehl_ps(rest, rest));
    return _mm_cvtss_f32(_mm_add_ss(rest, _mm_movehdup_ps(rest)));
#else
    float lane[W];
    store(lane, v);
    for (int half = W / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lane[i] += lane[i + half];
    return lane[0];
#endif
}

// The same of what took turns.
static inline float sum(const vf (&turns)[TURNS]) {
    vf whole = turns[0];
    for (int t = 1; t < TURNS; t++) whole += turns[t];
    return sum(whole);
}

static inline float largest(vf v) {
#if defined(FASTSLOW_AVX512)
    return _mm512_reduce_max_ps((__m512)v);
#else
    float lane[W];
    store(lane, v);
    for (int half = W / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lane[i] = lane[i] > lane[i + half] ? lane[i] : lane[i + half];
    return lane[0];
#endif
}

// bfloat16 to float32 is exact: the upper half of the word.
static inline vf widen(vh half) { return (vf)(__builtin_convertvector(half, vu) << 16); }

// float32 to bfloat16, to nearest even; a NaN stays one.
static inline vh narrow(vf v) {
#if defined(FASTSLOW_AVX512) && defined(__AVX512BF16__)
    return (vh)_mm512_cvtneps_pbh((__m512)v);
#else
    vu bits = (vu)v;
    vu rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return __builtin_convertvector(v == v ? rounded : splat(0x7fc0u), vh);
#endif
}

static inline float widen(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

static inline uint16_t narrow(float value) {
    if (value != value) return 0x7fc0;
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// e^x to about 1 unit in the last place; below -87 it is taken at -87, and a NaN stays one. After Cephes' expf.
static inline vf exp(vf given) {
    vf x = max(splat(-87.0f), min(splat(88.0f), given));  // a NaN stays
    const vf big = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
    vf shifted = fma(x, splat(1.44269504f), big);
    vf n = shifted - big;
    vf r = fma(n, splat(-0.693359375f), x);
    r = fma(n, splat(2.12194440e-4f), r);
    vf p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    p = fma(p, r * r, r + 1.0f);
#if defined(FASTSLOW_AVX512)
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    vi power = (vi)shifted - (vi)big;
    return given == given ? (vf)((vi)p + (power << 23)) : given;
#endif
}

// A vector of which `count` lanes are there; the others are 0, and are not written.
static inline vf load_some(const float* from, int count) {
    if (count >= W) return load<vf>(from);
    vf v{};
    if (TURNS > 1 && count <= 0) return v;
    std::memcpy(&v, from, sizeof(float) * count);
    return v;
}
static inline void store_some(float* to, vf v, int count) {
    if (count >= W) return store(to, v);
    std::memcpy(to, &v, sizeof(float) * count);
}
static inline vf sigmoid(vf x) { return splat(1.0f) / (exp(-x) + 1.0f); }

// Ask for a line that will be needed soon; past the end of an allocation this does nothing.
static inline void prefetch(const void* at) { __builtin_prefetch(at, 0, 3); }

// The same for what is needed too late to take room in L1.
static inline void prefetch_to_l2(const void* at) { __builtin_prefetch(at, 0, 2); }

// The same for what will be written.
static inline void prefetch_to_write(const void* at) { __builtin_prefetch(at, 1, 3); }

}  // namespace fastslow
