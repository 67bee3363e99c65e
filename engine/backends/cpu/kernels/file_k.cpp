// GGUF's formats of 256 weights, whose blocks' scales are whole numbers themselves: Q4_K, Q5_K and Q6_K.
#include "file_kernel.h"

namespace fastslow {
namespace {

// d and dmin in half precision, then three words for each output: five numbers of 6 bits in each, and a
// sixteenth in what is left of all three. The first eight are the blocks' scales, the others their minima.
struct Affine {
    static constexpr int BLOCKS = 8, PARTS = 1, FILE_BLOCKS = 8, ZERO = 0;
    static constexpr int WORDS = 4 * TILE, SCALES = 4 * TILE + 3 * WORDS;
    static constexpr bool MINIMA = true;

    template <class To> INLINE static void scales(To& to, const uint8_t* group, int v) {
        const vf d = from_half(load<vh>(group + 2 * W * v));
        const vf least = -from_half(load<vh>(group + 2 * TILE + 2 * W * v));
        vu word[3], last = {};
        UNROLL for (int i = 0; i < 3; i++) {
            word[i] = load<vu>(group + 4 * TILE + WORDS * i + sizeof(vu) * v);
            last |= word[i] >> 30 << (2 * i);
        }
        UNROLL for (int n = 0; n < 16; n++) {
            const vu number = n == 15 ? last : word[n / 5] >> (n % 5 * 6) & 63u;
            store((n < 8 ? to.d[n] : to.m[n - 8]) + v * W, to_float((vi)number) * (n < 8 ? d : least));
        }
    }

    static void put_scales(uint8_t* group, int, int o, const uint8_t* from) {
        std::memcpy(group + 2 * o, from, 2);
        std::memcpy(group + 2 * TILE + 2 * o, from + 2, 2);
        const uint8_t* b = from + 4;
        uint32_t number[16], word[3] = {};
        for (int j = 0; j < 4; j++) {
            number[j] = b[j] & 63;
            number[8 + j] = b[4 + j] & 63;
            number[4 + j] = (b[8 + j] & 15) | b[j] >> 6 << 4;
            number[12 + j] = b[8 + j] >> 4 | b[4 + j] >> 6 << 4;
        }
        for (int n = 0; n < 15; n++) word[n / 5] |= number[n] << (n % 5 * 6);
        for (int i = 0; i < 3; i++)
            store(group + 4 * TILE + WORDS * i + 4 * o, word[i] | (number[15] >> (2 * i) & 3) << 30);
    }

    // A block's half bytes: 32 bytes hold two blocks.
    static void nibbles(const uint8_t* from, int b, uint32_t* quads) {
        for (int q = 0; q < QUADS; q++)
            quads[q] = load<uint32_t>(from + b / 2 * BLOCK + 4 * q) >> (b % 2 * 4) & 0x0f0f0f0fu;
    }
};

struct Q4K : Affine, Halves {
    static constexpr int FILE_BYTES = 144;
    static void numbers(const uint8_t* from, int b, uint32_t* quads) { nibbles(from + 16, b, quads); }
};

struct Q5K : Affine, Planes<5> {
    static constexpr int FILE_BYTES = 176;
    static void numbers(const uint8_t* from, int b, uint32_t* quads) {
        nibbles(from + 48, b, quads);
        for (int q = 0; q < QUADS; q++)
            quads[q] |= (load<uint32_t>(from + 16 + 4 * q) >> b & 0x01010101u) << 4;
    }
};

// A scale of 8 bits for each 16 weights, and d.
struct Q6K : Planes<6> {
    static constexpr int BLOCKS = 8, PARTS = 2, FILE_BLOCKS = 8, ZERO = 5, FILE_BYTES = 210;
    static constexpr int SCALES = 2 * TILE + BLOCKS * PARTS * TILE;
    static constexpr bool MINIMA = false;

    template <class To> INLINE static void scales(To& to, const uint8_t* group, int v) {
        const vf d = from_half(load<vh>(group + 2 * W * v));
        UNROLL for (int n = 0; n < BLOCKS * PARTS; n++) {
            const vi number = load_bytes(group + 2 * TILE + TILE * n + W * v);
            store(to.d[n] + v * W, to_float(number) * d);
        }
    }
    static void put_scales(uint8_t* group, int, int o, const uint8_t* from) {
        std::memcpy(group + 2 * o, from + 208, 2);
        for (int n = 0; n < BLOCKS * PARTS; n++) group[2 * TILE + TILE * n + o] = from[192 + n];
    }
    // Four blocks share 64 bytes of halves and 32 of two bits each.
    static void numbers(const uint8_t* from, int b, uint32_t* quads) {
        const int j = b % 4;
        const uint8_t *low = from + b / 4 * 64 + j % 2 * BLOCK, *high = from + 128 + b / 4 * BLOCK;
        for (int q = 0; q < QUADS; q++)
            quads[q] = (load<uint32_t>(low + 4 * q) >> (j / 2 * 4) & 0x0f0f0f0fu) |
                       (load<uint32_t>(high + 4 * q) >> (2 * j) & 0x03030303u) << 4;
    }
};

}  // namespace

extern const Format q4_k_format = FileKernel<Q4K>::format();
extern const Format q5_k_format = FileKernel<Q5K>::format();
extern const Format q6_k_format = FileKernel<Q6K>::format();

}  // namespace fastslow
