#include "entry.h"

#include <algorithm>
#include <cmath>

#include "simd.h"
#include "step.h"

namespace fastslow {

namespace {

// One layer's features, divided by their root mean square.
void even_out(const float* from, int count, float eps, float* to) {
    vf squares[TURNS] = {};
    int k = 0;
    for (; k + SPAN <= count; k += SPAN)
        UNROLL for (int t = 0; t < TURNS; t++) {
            const vf v = load<vf>(from + k + t * W);
            squares[t] = fma(v, v, squares[t]);
        }
    float total = sum(squares);
    for (; k < count; k++) total += from[k] * from[k];
    const float scale = 1.0f / std::sqrt(total / (float)count + eps);
    for (k = 0; k < count; k++) to[k] = from[k] * scale;
}

// x = a matrix times rows of floats; x holds zeros.
void multiply_rows(Step& step, int thread, int& phase, const Matrix& m, const float* rows, int width,
                   Stream next) {
    Model& model = step.model;
    const uint8_t* ready = step.ready(thread, phase, tiles_of(m), step.args.rows, step.narrow(),
                                      format_of(m.format), m.inputs, model.ready_bytes, model.space.ready,
                                      model.scratch[thread].ready,
                                      [&](int i) { return rows + (size_t)i * width; });
    step.add_to_x(thread, phase, m, ready, model.ready_bytes, -1, false, nullptr, next);
}

}  // namespace

void run_entry(Step& step, int thread, int& phase) {
    Model& model = step.model;
    const Shape& s = model.shape;
    const StepArgs& a = step.args;
    const bool paired = !s.entry.outputs;  // the layer reads the pair itself
    const Stream layer = qkv_stream(model.layers[0]).slice(thread, step.threads);
    const Stream after = paired ? layer : stream_of(s.entry).slice(thread, step.threads);
    auto row = [&](int t) { return model.space.x + (size_t)t * model.hidden_pad; };
    const int width = s.width_in(), at_hidden = s.hidden_first ? 0 : width, at_embedding = width - at_hidden;
    auto pair = [&](int t) { return model.space.pair + (size_t)t * model.pair_width; };
    // The row's norm goes to one half of the pair, and x is cleared for what is added to it next;
    auto norm = [&](int t, const float* weight, float* to) {
        std::copy_n(step.normed(thread, t, weight), s.hidden, to);
        std::fill_n(row(t), model.hidden_pad, 0.0f);
    };
    // but where the layer reads the pair, x is what the layer adds to.
    auto norm_hidden = [&](int t) {
        if (!paired) return norm(t, s.hidden_norm, pair(t) + at_hidden);
        const float* normed = step.normed(thread, t, s.hidden_norm);
        std::copy_n(normed, s.hidden, pair(t) + at_hidden);
        if (s.normed_residual) std::copy_n(normed, s.hidden, row(t));
    };
    // What the caller owns is read inside chunks only: a late thread finds none.
    step.phases.run(phase++, thread, a.rows, [&](int t) {
        if (s.entry_width) {  // both as they are
            step.embed_row(thread, t, pair(t) + at_embedding);
            std::copy_n(a.hidden + (size_t)t * width, width, pair(t) + at_hidden);
            std::fill_n(row(t), model.hidden_pad, 0.0f);
            return;
        }
        step.embed_row(thread, t, row(t));
        norm(t, s.embedding_norm, pair(t) + at_embedding);
        if (a.fused) {
            const float* from = a.fused + (size_t)t * s.fuse.inputs;
            float* to = model.space.level + (size_t)t * model.level_width;
            if (!s.level) std::copy_n(from, s.fuse.inputs, to);
            else
                for (int at = 0; at < s.fuse.inputs; at += s.level)
                    even_out(from + at, s.level, s.eps, to + at);
        } else {
            std::copy_n(a.hidden + (size_t)t * s.hidden, s.hidden, row(t));
            if (s.normed_output) std::copy_n(step.normed(thread, t, s.norm), s.hidden, row(t));
            norm_hidden(t);
        }
    }, a.fused ? stream_of(s.fuse).slice(thread, step.threads) : after);
    if (a.fused) {
        multiply_rows(step, thread, phase, s.fuse, model.space.level, model.level_width, after);
        step.phases.run(phase++, thread, a.rows, norm_hidden);
    }
    if (paired) return;
    multiply_rows(step, thread, phase, s.entry, model.space.pair, model.pair_width,
                  layer);
}

}  // namespace fastslow
