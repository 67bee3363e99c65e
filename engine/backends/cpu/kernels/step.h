// One forward of a model: the rows of a step through all layers.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "attention.h"
#include "check.h"
#include "head.h"
#include "model.h"
#include "moge.h"
#include "running.h"
#include "simd.h"
#include "threads.h"
#include "tile.h"

namespace fastslow {

extern "C" {
// Mirror of the ctypes structure in library.py. All pointers stay valid during the call.
struct StepArgs {
    int32_t threads, rows, requests, outputs, seen_rows, features, kv_format;
    int64_t slot_count, tail_count;  // slots of a layer; numbers in `tails`
    const int64_t* tokens;     // [T]
    const int64_t* slots;      // [T] where each row's keys and values go
    const int64_t* groups;     // [T] routed groups to run, -1 = all
    const float *cos, *sin;    // [T, angles]
    const float* query_scale;  // [T] of rows' queries; may be null
    const int64_t* starts;     // [B + 1] request b owns rows starts[b] : starts[b + 1]
    const int64_t* const* contexts;  // [B] slots of the committed tokens
    const int64_t* context_lengths;  // [B]
    const uint8_t* chains;           // [B] every row is the child of the one before
    const int64_t* tails;            // slots of the step's own rows, path by path
    const int64_t *tail_starts, *tail_lengths;  // [T] a row sees its context and then its tail
    void* const* keys;               // [layers] each in tiles of kv_format, see tile.h
    void* const* values;
    const int64_t* wanted;         // [M] rows whose logits are wanted
    const uint8_t* only_best;      // [M] rows whose best token is enough
    int64_t* best;                 // [M] these tokens; -1 where a logit is not finite, and elsewhere but under a cap
    float* logits;                 // [M, V] of the other rows; those of `only_best` stay as they are
    const int64_t* seen;           // [S = seen_rows] rows whose features are wanted
    const int64_t* feature_layers; // [features]
    float* feature_values;         // [S, features, H]
    // of a draft head: one of them, the other is null; of an MTP layer the second
    const float* fused;   // [T, features of the target]
    const float* hidden;  // [T, H] what the head put out before, or the state before each token
    // Of a model with running states:
    int64_t places, spots;          // of requests' states, and with those of snapshots
    const RunningRows* running;     // [B]
    const int64_t* parents;         // [T] row of its request that each follows, -1 = none
    const int64_t* before;          // ring rows between states and the step
    const int64_t* ring_rows;       // [T] where rows are kept that are not folded in
    const Passed* passed;
    int64_t before_size, passed_size;
    const RunningMemory* states;    // [layers]
    const float* token_rows;        // [T, token_inputs] rows of the table of per-layer embeddings
    // Of layers with windows that have pages of their own: of each page of 16 slots the page there, one of window_count
    const int64_t* windows;         // [slot_count / LANES]; null: all layers have the same slots
    int64_t window_count;
};
}

// Run a step; the caller holds the crew's lock. Throws what `guarded` knows.
void run_step(Model& model, const StepArgs& args);

struct Step : Task {
    explicit Step(Model& model) : model(model) {}

    // Copy the arguments; the caller holds the crew's lock. Layers from .. to - 1 run; whether their end is read.
    void prepare(const StepArgs& given, int from, int to, bool reads);
    void work(int thread) override;

    bool narrow() const { return args.rows <= NARROW; }

    // Rows made ready for a product: `count` of them, row i from the floats at `source(i)`.
    // Few rows are prepared by every thread for itself, many by all threads at once, in a phase.
    // Null where the phase that would read them, of `chunks` chunks, is over.
    template <class Source>
    const uint8_t* ready(int thread, int& phase, int chunks, int count, bool few, const Format& format,
                         int inputs, size_t stride, uint8_t* shared, uint8_t* own, Source source) {
        if (few) {
            if (!phases.open(phase, chunks)) return nullptr;
            for (int i = 0; i < count; i++) format.prepare(own + i * stride, source(i), inputs);
            return own;
        }
        constexpr int BATCH = 8;
        phases.run(phase++, thread, (count + BATCH - 1) / BATCH, [&](int c) {
            for (int i = c * BATCH; i < count && i < (c + 1) * BATCH; i++)
                format.prepare(shared + i * stride, source(i), inputs);
        });
        return shared;
    }

    // RMS norm of row i of x, into the thread's own scratch; without a norm the row itself. Zhang and Sennrich, arXiv
    // 1910.07467.
    const float* normed(int thread, int i, const float* weight) const;

    // A row's per-layer embedding in a layer.
    float* token_input(int i, int layer) const {
        return model.space.tokens + ((size_t)i * model.layers.size() + layer) * model.token_pad;
    }

    // The embedding of row i's token, into x.
    void embed_row(int thread, int i, float* x);

    // Of what a sublayer adds to x.
    vf added_scale(int layer) const {
        const float scale = model.layers[layer].residual_scale;
        return splat(scale == 0.0f ? 1.0f : scale);
    }

    // What a sublayer adds to: x; or, where its sum is normed before x gets it, zeros.
    float* sums(const float* post_norm) const { return post_norm ? model.space.moved : model.space.x; }

    // A tile of columns of row i of such sums; and ask for it, before the product that is added to it.
    float* columns(float* sums, int i, int tile) const {
        return sums + (size_t)i * model.hidden_pad + tile * TILE;
    }
    void ask_columns(float* sums, int i, int tile) const {
        for (int j = 0; j < TILE; j += 16) prefetch_to_write(columns(sums, i, tile) + j);
    }

    // x += the layer's scale * a matrix times the rows, a tile of columns at a time, normed where there is a norm for
    // it; the layer's features are noted where it `ends`. layer: -1 = none.
    void add_to_x(int thread, int& phase, const Matrix& m, const uint8_t* rows, size_t stride, int layer, bool ends,
                  const float* post_norm, Stream next);

    // The rows' sums, normed, go to x, and are zeros again; nothing is done without a norm. Where the layer `ends`, all
    // of x is multiplied by its scale.
    void add_normed(int thread, int& phase, int layer, bool ends, const float* post_norm, Stream next);

    // Books the time since the last call on this part.
    void mark(int thread, Part part) {
        if (!thread && model.timer.on.load(std::memory_order_relaxed)) model.timer.note(part);
    }

    // What the layer after this one, or the head, reads first.
    Stream next_stream(int layer) const;
    Stream head_stream() const;

    // Copy columns first .. last - 1 of x to the features, if they want this layer: of one row, or of all (-1).
    void note_features(int layer, int row, int first, int last);
    void note_features(int layer, int tile) {
        note_features(layer, -1, tile * TILE, std::min((tile + 1) * TILE, (int)model.shape.hidden));
    }

    // Where a slot lies in a layer.
    int64_t slot(int layer, int64_t slot) const {
        if (!args.windows || !model.layers[layer].window) return slot;
        return args.windows[slot / LANES] * LANES + slot % LANES;
    }

    const AttentionPlan& plan(int layer) const { return plans[model.kind_of[layer]]; }

    // The keys that an indexer chose for a row, by their places in its text, in their order.
    uint32_t* chosen(int row) const {
        return (uint32_t*)(model.space.partial + chosen_at) + (size_t)row * model.index_most;
    }

    Model& model;
    StepArgs args{};
    Phases phases;
    std::vector<AttentionPlan> plans;  // of attention, for each of the model's kinds
    HeadPlan head_plan;
    std::vector<int64_t> groups;                   // late threads read these, so they are copies
    std::vector<std::unique_ptr<Choice>> choices;  // of each layer: late threads read these too
    std::vector<bool> merges;                      // whether streams are merged behind a layer: late threads read these, too
    bool routed = false;                           // some row runs routed experts
    int first = 0, last = 0;                       // layers first .. last - 1 run
    bool is_read = true;                           // what the last of them gives
    std::size_t partial_floats = 0;                // that its attention needs
    std::size_t chosen_at = 0;                     // of these, behind which choices of keys lie
    int64_t longest = 0;                           // keys that some row chooses from; 0: none does
    std::atomic<bool> unreadable{false};           // the file of the embedding

private:
    void layer(int thread, int n, int& phase);
    void attention(int thread, int n, int& phase);
    void project(int thread, int n, int& phase);
    void project(int thread, int n, int& phase, int first, int last);
    void close_attention(int thread, int n, int& phase);
    void dense(int thread, int n, int& phase);
    void embed(int thread, int& phase);
    void embed_layers(int thread, int& phase);
    void add_token_input(int thread, int n, int& phase);
};

static inline int tiles_of(const Matrix& m) { return (m.outputs + TILE - 1) / TILE; }
static inline size_t tile_bytes(const Matrix& m) { return format_of(m.format).tile_bytes(m.inputs); }
static inline Stream stream_of(const Matrix& m) { return {m.tiles, tiles_of(m) * tile_bytes(m)}; }
// Whether two matrices multiply rows that are made ready in the same way.
static inline bool same_rows(const Matrix& a, const Matrix& b) {
    return format_of(a.format).prepare == format_of(b.format).prepare;
}

// How many tiles make a chunk: enough chunks for the threads, none so small that taking it costs.
int tiles_per_chunk(int tiles, int threads);

// Rows are multiplied in blocks: of even sizes, or of whole tiles.
static inline int blocks_of(const Format& format, int count) { return (count + format.rows - 1) / format.rows; }
static inline int block_start(const Format& format, int count, int b) {
    if (format.tile_rows) return std::min(b * format.rows, count);
    return (int)((int64_t)count * b / blocks_of(format, count));
}

// Tiles in a row, and what is asked for while they are read: see Product.
struct Run {
    const uint8_t* tile;
    int count;
    size_t bytes;  // of a tile
    const uint8_t* soon;
};

// A run of tiles times rows at base + index * stride: done(tile of the run, first row, rows, out[rows][TILE]).
// room: for MOST_ROWS rows, where there is an index.
template <class Done>
void multiply_run(const Matrix& m, const Run& run, const uint8_t* base, size_t stride, const int* index,
                  uint8_t* room, int count, Done done) {
    const Format& format = format_of(m.format);
    alignas(64) float out[MOST_ROWS * TILE];
    const uint8_t* rows[MOST_ROWS];
    const bool gathers = index && format.tile_rows && count >= format.tile_rows;
    auto some = [&](int first, int last) {
        for (int i = first; i < last; i++) rows[i - first] = base + (index ? index[i] : i) * stride;
        for (int i = 0; i < last - first && gathers; i++) {
            std::memcpy(room + i * stride, rows[i], format.row_bytes(m.inputs));
            rows[i] = room + i * stride;
        }
        const Product product = format.product[last - first - 1];
        for (int t = 0; t < run.count; t++) {
            product(run.tile + t * run.bytes, run.soon + t * run.bytes, m.inputs, rows, out);
            done(t, first, last - first, out);
        }
    };
    if (!count) return;
    if (count <= format.rows) return some(0, count);  // most often: saves the divisions
    const int blocks = blocks_of(format, count);
    for (int b = 0; b < blocks; b++) some(block_start(format, count, b), block_start(format, count, b + 1));
}

// Whether so many rows are multiplied in passes, which read whole ones.
static inline bool in_passes(const Format& format, int count) { return format.pass && count > PASS_ROWS; }

// A run of tiles times the rows, in passes: done(first row, rows, out[rows][tiles][TILE]), which runs while the next
// pass does. out: room for two passes.
template <class Done>
void multiply_in_passes(const Matrix& m, const uint8_t* tile, int tiles, const uint8_t* base, size_t stride,
                        int count, float* out, Done done) {
    const Format& format = format_of(m.format);
    const size_t bytes = format.tile_bytes(m.inputs);
    const int width = tiles * TILE, turns = tiles * std::max(m.inputs / PASS_INPUTS, 1);
    const int each = (PASS_ROWS + turns - 1) / turns, calls = (count + PASS_ROWS - 1) / PASS_ROWS * turns;
    const int lines = std::max((int)(tiles * bytes / 64 + calls / 2) / calls, 1);
    int ready = 0, at = 0;
    float* late = out;
    auto some = [&] {
        const int rows = std::min(each, ready - at);
        if (rows) done(at, rows, late);
        at += rows;
        late += rows * width;
    };
    const Beside beside{[](void* some_of) { (*(decltype(some)*)some_of)(); }, &some};
    const uint8_t* soon = tile + tiles * bytes;
    for (int first = 0; first < count; first += PASS_ROWS) {
        float* to = out + first / PASS_ROWS % 2 * (PASS_ROWS * width);
        for (int t = 0; t < tiles; t++, soon += (size_t)lines * turns / tiles * 64)
            format.pass(tile + t * bytes, soon, lines, m.inputs, base + first * stride, stride, to + t * TILE, width,
                        beside);
        while (at < ready) some();
        ready = std::min(first + PASS_ROWS, count);
        late = to;
    }
    while (at < ready) some();
}

// One tile of many: done(first row, rows, out[rows][TILE]).
template <class Done>
void multiply(const Matrix& m, const uint8_t* tile, const uint8_t* base, size_t stride, int count, Done done) {
    if (in_passes(format_of(m.format), count)) {
        alignas(64) float out[2 * PASS_ROWS * TILE];
        return multiply_in_passes(m, tile, 1, base, stride, count, out, done);
    }
    multiply_run(m, Run{tile, 1, 0, tile + AHEAD}, base, stride, nullptr, nullptr, count,
                 [&](int, int first, int got, float* out) { done(first, got, out); });
}

// Queries, keys and values, which mostly lie in a row; or what a recurrent layer reads first.
static inline Stream qkv_stream(const Layer& l) {
    if (l.mixer != ATTENTION) return stream_of(l.mixed.outputs ? l.mixed : l.z);
    const Stream first = stream_of(l.qkv[0]), last = stream_of(l.qkv[l.qkv[2].outputs ? 2 : 1]);
    const size_t all = first.bytes + stream_of(l.qkv[1]).bytes + last.bytes;
    const bool in_a_row = last.from > first.from && (size_t)(last.from - first.from) + last.bytes <= 2 * all;
    return in_a_row ? Stream{first.from, (size_t)(last.from - first.from) + last.bytes} : first;
}

// What RMS norm multiplies `count` numbers by; behind them x has zeros up to `width`.
float norm_scale(const float* x, int count, int width, float eps);

// RMS norm of `count` numbers, to `to`, which may be x; behind them x has zeros up to `width`. weight: null is ones.
// Zhang and Sennrich, arXiv 1910.07467.
void norm(const float* x, int count, int width, const float* weight, float eps, float* to);

// 16 neurons of each row, `stride` apart, from a tile of gates and ups: silu(gate) * up, or gelu(gate) * up by tanh
// (Shazeer, arXiv 2002.05202); or gate * sigmoid(alpha * gate) * (up + 1) with gate at most the limit, up within +- it.
void activate(const Shape& s, const float* gate_up, int rows, float* h, size_t stride);

// Add a bias to a tile of outputs of some rows; null adds nothing.
void add_bias(const float* bias, int tile, int rows, float* out);

}  // namespace fastslow
