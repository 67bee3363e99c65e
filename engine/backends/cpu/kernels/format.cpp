#include "format.h"

namespace fastslow {

extern const Format f32_format, bf16_format, int8_format, int4_format, f16_format;

static const Format* formats[FORMATS] = {
    &f32_format, &bf16_format, &int8_format, &int4_format, 0, 0, 0, 0, 0, 0, 0, 0, &f16_format,
};

bool has_format(int id) { return id >= 0 && id < FORMATS && formats[id]; }

const Format& format_of(int id) { return has_format(id) ? *formats[id] : f32_format; }

// What `fs_file_formats` of the other library gives. Nobody has asked for one of them before.
extern "C" __attribute__((visibility("default"))) void fs_add_formats(const Format* const* more) {
    for (int i = 0; i < FILE_FORMATS; i++)
        if (more[i]) formats[Q4_0 + i] = more[i];
}

}  // namespace fastslow
