// A sum of bytes that shows damage and edits, at the speed of memory. It is no defence against somebody who
// looks for other bytes with the same sum.

#include <algorithm>
#include <cstring>

#include "simd.h"

using namespace fastslow;

typedef uint64_t Words __attribute__((vector_size(64)));

constexpr int CHAINS = 4;  // which hide how long a product takes
constexpr int64_t STRIDE = CHAINS * sizeof(Words);
constexpr uint64_t PRIME = 0x9e3779b185ebca87, OTHER = 0xc2b2ae3d27d4eb4f;  // of xxHash: Collet

// Every word that was taken in changes the result, also its highest bit if that changes in two words.
template <class T> static T mix(T sum, T word, uint64_t prime) {
    sum ^= word;
    return (sum << 29 | sum >> 35) * prime;
}

#pragma GCC visibility push(default)
extern "C" {

// `sum`: two words, 0 at first; then those of the bytes before.
void fs_checksum(const uint8_t* from, int64_t bytes, uint64_t* sum) {
    Words sums[CHAINS] = {};
    for (int64_t at = 0; at < bytes; at += STRIDE) {
        Words words[CHAINS] = {};
        std::memcpy(words, from + at, (size_t)std::min(bytes - at, STRIDE));
        UNROLL for (int i = 0; i < CHAINS; i++) sums[i] = mix(sums[i], words[i], PRIME);
    }
    for (const Words& words : sums)
        for (int lane = 0; lane < 8; lane++) {
            sum[0] = mix(sum[0], words[lane], PRIME);
            sum[1] = mix(sum[1], words[lane], OTHER);
        }
    sum[0] = mix(sum[0], (uint64_t)bytes, PRIME);
    sum[1] = mix(sum[1], (uint64_t)bytes, OTHER);
}

}  // extern "C"
