// A weight format: how a matrix is packed, how rows of inputs are made ready, and their product.
//
// A tile is 32 outputs by all inputs, one contiguous run of bytes: each core reads one stream, and
// two sums per row hide the latency of a dot instruction. Tiles of a matrix lie in a row.
// Inputs are padded with zeros to a multiple of `step`, outputs to whole tiles.
#pragma once

#include <cstddef>
#include <cstdint>

// What Python sees.
#define EXPORT __attribute__((visibility("default")))

namespace fastslow {

constexpr int TILE = 32;       // outputs of a tile
constexpr int MOST_ROWS = 64;  // no format multiplies more rows at once
constexpr int AHEAD = 8192;    // bytes between what is read and what is asked for meanwhile

// One tile times the rows: out[row][TILE]. rows[i] are prepared rows. `soon` is what a later call reads,
// AHEAD bytes on or more: as many bytes as the tile has are asked for while it is read.
//
// For each output of each row the order of the sum is the same whatever the number of rows.
typedef void (*Product)(const uint8_t* tile, const uint8_t* soon, int inputs, const uint8_t* const* rows,
                        float* out);

// What a product does meanwhile, since vectors are idle while tiles are multiplied: some of it at each call.
struct Beside {
    void (*call)(void* of);
    void* of;
};

// A product of PASS_ROWS rows at one distance; their sums lie `width` floats apart. It asks for so many lines of `soon`
// and calls Beside about once for each PASS_INPUTS inputs.
constexpr int PASS_ROWS = 32, PASS_INPUTS = 32;
typedef void (*Pass)(const uint8_t* tile, const uint8_t* soon, int lines, int inputs, const uint8_t* rows,
                     size_t stride, float* out, size_t width, const Beside& beside);

struct Format {
    int step;  // inputs are padded to a multiple of this
    int rows;  // most rows of one product
    const Product* product;  // product[n - 1] multiplies n rows, 1 <= n <= rows

    // Bytes of a packed tile and of a prepared row: multiples of 64. `inputs` is not yet padded.
    size_t (*tile_bytes)(int inputs);
    size_t (*row_bytes)(int inputs);

    // Pack 32 rows of a matrix, each `inputs` floats; a null pointer is a row of zeros. Null where a
    // format has numbers of a file's only.
    void (*pack)(uint8_t* tile, const float* const* weights, int inputs);

    // Prepare one row of `inputs` floats. Both sides of the product are 64-byte aligned.
    void (*prepare)(uint8_t* row, const float* x, int inputs);

    // One row of a tile as floats.
    void (*unpack)(const uint8_t* tile, int inputs, int output, float* out);

    // Pack 32 rows that are blocks of a GGUF file, bit for bit, each block of so many inputs in so many
    // bytes; a null pointer is a row of zeros. `inputs` is a multiple of a block's. Null where a format
    // has none.
    void (*pack_blocks)(uint8_t* tile, const uint8_t* const* rows, int inputs);
    int block_inputs, block_bytes;

    // From so many rows on, not 0, they go in whole tiles of 16: they lie at one distance from each other, and as
    // many as fill the tiles can be read, and their sums written, though nobody looks at them.
    int tile_rows = 0;
    Pass pass = nullptr;  // null where a product does nothing beside
};

// Mirror of formats.py.
enum FormatId {
    F32, BF16, INT8, INT4, Q4_0, Q4_1, Q5_0, Q8_0, Q4_K, Q5_K, Q6_K, MXFP4, F16, U4_32, U4_128, U8_32, U8_128,
    FORMATS
};

bool has_format(int id);
const Format& format_of(int id);  // F32 for one that is not there

// Pack 32 rows of `inputs` bytes and their scales as an INT8 tile, bit for bit; a null pointer is a row of
// zeros, whose scale is not read.
void pack_int8(uint8_t* tile, const int8_t* const* rows, const float* const* scales, int inputs);

static inline int padded(int inputs, int step) { return (inputs + step - 1) / step * step; }
static inline size_t to64(size_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace fastslow
