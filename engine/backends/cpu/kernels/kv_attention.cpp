// Attention over float32 and int8, in a library of its own: nearly all keys and values are bfloat16.
#include "attend.h"
#include "score_index.h"

namespace fastslow {

extern "C" EXPORT const Attend* fs_kv_attention(int kv_format) {
    static const Attend floats{attend_as<float>, score_index_as<float>}, bytes{attend_as<uint8_t>, score_index_as<uint8_t>};
    return kv_format == F32 ? &floats : &bytes;
}

}  // namespace fastslow
