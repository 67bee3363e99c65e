#include "moge.h"

#include <algorithm>
#include <cmath>

#include "simd.h"
#include "step.h"

namespace fastslow {

void Choice::reserve(int rows_count, const Shape& s) {
    const size_t entries = (size_t)rows_count * s.chosen;
    expert_.reserve(entries);
    weight_.reserve(entries);
    rows.reserve(entries);
    weights.reserve(entries);
    shared.reserve(rows_count);
    sizes_.reserve(s.experts + 1);
    for (auto* some : {&probs_, &ranked_, &group_, &sums_}) some->reserve(padded(s.router_outputs(), TILE));
    jobs.reserve(s.experts);
}

void Choice::choose(const float* logits, const Shape& s, const Layer& l, const std::vector<int64_t>& groups) {
    const int rows_count = (int)groups.size(), width = padded(s.router_outputs(), TILE);
    shared.resize(s.shared_gate ? rows_count : 0);
    for (size_t t = 0; t < shared.size(); t++) shared[t] = sigmoid(splat(logits[t * width + s.experts]))[0];
    expert_.assign((size_t)rows_count * s.chosen, -1);
    weight_.resize(expert_.size());
    probs_.resize(width);
    for (int t = 0; t < rows_count; t++) {
        if (!groups[t]) continue;
        const size_t at = (size_t)t * s.chosen;
        const int units = s.router_groups ? s.kept_groups : s.chosen;
        const int kept = groups[t] < 0 ? units : (int)std::min<int64_t>(groups[t], units);
        const int64_t running = ((int64_t)kept * s.chosen + units - 1) / units;
        const float* row = logits + (size_t)t * width;
        if (s.router == GROUPED)
            by_group(row, s, l.router_scale, running, &expert_[at], &weight_[at]);
        else
            best_of_all(row, s, l, kept, running, &expert_[at], &weight_[at]);
    }
    gather(rows_count, s.experts, s.chosen);
}

// Softmax over all experts, the likeliest of each group (the first on a tie), and of those the `running` of
// largest weight (the lower group on a tie). Nothing is renormalised.
void Choice::by_group(const float* logits, const Shape& s, const float* scale, int64_t running, int* chosen,
                      float* weight) {
    const int size = s.experts / s.chosen;
    const float total = exponentials(logits, s.experts, *std::max_element(logits, logits + s.experts));
    for (int g = 0; g < s.chosen; g++) {
        const float* first = &probs_[g * size];
        chosen[g] = (int)(std::max_element(first, first + size) - &probs_[0]);
        weight[g] = probs_[chosen[g]] / total * scale[chosen[g]];
    }
    if (running == s.chosen) return;
    for (int g = 0; g < s.chosen; g++) {
        int ahead = 0;  // groups that run before this one
        for (int o = 0; o < s.chosen; o++) ahead += weight[o] > weight[g] || (weight[o] == weight[g] && o < g);
        if (ahead >= running) chosen[g] = -1 - chosen[g];
    }
}

float Choice::exponentials(const float* logits, int experts, float most) {
    float total = 0.0f;
    for (size_t e = 0; e < probs_.size(); e += W) store(&probs_[e], exp(load<vf>(logits + e) - splat(most)));
    for (int e = 0; e < experts; e++) total += probs_[e];
    return total;
}

// A group counts as much as its `group_best` best ranks together; the lower group is kept on a tie.
void Choice::keep_groups(const Shape& s, int kept) {
    const int size = s.experts / s.router_groups, count = std::min(s.group_best, size);
    sums_.assign(s.router_groups, 0.0f);
    for (int g = 0; g < s.router_groups; g++) {
        group_.assign(&ranked_[g * size], &ranked_[g * size] + size);
        for (int i = 0; i < count; i++) {
            const auto best = std::max_element(group_.begin(), group_.end());
            sums_[g] += *best;
            *best = -INFINITY;
        }
    }
    for (int g = 0; g < s.router_groups; g++) {
        int ahead = 0;
        for (int o = 0; o < s.router_groups; o++) ahead += sums_[o] > sums_[g] || (sums_[o] == sums_[g] && o < g);
        if (ahead >= kept) std::fill_n(&ranked_[g * size], size, -INFINITY);
    }
}

// The `running` best of all, or of all in the best groups, the lower number on a tie: by the logits, or by their
// sigmoids or probabilities and the bias. Their weights are probabilities over all, over themselves, or the sigmoids.
void Choice::best_of_all(const float* logits, const Shape& s, const Layer& l, int kept, int64_t running,
                         int* chosen, float* weight) {
    const float *by = logits, *bias = l.choice_bias;
    if (s.router == SIGMOID) {
        for (size_t e = 0; e < probs_.size(); e += W)
            store(&probs_[e], splat(1.0f) / (exp(-load<vf>(logits + e)) + 1.0f));
        by = probs_.data();
    } else if (s.router == SOFTMAX && (bias || s.router_groups)) {  // else it keeps the order of the logits
        const float all = exponentials(logits, s.experts, *std::max_element(logits, logits + s.experts));
        for (float& prob : probs_) prob /= all;
        by = probs_.data();
    }
    ranked_.assign(by, by + s.experts);
    for (int e = 0; bias && e < s.experts; e++) ranked_[e] += bias[e];
    if (s.router_groups) keep_groups(s, kept);
    int count = 0;
    for (int e = 0; e < s.experts; e++) {
        const float score = ranked_[e];
        if (count == running && !(score > weight[count - 1])) continue;
        int at = count < running ? count++ : count - 1;
        for (; at > 0 && score > weight[at - 1]; at--) {
            chosen[at] = chosen[at - 1];
            weight[at] = weight[at - 1];
        }
        chosen[at] = e;
        weight[at] = score;
    }
    float total = 0.0f;
    if (s.router == SIGMOID) {
        for (int i = 0; i < count; i++) weight[i] = probs_[chosen[i]];
    } else {
        const bool whole = s.router == SOFTMAX && !s.router_normed;
        float most = logits[chosen[0]];  // of those that weights are divided among: a bias may leave out the largest
        for (int i = 1; i < count; i++) most = std::max(most, logits[chosen[i]]);
        if (whole) most = *std::max_element(logits, logits + s.experts);
        const float all = exponentials(logits, s.experts, most);
        if (whole) total = all;
        for (int i = 0; i < count; i++) weight[i] = probs_[chosen[i]];
    }
    if (s.router_normed || s.router == CHOSEN)
        for (int i = 0; i < count; i++) total += weight[i];
    for (int i = 0; i < count; i++)
        weight[i] = (total == 0.0f ? weight[i] : weight[i] / (total + s.router_eps)) * s.router_factor;
    for (int i = 0; i < count && l.router_scale; i++) weight[i] *= l.router_scale[chosen[i]];
}

void Choice::gather(int rows_count, int experts, int most) {
    sizes_.assign(experts + 1, 0);
    for (const int expert : expert_)
        if (expert >= 0) sizes_[expert + 1]++;
    for (int e = 0; e < experts; e++) sizes_[e + 1] += sizes_[e];
    jobs.clear();
    for (int e = 0; e < experts; e++)
        if (sizes_[e + 1] > sizes_[e]) jobs.push_back({e, sizes_[e], sizes_[e + 1] - sizes_[e]});
    rows.resize(sizes_[experts]);
    weights.resize(rows.size());
    for (int t = 0; t < rows_count; t++)
        for (int i = 0; i < most; i++) {
            const size_t at = (size_t)t * most + i;
            if (expert_[at] < 0) continue;
            const int entry = sizes_[expert_[at]]++;
            rows[entry] = t;
            weights[entry] = weight_[at];
        }
}

namespace {

// An expert's bias of a matrix; null where it has none.
const float* bias_of(const Matrix& m, const Layer& l, int expert) {
    return m.bias ? (const float*)((const uint8_t*)m.bias + expert * l.expert_bytes) : nullptr;
}

// Router logits, and gates and ups: of the shared experts, where there are any, and of those that the thread
// which ends the router then finds chosen.
void route(Step& step, int thread, int n, int& phase) {
    Model& model = step.model;
    const Layer& l = model.layers[n];
    const Shape& s = model.shape;
    Scratch& own = model.scratch[thread];
    Choice& choice = *step.choices[n];
    const int router_tiles = tiles_of(l.router), width = router_tiles * TILE;
    const int tiles = tiles_of(l.gate_up), batch = tiles_per_chunk(tiles, step.threads);
    const int chunks = router_tiles + (tiles + batch - 1) / batch;
    // what each of them reads: x normed by weights of its own, or by the layer's
    auto norm = [&](const float* weight) {
        return [&step, thread, from = weight ? weight : l.mlp_norm](int i) { return step.normed(thread, i, from); };
    };
    const int rows_count = step.args.rows;
    const bool few = step.narrow();
    const uint8_t* exact = step.ready(thread, phase, chunks, rows_count, few, format_of(F32), s.hidden,
                                      model.ready_router_bytes, model.space.ready_router,
                                      own.ready_router, norm(l.router_norm));
    auto ready_rows = [&](int readers, const Matrix& m, const float* weight) {
        return step.ready(thread, phase, readers, rows_count, few, format_of(m.format), s.hidden,
                          model.ready_bytes, model.space.ready, own.ready, norm(weight));
    };
    const bool sharing = tiles > 0;
    const bool alike = !sharing || (same_rows(l.gate_up, l.expert_gate_up) && !l.expert_norm);
    const uint8_t* rows = sharing ? ready_rows(chunks, l.gate_up, nullptr)
                                  : ready_rows(chunks, l.expert_gate_up, l.expert_norm);
    const size_t router_bytes = tile_bytes(l.router), bytes = sharing ? tile_bytes(l.gate_up) : 0;
    step.phases.run(phase++, thread, chunks, [&](int c) {
        if (c < router_tiles) {
            multiply(l.router, l.router.tiles + c * router_bytes, exact, model.ready_router_bytes,
                     rows_count, [&](int first, int got, float* out) {
                         add_bias(l.router.bias, c, got, out);
                         for (int i = 0; i < got; i++)
                             std::copy(out + i * TILE, out + (i + 1) * TILE,
                                       model.space.router_logits + (size_t)(first + i) * width + c * TILE);
                     });
            if (choice.tiles_done.fetch_add(1, std::memory_order_acq_rel) + 1 == router_tiles)
                choice.choose(model.space.router_logits, s, l, step.groups);
            return;
        }
        c -= router_tiles;
        for (int tile = c * batch; tile < tiles && tile < (c + 1) * batch; tile++)
            multiply(l.gate_up, l.gate_up.tiles + tile * bytes, rows, model.ready_bytes, rows_count,
                     [&](int first, int got, float* out) {
                         float* h = model.space.h + (size_t)first * model.neurons_pad + tile * (TILE / 2);
                         activate(s, out, got, h, model.neurons_pad);
                     });
    });
    const int expert_tiles = tiles_of(l.expert_gate_up);
    const int per_job = (expert_tiles + TILES_AT_ONCE - 1) / TILES_AT_ONCE;
    const int count = (int)choice.jobs.size() * per_job;
    const size_t expert_bytes = tile_bytes(l.expert_gate_up);
    auto start = [&](int c) {
        return l.expert_gate_up.tiles + choice.jobs[c / per_job].expert * l.expert_bytes +
               c % per_job * TILES_AT_ONCE * expert_bytes;
    };
    step.mark(thread, GATE_UP);
    // the experts mostly read the same rows; a thread that came too late for the shared ones lacks them
    if (!rows || !alike) rows = ready_rows(count, l.expert_gate_up, l.expert_norm);
    step.phases.run(phase++, thread, count, [&](int c) {
        if (c + 1 < count) fetch(start(c + 1), AHEAD);
        const Job& job = choice.jobs[c / per_job];
        const int first_tile = c % per_job * TILES_AT_ONCE;
        const int last_tile = std::min(first_tile + TILES_AT_ONCE, expert_tiles);
        const Run run{start(c), last_tile - first_tile, expert_bytes, start(c) + AHEAD};
        multiply_run(l.expert_gate_up, run, rows, model.ready_bytes, &choice.rows[job.start], own.gathered, job.count,
                     [&](int t, int first, int got, float* out) {
                         const int tile = first_tile + t;
                         add_bias(bias_of(l.expert_gate_up, l, job.expert), tile, got, out);
                         const size_t place = (size_t)(job.start + first) * model.expert_pad + tile * (TILE / 2);
                         activate(s, out, got, model.space.expert_h + place, model.expert_pad);
                     });
    }, stream_of(l.down).slice(thread, step.threads));
}

// x += shared, if there is any, + the sum over experts of weight * expert, experts in order: groups are too.
void combine(Step& step, int thread, int n, int& phase) {
    Model& model = step.model;
    const Layer& l = model.layers[n];
    Scratch& own = model.scratch[thread];
    const Choice& choice = *step.choices[n];
    const int rows_count = step.args.rows, tiles = tiles_of(l.expert_down);
    const int entries = (int)choice.rows.size(), jobs = (int)choice.jobs.size();
    const bool few = step.narrow();
    // tiles of an expert lie in a row, so that few rows read longer runs
    const int tiles_at_once = few ? std::clamp(tiles / (step.threads * 3), 1, TILES_AT_ONCE) : 1;
    const int chunks = (tiles + tiles_at_once - 1) / tiles_at_once;
    const bool sharing = l.down.outputs > 0;
    const uint8_t* shared = !sharing ? nullptr :
        step.ready(thread, phase, chunks, rows_count, few, format_of(l.down.format), l.down.inputs,
                   model.ready_bytes, model.space.ready, own.ready,
                   [&](int i) { return model.space.h + (size_t)i * model.neurons_pad; });
    const uint8_t* routed = step.ready(
        thread, phase, chunks, entries, few, format_of(l.expert_down.format), l.expert_down.inputs,
        model.ready_expert_bytes, model.space.ready_expert, own.ready_expert,
        [&](int i) { return model.space.expert_h + (size_t)i * model.expert_pad; });
    const size_t bytes = sharing ? tile_bytes(l.down) : 0, expert_bytes = tile_bytes(l.expert_down);
    const bool apart = l.expert_post_norm;  // the MLP's sums, which go to the layer's own
    float *whole = step.sums(l.mlp_post_norm), *into = apart ? model.space.beside : whole;
    const vf scale = l.mlp_post_norm ? splat(1.0f) : step.added_scale(n);
    const bool ends = !l.token_up.outputs;
    const Stream next = ends ? step.next_stream(n) : stream_of(l.token_gate);
    // an expert's run is short: what is asked for meanwhile is that of an expert some jobs later, and in
    // the end of the first ones in the next chunk
    const int later = (int)(AHEAD / (tiles_at_once * expert_bytes)) + 1;
    auto start = [&](int j, int tile) {
        return l.expert_down.tiles + choice.jobs[j].expert * l.expert_bytes + tile * expert_bytes;
    };
    step.phases.run(phase++, thread, chunks, [&](int c) {
        const int first_tile = c * tiles_at_once, last_tile = std::min(first_tile + tiles_at_once, tiles);
        for (int j = 0; j < std::min(later, jobs); j++)
            fetch(start(j, first_tile), (last_tile - first_tile) * expert_bytes);
        auto sums = [&](int tile, int row) {
            return own.acc + ((size_t)(tile - first_tile) * rows_count + row) * TILE;
        };
        for (int tile = first_tile; tile < last_tile && few; tile++)
            for (int i = 0; i < rows_count; i++) step.ask_columns(into, i, tile);
        for (int tile = first_tile; tile < last_tile; tile++)
            if (sharing)
                multiply(l.down, l.down.tiles + tile * bytes, shared, model.ready_bytes, rows_count,
                         [&](int first, int got, float* out) {
                             float* to = sums(tile, first);
                             std::copy(out, out + got * TILE, to);
                             for (int i = 0; i < got * TILE && !choice.shared.empty(); i++)
                                 to[i] *= choice.shared[first + i / TILE];
                         });
            else
                std::fill_n(sums(tile, 0), (size_t)rows_count * TILE, 0.0f);
        for (int tile = first_tile; tile < last_tile && apart; tile++) {
            for (int i = 0; i < rows_count; i++) std::copy_n(sums(tile, i), TILE, step.columns(whole, i, tile));
            std::fill_n(sums(tile, 0), (size_t)rows_count * TILE, 0.0f);
        }
        for (int j = 0; j < jobs; j++) {
            const Job& job = choice.jobs[j];
            const int* row = &choice.rows[job.start];
            const float* weights = &choice.weights[job.start];
            const uint8_t* soon = j + later < jobs ? start(j + later, first_tile)
                                                   : start((j + later) % jobs, last_tile);
            const Run run{start(j, first_tile), last_tile - first_tile, expert_bytes, soon};
            multiply_run(l.expert_down, run, routed + job.start * model.ready_expert_bytes,
                         model.ready_expert_bytes, nullptr, nullptr, job.count,
                         [&](int t, int first, int got, float* out) {
                             add_bias(bias_of(l.expert_down, l, job.expert), first_tile + t, got, out);
                             for (int i = 0; i < got; i++) {
                                 float* acc = sums(first_tile + t, row[first + i]);
                                 const vf weight = splat(weights[first + i]);
                                 for (int k = 0; k < TILE; k += W)
                                     store(acc + k, fma(load<vf>(out + i * TILE + k), weight,
                                                        load<vf>(acc + k)));
                             }
                         });
        }
        for (int tile = first_tile; tile < last_tile; tile++) {
            for (int i = 0; i < rows_count; i++) {
                float* x = step.columns(into, i, tile);
                for (int k = 0; k < TILE; k += W)
                    store(x + k, fma(load<vf>(sums(tile, i) + k), scale, load<vf>(x + k)));
            }
            if (ends && !l.mlp_post_norm) step.note_features(n, tile);
        }
    }, next.slice(thread, step.threads));
    step.add_normed(thread, phase, n, ends, l.mlp_post_norm, next.slice(thread, step.threads));
}

}  // namespace

void run_moge(Step& step, int thread, int layer, int& phase) {
    route(step, thread, layer, phase);
    step.mark(thread, EXPERTS);
    combine(step, thread, layer, phase);
}

}  // namespace fastslow
