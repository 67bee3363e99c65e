// A model as the kernels see it: pointers into packed weights, sizes, and the memory of a step.
//
// Letters: T rows, H hidden, D head size, F neurons, E experts, G groups, V vocabulary.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "format.h"
#include "threads.h"

namespace fastslow {

constexpr int NARROW = 16;  // up to so many rows every thread prepares them all for itself

// Mirrors of the ctypes structures in library.py; `tiles` and biases lie in the packed file.
extern "C" {
struct Matrix {
    const uint8_t* tiles;
    const float* bias;  // in the order of the packed outputs, padded to whole tiles; may be null
    int32_t format, inputs, outputs, unused;
};

// What lets rows see each other.
enum MixerKind { ATTENTION, DELTA, SHORT_CONV, LATENT };

// Which norms queries and keys have: of each head before or after it is turned, or of all of a row together before.
enum HeadNorms { BEFORE_ROPE, AFTER_ROPE, WHOLE };

struct Layer {
    const float *attention_norm, *mlp_norm;  // of what a sublayer reads; may be null
    const float *attention_post_norm, *mlp_post_norm;  // of what a sublayer adds; may be null
    const float *query_norm, *key_norm;  // [D] of every head, or of all [heads * D] together; may be null
    const float* sink_logits;            // [heads] what a head's softmax has beside its keys; may be null
    const float *sink_keys, *sink_values;  // float32 tiles, see tile.h, that every row sees before its text
    int32_t window;     // keys that a row sees, itself the last; 0 = all
    int32_t rope_at;    // where a row's angles begin that turn queries and keys; -1: they are not turned
    int32_t mixer, head_norms;  // a MixerKind, a HeadNorms; the next but `out` are those of attention
    int32_t heads, kv_heads, head_dim, value_dim;
    float score_scale;     // of queries; 0 = 1 / sqrt(D)
    float residual_scale;  // of what sublayers add; 0 = 1
    // Queries, keys, values: a head at a time, each padded to whole tiles; gates, if there are any. Without values the
    // keys' matrix gives them, too, before norms and turns; without keys the layer reads those of another.
    Matrix qkv[4];
    Matrix out;      // bias included
    Matrix gate_up;  // tiles of 16 gates and their 16 ups; a routed layer's shared experts, if it has any
    Matrix down;
    Matrix router;               // float32; outputs 0 in a dense layer
    const float* router_scale;   // [E] what an expert's weight is multiplied by; may be null but in a router by groups
    const float* choice_bias;    // [E] what only the choice of experts sees; may be null
    Matrix expert_gate_up;  // of expert 0; the others, and their biases, lie behind it at a fixed distance
    Matrix expert_down;
    int64_t expert_bytes;
    // Of a recurrent mixer: what its convolution reads, and with a short one its gates; of a gated delta net the gates
    // of what it gives, and in float32 the rates of all value heads' gates and then betas.
    Matrix mixed, z, rates;
    // [kernel][channels]; of latent attention what is added to queries' latents, keys' and what heads saw, in a row
    const float* conv;
    const float *decay, *dt_bias;  // [value heads]
    const float* value_norm;       // [value dim]
    // Of routed experts beside a dense MLP, [H] each, or all null: what the router and the experts read is x normed by
    // these, not by the MLP's; and what the MLP and the experts add is normed before it is added up.
    const float *router_norm, *expert_norm, *dense_post_norm, *expert_post_norm;
    const float* layer_scale;  // [1] what all of x is multiplied by in the end; may be null
    // Per-layer embeddings p: last, x += normed (up * (gate turned * p)). Without outputs there are none.
    const float* token_norm;
    Matrix token_projection, token_gate, token_up;
    int32_t token_at;       // where the layer's part of a row of the table begins
    int32_t values_normed;  // every head of values is normed, without a weight
    // Of latent attention: `mixed` makes queries' latents, which may be missing, `z` keys, and the queries' matrix heads
    // of those. Of each head, one behind the other: dims that are not turned -> latent, latent -> values.
    Matrix absorb, expand;
    float latent_eps;  // of the norms of both latents
    // Of an indexer, see indexer.h: it leaves a row so many keys at most, 0: all. A layer without `index_keys` takes what
    // the last one before it chose that has them. Queries are made of queries' latents, weights of heads by `rates`.
    int32_t index_most, index_heads, index_dim;
    float index_eps;
    Matrix index_queries, index_keys;
    const float *index_norm, *index_bias;  // [index_dim] of keys: an RMS norm, or with a bias a layer norm
    // Of streams, or null: what is read before each sublayer, by streams and pieces [MIXES][piece], of which the norm is a
    // factor, and behind it biases; and a norm of all of them after the layer, [STREAMS][H padded], which may be null.
    const float *attention_mix, *mlp_mix, *streams_norm;

    bool attends() const { return mixer == ATTENTION || mixer == LATENT; }
    bool recurs() const { return mixer == DELTA || mixer == SHORT_CONV; }
    bool keeps_state() const { return recurs() || conv; }
    // KV heads that are kept: those of latents divide the work alone.
    int kept_heads() const { return mixer == LATENT ? 1 : kv_heads; }
};

// How the routed experts of a row are chosen; see `Router` in engine/model/shape.py.
enum RouterKind { GROUPED, SOFTMAX, CHOSEN, SIGMOID };

// What gates are turned to; see `Activation` in engine/model/shape.py.
enum Activation { SILU, GELU_TANH, CLAMPED_SWIGLU };

// What recurrent layers share.
struct Recurrence {
    int32_t channels, kernel;  // of the convolution, and the tokens that it sees; 0: there are no such layers
    int32_t key_heads, value_heads, key_dim, value_dim;  // of a gated delta net; 0: a short convolution
    int32_t tiled;             // value head n reads key head n % key_heads; else some in a row read the same
    float eps;                 // of the norm of what value heads give
};

struct Shape {
    int32_t layers, hidden, neurons, vocabulary;
    int32_t experts, chosen, expert_neurons;  // chosen: a row's most, one of each group or the best of all
    int32_t router, router_normed;            // a RouterKind; weights are divided by their sum
    int32_t router_groups, kept_groups, group_best;  // see `Router`; 0 groups: all can be chosen
    int32_t activation;                       // an Activation
    float router_factor;                      // what the weights are multiplied by then
    float router_eps;                         // beside the sum that they are divided by
    float swiglu_alpha, swiglu_limit;         // see `activate`
    float embedding_scale;                    // what embeddings are multiplied by; 0 as 1
    float score_cap, logit_cap;               // x becomes cap * tanh(x / cap); 0: it does not
    int32_t sinks;                            // learned keys before every text
    float eps;
    int32_t shared_gate;                      // the router's last output gates the shared expert
    int32_t angles;                           // of a row, for all the ways in which layers turn heads
    int32_t token_width, token_inputs;        // of per-layer embeddings: numbers of a layer, and of a row of the table
    const float* token_projection_norm;       // [token_width]
    Recurrence recurrence;
    int32_t embedding_format;
    const void* embedding;  // [V, H] in float32 or bfloat16; or tiles in any format, which may be the head's
    int64_t embedding_at;   // where the first row begins in a file, if `embedding` is null
    int32_t embedding_file, embedding_rows, embedding_tiles;
    const float* norm;
    Matrix head;
    Matrix screen;              // the head in int8, or nothing
    const float* screen_norms;  // [2, V padded to tiles] norms of the head's rows, and of their errors
    // The entry of a draft head or an MTP layer, see entry.h; without both, a row begins with its token's embedding.
    Matrix fuse;   // features of a target's layers, side by side -> H; an MTP layer has none
    Matrix entry;  // embedding and hidden state -> H; without outputs, the layer's qkv reads both
    const float *embedding_norm, *hidden_norm;
    int32_t level;  // so many features are divided by their root mean square together; 0: none
    int32_t normed_residual;  // without `entry`: the layer adds to the normed hidden state
    int32_t normed_output;    // what the head put out before is normed when it comes in again
    int32_t hidden_first;     // in what `entry` reads
    int32_t entry_width;      // of an assistant's target: embedding and hidden state have it, and no norm; 0: H
    // Of the residual in streams, see streams.h; null: there is one.
    const float* merge_mix;   // what the head reads, the same with STREAMS for MIXES
    int32_t stream_rounds;
    float streams_eps, merge_eps;  // of the norms before sublayers and before the head

    int router_outputs() const { return experts + (shared_gate ? 1 : 0); }
    int width_in() const { return entry_width ? entry_width : hidden; }  // of embeddings
    bool reads_hidden() const { return fuse.outputs || entry.outputs; }
};
}

// Memory that the threads share during a step, for a number of rows.
struct Workspace {
    int rows = 0;
    float *x, *streams, *mixes, *moved, *beside, *tokens, *q, *gates, *seen, *h, *expert_h, *router_logits, *partial, *pair, *level, *mixed, *whole;
    float *expanded, *index_queries;
    uint8_t *ready, *ready_router, *ready_expert;
    size_t partial_floats = 0;
};

// Memory of one thread's own.
struct Scratch {
    uint8_t *ready, *ready_router, *ready_expert, *gathered;
    float *row, *head, *acc, *scores, *value_scales, *queries, *keys, *values, *copies, *outs, *unit;
    uint8_t* masses;
};

// A thread's own rows of an embedding that lies in a file: those of the newest tokens, each at one place.
// Reading one takes a hundredth of a step at most, and texts say most of their tokens again.
struct FileRows {
    FileRows(int rows, size_t row_bytes)
        : row_bytes(row_bytes), tokens(rows, -1), bytes(new uint8_t[rows * row_bytes]) {}

    // The row of a token, until the next call; null where the file, whose first row begins at `first`,
    // cannot be read.
    const void* find(int file, int64_t first, int64_t token);

    size_t row_bytes;
    std::vector<int64_t> tokens;       // at each place; -1 = none
    std::unique_ptr<uint8_t[]> bytes;  // takes no memory where nothing was read
};

// Where the time of steps goes, on thread 0; it runs only when asked to.
enum Part { EMBED, QKV, MIXING, OUT, GATE_UP, EXPERTS, DOWN, HEAD, PARTS };

struct PartTimer {
    std::atomic<bool> on{false};
    double seconds[PARTS] = {};
    std::chrono::steady_clock::time_point last;

    void start() { last = std::chrono::steady_clock::now(); }
    void note(Part part) {
        auto now = std::chrono::steady_clock::now();
        seconds[part] += std::chrono::duration<double>(now - last).count();
        last = now;
    }
};

struct Step;

struct Model {
    Model(const Shape& shape, const Layer* layers);
    ~Model();
    Model(const Model&) = delete;

    // Memory for a step; the caller holds the crew's lock.
    void make_room(int rows, int threads, size_t partial_floats);

    Shape shape;
    std::vector<Layer> layers;
    bool shares = true;         // every layer with routed experts has shared ones
    std::vector<int> kinds;     // of layers' attention, which differ in heads or windows: the first layer of each
    std::vector<int> kind_of;   // layer -> which of them
    int own_layers;             // the layers behind these have no keys of their own
    bool gates = false;         // some layer gates what its heads saw
    int token_pad = 0;          // of a row's per-layer embedding in a layer
    int expanded_width = 0;  // of the values of all heads with latents
    int index_width = 0;     // of the queries of all heads of an indexer
    int index_most = 0;      // keys that it leaves a row
    int whole_width = 0;  // of a row's queries, and behind them keys, that are normed together
    int hidden_pad, neurons_pad, expert_pad, pair_width, level_width, mixed_width = 0;
    int attention_width = 0, query_width = 0, head_width = 0;  // the widest: what heads see, queries, a head
    size_t ready_bytes, ready_expert_bytes, ready_router_bytes;  // of one row
    Workspace space;
    PartTimer timer;
    std::vector<Scratch> scratch;
    std::vector<FileRows> file_rows;  // of each thread, if the embedding lies in a file
    std::vector<std::unique_ptr<Step>> steps;
    unsigned turn = 0;

private:
    std::vector<void*> owned_;
    static size_t spread(size_t bytes);
    static bool same_attention(const Layer& a, const Layer& b);
    void* take(size_t bytes);
    void release();
};

}  // namespace fastslow
