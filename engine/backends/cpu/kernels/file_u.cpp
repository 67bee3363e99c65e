// Unsigned numbers of 4 or 8 bits whose groups of inputs have a scale in float32 and a zero point, w = d * (q - z):
// GPTQ, AWQ and the packed integers of compressed-tensors.
//
// Block of a row, made by grouped.py: d, z in a byte, then the numbers: 32 at a time in halves, the first 16 and
// the other 16, or in whole bytes.
#include "file_kernel.h"

namespace fastslow {
namespace {

// G blocks share a scale.
template <int G, class Numbers> struct Zeroed : Numbers {
    static constexpr int BLOCKS = G, PARTS = 1, FILE_BLOCKS = G, ZERO = 0, SCALES = 5 * TILE;
    static constexpr int HEAD = 5, EACH = Numbers::WIDE ? BLOCK : BLOCK / 2, FILE_BYTES = HEAD + G * EACH;
    static constexpr bool MINIMA = true;

    template <class To> INLINE static void scales(To& to, const uint8_t* group, int v) {
        const vf d = load<vf>(group + sizeof(vf) * v);
        const vi z = load_bytes(group + 4 * TILE + W * v) & splat(0xff);
        const vf least = -d * to_float(z);
        UNROLL for (int b = 0; b < G; b++) {
            store(to.d[b] + v * W, d);
            store(to.m[b] + v * W, least);
        }
    }
    static void put_scales(uint8_t* group, int, int o, const uint8_t* from) {
        std::memcpy(group + 4 * o, from, 4);
        group[4 * TILE + o] = from[4];
    }
    static void numbers(const uint8_t* from, int b, uint32_t* quads) {
        from += HEAD + b * EACH;
        for (int q = 0; q < QUADS; q++)
            quads[q] = Numbers::WIDE ? load<uint32_t>(from + 4 * q)
                                     : load<uint32_t>(from + 4 * (q % PAIRS)) >> (q / PAIRS * 4) & 0x0f0f0f0fu;
    }
};

}  // namespace

extern const Format u4_32_format = FileKernel<Zeroed<1, Halves>>::format();
extern const Format u4_128_format = FileKernel<Zeroed<4, Halves>>::format();
extern const Format u8_32_format = FileKernel<Zeroed<1, ByteQuads>>::format();
extern const Format u8_128_format = FileKernel<Zeroed<4, ByteQuads>>::format();

}  // namespace fastslow
