// One block of keys for all queries of a chunk: scores, masses, weighted values.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "chunk.h"
#include "score.h"
#include "score_int8.h"
#include "score_tiles.h"

namespace fastslow {

constexpr int TILES_AHEAD = 2;  // between what is worked on and what is fetched

constexpr int TILES = KEY_BLOCK / LANES;

// One key block: where its places lie, by the list of the group's last row.
struct KeyBlock {
    int64_t from;
    int count, tiles;
    int first;   // the first tile that some row sees
    int shared;  // leading tiles that are the same for all rows of the group
    Places places[TILES];
    int64_t next[TILES_AHEAD];  // slots with which the first tiles start that are read after these,
    int next_head;              // and their KV head, as seen from the chunk's first
};

template <class T> void find_block(const Chunk<T>& c, int64_t from, int64_t to, KeyBlock& block) {
    const int last = c.group.first + c.group.count - 1;
    block.from = from;
    block.count = (int)(to - from);
    block.tiles = (block.count + LANES - 1) / LANES;
    // the last row of a chain sees all its keys, so its list serves the rows before it
    block.first = (int)(std::max<int64_t>(c.group.least - from, 0) / LANES);
    const int64_t alike = c.chain() || c.copies ? block.tiles : (c.context() - from) / LANES;
    block.shared = (int)std::clamp<int64_t>(alike, 0, block.tiles);
    for (int t = block.first; t < block.tiles; t++) {
        c.find(last, from + t * LANES, block.places[t]);
        if (c.copies) c.copy(t, block.places[t]);
    }
    // the text's next block; else the next chunk's first: other heads of this text, or another text
    const bool on = to < c.group.longest, heads = c.kv_head + c.kv_heads < c.kind().kv_heads;
    const RowGroup& next = on || heads ? c.group : c.following();
    const Chunk<T> soon{c.step, c.plan, next, c.layer, c.kv_head, c.kv_heads};
    const int row = next.first + next.count - 1;
    const int64_t first = on ? from + KEY_BLOCK : next.least, end = soon.sees(row) - 1;
    for (int i = 0; i < TILES_AHEAD; i++) block.next[i] = c.copies ? i * LANES : soon.slot(row, std::min(first + i * LANES, end));
    block.next_head = on ? 0 : heads ? c.kv_heads : -c.kv_head;
}

// What to fetch while tile t of keys is scored, and of values is weighed: a page is one run of
// memory, so each head fetches its share of a later one.
template <class T> const char* after_keys(const Chunk<T>& c, const KeyBlock& block, int t, int head) {
    const int later = t + TILES_AHEAD;
    if (later < block.tiles) return (const char*)c.key_tile(block.places[later].slots[0], head);
    const int value = std::min(block.first + later - block.tiles, block.tiles - 1);
    return (const char*)c.value_tile(block.places[value].slots[0], head);
}

template <class T> const char* after_values(const Chunk<T>& c, const KeyBlock& block, int t, int head) {
    const int later = t + TILES_AHEAD;
    if (later < block.tiles) return (const char*)c.value_tile(block.places[later].slots[0], head);
    const int64_t next = block.next[std::min(later - block.tiles, TILES_AHEAD - 1)];
    return (const char*)c.key_tile(next, block.next_head + head);
}

// Queries as the keys are multiplied by them, each `query_bytes` long.
template <class T> void turn_queries(const Chunk<T>& c, Scratch& own, const typename Inner<T>::Query** q) {
    const int dim = c.kind().head_dim;
    for (int i = 0; i < c.queries(); i++) {
        auto* to = (typename Inner<T>::Query*)((char*)own.queries + i * Inner<T>::query_bytes(dim));
        Inner<T>::turn(c.q(i), dim, to, own.outs);
        q[i] = to;
    }
}

// Scores of a block's keys: scores[query][KEY_BLOCK].
template <class T> void score_block(const Chunk<T>& c, const KeyBlock& block, Scratch& own) {
    const int ratio = c.ratio(), dim = c.kind().head_dim, each = c.each();
    const typename Inner<T>::Query* q[MOST_QUERIES];
    float* out[MOST_QUERIES];
    turn_queries(c, own, q);
    for (int t = block.first; t < block.tiles; t++) {
        for (int i = 0; i < c.queries(); i++) out[i] = own.scores + (size_t)i * SCORE_STRIDE + t * LANES;
        const int at_once = t < block.shared ? each : ratio;
        for (int i = 0; i < c.queries(); i += at_once) {
            const int head = i / each;
            const Places* places = &block.places[t];
            Places apart;
            if (t >= block.shared) {
                c.find(c.row(i), block.from + t * LANES, apart);
                if (!apart.count) continue;
                places = &apart;
            }
            const T* keys = c.keys_at(*places, head, own);
            const char* soon = after_keys(c, block, t, head);
#if defined(FASTSLOW_AMX)
            if (c.in_tiles())
                score_in_tiles((const uint16_t*)keys, dim, at_once, (const uint16_t*)q[i], out[i], soon);
            else
#endif
                score_some<T>(keys, dim, at_once, q + i, out + i, soon);
            if constexpr (Tile<T>::SCALED)
                for (int j = i; j < i + at_once; j++)
                    std::memcpy(own.value_scales + (size_t)j * KEY_BLOCK + t * LANES,
                                keys + Tile<T>::scale(0, dim, !c.latent()), sizeof(float) * LANES);
        }
    }
}

// The values of the tiles that all rows share, weighted; read once for as many queries as fit. A
// page of values serves all heads before the next one is read.
template <class T>
void weigh_shared(const Chunk<T>& c, const KeyBlock& block, const int* low, const int* seen, Scratch& own,
                  const typename Inner<T>::Mass* const* mass, float* const* out) {
    const int dim = c.kind().head_dim, each = c.each(), span = c.kv_heads > 1 ? 1 : TILES;
    for (int first = block.first; first < block.shared; first += span) {
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
                i += few<Inner<T>::AT_ONCE>((head + 1) * each - i, [&](auto n) {
                    int least = seen[i], most = low[i];
                    for (int j = i + 1; j < i + n(); j++) {
                        least = std::min(least, seen[j]);
                        most = std::max(most, low[j]);
                    }
                    // all see them whole
                    const int both = most > from ? 0 : std::clamp((least - from) / LANES, 0, count);
                    const int done = both * LANES;
                    if (both) Inner<T>::template weigh_all<n()>(tiles, done, dim, mass + i, from, out + i, soon);
                    if (both == count) return;
                    for (int j = i; j < i + n();) {
                        int alike = 1;  // see the same keys
                        while (j + alike < i + n() && seen[j + alike] == seen[j] && low[j + alike] == low[j]) alike++;
                        const int real = std::min(seen[j] - from, count * LANES);
                        const int start = std::max(done, low[j] - from), tile = start / LANES;
                        j += few<n()>(alike, [&](auto m) {
                            if (real > start)
                                Inner<T>::template weigh_all<m()>(tiles + tile, real - start, dim, mass + j,
                                                                  from + start, out + j, soon + tile);
                        });
                    }
                });
        }
    }
}

// The values on each row's own path.
template <class T>
void weigh_apart(const Chunk<T>& c, const KeyBlock& block, const int* low, Scratch& own,
                 const typename Inner<T>::Mass* const* mass, float* const* out) {
    const int dim = c.kind().head_dim, each = c.each(), ratio = c.ratio();
    for (int i = 0; i < c.queries(); i += ratio)
        for (int t = std::max(block.shared, low[i] / LANES); t < block.tiles; t++) {
            Places places;
            c.find(c.row(i), block.from + t * LANES, places);
            if (!places.count) break;
            const T* tile = c.values_at(places, i / each, (T*)own.values);
            const char* soon = (const char*)tile;
            for (int j = i; j < i + ratio;)
                j += few<Inner<T>::AT_ONCE>(i + ratio - j, [&](auto n) {
                    Inner<T>::template weigh_all<n()>(&tile, places.count, dim, mass + j, t * LANES, out + j, &soon);
                });
        }
}

#if defined(FASTSLOW_AMX)
// The same in matrix tiles, for queries i .. i + n - 1 of a KV head, at most sixteen.
template <class T>
void weigh_shared_tiles(const Chunk<T>& c, const KeyBlock& block, int i, int n, const int* low, const int* seen,
                        Scratch& own, const uint16_t* const* mass, float* const* out) {
    const int dim = c.kind().head_dim, head = i / c.each();
    const auto [least, most] = std::minmax_element(seen + i, seen + i + n);
    const auto [begin, latest] = std::minmax_element(low + i, low + i + n);
    const int first = std::max(block.first, *begin / LANES), end = std::min(*most, block.shared * LANES);
    const uint16_t* tiles[TILES];
    int count = 0;
    for (int t = first; t * LANES < end; t++, count++) {
        uint16_t* copy = (uint16_t*)own.values + (size_t)count * LANES * dim;
        tiles[count] = (const uint16_t*)c.values_at(block.places[t], head, (T*)copy);
        const char* soon = after_values(c, block, t, head);
        for (int line = 0; line < dim / 2; line++) prefetch_to_l2(soon + line * 64);
        if (end - t * LANES < LANES) tiles[count] = cut_values(tiles[count], end - t * LANES, dim, copy);
        // some query has masses of 0 here, and 0 times what it does not see might be no number
        if ((*least < (t + 1) * LANES || *latest > t * LANES) && n > 1 && !all_finite(tiles[count], dim)) {
            for (int j = i; j < i + n; j++) weigh_shared_tiles(c, block, j, 1, low, seen, own, mass, out);
            return;
        }
    }
    weigh_in_tiles(tiles, count, dim, mass[i] + first * LANES, out[i], padded(dim, LANES), false);
}

// The values on the path of a row, whose queries are i .. i + ratio - 1.
template <class T>
void weigh_apart_tiles(const Chunk<T>& c, const KeyBlock& block, int i, const int* low, Scratch& own,
                       const uint16_t* const* mass, float* const* out) {
    const int dim = c.kind().head_dim, width = padded(dim, LANES), first = std::max(block.shared, low[i] / LANES);
    const uint16_t* tiles[TILES];
    int count = 0;
    for (int t = first; t < block.tiles; t++, count++) {
        uint16_t* copy = (uint16_t*)own.values + (size_t)count * LANES * dim;
        Places places;
        c.find(c.row(i), block.from + t * LANES, places);
        if (!places.count) break;
        tiles[count] = (const uint16_t*)c.values_at(places, i / c.each(), (T*)copy);
        if (places.count < LANES) tiles[count] = cut_values(tiles[count], places.count, dim, copy);
    }
    float* sums = own.value_scales;  // the neighbours' stay
    for (int j = i; j < i + c.ratio() && count; j += AMX_ROWS) {
        const size_t some = (size_t)std::min(i + c.ratio() - j, AMX_ROWS) * width;
        std::copy_n(out[j], some, sums);
        weigh_in_tiles(tiles, count, dim, mass[j] + first * LANES, sums, width, true);
        std::copy_n(sums, some, out[j]);
    }
}

// The values of a block, weighted.
template <class T>
void weigh_tiles(const Chunk<T>& c, const KeyBlock& block, const int* low, const int* seen, Scratch& own,
                 const uint16_t* const* mass, float* const* out) {
    for (int i = 0; i < c.queries(); i++) {  // masses of what only others see
        uint16_t* masses = (uint16_t*)mass[i];
        const int begin = seen[i] ? low[i] : block.tiles * LANES, end = padded(seen[i], LANES);
        std::fill(masses + block.first * LANES, masses + std::max(begin, block.first * LANES), 0);
        std::fill(masses + std::max(end, block.first * LANES), masses + block.tiles * LANES, 0);
    }
    for (int last = c.each(), i = 0; i < c.queries(); last += c.each())
        for (; i < last; i += std::min(last - i, AMX_ROWS))
            weigh_shared_tiles(c, block, i, std::min(last - i, AMX_ROWS), low, seen, own, mass, out);
    for (int i = 0; i < c.queries() && block.shared < block.tiles; i += c.ratio())
        weigh_apart_tiles(c, block, i, low, own, mass, out);
}
#endif

// One key block for all queries: most[q], total[q] and the weighted values out[q][width]; a query
// that sees none of the keys gets a total of 0.
template <class T>
void run_block(const Chunk<T>& c, int64_t from, int64_t to, Scratch& own, float* most, float* total,
               float* out) {
    const int width = padded(c.kind().head_dim, LANES);
    KeyBlock block;
    find_block(c, from, to, block);
    score_block(c, block, own);
    int low[MOST_QUERIES], seen[MOST_QUERIES];  // where the first tile that a query sees begins; the end
    const typename Inner<T>::Mass* mass[MOST_QUERIES];
    float *sums[MOST_QUERIES], steps[MOST_QUERIES];
    for (int i = 0; i < c.queries(); i++) {
        seen[i] = (int)std::clamp<int64_t>(c.sees(c.row(i)) - from, 0, block.count);
        const int first = (int)std::clamp<int64_t>(c.first(c.row(i)) - from, 0, seen[i]);
        low[i] = first / LANES * LANES;
        total[i] = 0.0f;
        sums[i] = out + (size_t)i * width;
        if (const float cap = c.shape().score_cap; cap > 0.0f)
            soft_cap(own.scores + (size_t)i * SCORE_STRIDE, first, seen[i], cap);
        mass[i] = Inner<T>::soften(own, i, first, seen[i], most[i], total[i], sums[i], width, steps[i]);
    }
#if defined(FASTSLOW_AMX)
    if constexpr (sizeof(T) == 2)
        if (c.in_tiles()) return weigh_tiles(c, block, low, seen, own, (const uint16_t* const*)mass, sums);
#endif
    weigh_shared(c, block, low, seen, own, mass, sums);
    weigh_apart(c, block, low, own, mass, sums);
    for (int i = 0; i < c.queries(); i++) Inner<T>::settle(sums[i], width, steps[i]);
}

}  // namespace fastslow
