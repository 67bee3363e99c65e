// Attention over keys and values of one kind, each an instance of its own, and what joins the parts of a softmax.
#pragma once

#include <algorithm>
#include <cmath>

#include "attention.h"
#include "key_block.h"
#include "simd.h"
#include "sinks.h"
#include "step.h"

namespace fastslow {

// Takes the next block's part into a row's softmax so far. Milakov and Gimelshein, arXiv 1805.02867.
inline void join(float& most, float& total, float* out, float next_most, float next_total, const float* next,
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
inline float* partial_of(const Step& step, const AttentionPlan& plan, const Layer& l, int row, int part,
                         int head) {
    const size_t size = padded(l.head_dim, LANES) + LANES;
    return step.model.space.partial +
           (((size_t)row * plan.most_parts + part) * l.heads + head) * size;
}

inline void finish(const Step& step, int layer, int row, int head, float most, float total, const float* out) {
    const Layer& l = step.model.layers[layer];
    const int dim = l.value_dim;
    const float* logits = l.sink_logits;
    if (logits) total += std::exp(logits[head] - most);
    float* seen = step.model.space.seen + (size_t)row * step.model.attention_width + (size_t)head * dim;
    for (int d = 0; d < dim; d++) seen[d] = out[d] / total;
    if (!l.qkv[3].outputs) return;
    const float* gates = step.model.space.gates + ((size_t)row * l.heads + head) * dim;
    for (int d = 0; d < dim; d += W) {
        const int some = dim - d;
        store_some(seen + d, load_some(seen + d, some) * sigmoid(load_some(gates + d, some)), some);
    }
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
    const int parts = step.model.layers[layer].kv_heads / plan.heads_at_once, work = chunk / parts;
    const int number = plan.split ? plan.items[work].group : work;
    const int kv_head = chunk % parts * plan.heads_at_once;
    Scratch& own = step.model.scratch[thread];
    Chunk<T> c{step, plan, plan.groups[number], layer, kv_head, plan.heads_at_once};
    if (c.sees(c.group.first) < c.length(c.group.first)) c.copies = (T*)own.copies;
    const int width = padded(c.kind().head_dim, LANES), count = c.queries();
    float most[MOST_QUERIES], total[MOST_QUERIES];
    if (plan.split) {
        run_part(c, plan.items[work].part, own, most, total);
        for (int i = 0; i < count; i++) {
            float* part = partial_of(step, plan, c.kind(), c.row(i), plan.items[work].part, c.head(i));
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

}  // namespace fastslow
