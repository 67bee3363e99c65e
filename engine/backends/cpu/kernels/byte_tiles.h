// Many rows of integer weights in matrix tiles: a tile's numbers are unpacked to bytes once, and rows pass over
// them sixteen at a time. Whole numbers are exact, and the rest of a sum is that of few rows: same bits.
//
// Unpacked, a block is [8 quads][32 outputs][4] bytes, then float scales of its parts' outputs and minima, where
// a format has any.
#pragma once

#include <algorithm>
#include <type_traits>

#include "amx.h"
#include "blocks.h"

namespace fastslow {

#if defined(FASTSLOW_AMX)
constexpr int FILLED = 13;  // so many rows pay for a tile
constexpr int MANY = AMX_ROWS + FILLED;  // and so many for unpacking
constexpr int TILE_ROWS = MANY;
constexpr int most_rows(int) { return MOST_ROWS; }

// From says how: PARTS of a block with a scale each, SCALED and MINIMA: whether there are scales and minima,
// SIGNED: whether the bytes are, ROW_BYTES: from block to block of a row; blocks(inputs), and
// to_bytes(tile, soon, inputs, first block, blocks, to); finish(tile, inputs, rows, out) ends the sums.
template <class From> struct ByteTiles {
    static constexpr int PARTS = From::PARTS;
    static constexpr int SCALES = BLOCK * TILE, MINIMA = SCALES + (From::SCALED ? 4 * TILE * PARTS : 0);
    static constexpr int BYTES = MINIMA + (From::MINIMA ? 4 * TILE : 0);  // of an unpacked block
    static constexpr int STRETCH = 64;  // blocks that are unpacked at once; they stay in L2
    static constexpr int SUMS = AMX_BYTES / 4;  // outputs of a pass

    static constexpr TileConfig tiles() {
        TileConfig config = WHOLE_TILES;
        for (int tile : {4, 5}) config.row_bytes[tile] = BLOCK / PARTS;
        for (int tile : {6, 7}) config.rows[tile] = QUADS / PARTS;
        return config;
    }
    static inline constexpr TileConfig TILES = tiles();

    // The dots of a part of a block.
    template <int N> INLINE static void dots(const uint8_t* w, const uint8_t* x, size_t stride, int32_t* to) {
        tile_zero<N>();
        tile_load<4 + N>(x, stride);
        tile_load<6 + N>(w, 4 * TILE);
        if constexpr (From::SIGNED) tile_signed<N, 4 + N, 6 + N>();
        else tile_signed_unsigned<N, 4 + N, 6 + N>();
        tile_store<N>(to, AMX_BYTES);
    }

    // They are scaled and added; x is the rows' block. Sixteen rows lie 1, 2 and 3 strides from four of them.
    INLINE static void add(vf* sum, const int32_t* dot, const uint8_t* x, size_t stride, vf d, vf m, bool last) {
        const size_t thrice = 3 * stride;
        const uint8_t* four[] = {x, x + 4 * stride, x + 8 * stride, x + 12 * stride};
        UNROLL for (int t = 0; t < AMX_ROWS; t++) {
            const uint8_t* row = four[t / 4] + (t % 4 == 3 ? thrice : t % 4 * stride) + BLOCK;
            const vf scale = splat(load<float>(row));
            sum[t] = fma(to_float(load<vi>(dot + SUMS * t)), From::SCALED ? d * scale : scale, sum[t]);
            if (From::MINIMA && last) sum[t] = fma(m, splat(load<float>(row + 4)), sum[t]);
        }
    }

    // Sixteen outputs of sixteen rows: while a part's dots are stored, the last one's are added.
    static void pass(const uint8_t* w, int blocks, const uint8_t* x, size_t stride, float* out, int first) {
        alignas(64) int32_t dot[2][AMX_ROWS * SUMS];
        vf sum[AMX_ROWS];
        UNROLL for (int t = 0; t < AMX_ROWS; t++) sum[t] = load<vf>(out + t * TILE + first);
        w += 4 * first;
        auto begin = [&](auto n, int at) __attribute__((always_inline)) {
            const int block = at / PARTS, part = at % PARTS;
            dots<n()>(w + block * BYTES + part * (BLOCK * TILE / PARTS),
                    x + block * From::ROW_BYTES + part * (BLOCK / PARTS), stride, dot[n()]);
        };
        auto end = [&](auto n, int at) __attribute__((always_inline)) {
            const int block = at / PARTS, part = at % PARTS;
            const uint8_t* of = w + block * BYTES;
            vf d{}, m{};
            if constexpr (From::SCALED) d = load<vf>(of + SCALES + 4 * TILE * part);
            if constexpr (From::MINIMA) m = load<vf>(of + MINIMA);
            add(sum, dot[n()], x + block * From::ROW_BYTES, stride, d, m, part + 1 == PARTS);
        };
        const int count = blocks * PARTS;
        const std::integral_constant<int, 0> even;
        const std::integral_constant<int, 1> odd;
        begin(even, 0);
        for (int at = 0; at < count; at += 2) {
            if (at + 1 < count) begin(odd, at + 1);
            end(even, at);
            if (at + 1 == count) break;
            if (at + 2 < count) begin(even, at + 2);
            end(odd, at + 1);
        }
        UNROLL for (int t = 0; t < AMX_ROWS; t++) store(out + t * TILE + first, sum[t]);
    }

    // `count` whole tiles of rows at one distance.
    __attribute__((noinline))
    static void product(const uint8_t* tile, const uint8_t* soon, int inputs, const uint8_t* x, size_t stride,
                        int count, float* out) {
        const int blocks = From::blocks(inputs);
        alignas(64) uint8_t unpacked[STRETCH * BYTES];
        std::memset(out, 0, sizeof(float) * TILE * AMX_ROWS * count);
        configure(TILES);
        for (int first = 0; first < blocks; first += STRETCH) {
            const int some = std::min(STRETCH, blocks - first);
            From::to_bytes(tile, soon, inputs, first, some, unpacked);
            for (int i = 0; i < count; i++)
                for (int half = 0; half < TILE; half += SUMS)
                    pass(unpacked, some, x + first * From::ROW_BYTES + i * AMX_ROWS * stride, stride,
                         out + i * AMX_ROWS * TILE, half);
        }
        configure(WHOLE_TILES);
        From::finish(tile, inputs, count * AMX_ROWS, out);
    }
};

// T rows, MANY or more: as many as fill tiles in these, the others as few.
template <class Kernel, int T>
static void in_tiles(const uint8_t* tile, const uint8_t* soon, int inputs, const uint8_t* const* rows, float* out) {
    constexpr int TILES = (T + AMX_ROWS - FILLED) / AMX_ROWS, DONE = TILES * AMX_ROWS;
    ByteTiles<Kernel>::product(tile, soon, inputs, rows[0], rows[1] - rows[0], TILES, out);
    if constexpr (DONE < T) Kernel::template product<T - DONE>(tile, soon, inputs, rows + DONE, out + DONE * TILE);
}
#else
constexpr int MANY = MOST_ROWS + 1;  // there are none
constexpr int TILE_ROWS = 0;
constexpr int most_rows(int few) { return few; }

template <class Kernel, int T>
static void in_tiles(const uint8_t*, const uint8_t*, int, const uint8_t* const*, float*) {}
#endif

// T rows as two products.
template <class Kernel, int T>
static void in_two(const uint8_t* tile, const uint8_t* soon, int inputs, const uint8_t* const* rows, float* out) {
    constexpr int HALF_ROWS = T / 2;
    Kernel::template product<HALF_ROWS>(tile, soon, inputs, rows, out);
    Kernel::template product<T - HALF_ROWS>(tile, soon, inputs, rows + HALF_ROWS, out + HALF_ROWS * TILE);
}

}  // namespace fastslow
