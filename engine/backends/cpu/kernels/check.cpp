#include "check.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <vector>

#include "step.h"
#include "tile.h"

namespace fastslow {

static_assert(limits::RATIO.most <= MOST_QUERIES, "a chunk holds all query heads of a KV head");

namespace {

thread_local char kept[256];

void check_matrix(const char* name, const Matrix& m, int64_t inputs, int64_t outputs) {
    if (m.inputs != inputs || m.outputs != outputs)
        refuse("matrix %s is %d by %d, not %lld by %lld", name, m.outputs, m.inputs, (long long)outputs,
               (long long)inputs);
    check(limits::INPUTS, inputs);
    if (!has_format(m.format)) refuse("format %d of matrix %s is unknown", m.format, name);
    const Format& format = format_of(m.format);
    if (format.block_inputs && !format.pack && inputs % format.block_inputs)
        refuse("%lld inputs of matrix %s are no multiple of %d", (long long)inputs, name, format.block_inputs);
    if (!m.tiles || (uintptr_t)m.tiles % 64) refuse("matrix %s does not begin on a cache line", name);
}

void check_vector(const char* name, const void* numbers) {
    if (!numbers) refuse("vector %s is missing", name);
}

void check_embedding(const Shape& s) {
    check(limits::VOCABULARY, s.embedding_rows);
    const bool floats = !s.embedding_tiles && (s.embedding_format == F32 || s.embedding_format == BF16);
    if (!floats && (!s.embedding_tiles || !has_format(s.embedding_format)))
        refuse("format %d of the embedding is unknown", s.embedding_format);
    if (!s.embedding && (!floats || s.embedding_file < 0 || s.embedding_at < 0))
        refuse("the embedding is neither in memory nor in a file");
}

void check_dense(const Shape& s, const Layer& l) {
    const int inner = l.down.inputs;
    if (inner < 1 || inner > s.neurons) refuse("a layer has %d neurons, not 1 to %d", inner, s.neurons);
    check_matrix("gate_up", l.gate_up, s.hidden, 2 * padded(inner, TILE / 2));
    check_matrix("down", l.down, inner, padded(s.hidden, TILE));
}

void check_routed(const Shape& s, const Layer& l) {
    if (s.router < GROUPED || s.router > SIGMOID) refuse("router %d is unknown", s.router);
    if (s.chosen < 1 || s.chosen > s.experts) refuse("%d of %d experts cannot be chosen", s.chosen, s.experts);
    if (s.router == GROUPED && s.experts % s.chosen)
        refuse("%d experts are no multiple of %d groups", s.experts, s.chosen);
    if (s.router_groups && (s.router_groups < 1 || s.experts % s.router_groups || s.kept_groups < 1 ||
                            s.kept_groups > s.router_groups || s.group_best < 1 ||
                            s.chosen > s.kept_groups * (s.experts / s.router_groups)))
        refuse("%d of %d experts cannot be chosen from %d of %d groups by the %d best", s.chosen, s.experts,
               s.kept_groups, s.router_groups, s.group_best);
    check_matrix("router", l.router, s.hidden, padded(s.router_outputs(), TILE));
    if (s.router == GROUPED) check_vector("router_scale", l.router_scale);
    if (l.router.format != F32) refuse("the router is not float32");
    check_matrix("expert_gate_up", l.expert_gate_up, s.hidden, 2 * padded(s.expert_neurons, TILE / 2));
    check_matrix("expert_down", l.expert_down, s.expert_neurons, padded(s.hidden, TILE));
    for (const Matrix* m : {&l.expert_gate_up, &l.expert_down})
        if (s.experts > 1 && (l.expert_bytes % 64 || l.expert_bytes < (int64_t)(tiles_of(*m) * tile_bytes(*m))))
            refuse("experts lie %lld bytes apart, less than they take", (long long)l.expert_bytes);
}

void check_recurrence(const Recurrence& r) {
    check(limits::INPUTS, r.channels);
    check(limits::KERNEL, r.kernel);
    if (!r.key_heads) return;
    for (const int heads : {r.key_heads, r.value_heads}) check(limits::HEADS, heads);
    for (const int dim : {r.key_dim, r.value_dim}) check(limits::HEAD_DIM, dim);
    if (r.value_heads % r.key_heads)
        refuse("%d value heads are no multiple of %d key heads", r.value_heads, r.key_heads);
    const int64_t channels = 2 * (int64_t)r.key_heads * r.key_dim + (int64_t)r.value_heads * r.value_dim;
    if (r.channels != channels) refuse("a convolution of %d channels has not %lld", r.channels, (long long)channels);
}

void check_recurrent(const Shape& s, const Layer& l) {
    const Recurrence& r = s.recurrence;
    const bool delta = l.mixer == DELTA;
    if (l.mixer > SHORT_CONV || !r.kernel || delta != (r.key_heads > 0)) refuse("mixer %d is unknown", l.mixer);
    check_vector("conv", l.conv);
    const int64_t values = delta ? (int64_t)r.value_heads * r.value_dim : r.channels;
    check(limits::INPUTS, 3 * (int64_t)r.channels);
    check_matrix("mixed", l.mixed, s.hidden, padded((delta ? 1 : 3) * r.channels, TILE));
    check_matrix("out", l.out, values, padded(s.hidden, TILE));
    if (!delta) return;
    check_matrix("z", l.z, s.hidden, padded((int)values, TILE));
    check_matrix("rates", l.rates, s.hidden, padded(2 * r.value_heads, TILE));
    if (l.rates.format != F32) refuse("rates are not float32");
    check_vector("decay", l.decay);
    check_vector("dt_bias", l.dt_bias);
    check_vector("value_norm", l.value_norm);
}

void check_angles(const Shape& s, const Layer& l, int dims) {
    if (l.rope_at < -1 || (l.rope_at >= 0 && l.rope_at > s.angles - dims / 2))
        refuse("angles from %d on leave the %d of a row", l.rope_at, s.angles);
}

void check_sinks(const Shape& s, const Layer& l) {
    if (!s.sinks) return;
    check_vector("sink_keys", l.sink_keys);
    check_vector("sink_values", l.sink_values);
}

void check_heads(const Layer& l) {
    check(limits::HEADS, l.heads);
    check(limits::KV_HEADS, l.kv_heads);
    check(limits::HEAD_DIM, l.head_dim);
    if (l.heads % l.kv_heads || l.head_dim % 2)
        refuse("heads=%d must be a multiple of kv_heads=%d, and head_dim=%d even", l.heads, l.kv_heads, l.head_dim);
    check(limits::RATIO, l.heads / l.kv_heads);
    if (l.value_dim < 1 || l.value_dim > l.head_dim)
        refuse("value_dim=%d must be in 1..%d, head_dim", l.value_dim, l.head_dim);
    check(limits::INPUTS, (int64_t)l.heads * l.head_dim);
    if (l.window < 0) refuse("window=%d must be at least 0", l.window);
}

void check_attention(const Shape& s, const Layer& l, bool reads_pair) {
    check_heads(l);
    const int64_t head = padded(l.head_dim, TILE), inputs = (reads_pair ? 2 : 1) * (int64_t)s.hidden;
    const char* names[] = {"queries", "keys", "values", "gates"};
    for (int part = 0, last = 1; part < 4; part++) {
        if (part && !l.qkv[part].outputs) continue;
        if (part > last) refuse("a layer has %s and no %s", names[part], names[part - 1]);
        check_matrix(names[part], l.qkv[part], inputs, (part % 3 ? l.kv_heads : l.heads) * head);
        last = part + 1;
    }
    const bool own = l.qkv[2].outputs > 0;
    if ((l.values_normed || !own) && l.value_dim != l.head_dim && l.qkv[1].outputs)
        refuse("value_dim=%d of values that are normed, or made of keys, must be head_dim=%d", l.value_dim, l.head_dim);
    if (l.qkv[3].outputs && l.value_dim != l.head_dim) refuse("gates of %d values have no room", l.value_dim);
    check_matrix("out", l.out, (int64_t)l.heads * l.value_dim, padded(s.hidden, TILE));
    if (l.head_norms < BEFORE_ROPE || l.head_norms > WHOLE) refuse("norms of heads of kind %d are unknown", l.head_norms);
    check_angles(s, l, l.head_dim);
    check_sinks(s, l);
}

// The first part of a key, its latent, is what heads see.
void check_latent(const Shape& s, const Layer& l) {
    check_heads(l);
    const int turning = l.head_dim - l.value_dim, values = l.out.inputs / l.heads;
    const bool compresses = l.mixed.outputs > 0;
    const int queries = compresses ? l.qkv[0].inputs : s.hidden;
    if (turning < 2 || turning % 2) refuse("latents of %d leave %d dims to turn", l.value_dim, turning);
    for (const int count : {l.absorb.inputs, values}) check(limits::HEAD_DIM, count);
    if (compresses) {
        check_matrix("mixed", l.mixed, s.hidden, padded(queries, TILE));
        check_vector("query_norm", l.query_norm);
    }
    check_vector("key_norm", l.key_norm);
    check_matrix("z", l.z, s.hidden, padded(l.head_dim, TILE));
    check_matrix("queries", l.qkv[0], queries, (int64_t)l.heads * padded(l.absorb.inputs + turning, TILE));
    check_matrix("absorb", l.absorb, l.absorb.inputs, (int64_t)l.heads * padded(l.value_dim, TILE));
    check_matrix("expand", l.expand, l.value_dim, (int64_t)l.heads * padded(values, TILE));
    check_matrix("out", l.out, (int64_t)l.heads * values, padded(s.hidden, TILE));
    check_angles(s, l, turning);
    check_sinks(s, l);
    const int64_t channels = queries + l.value_dim + (int64_t)l.heads * values;
    if (l.conv && (!compresses || s.recurrence.key_heads || s.recurrence.channels != channels))
        refuse("convolutions of %d channels have not %lld", s.recurrence.channels, (long long)channels);
}

// A layer that takes an earlier one's choice has no matrices for it.
void check_indexer(const Shape& s, const Layer& l) {
    if (l.mixer != LATENT || l.window || l.index_most < 1)
        refuse("a layer of mixer %d and window=%d chooses index_most=%d keys", l.mixer, l.window, l.index_most);
    if (!l.index_keys.outputs) return;
    check(limits::INDEX_HEADS, l.index_heads);
    check(limits::HEAD_DIM, l.index_dim);
    const int turning = l.head_dim - l.value_dim;
    if (l.index_dim % 2 || l.index_dim < turning || !l.mixed.outputs)
        refuse("index_dim=%d must be even and at least %d, and queries made of latents", l.index_dim, turning);
    check_matrix("index_queries", l.index_queries, l.qkv[0].inputs, (int64_t)l.index_heads * padded(l.index_dim, TILE));
    check_matrix("index_keys", l.index_keys, s.hidden, padded(l.index_dim, TILE));
    check_matrix("rates", l.rates, s.hidden, padded(l.index_heads, TILE));
    if (l.rates.format != F32) refuse("rates are not float32");
    check_vector("index_norm", l.index_norm);
}

void check_token_input(const Shape& s, const Layer& l) {
    const int64_t width = padded(s.token_width, TILE);
    check_matrix("token_projection", l.token_projection, s.hidden, width);
    check_matrix("token_gate", l.token_gate, s.hidden, width);
    check_matrix("token_up", l.token_up, s.token_width, padded(s.hidden, TILE));
    check_vector("token_norm", l.token_norm);
    if (l.token_at < 0 || l.token_at > s.token_inputs - s.token_width)
        refuse("per-layer embeddings from %d on leave the %d of a row", l.token_at, s.token_inputs);
}

void check_streams(const Shape& s, const Layer& l) {
    const bool mixes = s.merge_mix;
    if (mixes != (l.attention_mix != nullptr) || mixes != (l.mlp_mix != nullptr) || (l.streams_norm && !mixes))
        refuse("all layers have streams, or none");
    if (mixes && (!l.attention_post_norm || !l.mlp_post_norm || l.token_up.outputs || l.layer_scale || l.expert_post_norm))
        refuse("streams take what is normed, and nothing else");
}

void check_layer(const Shape& s, const Layer& l, bool reads_pair) {
    check_streams(s, l);
    if (!reads_pair && !l.attention_post_norm) check_vector("attention_norm", l.attention_norm);
    if (!l.mlp_post_norm) check_vector("mlp_norm", l.mlp_norm);
    if (l.mixer == ATTENTION) check_attention(s, l, reads_pair);
    else if (l.mixer == LATENT) check_latent(s, l);
    else check_recurrent(s, l);
    if (l.index_most || l.index_keys.outputs) check_indexer(s, l);
    const bool routed = l.router.outputs > 0;
    if (!routed || l.down.outputs > 0) check_dense(s, l);
    if (routed) check_routed(s, l);
    if (l.expert_post_norm) {
        if (!routed || !l.down.outputs) refuse("a layer has norms of what experts add beside an MLP, and no such two");
        for (const float* norm : {l.dense_post_norm, l.mlp_post_norm}) check_vector("dense_post_norm", norm);
    }
    if (l.layer_scale && !l.token_norm && !l.mlp_post_norm) refuse("a layer has a scale, and no norm before it");
    if (s.token_width) check_token_input(s, l);
    else if (l.token_up.outputs) refuse("a layer has per-layer embeddings, and the model none");
}

// Rows of a text are a chain, and drafted ones hang on them or on each other.
void check_running(const Model& model, const StepArgs& a) {
    if (!a.running || !a.states) refuse("the rows have no running states");
    check_all("ring row", a.before, a.before_size, 0, RING);
    for (int64_t i = 0; i < a.passed_size; i++) check_all("place of a snapshot", &a.passed[i].place, 1, 0, a.spots);
    for (size_t n = 0; n < model.layers.size(); n++) {
        const RunningMemory& m = a.states[n];
        const bool delta = model.layers[n].mixer == DELTA;
        if (!model.layers[n].keeps_state()) continue;
        if (!m.window || !m.mixed || (delta && (!m.heads || !m.gates || !m.keys || !m.deltas)))
            refuse("layer %d has no running states", (int)n);
    }
    for (int b = 0; b < a.requests; b++) {
        const RunningRows& r = a.running[b];
        const int64_t first = a.starts[b], count = a.starts[b + 1] - first;
        check_all("place of a running state", &r.place, 1, 0, a.places);
        check_all("final rows", &r.stable, 1, 0, count + 1);
        check_all("rows that are not final", &count, 1, 0, r.stable + RING + 1);
        check_all("ring row", a.ring_rows + first + r.stable, count - r.stable, 0, RING);
        check_all("rows before", &r.before, 1, 0, a.before_size - r.before_count + 1);
        check_all("rows to fold in", &r.folds, 1, 0, r.before_count + 1);
        check_all("snapshots", &r.passed, 1, 0, a.passed_size - r.passed_count + 1);
        if (r.before_count < 0 || r.passed_count < 0 || (r.folds != r.before_count && (r.folds || r.stable)))
            refuse("%lld of %lld rows before cannot be folded in", (long long)r.folds, (long long)r.before_count);
        for (int64_t i = 0; i < r.passed_count; i++)
            check_all("row of a snapshot", &a.passed[r.passed + i].folded, 1, 1, r.folds + r.stable + 1);
        for (int64_t i = 0; i < count; i++) {
            const int64_t parent = a.parents[first + i];
            if (parent < (i < r.stable ? i - 1 : r.stable - 1) || parent >= i)
                refuse("row %lld follows row %lld, which it cannot", (long long)i, (long long)parent);
        }
    }
}

// Request b owns rows starts[b] : starts[b + 1].
void check_starts(const StepArgs& a) {
    bool ascends = a.starts[0] == 0 && a.starts[a.requests] == a.rows;
    for (int b = 0; b < a.requests; b++) ascends &= a.starts[b] <= a.starts[b + 1];
    if (!ascends) refuse("starts of %d requests do not ascend from 0 to the %d rows", a.requests, a.rows);
}

}  // namespace

void refuse(const char* sentence, ...) {
    va_list values;
    va_start(values, sentence);
    std::vsnprintf(kept, sizeof kept, sentence, values);
    va_end(values);
    throw Refused();
}

const char* refusal() { return kept; }

void check(const Limit& limit, int64_t value) {
    if (value < limit.least || value > limit.most)
        refuse("%s=%lld must be in %lld..%lld", limit.name, (long long)value, (long long)limit.least,
               (long long)limit.most);
}

void check_all(const char* name, const int64_t* numbers, int64_t count, int64_t low, int64_t high) {
    int64_t least = INT64_MAX, most = INT64_MIN;
    for (int64_t i = 0; i < count; i++) {
        least = std::min(least, numbers[i]);
        most = std::max(most, numbers[i]);
    }
    if (count && (least < low || most >= high))
        refuse("%s %lld must be in %lld..%lld", name, (long long)(least < low ? least : most), (long long)low,
               (long long)high - 1);
}

void check_different(const char* name, const int64_t* numbers, int64_t count) {
    std::vector<int64_t> sorted(numbers, numbers + count);
    std::sort(sorted.begin(), sorted.end());
    const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
    if (twice != sorted.end()) refuse("%s %lld comes twice", name, (long long)*twice);
}

void check_model(const Shape& s, const Layer* layers) {
    check(limits::LAYERS, s.layers);
    check(limits::HIDDEN, s.hidden);
    check(limits::NEURONS, s.neurons);
    check(limits::VOCABULARY, s.vocabulary);
    check(limits::EXPERTS, s.experts);
    check(limits::CHOSEN, s.chosen);
    check(limits::SINKS, s.sinks);
    check(limits::EXPERT_NEURONS, s.expert_neurons);
    if (s.recurrence.kernel) check_recurrence(s.recurrence);
    check(limits::TOKEN_WIDTH, s.token_width);
    if (s.token_width) check_vector("token_projection_norm", s.token_projection_norm);
    const bool paired = s.fuse.outputs && !s.entry.outputs;  // the first layer reads a pair
    int32_t most = 0;
    for (int n = 0; n < s.layers; n++) {
        check_layer(s, layers[n], paired && !n);
        if (most && layers[n].index_most && layers[n].index_most != most)
            refuse("layers choose %d and %d keys", most, layers[n].index_most);
        most = std::max(most, layers[n].index_most);
        if (layers[n].token_projection.format != layers[0].token_projection.format)
            refuse("projections of per-layer embeddings differ in format");
    }
    check_embedding(s);
    check_vector("norm", s.norm);
    const int64_t tokens = padded(s.vocabulary, TILE);
    check_matrix("head", s.head, s.hidden, tokens);
    if (s.screen.tiles) {
        check_matrix("screen", s.screen, s.hidden, tokens);
        check_vector("screen_norms", s.screen_norms);
    }
    if (!s.reads_hidden()) return;
    if (!paired) check_matrix("entry", s.entry, 2 * (int64_t)s.width_in(), padded(s.hidden, TILE));
    if (s.entry_width) {
        check(limits::HIDDEN, s.entry_width);
        if (s.fuse.outputs) refuse("a model of entry_width=%d reads no features", s.entry_width);
        return;
    }
    check_vector("embedding_norm", s.embedding_norm);
    check_vector("hidden_norm", s.hidden_norm);
    if (!s.fuse.outputs) return;
    check_matrix("fuse", s.fuse, s.fuse.inputs, padded(s.hidden, TILE));
    if (s.level < 0 || (s.level && s.fuse.inputs % s.level))
        refuse("features of %d are no multiple of level=%d", s.fuse.inputs, s.level);
}

void check_step(const Model& model, const StepArgs& a) {
    const Shape& s = model.shape;
    check(limits::ROWS, a.rows);
    check(limits::ROWS, a.requests);
    if (a.outputs < 0 || a.outputs > a.rows || a.seen_rows < 0 || a.seen_rows > a.rows || a.features < 0)
        refuse("%d outputs or %d rows to see are more than the %d rows", a.outputs, a.seen_rows, a.rows);
    if (!attends(a.kv_format)) refuse("keys and values of format %d are unknown", a.kv_format);
    for (int n = 0; n < s.layers; n++) {
        const Layer& l = model.layers[n];
        if (!l.attends()) continue;
        for (const int dim : {l.head_dim, l.index_keys.outputs ? l.index_dim : 0})
            if (a.kv_format == INT8 && dim % 4)
                refuse("keys and values of format %d with head_dim=%d are unknown", a.kv_format, dim);
        if (!a.keys[n] || !a.values[n]) refuse("layer %d has no keys and values", n);
    }
    if (s.token_width && !a.token_rows) refuse("the rows have no per-layer embeddings");
    check_all("token", a.tokens, a.rows, 0, s.embedding_rows);
    check_all("slot", a.slots, a.rows, 0, a.slot_count);
    check_all("routed groups", a.groups, a.rows, -1, INT64_MAX);
    if (!model.shares)
        for (int t = 0; t < a.rows; t++)
            if (!a.groups[t]) refuse("row %d runs no expert, and the model has no shared ones", t);
    if (s.reads_hidden() && !a.hidden && !(a.fused && s.fuse.outputs)) refuse("the rows have no hidden states");
    check_starts(a);
    const auto keeps_state = [](const Layer& layer) { return layer.keeps_state(); };
    if (std::any_of(model.layers.begin(), model.layers.end(), keeps_state)) check_running(model, a);
    check_all("length of a context", a.context_lengths, a.requests, 0, INT32_MAX);
    for (int b = 0; b < a.requests; b++)
        check_all("slot of a context", a.contexts[b], a.context_lengths[b], 0, a.slot_count);
    if (a.windows) check_all("page of a window", a.windows, a.slot_count / LANES, 0, a.window_count);
    check_all("slot of a row's path", a.tails, a.tail_count, 0, a.slot_count);
    check_all("length of a row's path", a.tail_lengths, a.rows, 1, a.tail_count + 1);
    for (int t = 0; t < a.rows; t++)
        if (a.tail_starts[t] < 0 || a.tail_starts[t] > a.tail_count - a.tail_lengths[t])
            refuse("the path of row %d leaves the list of %lld slots", t, (long long)a.tail_count);
    check_all("row of an output", a.wanted, a.outputs, 0, a.rows);
    check_all("row to see", a.seen, a.seen_rows, 0, a.rows);
    check_all("feature layer", a.feature_layers, a.features, 0, s.layers);
}

}  // namespace fastslow
