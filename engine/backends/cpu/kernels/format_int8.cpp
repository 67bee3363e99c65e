// int8 weights with one scale per output; inputs in int8 blocks.
//
// Tile: [quad of inputs][32 outputs][4] bytes, each weight + 128, then 32 float scales. A dot
// instruction takes unsigned times signed bytes and repeats only the signed: hence the + 128,
// which the block's extra word, -128 times the sum of its inputs, takes back.
//
// With matrix tiles a row's inputs have 16 bits and one scale: a scale for each block would cost more than the
// products. They are two bytes with signs, x = 256 * high + low, and sums are whole numbers to their end.
#include "amx.h"
#include "blocks.h"
#include "passes.h"

namespace fastslow {
namespace {

constexpr int STEP = HALF;
constexpr int QUAD_BYTES = 4 * TILE;

#if defined(FASTSLOW_AMX)
constexpr int MOST = PASS_ROWS, TILE_ROWS = 2;
constexpr int STRETCH = 4096;  // inputs that are summed as whole numbers

// A row: for each 64 inputs their high bytes and then their low ones; its scale, and for each stretch 128 times the
// sums of both; room for the tile that one row's bytes begin.
struct Row {
    static constexpr int TURN = 2 * AMX_BYTES;

    static int turns(int inputs) { return (inputs + AMX_BYTES - 1) / AMX_BYTES; }
    static int stretches(int inputs) { return (inputs + STRETCH - 1) / STRETCH; }
    static size_t bytes(int inputs) {
        return (size_t)turns(inputs) * TURN + std::max<size_t>(to64(4 + 8 * stretches(inputs)), 14 * AMX_BYTES);
    }

    static vf some(const float* x, int k, int inputs) {
        if (k + W <= inputs) return load<vf>(x + k);
        vf rest{};
        if (k < inputs) std::memcpy(&rest, x + k, sizeof(float) * (inputs - k));
        return rest;
    }

    // A row with an input that is not finite has zeros and a scale that is not finite either.
    static void prepare(uint8_t* row, const float* x, int inputs) {
        vi most = {};
        for (int k = 0; k < inputs; k += W) {
            const vi bits = (vi)abs(some(x, k, inputs));  // ordered as the numbers, NaN above all
            most = bits > most ? bits : most;
        }
        const int32_t top = largest(most);
        const float magnitude = load<float>(&top), lift = lifted(magnitude);
        const float inverse = magnitude > 1e-36f ? STEPS / (magnitude * lift) : 0.0f;
        uint8_t* end = row + (size_t)turns(inputs) * TURN;
        store(end, magnitude <= 1e-36f ? 0.0f : magnitude / STEPS);
        const vf big = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
        for (int first = 0; first < inputs; first += STRETCH, end += 8) {
            vi highs = {}, lows = {};
            for (int k = first; k < std::min(first + STRETCH, padded(inputs, AMX_BYTES)); k += W, row += W) {
                if (k > first && k % AMX_BYTES == 0) row += AMX_BYTES;
                vi number = (vi)fma(some(x, k, inputs) * splat(lift), splat(inverse), big) - (vi)big;
                if (inverse == 0.0f) number = vi{};
                const vi high = (number + 128) >> 8, low = number - (high << 8);
                store(row, _mm512_cvtepi32_epi8((__m512i)high));
                store(row + AMX_BYTES, _mm512_cvtepi32_epi8((__m512i)low));
                highs += high;
                lows += low;
            }
            row += AMX_BYTES;
            store(end + 4, 128 * sum(highs));
            store(end + 8, 128 * sum(lows));
        }
    }
};

// Sums of high bytes and of low ones. Of few rows both lie in one tile, high and low in turn: half the products.
struct Kernel {
    static constexpr int TURN = TILE * AMX_BYTES;  // bytes of weights
    static constexpr int SUMS = AMX_BYTES / 4;
    static constexpr int FEW = AMX_ROWS / 2;

    // 64 inputs of the rows, whose bytes are `stride` apart: in C 0 and 1, low ones of many rows in C 2 and 3. Rows are
    // read ONCE where many pass over the weights. between(0) to between(3) come within.
    template <bool BOTH, bool ONCE, class Between>
    INLINE static void turn(const uint8_t* w, const uint8_t* x, size_t stride, Between& between) {
        tile_load<4>(w, QUAD_BYTES);
        between(0);
        tile_load<5>(w + AMX_BYTES, QUAD_BYTES);
        between(1);
        tile_load<6, ONCE>(x, stride);
        tile_signed_unsigned<0, 6, 4>();
        between(2);
        tile_signed_unsigned<1, 6, 5>();
        between(3);
        if constexpr (BOTH) return;
        tile_load<7, ONCE>(x + AMX_BYTES, stride);
        tile_signed_unsigned<2, 7, 4>();
        tile_signed_unsigned<3, 7, 5>();
    }

    // A stretch of n inputs: its sums of T rows are added. end: of the first row, `less` what it has to take back.
    template <int T, bool ONCE, class Between>
    INLINE static void add(const uint8_t* w, int n, const uint8_t* x, size_t stride, const uint8_t* end, int less,
                           float* out, size_t width, Between& between) {
        constexpr bool BOTH = T <= FEW;
        constexpr int STEP_BYTES = BOTH && T > 1 ? AMX_ROWS * AMX_BYTES : Row::TURN;  // from turn to turn
        constexpr bool PACKS = BOTH && T > 1;  // one row is packed as it is
        constexpr int AT_ONCE = PACKS ? 512 : STRETCH;  // inputs: packed rows stay in L1 beside the weights
        alignas(64) uint8_t packed[PACKS ? AT_ONCE * AMX_ROWS : 1];
        const size_t apart = BOTH ? AMX_BYTES : stride;
        alignas(64) int32_t dot[4][AMX_ROWS * SUMS];
        tile_zero<0>();
        tile_zero<1>();
        tile_zero<2>();
        tile_zero<3>();
        for (int first = 0; first < n; first += AT_ONCE) {
            const int last = std::min(first + AT_ONCE, n);
            for (int k = first; k < last && PACKS; k += AMX_BYTES)
                UNROLL for (int t = 0; t < T; t++)
                    for (int part : {0, AMX_BYTES})
                        store(packed + (k - first) * AMX_ROWS + t * Row::TURN + part,
                              load<vu>(x + t * stride + 2 * k + part));
            const uint8_t* some = PACKS ? packed : x;
            int k = first;
            for (; k + AMX_BYTES <= last; k += AMX_BYTES, w += TURN, some += STEP_BYTES)
                turn<BOTH, ONCE>(w, some, apart, between);
            if (k == last) continue;
            alignas(64) uint8_t rest[TURN] = {};  // what the rows have then are zeros
            std::memcpy(rest, w, (size_t)TILE * (last - k));
            turn<BOTH, ONCE>(rest, some, apart, between);
        }
        tile_store<0>(dot[0], AMX_BYTES);
        tile_store<1>(dot[1], AMX_BYTES);
        if constexpr (!BOTH) {
            tile_store<2>(dot[2], AMX_BYTES);
            tile_store<3>(dot[3], AMX_BYTES);
        }
        for (int t = 0; t < T; t++, end += stride)
            UNROLL for (int v = 0; v < VECTORS; v++) {
                const int32_t* high = dot[v] + SUMS * (BOTH ? 2 * t : t);
                const int32_t* low = BOTH ? high + SUMS : dot[2 + v] + SUMS * t;
                const vi a = load<vi>(high) - splat(load<int32_t>(end + less));
                const vi b = load<vi>(low) - splat(load<int32_t>(end + less + 4));
                const vf sum = fma(to_float(a), splat(256.0f), to_float(b));
                float* to = out + t * width + v * W;
                store(to, fma(sum, splat(load<float>(end)), load<vf>(to)));
            }
    }

    template <int T, bool ONCE, class Between>
    static void pass(const uint8_t* tile, int inputs, const uint8_t* x, size_t stride, float* out, size_t width,
                     Between between) {
        const int n = padded(inputs, STEP);
        const uint8_t *end = x + (size_t)Row::turns(inputs) * Row::TURN, *scales = tile + (size_t)TILE * n;
        for (int t = 0; t < T; t++) std::memset(out + t * width, 0, sizeof(float) * TILE);
        for (int k = 0, less = 4; k < n; k += STRETCH, less += 8)
            add<T, ONCE>(tile + (size_t)TILE * k, std::min(n - k, STRETCH), x + 2 * (size_t)k, stride, end, less, out,
                         width, between);
        UNROLL for (int v = 0; v < VECTORS; v++) {
            const vf some = load<vf>(scales + sizeof(vf) * v);
            for (float* to = out + v * W; to < out + T * width; to += width) store(to, load<vf>(to) * some);
        }
    }

    static void in_pass(const uint8_t* tile, const uint8_t* soon, int lines, int inputs, const uint8_t* x,
                        size_t stride, float* out, size_t width, const Beside& beside) {
        for (int i = 0; i < PASS_ROWS; i += AMX_ROWS)
            pass<AMX_ROWS, true>(tile, inputs, x + i * stride, stride, out + i * width, width,
                                 [&](int part) __attribute__((always_inline)) {
                for (int l = 0; l < lines && part == 0; l++, soon += LINE) prefetch_to_l2(soon);
                if (part == 2) beside.call(beside.of);
            });
    }

    template <int T>
    static void product(const uint8_t* tile, const uint8_t* soon, int inputs, const uint8_t* const* rows, float* out) {
        constexpr int SECOND = T > AMX_ROWS ? T - AMX_ROWS : 0, LINES = TURN / LINE / (SECOND ? 8 : 4);
        const size_t stride = T > 1 ? rows[T > 1] - rows[0] : 0;
        auto ask = [&](int) __attribute__((always_inline)) {
            UNROLL for (int i = 0; i < LINES; i++, soon += LINE)
                if constexpr (SECOND) prefetch_to_l2(soon);  // others pass over this tile before they are read
                else prefetch(soon);
        };
        pass<T - SECOND, false>(tile, inputs, rows[0], stride, out, TILE, ask);
        if constexpr (SECOND)
            pass<SECOND, false>(tile, inputs, rows[AMX_ROWS], stride, out + AMX_ROWS * TILE, TILE, ask);
    }
};

#else
constexpr int TILE_ROWS = 0;

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
    static constexpr Pass in_pass = nullptr;

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
                    hold(dot[t][v] = weights.times(x[t] + at + Bytes::QUAD * q, dot[t][v]));
            }
        }
        UNROLL for (int t = 0; t < T; t++) {
            const vf scale = splat(load<float>(x[t] + at + Bytes::SCALE));
            UNROLL for (int v = 0; v < VECTORS; v++)
                sum[t][v] = fma(to_float(dot[t][v]), scale, sum[t][v]);
        }
    }

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
            _Pragma("GCC unroll 1") for (size_t q = at; w < last; w += QUAD_BYTES, q += Bytes::QUAD) {
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

    template <int T>
    static void many(const uint8_t* __restrict tile, const uint8_t* soon, int inputs,
                     const uint8_t* const* rows, float* __restrict out) {
        const size_t bytes = (size_t)TILE * padded(inputs, STEP);
        prefetch_lines<4 * TILE>(soon + bytes);
        in_passes<Kernel, T>(tile, soon, bytes, rows, out);
        scale(tile + bytes, T, out);
    }

    // The sums of `count` rows, times the outputs' scales.
    static void scale(const uint8_t* scales, int count, float* out) {
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
        if constexpr (T > INTEGERS_AT_ONCE) many<T>(tile, soon, inputs, rows, out);
        else few<T>(tile, soon, inputs, rows, out);
    }
};


struct Row {
    static size_t bytes(int inputs) { return Bytes::row_bytes(inputs); }

    static void prepare(uint8_t* row, const float* x, int inputs) {
        write_blocks<Bytes>(row, x, inputs, [](uint8_t* extra, float, int total) {
            store(extra, (TAKEN - 128) * total);
        });
    }
};
#endif

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
    STEP, MOST, Products<Kernel, MOST>::table, tile_bytes, Row::bytes, pack, Row::prepare, unpack,
    nullptr, 0, 0, TILE_ROWS, Kernel::in_pass,
};

}  // namespace fastslow
