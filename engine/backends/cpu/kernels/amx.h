// AMX: eight tiles of sixteen rows of 64 bytes, and products of two tiles added to a third.
//
// All tiles are whole, whatever the number of rows: another number would take another configuration,
// and no fewer cycles. What stands in rows that nobody asked for changes no other row.
// Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
#pragma once

#include <cstddef>
#include <cstdint>

#include "simd.h"

namespace fastslow {

#if defined(FASTSLOW_AMX)

constexpr int AMX_ROWS = 16;   // of a tile
constexpr int AMX_BYTES = 64;  // of a row: 32 bfloat16, 64 bytes, 16 sums

struct alignas(64) TileConfig {
    uint8_t palette = 1, start = 0, unused[14] = {};
    uint16_t row_bytes[16] = {};  // of each tile
    uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

constexpr TileConfig whole_tiles() {
    TileConfig config;
    for (int tile = 0; tile < 8; tile++) {
        config.row_bytes[tile] = AMX_BYTES;
        config.rows[tile] = AMX_ROWS;
    }
    return config;
}
inline constexpr TileConfig WHOLE_TILES = whole_tiles();

static inline void configure(const TileConfig& config) { asm volatile("ldtilecfg %0" ::"m"(config)); }

// Configures whole tiles on this thread while it lives: others, as torch, may have had tiles of their own, and
// a thread that holds none is switched faster.
struct UseTiles {
    UseTiles() { configure(WHOLE_TILES); }
    ~UseTiles() { asm volatile("tilerelease"); }
    UseTiles(const UseTiles&) = delete;
};

// The compiler's own functions do not say that a load reads memory. ONCE: past L1, where other lines stay.
template <int TILE, bool ONCE = false> static inline void tile_load(const void* from, size_t stride) {
    if constexpr (ONCE)
        asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(TILE) : "memory");
    else asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(TILE) : "memory");
}
template <int TILE> static inline void tile_store(void* to, size_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(TILE) : "memory");
}
template <int TILE> static inline void tile_zero() { asm volatile("tilezero %%tmm%c0" ::"i"(TILE)); }

// C += A x B. A: rows of inputs; B: rows of pairs (bfloat16) or quads (bytes) of inputs, for sixteen outputs.
// For each sum, bfloat16: two chains of fused additions from zero, of even and of odd inputs, whose sum is added to
// C; numbers that are not normal count as 0. Bytes: exact in int32.
template <int C, int A, int B> static inline void tile_bf16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}
template <int C, int A, int B> static inline void tile_signed() {  // int8 x int8
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}
template <int C, int A, int B> static inline void tile_signed_unsigned() {  // A int8, B uint8
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

#else

struct UseTiles {
    UseTiles() {}
    UseTiles(const UseTiles&) = delete;
};

#endif

}  // namespace fastslow
