// The inner loops of attention: queries times keys, scores to masses, masses times values.
//
// Sums live in registers for as many queries as fit, and are the same sums for any number of them.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "attention.h"
#include "simd.h"

namespace fastslow {

constexpr int LANES = 16;  // keys scored at a time
constexpr int NV = LANES / W;
constexpr int KEYS_AHEAD = 32;  // fetches are spread over the work: a burst of them would stall it
constexpr int VALUES_AHEAD = 16;
constexpr int TOGETHER = W == 4 ? 1 : W == 8 ? 2 : 4;  // queries whose sums fit the registers

// Whether keys in bfloat16 are scored by bfloat16 dots: queries are then rounded to it, too.
#if defined(FASTSLOW_AVX512) && defined(__AVX512BF16__)
constexpr bool DOTS = true;
static inline vf dot(vf sum, vu keys, uint32_t query) {
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)keys, (__m512bh)_mm512_set1_epi32((int)query));
}
#else
constexpr bool DOTS = false;
static inline vf dot(vf sum, vu, uint32_t) { return sum; }
#endif

// Calls work with a constant: how many of `count` queries to take at once, at most N. Returns it.
template <int N, class Work> int few(int count, Work work) {
    if constexpr (N > 1)
        if (count < N) return few<N - 1>(count, work);
    work(std::integral_constant<int, N>{});
    return N;
}

// N queries times LANES keys [D][LANES]; two sums per query, by even and odd d.
template <int N>
void score(const float* keys, int dim, const float* const* q, float* const* out, const char* soon) {
    vf sums[N][2][NV];
    UNROLL for (int i = 0; i < N; i++) UNROLL for (int h = 0; h < 2; h++)
        UNROLL for (int v = 0; v < NV; v++) sums[i][h][v] = vf{};
    const float* query[N];
    UNROLL for (int i = 0; i < N; i++) query[i] = q[i];
    int d = 0;
    for (; d + 2 <= dim; d += 2) {
        prefetch(soon + (size_t)d * 32);
        UNROLL for (int h = 0; h < 2; h++) UNROLL for (int v = 0; v < NV; v++) {
            vf key = load<vf>(keys + (d + h) * LANES + v * W);
            UNROLL for (int i = 0; i < N; i++)
                sums[i][h][v] = fma(key, splat(query[i][d + h]), sums[i][h][v]);
        }
    }
    if (d < dim)
        UNROLL for (int v = 0; v < NV; v++) UNROLL for (int i = 0; i < N; i++)
            sums[i][0][v] = fma(load<vf>(keys + d * LANES + v * W), splat(query[i][d]), sums[i][0][v]);
    UNROLL for (int i = 0; i < N; i++) UNROLL for (int v = 0; v < NV; v++)
        store(out[i] + v * W, sums[i][0][v] + sums[i][1][v]);
}

// The same for pairs: keys [D / 2][LANES] words, queries [D / 2] words.
template <int N>
void score(const uint32_t* keys, int dim, const uint32_t* const* q, float* const* out,
           const char* soon) {
    vf sums[N][2][NV];
    UNROLL for (int i = 0; i < N; i++) UNROLL for (int h = 0; h < 2; h++)
        UNROLL for (int v = 0; v < NV; v++) sums[i][h][v] = vf{};
    const uint32_t* query[N];
    UNROLL for (int i = 0; i < N; i++) query[i] = q[i];
    const int words = dim / 2;
    int d = 0;
    for (; d + 2 <= words; d += 2) {
        prefetch(soon + (size_t)d * 64);
        prefetch(soon + (size_t)d * 64 + 64);
        UNROLL for (int h = 0; h < 2; h++) UNROLL for (int v = 0; v < NV; v++) {
            vu key = load<vu>(keys + (d + h) * LANES + v * W);
            UNROLL for (int i = 0; i < N; i++) sums[i][h][v] = dot(sums[i][h][v], key, query[i][d + h]);
        }
    }
    if (d < words)
        UNROLL for (int v = 0; v < NV; v++) UNROLL for (int i = 0; i < N; i++)
            sums[i][0][v] = dot(sums[i][0][v], load<vu>(keys + d * LANES + v * W), query[i][d]);
    UNROLL for (int i = 0; i < N; i++) UNROLL for (int v = 0; v < NV; v++)
        store(out[i] + v * W, sums[i][0][v] + sums[i][1][v]);
}

// Any number of queries. `soon` is where keys lie that a later call reads.
template <class Key>
void score_some(const Key* keys, int dim, int count, const Key* const* q, float* const* out,
                const char* soon) {
    for (int i = 0; i < count;)
        i += few<TOGETHER>(count - i, [&](auto n) { score<n()>(keys, dim, q + i, out + i, soon); });
}

// Turns scores to masses e^(score - max): the first `count` are real. Returns the max and the sum.
static inline void soften(float* scores, int count, float& most, float& total) {
    vf top = splat(-INFINITY);
    vi lane;
    for (int i = 0; i < W; i++) lane[i] = i;
    const int padded = (count + LANES - 1) / LANES * LANES;
    for (int k = 0; k < padded; k += W) {
        vf s = lane + k < count ? load<vf>(scores + k) : splat(-INFINITY);
        store(scores + k, s);
        top = max(s, top);
    }
    most = largest(top);
    vf sums{};
    for (int k = 0; k < padded; k += W) {
        vf mass = lane + k < count ? exp(load<vf>(scores + k) - splat(most)) : vf{};
        store(scores + k, mass);
        sums = sums + mass;
    }
    total = sum(sums);
}

template <class T> static inline vf value_at(const T* v);
template <> inline vf value_at(const float* v) { return load<vf>(v); }
template <> inline vf value_at(const uint16_t* v) { return widen(load<vh>(v)); }

// Adds C vectors of values from column d on, weighted by the masses, to N sums.
template <class T, int N, int C>
void weigh(const T* values, const size_t* at, int from, int to, int d, const float* const* mass,
           float* const* out) {
    vf sums[N][C];
    UNROLL for (int i = 0; i < N; i++) UNROLL for (int c = 0; c < C; c++)
        sums[i][c] = load<vf>(out[i] + d + c * W);
    for (int k = from; k < to; k++) {
        const char* soon = (const char*)(values + at[k + VALUES_AHEAD]);
        prefetch(soon);
        prefetch(soon + 64);
        vf v[C];
        UNROLL for (int c = 0; c < C; c++) v[c] = value_at<T>(values + at[k] + d + c * W);
        UNROLL for (int i = 0; i < N; i++) {
            vf m = splat(mass[i][k]);
            UNROLL for (int c = 0; c < C; c++) sums[i][c] = fma(v[c], m, sums[i][c]);
        }
    }
    UNROLL for (int i = 0; i < N; i++) UNROLL for (int c = 0; c < C; c++)
        store(out[i] + d + c * W, sums[i][c]);
}

// All of the head's columns; `width` is a multiple of LANES.
template <class T, int N>
void weigh_all(const T* values, const size_t* at, int from, int to, int width,
               const float* const* mass, float* const* out) {
    int d = 0;
    for (; d + 4 * W <= width; d += 4 * W) weigh<T, N, 4>(values, at, from, to, d, mass, out);
    for (; d < width; d += W) weigh<T, N, 1>(values, at, from, to, d, mass, out);
}

}  // namespace fastslow
