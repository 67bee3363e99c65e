// A weight format: how a matrix is packed, how rows of inputs are made ready, and their product.
//
// A tile is 32 outputs by all inputs, one contiguous run of bytes: each core reads one stream, and
// two sums per row hide the latency of a dot instruction. Tiles of a matrix lie in a row.
// Inputs are padded with zeros to a multiple of `step`, outputs to whole tiles.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastslow {

constexpr int TILE = 32;       // outputs of a tile
constexpr int MOST_ROWS = 16;  // no format multiplies more rows at once
constexpr int AHEAD = 8192;    // bytes between what is read and what is asked for meanwhile

// One tile times the rows: out[row][TILE]. rows[i] are prepared rows. `soon` is what a later call reads,
// AHEAD bytes on or more: as many bytes as the tile has are asked for while it is read.
//
// For each output of each row the order of the sum is the same whatever the number of rows.
typedef void (*Product)(const uint8_t* tile, const uint8_t* soon, int inputs, const uint8_t* const* rows,
                        float* out);

struct Format {
    int step;  // inputs are padded to a multiple of this
    int rows;  // most rows of one product
    const Product* product;  // product[n - 1] multiplies n rows, 1 <= n <= rows

    // Bytes of a packed tile and of a prepared row: multiples of 64. `inputs` is not yet padded.
    size_t (*tile_bytes)(int inputs);
    size_t (*row_bytes)(int inputs);

    // Pack 32 rows of a matrix, each `inputs` floats; a null pointer is a row of zeros.
    void (*pack)(uint8_t* tile, const float* const* weights, int inputs);

    // Prepare one row of `inputs` floats. Both sides of the product are 64-byte aligned.
    void (*prepare)(uint8_t* row, const float* x, int inputs);
};

enum FormatId { F32 = 0, BF16 = 1, INT8 = 2, INT4 = 3 };

extern const Format f32_format, bf16_format, int8_format, int4_format;

const Format& format_of(int id);

// Pack 32 rows that are Q4_1 blocks of GGUF as an INT4 tile, bit for bit; a null pointer is a row
// of zeros. `inputs` is a multiple of 32.
void pack_q4_1(uint8_t* tile, const uint8_t* const* rows, int inputs);

// Pack 32 rows of `inputs` bytes and their scales as an INT8 tile, bit for bit; a null pointer is a row of
// zeros, whose scale is not read.
void pack_int8(uint8_t* tile, const int8_t* const* rows, const float* const* scales, int inputs);

// One row of an INT8 tile as floats.
void unpack_int8(const uint8_t* tile, int inputs, int output, float* out);

static inline int padded(int inputs, int step) { return (inputs + step - 1) / step * step; }
static inline size_t to64(size_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace fastslow
