// The formats that files have, in a library of their own: few models need them, and they take long to compile.
#include "format.h"

namespace fastslow {

extern const Format q4_0_format, q4_1_format, q5_0_format, q8_0_format, q4_k_format, q5_k_format, q6_k_format,
    mxfp4_format, u4_32_format, u4_128_format, u8_32_format, u8_128_format;

extern "C" EXPORT const Format* fs_file_format(int id) {
    static const Format* const formats[] = {
        &q4_0_format, &q4_1_format, &q5_0_format, &q8_0_format, &q4_k_format, &q5_k_format, &q6_k_format,
        &mxfp4_format, nullptr, &u4_32_format, &u4_128_format, &u8_32_format, &u8_128_format,
    };
    static_assert(sizeof(formats) == (FORMATS - Q4_0) * sizeof(*formats), "in the order of FormatId");
    return formats[id - Q4_0];
}

}  // namespace fastslow
