#include "format.h"

#include <iterator>

namespace fastslow {

extern const Format f32_format, bf16_format, int8_format, int4_format, q4_0_format, q4_1_format, q5_0_format,
    q8_0_format, q4_k_format, q5_k_format, q6_k_format, mxfp4_format, f16_format, u4_32_format, u4_128_format,
    u8_32_format, u8_128_format;

const Format& format_of(int id) {
    static const Format* const formats[] = {
        &f32_format,  &bf16_format, &int8_format, &int4_format, &q4_0_format,  &q4_1_format, &q5_0_format,
        &q8_0_format, &q4_k_format, &q5_k_format, &q6_k_format, &mxfp4_format, &f16_format,
        &u4_32_format, &u4_128_format, &u8_32_format, &u8_128_format,
    };
    static_assert(std::size(formats) == FORMATS, "in the order of FormatId");
    return *formats[id >= 0 && id < FORMATS ? id : F32];
}

}  // namespace fastslow
