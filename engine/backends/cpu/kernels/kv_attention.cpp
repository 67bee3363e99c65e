// Attention over float32 and int8, in a library of its own: nearly all keys and values are bfloat16.
#include "attend.h"

namespace fastslow {

extern "C" EXPORT Attend fs_kv_attention(int kv_format) {
    return kv_format == F32 ? attend_as<float> : attend_as<uint8_t>;
}

}  // namespace fastslow
