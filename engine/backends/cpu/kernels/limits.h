// What the kernels take, least and most: arrays on stacks have room for it, and whole numbers of 32 bits
// hold what is made of it. This is the only list; library.py reads it from here.
#pragma once

#include <cstdint>

namespace fastslow {

struct Limit {
    const char* name;
    int64_t least, most;
};

namespace limits {

// Of a model or a draft head.
constexpr Limit LAYERS{"layers", 1, 1024};
constexpr Limit HIDDEN{"hidden", 1, 131072};
constexpr Limit HEADS{"heads", 1, 1024};
constexpr Limit KV_HEADS{"kv_heads", 1, 1024};
constexpr Limit RATIO{"heads_per_kv_head", 1, 64};  // queries that a chunk of attention has room for
constexpr Limit HEAD_DIM{"head_dim", 2, 1024};      // sums of int8 attention fit 32 bits up to this
constexpr Limit NEURONS{"neurons", 1, 1048576};
constexpr Limit VOCABULARY{"vocabulary", 1, 8388608};
constexpr Limit EXPERTS{"experts", 0, 16384};
constexpr Limit CHOSEN{"chosen", 0, 1024};
constexpr Limit SINKS{"sinks", 0, 65536};
constexpr Limit EXPERT_NEURONS{"expert_neurons", 0, 1048576};
constexpr Limit TOKEN_WIDTH{"token_width", 0, 65536};  // of a layer's part of a row of per-layer embeddings
constexpr Limit STREAMS{"streams", 4, 4};
constexpr Limit INDEX_HEADS{"index_heads", 1, 64};  // of an indexer: a row's scores are those of all at once
constexpr Limit KERNEL{"kernel", 2, 16};  // of a short convolution
constexpr Limit INPUTS{"inputs", 1, 1048576};  // of any matrix
constexpr Limit WINDOW{"window", 1, 16777216};  // rows that a draft head's attention sees

// Of a call.
constexpr Limit ROWS{"rows", 1, 65536};
constexpr Limit POSITION{"position", 0, 16777216};  // in a text with a draft head, which keeps a table
constexpr Limit WIDTH{"width", 1, 1024};            // of a drafted tree
constexpr Limit NODES{"nodes", 0, 65536};           // of a drafted tree, and its depth

}  // namespace limits

}  // namespace fastslow
