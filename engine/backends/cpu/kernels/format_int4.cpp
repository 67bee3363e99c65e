// 4-bit weights in groups of 32 inputs, w = d * q + m, as GGUF's Q4_1; inputs in int8 blocks.
//
// Tile, per group: [4][32 outputs][4] bytes, where byte j holds input j of the quad 2i in its low
// half and of the quad 2i + 1 in its high half; then 32 d and 32 m in half precision. The last
// group may be half, with half of the bytes. A block's extra word is its scale times its sum.
#include "byte_passes.h"
#include "half.h"
#include "passes.h"

namespace fastslow {
namespace {

constexpr int STEP = HALF;
constexpr int PAIR_BYTES = 4 * TILE;  // two quads of each output
constexpr int AFFINE = 4 * TILE;      // a group's d and m
constexpr int GROUP = QUADS / 2 * PAIR_BYTES + AFFINE;
constexpr int HALF_GROUP = QUADS / 4 * PAIR_BYTES + AFFINE;

// The scales and minima of a group, for some vectors of outputs.
template <int V = VECTORS> struct Affine {
    vf d[V], m[V];
    explicit Affine(const uint8_t* at) {
        UNROLL for (int v = 0; v < V; v++) {
            d[v] = from_half(load<vh>(at + 2 * W * v));
            m[v] = from_half(load<vh>(at + 2 * W * v + 2 * TILE));
        }
    }
    vf add(vf sum, int v, vi dot, const uint8_t* block) const {
        const vf scale = splat(load<float>(block + Nibbles::SCALE));
        const vf total = splat(load<float>(block + Nibbles::EXTRA));
        return fma(m[v], total, fma(to_float(Nibbles::finish(dot)), d[v] * scale, sum));
    }
};

size_t tile_bytes(int inputs) {
    const int n = padded(inputs, STEP);
    return (size_t)(n / BLOCK) * GROUP + (n % BLOCK ? HALF_GROUP : 0);
}

struct Kernel {
    static constexpr int PASS_ROWS = 4;  // 8 dots, 2 vectors of weights in halves, inputs
    static constexpr size_t STRETCH = 8 * GROUP, STRETCH_INPUTS = 8 * Nibbles::BYTES;

    template <int T, int FIRST>
    static void pass(const uint8_t* w, const uint8_t* end, Fetch soon, const uint8_t* const* rows,
                     size_t at, float* out) {
        const uint8_t* x[T];
        UNROLL for (int t = 0; t < T; t++) x[t] = rows[t];
        for (; w < end; w += AFFINE, at += Nibbles::BYTES) {
            move_on(out);
            vi dot[T][PASS_VECTORS] = {};
            const uint8_t* last = std::min(w + GROUP, end) - AFFINE;
            _Pragma("GCC unroll 1") for (size_t q = at; w < last; w += PAIR_BYTES, q += 2 * Nibbles::QUAD) {
                soon.next();
                Nibbles low[PASS_VECTORS], high[PASS_VECTORS];
                UNROLL for (int v = 0; v < PASS_VECTORS; v++) {
                    const vu both = load<vu>(w + sizeof(vu) * (FIRST + v));
                    low[v] = Nibbles(both & 0x0f0f0f0fu);
                    high[v] = Nibbles(upper(both));
                }
                UNROLL for (int t = 0; t < T; t++)
                    UNROLL for (int v = 0; v < PASS_VECTORS; v++)
                        dot[t][v] = times_both(low[v], high[v], x[t] + q, dot[t][v]);
            }
            soon.next();
            const Affine<PASS_VECTORS> affine(w + 2 * W * FIRST);
            UNROLL for (int t = 0; t < T; t++)
                UNROLL for (int v = 0; v < PASS_VECTORS; v++) {
                    float* to = out + t * TILE + (FIRST + v) * W;
                    store(to, affine.add(load<vf>(to), v, dot[t][v], x[t] + at));
                }
        }
    }

    // Few rows: each row's integer and float sums stay in registers, and weights pass by.
    template <int T, int N>
    INLINE static void few(const uint8_t* w, ptrdiff_t ahead, const uint8_t* const* x, size_t at,
                           vf (*sum)[VECTORS]) {
        vi dot[T][VECTORS] = {};
        UNROLL_QUADS for (int p = 0; p < N / 2; p++) {
            prefetch_lines<VECTORS * sizeof(vu)>(w + PAIR_BYTES * p + ahead);
            UNROLL for (int v = 0; v < VECTORS; v++) {
                const vu both = load<vu>(w + PAIR_BYTES * p + sizeof(vu) * v);
                const Nibbles low(both & 0x0f0f0f0fu), high(upper(both));
                UNROLL for (int t = 0; t < T; t++)
                    hold(dot[t][v] = times_both(low, high, x[t] + at + 2 * Nibbles::QUAD * p, dot[t][v]));
            }
        }
        prefetch_lines<AFFINE>(w + N / 2 * PAIR_BYTES + ahead);
        const Affine<> affine(w + N / 2 * PAIR_BYTES);
        UNROLL for (int t = 0; t < T; t++)
            UNROLL for (int v = 0; v < VECTORS; v++)
                sum[t][v] = affine.add(sum[t][v], v, dot[t][v], x[t] + at);
    }

    // Many rows: the group's weights stay in registers, and rows pass by, their sums in `out`.
    template <int T, int N>
    INLINE static void many(const uint8_t* w, ptrdiff_t ahead, const uint8_t* const* x, size_t at,
                            float* out) {
        Nibbles weights[N][VECTORS];
        UNROLL for (int p = 0; p < N / 2; p++) {
            UNROLL for (int v = 0; v < VECTORS; v++) {
                const vu both = load<vu>(w + PAIR_BYTES * p + sizeof(vu) * v);
                weights[2 * p][v] = Nibbles(both & 0x0f0f0f0fu);
                weights[2 * p + 1][v] = Nibbles(upper(both));
            }
        }
        const Affine<> affine(w + N / 2 * PAIR_BYTES);
        constexpr int SHARE = to_share(N / 2 * PAIR_BYTES + AFFINE, T);
        for (int t = 0; t < T; t++) {
            prefetch_lines<SHARE>(w + SHARE * t + ahead);
            const uint8_t* block = x[t] + at;
            vi even[VECTORS] = {}, odd[VECTORS] = {};  // one chain of dots would be waited for
            UNROLL for (int q = 0; q < N; q += 2)
                UNROLL for (int v = 0; v < VECTORS; v++) {
                    even[v] = weights[q][v].times(block + Nibbles::QUAD * q, even[v]);
                    odd[v] = weights[q + 1][v].times(block + Nibbles::QUAD * (q + 1), odd[v]);
                }
            UNROLL for (int v = 0; v < VECTORS; v++) {
                float* to = out + t * TILE + v * W;
                store(to, affine.add(load<vf>(to), v, Nibbles::join(even[v], odd[v]), block));
            }
        }
    }

    template <int T, int N>
    INLINE static void group(const uint8_t* w, ptrdiff_t ahead, const uint8_t* const* x, size_t at,
                             vf (*sum)[VECTORS], float* out) {
        if constexpr (T <= FEW) few<T, N>(w, ahead, x, at, sum);
        else many<T, N>(w, ahead, x, at, out);
    }

    // For tiles, see byte_tiles.h.
    static constexpr bool SCALED = true, MINIMA = true, SIGNED = true;
    static constexpr bool WIDE = false;
    static constexpr int PARTS = 1, ROW_BYTES = Nibbles::BYTES, MOST = 15, EACH = GROUP;

    static size_t weight_bytes(int inputs) { return tile_bytes(inputs); }
    static vi begin(const uint8_t*, int) { return vi{}; }
    static int blocks(int inputs) { return (inputs + BLOCK - 1) / BLOCK; }
    static void finish(const uint8_t*, int, int, float*) {}

    static void to_bytes(const uint8_t* tile, const uint8_t* soon, int inputs, int first, int some, uint8_t* to) {
        const int whole = padded(inputs, STEP) / BLOCK;
        const uint8_t* w = tile + (size_t)first * GROUP;
        for (int b = first; b < first + some; b++, w += GROUP) {
            const int pairs = b < whole ? QUADS / 2 : QUADS / 4;
            for (int at = 0; at < GROUP && soon; at += LINE) prefetch_to_l2(soon + (w - tile) + at);
            for (int p = 0; p < QUADS / 2; p++, to += 2 * PAIR_BYTES)
                for (int v = 0; v < VECTORS; v++) {
                    const vu both = p < pairs ? load<vu>(w + PAIR_BYTES * p + sizeof(vu) * v) : vu{};
                    store(to + sizeof(vu) * v, both & 0x0f0f0f0fu);
                    store(to + PAIR_BYTES + sizeof(vu) * v, upper(both));
                }
            const Affine<> affine(w + PAIR_BYTES * pairs);
            for (int v = 0; v < VECTORS; v++) {
                store(to + sizeof(vf) * v, affine.d[v]);
                store(to + 4 * TILE + sizeof(vf) * v, affine.m[v]);
            }
            to += 8 * TILE;
        }
    }

    template <int T>
    static void at_once(const uint8_t* __restrict tile, const uint8_t* soon, int inputs,
                        const uint8_t* const* rows, float* __restrict out) {
        const ptrdiff_t ahead = soon - tile;
        const int n = padded(inputs, STEP);
        const uint8_t* x[T];
        UNROLL for (int t = 0; t < T; t++) x[t] = rows[t];
        vf sum[T][VECTORS] = {};
        if (T > FEW) std::memset(out, 0, T * TILE * sizeof(float));
        const uint8_t* w = tile;
        size_t at = 0;
        for (int b = 0; b < n / BLOCK; b++, w += GROUP, at += Nibbles::BYTES)
            group<T, QUADS>(w, ahead, x, at, sum, out);
        if (n % BLOCK) group<T, QUADS / 2>(w, ahead, x, at, sum, out);
        if (T <= FEW)
            UNROLL for (int t = 0; t < T; t++)
                UNROLL for (int v = 0; v < VECTORS; v++)
                    store(out + t * TILE + v * W, sum[t][v]);
    }

    template <int T>
    static void product(const uint8_t* tile, const uint8_t* soon, int inputs, const uint8_t* const* rows, float* out) {
        if constexpr (T >= MANY) in_tiles<Kernel, T>(tile, soon, inputs, rows, out);
        else if constexpr (T > ROWS) in_two<Kernel, T>(tile, soon, inputs, rows, out);
        else if constexpr (T > INTEGERS_AT_ONCE) in_byte_passes<Kernel, T>(tile, soon, inputs, rows, out);
        else at_once<T>(tile, soon, inputs, rows, out);
    }
};

// Put input k of the group's output o; the byte must be clear.
void put(uint8_t* group, int o, int k, int q) {
    group[k / 8 * PAIR_BYTES + 4 * o + k % 4] |= (uint8_t)(k & 4 ? q << 4 : q);
}

// Pack `count` weights of output o into a group that was made for `size` and is clear.
void pack_group(uint8_t* group, int size, int o, const float* w, int count) {
    float low = w[0], high = w[0];
    bool finite = true;
    for (int k = 0; k < count; k++) {
        low = w[k] < low ? w[k] : low;
        high = w[k] > high ? w[k] : high;
        finite = finite && std::isfinite(w[k]);
    }
    const uint16_t d16 = to_half(finite ? (high - low) / 15 : NAN), m16 = to_half(low);
    const float d = from_half(d16), m = from_half(m16);
    uint8_t* affine = group + size / 8 * PAIR_BYTES;
    store(affine + 2 * o, d16);
    store(affine + 2 * TILE + 2 * o, m16);
    if (!(d > 0.0f)) return;
    for (int k = 0; k < count; k++) {
        const float q = std::nearbyint((w[k] - m) / d);
        put(group, o, k, q > 0.0f ? q < 15.0f ? (int)q : 15 : 0);
    }
}

void pack(uint8_t* tile, const float* const* weights, int inputs) {
    std::memset(tile, 0, tile_bytes(inputs));
    const int n = padded(inputs, STEP);
    for (int k = 0; k < n; k += BLOCK, tile += GROUP) {
        const int size = n - k < BLOCK ? HALF : BLOCK;
        const int count = inputs - k < size ? inputs - k : size;
        for (int o = 0; o < TILE; o++)
            if (weights[o]) pack_group(tile, size, o, weights[o] + k, count);
    }
}

void prepare(uint8_t* row, const float* x, int inputs) {
    write_blocks<Nibbles>(row, x, inputs, [](uint8_t* extra, float scale, int total) {
        store(extra, scale * (float)total);
    });
}

void unpack(const uint8_t* tile, int inputs, int output, float* out) {
    const int n = padded(inputs, STEP);
    for (int first = 0; first < inputs; first += BLOCK, tile += GROUP) {
        const uint8_t* affine = tile + (n - first < BLOCK ? HALF : BLOCK) / 8 * PAIR_BYTES + 2 * output;
        const float d = from_half(load<uint16_t>(affine)), m = from_half(load<uint16_t>(affine + 2 * TILE));
        for (int k = 0; k < BLOCK && first + k < inputs; k++) {
            const int both = tile[k / 8 * PAIR_BYTES + 4 * output + k % 4];
            out[first + k] = d * (float)(k & 4 ? both >> 4 : both & 15) + m;
        }
    }
}

constexpr int FROM = 4 + BLOCK / 2;  // bytes of a block of Q4_1: d, m, then elements k and k + 16

void pack_blocks(uint8_t* tile, const uint8_t* const* rows, int inputs) {
    std::memset(tile, 0, tile_bytes(inputs));
    for (int b = 0; b < inputs / BLOCK; b++, tile += GROUP)
        for (int o = 0; o < TILE; o++) {
            if (!rows[o]) continue;
            const uint8_t* block = rows[o] + (size_t)b * FROM;
            uint8_t* affine = tile + QUADS / 2 * PAIR_BYTES;
            std::memcpy(affine + 2 * o, block, 2);
            std::memcpy(affine + 2 * TILE + 2 * o, block + 2, 2);
            for (int k = 0; k < HALF; k++) {
                put(tile, o, k, block[4 + k] & 15);
                put(tile, o, k + HALF, block[4 + k] >> 4);
            }
        }
}

}  // namespace

extern const Format int4_format = {
    STEP, most_rows(ROWS), Products<Kernel, most_rows(ROWS)>::table, tile_bytes, Nibbles::row_bytes, pack, prepare,
    unpack, pack_blocks, BLOCK, FROM, TILE_ROWS,
};

}  // namespace fastslow
