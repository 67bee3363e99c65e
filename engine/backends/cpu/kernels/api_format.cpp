// The formats for callers of other languages: whole matrices, any number of rows. For tests, and
// for packing; the engine's own phases call the formats' tables.
#include <cstdlib>
#include <memory>

#include "amx.h"
#include "format.h"

using namespace fastslow;

namespace {

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};
template <class E> using Aligned = std::unique_ptr<E[], Free>;

template <class E> Aligned<E> aligned(size_t count) {
    return Aligned<E>((E*)std::aligned_alloc(64, to64(count * sizeof(E))));
}

// The rows of tile i of a matrix, each `stride` elements long; null past the last.
template <class E>
void rows_of(const E** rows, const E* matrix, int i, int outputs, size_t stride) {
    for (int o = 0; o < TILE; o++) {
        const int row = i * TILE + o;
        rows[o] = row < outputs ? matrix + row * stride : nullptr;
    }
}

int tiles_of(int outputs) { return (outputs + TILE - 1) / TILE; }

}  // namespace

extern "C" {

size_t fs_tile_bytes(int id, int inputs) { return format_of(id).tile_bytes(inputs); }

// Whether floats can be packed in a format.
int fs_packs(int id) { return format_of(id).pack != nullptr; }

// weights: [outputs][inputs], contiguous. tile: room for ceil(outputs / 32) tiles.
void fs_pack(int id, uint8_t* tile, const float* weights, int outputs, int inputs) {
    const Format& format = format_of(id);
    const float* rows[TILE];
    for (int i = 0; i < tiles_of(outputs); i++, tile += format.tile_bytes(inputs)) {
        rows_of(rows, weights, i, outputs, (size_t)inputs);
        format.pack(tile, rows, inputs);
    }
}

// Inputs and bytes of a block of GGUF that a format is packed from; 0 where there is none.
void fs_block(int id, int* inputs, int* bytes) {
    *inputs = format_of(id).block_inputs;
    *bytes = format_of(id).block_bytes;
}

// rows: [outputs] of blocks, each of a whole number of blocks, or null for a row of zeros; `outputs` is a
// multiple of 32.
void fs_pack_blocks(int id, uint8_t* tile, const uint8_t* const* rows, int outputs, int inputs) {
    const Format& format = format_of(id);
    for (int first = 0; first < outputs; first += TILE, tile += format.tile_bytes(inputs))
        format.pack_blocks(tile, rows + first, inputs);
}

// out: [outputs][inputs], contiguous: what packed tiles mean.
void fs_unpack(int id, const uint8_t* tile, int outputs, int inputs, float* out) {
    const Format& format = format_of(id);
    for (int o = 0; o < outputs; o++, out += inputs)
        format.unpack(tile + o / TILE * format.tile_bytes(inputs), inputs, o % TILE, out);
}

// weights: [outputs][inputs] bytes, scales: [outputs], contiguous.
void fs_pack_int8(uint8_t* tile, const int8_t* weights, const float* scales, int outputs, int inputs) {
    const int8_t* rows[TILE];
    const float* steps[TILE];
    const size_t bytes = format_of(INT8).tile_bytes(inputs);
    for (int i = 0; i < tiles_of(outputs); i++, tile += bytes) {
        rows_of(rows, weights, i, outputs, (size_t)inputs);
        rows_of(steps, scales, i, outputs, 1);
        pack_int8(tile, rows, steps, inputs);
    }
}

// x: [count][inputs], out: [count][outputs], contiguous. tile: 64-byte aligned.
// Returns 0, or 1 when there is no memory for the prepared rows.
int fs_product(int id, const uint8_t* tile, int outputs, int inputs, const float* x, int count,
               float* out) {
    const Format& format = format_of(id);
    const size_t row_bytes = format.row_bytes(inputs);
    const auto prepared = aligned<uint8_t>(row_bytes * format.rows);
    const auto sums = aligned<float>((size_t)format.rows * TILE);
    if (!prepared || !sums) return 1;
    const uint8_t* rows[MOST_ROWS];
    const UseTiles use;
    for (int first = 0; first < count; first += format.rows) {
        const int n = count - first < format.rows ? count - first : format.rows;
        for (int t = 0; t < n; t++) {
            uint8_t* row = prepared.get() + t * row_bytes;
            format.prepare(row, x + (size_t)(first + t) * inputs, inputs);
            rows[t] = row;
        }
        const uint8_t* at = tile;
        for (int i = 0; i < tiles_of(outputs); i++, at += format.tile_bytes(inputs)) {
            format.product[n - 1](at, at + AHEAD, inputs, rows, sums.get());
            for (int t = 0; t < n; t++)
                for (int o = 0; o < TILE && i * TILE + o < outputs; o++)
                    out[(size_t)(first + t) * outputs + i * TILE + o] = sums[t * TILE + o];
        }
    }
    return 0;
}

}  // extern "C"
