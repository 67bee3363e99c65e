// bfloat16 weights and inputs, float32 sums.
//
// Tile: [pair of inputs][32 outputs][2] bfloat16. Row: pairs of bfloat16 where the machine has a
// dot product of pairs; elsewhere the same rounded inputs as floats, which need no widening.
#include "amx.h"
#include "passes.h"

namespace fastslow {
namespace {

constexpr int STEP = 16;
#if defined(FASTSLOW_AMX)
constexpr int MOST = PASS_ROWS;
#elif defined(FASTSLOW_AVX512)
constexpr int MOST = 10;  // with more rows compilers spill sums, and two products take less
#else
constexpr int MOST = ROWS;
#endif

// Pairs of weights, for a vector of outputs.
#if defined(FASTSLOW_AVX512) && defined(__AVX512BF16__)
constexpr int INPUT = 2;  // bytes of a prepared input

struct Pairs {
    static constexpr int PARTS = 1;  // products of a pair

    static vf times(vu pair, const uint8_t* x, int, vf sum) {
        const vu inputs = splat(load<uint32_t>(x));
        return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)pair, (__m512bh)inputs);
    }
};
static inline void put(uint8_t* at, vf x) { store(at, narrow(x)); }

#else
constexpr int INPUT = 4;

struct Pairs {
    static constexpr int PARTS = 2;  // the pair's first, then its second

    static vf half(vu pair, int part) { return (vf)(part ? pair & 0xffff0000u : pair << 16); }
    static vf part(const uint8_t* w, int v, int part) { return half(load<vu>(w + sizeof(vu) * v), part); }
    static vf times(vu pair, const uint8_t* x, int part, vf sum) {
#if defined(FASTSLOW_NEON) && defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
        // The upper half of a float is the input, and each instruction's sum is rounded once, as fma's.
        const bfloat16x8_t weights = (bfloat16x8_t)pair;
        const bfloat16x4_t inputs = load<bfloat16x4_t>(x);
        return (vf)(part ? vbfmlaltq_lane_f32((float32x4_t)sum, weights, inputs, 3)
                         : vbfmlalbq_lane_f32((float32x4_t)sum, weights, inputs, 1));
#endif
        return fma(half(pair, part), splat(load<float>(x + INPUT * part)), sum);
    }
};
// A NaN is one in its upper half.
static inline void put(uint8_t* at, vf x) { store(at, widen(narrow(x))); }
#endif

size_t tile_bytes(int inputs) { return 2 * (size_t)TILE * padded(inputs, STEP); }

#if defined(FASTSLOW_AMX)
// Tiles for every number of rows, one too: they sum in another order than dots of pairs.
struct Kernel {
    static constexpr int TILE_ROWS = 2;
    static constexpr int TURN_INPUTS = 32;  // of a tile's row
    static constexpr size_t TURN = 2 * (size_t)TILE * TURN_INPUTS;

    // Adds 32 inputs of N tiles of rows to the sums: C 0 to 3. Rows are read ONCE where many pass over the weights.
    template <int N, bool ONCE> INLINE static void turn(const uint8_t* w, const uint8_t* x, size_t stride) {
        tile_load<4>(w, 4 * TILE);
        tile_load<6, ONCE>(x, stride);
        tile_bf16<0, 6, 4>();
        tile_load<5>(w + AMX_BYTES, 4 * TILE);
        tile_bf16<1, 6, 5>();
        if constexpr (N == 1) return;
        tile_load<7, ONCE>(x + AMX_ROWS * stride, stride);
        tile_bf16<2, 7, 4>();
        tile_bf16<3, 7, 5>();
    }

    // The last 16 inputs, where there are no 32: zeros follow them.
    template <int N> static void half_turn(const uint8_t* w, const uint8_t* x, size_t stride) {
        alignas(64) uint8_t weights[TURN], inputs[N * AMX_ROWS * AMX_BYTES];
        std::memcpy(weights, w, TURN / 2);
        std::memset(weights + TURN / 2, 0, TURN / 2);
        for (int i = 0; i < N * AMX_ROWS; i++) {
            std::memcpy(inputs + i * AMX_BYTES, x + i * stride, AMX_BYTES / 2);
            std::memset(inputs + i * AMX_BYTES + AMX_BYTES / 2, 0, AMX_BYTES / 2);
        }
        turn<N, false>(weights, inputs, AMX_BYTES);
    }

    // N tiles of rows; between() comes before each turn.
    template <int N, bool ONCE, class Between>
    INLINE static void pass(const uint8_t* w, int inputs, const uint8_t* x, size_t stride, float* out,
                            size_t width, Between between) {
        tile_zero<0>();
        tile_zero<1>();
        tile_zero<2>();
        tile_zero<3>();
        int k = 0;
        for (; k + TURN_INPUTS <= inputs; k += TURN_INPUTS, w += TURN, x += AMX_BYTES) {
            between();
            turn<N, ONCE>(w, x, stride);
        }
        if (k < inputs) half_turn<N>(w, x, stride);
        tile_store<0>(out, 4 * width);
        tile_store<1>(out + TILE / 2, 4 * width);
        if constexpr (N == 1) return;
        out += AMX_ROWS * width;
        tile_store<2>(out, 4 * width);
        tile_store<3>(out + TILE / 2, 4 * width);
    }

    static void in_pass(const uint8_t* tile, const uint8_t* soon, int lines, int inputs, const uint8_t* x,
                        size_t stride, float* out, size_t width, const Beside& beside) {
        pass<2, true>(tile, padded(inputs, STEP), x, stride, out, width, [&]() __attribute__((always_inline)) {
            for (int i = 0; i < lines; i++, soon += LINE) prefetch_to_l2(soon);
            beside.call(beside.of);
        });
    }

    template <int T>
    static void product(const uint8_t* tile, const uint8_t* soon, int inputs, const uint8_t* const* rows, float* out) {
        const size_t stride = T > 1 ? rows[T > 1] - rows[0] : 0;  // one row stands in for all of its tile
        pass<(T > AMX_ROWS) + 1, false>(tile, padded(inputs, STEP), rows[0], stride, out, TILE,
                                        [&]() __attribute__((always_inline)) {
            for (size_t i = 0; i < TURN / LINE; i++, soon += LINE) prefetch(soon);
        });
    }
};

#else
struct Kernel : FloatPasses<Pairs> {
    static constexpr int TILE_ROWS = 0;
    static constexpr Pass in_pass = nullptr;

    template <int T>
    static void product(const uint8_t* __restrict tile, const uint8_t* soon, int inputs,
                        const uint8_t* const* rows, float* __restrict out) {
        if constexpr (T > FLOATS_AT_ONCE)
            return in_passes<Kernel, T>(tile, soon, tile_bytes(inputs), rows, out);
        const ptrdiff_t ahead = soon - tile;
        const size_t end = (size_t)INPUT * padded(inputs, STEP);
        const uint8_t* x[T];
        UNROLL for (int t = 0; t < T; t++) x[t] = rows[t];
        constexpr int ONCE = once(T);
        for (int first = 0; first < VECTORS; first += ONCE) {
            const uint8_t* w = tile + sizeof(vf) * first;
            vf sum[T][ONCE] = {};
            for (size_t k = 0; k < end; k += 2 * INPUT, w += 4 * TILE) {
                prefetch_lines<ONCE * sizeof(vf)>(w + ahead);
                UNROLL for (int v = 0; v < ONCE; v++) {
                    const vu pair = load<vu>(w + sizeof(vu) * v);
                    UNROLL for (int part = 0; part < Pairs::PARTS; part++)
                        UNROLL for (int t = 0; t < T; t++)
                            sum[t][v] = Pairs::times(pair, x[t] + k, part, sum[t][v]);
                }
            }
            UNROLL for (int t = 0; t < T; t++)
                UNROLL for (int v = 0; v < ONCE; v++)
                    store(out + t * TILE + (first + v) * W, sum[t][v]);
        }
    }
};
#endif

size_t row_bytes(int inputs) { return to64((size_t)INPUT * padded(inputs, STEP)); }

void pack(uint8_t* tile, const float* const* weights, int inputs) {
    std::memset(tile, 0, tile_bytes(inputs));
    for (int o = 0; o < TILE; o++)
        if (weights[o])
            for (int k = 0; k < inputs; k++)
                store(tile + 4 * ((size_t)(k / 2) * TILE + o) + 2 * (k % 2), narrow(weights[o][k]));
}

// Rows of bfloat16, as they are: two inputs are a block.
void pack_pairs(uint8_t* tile, const uint8_t* const* rows, int inputs) {
    for (int k = 0; k < padded(inputs, STEP); k += 2)
        for (int o = 0; o < TILE; o++, tile += 4)
            store(tile, rows[o] && k < inputs ? load<uint32_t>(rows[o] + 2 * k) : 0u);
}

void prepare(uint8_t* row, const float* x, int inputs) {
    const int whole = inputs / W * W;
    for (int k = 0; k < whole; k += W) put(row + INPUT * (size_t)k, load<vf>(x + k));
    // The end of a row is zeros, to the last byte: a vector at a time fits its 64 bytes.
    for (int k = whole; k < padded(inputs, STEP); k += W) {
        vf rest = {};
        if (k < inputs) std::memcpy(&rest, x + k, 4 * (size_t)(inputs - k));
        put(row + INPUT * (size_t)k, rest);
    }
}

void unpack(const uint8_t* tile, int inputs, int output, float* out) {
    for (int k = 0; k < inputs; k++)
        out[k] = widen(load<uint16_t>(tile + 4 * ((size_t)(k / 2) * TILE + output) + 2 * (k % 2)));
}

}  // namespace

extern const Format bf16_format = {
    STEP, MOST, Products<Kernel, MOST>::table, tile_bytes, row_bytes, pack, prepare, unpack,
    pack_pairs, 2, 4, Kernel::TILE_ROWS, Kernel::in_pass,
};

}  // namespace fastslow
