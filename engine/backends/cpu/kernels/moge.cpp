#include "moge.h"

#include <algorithm>
#include <cmath>

#include "simd.h"
#include "step.h"

namespace fastslow {

void Choice::reserve(int rows_count, int experts, int group_count, int width) {
    const size_t entries = (size_t)rows_count * group_count;
    expert_.reserve(entries);
    weight_.reserve(entries);
    rows.reserve(entries);
    weights.reserve(entries);
    sizes_.reserve(experts + 1);
    probs_.reserve(width);
    jobs.reserve(experts);
}

void Choice::choose(const float* logits, int width, int experts, int group_count, const float* scale,
                    const std::vector<int64_t>& groups) {
    const int rows_count = (int)groups.size(), size = experts / group_count;
    expert_.assign((size_t)rows_count * group_count, -1);
    weight_.resize(expert_.size());
    sizes_.assign(experts + 1, 0);
    probs_.resize(width);
    for (int t = 0; t < rows_count; t++) {
        if (!groups[t]) continue;
        const float* row = logits + (size_t)t * width;
        float most = *std::max_element(row, row + experts), total = 0.0f;
        for (int e = 0; e < width; e += W) store(&probs_[e], exp(load<vf>(row + e) - splat(most)));
        for (int e = 0; e < experts; e++) total += probs_[e];
        int* chosen = &expert_[(size_t)t * group_count];
        float* weight = &weight_[(size_t)t * group_count];
        for (int g = 0; g < group_count; g++) {
            const float* first = &probs_[g * size];
            chosen[g] = (int)(std::max_element(first, first + size) - &probs_[0]);
            weight[g] = probs_[chosen[g]] / total * scale[chosen[g]];
        }
        if (groups[t] > 0 && groups[t] < group_count) {
            for (int g = 0; g < group_count; g++) {
                int ahead = 0;  // groups that run before this one
                for (int o = 0; o < group_count; o++)
                    ahead += weight[o] > weight[g] || (weight[o] == weight[g] && o < g);
                if (ahead >= groups[t]) chosen[g] = -1 - chosen[g];
            }
        }
        for (int g = 0; g < group_count; g++)
            if (chosen[g] >= 0) sizes_[chosen[g] + 1]++;
    }
    for (int e = 0; e < experts; e++) sizes_[e + 1] += sizes_[e];
    jobs.clear();
    for (int e = 0; e < experts; e++)
        if (sizes_[e + 1] > sizes_[e]) jobs.push_back({e, sizes_[e], sizes_[e + 1] - sizes_[e]});
    rows.resize(sizes_[experts]);
    weights.resize(rows.size());
    for (int t = 0; t < rows_count; t++)
        for (int g = 0; g < group_count; g++) {
            const size_t at = (size_t)t * group_count + g;
            if (expert_[at] < 0) continue;
            const int entry = sizes_[expert_[at]]++;
            rows[entry] = t;
            weights[entry] = weight_[at];
        }
}

namespace {

// Router logits, and the shared experts' gates and ups; the thread that ends the router makes the choice.
void route(Step& step, int thread, int n, int& phase) {
    Model& model = step.model;
    const Layer& l = model.layers[n];
    const Shape& s = model.shape;
    Scratch& own = model.scratch[thread];
    Choice& choice = *step.choices[n];
    const int router_tiles = tiles_of(l.router), width = router_tiles * TILE;
    const int tiles = tiles_of(l.gate_up), batch = tiles_per_chunk(tiles, step.threads);
    const int chunks = router_tiles + (tiles + batch - 1) / batch;
    auto norm = [&](int i) { return step.normed(thread, i, l.mlp_norm); };
    const int rows_count = step.args.rows;
    const bool few = step.narrow();
    const uint8_t* exact = step.ready(thread, phase, chunks, rows_count, few, format_of(F32), s.hidden,
                                      model.ready_router_bytes, model.space.ready_router,
                                      own.ready_router, norm);
    auto ready_rows = [&](int readers) {
        return step.ready(thread, phase, readers, rows_count, few, format_of(l.gate_up.format), s.hidden,
                          model.ready_bytes, model.space.ready, own.ready, norm);
    };
    const uint8_t* rows = ready_rows(chunks);
    const size_t router_bytes = tile_bytes(l.router), bytes = tile_bytes(l.gate_up);
    step.phases.run(phase++, thread, chunks, [&](int c) {
        if (c < router_tiles) {
            multiply(l.router, l.router.tiles + c * router_bytes, exact, model.ready_router_bytes,
                     nullptr, rows_count, [&](int first, int got, float* out) {
                         for (int i = 0; i < got; i++)
                             std::copy(out + i * TILE, out + (i + 1) * TILE,
                                       model.space.router_logits + (size_t)(first + i) * width + c * TILE);
                     });
            if (choice.tiles_done.fetch_add(1, std::memory_order_acq_rel) + 1 == router_tiles)
                choice.choose(model.space.router_logits, width, s.experts, s.groups, l.router_scale,
                              step.groups);
            return;
        }
        c -= router_tiles;
        for (int tile = c * batch; tile < tiles && tile < (c + 1) * batch; tile++)
            multiply(l.gate_up, l.gate_up.tiles + tile * bytes, rows, model.ready_bytes, nullptr,
                     rows_count, [&](int first, int got, float* out) {
                         for (int i = 0; i < got; i++)
                             gate(out + i * TILE, model.space.h +
                                                      (size_t)(first + i) * model.neurons_pad +
                                                      tile * (TILE / 2));
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
    // the experts read the same rows; a thread that came too late for the shared ones lacks them
    if (!rows) rows = ready_rows(count);
    step.phases.run(phase++, thread, count, [&](int c) {
        if (c + 1 < count) fetch(start(c + 1), AHEAD);
        const Job& job = choice.jobs[c / per_job];
        const int first_tile = c % per_job * TILES_AT_ONCE;
        const int last_tile = std::min(first_tile + TILES_AT_ONCE, expert_tiles);
        for (int tile = first_tile; tile < last_tile; tile++)
            multiply(l.expert_gate_up, start(c) + (tile - first_tile) * expert_bytes, rows,
                     model.ready_bytes, &choice.rows[job.start], job.count,
                     [&](int first, int got, float* out) {
                         for (int i = 0; i < got; i++)
                             gate(out + i * TILE,
                                  model.space.expert_h +
                                      (size_t)(job.start + first + i) * model.expert_pad +
                                      tile * (TILE / 2));
                     });
    }, stream_of(l.down).slice(thread, step.threads));
}

// x += shared + the sum over experts of weight * expert, experts in order: groups are too.
void combine(Step& step, int thread, int n, int& phase) {
    Model& model = step.model;
    const Layer& l = model.layers[n];
    Scratch& own = model.scratch[thread];
    const Choice& choice = *step.choices[n];
    const int rows_count = step.args.rows, tiles = tiles_of(l.down);
    const int entries = (int)choice.rows.size(), jobs = (int)choice.jobs.size();
    const bool few = step.narrow();
    // tiles of an expert lie in a row, so that few rows read longer runs
    const int tiles_at_once = few ? std::clamp(tiles / (step.threads * 3), 1, TILES_AT_ONCE) : 1;
    const int chunks = (tiles + tiles_at_once - 1) / tiles_at_once;
    const uint8_t* shared =
        step.ready(thread, phase, chunks, rows_count, few, format_of(l.down.format), l.down.inputs,
                   model.ready_bytes, model.space.ready, own.ready,
                   [&](int i) { return model.space.h + (size_t)i * model.neurons_pad; });
    const uint8_t* routed = step.ready(
        thread, phase, chunks, entries, few, format_of(l.expert_down.format), l.expert_down.inputs,
        model.ready_expert_bytes, model.space.ready_expert, own.ready_expert,
        [&](int i) { return model.space.expert_h + (size_t)i * model.expert_pad; });
    const size_t bytes = tile_bytes(l.down), expert_bytes = tile_bytes(l.expert_down);
    const bool last_layer = n + 1 == model.shape.layers;
    Stream next = last_layer ? step.head_stream() : stream_of(model.layers[n + 1].qkv);
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
            for (int i = 0; i < rows_count; i++) step.ask_columns(i, tile);
        for (int tile = first_tile; tile < last_tile; tile++)
            multiply(l.down, l.down.tiles + tile * bytes, shared, model.ready_bytes, nullptr, rows_count,
                     [&](int first, int got, float* out) {
                         std::copy(out, out + got * TILE, sums(tile, first));
                     });
        for (int j = 0; j < jobs; j++) {
            const Job& job = choice.jobs[j];
            const int* row = &choice.rows[job.start];
            const float* weights = &choice.weights[job.start];
            const uint8_t* soon = j + later < jobs ? start(j + later, first_tile)
                                                   : start((j + later) % jobs, last_tile);
            const Run run{start(j, first_tile), last_tile - first_tile, expert_bytes, soon};
            multiply_run(l.expert_down, run, routed + job.start * model.ready_expert_bytes,
                         model.ready_expert_bytes, nullptr, job.count,
                         [&](int t, int first, int got, float* out) {
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
                float* x = step.columns(i, tile);
                for (int k = 0; k < TILE; k += W)
                    store(x + k, load<vf>(x + k) + load<vf>(sums(tile, i) + k));
            }
            step.note_features(n, tile);
        }
    }, next.slice(thread, step.threads));
}

}  // namespace

void run_moge(Step& step, int thread, int layer, int& phase) {
    route(step, thread, layer, phase);
    step.mark(thread, EXPERTS);
    combine(step, thread, layer, phase);
}

}  // namespace fastslow
