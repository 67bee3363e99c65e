// GGUF's formats of 32 weights with a scale: Q4_0, Q4_1, Q5_0, Q8_0 and MXFP4.
#include "file_kernel.h"

namespace fastslow {
namespace {

// The scales of one block, in half precision.
struct HalfScales {
    static constexpr int BLOCKS = 1, PARTS = 1, FILE_BLOCKS = 1, SCALES = 2 * TILE;
    static constexpr bool MINIMA = false;

    template <class To> INLINE static void scales(To& to, const uint8_t* group, int v) {
        store(to.d[0] + v * W, from_half(load<vh>(group + 2 * W * v)));
    }
    static void put_scales(uint8_t* group, int, int o, const uint8_t* from) {
        std::memcpy(group + 2 * o, from, 2);
    }
};

// Half bytes of a block: its first 16 weights, then the other 16.
void nibbles(const uint8_t* from, uint32_t* quads) {
    for (int q = 0; q < PAIRS; q++) {
        const uint32_t both = load<uint32_t>(from + 4 * q);
        quads[q] = both & 0x0f0f0f0fu;
        quads[q + PAIRS] = both >> 4 & 0x0f0f0f0fu;
    }
}

struct Q40 : HalfScales, Halves {
    static constexpr int ZERO = 3, FILE_BYTES = 18;
    static void numbers(const uint8_t* from, int, uint32_t* quads) { nibbles(from + 2, quads); }
};

// Its zero is a minimum of each block.
struct Q41 : Halves {
    static constexpr int BLOCKS = 1, PARTS = 1, FILE_BLOCKS = 1, SCALES = 4 * TILE;
    static constexpr int ZERO = 0, FILE_BYTES = 20;
    static constexpr bool MINIMA = true;

    template <class To> INLINE static void scales(To& to, const uint8_t* group, int v) {
        store(to.d[0] + v * W, from_half(load<vh>(group + 2 * W * v)));
        store(to.m[0] + v * W, from_half(load<vh>(group + 2 * TILE + 2 * W * v)));
    }
    static void put_scales(uint8_t* group, int, int o, const uint8_t* from) {
        std::memcpy(group + 2 * o, from, 2);
        std::memcpy(group + 2 * TILE + 2 * o, from + 2, 2);
    }
    static void numbers(const uint8_t* from, int, uint32_t* quads) { nibbles(from + 4, quads); }
};

struct Q50 : HalfScales, Planes<5> {
    static constexpr int ZERO = 4, FILE_BYTES = 22;
    static void numbers(const uint8_t* from, int, uint32_t* quads) {
        nibbles(from + 6, quads);
        const uint32_t high = load<uint32_t>(from + 2);
        for (int q = 0; q < QUADS; q++) {
            const uint32_t bits = high >> (4 * q) & 15;
            quads[q] |= (bits * 0x00204081u & 0x01010101u) << 4;  // a bit for each byte
        }
    }
};

struct Q80 : HalfScales, ByteQuads {
    static constexpr int ZERO = 7, FILE_BYTES = 34;
    static void numbers(const uint8_t* from, int, uint32_t* quads) {
        for (int q = 0; q < QUADS; q++) quads[q] = load<uint32_t>(from + 2 + 4 * q) ^ 0x80808080u;
    }
};

// Sixteen numbers of 4 bits with signs, in halves, times a power of two. OCP Microscaling, arXiv 2310.10537.
struct Mxfp4 : Halves {
    static constexpr int BLOCKS = 2, PARTS = 1, FILE_BLOCKS = 1, SCALES = 2 * TILE;
    static constexpr int ZERO = 4, FILE_BYTES = 17, MOST = 28;
    static constexpr bool MINIMA = false;
    static constexpr uint8_t TABLE[16] = {16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4};

    static vu look_up(vu numbers) {
#if defined(FASTSLOW_AVX512)
        const __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)TABLE));
        return (vu)_mm512_shuffle_epi8(table, (__m512i)numbers);
#elif defined(FASTSLOW_AVX2)
        const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)TABLE));
        return (vu)_mm256_shuffle_epi8(table, (__m256i)numbers);
#elif defined(FASTSLOW_NEON)
        return (vu)vqtbl1q_u8(vld1q_u8(TABLE), (uint8x16_t)numbers);
#else
        uint8_t bytes[4 * W];
        store(bytes, numbers);
        for (uint8_t& byte : bytes) byte = TABLE[byte];
        return load<vu>(bytes);
#endif
    }
    INLINE static void pair(const uint8_t* block, int p, int v, vu& low, vu& high) {
        Halves::pair(block, p, v, low, high);
        low = look_up(low);
        high = look_up(high);
    }
    static int at(const uint8_t* block, int o, int k) { return TABLE[Halves::at(block, o, k)]; }
    static void numbers(const uint8_t* from, int, uint32_t* quads) { nibbles(from + 1, quads); }

    // Half of 2^(e - 127), since the table is doubled; the two smallest are below normal numbers.
    template <class To> INLINE static void scales(To& to, const uint8_t* group, int v) {
        UNROLL for (int b = 0; b < BLOCKS; b++) {
            const vu e = (vu)load_bytes(group + TILE * b + W * v) & 0xffu;
            const vu tiny = splat(0x00200000u) << (e & 1u);
            store(to.d[b] + v * W, e < 2u ? tiny : (e - 1u) << 23);
        }
    }
    static void put_scales(uint8_t* group, int b, int o, const uint8_t* from) { group[TILE * b + o] = *from; }
};

}  // namespace

extern const Format q4_0_format = FileKernel<Q40>::format();
extern const Format q4_1_format = FileKernel<Q41>::format();
extern const Format q5_0_format = FileKernel<Q50>::format();
extern const Format q8_0_format = FileKernel<Q80>::format();
extern const Format mxfp4_format = FileKernel<Mxfp4>::format();

}  // namespace fastslow
