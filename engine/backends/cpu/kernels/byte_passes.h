// Many rows of integer weights where registers are few: the numbers of some blocks are unpacked to bytes once, and
// rows pass over them, a few at a time. Whole numbers are exact, and the rest of a sum is that of few rows: same bits.
#pragma once

#include "byte_tiles.h"
#include "passes.h"

namespace fastslow {

#if defined(FASTSLOW_AVX2)

// From: see byte_tiles.h; also MOST, the largest number, WIDE, whether it needs 8 bits, and begin(row, part).
template <class From> struct BytePasses {
    static constexpr int PARTS = From::PARTS, PART_QUADS = QUADS / PARTS;
    static constexpr int SCALES = BLOCK * TILE, MINIMA = SCALES + 4 * TILE * PARTS;
    static constexpr int BYTES = MINIMA + (From::MINIMA ? 4 * TILE : 0);  // of an unpacked block
    static constexpr int STRETCH = 8;                                     // blocks that are unpacked at once
    static constexpr int PASS_ROWS = 4;                                   // 8 sums, 2 weights or 4, an input

    // Adds so many quads' products with T rows.
    template <int T, int COUNT>
    INLINE static void add(const uint8_t* w, const uint8_t* const* x, size_t at, vi (*dot)[PASS_VECTORS]) {
        const vi ones = splat(0x00010001);
#if !defined(FASTSLOW_VNNI)
        // Pairs' sums, of as many quads as fit 16 bits.
        vi half[T][PASS_VECTORS] = {};
#endif
        UNROLL for (int q = 0; q < COUNT; q++) {
            vu weights[PASS_VECTORS];
            UNROLL for (int v = 0; v < PASS_VECTORS; v++) weights[v] = load<vu>(w + 4 * TILE * q + sizeof(vu) * v);
            UNROLL for (int t = 0; t < T; t++) {
                const uint8_t* quad = x[t] + at + 4 * q;
                UNROLL for (int v = 0; v < PASS_VECTORS; v++) {
#if defined(FASTSLOW_VNNI)
                    hold(dot[t][v] = dot_bytes(dot[t][v], weights[v], quad));
#else
                    const vi input = splat(load<int32_t>(quad));
                    if constexpr (From::WIDE) hold(dot[t][v] += dot_halves(dot_signed(weights[v], input), ones));
                    else hold(half[t][v] = (vi)((vs)half[t][v] + (vs)dot_pairs(weights[v], input)));
#endif
                }
            }
        }
#if !defined(FASTSLOW_VNNI)
        if constexpr (!From::WIDE)
            UNROLL for (int t = 0; t < T; t++)
                UNROLL for (int v = 0; v < PASS_VECTORS; v++) dot[t][v] += dot_halves(half[t][v], ones);
#endif
    }

    template <int T, int FIRST, int ASKED>
    __attribute__((noinline)) static void pass(const uint8_t* w, int blocks, Fetch soon, const uint8_t* const* rows, size_t at, float* out) {
        constexpr int FIT = From::WIDE ? QUADS : 32767 / (254 * From::MOST), COUNT = std::min(FIT / 2 * 2, PART_QUADS);
        const uint8_t* x[T];
        UNROLL for (int t = 0; t < T; t++) x[t] = rows[t];
        for (; blocks; blocks--, w += BYTES, at += From::ROW_BYTES) {
            move_on(out);
            UNROLL for (int part = 0; part < PARTS; part++) {
                vi dot[T][PASS_VECTORS];
                UNROLL for (int t = 0; t < T; t++)
                    UNROLL for (int v = 0; v < PASS_VECTORS; v++) dot[t][v] = From::begin(x[t] + at, part);
                UNROLL for (int q = 0; q < PART_QUADS; q += COUNT) {
                    const int k = part * PART_QUADS + q;
                    UNROLL for (int i = 0; i < COUNT; i++)
                        if (k + i < ASKED) soon.next();
                    add<T, COUNT>(w + 4 * TILE * k + sizeof(vu) * FIRST, x, at + 4 * k, dot);
                }
                UNROLL for (int v = 0; v < PASS_VECTORS; v++) {
                    const uint8_t* of = w + sizeof(vf) * (FIRST + v);
                    const vf d = load<vf>(of + SCALES + 4 * TILE * part);
                    UNROLL for (int t = 0; t < T; t++) {
                        const uint8_t* row = x[t] + at + BLOCK;
                        float* to = out + t * TILE + (FIRST + v) * W;
                        vf sum = fma(to_float(dot[t][v]), d * splat(load<float>(row)), load<vf>(to));
                        if (From::MINIMA && part + 1 == PARTS)
                            sum = fma(load<vf>(of + MINIMA), splat(load<float>(row + 4)), sum);
                        store(to, sum);
                    }
                }
            }
        }
    }

    // ASKED: how often a pass asks for what is read next, for each block.
    template <int T, int ASKED>
    static void all(const uint8_t* w, int blocks, Fetch soon, const uint8_t* const* rows, size_t at, float* out) {
        constexpr int COUNT = passes(T, PASS_ROWS), N = (T + COUNT - 1) / COUNT;
        pass<N, 0, ASKED>(w, blocks, soon, rows, at, out);
        soon.at += soon.step * ASKED * blocks;
        pass<N, PASS_VECTORS, ASKED>(w, blocks, soon, rows, at, out);
        soon.at += soon.step * ASKED * blocks;
        if constexpr (N < T) all<T - N, ASKED>(w, blocks, soon, rows + N, at, out + N * TILE);
    }
};

template <class Kernel, int T>
static void in_byte_passes(const uint8_t* tile, const uint8_t* soon, int inputs, const uint8_t* const* rows,
                           float* out) {
    typedef BytePasses<Kernel> Passes;
    constexpr int COUNT = 2 * passes(T, Passes::PASS_ROWS), SOME = Passes::STRETCH;
    constexpr int ASKED = std::min((Kernel::EACH / LINE + COUNT) / COUNT, QUADS);
    alignas(64) uint8_t unpacked[SOME * Passes::BYTES];
    std::memset(out, 0, T * TILE * sizeof(float));
    const int blocks = Kernel::blocks(inputs);
    for (int first = 0; first < blocks; first += SOME) {
        const int some = std::min(SOME, blocks - first);
        Kernel::to_bytes(tile, nullptr, inputs, first, some, unpacked);
        Passes::template all<T, ASKED>(unpacked, some, {soon + first * Kernel::EACH, Kernel::EACH / (ASKED * COUNT)},
                                       rows, first * Kernel::ROW_BYTES, out);
    }
}

#else
template <class Kernel, int T>
static void in_byte_passes(const uint8_t* tile, const uint8_t* soon, int inputs, const uint8_t* const* rows,
                           float* out) {
    in_passes<Kernel, T>(tile, soon, Kernel::weight_bytes(inputs), rows, out);
}
#endif

}  // namespace fastslow
