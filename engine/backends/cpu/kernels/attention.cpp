#include "attention.h"

#include <algorithm>
#include <cmath>

#include "key_block.h"
#include "simd.h"
#include "sinks.h"
#include "step.h"

namespace fastslow {

namespace {

// Takes the next block's part into a row's softmax so far. Milakov and Gimelshein, arXiv 1805.02867.
void join(float& most, float& total, float* out, float next_most, float next_total, const float* next,
          int width) {
    if (next_total == 0.0f) return;
    if (total == 0.0f) {
        most = next_most;
        total = next_total;
        std::copy(next, next + width, out);
        return;
    }
    const float top = std::max(most, next_most);
    const float old = std::exp(most - top), fresh = std::exp(next_most - top);
    for (int d = 0; d < width; d += W)
        store(out + d, fma(load<vf>(next + d), splat(fresh), load<vf>(out + d) * splat(old)));
    total = total * old + next_total * fresh;
    most = top;
}

// A part of a row's softmax.
float* partial_of(const Step& step, const AttentionPlan& plan, int row, int part, int head) {
    const Shape& s = step.model.shape;
    const size_t size = padded(s.head_dim, LANES) + LANES;
    return step.model.space.partial +
           (((size_t)row * plan.most_parts + part) * s.heads + head) * size;
}

void finish(const Step& step, int layer, int row, int head, float most, float total, const float* out) {
    const int dim = step.model.shape.value_dim;
    const float* logits = step.model.layers[layer].sink_logits;
    if (logits) total += std::exp(logits[head] - most);
    float* seen = step.model.space.seen + (size_t)row * step.model.attention_width + (size_t)head * dim;
    for (int d = 0; d < dim; d++) seen[d] = out[d] / total;
}

template <class T>
void run_part(const Chunk<T>& c, int part, Scratch& own, float* most, float* total) {
    const int sinks = c.plan.sink_blocks, first = part * KEY_BLOCK;
    if (part < sinks)
        return run_sink_block(c, first, std::min(KEY_BLOCK, c.shape().sinks - first), own, most, total, own.outs);
    const int64_t from = (int64_t)(c.group.first_block() + part - sinks) * KEY_BLOCK;
    run_block(c, from, std::min(from + KEY_BLOCK, c.group.longest), own, most, total, own.outs);
}

template <class T> void attend_as(Step& step, int thread, int layer, int chunk) {
    const AttentionPlan& plan = step.plan(layer);
    const int parts = step.model.shape.kv_heads / plan.heads_at_once, work = chunk / parts;
    const int number = plan.split ? plan.items[work].group : work;
    const int kv_head = chunk % parts * plan.heads_at_once;
    const Chunk<T> c{step, plan, plan.groups[number], layer, kv_head, plan.heads_at_once};
    const int width = padded(c.shape().head_dim, LANES), count = c.queries();
    Scratch& own = step.model.scratch[thread];
    float most[MOST_QUERIES], total[MOST_QUERIES];
    if (plan.split) {
        run_part(c, plan.items[work].part, own, most, total);
        for (int i = 0; i < count; i++) {
            float* part = partial_of(step, plan, c.row(i), plan.items[work].part, c.head(i));
            part[0] = most[i];
            part[1] = total[i];
            std::copy(own.outs + (size_t)i * width, own.outs + (size_t)(i + 1) * width, part + LANES);
        }
        return;
    }
    if (plan.parts(c.group) == 1) {  // nothing is joined, as in short texts
        run_part(c, 0, own, most, total);
        for (int i = 0; i < count; i++)
            finish(step, layer, c.row(i), c.head(i), most[i], total[i], own.outs + (size_t)i * width);
        return;
    }
    float all_most[MOST_QUERIES], all_total[MOST_QUERIES] = {};
    float* sums = own.outs + (size_t)QUERY_ROOM * width;
    for (int part = 0; part < plan.parts(c.group); part++) {
        run_part(c, part, own, most, total);
        for (int i = 0; i < count; i++)
            join(all_most[i], all_total[i], sums + (size_t)i * width, most[i], total[i],
                 own.outs + (size_t)i * width, width);
    }
    for (int i = 0; i < count; i++)
        finish(step, layer, c.row(i), c.head(i), all_most[i], all_total[i], sums + (size_t)i * width);
}

}  // namespace

void AttentionPlan::plan(const StepArgs& a, const Shape& shape, int keys) {
    window = keys;
    groups.clear();
    items.clear();
    const int most_rows = std::max(1, MOST_QUERIES / (shape.heads / shape.kv_heads));
    sink_blocks = (shape.sinks + KEY_BLOCK - 1) / KEY_BLOCK;
    most_parts = 1;
    for (int b = 0; b < a.requests; b++) {
        const int stop = (int)a.starts[b + 1];
        for (int first = (int)a.starts[b]; first < stop; first += most_rows) {
            RowGroup group{b, first, std::min(most_rows, stop - first), 0, INT64_MAX};
            for (int i = first; i < first + group.count; i++) {
                const int64_t sees = a.context_lengths[b] + a.tail_lengths[i];
                group.longest = std::max(group.longest, sees);
                group.least = std::min(group.least, this->first(sees));
            }
            most_parts = std::max(most_parts, parts(group));
            for (int part = 0; part < parts(group); part++) items.push_back({(int)groups.size(), part});
            groups.push_back(group);
        }
    }
    const bool few = (int)groups.size() * shape.kv_heads < 4 * a.threads;
    const size_t size = padded(shape.head_dim, LANES) + LANES;
    partial_floats = (size_t)a.rows * most_parts * shape.heads * size;
    split = few && a.threads > 1 && items.size() > groups.size() && partial_floats <= MOST_PARTIALS;
    if (!split) partial_floats = 0;
    int most_count = 1;
    for (const RowGroup& group : groups) most_count = std::max(most_count, group.count);
    const bool enough = (int)(split ? items.size() : groups.size()) >= 4 * a.threads || a.threads == 1;
    const bool fits = most_count * shape.heads <= MOST_QUERIES;
    heads_at_once = enough && fits ? shape.kv_heads : 1;
}

void attend(Step& step, int thread, int layer, int chunk) {
    switch (step.args.kv_format) {
        case F32: return attend_as<float>(step, thread, layer, chunk);
        case INT8: return attend_as<uint8_t>(step, thread, layer, chunk);
        default: {
            const UseHalfTiles use;
            attend_as<uint16_t>(step, thread, layer, chunk);
        }
    }
}

void merge(Step& step, int thread, int layer, int chunk) {
    const Shape& s = step.model.shape;
    const AttentionPlan& plan = step.plan(layer);
    const int kv_head = chunk % s.kv_heads, ratio = s.heads / s.kv_heads;
    const RowGroup& group = plan.groups[chunk / s.kv_heads];
    const int width = padded(s.head_dim, LANES);
    const int parts = plan.parts(group);
    float* sums = step.model.scratch[thread].outs;
    for (int row = group.first; row < group.first + group.count; row++)
        for (int head = kv_head * ratio; head < (kv_head + 1) * ratio; head++) {
            float most = 0.0f, total = 0.0f;
            for (int p = 0; p < parts; p++) {
                const float* part = partial_of(step, plan, row, p, head);
                join(most, total, sums, part[0], part[1], part + LANES, width);
            }
            finish(step, layer, row, head, most, total, sums);
        }
}

}  // namespace fastslow
