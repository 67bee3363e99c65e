// Per-layer embeddings: what each layer adds to a row by the row's token. See engine/model/ffn/token_input.py.

#include <algorithm>
#include <cmath>

#include "simd.h"
#include "step.h"

namespace fastslow {

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
