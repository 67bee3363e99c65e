// int8 weights with one scale per output; inputs in int8 blocks.
//
// Tile: [quad of inputs][32 outputs][4] bytes, each weight + 128, then 32 float scales. A dot
// instruction takes unsigned times signed bytes and repeats only the signed: hence the + 128,
// which the block's extra word, -128 times the sum of its inputs, takes back.
#include "byte_tiles.h"
#include "passes.h"

namespace fastslow {
namespace {

constexpr int STEP = HALF;
constexpr int QUAD_BYTES = 4 * TILE;

// Rows whose integer and float sums nearly fit the registers: the compiler spills a few of eight rows'
// sums, which still takes less than a second pass over the weights.
#if defined(FASTSLOW_VNNI) && defined(FASTSLOW_AVX512)
constexpr int MOST = 8;
#elif defined(FASTSLOW_AVX512)
constexpr int MOST = 6;
#else
constexpr int MOST = ROWS;
#endif

struct Kernel {
    // A block: each row's integer and float sums stay in registers, and weights pass by.
    template <int T, int N>
    INLINE static void block(const uint8_t* w, ptrdiff_t ahead, const uint8_t* const* x, size_t at,
                             vf (*sum)[VECTORS]) {
        vi dot[T][VECTORS];
        UNROLL for (int t = 0; t < T; t++)
            UNROLL for (int v = 0; v < VECTORS; v++)
                dot[t][v] = splat(load<int32_t>(x[t] + at + Bytes::EXTRA));
        UNROLL_QUADS for (int q = 0; q < N; q++) {
            const uint8_t* quad = w + QUAD_BYTES * q;
            prefetch_lines<VECTORS * sizeof(vu)>(quad + ahead);
            UNROLL for (int v = 0; v < VECTORS; v++) {
                const Bytes weights(load<vu>(quad + sizeof(vu) * v));
                UNROLL for (int t = 0; t < T; t++)
                    dot[t][v] = weights.times(x[t] + at + Bytes::QUAD * q, dot[t][v]);
            }
        }
        UNROLL for (int t = 0; t < T; t++) {
            const vf scale = splat(load<float>(x[t] + at + Bytes::SCALE));
            UNROLL for (int v = 0; v < VECTORS; v++)
                sum[t][v] = fma(to_float(dot[t][v]), scale, sum[t][v]);
        }
    }

#if defined(FASTSLOW_AVX2)
    static constexpr int PASS_ROWS = 4;  // 8 dots, 2 weights in halves, a quad of inputs
    static constexpr size_t STRETCH = 8 * BLOCK * TILE, STRETCH_INPUTS = 8 * Bytes::BYTES;

    template <int T, int FIRST>
    static void pass(const uint8_t* w, const uint8_t* end, Fetch soon, const uint8_t* const* rows,
                     size_t at, float* out) {
        const uint8_t* x[T];
        UNROLL for (int t = 0; t < T; t++) x[t] = rows[t];
        for (; w < end; at += Bytes::BYTES) {
            move_on(out);
            vi dot[T][PASS_VECTORS];
            UNROLL for (int t = 0; t < T; t++)
                UNROLL for (int v = 0; v < PASS_VECTORS; v++)
                    dot[t][v] = splat(load<int32_t>(x[t] + at + Bytes::EXTRA));
            const uint8_t* last = std::min(w + BLOCK * TILE, end);
            UNROLL_QUADS for (size_t q = at; w < last; w += QUAD_BYTES, q += Bytes::QUAD) {
                soon.next();
                Bytes weights[PASS_VECTORS];
                UNROLL for (int v = 0; v < PASS_VECTORS; v++)
                    weights[v] = Bytes(load<vu>(w + sizeof(vu) * (FIRST + v)));
                UNROLL for (int t = 0; t < T; t++)
                    UNROLL for (int v = 0; v < PASS_VECTORS; v++)
                        dot[t][v] = weights[v].times(x[t] + q, dot[t][v]);
            }
            UNROLL for (int t = 0; t < T; t++) {
                const vf scale = splat(load<float>(x[t] + at + Bytes::SCALE));
                UNROLL for (int v = 0; v < PASS_VECTORS; v++) {
                    float* to = out + t * TILE + (FIRST + v) * W;
                    store(to, fma(to_float(dot[t][v]), scale, load<vf>(to)));
                }
            }
        }
    }
#endif

    template <int T>
    static void many(const uint8_t* __restrict tile, const uint8_t* soon, int inputs,
                     const uint8_t* const* rows, float* __restrict out) {
        const size_t bytes = (size_t)TILE * padded(inputs, STEP);
        prefetch_lines<4 * TILE>(soon + bytes);
        in_passes<Kernel, T>(tile, soon, bytes, rows, out);
        finish(tile, inputs, T, out);
    }

    // For tiles, see byte_tiles.h.
    static constexpr bool SCALED = false, MINIMA = false, SIGNED = true;
    static constexpr int PARTS = 1, ROW_BYTES = Bytes::BYTES;

    static int blocks(int inputs) { return (inputs + BLOCK - 1) / BLOCK; }

    static void to_bytes(const uint8_t* tile, const uint8_t* soon, int inputs, int first, int some, uint8_t* to) {
        const size_t from = (size_t)first * BLOCK * TILE, most = (size_t)some * BLOCK * TILE;
        const size_t bytes = std::min(most, (size_t)padded(inputs, STEP) * TILE - from);
        for (size_t at = 0; at < bytes; at += LINE) {
            prefetch_to_l2(soon + from + at);
            for (size_t i = at; i < at + LINE; i += sizeof(vu)) store(to + i, load<vu>(tile + from + i) ^ 0x80808080u);
        }
        std::memset(to + bytes, 0, most - bytes);
    }

    // The sums of `count` rows, times the outputs' scales.
    static void finish(const uint8_t* tile, int inputs, int count, float* out) {
        const uint8_t* scales = tile + (size_t)TILE * padded(inputs, STEP);
        UNROLL for (int v = 0; v < VECTORS; v++) {
            const vf some = load<vf>(scales + sizeof(vf) * v);
            for (float* to = out + v * W; to < out + count * TILE; to += TILE) store(to, load<vf>(to) * some);
        }
    }

    template <int T>
    static void few(const uint8_t* __restrict tile, const uint8_t* soon, int inputs, const uint8_t* const* rows,
                    float* __restrict out) {
        const ptrdiff_t ahead = soon - tile;
        const int n = padded(inputs, STEP);
        const uint8_t* x[T];
        UNROLL for (int t = 0; t < T; t++) x[t] = rows[t];
        vf sum[T][VECTORS] = {};
        const uint8_t* w = tile;
        size_t at = 0;
        for (int b = 0; b < n / BLOCK; b++, w += BLOCK * TILE, at += Bytes::BYTES)
            block<T, QUADS>(w, ahead, x, at, sum);
        if (n % BLOCK) block<T, QUADS / 2>(w, ahead, x, at, sum);
        const uint8_t* scales = tile + (size_t)TILE * n;
        prefetch_lines<4 * TILE>(scales + ahead);
        UNROLL for (int t = 0; t < T; t++)
            UNROLL for (int v = 0; v < VECTORS; v++)
                store(out + t * TILE + v * W, sum[t][v] * load<vf>(scales + sizeof(vf) * v));
    }

    template <int T>
    static void product(const uint8_t* tile, const uint8_t* soon, int inputs, const uint8_t* const* rows, float* out) {
        if constexpr (T >= FILLED) {
            in_tiles<Kernel, T>(tile, soon, inputs, rows, out);
        } else if constexpr (T > MOST) {
            product<T / 2>(tile, soon, inputs, rows, out);
            product<T - T / 2>(tile, soon, inputs, rows + T / 2, out + T / 2 * TILE);
        } else if constexpr (T > INTEGERS_AT_ONCE) {
            many<T>(tile, soon, inputs, rows, out);
        } else {
            few<T>(tile, soon, inputs, rows, out);
        }
    }
};

size_t tile_bytes(int inputs) { return (size_t)TILE * padded(inputs, STEP) + 4 * TILE; }

void pack(uint8_t* tile, const float* const* weights, int inputs) {
    const size_t bytes = (size_t)TILE * padded(inputs, STEP);
    std::memset(tile, 128, bytes);
    for (int o = 0; o < TILE; o++) {
        float largest = 0.0f;
        for (int k = 0; weights[o] && k < inputs; k++) {
            const float magnitude = std::fabs(weights[o][k]);
            if (!(magnitude <= largest)) largest = magnitude;  // a NaN stays
            if (largest != largest) break;
        }
        const float inverse = steps(largest);
        store(tile + bytes + 4 * o, step_of(largest));
        if (inverse == 0.0f) continue;
        for (int k = 0; k < inputs; k++)
            tile[(size_t)(k / 4) * QUAD_BYTES + 4 * o + k % 4] =
                (uint8_t)(std::lrintf(weights[o][k] * inverse) + 128);
    }
}

void prepare(uint8_t* row, const float* x, int inputs) {
    write_blocks<Bytes>(row, x, inputs, [](uint8_t* extra, float, int total) {
        store(extra, (int32_t)(-128 * total));
    });
}

void unpack(const uint8_t* tile, int inputs, int output, float* out) {
    const float scale = load<float>(tile + (size_t)TILE * padded(inputs, STEP) + 4 * output);
    for (int k = 0; k < inputs; k++)
        out[k] = scale * (float)(tile[(size_t)(k / 4) * QUAD_BYTES + 4 * output + k % 4] - 128);
}

}  // namespace

void pack_int8(uint8_t* tile, const int8_t* const* rows, const float* const* scales, int inputs) {
    const size_t bytes = (size_t)TILE * padded(inputs, STEP);
    std::memset(tile, 128, bytes);
    for (int o = 0; o < TILE; o++) {
        store(tile + bytes + 4 * o, rows[o] ? *scales[o] : 0.0f);
        for (int k = 0; rows[o] && k < inputs; k++)
            tile[(size_t)(k / 4) * QUAD_BYTES + 4 * o + k % 4] = (uint8_t)(rows[o][k] + 128);
    }
}

extern const Format int8_format = {
    STEP, most_rows(MOST), Products<Kernel, most_rows(MOST)>::table, tile_bytes, Bytes::row_bytes, pack, prepare, unpack,
    nullptr, 0, 0, FILLED,
};

}  // namespace fastslow
