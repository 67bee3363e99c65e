#include "format.h"

namespace fastslow {

const Format& format_of(int id) {
    switch (id) {
        case BF16: return bf16_format;
        case INT8: return int8_format;
        case INT4: return int4_format;
        default: return f32_format;
    }
}

}  // namespace fastslow
