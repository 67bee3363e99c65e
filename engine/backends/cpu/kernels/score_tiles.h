// Attention over bfloat16 in matrix tiles: sixteen queries times a tile of keys, their masses times tiles of values.
//
// A tile of keys is B of a product as it lies there, 32 places of a head in a turn; a tile of values is half of one,
// its sixteen slots. A query's sums are the same whatever queries share its tiles.
#pragma once

#include <algorithm>
#include <cstring>

#include "amx.h"
#include "attention.h"
#include "tile.h"

namespace fastslow {

#if defined(FASTSLOW_AMX)

// Tiles 0 to 5 are whole; 6 has half of A's columns, 7 half of B's rows.
constexpr TileConfig half_tiles() {
    TileConfig config = whole_tiles();
    config.row_bytes[6] = AMX_BYTES / 2;
    config.rows[7] = AMX_ROWS / 2;
    return config;
}
inline constexpr TileConfig HALF_TILES = half_tiles();

struct UseHalfTiles {
    UseHalfTiles() { configure(HALF_TILES); }
    ~UseHalfTiles() { configure(WHOLE_TILES); }
    UseHalfTiles(const UseHalfTiles&) = delete;
};

// Queries, each `dim` bfloat16, times a tile of keys; scores of SCORE_STRIDE floats. Whole tiles of queries are read,
// and of scores written: what follows the last ones is anybody's.
static inline void score_in_tiles(const uint16_t* keys, int dim, int count, const uint16_t* queries, float* scores,
                                  const char* soon) {
    const size_t stride = sizeof(uint16_t) * dim;
    for (int line = 0; line < dim / 2; line++) prefetch_to_l2(soon + line * 64);
    for (int i = 0; i < count; i += AMX_ROWS, queries += (size_t)AMX_ROWS * dim, scores += AMX_ROWS * SCORE_STRIDE) {
        tile_zero<0>();
        int d = 0;
        for (; d + 32 <= dim; d += 32) {
            tile_load<1>(queries + d, stride);
            tile_load<2>(keys + d * LANES, AMX_BYTES);
            tile_bf16<0, 1, 2>();
        }
        if (d < dim) {
            tile_load<6>(queries + d, stride);
            tile_load<7>(keys + d * LANES, AMX_BYTES);
            tile_bf16<0, 6, 7>();
        }
        tile_store<0>(scores, sizeof(float) * SCORE_STRIDE);
    }
}

// The first lanes of a tile of values, and zeros behind them: 0 times what is there might be no number.
static inline const uint16_t* cut_values(const uint16_t* tile, int lanes, int dim, uint16_t* to) {
    const size_t row = 2 * (size_t)dim, whole = lanes / 2 * row;
    if (tile != to) std::memcpy(to, tile, sizeof(uint16_t) * (lanes % 2 ? whole + row : whole));
    if (lanes % 2)
        for (size_t d = 1; d < row; d += 2) to[whole + d] = 0;
    const size_t end = lanes % 2 ? whole + row : whole;
    std::memset(to + end, 0, sizeof(uint16_t) * (LANES * (size_t)dim - end));
    return to;
}

static inline bool all_finite(const uint16_t* tile, int dim) {
    const __m512i ones = _mm512_set1_epi16(0x7f80);
    __mmask32 found = 0;
    for (int at = 0; at < LANES * dim; at += 32)
        found |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(_mm512_loadu_si512(tile + at), ones), ones);
    return !found;
}

// Sums of `width` floats, as many as A has rows, of C times 16 columns from `d` on, += masses times `count` tiles.
template <int C>
static inline void weigh_columns(const uint16_t* const* tiles, int count, int dim, int d, const uint16_t* masses,
                                 float* sums, int width, bool more) {
    const size_t row = sizeof(float) * width;
    sums += d;
    if (more) {
        tile_load<0>(sums, row);
        if constexpr (C > 1) tile_load<1>(sums + 16, row);
        if constexpr (C > 2) tile_load<2>(sums + 32, row);
        if constexpr (C > 3) tile_load<3>(sums + 48, row);
    } else {
        tile_zero<0>();
        tile_zero<1>();
        tile_zero<2>();
        tile_zero<3>();
    }
    const size_t stride = 2 * sizeof(uint16_t) * dim;
    for (int t = 0; t < count; t++, masses += LANES) {
        const uint16_t* values = tiles[t] + 2 * d;
        tile_load<6>(masses, sizeof(float) * SCORE_STRIDE);
        tile_load<7>(values, stride);
        tile_bf16<0, 6, 7>();
        if constexpr (C > 1) tile_load<7>(values + 32, stride);
        if constexpr (C > 1) tile_bf16<1, 6, 7>();
        if constexpr (C > 2) tile_load<7>(values + 64, stride);
        if constexpr (C > 2) tile_bf16<2, 6, 7>();
        if constexpr (C > 3) tile_load<7>(values + 96, stride);
        if constexpr (C > 3) tile_bf16<3, 6, 7>();
    }
    tile_store<0>(sums, row);
    if constexpr (C > 1) tile_store<1>(sums + 16, row);
    if constexpr (C > 2) tile_store<2>(sums + 32, row);
    if constexpr (C > 3) tile_store<3>(sums + 48, row);
}

// The same of all columns.
static inline void weigh_in_tiles(const uint16_t* const* tiles, int count, int dim, const uint16_t* masses,
                                  float* sums, int width, bool more) {
    int d = 0;
    for (; d + 64 <= dim; d += 64) weigh_columns<4>(tiles, count, dim, d, masses, sums, width, more);
    if (dim - d == 48) weigh_columns<3>(tiles, count, dim, d, masses, sums, width, more);
    if (dim - d == 32) weigh_columns<2>(tiles, count, dim, d, masses, sums, width, more);
    if (dim - d == 16) weigh_columns<1>(tiles, count, dim, d, masses, sums, width, more);
}

#else

struct UseHalfTiles {
    UseHalfTiles() {}
    UseHalfTiles(const UseHalfTiles&) = delete;
};

#endif

}  // namespace fastslow
