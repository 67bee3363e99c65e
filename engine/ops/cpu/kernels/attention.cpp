#include "attention.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "score.h"
#include "simd.h"
#include "step.h"
#include "transpose.h"

namespace fastslow {

namespace {

// What one chunk works on: the query heads of one or all KV heads, for a group of rows. Queries are
// numbered by KV head, then row, then head.
template <class T> struct Chunk {
    const Step& step;
    const RowGroup& group;
    int layer, kv_head, kv_heads;

    const Shape& shape() const { return step.model.shape; }
    int ratio() const { return shape().heads / shape().kv_heads; }
    int each() const { return group.count * ratio(); }  // queries of a KV head
    int queries() const { return each() * kv_heads; }
    bool chain() const { return step.args.chains[group.request]; }
    int64_t context() const { return step.args.context_lengths[group.request]; }
    int64_t sees(int row) const { return context() + step.args.tail_lengths[row]; }
    int row(int query) const { return group.first + query % each() / ratio(); }
    int head(int query) const { return (kv_head + query / each()) * ratio() + query % ratio(); }

    const float* q(int query) const {
        return step.model.space.q + ((size_t)row(query) * shape().heads + head(query)) * shape().head_dim;
    }

    // Where a row's keys (and values) of places from .. from + count - 1 lie, in elements from the
    // start of the cache; past the row's end, its last one.
    void find(int row, int64_t from, int count, size_t* at) const {
        const StepArgs& a = step.args;
        const int64_t* text = a.contexts[group.request];
        const int64_t* tail = a.tails + a.tail_starts[row];
        const int64_t end = context(), last = sees(row) - 1;
        const size_t size = (size_t)shape().head_dim, stride = shape().kv_heads * size;
        int k = 0;
        for (; k < count && from + k < end; k++) at[k] = text[from + k] * stride + kv_head * size;
        for (; k < count; k++)
            at[k] = tail[std::min(from + k, last) - end] * stride + kv_head * size;
    }

    const T* keys() const { return (const T*)step.args.keys[layer]; }
    const T* values() const { return (const T*)step.args.values[layer]; }
};

// One key block: which keys all rows of the group share, and where those lie.
struct Block {
    int64_t from;
    int count, alike;
    size_t at[KEY_BLOCK + LANES];
};

// Scores of a block's keys: scores[query][KEY_BLOCK].
template <class T> void score_block(const Chunk<T>& c, const Block& block, Scratch& own) {
    constexpr bool dots = DOTS && sizeof(T) == 2;
    using Key = std::conditional_t<dots, uint32_t, float>;
    const int ratio = c.ratio(), dim = c.shape().head_dim, each = c.each();
    const Key* q[MOST_QUERIES];
    float* out[MOST_QUERIES];
    for (int i = 0; i < c.queries(); i++) {
        if constexpr (dots) {
            uint16_t* rounded = (uint16_t*)own.queries + (size_t)i * dim;
            for (int d = 0; d < dim; d++) rounded[d] = narrow(c.q(i)[d]);
            q[i] = (const Key*)rounded;
        } else {
            q[i] = c.q(i);
        }
    }
    for (int first = 0; first < block.count; first += LANES) {
        for (int i = 0; i < c.queries(); i++) out[i] = own.scores + (size_t)i * KEY_BLOCK + first;
        const bool shared = c.chain() || first + LANES <= block.alike;
        const int together = shared ? each : ratio;
        const T* next = c.keys() + block.at[std::min(first + KEYS_AHEAD, block.count - 1)];
        for (int i = 0; i < c.queries(); i += together) {
            size_t apart[LANES];
            if (!shared) c.find(c.row(i), block.from + first, LANES, apart);
            const size_t* at = shared ? block.at + first : apart;
            const T* key[LANES];
            for (int j = 0; j < LANES; j++) key[j] = c.keys() + at[j] + i / each * dim;
            if constexpr (dots)
                transpose_pairs(key, dim, (uint32_t*)own.keys);
            else
                transpose(key, dim, own.keys);
            // a page of keys is one run of memory: each head fetches its share of a later one
            const char* soon = (const char*)(next + (size_t)i / each * LANES * dim);
            score_some((const Key*)own.keys, dim, together, q + i, out + i, soon);
        }
    }
}

// Values as the sums want them: heads of an odd size are copied and padded, and `at` follows.
template <class T>
const T* whole_lanes(const Chunk<T>& c, int first, int last, Scratch& own, const size_t* at,
                     size_t* padded_at) {
    const int dim = c.shape().head_dim, width = padded(dim, LANES);
    if (dim == width) {
        std::copy(at + first, at + last, padded_at + first);
        return c.values();
    }
    for (int k = first; k < last; k++) {
        T* copy = (T*)own.values + (size_t)k * width;
        std::fill(std::copy(c.values() + at[k], c.values() + at[k] + dim, copy), copy + width, T{});
        padded_at[k] = (size_t)k * width;
    }
    return (const T*)own.values;
}

// One key block for all queries: most[q], total[q] and the weighted values out[q][width]; a query
// that sees none of the keys gets a total of 0.
template <class T>
void run_block(const Chunk<T>& c, int64_t from, int64_t to, Scratch& own, float* most, float* total,
               float* out) {
    const int queries = c.queries(), ratio = c.ratio(), width = padded(c.shape().head_dim, LANES);
    Block block;
    block.from = from;
    block.count = (int)(to - from);
    // the last row of a chain sees all its keys, so its list serves the rows before it
    const int64_t alike = c.chain() ? block.count : c.context() - from;
    block.alike = (int)std::clamp<int64_t>(alike, 0, block.count);
    c.find(c.group.first + c.group.count - 1, from, block.count + LANES, block.at);
    score_block(c, block, own);
    int seen[MOST_QUERIES];
    const float* mass[MOST_QUERIES];
    float* sums[MOST_QUERIES];
    for (int i = 0; i < queries; i++) {
        float* scores = own.scores + (size_t)i * KEY_BLOCK;
        seen[i] = (int)std::clamp<int64_t>(c.sees(c.row(i)) - from, 0, block.count);
        total[i] = 0.0f;
        if (seen[i]) soften(scores, seen[i], most[i], total[i]);
        mass[i] = scores;
        sums[i] = out + (size_t)i * width;
        std::fill(sums[i], sums[i] + width, 0.0f);
    }
    // Values that some queries all see are read once for them, the rest one query at a time; a page
    // of values serves all heads before the next one is read.
    size_t at[KEY_BLOCK + LANES] = {};
    const T* values = whole_lanes(c, 0, block.alike, own, block.at, at);
    const int span = c.kv_heads > 1 ? LANES : KEY_BLOCK, each = c.each(), dim = c.shape().head_dim;
    for (int first = 0; first < block.alike; first += span) {
        for (int i = 0; i < queries;)
            i += few<TOGETHER>(each - i % each, [&](auto n) {
                const int last = std::min(first + span, block.alike);
                const T* from_head = values + i / each * dim;
                int both = last;
                for (int j = i; j < i + n(); j++) both = std::min(both, seen[j]);
                weigh_all<T, n()>(from_head, at, first, both, width, mass + i, sums + i);
                for (int j = i; j < i + n(); j++)
                    weigh_all<T, 1>(from_head, at, std::max(first, both), std::min(last, seen[j]), width,
                                    mass + j, sums + j);
            });
    }
    for (int i = 0; i < queries; i++) {
        if (block.alike >= seen[i]) continue;
        if (i % ratio == 0) {  // the row's own path
            c.find(c.row(i), from, seen[i], block.at);
            values = whole_lanes(c, block.alike, seen[i], own, block.at, at) + i / each * dim;
        }
        weigh_all<T, 1>(values, at, block.alike, seen[i], width, mass + i, sums + i);
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
    const int parts = step.model.shape.kv_heads / plan.together, work = chunk / parts;
    const int number = plan.split ? plan.items[work].group : work;
    const int kv_head = chunk % parts * plan.together;
    const Chunk<T> c{step, plan.groups[number], layer, kv_head, plan.together};
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
    const size_t size = padded(shape.head_dim, LANES) + LANES;
    partial_floats = (size_t)a.rows * most_blocks * shape.heads * size;
    split = few && a.threads > 1 && items.size() > groups.size() && partial_floats <= MOST_PARTIALS;
    if (!split) partial_floats = 0;
    int most_count = 1;
    for (const RowGroup& group : groups) most_count = std::max(most_count, group.count);
    const bool enough = (int)(split ? items.size() : groups.size()) >= 4 * a.threads || a.threads == 1;
    const bool fits = most_count * shape.heads <= MOST_QUERIES && shape.head_dim % LANES == 0;
    together = enough && fits ? shape.kv_heads : 1;
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
