#include "head_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "blocks.h"
#include "simd.h"
#include "step.h"
#include "tile.h"

namespace fastslow {

namespace {

vf as_kept(vf x, float) { return x; }
vh as_kept(vf x, uint16_t) { return narrow(x); }
float as_kept(float x, float) { return x; }
uint16_t as_kept(float x, uint16_t) { return narrow(x); }

// One half of each of a vector of words; the other is a neighbour's, and of this thread's rows.
void put_halves(uint32_t* words, const uint16_t* some, bool upper) {
    const vu old = load<vu>(words), fresh = __builtin_convertvector(load<vh>(some), vu);
    store(words, upper ? (old & 0xffffu) | fresh << 16 : (old & 0xffff0000u) | fresh);
}

// Write one head of a key or value to its lane of a tile.
template <class T>
void keep(const float* v, T* layer, bool value, int64_t slot, int kv_head, int heads, int dim) {
    const int lane = slot % LANES;
    T* tile = layer + Tile<T>::value_start(slot, kv_head, heads, dim);  // keys start there, too
    for (int d = 0; d < dim; d += W) {
        T some[W];
        const int count = std::min(W, dim - d);
        if (count == W) store(some, as_kept(load<vf>(v + d), T()));
        else
            for (int i = 0; i < count; i++) some[i] = as_kept(v[d + i], T());
        if (sizeof(T) == 2 && count == W) {
            if (value) put_halves((uint32_t*)tile + lane / 2 * dim + d, (const uint16_t*)some, lane % 2);
            else
                for (int i = 0; i < W; i += 2) std::memcpy(tile + Tile<T>::key(lane, d + i), some + i, 4);
            continue;
        }
        for (int i = 0; i < count; i++)
            tile[value ? Tile<T>::value(lane, d + i, dim) : Tile<T>::key(lane, d + i)] = some[i];
    }
}

// Ask for the lines that a head of a key or value is written to: a key's words lie a line apart.
template <class T>
void ask(const void* layer, bool value, int64_t slot, int kv_head, const Layer& l) {
    const int dim = l.head_dim, lane = slot % LANES;
    const T* tile = (const T*)layer + (value ? Tile<T>::value_start(slot, kv_head, l.kept_heads(), dim)
                                             : Tile<T>::key_start(slot, kv_head, l.kept_heads(), dim));
    const char* from = (const char*)(tile + (value ? Tile<T>::value(lane, 0, dim) : 0));
    const size_t bytes = value ? 4 * (size_t)dim : sizeof(T) * Tile<T>::key_size(dim);
    for (size_t at = 0; at < bytes; at += 64) prefetch_to_write(from + at);
}

using ByteTile = Tile<uint8_t>;

// The same in int8: the lane's bytes, and its scale.
void keep_int8(const float* v, uint8_t* tile, uint8_t* scale, bool value, int lane, int dim) {
    float most = 0.0f;
    for (int d = 0; d < dim; d++) {
        const float magnitude = std::fabs(v[d]);
        if (!(magnitude <= most)) most = magnitude;  // a NaN stays
        if (most != most) break;
    }
    const float inverse = steps(most);
    store(scale, step_of(most));
    for (int d = 0; d < dim; d++) {
        const int number = inverse == 0.0f ? 0 : (int)std::lrintf(v[d] * inverse);
        tile[value ? ByteTile::value(lane, d, dim) : ByteTile::key(lane, d)] = (uint8_t)(number + 128);
    }
}

}  // namespace

void turn(const Step& step, int layer, int row, int dims, float* v) {
    const Layer& l = step.model.layers[layer];
    if (l.rope_at < 0) return;
    const int half = dims / 2;
    const size_t at = (size_t)row * step.model.shape.angles + l.rope_at;
    const float *cos = step.args.cos + at, *sin = step.args.sin + at;
    for (int d = 0; d < half; d++) {
        float x = v[d], y = v[d + half];
        v[d] = x * cos[d] - y * sin[d];
        v[d + half] = y * cos[d] + x * sin[d];
    }
}

void put_head(const Step& step, int layer, int head, int row, const float* v) {
    const Layer& l = step.model.layers[layer];
    const StepArgs& a = step.args;
    const int dim = l.head_dim;
    if (head < l.heads) {
        float* q = step.model.space.q + ((size_t)row * l.heads + head) * dim;
        float scale = l.score_scale == 0.0f ? 1.0f / std::sqrt((float)dim) : l.score_scale;
        if (a.query_scale) scale *= a.query_scale[row];
        for (int d = 0; d < dim; d++) q[d] = v[d] * scale;
        return;
    }
    const bool value = head >= l.heads + l.kv_heads;
    const int kv_head = head - l.heads - (value ? l.kv_heads : 0);
    void* cache = (value ? a.values : a.keys)[layer];
    const int64_t slot = step.slot(layer, a.slots[row]);
    const int heads = l.kept_heads(), lane = slot % LANES;
    if (a.kv_format == INT8) {
        uint8_t* keys = (uint8_t*)a.keys[layer] + ByteTile::key_start(slot, kv_head, heads, dim);
        uint8_t* tile = value ? (uint8_t*)cache + ByteTile::value_start(slot, kv_head, heads, dim) : keys;
        keep_int8(v, tile, keys + ByteTile::scale(lane, dim, value), value, lane, dim);
    } else if (a.kv_format == F32)
        keep(v, (float*)cache, value, slot, kv_head, heads, dim);
    else
        keep(v, (uint16_t*)cache, value, slot, kv_head, heads, dim);
}

void put_index_key(const Step& step, int layer, int row, const float* v) {
    const Layer& l = step.model.layers[layer];
    const StepArgs& a = step.args;
    const int64_t slot = a.slots[row];
    const int dim = l.index_dim, lane = slot % LANES;
    void* beside = a.values[layer];
    if (a.kv_format == INT8) {
        uint8_t* keys = (uint8_t*)a.keys[layer] + ByteTile::key_start(slot, 0, 1, l.head_dim);
        uint8_t* tile = (uint8_t*)beside + ByteTile::value_start(slot, 0, 1, dim);
        keep_int8(v, tile, keys + ByteTile::scale(lane, l.head_dim, true), false, lane, dim);
    } else if (a.kv_format == F32)
        keep(v, (float*)beside, false, slot, 0, 1, dim);
    else
        keep(v, (uint16_t*)beside, false, slot, 0, 1, dim);
}

namespace {

// Where a row's queries lie that are normed together, and behind them its keys.
float* whole_of(const Step& step, const Layer& l, int row, bool keys) {
    const int queries = padded(l.heads * l.head_dim, TILE);
    return step.model.space.whole + (size_t)row * step.model.whole_width + (keys ? queries : 0);
}

}  // namespace

void place_head(const Step& step, int layer, int head, int row, float* v) {
    const Shape& s = step.model.shape;
    const Layer& l = step.model.layers[layer];
    const int dim = l.head_dim, keys = l.heads + l.kv_heads, gates = keys + l.kv_heads;
    if (head >= gates) {
        std::copy_n(v, dim, step.model.space.gates + ((size_t)row * l.heads + head - gates) * dim);
        return;
    }
    if (head >= keys) {
        if (l.values_normed) norm(v, dim, padded(dim, TILE), nullptr, s.eps, v);
        return put_head(step, layer, head, row, v);
    }
    const bool key = head >= l.heads;
    if (key && !l.qkv[2].outputs) {
        float values[limits::HEAD_DIM.most];
        std::copy_n(v, padded(dim, TILE), values);
        place_head(step, layer, head + l.kv_heads, row, values);
    }
    if (l.head_norms == WHOLE) {
        std::copy_n(v, dim, whole_of(step, l, row, key) + (size_t)(head - (key ? l.heads : 0)) * dim);
        return;
    }
    if (l.head_norms == AFTER_ROPE) turn(step, layer, row, dim, v);
    const float* weight = key ? l.key_norm : l.query_norm;
    if (weight) norm(v, dim, padded(dim, TILE), weight, s.eps, v);
    if (l.head_norms == BEFORE_ROPE) turn(step, layer, row, dim, v);
    put_head(step, layer, head, row, v);
}

void place_whole(const Step& step, int layer, int row) {
    const Shape& s = step.model.shape;
    const Layer& l = step.model.layers[layer];
    for (const bool key : {false, true}) {
        const int heads = key ? l.kv_heads : l.heads, count = heads * l.head_dim;
        float* all = whole_of(step, l, row, key);
        const float* weight = key ? l.key_norm : l.query_norm;
        std::fill(all + count, all + padded(count, TILE), 0.0f);
        if (weight) norm(all, count, padded(count, TILE), weight, s.eps, all);
        for (int head = 0; head < heads; head++, all += l.head_dim) {
            turn(step, layer, row, l.head_dim, all);
            put_head(step, layer, head + (key ? l.heads : 0), row, all);
        }
    }
}

void ask_place(const Step& step, int layer, int head, int row) {
    const Layer& l = step.model.layers[layer];
    const StepArgs& a = step.args;
    if (head < l.heads || head >= l.heads + 2 * l.kv_heads) return;
    const bool value = head >= l.heads + l.kv_heads;
    const int kv_head = head - l.heads - (value ? l.kv_heads : 0);
    const void* cache = (value ? a.values : a.keys)[layer];
    const int64_t slot = step.slot(layer, a.slots[row]);
    if (a.kv_format == INT8) ask<uint8_t>(cache, value, slot, kv_head, l);
    else if (a.kv_format == F32) ask<float>(cache, value, slot, kv_head, l);
    else ask<uint16_t>(cache, value, slot, kv_head, l);
}

}  // namespace fastslow
