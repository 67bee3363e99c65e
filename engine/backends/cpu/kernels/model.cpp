#include "model.h"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <utility>

#include "attention.h"
#include "running.h"
#include "step.h"
#include "streams.h"

namespace fastslow {

constexpr size_t FILE_ROWS = 4 << 20;  // bytes of an embedding in a file that are kept, by all threads

Model::Model(const Shape& shape, const Layer* given)
    : shape(shape), layers(given, given + shape.layers) {
    hidden_pad = padded(shape.hidden, TILE);
    token_pad = padded(shape.token_width, TILE);
    neurons_pad = std::max(padded(shape.neurons, TILE / 2), token_pad);
    expert_pad = padded(std::max(shape.expert_neurons, 1), TILE / 2);
    const Recurrence& r = shape.recurrence;
    const int recurrent = r.key_heads ? r.value_heads * r.value_dim : r.channels;
    pair_width = shape.reads_hidden() ? padded(2 * shape.width_in(), TILE) : 0;
    level_width = shape.fuse.outputs ? padded(shape.fuse.inputs, TILE) : 0;
    auto most = [&](const Matrix& m) {
        if (m.outputs) ready_bytes = std::max(ready_bytes, spread(format_of(m.format).row_bytes(m.inputs)));
    };
    ready_bytes = 64;
    ready_expert_bytes = 64;
    for (Layer& l : layers) {
        if (l.index_keys.outputs) index_most = l.index_most;
        l.index_most = index_most ? l.index_most : 0;  // nothing is chosen before it
        if (l.router.outputs && !l.down.outputs) shares = false;
        kind_of.push_back(0);
        if (l.attends()) {
            const auto known =
                std::find_if(kinds.begin(), kinds.end(), [&](int k) { return same_attention(layers[k], l); });
            kind_of.back() = (int)(known - kinds.begin());
            if (known == kinds.end()) kinds.push_back((int)kind_of.size() - 1);
            query_width = std::max(query_width, l.heads * l.head_dim);
            head_width = std::max(head_width, padded(l.head_dim, TILE));
            if (l.mixer == LATENT) {
                head_width = std::max(head_width, padded(l.absorb.inputs + l.head_dim, TILE));
                head_width = std::max(head_width, padded(l.out.inputs / l.heads, TILE));
                head_width = std::max(head_width, padded(l.index_dim, TILE));
                expanded_width = std::max(expanded_width, padded(l.out.inputs, TILE));
                index_width = std::max(index_width, l.index_queries.outputs);
            }
        }
        const int seen = l.attends() ? l.heads * l.value_dim : recurrent;
        attention_width = std::max(attention_width, padded(seen, TILE));
        for (const Matrix& m : l.qkv) most(m);
        for (const Matrix* m : {&l.out, &l.gate_up, &l.down, &l.expert_gate_up, &l.mixed, &l.z, &l.token_projection,
                                &l.token_gate, &l.token_up, &l.absorb, &l.expand, &l.index_queries, &l.index_keys})
            most(*m);
        gates |= l.qkv[3].outputs > 0;
        if (l.mixer == ATTENTION && l.head_norms == WHOLE)
            whole_width = std::max(whole_width, padded(l.heads * l.head_dim, TILE) + padded(l.kv_heads * l.head_dim, TILE));
        if (l.mixer != ATTENTION) mixed_width = std::max(mixed_width, Columns(l, r).width);
        if (!l.router.outputs) continue;
        const Matrix& down = l.expert_down;
        ready_expert_bytes =
            std::max(ready_expert_bytes, spread(format_of(down.format).row_bytes(down.inputs)));
    }
    own_layers = shape.layers;
    while (own_layers > 1 && layers[own_layers - 1].mixer == ATTENTION && !layers[own_layers - 1].qkv[1].outputs)
        own_layers--;
    for (const Matrix* m : {&shape.head, &shape.screen, &shape.fuse, &shape.entry}) most(*m);
    ready_router_bytes = spread(format_of(F32).row_bytes(shape.hidden));
    for (int i = 0; i < Crew::TASKS; i++) steps.emplace_back(new Step(*this));
}

// Whether attention is cut in the same way.
bool Model::same_attention(const Layer& a, const Layer& b) {
    return a.mixer == b.mixer && a.window == b.window && a.heads == b.heads && a.kv_heads == b.kv_heads && a.head_dim == b.head_dim &&
           a.index_most == b.index_most;
}

Model::~Model() {
    Crew& crew = Crew::get();
    std::lock_guard<std::mutex> guard(crew.lock);
    crew.settle();
    release();
}

// Row strides that are an odd number of lines: rows at a power of two would share a cache set.
size_t Model::spread(size_t bytes) { return (bytes / 64 | 1) * 64; }

void* Model::take(size_t bytes) {
    void* memory = std::aligned_alloc(64, std::max<size_t>(to64(bytes), 64));
    if (!memory) throw std::bad_alloc();
    std::fill((char*)memory, (char*)memory + to64(bytes), 0);
    owned_.push_back(memory);
    return memory;
}

void Model::release() {
    for (void* memory : owned_) std::free(memory);
    owned_.clear();
}

void Model::make_room(int rows, int threads, size_t partial_floats) {
    if (rows <= space.rows && threads <= (int)scratch.size() && partial_floats <= space.partial_floats)
        return;
    Crew::get().settle();
    rows = std::max(rows, space.rows);
    threads = std::max(threads, (int)scratch.size());
    // a text grows by a block at a time: room for it doubles
    partial_floats = partial_floats > space.partial_floats ? 2 * partial_floats : space.partial_floats;
    release();
    space = Workspace{};  // should memory run out below, nothing points to what is gone
    scratch.clear();
    const size_t entries = (size_t)rows * std::max(shape.chosen, 1);
    auto floats = [&](size_t count) { return (float*)take(count * sizeof(float)); };
    auto bytes = [&](size_t count) { return (uint8_t*)take(count); };
    space.x = floats((size_t)rows * hidden_pad);
    space.streams = floats(shape.merge_mix ? (size_t)rows * STREAMS * hidden_pad : 0);
    space.mixes = floats(shape.merge_mix ? (size_t)rows * mix_floats(hidden_pad) : 0);
    auto some = [&](auto has) { return std::any_of(layers.begin(), layers.end(), has); };
    const bool moved =
        some([](const Layer& l) { return l.attention_post_norm || l.mlp_post_norm || l.token_norm; });
    space.moved = floats(moved ? (size_t)rows * hidden_pad : 0);
    const bool beside = some([](const Layer& l) { return l.expert_post_norm != nullptr; });
    space.beside = floats(beside ? (size_t)rows * hidden_pad : 0);
    space.tokens = floats((size_t)rows * layers.size() * token_pad);
    space.q = floats((size_t)rows * query_width);
    space.gates = floats(gates ? (size_t)rows * query_width : 0);
    space.mixed = floats((size_t)rows * mixed_width);
    space.whole = floats((size_t)rows * whole_width);
    space.expanded = floats((size_t)rows * expanded_width);
    space.index_queries = floats((size_t)rows * index_width);
    space.seen = floats((size_t)rows * attention_width);
    space.h = floats((size_t)rows * neurons_pad);
    space.expert_h = floats(entries * expert_pad);
    space.router_logits = floats((size_t)rows * padded(std::max(shape.router_outputs(), 1), TILE));
    space.partial = floats(partial_floats);
    space.pair = floats((size_t)rows * pair_width);
    space.level = floats((size_t)rows * level_width);
    const bool wide = rows > NARROW;
    constexpr int OVER = 16;  // rows that fill a tile, see Format::tile_rows
    space.ready = bytes(wide ? (rows + PASS_ROWS) * ready_bytes : 0);  // passes read whole ones
    space.ready_router = bytes(wide ? rows * ready_router_bytes : 0);
    space.ready_expert = bytes(wide ? (entries + OVER) * ready_expert_bytes : 0);
    if (!shape.embedding && (int)file_rows.size() < threads) {
        const size_t size = shape.embedding_format == F32 ? sizeof(float) : sizeof(uint16_t);
        const size_t bytes = (size_t)shape.width_in() * size;
        file_rows.clear();
        for (int i = 0; i < threads; i++)
            file_rows.emplace_back((int)std::max<size_t>(FILE_ROWS / threads / bytes, 1), bytes);
    }
    const size_t width = head_width;
    std::vector<Scratch> own_memory(threads);
    for (Scratch& own : own_memory) {
        own.ready = bytes(NARROW * ready_bytes);
        own.ready_router = bytes(NARROW * ready_router_bytes);
        own.ready_expert = bytes(((size_t)NARROW * std::max(shape.chosen, 1) + OVER) * ready_expert_bytes);
        own.gathered = bytes(MOST_ROWS * ready_bytes);
        own.row = floats(hidden_pad);
        own.head = floats(MOST_ROWS * width);
        own.acc = floats((size_t)rows * TILE * TILES_AT_ONCE);
        own.scores = floats(QUERY_ROOM * SCORE_STRIDE);
        own.value_scales = floats(MOST_QUERIES * KEY_BLOCK);
        own.masses = bytes((size_t)MOST_QUERIES * KEY_BLOCK * sizeof(float));
        own.queries = floats(QUERY_ROOM * (width + 16));
        own.keys = floats(16 * width);
        own.values = floats(KEY_BLOCK * width);
        own.copies = floats(index_most ? KEY_BLOCK * (width + 8) : 0);
        own.outs = floats(2 * QUERY_ROOM * width);
        own.unit = floats(shape.recurrence.kernel ? unit_floats(shape.recurrence) : 0);
    }
    scratch = std::move(own_memory);
    space.rows = rows;
    space.partial_floats = partial_floats;
}

}  // namespace fastslow
