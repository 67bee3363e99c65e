// Many rows where 16 registers hold the sums of few: weights and rows in passes.
//
// A stretch of inputs is short enough for its weights to stay in L1 while all rows pass over it, some
// rows and two vectors of outputs at a time; between passes, float sums lie in `out`. So weights are
// read from memory once, and each sum is still taken in the order of the inputs.
#pragma once

#include <algorithm>

#include "product.h"

namespace fastslow {

#if defined(FASTSLOW_AVX2)
constexpr int FLOATS_AT_ONCE = 2, INTEGERS_AT_ONCE = 3;  // rows that need no passes
#elif defined(FASTSLOW_NEON)
constexpr int FLOATS_AT_ONCE = 3, INTEGERS_AT_ONCE = 1;
#else
constexpr int FLOATS_AT_ONCE = ROWS, INTEGERS_AT_ONCE = ROWS;
#endif
constexpr int PASS_VECTORS = VECTORS / 2;  // of outputs
constexpr int TURN = 4 * TILE;             // bytes of weights that a turn of a pass is about

// What passes ask for: each a share of what is read next, line after line as memory likes it.
struct Fetch {
    const uint8_t* at;
    size_t step;

    INLINE void next() {
        prefetch(at);
        at += step;
    }
};

// Float sums that a pass keeps in registers.
template <int T> struct Sums {
    vf sum[T][PASS_VECTORS];

    INLINE explicit Sums(const float* out) {
        UNROLL for (int t = 0; t < T; t++)
            UNROLL for (int v = 0; v < PASS_VECTORS; v++) sum[t][v] = load<vf>(out + t * TILE + v * W);
    }
    INLINE void add(int t, const vf* weights, float input) {
        UNROLL for (int v = 0; v < PASS_VECTORS; v++) sum[t][v] = fma(weights[v], splat(input), sum[t][v]);
    }
    INLINE void keep(float* out) const {
        UNROLL for (int t = 0; t < T; t++)
            UNROLL for (int v = 0; v < PASS_VECTORS; v++) store(out + t * TILE + v * W, sum[t][v]);
    }
};

// Passes of a format whose rows are floats. A turn takes PARTS inputs, whose weights lie side by side:
// Weights::part(w, v, p) is those of input p, for vector v of outputs. One part of all vectors at a time, so
// that weights take few registers.
template <class Weights> struct FloatPasses {
    static constexpr int PASS_ROWS = W == 8 && Weights::PARTS > 1 ? 5 : 6;  // two sums each, 2 weights, an input, a mask
    static constexpr int ROW_TURN = Weights::PARTS * sizeof(float);
    static constexpr size_t STRETCH = 64 * TURN, STRETCH_INPUTS = 64 * ROW_TURN;

    template <int T, int FIRST>
    static void pass(const uint8_t* w, const uint8_t* end, Fetch soon, const uint8_t* const* rows,
                     size_t k, float* __restrict out) {
        const uint8_t* x[T];
        UNROLL for (int t = 0; t < T; t++) x[t] = rows[t];
        Sums<T> sums(out + FIRST * W);
        for (; w < end; w += TURN, k += ROW_TURN) {
            soon.next();
            UNROLL for (int part = 0; part < Weights::PARTS; part++) {
                vf weights[PASS_VECTORS];
                UNROLL for (int v = 0; v < PASS_VECTORS; v++)
                    weights[v] = Weights::part(w, FIRST + v, part);
                UNROLL for (int t = 0; t < T; t++)
                    sums.add(t, weights, load<float>(x[t] + k + sizeof(float) * part));
                if (TURNS > 1) asm volatile("" ::: "memory");  // loads that move up drive sums out of registers
            }
        }
        sums.keep(out + FIRST * W);
    }
};

// Compilers carry sums from block to block in registers that they do not have, unless they believe that
// these lie elsewhere each time.
static inline void move_on(float*& out) { asm("" : "+r"(out)); }

constexpr int passes(int T, int rows) { return (T + rows - 1) / rows; }

// T rows over the weights from w to end, in the fewest passes, of even sizes; x is where the prepared
// rows' part of the stretch begins. pass<N, V>(w, end, soon, rows, x, out) adds to the sums of N rows, for
// PASS_VECTORS vectors of outputs from V on, and asks once a turn.
template <class Kernel, int T>
static void stretch(const uint8_t* w, const uint8_t* end, Fetch soon, const uint8_t* const* rows, size_t x,
                    float* out) {
    constexpr int COUNT = passes(T, Kernel::PASS_ROWS), N = (T + COUNT - 1) / COUNT;
    const size_t share = (end - w) / TURN * soon.step;
    Kernel::template pass<N, 0>(w, end, soon, rows, x, out);
    soon.at += share;
    Kernel::template pass<N, PASS_VECTORS>(w, end, soon, rows, x, out);
    soon.at += share;
    if constexpr (N < T) stretch<Kernel, T - N>(w, end, soon, rows + N, x, out + N * TILE);
}

// A tile's `bytes` of weights; a stretch has STRETCH of them and STRETCH_INPUTS of a prepared row.
template <class Kernel, int T>
static void in_passes(const uint8_t* tile, const uint8_t* soon, size_t bytes, const uint8_t* const* rows,
                      float* out) {
    constexpr int COUNT = 2 * passes(T, Kernel::PASS_ROWS);
    std::memset(out, 0, T * TILE * sizeof(float));
    size_t x = 0;
    for (size_t at = 0; at < bytes; at += Kernel::STRETCH, x += Kernel::STRETCH_INPUTS)
        stretch<Kernel, T>(tile + at, tile + std::min(at + Kernel::STRETCH, bytes),
                           {soon + at, TURN / COUNT}, rows, x, out);
}

}  // namespace fastslow
