// An indexer's scores over index keys of one kind, each an instance of its own.
#pragma once

#include "chunk.h"
#include "indexer.h"
#include "running.h"
#include "score.h"
#include "score_int8.h"

namespace fastslow {

// A tile of index keys, which lie beside latent keys, and the scales of bytes where those of values would be.
template <class T> const T* index_keys_at(const Chunk<T>& c, const Places& places, T* to) {
    const int dim = c.kind().index_dim;
    auto tile = [&](int64_t slot) { return c.values() + Tile<T>::value_start(slot, 0, 1, dim); };
    if (places.one_tile && !Tile<T>::SCALED) return tile(places.slots[0]);
    for (int j = 0; j < LANES; j++) {
        const int64_t slot = places.slots[j < places.count ? j : 0];
        for (int d = 0; d < dim; d += Tile<T>::PACK)
            std::memcpy(to + Tile<T>::key(j, d), tile(slot) + Tile<T>::key(slot % LANES, d), 4);
        if constexpr (Tile<T>::SCALED)
            std::memcpy(to + Tile<T>::scale(j, dim, false),
                        c.key_tile(slot, 0) + Tile<T>::scale(slot % LANES, c.kind().head_dim, true), sizeof(float));
    }
    return to;
}

// Whole numbers in the order of floats; no number is above all, and both zeros are one.
inline vu ordered(vf x) {
    const vu bits = x == x ? (vu)(x + 0.0f) : splat(0x7fffffffu);
    return (vi)bits < 0 ? ~bits : bits | splat(0x80000000u);
}

// Of some keys of a row.
template <class T> void score_index_as(Step& step, int thread, int layer, int chunk) {
    const AttentionPlan whole;  // of which rows see all
    const Model& model = step.model;
    const int blocks = index_blocks(step), row = chunk / blocks;
    const RowGroup group{request_of(step.args, row), row, 1, 0, 0};
    const Chunk<T> c{step, whole, group, layer, 0, 1};
    const Layer& l = c.kind();
    const int64_t length = c.length(row), first = (int64_t)(chunk % blocks) * INDEX_BLOCK;
    const int64_t end = blocks > 1 ? std::min(length, first + INDEX_BLOCK) : length;
    if (length <= l.index_most || first >= end) return;
    Scratch& own = step.model.scratch[thread];
    const float* weights = model.space.mixed + (size_t)row * model.mixed_width + Columns(l, model.shape.recurrence).rates;
    const typename Inner<T>::Query* queries[limits::INDEX_HEADS.most];
    float* out[limits::INDEX_HEADS.most];
    for (int h = 0; h < l.index_heads; h++) {
        auto* to = (typename Inner<T>::Query*)((char*)own.queries + h * Inner<T>::query_bytes(l.index_dim));
        const float* query = model.space.index_queries + (size_t)row * model.index_width + h * padded(l.index_dim, TILE);
        Inner<T>::turn(query, l.index_dim, to, own.outs);
        queries[h] = to;
        out[h] = own.scores + (size_t)h * LANES;
    }
    uint32_t* scores = index_scores(step, row, thread);
    for (int64_t k = first; k < end; k += LANES) {
        Places places;
        c.find(row, k, places);
        const T* keys = index_keys_at(c, places, (T*)own.keys);
        score_some<T>(keys, l.index_dim, l.index_heads, queries, out, (const char*)(keys + Tile<T>::value_size(l.index_dim)));
        for (int v = 0; v < LANES; v += W) {
            vf sum{};
            for (int h = 0; h < l.index_heads; h++)
                sum = fma(max(vf{}, load<vf>(out[h] + v)), splat(weights[h]), sum);
            store(scores + k + v, ordered(sum));
        }
    }
}

}  // namespace fastslow
