#include "attention.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "score.h"
#include "simd.h"
#include "step.h"
#include "tile.h"

namespace fastslow {

namespace {

constexpr int AHEAD = 2;  // tiles between what is worked on and what is fetched

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

    int64_t slot(int row, int64_t place) const {
        const StepArgs& a = step.args;
        return place < context() ? a.contexts[group.request][place]
                                 : a.tails[a.tail_starts[row] + place - context()];
    }

    // Where places from .. from + LANES - 1 of a row lie; past the row's end none is real.
    void find(int row, int64_t from, Places& places) const {
        const int64_t end = context();
        places.count = (int)std::clamp<int64_t>(sees(row) - from, 0, LANES);
        if (from + LANES <= end)
            std::copy_n(step.args.contexts[group.request] + from, LANES, places.slots);
        else
            for (int k = 0; k < std::max(places.count, 1); k++)
                places.slots[k] = slot(row, std::min(from + k, sees(row) - 1));
        places.look();
    }

    const T* keys() const { return (const T*)step.args.keys[layer]; }
    const T* values() const { return (const T*)step.args.values[layer]; }
    size_t start(int64_t slot, int head) const {
        return Tile<T>::start(slot, kv_head + head, shape().kv_heads, shape().head_dim);
    }
    const T* keys_at(const Places& places, int head, Scratch& own) const {
        if (places.together) return keys() + start(places.slots[0], head);
        gather_keys(keys(), places, kv_head + head, shape().kv_heads, shape().head_dim, (T*)own.keys);
        return (const T*)own.keys;
    }
    const T* values_at(const Places& places, int head, T* copy) const {
        if (places.together) return values() + start(places.slots[0], head);
        gather_values(values(), places, kv_head + head, shape().kv_heads, shape().head_dim, copy);
        return copy;
    }
};

constexpr int TILES = KEY_BLOCK / LANES;

// One key block: where its places lie, by the list of the group's last row.
struct Block {
    int64_t from;
    int count, tiles;
    int shared;  // leading tiles that are the same for all rows of the group
    Places places[TILES];
    int64_t next[AHEAD];  // slots with which the next block's first tiles start
};

template <class T> void find_block(const Chunk<T>& c, int64_t from, int64_t to, Block& block) {
    const int last = c.group.first + c.group.count - 1;
    block.from = from;
    block.count = (int)(to - from);
    block.tiles = (block.count + LANES - 1) / LANES;
    // the last row of a chain sees all its keys, so its list serves the rows before it
    const int64_t alike = c.chain() ? block.tiles : (c.context() - from) / LANES;
    block.shared = (int)std::clamp<int64_t>(alike, 0, block.tiles);
    for (int t = 0; t < block.tiles; t++) c.find(last, from + t * LANES, block.places[t]);
    const int64_t end = c.sees(last) - 1;
    for (int i = 0; i < AHEAD; i++)
        block.next[i] = c.slot(last, std::min(from + KEY_BLOCK + i * LANES, end));
}

// What to fetch while tile t of keys is scored, and of values is weighed: a page is one run of
// memory, so each head fetches its share of a later one.
template <class T> const char* after_keys(const Chunk<T>& c, const Block& block, int t, int head) {
    const int later = t + AHEAD;
    if (later < block.tiles) return (const char*)(c.keys() + c.start(block.places[later].slots[0], head));
    const int value = std::min(later - block.tiles, block.tiles - 1);
    return (const char*)(c.values() + c.start(block.places[value].slots[0], head));
}

template <class T> const char* after_values(const Chunk<T>& c, const Block& block, int t, int head) {
    const int later = t + AHEAD;
    if (later < block.tiles) return (const char*)(c.values() + c.start(block.places[later].slots[0], head));
    return (const char*)(c.keys() + c.start(block.next[std::min(later - block.tiles, AHEAD - 1)], head));
}

// Queries as the keys are multiplied by them: [queries][D / PACK].
template <class T> const Scalar<T>* turn_queries(const Chunk<T>& c, Scratch& own) {
    const int dim = c.shape().head_dim;
    if constexpr (std::is_same_v<Scalar<T>, uint32_t>)
        for (int i = 0; i < c.queries(); i++)
            for (int d = 0; d < dim; d++) ((uint16_t*)own.queries)[(size_t)i * dim + d] = narrow(c.q(i)[d]);
    else
        for (int i = 0; i < c.queries(); i++) std::copy_n(c.q(i), dim, own.queries + (size_t)i * dim);
    return (const Scalar<T>*)own.queries;
}

// Scores of a block's keys: scores[query][KEY_BLOCK].
template <class T> void score_block(const Chunk<T>& c, const Block& block, Scratch& own) {
    const int ratio = c.ratio(), dim = c.shape().head_dim, each = c.each();
    const Scalar<T>* queries = turn_queries(c, own);
    const Scalar<T>* q[MOST_QUERIES];
    float* out[MOST_QUERIES];
    for (int i = 0; i < c.queries(); i++) q[i] = queries + (size_t)i * (dim / Tile<T>::PACK);
    for (int t = 0; t < block.tiles; t++) {
        for (int i = 0; i < c.queries(); i++) out[i] = own.scores + (size_t)i * KEY_BLOCK + t * LANES;
        const int together = t < block.shared ? each : ratio;
        for (int i = 0; i < c.queries(); i += together) {
            const int head = i / each;
            const Places* places = &block.places[t];
            Places apart;
            if (t >= block.shared) {
                c.find(c.row(i), block.from + t * LANES, apart);
                if (!apart.count) continue;
                places = &apart;
            }
            score_some(c.keys_at(*places, head, own), dim, together, q + i, out + i,
                       after_keys(c, block, t, head));
        }
    }
}

// The values of the tiles that all rows share, weighted; read once for as many queries as fit. A
// page of values serves all heads before the next one is read.
template <class T>
void weigh_shared(const Chunk<T>& c, const Block& block, const int* seen, Scratch& own,
                  const Scalar<T>* const* mass, float* const* out) {
    const int dim = c.shape().head_dim, each = c.each(), span = c.kv_heads > 1 ? 1 : TILES;
    for (int first = 0; first < block.shared; first += span) {
        const int count = std::min(span, block.shared - first), from = first * LANES;
        for (int head = 0; head < c.kv_heads; head++) {
            const T* tiles[TILES];
            const char* soon[TILES];
            for (int t = 0; t < count; t++) {
                T* copy = (T*)own.values + (size_t)t * LANES * dim;
                tiles[t] = c.values_at(block.places[first + t], head, copy);
                soon[t] = after_values(c, block, first + t, head);
            }
            for (int i = head * each; i < (head + 1) * each;)
                i += few<TOGETHER>((head + 1) * each - i, [&](auto n) {
                    const Scalar<T>* some[n()];
                    int real[n()], both = count;  // tiles that all n queries see whole
                    for (int j = 0; j < n(); j++) {
                        some[j] = mass[i + j] + from / Tile<T>::PACK;
                        real[j] = std::clamp(seen[i + j] - from, 0, count * LANES);
                        both = std::min(both, real[j] / LANES);
                    }
                    weigh_all<T, n()>(tiles, both * LANES, dim, some, out + i, soon);
                    for (int j = 0; j < n(); j++) {
                        some[j] += both * LANES / Tile<T>::PACK;
                        weigh_all<T, 1>(tiles + both, real[j] - both * LANES, dim, some + j, out + i + j,
                                        soon + both);
                    }
                });
        }
    }
}

// The values on each row's own path.
template <class T>
void weigh_apart(const Chunk<T>& c, const Block& block, Scratch& own, const Scalar<T>* const* mass,
                 float* const* out) {
    const int dim = c.shape().head_dim, each = c.each(), ratio = c.ratio();
    for (int i = 0; i < c.queries(); i += ratio)
        for (int t = block.shared; t < block.tiles; t++) {
            Places places;
            c.find(c.row(i), block.from + t * LANES, places);
            if (!places.count) break;
            const T* tile = c.values_at(places, i / each, (T*)own.values);
            const char* soon = (const char*)tile;
            for (int j = i; j < i + ratio;)
                j += few<TOGETHER>(i + ratio - j, [&](auto n) {
                    const Scalar<T>* some[n()];
                    for (int k = 0; k < n(); k++) some[k] = mass[j + k] + t * LANES / Tile<T>::PACK;
                    weigh_all<T, n()>(&tile, places.count, dim, some, out + j, &soon);
                });
        }
}

// One key block for all queries: most[q], total[q] and the weighted values out[q][width]; a query
// that sees none of the keys gets a total of 0.
template <class T>
void run_block(const Chunk<T>& c, int64_t from, int64_t to, Scratch& own, float* most, float* total,
               float* out) {
    const int width = padded(c.shape().head_dim, LANES);
    Block block;
    find_block(c, from, to, block);
    score_block(c, block, own);
    int seen[MOST_QUERIES];
    const Scalar<T>* mass[MOST_QUERIES];
    float* sums[MOST_QUERIES];
    for (int i = 0; i < c.queries(); i++) {
        float* scores = own.scores + (size_t)i * KEY_BLOCK;
        seen[i] = (int)std::clamp<int64_t>(c.sees(c.row(i)) - from, 0, block.count);
        total[i] = 0.0f;
        if (seen[i]) soften<T>(scores, seen[i], most[i], total[i]);
        mass[i] = (const Scalar<T>*)scores;
        sums[i] = out + (size_t)i * width;
        std::fill(sums[i], sums[i] + width, 0.0f);
    }
    weigh_shared(c, block, seen, own, mass, sums);
    weigh_apart(c, block, own, mass, sums);
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
