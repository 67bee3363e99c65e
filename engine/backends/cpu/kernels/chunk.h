// What one chunk of attention works on, and where its keys and values lie.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "attention.h"
#include "step.h"
#include "tile.h"

namespace fastslow {

// The query heads of one or all KV heads, for a group of rows. Queries are numbered by KV head, then
// row, then head.
template <class T> struct Chunk {
    const Step& step;
    const AttentionPlan& plan;
    const RowGroup& group;
    int layer, kv_head, kv_heads;
    T* copies = nullptr;  // where a row's chosen keys are copied to, a block of them: they lie anywhere

    // The group whose chunks come next; the last one's are its own.
    const RowGroup& following() const {
        return &group == &plan.groups.back() ? group : *(&group + 1);
    }

    const Shape& shape() const { return step.model.shape; }
    const Layer& kind() const { return step.model.layers[layer]; }
    int ratio() const { return kind().heads / kind().kv_heads; }
    int each() const { return group.count * ratio(); }  // queries of a KV head
    int queries() const { return each() * kv_heads; }
    bool chain() const { return step.args.chains[group.request]; }
    int64_t context() const { return step.args.context_lengths[group.request]; }
    int64_t length(int row) const { return context() + step.args.tail_lengths[row]; }
    int64_t sees(int row) const { return plan.seen(length(row)); }
    int64_t first(int row) const { return plan.first(sees(row)); }
    int row(int query) const { return group.first + query % each() / ratio(); }
    int head(int query) const { return (kv_head + query / each()) * ratio() + query % ratio(); }

    // Whether scores and sums of values are those of matrix tiles: always, or never, in a layer.
    bool in_tiles() const {
#if defined(FASTSLOW_AMX)
        return sizeof(T) == 2 && kind().head_dim % LANES == 0;
#else
        return false;
#endif
    }

    const float* q(int query) const {
        return step.model.space.q + ((size_t)row(query) * kind().heads + head(query)) * kind().head_dim;
    }

    // place: among those that the row sees.
    int64_t slot(int row, int64_t place) const {
        const StepArgs& a = step.args;
        if (sees(row) < length(row)) place = step.chosen(row)[place];
        return step.slot(layer, place < context() ? a.contexts[group.request][place]
                                                  : a.tails[a.tail_starts[row] + place - context()]);
    }

    // Where places from .. from + LANES - 1 of a row lie; past the row's end none is real.
    void find(int row, int64_t from, Places& places) const {
        const int64_t end = sees(row) < length(row) ? 0 : context();
        places.count = (int)std::clamp<int64_t>(sees(row) - from, 0, LANES);
        if (from + LANES <= end) {
            std::copy_n(step.args.contexts[group.request] + from, LANES, places.slots);
            if (step.args.windows)
                for (int64_t& place : places.slots) place = step.slot(layer, place);
        } else
            for (int k = 0; k < std::max(places.count, 1); k++)
                places.slots[k] = slot(row, std::min(from + k, sees(row) - 1));
        places.look();
    }

    // Copy a tile of the block, which then lies there.
    void copy(int tile, Places& places) const {
        const int dim = kind().head_dim;
        gather_keys((const T*)step.args.keys[layer], places, 0, 1, dim, copies + tile * Tile<T>::key_size(dim));
        for (int j = 0; j < LANES; j++) places.slots[j] = tile * LANES + j;
        places.one_tile = true;
    }

    const T* keys() const { return copies ? copies : (const T*)step.args.keys[layer]; }
    const T* values() const { return (const T*)step.args.values[layer]; }
    bool latent() const { return kind().mixer == LATENT; }  // values lie in keys
    int kept(int head) const { return latent() ? 0 : kv_head + head; }
    const T* key_tile(int64_t slot, int head) const {
        return keys() + Tile<T>::key_start(slot, kept(head), kind().kept_heads(), kind().head_dim);
    }
    const T* value_tile(int64_t slot, int head) const {
        if (latent()) return key_tile(slot, head);
        return values() + Tile<T>::value_start(slot, kv_head + head, kind().kv_heads, kind().head_dim);
    }
    const T* keys_at(const Places& places, int head, Scratch& own) const {
        if (places.one_tile) return key_tile(places.slots[0], head);
        gather_keys(keys(), places, kept(head), kind().kept_heads(), kind().head_dim, (T*)own.keys);
        return (const T*)own.keys;
    }
    const T* values_at(const Places& places, int head, T* copy) const {
        if (latent()) {
            values_of_keys(keys(), places, kind().head_dim, copy);
            return copy;
        }
        if (places.one_tile) return value_tile(places.slots[0], head);
        gather_values(values(), places, kv_head + head, kind().kv_heads, kind().head_dim, copy);
        return copy;
    }
};

}  // namespace fastslow
