// How the products of all formats are laid out: how many rows at once, and their table.
#pragma once

#include <cstddef>
#include <utility>

#include "format.h"
#include "simd.h"

namespace fastslow {

// Most rows of a product. AVX-512 has 32 registers: 24 sums, 2 weights, an input. Others have 16, or 32 short ones:
// AVX2 and NEON take many rows in passes, see passes.h.
#if defined(FASTSLOW_AVX512) || defined(FASTSLOW_AVX2) || defined(FASTSLOW_NEON)
constexpr int ROWS = 12;
#else
constexpr int ROWS = 3;
#endif

constexpr int VECTORS = TILE / W;  // vectors of a tile's outputs
constexpr int LINE = 64;           // bytes of a cache line

// Bytes to ask for with each of T rows, whole lines, so that the rows cover `bytes`: lines that are asked
// for all at once wait for each other.
constexpr int to_share(int bytes, int T) { return (bytes / LINE + T - 1) / T * LINE; }

// Vectors that T rows of floats sum at once, in as many passes as the tile then takes: where
// vectors are short, few rows have registers for all of them.
constexpr int once(int T) { return T * VECTORS < REGISTERS * 3 / 4 + 1 || VECTORS < 4 ? VECTORS : 4; }

// How fine rows in int8 are: so many steps to the largest of inputs that share a scale.
#if defined(FASTSLOW_AMX)
constexpr int SHARING = 1 << 30;  // all of a row
constexpr float STEPS = 127 * 256;
#else
constexpr int SHARING = 32;
constexpr float STEPS = 127;
#endif

// What such inputs are multiplied by first, so that STEPS / largest is finite: a power of two, which rounds nothing.
inline float lifted(float largest) { return largest < 1e-30f ? 0x1p64f : 1.0f; }

#define INLINE __attribute__((always_inline)) inline

static_assert(ROWS <= MOST_ROWS, "no format multiplies more rows");

// The table of Kernel::product<T> for T = 1 to MOST.
template <class Kernel, int MOST = ROWS, class = std::make_index_sequence<MOST>> struct Products;
template <class Kernel, int MOST, size_t... I> struct Products<Kernel, MOST, std::index_sequence<I...>> {
    static constexpr Product table[] = {&Kernel::template product<int(I) + 1>...};
};

// Ask for the lines at an address.
template <int BYTES> static inline void prefetch_lines(const uint8_t* soon) {
    UNROLL for (int at = 0; at < BYTES; at += LINE) prefetch(soon + at);
}

}  // namespace fastslow
