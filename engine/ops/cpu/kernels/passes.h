// Many rows where 16 registers hold the sums of few: weights and rows in passes.
//
// A stretch of inputs is short enough for its weights to stay in L1 while all rows pass over it, some
// rows and two vectors of outputs at a time; between stretches, sums lie in `out`. So weights are
// read from memory once, and each sum is still taken in the order of the inputs.
#pragma once

#include <algorithm>

#include "product.h"

namespace fastslow {

#if defined(FASTSLOW_PASSES)
constexpr int AT_ONCE = 2;  // rows that need no passes
#else
constexpr int AT_ONCE = ROWS;
#endif
constexpr int STRETCH = 128;     // inputs
constexpr int PASS_ROWS = 6;     // 12 sums, 2 weights, an input
constexpr int PASS_VECTORS = 2;  // a cache line of outputs

// The float sums of a pass.
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

// What passes ask for: each a part of what will be read next, line after line as memory likes it.
struct Fetch {
    const uint8_t* at;
    size_t step;

    INLINE void next() {
        prefetch(at);
        at += step;
    }
};

// T rows over a stretch whose weights begin at w, in the fewest passes, of even sizes. A pass adds the
// products of inputs first to last - 1 to the sums of N rows, for PASS_VECTORS vectors of outputs.
template <class Kernel, int T>
static void stretch(const uint8_t* w, Fetch soon, const uint8_t* const* rows, int first, int last,
                    float* out) {
    constexpr int PASSES = (T + PASS_ROWS - 1) / PASS_ROWS, N = (T + PASSES - 1) / PASSES;
    for (int v = 0; v < VECTORS; v += PASS_VECTORS) {
        Kernel::template pass<N>(w + v * Kernel::VECTOR_BYTES, soon, rows, first, last, out + v * W);
        soon.at += soon.step * ((last - first) / Kernel::INPUTS);
    }
    if constexpr (N < T) stretch<Kernel, T - N>(w, soon, rows + N, first, last, out + N * TILE);
}

// A whole tile. `inputs` are padded.
template <class Kernel, int T>
static void in_passes(const uint8_t* tile, const uint8_t* soon, int inputs, const uint8_t* const* rows,
                      float* out) {
    constexpr int PASSES = (T + PASS_ROWS - 1) / PASS_ROWS * (VECTORS / PASS_VECTORS);
    std::memset(out, 0, T * TILE * sizeof(float));
    for (int first = 0; first < inputs; first += STRETCH) {
        const size_t at = (size_t)first / Kernel::INPUTS * Kernel::BYTES;
        stretch<Kernel, T>(tile + at, {soon + at, Kernel::BYTES / PASSES}, rows, first,
                           std::min(first + STRETCH, inputs), out);
    }
}

}  // namespace fastslow
