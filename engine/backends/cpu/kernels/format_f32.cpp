// float32 weights, the reference among the formats, and weights in half precision.
//
// Tile: [input][32 outputs] numbers. Row: floats. One sum per output, in the order of the inputs.
#include "half.h"
#include "passes.h"

namespace fastslow {
namespace {

constexpr int STEP = 16;

struct Floats {
    static constexpr int SIZE = 4, PARTS = 1;
    static vf part(const uint8_t* w, int v, int) { return load<vf>(w + sizeof(vf) * v); }
    static void put(uint8_t* at, float x) { store(at, x); }
    static float get(const uint8_t* at) { return load<float>(at); }
};

struct Halves {
    static constexpr int SIZE = 2, PARTS = 2;
    static vf part(const uint8_t* w, int v, int part) {
        return from_half(load<vh>(w + SIZE * TILE * part + sizeof(vh) * v));
    }
    static void put(uint8_t* at, float x) { store(at, to_half(x)); }
    static float get(const uint8_t* at) { return from_half(load<uint16_t>(at)); }
};

size_t row_bytes(int inputs) { return 4 * (size_t)padded(inputs, STEP); }

void prepare(uint8_t* row, const float* x, int inputs) {
    std::memset(row + 4 * (size_t)inputs, 0, row_bytes(inputs) - 4 * (size_t)inputs);
    std::memcpy(row, x, 4 * (size_t)inputs);
}

template <class Weights> struct Kernel : FloatPasses<Weights> {
    static constexpr int SIZE = Weights::SIZE;

    static size_t tile_bytes(int inputs) { return SIZE * (size_t)TILE * padded(inputs, STEP); }

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
            const uint8_t* w = tile;
            vf sum[T][ONCE] = {};
            for (size_t k = 0; k < 4 * (size_t)n; k += 4, w += SIZE * TILE) {
                vf weight[ONCE];
                UNROLL for (int v = 0; v < ONCE; v++) weight[v] = Weights::part(w, first + v, 0);
                prefetch_lines<ONCE * W * SIZE>(w + W * SIZE * first + ahead);
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

    static uint8_t* at(const uint8_t* tile, int k, int output) {
        return (uint8_t*)tile + SIZE * ((size_t)k * TILE + output);
    }

    static void pack(uint8_t* tile, const float* const* weights, int inputs) {
        std::memset(tile, 0, tile_bytes(inputs));
        for (int o = 0; o < TILE; o++)
            if (weights[o])
                for (int k = 0; k < inputs; k++) Weights::put(at(tile, k, o), weights[o][k]);
    }

    static void unpack(const uint8_t* tile, int inputs, int output, float* out) {
        for (int k = 0; k < inputs; k++) out[k] = Weights::get(at(tile, k, output));
    }

    static constexpr Format format() {
        return {STEP, ROWS,    Products<Kernel>::table, tile_bytes, row_bytes, pack,
                prepare, unpack, nullptr,               0,          0};
    }
};

}  // namespace

extern const Format f32_format = Kernel<Floats>::format();
extern const Format f16_format = Kernel<Halves>::format();

}  // namespace fastslow
