// Attention over keys and values in int8: whole sums, which no order of adding changes.
//
// Queries, and masses times their values' scales, are numbers of 15 bits, so that only keys and values
// are rounded coarsely: two digits where bytes have a dot instruction, whole where 16 bits are multiplied
// anyway. Keys and values are unsigned: 128 times the sum of what they are multiplied by is taken back.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "blocks.h"
#include "score.h"

namespace fastslow {

constexpr int ZERO = 128 - TAKEN;                   // of what bytes are as they are multiplied
constexpr int HIGH = 128;                           // the value of a step of the upper digit
constexpr float LARGEST_SPLIT = 127.0f * HIGH;      // the lower digit is -64 .. 63
constexpr int DIGIT_BYTES = Bytes::QUAD / 4;
constexpr int DIGITS = 2 / DIGIT_BYTES;

// Numbers x, about whole numbers times `step`; `total` is the sum of these, HIGH * upper + lower digit.
struct Split {
    float step;
    int32_t total;
};

// `count` numbers, a multiple of W; all upper digits come first, all lower ones `apart` bytes on. If a
// number is not finite, neither is the step, and all digits are 0.
static inline Split split(const float* x, int count, uint8_t* digits, int apart) {
    vi most = {};
    for (int k = 0; k < count; k += W) {
        const vi bits = (vi)abs(load<vf>(x + k));  // ordered as the numbers, NaN above all
        most = bits > most ? bits : most;
    }
    const int32_t top = largest(most);
    const float magnitude = load<float>(&top);
    if (!(magnitude > 1e-30f && magnitude <= 3e38f)) {
        for (int h = 0; h < DIGITS; h++) std::memset(digits + h * apart, 0, (size_t)count * DIGIT_BYTES);
        return {magnitude <= 1e-30f ? 0.0f : magnitude - magnitude, 0};
    }
    const vf inverse = splat(LARGEST_SPLIT / magnitude), big = splat(12582912.0f);  // 1.5 * 2^23
    vi total = {};
    for (int k = 0; k < count; k += W) {
        const vi number = (vi)fma(load<vf>(x + k), inverse, big) - (vi)big;
        total += number;
        if constexpr (DIGITS == 2) {
            const vi up = (number + HIGH / 2) >> 7;
            store_bytes(digits + k, up);
            store_bytes(digits + apart + k, number - (up << 7));
        } else {
            store_pairs(digits + 2 * k, number);
        }
    }
    return {magnitude / LARGEST_SPLIT, sum(total)};
}

// The whole sum, from the sums by digit.
static inline vi whole(const vi (&sums)[DIGITS]) {
    if constexpr (DIGITS == 1) return sums[0];
    else return (sums[0] << 7) + sums[1];
}

template <> struct Inner<uint8_t> {
    struct Query {
        Split split;
        uint8_t pad[LINE - sizeof(Split)];
        uint8_t* digits() { return (uint8_t*)(this + 1); }
        const uint8_t* digits() const { return (const uint8_t*)(this + 1); }
    };
    using Mass = uint8_t;  // [DIGITS][KEY_BLOCK * DIGIT_BYTES]
    static constexpr int AT_ONCE = W == 4 && REGISTERS == 16 ? 1 : W == 8 ? 4 / DIGITS : 3;
    static constexpr int QUAD = Bytes::QUAD;

    static constexpr int MASS_SIDE = KEY_BLOCK * DIGIT_BYTES;

    static int side(int dim) { return padded(dim, LANES) * DIGIT_BYTES; }
    static size_t query_bytes(int dim) { return sizeof(Query) + DIGITS * (size_t)side(dim); }

    static void turn(const float* q, int dim, Query* to, float* room) {
        const int width = padded(dim, LANES);
        std::copy(q, q + dim, room);
        std::fill(room + dim, room + width, 0.0f);
        to->split = split(room, width, to->digits(), side(dim));
    }

    template <int N>
    static void score(const uint8_t* keys, int dim, const Query* const* q, float* const* out,
                      const char* soon) {
        vi sums[N][NV][DIGITS] = {};
        const uint8_t* query[N][DIGITS];
        UNROLL for (int i = 0; i < N; i++) UNROLL for (int h = 0; h < DIGITS; h++)
            query[i][h] = q[i]->digits() + h * side(dim);
        for (int w = 0; w < dim / 4; w++) {
            prefetch_to_l2(soon + (size_t)w * LINE);
            UNROLL for (int v = 0; v < NV; v++) {
                const Bytes key(load<vu>(keys + (size_t)w * LANES * 4 + v * sizeof(vu)));
                UNROLL for (int i = 0; i < N; i++) UNROLL for (int h = 0; h < DIGITS; h++)
                    sums[i][v][h] = key.times(query[i][h] + w * QUAD, sums[i][v][h]);
            }
        }
        for (int line = 0; line < 2; line++) prefetch_to_l2(soon + (size_t)(dim / 4 + line) * LINE);
        UNROLL for (int i = 0; i < N; i++) UNROLL for (int v = 0; v < NV; v++) {
            const vi product = whole(sums[i][v]) - splat(ZERO * q[i]->split.total);
            const vf scale = load<vf>(keys + Tile<uint8_t>::scale(v * W, dim, false));
            store(out[i] + v * W, to_float(product) * (scale * splat(q[i]->split.step)));
        }
    }

    static const Mass* soften(Scratch& own, int i, int first, int count, float& most, float& total, float* sums,
                              int width, float& step) {
        uint8_t* mass = own.masses + (size_t)i * DIGITS * MASS_SIDE;
        int32_t start = 0;
        step = 0.0f;
        if (first < count) {
            float* scores = own.scores + (size_t)i * SCORE_STRIDE;
            const float* scales = own.value_scales + (size_t)i * KEY_BLOCK;
            fastslow::soften<float>(scores, first, count, most, total);
            vi lane;
            for (int k = 0; k < W; k++) lane[k] = k;
            const int from = first / LANES * LANES, all = padded(count, LANES);
            for (int k = from; k < all; k += W) {
                const vi real = (vu)(lane + (k - first)) < splat((uint32_t)(count - first));
                store(scores + k, real ? load<vf>(scores + k) * load<vf>(scales + k) : vf{});
            }
            const Split found = split(scores + from, all - from, mass + from * DIGIT_BYTES, MASS_SIDE);
            step = found.step;
            start = -ZERO * found.total;
        }
        for (int d = 0; d < width; d += W) store(sums + d, splat(start));
        return mass;
    }

    template <int N, int C>
    static void weigh(const uint8_t* const* tiles, int count, int dim, int d, const Mass* const* masses,
                      int from, float* const* out, const char* const* soon) {
        vi sums[N][C][DIGITS] = {};
        const uint8_t* mass[N][DIGITS];
        UNROLL for (int i = 0; i < N; i++) UNROLL for (int h = 0; h < DIGITS; h++)
            mass[i][h] = masses[i] + h * MASS_SIDE + from * DIGIT_BYTES;
        for (int k = 0; k < count; k += 4) {
            const size_t row = k % LANES / 4, at = (row * dim + d) * 4;  // a mass past the end is 0
            const uint8_t* words = tiles[k / LANES] + at;
            // narrow vectors' lines lie apart: all of the tile's in their order are faster
            const char* later = soon[k / LANES] + (W < 16 ? (row * C * W + d * (LANES / 4)) * 4 : at);
            for (int line = 0; line < C * W * 4; line += LINE) prefetch_to_l2(later + line);
            UNROLL for (int c = 0; c < C; c++) {
                const Bytes value(load<vu>(words + c * sizeof(vu)));
                UNROLL for (int i = 0; i < N; i++) UNROLL for (int h = 0; h < DIGITS; h++)
                    sums[i][c][h] = value.times(mass[i][h] + k * DIGIT_BYTES, sums[i][c][h]);
            }
        }
        UNROLL for (int i = 0; i < N; i++) UNROLL for (int c = 0; c < C; c++) {
            float* to = out[i] + d + c * W;
            store(to, load<vi>(to) + whole(sums[i][c]));
        }
    }

    template <int N>
    static void weigh_all(const uint8_t* const* tiles, int count, int dim, const Mass* const* mass, int from,
                          float* const* out, const char* const* soon) {
        constexpr int C = (N <= 2 || TURNS == 2) && (W != 8 || DIGITS == 1) ? 4 : 2;  // what the registers hold
        int d = 0;
        for (; d + C * W <= dim; d += C * W) weigh<N, C>(tiles, count, dim, d, mass, from, out, soon);
        for (; d < dim; d += W) weigh<N, 1>(tiles, count, dim, d, mass, from, out, soon);
    }

    static void settle(float* sums, int width, float step) {
        for (int d = 0; d < width; d += W) store(sums + d, to_float(load<vi>(sums + d)) * splat(step));
    }
};

}  // namespace fastslow
