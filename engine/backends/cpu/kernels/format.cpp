#include "format.h"

namespace fastslow {

extern const Format f32_format, bf16_format, int8_format, int4_format, f16_format;

static const Format* formats[FORMATS] = {
    &f32_format, &bf16_format, &int8_format, &int4_format, 0, 0, 0, 0, 0, 0, 0, 0, &f16_format,
};

bool has_format(int id) { return id >= 0 && id < FORMATS && formats[id]; }

const Format& format_of(int id) { return has_format(id) ? *formats[id] : f32_format; }

// One that another library has. Nobody has asked for it before.
extern "C" EXPORT void fs_add_format(int id, const Format* format) { formats[id] = format; }

}  // namespace fastslow
