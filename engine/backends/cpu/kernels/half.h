// IEEE half precision: to float32 exactly, from float32 to nearest even.
#pragma once

#include "simd.h"

namespace fastslow {

static inline vf from_half(vh half) {
#if defined(FASTSLOW_AVX512)
    return (vf)_mm512_cvtph_ps((__m256i)half);
#elif defined(FASTSLOW_AVX2)
    return (vf)_mm256_cvtph_ps((__m128i)half);
#elif defined(FASTSLOW_NEON)
    return (vf)vcvt_f32_f16((float16x4_t)half);
#else
    vu bits = __builtin_convertvector(half, vu);
    vf magnitude = (vf)((bits & 0x7fffu) << 13) * splat(0x1p112f);  // moves the exponent's bias
    vu special = (vu)((bits & 0x7c00u) == splat(0x7c00u)) & 0x7f800000u;
    return (vf)((vu)magnitude | special | (bits & 0x8000u) << 16);
#endif
}

static inline float from_half(uint16_t half) {
    uint32_t bits = (uint32_t)(half & 0x7fff) << 13;
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude *= 0x1p112f;
    std::memcpy(&bits, &magnitude, 4);
    if ((half & 0x7c00) == 0x7c00) bits |= 0x7f800000;
    bits |= (uint32_t)(half & 0x8000) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

static inline uint16_t to_half(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    uint32_t sign = bits >> 16 & 0x8000u;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);   // NaN
    if (bits >= 0x47800000u) return (uint16_t)(sign | 0x7c00u);  // 65536 and more: infinite
    if (bits < 0x38800000u) {
        // Below 2^-14 the last place is 2^-24, which is that of a float in [0.5, 1): add 0.5.
        float shifted = std::fabs(value) + 0.5f;
        std::memcpy(&bits, &shifted, 4);
        return (uint16_t)(sign | (bits - 0x3f000000u));
    }
    bits += 0xfffu + (bits >> 13 & 1u);
    return (uint16_t)(sign | (bits - 0x38000000u) >> 13);
}

}  // namespace fastslow
