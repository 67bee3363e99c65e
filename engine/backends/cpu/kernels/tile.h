// Keys and values as they are kept: tiles of sixteen slots, in the order in which attention reads them.
//
// The elements of a tile come in words of 32 bits, one float, two bfloat16 or four bytes, so that a
// vector of words times one scalar is a step of a score for sixteen keys, or of a sum of values.
// Bytes are int8 + 128; behind a tile of keys lie the scales of its keys and then of its values, so
// that scoring a tile also fetches the scales of its values.
// Mirror of engine/backends/cpu/kv.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace fastslow {

constexpr int LANES = 16;  // slots of a tile

template <class T> struct Tile {
    static constexpr int PACK = 4 / sizeof(T);  // elements of a word

    static constexpr bool SCALED = sizeof(T) == 1;

    // Elements of a tile.
    static size_t key_size(int dim) { return (size_t)LANES * dim + (SCALED ? 2 * LANES * sizeof(float) : 0); }
    static size_t value_size(int dim) { return (size_t)LANES * dim; }

    // Which tile of a layer is that of a slot and KV head: [slots / LANES][kv_heads].
    static size_t number(int64_t slot, int kv_head, int kv_heads) {
        return (size_t)(slot / LANES) * kv_heads + kv_head;
    }
    static size_t key_start(int64_t slot, int kv_head, int kv_heads, int dim) {
        return number(slot, kv_head, kv_heads) * key_size(dim);
    }
    static size_t value_start(int64_t slot, int kv_head, int kv_heads, int dim) {
        return number(slot, kv_head, kv_heads) * value_size(dim);
    }

    // Where in a tile of keys the scale of a lane's key, or value, lies.
    static size_t scale(int lane, int dim, bool value) {
        return (size_t)LANES * dim + ((value ? LANES : 0) + lane) * sizeof(float);
    }

    // Keys are [D / PACK][LANES] words: a word is neighbours of one key.
    static size_t key(int lane, int d) { return ((size_t)(d / PACK) * LANES + lane) * PACK + d % PACK; }

    // Values are [LANES / PACK][D] words: a word is one place of neighbouring slots.
    static size_t value(int lane, int d, int dim) {
        return ((size_t)(lane / PACK) * dim + d) * PACK + lane % PACK;
    }
};

// The slots of sixteen places of a text, of which the first `count` are real.
struct Places {
    int64_t slots[LANES];
    int count;
    bool one_tile;  // they are the lanes of one tile, in order

    void look() {
        one_tile = slots[0] % LANES == 0;
        for (int j = 1; j < count; j++) one_tile &= slots[j] == slots[0] + j;
    }
};

// A tile of keys made of lanes of others. Lanes past the count hold anything.
template <class T>
void gather_keys(const T* layer, const Places& places, int kv_head, int kv_heads, int dim, T* to) {
    const int64_t most = places.slots[0] / LANES * LANES;  // a text's places mostly share a tile
    std::memcpy(to, layer + Tile<T>::key_start(most, kv_head, kv_heads, dim),
                sizeof(T) * Tile<T>::key_size(dim));
    for (int j = 0; j < places.count; j++) {
        const int64_t slot = places.slots[j];
        if (slot == most + j) continue;
        const T* from = layer + Tile<T>::key_start(slot, kv_head, kv_heads, dim);
        const int lane = (int)(slot % LANES);
        for (int d = 0; d < dim; d += Tile<T>::PACK)
            std::memcpy(to + Tile<T>::key(j, d), from + Tile<T>::key(lane, d), 4);
        if constexpr (Tile<T>::SCALED)
            for (bool value : {false, true})
                std::memcpy(to + Tile<T>::scale(j, dim, value), from + Tile<T>::scale(lane, dim, value), 4);
    }
}

// The same of values.
template <class T>
void gather_values(const T* layer, const Places& places, int kv_head, int kv_heads, int dim, T* to) {
    const int64_t most = places.slots[0] / LANES * LANES;
    std::memcpy(to, layer + Tile<T>::value_start(most, kv_head, kv_heads, dim), sizeof(T) * LANES * dim);
    for (int j = 0; j < places.count; j++) {
        const int64_t slot = places.slots[j];
        if (slot == most + j) continue;
        const T* from = layer + Tile<T>::value_start(slot, kv_head, kv_heads, dim);
        for (int d = 0; d < dim; d++)
            to[Tile<T>::value(j, d, dim)] = from[Tile<T>::value(slot % LANES, d, dim)];
    }
}

// The same of keys, whose numbers are values, too; of the only KV head.
template <class T>
void values_of_keys(const T* layer, const Places& places, int dim, T* to) {
    constexpr int PACK = Tile<T>::PACK;
    T* rows[LANES];
    const T* keys[LANES];
    for (int j = 0; j < LANES; j++) {
        const int64_t slot = places.slots[j < places.count ? j : 0];
        keys[j] = layer + Tile<T>::key_start(slot, 0, 1, dim) + slot % LANES * PACK;
        rows[j] = to + (size_t)(j / PACK) * dim * PACK + j % PACK;
    }
    for (int d = 0; d < dim; d += PACK)
        for (int j = 0; j < LANES; j++)
            for (int p = 0; p < PACK; p++) rows[j][(d + p) * PACK] = keys[j][d * LANES + p];
}

}  // namespace fastslow
