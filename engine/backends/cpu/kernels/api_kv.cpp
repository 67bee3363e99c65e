// Rows of keys and values moved to other slots, as after a tree of which one path was accepted.

#include <vector>

#include "check.h"
#include "tile.h"

using namespace fastslow;

namespace {

template <class T>
void move_rows(T* keys, T* values, const int64_t* src, const int64_t* dst, int count, int kv_heads, int dim,
               std::vector<T>& room) {
    room.resize((size_t)2 * count * dim);
    for (int head = 0; head < kv_heads; head++) {
        T* to = room.data();
        for (int i = 0; i < count; i++, to += 2 * dim) {
            const T* key = keys + Tile<T>::key_start(src[i], head, kv_heads, dim);
            const T* value = values + Tile<T>::value_start(src[i], head, kv_heads, dim);
            const int lane = src[i] % LANES;
            for (int d = 0; d < dim; d++) {
                to[d] = key[Tile<T>::key(lane, d)];
                to[dim + d] = value[Tile<T>::value(lane, d, dim)];
            }
        }
        const T* from = room.data();
        for (int i = 0; i < count; i++, from += 2 * dim) {
            T* key = keys + Tile<T>::key_start(dst[i], head, kv_heads, dim);
            T* value = values + Tile<T>::value_start(dst[i], head, kv_heads, dim);
            const int lane = dst[i] % LANES;
            for (int d = 0; d < dim; d++) {
                key[Tile<T>::key(lane, d)] = from[d];
                value[Tile<T>::value(lane, d, dim)] = from[dim + d];
            }
        }
    }
}

template <class T>
void move_layers(void* const* keys, void* const* values, int layers, const int64_t* src, const int64_t* dst,
                 int count, int kv_heads, int dim) {
    std::vector<T> room;
    for (int n = 0; n < layers; n++)
        move_rows((T*)keys[n], (T*)values[n], src, dst, count, kv_heads, dim, room);
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// All rows of a layer are read before any is written. `kv_float`: float32, else bfloat16. `slots`: of a
// layer.
int fs_move(void* const* keys, void* const* values, int layers, const int64_t* src, const int64_t* dst,
            int count, int64_t slots, int kv_heads, int dim, int kv_float) {
    return caught([&] {
        check(limits::KV_HEADS, kv_heads);
        check(limits::HEAD_DIM, dim);
        check_all("slot", src, count, 0, slots);
        check_all("slot", dst, count, 0, slots);
        if (kv_float)
            move_layers<float>(keys, values, layers, src, dst, count, kv_heads, dim);
        else
            move_layers<uint16_t>(keys, values, layers, src, dst, count, kv_heads, dim);
    });
}

}  // extern "C"
