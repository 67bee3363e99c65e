#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "simd.h"
#include "step.h"
#include "transpose.h"

namespace fastslow {

namespace {

constexpr int LANES = 16;          // keys scored at a time
constexpr int NV = LANES / W;      // vectors of them
constexpr int TOGETHER = W == 4 ? 1 : W == 8 ? 2 : 4;  // queries whose sums fit the registers

// What one chunk works on: the query heads of one KV head, for a group of rows.
template <class T> struct Chunk {
    const Step& step;
    const RowGroup& group;
    int layer, kv_head, thread;

    const Shape& shape() const { return step.model.shape; }
    int ratio() const { return shape().heads / shape().kv_heads; }
    int queries() const { return group.count * ratio(); }
    bool chain() const { return step.args.chains[group.request]; }
    int64_t context() const { return step.args.context_lengths[group.request]; }
    int64_t sees(int row) const { return context() + step.args.tail_lengths[row]; }
    int row(int query) const { return group.first + query / ratio(); }
    int head(int query) const { return kv_head * ratio() + query % ratio(); }

    const float* q(int query) const {
        return step.model.space.q + ((size_t)row(query) * shape().heads + head(query)) * shape().head_dim;
    }

    // The key or value at a place in a row's text; past its end, its last one.
    const T* entry(void* const* cache, int row, int64_t place) const {
        const StepArgs& a = step.args;
        place = std::min(place, sees(row) - 1);
        int64_t slot = place < context() ? a.contexts[group.request][place]
                                         : a.tails[a.tail_starts[row] + place - context()];
        return (const T*)cache[layer] + ((size_t)slot * shape().kv_heads + kv_head) * shape().head_dim;
    }
};

// N queries times LANES keys [D][LANES]; two sums per query, by even and odd d.
template <int N> void score(const float* keys, int dim, const float* const* q, float* const* out) {
    vf sums[N][2][NV];
    UNROLL for (int i = 0; i < N; i++) UNROLL for (int h = 0; h < 2; h++)
        UNROLL for (int v = 0; v < NV; v++) sums[i][h][v] = vf{};
    const float* query[N];
    UNROLL for (int i = 0; i < N; i++) query[i] = q[i];
    int d = 0;
    for (; d + 2 <= dim; d += 2)
        UNROLL for (int h = 0; h < 2; h++) UNROLL for (int v = 0; v < NV; v++) {
            vf key = load<vf>(keys + (d + h) * LANES + v * W);
            UNROLL for (int i = 0; i < N; i++)
                sums[i][h][v] = fma(key, splat(query[i][d + h]), sums[i][h][v]);
        }
    if (d < dim)
        UNROLL for (int v = 0; v < NV; v++) UNROLL for (int i = 0; i < N; i++)
            sums[i][0][v] = fma(load<vf>(keys + d * LANES + v * W), splat(query[i][d]), sums[i][0][v]);
    UNROLL for (int i = 0; i < N; i++) UNROLL for (int v = 0; v < NV; v++)
        store(out[i] + v * W, sums[i][0][v] + sums[i][1][v]);
}

void score_some(const float* keys, int dim, int count, const float* const* q, float* const* out) {
    int i = 0;
    for (; i + TOGETHER <= count; i += TOGETHER) score<TOGETHER>(keys, dim, q + i, out + i);
    for (; i < count; i++) score<1>(keys, dim, q + i, out + i);
}

// Scores of the keys at from .. to - 1: scores[query][KEY_BLOCK].
template <class T> void score_block(const Chunk<T>& c, int64_t from, int64_t to, Scratch& own) {
    const int ratio = c.ratio(), dim = c.shape().head_dim, count = c.queries();
    const float* q[MOST_QUERIES];
    float* out[MOST_QUERIES];
    for (int i = 0; i < count; i++) q[i] = c.q(i);
    for (int64_t at = from; at < to; at += LANES) {
        for (int i = 0; i < count; i++) out[i] = own.scores + (size_t)i * KEY_BLOCK + (at - from);
        const bool shared = c.chain() || at + LANES <= c.context();
        // the last row of a chain sees all its keys, so its list serves the rows before it
        const int step = shared ? count : ratio;
        for (int i = 0; i < count; i += step) {
            const int row = shared ? c.group.first + c.group.count - 1 : c.row(i);
            const T* key[LANES];
            for (int j = 0; j < LANES; j++) key[j] = c.entry(c.step.args.keys, row, at + j);
            transpose(key, dim, own.keys);
            score_some(own.keys, dim, step, q + i, out + i);
        }
    }
}

// Turns scores to masses e^(score - max): the first `count` are real. Returns the max and the sum.
void soften(float* scores, int count, float& most, float& total) {
    vf top = splat(-INFINITY);
    vi lane;
    for (int i = 0; i < W; i++) lane[i] = i;
    const int padded = (count + LANES - 1) / LANES * LANES;
    for (int k = 0; k < padded; k += W) {
        vf s = lane + k < count ? load<vf>(scores + k) : splat(-INFINITY);
        store(scores + k, s);
        top = max(s, top);
    }
    most = largest(top);
    vf sums{};
    for (int k = 0; k < padded; k += W) {
        vf mass = lane + k < count ? exp(load<vf>(scores + k) - splat(most)) : vf{};
        store(scores + k, mass);
        sums = sums + mass;
    }
    total = sum(sums);
}

template <class T> static inline vf value_at(const T* v);
template <> inline vf value_at(const float* v) { return load<vf>(v); }
template <> inline vf value_at(const uint16_t* v) { return widen(load<vh>(v)); }

// Adds C vectors of values, weighted by the masses, to N sums.
template <class T, int N, int C>
void weigh(const T* const* values, int from, int to, const float* const* mass, float* const* out) {
    vf sums[N][C];
    UNROLL for (int i = 0; i < N; i++) UNROLL for (int c = 0; c < C; c++)
        sums[i][c] = load<vf>(out[i] + c * W);
    for (int k = from; k < to; k++) {
        vf v[C];
        UNROLL for (int c = 0; c < C; c++) v[c] = value_at<T>(values[k] + c * W);
        UNROLL for (int i = 0; i < N; i++) {
            vf m = splat(mass[i][k]);
            UNROLL for (int c = 0; c < C; c++) sums[i][c] = fma(v[c], m, sums[i][c]);
        }
    }
    UNROLL for (int i = 0; i < N; i++) UNROLL for (int c = 0; c < C; c++)
        store(out[i] + c * W, sums[i][c]);
}

// All of the head's columns; `width` is a multiple of LANES.
template <class T, int N>
void weigh_all(const T* const* values, int from, int to, int width, const float* const* mass,
               float* const* out) {
    const T* shifted[KEY_BLOCK];
    for (int d = 0; d < width;) {
        float* at[N];
        for (int i = 0; i < N; i++) at[i] = out[i] + d;
        for (int k = from; k < to; k++) shifted[k] = values[k] + d;
        if (d + 4 * W <= width) {
            weigh<T, N, 4>(shifted, from, to, mass, at);
            d += 4 * W;
        } else {
            weigh<T, N, 1>(shifted, from, to, mass, at);
            d += W;
        }
    }
}

// Pointers to a row's values at from .. to - 1; heads of an odd size are copied and padded.
template <class T>
void find_values(const Chunk<T>& c, int row, int64_t from, int first, int last, Scratch& own,
                 const T** values) {
    const int dim = c.shape().head_dim, width = padded(dim, LANES);
    for (int k = first; k < last; k++) {
        values[k] = c.entry(c.step.args.values, row, from + k);
        if (dim == width) continue;
        T* copy = (T*)own.values + (size_t)k * width;
        std::fill(std::copy(values[k], values[k] + dim, copy), copy + width, T{});
        values[k] = copy;
    }
}

// One key block for all queries: most[q], total[q] and the weighted values out[q][width]; a query
// that sees none of the keys gets a total of 0.
template <class T>
void run_block(const Chunk<T>& c, int64_t from, int64_t to, Scratch& own, float* most, float* total,
               float* out) {
    const int count = c.queries(), ratio = c.ratio(), width = padded(c.shape().head_dim, LANES);
    score_block(c, from, to, own);
    int seen[MOST_QUERIES];
    const float* mass[MOST_QUERIES];
    float* sums[MOST_QUERIES];
    for (int i = 0; i < count; i++) {
        float* scores = own.scores + (size_t)i * KEY_BLOCK;
        seen[i] = (int)std::clamp<int64_t>(c.sees(c.row(i)) - from, 0, to - from);
        total[i] = 0.0f;
        if (seen[i]) soften(scores, seen[i], most[i], total[i]);
        mass[i] = scores;
        sums[i] = out + (size_t)i * width;
        std::fill(sums[i], sums[i] + width, 0.0f);
    }
    // Values that all of some queries see are read once for them; the rest one query at a time.
    const T* values[KEY_BLOCK];
    const int last_row = c.group.first + c.group.count - 1;
    const int alike = (int)std::clamp<int64_t>(c.chain() ? to - from : c.context() - from, 0, to - from);
    find_values(c, last_row, from, 0, alike, own, values);
    for (int i = 0; i < count;) {
        const int n = i + TOGETHER <= count ? TOGETHER : 1;
        int both = alike;
        for (int j = i; j < i + n; j++) both = std::min(both, seen[j]);
        if (n == TOGETHER)
            weigh_all<T, TOGETHER>(values, 0, both, width, mass + i, sums + i);
        else
            weigh_all<T, 1>(values, 0, both, width, mass + i, sums + i);
        for (int j = i; j < i + n; j++)
            if (both < std::min(alike, seen[j]))
                weigh_all<T, 1>(values, both, std::min(alike, seen[j]), width, mass + j, sums + j);
        i += n;
    }
    for (int i = 0; i < count; i++) {
        if (alike >= seen[i]) continue;
        if (i % ratio == 0) find_values(c, c.row(i), from, alike, seen[i], own, values);
        weigh_all<T, 1>(values, alike, seen[i], width, mass + i, sums + i);
    }
}

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

float* partial_of(const Step& step, int row, int block, int head) {
    const Shape& s = step.model.shape;
    const size_t size = padded(s.head_dim, LANES) + LANES;
    return step.model.space.partial +
           (((size_t)row * step.attention.most_blocks + block) * s.heads + head) * size;
}

void finish(const Step& step, int row, int head, float total, const float* out) {
    const int dim = step.model.shape.head_dim;
    float* seen = step.model.space.seen + (size_t)row * step.model.attention_width + (size_t)head * dim;
    for (int d = 0; d < dim; d++) seen[d] = out[d] / total;
}

template <class T> void attend_as(Step& step, int thread, int layer, int chunk) {
    const AttentionPlan& plan = step.attention;
    const int kv_heads = step.model.shape.kv_heads, work = chunk / kv_heads;
    const int number = plan.split ? plan.items[work].group : work;
    const Chunk<T> c{step, plan.groups[number], layer, chunk % kv_heads, thread};
    const int width = padded(c.shape().head_dim, LANES), count = c.queries();
    Scratch& own = step.model.scratch[thread];
    float most[MOST_QUERIES], total[MOST_QUERIES];
    auto end = [&](int64_t from) { return std::min(from + KEY_BLOCK, c.group.longest); };
    if (plan.split) {
        const int block = plan.items[work].block;
        const int64_t from = (int64_t)block * KEY_BLOCK;
        run_block(c, from, end(from), own, most, total, own.outs);
        for (int i = 0; i < count; i++) {
            float* part = partial_of(step, c.row(i), block, c.head(i));
            part[0] = most[i];
            part[1] = total[i];
            std::copy(own.outs + (size_t)i * width, own.outs + (size_t)(i + 1) * width, part + LANES);
        }
        return;
    }
    float all_most[MOST_QUERIES], all_total[MOST_QUERIES] = {};
    float* sums = own.outs + (size_t)MOST_QUERIES * width;
    for (int64_t from = 0; from < c.group.longest; from += KEY_BLOCK) {
        run_block(c, from, end(from), own, most, total, own.outs);
        for (int i = 0; i < count; i++)
            join(all_most[i], all_total[i], sums + (size_t)i * width, most[i], total[i],
                 own.outs + (size_t)i * width, width);
    }
    for (int i = 0; i < count; i++)
        finish(step, c.row(i), c.head(i), all_total[i], sums + (size_t)i * width);
}

}  // namespace

void AttentionPlan::plan(const StepArgs& a, const Shape& shape) {
    groups.clear();
    items.clear();
    const int most_rows = std::max(1, MOST_QUERIES / (shape.heads / shape.kv_heads));
    most_blocks = 1;
    for (int b = 0; b < a.requests; b++) {
        const int stop = (int)a.starts[b + 1];
        for (int first = (int)a.starts[b]; first < stop; first += most_rows) {
            RowGroup group{b, first, std::min(most_rows, stop - first), 0};
            for (int i = first; i < first + group.count; i++)
                group.longest = std::max(group.longest, a.context_lengths[b] + a.tail_lengths[i]);
            const int blocks = (int)((group.longest + KEY_BLOCK - 1) / KEY_BLOCK);
            most_blocks = std::max(most_blocks, blocks);
            for (int k = 0; k < blocks; k++) items.push_back({(int)groups.size(), k});
            groups.push_back(group);
        }
    }
    const bool few = (int)groups.size() * shape.kv_heads < 4 * a.threads;
    split = few && a.threads > 1 && items.size() > groups.size();
    const size_t size = padded(shape.head_dim, LANES) + LANES;
    partial_floats = split ? (size_t)a.rows * most_blocks * shape.heads * size : 0;
}

void attend(Step& step, int thread, int layer, int chunk) {
    if (step.args.kv_float)
        attend_as<float>(step, thread, layer, chunk);
    else
        attend_as<uint16_t>(step, thread, layer, chunk);
}

void merge(Step& step, int thread, int chunk) {
    const Shape& s = step.model.shape;
    const int kv_head = chunk % s.kv_heads, ratio = s.heads / s.kv_heads;
    const RowGroup& group = step.attention.groups[chunk / s.kv_heads];
    const int width = padded(s.head_dim, LANES);
    const int blocks = (int)((group.longest + KEY_BLOCK - 1) / KEY_BLOCK);
    float* sums = step.model.scratch[thread].outs;
    for (int row = group.first; row < group.first + group.count; row++)
        for (int head = kv_head * ratio; head < (kv_head + 1) * ratio; head++) {
            float most = 0.0f, total = 0.0f;
            for (int b = 0; b < blocks; b++) {
                const float* part = partial_of(step, row, b, head);
                join(most, total, sums, part[0], part[1], part + LANES, width);
            }
            finish(step, row, head, total, sums);
        }
}

}  // namespace fastslow
