// The inner loops of attention: queries times keys, scores to masses, masses times values.
//
// Sums live in registers for as many queries as fit, and are the same sums for any number of them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "attention.h"
#include "model.h"
#include "simd.h"
#include "tile.h"

namespace fastslow {

constexpr int NV = LANES / W;
constexpr int AT_ONCE = W > 4 ? 4 : REGISTERS == 32 ? 3 : 1;  // queries whose sums fit the registers

// How words of keys and values are multiplied and added.
template <class T> struct WordMath;

template <> struct WordMath<float> {
    using Scalar = float;
    static vf add(vf sum, vu words, float by) { return fma((vf)words, splat(by), sum); }
    static vf kept(vf mass) { return mass; }
    static void keep(Scalar* to, int k, vf x) { store(to + k, x); }
    static void keep(Scalar* to, int k, float x) { to[k] = x; }
    static constexpr int PARTS = 1;
    static vf part(vu words, int) { return (vf)words; }
    static float part(float by, int) { return by; }
};

// Where there are bfloat16 dots, queries and masses are rounded to it, too.
#if defined(FASTSLOW_AVX512) && defined(__AVX512BF16__)
template <> struct WordMath<uint16_t> {
    using Scalar = uint32_t;  // two bfloat16
    static vf add(vf sum, vu words, uint32_t by) {
        return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)words, (__m512bh)_mm512_set1_epi32((int)by));
    }
    static vf kept(vf mass) {  // gcc takes widen() apart
        return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)narrow(mass)), 16);
    }
    static void keep(Scalar* to, int k, vf x) { store((uint16_t*)to + k, narrow(x)); }
    static void keep(Scalar* to, int k, float x) { ((uint16_t*)to)[k] = narrow(x); }
};
#else
template <> struct WordMath<uint16_t> {
    struct Scalar {
        float low, high;
    };
    static vf add(vf sum, vu words, Scalar by) {
        sum = fma((vf)(words << 16), splat(by.low), sum);
        return fma((vf)(words & splat(0xffff0000u)), splat(by.high), sum);
    }
    static vf kept(vf mass) { return mass; }
    static void keep(Scalar* to, int k, vf x) { store((float*)to + k, x); }
    static void keep(Scalar* to, int k, float x) { ((float*)to)[k] = x; }
    static constexpr int PARTS = 2;
    static vf part(vu words, int p) { return (vf)(p ? words & splat(0xffff0000u) : words << 16); }
    static float part(Scalar by, int p) { return p ? by.high : by.low; }
};
#endif

template <class T> using Scalar = typename WordMath<T>::Scalar;

// Calls work with a constant: how many of `count` queries to take at once, at most N. Returns it.
template <int N, class Work> int few(int count, Work work) {
    if constexpr (N > 1)
        if (count < N) return few<N - 1>(count, work);
    work(std::integral_constant<int, N>{});
    return N;
}

// Adds C vectors of words, of which the bits `real` count, times word w of N rows of scalars.
template <class T, int N, int C>
inline void add_words(vf (&sums)[N][C], const uint32_t* words, const Scalar<T>* const* by, int w,
                      uint32_t real = 0xffffffffu) {
#if defined(FASTSLOW_AVX2)
    // Two vectors' parts and one scalar at a time, loaded anew: compilers hold more where they may, and
    // sums leave the sixteen registers.
    constexpr int SPAN = C % 2 ? 1 : 2;
    UNROLL for (int c = 0; c < C; c += SPAN) UNROLL for (int p = 0; p < WordMath<T>::PARTS; p++) {
        vf part[SPAN];
        UNROLL for (int v = 0; v < SPAN; v++)
            part[v] = WordMath<T>::part(load<vu>(words + (c + v) * W) & splat(real), p);
        UNROLL for (int i = 0; i < N; i++) {
            const vf times = splat(WordMath<T>::part(by[i][w], p));
            UNROLL for (int v = 0; v < SPAN; v++) sums[i][c + v] = fma(part[v], times, sums[i][c + v]);
        }
        if (N > 2) asm volatile("" ::: "memory");  // no load is moved past this
    }
#else
    UNROLL for (int c = 0; c < C; c++) {
        const vu word = load<vu>(words + c * W) & splat(real);
        UNROLL for (int i = 0; i < N; i++) sums[i][c] = WordMath<T>::add(sums[i][c], word, by[i][w]);
    }
#endif
}

// N queries times a tile of keys; two sums per query, by even and odd words: one after the other where
// the registers are too few for both. `soon` is a tile that a later call reads: fetches are spread over
// the work, since a burst of them would stall it, and go to L2: into L1 they took a quarter longer after
// 8,000 tokens, and without any, scattered pages did.
template <class T, int N>
void score(const T* keys, int dim, const Scalar<T>* const* q, float* const* out, const char* soon) {
    constexpr int HALVES = W == 8 && N > 2 ? 1 : 2;
    const Scalar<T>* query[N];
    UNROLL for (int i = 0; i < N; i++) query[i] = q[i];
    const uint32_t* word = (const uint32_t*)keys;
    const int words = dim / Tile<T>::PACK;
    UNROLL for (int first = 0; first < 2; first += HALVES) {
        vf sums[HALVES][N][NV];
        UNROLL for (int h = 0; h < HALVES; h++) UNROLL for (int i = 0; i < N; i++)
            UNROLL for (int v = 0; v < NV; v++) sums[h][i][v] = vf{};
        int w = first;
        for (; w + HALVES <= words; w += 2) {
            const size_t line = HALVES == 2 ? w : (first * words + w) / 2;  // all of them, in order
            UNROLL for (int h = 0; h < HALVES; h++) prefetch_to_l2(soon + (line + h) * 64);
            UNROLL for (int h = 0; h < HALVES; h++)
                add_words<T>(sums[h], word + (w + h) * LANES, query, w + h);
        }
        if (HALVES == 2 && w < words) add_words<T>(sums[0], word + w * LANES, query, w);
        UNROLL for (int i = 0; i < N; i++) UNROLL for (int v = 0; v < NV; v++) {
            float* to = out[i] + v * W;
            if (HALVES == 2) store(to, sums[0][i][v] + sums[HALVES - 1][i][v]);
            else store(to, first ? load<vf>(to) + sums[0][i][v] : sums[0][i][v]);
        }
    }
}

// cap * tanh(x / cap) of some numbers in their place, of whole vectors.
__attribute__((noinline, cold)) inline void soft_cap(float* x, int first, int count, float cap) {
    const vf by = splat(2.0f / cap);
    for (int k = first / LANES * LANES; k < count; k += W)
        store(x + k, (splat(1.0f) - splat(2.0f) / (exp(load<vf>(x + k) * by) + 1.0f)) * cap);
}

// Turns scores to masses e^(score - max) in their place, as the values' scalars: those from `first` to before
// `count` are real, the rest of their tiles get 0. Returns the max and the sum.
template <class T> void soften(float* scores, int first, int count, float& most, float& total) {
    vf top = splat(-INFINITY);
    vi lane;
    for (int i = 0; i < W; i++) lane[i] = i;
    const int start = first / LANES * LANES, padded = (count + LANES - 1) / LANES * LANES;
    auto whole = [&](int k) { return k >= first && k + W <= count; };
    auto real = [&](int k) { return (vu)(lane + (k - first)) < splat((uint32_t)(count - first)); };
    for (int k = start; k < padded; k += W) {
        vf s = load<vf>(scores + k);
        if (!whole(k)) store(scores + k, s = real(k) ? s : splat(-INFINITY));
        top = max(s, top);
    }
    most = largest(top);
    vf sums[TURNS] = {};
    for (int from = start; from < padded; from += SPAN)
        UNROLL for (int t = 0; t < TURNS; t++) {
            const int k = from + t * W;
            vf mass = exp(load<vf>(scores + k) - splat(most));
            if (!whole(k)) mass = real(k) ? mass : vf{};
            WordMath<T>::keep((Scalar<T>*)scores, k, mass);  // behind what is still to be read
            sums[t] += WordMath<T>::kept(mass);
        }
    total = sum(sums);
}

// Adds C vectors of values from column d on, of the first `count` places of a list of tiles,
// weighted by the masses from place `from` on, to N sums. `soon`: tiles that are fetched meanwhile.
template <class T, int N, int C>
void weigh(const T* const* tiles, int count, int dim, int d, const Scalar<T>* const* masses, int from,
           float* const* out, const char* const* soon) {
    constexpr int WORDS = LANES / Tile<T>::PACK;
    const Scalar<T>* mass[N];
    UNROLL for (int i = 0; i < N; i++) mass[i] = masses[i] + from / Tile<T>::PACK;
    vf sums[N][C];
    UNROLL for (int i = 0; i < N; i++) UNROLL for (int c = 0; c < C; c++)
        sums[i][c] = load<vf>(out[i] + d + c * W);
    int t = 0;
    for (; (t + 1) * LANES <= count; t++) {
        const uint32_t* words = (const uint32_t*)tiles[t] + d;
        // narrow vectors' lines lie apart: all of the tile's in their order are faster
        const char* later = soon[t] + d * 4 * (W < 16 ? WORDS : 1);
        for (int w = 0; w < WORDS; w++, words += dim, later += W < 16 ? C * W * 4 : dim * 4) {
            for (int line = 0; line < C * W * 4; line += 64) prefetch_to_l2(later + line);
            add_words<T>(sums, words, mass, t * WORDS + w);
        }
    }
    // a word's half past the end may hold anything, and 0 times a NaN would be one
    for (int k = t * LANES; k < count; k += Tile<T>::PACK)
        add_words<T>(sums, (const uint32_t*)tiles[t] + (size_t)(k - t * LANES) / Tile<T>::PACK * dim + d,
                     mass, k / Tile<T>::PACK, k + Tile<T>::PACK > count ? 0x0000ffffu : 0xffffffffu);
    UNROLL for (int i = 0; i < N; i++) UNROLL for (int c = 0; c < C; c++)
        store(out[i] + d + c * W, sums[i][c]);
}

// What attention does with the elements of a kind of tile. Queries and masses are prepared once for a
// block; sums of values are `out`, from `soften` to `settle`.
template <class T> struct Inner {
    using Query = Scalar<T>;
    using Mass = Scalar<T>;
    static constexpr int AT_ONCE = fastslow::AT_ONCE;

    static size_t query_bytes(int dim) { return sizeof(Query) * (dim / Tile<T>::PACK); }

    static void turn(const float* q, int dim, Query* to, float*) {
        int d = 0;
        for (; d + W <= dim; d += W) WordMath<T>::keep(to, d, load<vf>(q + d));
        for (; d < dim; d++) WordMath<T>::keep(to, d, q[d]);
    }

    template <int N>
    static void score(const T* keys, int dim, const Query* const* q, float* const* out, const char* soon) {
        fastslow::score<T, N>(keys, dim, q, out, soon);
    }

    // Masses of the scores first .. count - 1 of query i, in the scores' place; sums start at 0.
    static const Mass* soften(Scratch& own, int i, int first, int count, float& most, float& total, float* sums,
                              int width, float&) {
        float* scores = own.scores + (size_t)i * SCORE_STRIDE;
        if (first < count) fastslow::soften<T>(scores, first, count, most, total);
        std::fill(sums, sums + width, 0.0f);
        return (const Mass*)scores;
    }

    // All of the head's columns; `out` has room for whole lanes, and what follows a tile can be read.
    template <int N>
    static void weigh_all(const T* const* tiles, int count, int dim, const Mass* const* mass, int from,
                          float* const* out, const char* const* soon) {
        constexpr int C = W == 4 && REGISTERS == 32 ? 8 : W != 8 ? 4 : N == 1 ? 8 : N == 2 ? 4 : 2;
        int d = 0;
        for (; d + C * W <= dim; d += C * W) weigh<T, N, C>(tiles, count, dim, d, mass, from, out, soon);
        for (; d < dim; d += W) weigh<T, N, 1>(tiles, count, dim, d, mass, from, out, soon);
    }

    static void settle(float*, int, float) {}
};

// Any number of queries.
template <class T>
void score_some(const T* keys, int dim, int count, const typename Inner<T>::Query* const* q,
                float* const* out, const char* soon) {
    for (int i = 0; i < count;)
        i += few<Inner<T>::AT_ONCE>(count - i, [&](auto n) {
            Inner<T>::template score<n()>(keys, dim, q + i, out + i, soon);
        });
}

}  // namespace fastslow
