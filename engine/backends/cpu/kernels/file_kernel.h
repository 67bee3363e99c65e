// Weights as GGUF keeps them: whole numbers of few bits in blocks of 32 inputs, with the file's own scales.
//
// A Form says how: a tile is a row of groups, a group is its scales and then its blocks, and has exactly as
// many bytes as in the file. Numbers are unsigned, `1 << ZERO` above what they mean where there is a ZERO.
//
// A block's numbers come in planes of quads of inputs, [32 outputs][4] bytes each: 4 of half bytes with a quad in either
// half, as many planes as bits for 5 or 6, 8 of whole bytes.
#pragma once

#include "byte_passes.h"
#include "file_rows.h"
#include "half.h"
#include "passes.h"

namespace fastslow {

typedef uint8_t vb __attribute__((vector_size(4 * W)));

constexpr int PAIRS = QUADS / 2;
constexpr int PLANE = 4 * TILE;  // bytes of a quad of whole bytes, or of a pair of halves

// Half bytes.
struct Halves {
    static constexpr int WEIGHTS = PAIRS * PLANE, MOST = 15;  // the largest number
    static constexpr bool WIDE = false;

    // The quads 2p and 2p + 1 for a vector of outputs.
    INLINE static void pair(const uint8_t* block, int p, int v, vu& low, vu& high) {
        const vu both = load<vu>(block + PLANE * p + sizeof(vu) * v);
        low = both & 0x0f0f0f0fu;
        high = upper(both);
    }

    // Put the quads of an output into a block that is clear.
    static void put(uint8_t* block, int o, const uint32_t* quads) {
        for (int p = 0; p < PAIRS; p++)
            store(block + PLANE * p + 4 * o,
                  (quads[2 * p] & 0x0f0f0f0fu) | (quads[2 * p + 1] & 0x0f0f0f0fu) << 4);
    }

    // Number k of an output.
    static int at(const uint8_t* block, int o, int k) {
        const int q = k / 4;
        return block[PLANE * (q / 2) + 4 * o + k % 4] >> (4 * (q % 2)) & 15;
    }
};

// Some bits of the numbers of a quad: in the upper bits of a plane's bytes, so far to the left.
struct Piece {
    int plane, left;
    uint32_t mask;
};

// Numbers of 5 or 6 bits: the first BITS quads lie in the lower bits of a plane each, the others in pieces above them.
template <int BITS> struct Planes {
    static constexpr int WEIGHTS = BITS * PLANE, MOST = (1 << BITS) - 1;
    static constexpr bool WIDE = false;

    // Piece i of 3 of a quad; without a mask it is none.
    static constexpr Piece piece(int q, int i) {
        constexpr Piece FIVE[] = {{0, 5, 0xe0}, {1, 2, 0x60}, {},           {2, 5, 0xe0}, {3, 2, 0x60},
                                  {},           {4, 5, 0xe0}, {1, 4, 0x80}, {3, 3, 0x80}};
        if (BITS == 5) return FIVE[3 * (q - BITS) + i];
        return {3 * (q - BITS) + i, 6 - 2 * i, 0xc0};
    }

    template <int Q> INLINE static vu quad(const uint8_t* block) {
        if constexpr (Q < BITS) return load<vu>(block + PLANE * Q) & MOST * 0x01010101u;
        vu whole{};
        UNROLL for (int i = 0; i < 3; i++) {
            const Piece some = piece(Q, i);
            if (some.mask) whole |= (load<vu>(block + PLANE * some.plane) & some.mask * 0x01010101u) >> some.left;
        }
        return whole;
    }

    INLINE static void pair(const uint8_t* block, int p, int v, vu& low, vu& high) {
        block += sizeof(vu) * v;
        switch (p) {
            case 0: low = quad<0>(block), high = quad<1>(block); return;
            case 1: low = quad<2>(block), high = quad<3>(block); return;
            case 2: low = quad<4>(block), high = quad<5>(block); return;
            default: low = quad<6>(block), high = quad<7>(block);
        }
    }

    static void put(uint8_t* block, int o, const uint32_t* quads) {
        uint32_t words[BITS];
        std::memcpy(words, quads, sizeof words);
        for (int q = BITS; q < QUADS; q++)
            for (int i = 0; i < 3; i++) {
                const Piece some = piece(q, i);
                words[some.plane] |= quads[q] << some.left & some.mask * 0x01010101u;
            }
        for (int q = 0; q < BITS; q++) store(block + PLANE * q + 4 * o, words[q]);
    }

    static int at(const uint8_t* block, int o, int k) {
        const uint8_t* bytes = block + 4 * o + k % 4;
        const int q = k / 4;
        if (q < BITS) return bytes[PLANE * q] & MOST;
        int number = 0;
        for (int i = 0; i < 3; i++) {
            const Piece some = piece(q, i);
            number |= (int)((bytes[PLANE * some.plane] & some.mask) >> some.left);
        }
        return number;
    }
};

// Whole bytes.
struct ByteQuads {
    static constexpr int WEIGHTS = QUADS * PLANE, MOST = 255;
    static constexpr bool WIDE = true;

    INLINE static void pair(const uint8_t* block, int p, int v, vu& low, vu& high) {
        low = load<vu>(block + 2 * PLANE * p + sizeof(vu) * v);
        high = load<vu>(block + 2 * PLANE * p + PLANE + sizeof(vu) * v);
    }
    static void put(uint8_t* block, int o, const uint32_t* quads) {
        for (int q = 0; q < QUADS; q++) store(block + PLANE * q + 4 * o, quads[q]);
    }
    static int at(const uint8_t* block, int o, int k) { return block[PLANE * (k / 4) + 4 * o + k % 4]; }
};

// A group's scales as floats: of each part of each block, and what is added for each input, if anything.
template <class Form> struct Scales {
    alignas(64) float d[Form::BLOCKS * Form::PARTS][TILE];
    alignas(64) float m[Form::MINIMA ? Form::BLOCKS : 1][TILE];

    INLINE explicit Scales(const uint8_t* group) {
        UNROLL for (int v = 0; v < VECTORS; v++) Form::scales(*this, group, v);
    }
};

template <class Form> struct FileKernel {
    static constexpr int BLOCKS = Form::BLOCKS, PARTS = Form::PARTS;
    static constexpr int STEP = BLOCKS * BLOCK;  // inputs of a group
    static constexpr int GROUP = Form::SCALES + BLOCKS * Form::WEIGHTS;
    static constexpr int EACH = GROUP / BLOCKS;  // bytes that a block stands for
    static constexpr bool SLOW = BLOCKS == 8 && Form::MOST > 15;  // Q5_K and Q6_K
    static_assert(FileRow::STEP % STEP == 0 || STEP % FileRow::STEP == 0);

    static size_t weight_bytes(int inputs) { return (size_t)(padded(inputs, STEP) / STEP) * GROUP; }
    static size_t tile_bytes(int inputs) { return to64(weight_bytes(inputs)); }

    // Dots begin with what takes the numbers' ZERO back.
    INLINE static vi begin(const uint8_t* x, int part) {
        constexpr int ZERO = (Form::ZERO ? 1 << Form::ZERO : 0) - (Form::WIDE ? FILE_TAKEN : 0);  // of what is multiplied
        if constexpr (!ZERO) return vi{};
        vi less = splat(load<int32_t>(x + FileRow::LESS + 4 * part));
        if constexpr (PARTS == 1) less += splat(load<int32_t>(x + FileRow::LESS + 4));
        return ZERO < 0 ? -less << 7 : less << Form::ZERO;
    }

    INLINE static vf finish(vf sum, vi dot, vf d, const float* m, const uint8_t* x, int part) {
        sum = fma(to_float(dot), d * splat(load<float>(x + FileRow::SCALE)), sum);
        if constexpr (Form::MINIMA)
            if (part + 1 == PARTS) sum = fma(load<vf>(m), splat(load<float>(x + FileRow::SCALED)), sum);
        return sum;
    }

    // Few rows: each row's sums stay in registers, and weights pass by.
    template <int T>
    INLINE static void few(const uint8_t* w, const uint8_t* soon, const Scales<Form>& scales, int b,
                           const uint8_t* const* x, size_t at, vf (*sum)[VECTORS]) {
        constexpr int LINES = (EACH + LINE - 1) / LINE;
        UNROLL for (int part = 0; part < PARTS; part++) {
            vi dot[T][VECTORS];
            UNROLL for (int t = 0; t < T; t++)
                UNROLL for (int v = 0; v < VECTORS; v++) dot[t][v] = begin(x[t] + at, part);
            UNROLL_QUADS for (int i = 0; i < PAIRS / PARTS; i++) {
                const int p = part * (PAIRS / PARTS) + i;
                for (int line = LINES * p / PAIRS; line < LINES * (p + 1) / PAIRS; line++)
                    prefetch_after<SLOW>(dot[0][line % VECTORS], soon + LINE * line);
                UNROLL for (int v = 0; v < VECTORS; v++) {
                    vu low, high;
                    Form::pair(w, p, v, low, high);
                    UNROLL for (int t = 0; t < T; t++)
                        hold(dot[t][v] = add_quads<Form::WIDE>(dot[t][v], low, high,
                                                               x[t] + at + 2 * FileRow::QUAD * p));
                }
            }
            UNROLL for (int v = 0; v < VECTORS; v++) {
                const vf d = load<vf>(scales.d[b * PARTS + part] + v * W);
                UNROLL for (int t = 0; t < T; t++)
                    sum[t][v] = finish(sum[t][v], dot[t][v], d, scales.m[Form::MINIMA ? b : 0] + v * W,
                                       x[t] + at, part);
            }
        }
    }

    // Many rows: the block's weights stay in registers, and rows pass by, their sums in `out`.
    template <int T>
    INLINE static void many(const uint8_t* w, const uint8_t* soon, const Scales<Form>& scales, int b,
                            const uint8_t* const* x, size_t at, float* out) {
        vu low[PAIRS][VECTORS], high[PAIRS][VECTORS];
        UNROLL for (int p = 0; p < PAIRS; p++)
            UNROLL for (int v = 0; v < VECTORS; v++) Form::pair(w, p, v, low[p][v], high[p][v]);
        constexpr int SHARE = to_share(EACH + LINE - 1, T);
        for (int t = 0; t < T; t++) {
            prefetch_lines<SHARE>(soon + SHARE * t);
            const uint8_t* block = x[t] + at;
            vf total[VECTORS];
            UNROLL for (int v = 0; v < VECTORS; v++) total[v] = load<vf>(out + t * TILE + v * W);
            UNROLL for (int part = 0; part < PARTS; part++) {
                vi even[VECTORS], odd[VECTORS];  // one chain of dots would be waited for
                UNROLL for (int v = 0; v < VECTORS; v++) even[v] = begin(block, part), odd[v] = vi{};
                UNROLL for (int i = 0; i < PAIRS / PARTS; i++) {
                    const int p = part * (PAIRS / PARTS) + i;
                    UNROLL for (int v = 0; v < VECTORS; v++) {
                        vi& chain = i % 2 ? odd[v] : even[v];
                        chain = add_quads<Form::WIDE>(chain, low[p][v], high[p][v],
                                                      block + 2 * FileRow::QUAD * p);
                    }
                }
                UNROLL for (int v = 0; v < VECTORS; v++)
                    total[v] = finish(total[v], even[v] + odd[v],
                                      load<vf>(scales.d[b * PARTS + part] + v * W),
                                      scales.m[Form::MINIMA ? b : 0] + v * W, block, part);
            }
            UNROLL for (int v = 0; v < VECTORS; v++) store(out + t * TILE + v * W, total[v]);
        }
    }

    static constexpr int PASS_ROWS = 4;  // 8 dots, 2 vectors of weights in halves, inputs
    static constexpr int STRETCH_BLOCKS = 8;
    static constexpr size_t STRETCH = STRETCH_BLOCKS * EACH, STRETCH_INPUTS = STRETCH_BLOCKS * FileRow::BYTES;

    template <int T, int FIRST>
    static void pass(const uint8_t* w, const uint8_t* end, Fetch soon, const uint8_t* const* rows, size_t at,
                     float* out) {
        constexpr int TURNS = (EACH + TURN - 1) / TURN;
        const uint8_t* x[T];
        UNROLL for (int t = 0; t < T; t++) x[t] = rows[t];
        while (w + GROUP <= end) {
            const Scales<Form> scales(w);
            w += Form::SCALES;
            for (int b = 0; b < BLOCKS; b++, w += Form::WEIGHTS, at += FileRow::BYTES) {
                move_on(out);
                UNROLL for (int part = 0; part < PARTS; part++) {
                    vi dot[T][PASS_VECTORS];
                    UNROLL for (int t = 0; t < T; t++)
                        UNROLL for (int v = 0; v < PASS_VECTORS; v++) dot[t][v] = begin(x[t] + at, part);
                    _Pragma("GCC unroll 1") for (int i = 0; i < PAIRS / PARTS; i++) {
                        const int p = part * (PAIRS / PARTS) + i;
                        for (int turn = TURNS * p / PAIRS; turn < TURNS * (p + 1) / PAIRS; turn++) soon.next();
                        UNROLL for (int v = 0; v < PASS_VECTORS; v++) {
                            vu low, high;
                            Form::pair(w, p, FIRST + v, low, high);
                            UNROLL for (int t = 0; t < T; t++)
                                dot[t][v] = add_quads<Form::WIDE>(dot[t][v], low, high,
                                                                  x[t] + at + 2 * FileRow::QUAD * p);
                        }
                    }
                    UNROLL for (int v = 0; v < PASS_VECTORS; v++) {
                        const vf d = load<vf>(scales.d[b * PARTS + part] + (FIRST + v) * W);
                        UNROLL for (int t = 0; t < T; t++) {
                            float* to = out + t * TILE + (FIRST + v) * W;
                            store(to, finish(load<vf>(to), dot[t][v], d,
                                             scales.m[Form::MINIMA ? b : 0] + (FIRST + v) * W, x[t] + at,
                                             part));
                        }
                    }
                }
            }
        }
    }

    // For tiles, see byte_tiles.h.
    static constexpr bool SCALED = true, MINIMA = Form::MINIMA, SIGNED = Form::ZERO > 0;
    static constexpr bool WIDE = Form::WIDE;
    static constexpr int ROW_BYTES = FileRow::BYTES, MOST = Form::MOST;

    static int blocks(int inputs) { return padded(inputs, STEP) / BLOCK; }
    static void finish(const uint8_t*, int, int, float*) {}

    static void to_bytes(const uint8_t* tile, const uint8_t* soon, int, int first, int some, uint8_t* to) {
#if defined(FASTSLOW_AMX)
        constexpr uint8_t ZERO = Form::ZERO ? 1 << Form::ZERO : 0;
#else
        constexpr uint8_t ZERO = Form::WIDE ? FILE_TAKEN : 0;
#endif
        const uint8_t* group = tile + (size_t)(first / BLOCKS) * GROUP;
        for (int n = 0; n < some; n += BLOCKS, group += GROUP) {
            const Scales<Form> scales(group);
            for (int at = 0; at < GROUP && soon; at += LINE) prefetch_to_l2(soon + (group - tile) + at);
            for (int b = 0; b < BLOCKS; b++) {
                const uint8_t* block = group + Form::SCALES + b * Form::WEIGHTS;
                for (int p = 0; p < PAIRS; p++, to += 2 * PLANE)
                    for (int v = 0; v < VECTORS; v++) {
                        vu low, high;
                        Form::pair(block, p, v, low, high);
                        store(to + sizeof(vu) * v, (vb)low - ZERO);
                        store(to + PLANE + sizeof(vu) * v, (vb)high - ZERO);
                    }
                std::memcpy(to, scales.d[b * PARTS], 4 * TILE * PARTS);
                to += 4 * TILE * PARTS;
                if constexpr (MINIMA) {
                    std::memcpy(to, scales.m[b], 4 * TILE);
                    to += 4 * TILE;
                }
            }
        }
    }

    template <int T>
    static void at_once(const uint8_t* __restrict tile, const uint8_t* soon, int inputs,
                        const uint8_t* const* rows, float* __restrict out) {
        const int groups = padded(inputs, STEP) / STEP;
        const ptrdiff_t ahead = soon - tile;
        const uint8_t* x[T];
        UNROLL for (int t = 0; t < T; t++) x[t] = rows[t];
        vf sum[T <= FEW ? T : 1][VECTORS] = {};
        if (T > FEW) std::memset(out, 0, T * TILE * sizeof(float));
        const uint8_t* group = tile;
        size_t at = 0;
        for (int g = 0; g < groups; g++, group += GROUP) {
            const Scales<Form> scales(group);
            for (int b = 0; b < BLOCKS; b++, at += FileRow::BYTES) {
                const uint8_t *w = group + Form::SCALES + b * Form::WEIGHTS, *then = group + b * EACH + ahead;
                if constexpr (T <= FEW) few<T>(w, then, scales, b, x, at, sum);
                else many<T>(w, then, scales, b, x, at, out);
            }
        }
        if constexpr (T <= FEW)
            UNROLL for (int t = 0; t < T; t++)
                UNROLL for (int v = 0; v < VECTORS; v++) store(out + t * TILE + v * W, sum[t][v]);
    }

    template <int T>
    static void product(const uint8_t* tile, const uint8_t* soon, int inputs, const uint8_t* const* rows, float* out) {
        if constexpr (T >= MANY) in_tiles<FileKernel, T>(tile, soon, inputs, rows, out);
        else if constexpr (T > ROWS) in_two<FileKernel, T>(tile, soon, inputs, rows, out);
        else if constexpr (T > INTEGERS_AT_ONCE)
            in_byte_passes<FileKernel, T>(tile, soon, inputs, rows, out);
        else at_once<T>(tile, soon, inputs, rows, out);
    }

    // Rows of `inputs` numbers in the file's blocks, as a tile; a null pointer is a row of zeros.
    static void pack(uint8_t* tile, const uint8_t* const* rows, int inputs) {
        constexpr int EVERY = Form::FILE_BLOCKS;
        std::memset(tile, 0, tile_bytes(inputs));
        for (int n = 0; n < inputs / BLOCK; n++) {
            uint8_t *group = tile + (size_t)(n / BLOCKS) * GROUP, *block = group + Form::SCALES;
            block += n % BLOCKS * Form::WEIGHTS;
            for (int o = 0; o < TILE; o++) {
                const uint8_t zero[Form::FILE_BYTES] = {};
                const uint8_t* from = rows[o] ? rows[o] + (size_t)(n / EVERY) * Form::FILE_BYTES : zero;
                uint32_t quads[QUADS];
                Form::numbers(from, n % EVERY, quads);
                Form::put(block, o, quads);
                if (n % EVERY == 0) Form::put_scales(group, n % BLOCKS, o, from);
            }
        }
    }

    // One row of a tile as floats: what the file's blocks mean.
    static void unpack(const uint8_t* tile, int inputs, int output, float* out) {
        for (int k = 0; k < inputs; tile += GROUP) {
            const Scales<Form> scales(tile);
            for (int b = 0; b < BLOCKS && k < inputs; b++) {
                const uint8_t* block = tile + Form::SCALES + b * Form::WEIGHTS;
                for (int i = 0; i < BLOCK; i++, k++) {
                    const int number = Form::at(block, output, i) - (Form::ZERO ? 1 << Form::ZERO : 0);
                    out[k] = scales.d[b * PARTS + i * PARTS / BLOCK][output] * (float)number;
                    if (Form::MINIMA) out[k] += scales.m[b][output];
                }
            }
        }
    }

    static constexpr Format format() {
        constexpr int MOST = most_rows(ROWS);
        return {FileRow::STEP, MOST, Products<FileKernel, MOST>::table, tile_bytes, FileRow::row_bytes, nullptr,
                FileRow::prepare, unpack, pack, Form::FILE_BLOCKS * BLOCK, Form::FILE_BYTES, TILE_ROWS};
    }
};

}  // namespace fastslow
