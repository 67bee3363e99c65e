#include "latent.h"

#include <algorithm>

#include "head_rows.h"
#include "running.h"
#include "simd.h"
#include "step.h"

namespace fastslow {

namespace {

// Rows through all tiles of one head's matrix, whose heads lie one behind the other: done(row, out[padded outputs]).
template <class Done>
void multiply_head(const Matrix& m, int head, int tiles, const uint8_t* rows, size_t stride, int count, float* whole,
                   Done done) {
    const size_t bytes = tile_bytes(m);
    for (int t = 0; t < tiles; t++)
        multiply(m, m.tiles + ((size_t)head * tiles + t) * bytes, rows, stride, count, [&](int at, int got, float* out) {
            for (int i = 0; i < got; i++)
                std::copy_n(out + i * TILE, TILE, whole + ((size_t)(at + i) * tiles + t) * TILE);
        });
    for (int i = 0; i < count; i++) done(i, whole + (size_t)i * tiles * TILE);
}

// Some numbers made ready for a product, with zeros up to whole tiles.
void make_ready(const Matrix& m, const float* from, float* room, uint8_t* to) {
    std::copy_n(from, m.inputs, room);
    std::fill(room + m.inputs, room + padded(m.inputs, TILE), 0.0f);
    format_of(m.format).prepare(to, room, m.inputs);
}

// A row's two latents are normed, the second one with its turned dims goes to its page.
void place_latent(Step& step, int thread, int n, int row) {
    Model& model = step.model;
    const Layer& l = model.layers[n];
    const Columns columns(l, model.shape.recurrence);
    float* given = model.space.mixed + (size_t)row * model.mixed_width;
    float* key = model.scratch[thread].head;
    const int latent = l.value_dim, turning = l.head_dim - latent;
    if (const int rank = l.mixed.outputs ? l.qkv[0].inputs : 0)
        norm(given, rank, padded(rank, TILE), l.query_norm, l.latent_eps, given);
    std::copy_n(given + columns.gates, latent, key);
    std::fill(key + latent, key + padded(latent, TILE), 0.0f);
    norm(key, latent, padded(latent, TILE), l.key_norm, l.latent_eps, key);
    std::copy_n(given + columns.gates + latent, turning, key + latent);
    turn(step, n, row, turning, key + latent);
    put_head(step, n, l.heads, row, key);
    if (!l.index_keys.outputs) return;
    float* index = given + columns.index;
    const int dim = l.index_dim;
    if (l.index_bias) {
        float mean = 0.0f;
        for (int d = 0; d < dim; d++) mean += index[d];
        for (int d = 0; d < dim; d++) index[d] -= mean / (float)dim;
    }
    norm(index, dim, padded(dim, TILE), l.index_norm, l.index_eps, index);
    for (int d = 0; d < dim && l.index_bias; d++) index[d] += l.index_bias[d];
    turn(step, n, row, turning, index);
    put_index_key(step, n, row, index);
}

// A head's queries: the dims that are not turned go through its part of what makes keys of latents.
void place_queries(Step& step, int thread, int n, int head, const uint8_t* rows) {
    Model& model = step.model;
    const Layer& l = model.layers[n];
    const Matrix &queries = l.qkv[0], &absorb = l.absorb;
    Scratch& own = model.scratch[thread];
    const int latent = l.value_dim, turning = l.head_dim - latent, nope = absorb.inputs;
    const int tiles = padded(nope + turning, TILE) / TILE, latent_tiles = padded(latent, TILE) / TILE;
    const float scale = l.score_scale;
    for (int first = 0, count; first < step.args.rows; first += count) {
        count = std::min(step.args.rows - first, PASS_ROWS);
        auto query = [&](int i) {
            return model.space.q + (size_t)(first + i) * l.heads * l.head_dim + (size_t)head * l.head_dim;
        };
        multiply_head(queries, head, tiles, rows + first * model.ready_bytes, model.ready_bytes, count, own.head,
                      [&](int i, float* whole) {
                          turn(step, n, first + i, turning, whole + nope);
                          for (int d = 0; d < turning; d++) query(i)[latent + d] = whole[nope + d] * scale;
                          make_ready(absorb, whole, own.outs, own.gathered + i * model.ready_bytes);
                      });
        multiply_head(absorb, head, latent_tiles, own.gathered, model.ready_bytes, count, own.head,
                      [&](int i, float* whole) {
                          for (int d = 0; d < latent; d++) query(i)[d] = whole[d] * scale;
                      });
    }
}

}  // namespace

void run_latent(Step& step, int thread, int n, int& phase) {
    Model& model = step.model;
    const Layer& l = model.layers[n];
    project_mixed(step, thread, n, phase);
    step.phases.run(phase++, thread, step.args.rows, [&](int i) { place_latent(step, thread, n, i); },
                    stream_of(l.qkv[0]).slice(thread, step.threads));
    const uint8_t* rows = step.ready(
        thread, phase, l.heads, step.args.rows, step.narrow(), format_of(l.qkv[0].format), l.qkv[0].inputs,
        model.ready_bytes, model.space.ready, model.scratch[thread].ready, [&](int i) -> const float* {
            if (!l.mixed.outputs) return step.normed(thread, i, l.attention_norm);
            return model.space.mixed + (size_t)i * model.mixed_width;
        });
    step.phases.run(phase++, thread, l.heads, [&](int head) { place_queries(step, thread, n, head, rows); },
                    stream_of(l.absorb).slice(thread, step.threads));
}

void expand_latent(Step& step, int thread, int n, int& phase) {
    Model& model = step.model;
    const Layer& l = model.layers[n];
    Scratch& own = model.scratch[thread];
    const int values = l.out.inputs / l.heads, tiles = padded(values, TILE) / TILE;
    step.phases.run(phase++, thread, l.heads, [&](int head) {
        for (int first = 0, count; first < step.args.rows; first += count) {
            count = std::min(step.args.rows - first, PASS_ROWS);
            for (int i = 0; i < count; i++)
                make_ready(l.expand,
                           model.space.seen + (size_t)(first + i) * model.attention_width + (size_t)head * l.value_dim,
                           own.outs, own.gathered + i * model.ready_bytes);
            multiply_head(l.expand, head, tiles, own.gathered, model.ready_bytes, count, own.head,
                          [&](int i, float* whole) {
                              std::copy_n(whole, values, model.space.expanded +
                                              (size_t)(first + i) * model.expanded_width + (size_t)head * values);
                          });
        }
        for (int at = head * values, end = at + values; l.conv && at < end; at += CONV_CHANNELS)
            add_convolved(step, thread, n, model.space.expanded + at, model.expanded_width,
                          l.qkv[0].inputs + l.value_dim + at, std::min(CONV_CHANNELS, end - at));
    }, stream_of(l.out).slice(thread, step.threads));
}

}  // namespace fastslow
