// What a row's token says: its embedding; and per-layer embeddings, which each layer adds to the row, see
// engine/model/ffn/token_input.py.

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>

#include "entry.h"
#include "simd.h"
#include "step.h"
#include "streams.h"

namespace fastslow {

const void* FileRows::find(int file, int64_t first, int64_t token) {
    const size_t place = (size_t)token % tokens.size();
    uint8_t* row = bytes.get() + place * row_bytes;
    if (tokens[place] == token) return row;
    tokens[place] = -1;
    const int64_t from = first + token * (int64_t)row_bytes;
    for (size_t got = 0; got < row_bytes;) {
        const ssize_t more = pread(file, row + got, row_bytes - got, from + (int64_t)got);
        if (more < 0 && errno == EINTR) continue;
        if (more <= 0) return nullptr;
        got += (size_t)more;
    }
    tokens[place] = token;
    return row;
}

// x: [embedding's width], then zeros to a whole tile where it is H.
void Step::embed_row(int thread, int i, float* x) {
    const Shape& s = model.shape;
    const int width = s.width_in();
    const int64_t token = args.tokens[i];
    const bool wide = s.embedding_format == F32;
    const size_t size = wide ? sizeof(float) : sizeof(uint16_t);
    const void* row = (const uint8_t*)s.embedding + (size_t)token * width * size;
    if (!s.embedding) row = model.file_rows[thread].find(s.embedding_file, s.embedding_at, token);
    if (!row)
        unreadable.store(true, std::memory_order_relaxed);
    else if (s.embedding_tiles) {
        const Format& format = format_of(s.embedding_format);
        format.unpack((const uint8_t*)s.embedding + token / TILE * format.tile_bytes(width), width,
                      (int)(token % TILE), x);
    } else if (wide)
        std::memcpy(x, row, sizeof(float) * width);
    else
        for (int k = 0; k < width; k++) x[k] = widen(((const uint16_t*)row)[k]);
    if (s.embedding_scale != 0.0f && s.embedding_scale != 1.0f)
        for (int k = 0; k < width; k++) x[k] *= s.embedding_scale;
    if (!s.entry_width) std::fill(x + width, x + model.hidden_pad, 0.0f);
}

void Step::embed(int thread, int& phase) {
    if (model.shape.reads_hidden()) return run_entry(*this, thread, phase);
    const int width = model.hidden_pad;
    phases.run(phase++, thread, args.rows, [&](int t) {
        float* x = columns(model.space.x, t, 0);
        embed_row(thread, t, x);
        if (!model.shape.merge_mix) return;
        for (int s = 0; s < STREAMS; s++) std::copy_n(x, width, model.space.streams + ((size_t)t * STREAMS + s) * width);
    }, qkv_stream(model.layers[0]).slice(thread, threads));
}

// Per-layer embeddings of all layers: a projection of x, normed, and a row of the table.
void Step::embed_layers(int thread, int& phase) {
    const Shape& s = model.shape;
    const int width = s.token_width;
    if (!width) return;
    const float in = 1.0f / std::sqrt((float)s.hidden), row_scale = std::sqrt((float)width), out = std::sqrt(0.5f);
    const uint8_t* rows = ready(thread, phase, s.layers, args.rows, narrow(),
                                format_of(model.layers[0].token_projection.format), s.hidden, model.ready_bytes,
                                model.space.ready, model.scratch[thread].ready,
                                [&](int i) { return columns(model.space.x, i, 0); });
    phases.run(phase++, thread, s.layers, [&](int n) {
        const Layer& l = model.layers[n];
        const Matrix& m = l.token_projection;
        for (int tile = 0; tile < tiles_of(m); tile++)
            multiply(m, m.tiles + tile * tile_bytes(m), rows, model.ready_bytes, args.rows,
                     [&](int first, int got, float* some) {
                         for (int i = 0; i < got; i++)
                             for (int j = 0; j < TILE; j++)
                                 token_input(first + i, n)[tile * TILE + j] = some[i * TILE + j] * in;
                     });
        for (int i = 0; i < args.rows; i++) {
            float* p = token_input(i, n);
            const float* row = args.token_rows + (size_t)i * s.token_inputs + l.token_at;
            norm(p, width, model.token_pad, s.token_projection_norm, s.eps, p);
            for (int j = 0; j < width; j++) p[j] = (p[j] + row[j] * row_scale) * out;
        }
    }, qkv_stream(model.layers[0]).slice(thread, threads));
}

void Step::add_token_input(int thread, int n, int& phase) {
    const Layer& l = model.layers[n];
    const Matrix& m = l.token_gate;
    Scratch& own = model.scratch[thread];
    const uint8_t* rows = ready(thread, phase, tiles_of(m), args.rows, narrow(), format_of(m.format), m.inputs,
                                model.ready_bytes, model.space.ready, own.ready,
                                [&](int i) { return columns(model.space.x, i, 0); });
    auto inner = [&](int i) { return model.space.h + (size_t)i * model.neurons_pad; };
    phases.run(phase++, thread, tiles_of(m), [&](int tile) {
        multiply(m, m.tiles + tile * tile_bytes(m), rows, model.ready_bytes, args.rows,
                 [&](int first, int got, float* out) {
                     for (int i = first; i < first + got; i++, out += TILE)
                         for (int at = 0; at < TILE; at += TILE / 2) {
                             alignas(64) float both[TILE];  // gates, and what they let pass
                             std::copy_n(out + at, TILE / 2, both);
                             std::copy_n(token_input(i, n) + tile * TILE + at, TILE / 2, both + TILE / 2);
                             activate(model.shape, both, 1, inner(i) + tile * TILE + at, 0);
                         }
                 });
    }, stream_of(l.token_up).slice(thread, threads));
    rows = ready(thread, phase, tiles_of(l.token_up), args.rows, narrow(), format_of(l.token_up.format),
                 l.token_up.inputs, model.ready_bytes, model.space.ready, own.ready, inner);
    add_to_x(thread, phase, l.token_up, rows, model.ready_bytes, n, true, l.token_norm,
             next_stream(n).slice(thread, threads));
}

}  // namespace fastslow
