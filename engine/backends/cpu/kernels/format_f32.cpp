// float32 weights: the reference among the formats.
//
// Tile: [input][32 outputs] floats. Row: floats. One sum per output, in the order of the inputs.
#include "passes.h"

namespace fastslow {
namespace {

constexpr int STEP = 16;

size_t tile_bytes(int inputs) { return 4 * (size_t)TILE * padded(inputs, STEP); }

struct Floats {
    static constexpr int PARTS = 1;
    static vf part(const uint8_t* at, int) { return load<vf>(at); }
};

struct Kernel : FloatPasses<Floats> {
    template <int T>
    static void product(const uint8_t* __restrict tile, const uint8_t* soon, int inputs,
                        const uint8_t* const* rows, float* __restrict out) {
        if constexpr (T > FLOATS_AT_ONCE)
            return in_passes<Kernel, T>(tile, soon, tile_bytes(inputs), rows, out);
        const ptrdiff_t ahead = soon - tile;
        const int n = padded(inputs, STEP);
        const uint8_t* x[T];
        UNROLL for (int t = 0; t < T; t++) x[t] = rows[t];
        constexpr int ONCE = once(T);
        for (int first = 0; first < VECTORS; first += ONCE) {
            const uint8_t* w = tile + sizeof(vf) * first;
            vf sum[T][ONCE] = {};
            for (size_t k = 0; k < 4 * (size_t)n; k += 4, w += 4 * TILE) {
                vf weight[ONCE];
                UNROLL for (int v = 0; v < ONCE; v++) weight[v] = load<vf>(w + sizeof(vf) * v);
                prefetch_lines<sizeof weight>(w + ahead);
                UNROLL for (int t = 0; t < T; t++) {
                    const vf input = splat(load<float>(x[t] + k));
                    UNROLL for (int v = 0; v < ONCE; v++)
                        sum[t][v] = fma(weight[v], input, sum[t][v]);
                }
            }
            UNROLL for (int t = 0; t < T; t++)
                UNROLL for (int v = 0; v < ONCE; v++)
                    store(out + t * TILE + (first + v) * W, sum[t][v]);
        }
    }
};

size_t row_bytes(int inputs) { return 4 * (size_t)padded(inputs, STEP); }

void pack(uint8_t* tile, const float* const* weights, int inputs) {
    std::memset(tile, 0, tile_bytes(inputs));
    for (int o = 0; o < TILE; o++)
        if (weights[o])
            for (int k = 0; k < inputs; k++)
                store(tile + 4 * ((size_t)k * TILE + o), weights[o][k]);
}

void prepare(uint8_t* row, const float* x, int inputs) {
    std::memset(row + 4 * (size_t)inputs, 0, row_bytes(inputs) - 4 * (size_t)inputs);
    std::memcpy(row, x, 4 * (size_t)inputs);
}

}  // namespace

extern const Format f32_format = {
    STEP, ROWS, Products<Kernel>::table, tile_bytes, row_bytes, pack, prepare,
};

}  // namespace fastslow
