#include "step.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "entry.h"
#include "head_rows.h"
#include "indexer.h"
#include "latent.h"
#include "read_rows.h"
#include "simd.h"
#include "streams.h"

namespace fastslow {

// The most that a layer takes: qkv, norms of all heads, attention, merge, out, shared and routed experts, down, two
// norms behind them, and seven times rows made ready; keys and values of other formats than queries, twice two more;
// five of per-layer embeddings; three more of latents; six of an indexer; seven of streams. The rest: embedding or entry, twice two more,
// and the head with its rows.
constexpr int LAYER_PHASES = 42, OTHER_PHASES = 4 + ENTRY_PHASES;

int tiles_per_chunk(int tiles, int threads) {
    return std::clamp(tiles / (threads * 16), 1, 8);
}

void activate(const Shape& s, const float* gate_up, int rows, float* h, size_t stride) {
    // h = neuron(gate, up), a vector at a time
    auto each = [&](auto neuron) {
        for (int row = 0; row < rows; row++, gate_up += TILE, h += stride)
            for (int i = 0; i < TILE / 2; i += W)
                store(h + i, neuron(load<vf>(gate_up + i), load<vf>(gate_up + TILE / 2 + i)));
    };
    if (s.activation == SILU) {
        each([](vf g, vf up) { return g / (exp(-g) + 1.0f) * up; });
    } else if (s.activation == GELU_TANH) {  // g * sigmoid(2 * sqrt(2 / pi) * (g + 0.044715 g^3))
        each([](vf g, vf up) {
            return g / (exp(-(g * (g * g * 0.044715f + 1.0f) * 1.5957691216f)) + 1.0f) * up;
        });
    } else {
        const vf limit = splat(s.swiglu_limit), alpha = splat(s.swiglu_alpha);
        each([=](vf g, vf up) {  // a NaN passes min and max on their right
            g = min(limit, g);
            up = max(-limit, min(limit, up));
            return g / (exp(-(g * alpha)) + 1.0f) * (up + 1.0f);
        });
    }
}

void add_bias(const float* bias, int tile, int rows, float* out) {
    if (!bias) return;
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < TILE; j++) out[i * TILE + j] += bias[tile * TILE + j];
}

float norm_scale(const float* x, int count, int width, float eps) {
    vf squares[TURNS] = {};
    for (int k = 0; k < width; k += SPAN)
        UNROLL for (int t = 0; t < TURNS; t++) {
            vf v = load<vf>(x + k + t * W);
            squares[t] = fma(v, v, squares[t]);
        }
    return 1.0f / std::sqrt(sum(squares) / (float)count + eps);
}

void norm(const float* x, int count, int width, const float* weight, float eps, float* to) {
    const vf scale = splat(norm_scale(x, count, width, eps));
    int k = 0;
    for (; k + W <= count && weight; k += W) store(to + k, load<vf>(x + k) * scale * load<vf>(weight + k));
    for (; k < count; k++) to[k] = x[k] * scale[0] * (weight ? weight[k] : 1.0f);
}

const float* Step::normed(int thread, int i, const float* weight) const {
    const int width = model.hidden_pad;
    if (!weight) return model.space.x + (size_t)i * width;
    float* row = model.scratch[thread].row;
    norm(model.space.x + (size_t)i * width, model.shape.hidden, width, weight, model.shape.eps, row);
    return row;
}

void Step::prepare(const StepArgs& given, int from, int to, bool reads) {
    args = given;
    first = from;
    last = to;
    is_read = reads;
    unreadable.store(false, std::memory_order_relaxed);
    threads = given.threads;
    groups.assign(given.groups, given.groups + given.rows);
    routed = model.shape.shared_gate || std::any_of(groups.begin(), groups.end(), [](int64_t g) { return g != 0; });
    plans.resize(model.kinds.size());
    partial_floats = 0;
    longest = 0;
    for (size_t i = 0; i < plans.size(); i++) {
        plans[i].plan(args, model.shape, model.layers[model.kinds[i]]);
        partial_floats = std::max(partial_floats, plans[i].partial_floats);
        if (plans[i].chooses()) longest = plans[i].longest;
    }
    if (longest) {
        chosen_at = std::max(partial_floats, index_floats(*this));
        partial_floats = chosen_at + (size_t)args.rows * model.index_most;
    }
    if (routed) {
        choices.resize(model.layers.size());
        for (size_t n = 0; n < choices.size(); n++) {
            if (!choices[n]) choices[n].reset(new Choice);
            const Shape& s = model.shape;
            choices[n]->reserve(args.rows, s);
            choices[n]->tiles_done.store(0, std::memory_order_relaxed);
        }
    }
    merges.assign(model.layers.size(), false);
    for (int f = 0; f < args.features; f++) merges[args.feature_layers[f]] = model.shape.merge_mix;
    merges[last - 1] = model.shape.merge_mix;
    head_plan.prepare(*this);
    phases.reset(model.shape.layers * LAYER_PHASES + OTHER_PHASES, threads);
}

void run_step(Model& model, const StepArgs& args) {
    check_step(model, args);
    Crew& crew = Crew::get();
    auto prepared = [&](const StepArgs& some, int first, int last, bool reads) {
        Step& step = *model.steps[model.turn++ % Crew::TASKS];
        crew.reclaim(step);
        step.prepare(some, first, last, reads);
        return &step;
    };
    const ReadRows few(model, args);
    const bool all = few.rows.size() == (size_t)args.rows || model.own_layers == model.shape.layers;
    const bool reads = args.outputs || args.seen_rows;
    StepArgs before = args;
    if (!all) before.outputs = 0;
    Step* step = prepared(before, 0, all ? model.shape.layers : model.own_layers, reads);
    Step* rest = all || !reads ? nullptr : prepared(few.args, model.own_layers, model.shape.layers, true);
    model.make_room(args.rows, args.threads, std::max(step->partial_floats, rest ? rest->partial_floats : 0));
    crew.run(*step);
    if (step->unreadable.load(std::memory_order_relaxed)) throw Unreadable();
    if (rest) {
        few.gather(model);
        crew.run(*(step = rest));
    }
    step->head_plan.finish(*step);
}

void Step::work(int thread) {
    int phase = 0;
    if (!thread) model.timer.start();
    if (!first) embed(thread, phase);
    if (!first) embed_layers(thread, phase);
    mark(thread, EMBED);
    for (int n = first; n < last; n++) layer(thread, n, phase);
    if (args.outputs) run_head(*this, thread, phase);
    mark(thread, HEAD);
}

void Step::layer(int thread, int n, int& phase) {
    const Layer& l = model.layers[n];
    // of the last layer only what it keeps is read
    const bool ends = n + 1 == last && !is_read;
    if (l.attention_mix) read_streams(*this, thread, l.attention_mix, phase, qkv_stream(l).slice(thread, threads));
    if (l.attends()) {
        if (l.mixer == LATENT) run_latent(*this, thread, n, phase);
        else project(thread, n, phase);
        mark(thread, QKV);
        if (!ends || l.conv) attention(thread, n, phase);
    } else {
        run_recurrent(*this, thread, n, phase);
    }
    mark(thread, MIXING);
    if (ends && l.mixer == LATENT && l.conv) expand_latent(*this, thread, n, phase);
    if (ends) return;
    close_attention(thread, n, phase);
    if (l.mlp_mix) read_streams(*this, thread, l.mlp_mix, phase, stream_of(l.gate_up).slice(thread, threads));
    mark(thread, OUT);
    if (l.router.outputs && routed)
        run_moge(*this, thread, n, phase);
    else
        dense(thread, n, phase);
    if (l.streams_norm) norm_streams(*this, thread, l.streams_norm, phase, next_stream(n).slice(thread, threads));
    if (merges[n]) merge_streams(*this, thread, n, phase);
    if (l.token_up.outputs) add_token_input(thread, n, phase);
    mark(thread, DOWN);
}

void Step::attention(int thread, int n, int& phase) {
    const Layer& l = model.layers[n];
    const AttentionPlan& attention = plan(n);
    const int chunks = attention.chunks(l.kv_heads);
    if (attention.chooses() && l.index_keys.outputs) choose_keys(*this, thread, n, phase);
    phases.run(phase++, thread, chunks, [&](int c) { attend(*this, thread, n, c); },
               stream_of(l.out).slice(thread, threads));
    if (attention.split) {
        int merges = (int)attention.groups.size() * l.kv_heads;
        phases.run(phase++, thread, merges, [&](int c) { merge(*this, thread, n, c); });
    }
}

void Step::project(int thread, int n, int& phase) {
    const Matrix* parts = model.layers[n].qkv;
    int count = 4;
    while (!parts[count - 1].outputs) count--;
    for (int first = 0, last = 1; first < count; first = last++) {  // at once what takes the same rows
        while (last < count && same_rows(parts[first], parts[last])) last++;
        project(thread, n, phase, first, last);
    }
    if (model.layers[n].head_norms == WHOLE)
        phases.run(phase++, thread, args.rows, [&](int i) { place_whole(*this, n, i); });
}

// Queries (0), keys (1), values (2) and gates (3) from first to before last, whose rows are alike.
void Step::project(int thread, int n, int& phase, int first_part, int last_part) {
    const Layer& l = model.layers[n];
    const Shape& s = model.shape;
    const int keys = l.heads + l.kv_heads, values = keys + l.kv_heads;
    const int ends[] = {0, l.heads, keys, values, values + l.heads};
    const int first_head = ends[first_part], heads = ends[last_part] - first_head;
    const int tiles = (l.head_dim + TILE - 1) / TILE;
    Scratch& own = model.scratch[thread];
    const int width = l.qkv[first_part].inputs;
    const uint8_t* rows =
        ready(thread, phase, heads, args.rows, narrow(), format_of(l.qkv[first_part].format), width,
              model.ready_bytes, model.space.ready, own.ready, [&](int i) {
                  if (width == s.hidden) return normed(thread, i, l.attention_norm);
                  return (const float*)model.space.pair + (size_t)i * model.pair_width;
              });
    const bool asks = narrow() || args.requests > 1;
    phases.run(phase++, thread, heads, [&](int c) {
        const int head = first_head + c, part = head < ends[1] ? 0 : head < ends[2] ? 1 : head < ends[3] ? 2 : 3;
        const Matrix& m = l.qkv[part];
        const Format& format = format_of(m.format);
        const int tile = (head - ends[part]) * tiles;
        const uint8_t* weights = m.tiles + tile * tile_bytes(m);
        float* whole = own.head;  // [rows of a block][tiles * TILE]
        // a block of rows through all tiles of the head, so that the head is whole when it is turned
        for (int first = 0, count; first < args.rows; first += count) {
            const int left = args.rows - first;
            const bool passes = in_passes(format, left);
            count = !passes ? block_start(format, left, 1) : asks ? std::min(left, MOST_ROWS) : left;
            for (int i = 0; i < count && asks; i++) ask_place(*this, n, head, first + i);
            const uint8_t* some = rows + first * model.ready_bytes;
            auto place = [&](int at, int got, float* out) {
                for (int i = at; i < at + got; i++, out += tiles * TILE) {
                    for (int t = 0; t < tiles; t++) add_bias(m.bias, tile + t, 1, out + t * TILE);
                    place_head(*this, n, head, first + i, out);
                }
            };
            if (passes) {
                multiply_in_passes(m, weights, tiles, some, model.ready_bytes, count, whole, place);
                continue;
            }
            for (int t = 0; t < tiles; t++)
                multiply(m, weights + t * tile_bytes(m), some, model.ready_bytes, count,
                         [&](int at, int got, float* out) {
                             for (int i = 0; i < got; i++)
                                 std::memcpy(whole + ((size_t)(at + i) * tiles + t) * TILE, out + i * TILE,
                                             sizeof(float) * TILE);
                         });
            place(0, count, whole);
        }
    });
}

void Step::add_to_x(int thread, int& phase, const Matrix& m, const uint8_t* rows, size_t stride,
                    int layer, bool ends, const float* post_norm, Stream next) {
    const size_t bytes = tile_bytes(m);
    float* into = sums(post_norm);
    const vf scale = post_norm || layer < 0 ? splat(1.0f) : added_scale(layer);
    phases.run(phase++, thread, tiles_of(m), [&](int tile) {
        if (narrow())  // others have read it since, so it is not this core's to write
            for (int i = 0; i < args.rows; i++) ask_columns(into, i, tile);
        multiply(m, m.tiles + tile * bytes, rows, stride, args.rows,
                 [&](int first, int got, float* out) {
                     add_bias(m.bias, tile, got, out);
                     for (int i = 0; i < got; i++) {
                         float* x = columns(into, first + i, tile);
                         for (int j = 0; j < TILE; j += W)
                             store(x + j, fma(load<vf>(out + i * TILE + j), scale, load<vf>(x + j)));
                     }
                 });
        if (ends && !post_norm) note_features(layer, tile);
    }, next);
    add_normed(thread, phase, layer, ends, post_norm, next);
}

void Step::add_normed(int thread, int& phase, int layer, bool ends, const float* post_norm, Stream next) {
    if (!post_norm) return;
    const int hidden = model.shape.hidden, width = model.hidden_pad;
    const Layer& l = model.layers[layer];
    if (l.mlp_mix) return write_streams(*this, thread, post_norm, phase, next);
    const vf scale = added_scale(layer), all = splat(ends && l.layer_scale ? *l.layer_scale : 1.0f);
    const bool both = l.expert_post_norm && post_norm == l.mlp_post_norm;
    phases.run(phase++, thread, args.rows, [&](int i) {
        float *moved = columns(model.space.moved, i, 0), *x = columns(model.space.x, i, 0);
        if (both) {
            float* beside = columns(model.space.beside, i, 0);
            norm(moved, hidden, width, l.dense_post_norm, model.shape.eps, moved);
            norm(beside, hidden, width, l.expert_post_norm, model.shape.eps, beside);
            for (int k = 0; k < width; k += W) {
                store(moved + k, load<vf>(moved + k) + load<vf>(beside + k));
                store(beside + k, vf{});
            }
        }
        norm(moved, hidden, width, post_norm, model.shape.eps, moved);
        for (int k = 0; k < width; k += W) {
            store(x + k, fma(load<vf>(moved + k), scale, load<vf>(x + k)) * all);
            store(moved + k, vf{});
        }
        if (ends) note_features(layer, i, 0, hidden);
    }, next);
}

Stream Step::next_stream(int layer) const {
    return layer + 1 == model.shape.layers ? head_stream() : qkv_stream(model.layers[layer + 1]);
}

Stream Step::head_stream() const {
    return stream_of(head_plan.screened ? model.shape.screen : model.shape.head);
}

void Step::note_features(int layer, int row, int first, int last) {
    const int hidden = model.shape.hidden;
    for (int f = 0; f < args.features; f++) {
        if (args.feature_layers[f] != layer) continue;
        for (int m = 0; m < args.seen_rows; m++) {
            if (row >= 0 && args.seen[m] != row) continue;
            const float* x = model.space.x + (size_t)args.seen[m] * model.hidden_pad;
            float* to = args.feature_values + ((size_t)m * args.features + f) * hidden;
            std::copy(x + first, x + last, to + first);
        }
    }
}

void Step::close_attention(int thread, int n, int& phase) {
    const Layer& l = model.layers[n];
    const bool latent = l.mixer == LATENT;
    if (latent) expand_latent(*this, thread, n, phase);
    const float* seen = latent ? model.space.expanded : model.space.seen;
    const int width = latent ? model.expanded_width : model.attention_width;
    const uint8_t* rows = ready(
        thread, phase, tiles_of(l.out), args.rows, narrow(), format_of(l.out.format), l.out.inputs,
        model.ready_bytes, model.space.ready, model.scratch[thread].ready, [&](int i) { return seen + (size_t)i * width; });
    add_to_x(thread, phase, l.out, rows, model.ready_bytes, n, false, l.attention_post_norm,
             stream_of(l.gate_up).slice(thread, threads));
}

void Step::dense(int thread, int n, int& phase) {
    const Layer& l = model.layers[n];
    const Shape& s = model.shape;
    Scratch& own = model.scratch[thread];
    const int tiles = tiles_of(l.gate_up), batch = tiles_per_chunk(tiles, threads);
    const int chunks = (tiles + batch - 1) / batch;
    const uint8_t* rows =
        ready(thread, phase, chunks, args.rows, narrow(), format_of(l.gate_up.format), s.hidden,
              model.ready_bytes, model.space.ready, own.ready,
              [&](int i) { return normed(thread, i, l.mlp_norm); });
    const size_t bytes = tile_bytes(l.gate_up);
    phases.run(phase++, thread, chunks, [&](int c) {
        for (int tile = c * batch; tile < tiles && tile < (c + 1) * batch; tile++)
            multiply(l.gate_up, l.gate_up.tiles + tile * bytes, rows, model.ready_bytes, args.rows,
                     [&](int first, int got, float* out) {
                         add_bias(l.gate_up.bias, tile, got, out);
                         float* h = model.space.h + (size_t)first * model.neurons_pad + tile * (TILE / 2);
                         activate(s, out, got, h, model.neurons_pad);
                     });
    }, stream_of(l.down).slice(thread, threads));
    mark(thread, GATE_UP);
    rows = ready(thread, phase, tiles_of(l.down), args.rows, narrow(), format_of(l.down.format), l.down.inputs,
                 model.ready_bytes, model.space.ready, own.ready,
                 [&](int i) { return model.space.h + (size_t)i * model.neurons_pad; });
    const bool ends = !l.token_up.outputs;
    const Stream next = ends ? next_stream(n) : stream_of(l.token_gate);
    add_to_x(thread, phase, l.down, rows, model.ready_bytes, n, ends, l.mlp_post_norm, next.slice(thread, threads));
}

}  // namespace fastslow
