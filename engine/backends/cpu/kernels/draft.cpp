#include "draft.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "amx.h"
#include "check.h"
#include "forest.h"
#include "simd.h"

namespace fastslow {

namespace {

constexpr int64_t MOST_FRESH = 512;  // rows taken in at once
constexpr int64_t ZERO = 0;          // the one layer that gives features

size_t block_bytes(const Layer& l) { return sizeof(uint16_t) * LANES * l.kv_heads * l.head_dim; }

}  // namespace

const uint8_t* OwnWords::packed() const {
    return (const uint8_t*)(((uintptr_t)tiles.data() + 63) / 64 * 64);
}

DraftHead::DraftHead(const Shape& shape, const Layer& layer, const int64_t* ids, int64_t window,
                     const double* frequencies)
    : model_(shape, &layer), ids_(ids), window_(window),
      frequencies_(frequencies, frequencies + layer.head_dim / 2), pool_(block_bytes(layer)) {}

int64_t DraftHead::open(int64_t position) {
    check(limits::POSITION, position);
    auto fresh = std::make_unique<DraftContext>();
    fresh->position = position;
    contexts_.emplace(next_, std::move(fresh));
    return next_++;
}

int64_t DraftHead::fork(int64_t context, int64_t drop) {
    if (drop < 0) refuse("drop=%lld must be at least 0", (long long)drop);
    const int64_t fresh = open(at(context).position - drop);
    try {
        at(fresh).slots.copy(pool_, at(context).slots, drop);
    } catch (...) {
        close(fresh);
        throw;
    }
    return fresh;
}

void DraftHead::close(int64_t context) {
    at(context).slots.release(pool_);
    contexts_.erase(context);
}

void DraftHead::skip(int64_t context, int64_t position) {
    check(limits::POSITION, position);
    at(context).position = position;
}

DraftContext& DraftHead::at(int64_t context) {
    const auto found = contexts_.find(context);
    if (found == contexts_.end()) refuse("text %lld is not open", (long long)context);
    return *found->second;
}

void DraftHead::check_tokens(const int64_t* tokens, int64_t count) const {
    check_all("token", tokens, count, 0, model_.shape.embedding_rows);
}

std::vector<DraftContext*> DraftHead::members(const DraftArgs& args) {
    check_different("text", args.contexts, args.requests);
    check_all("number of rows", args.fresh, args.requests, 0, (int64_t)args.rows + 1);
    check_tokens(args.after, args.rows);
    int64_t rows = 0;
    std::vector<DraftContext*> found;
    for (int b = 0; b < args.requests; b++) {
        found.push_back(&at(args.contexts[b]));
        check(limits::POSITION, found.back()->position + args.fresh[b]);
        rows += args.fresh[b];
    }
    if (rows != args.rows) refuse("texts take %lld rows, and %d are given", (long long)rows, args.rows);
    return found;
}

void DraftHead::add_words(int64_t context, const int64_t* ids, const float* rows, int count) {
    DraftContext& c = at(context);
    OwnWords& own = c.own;
    check_tokens(ids, count);
    check(limits::VOCABULARY, (int64_t)own.ids.size() + count + 1);
    const Format& format = format_of(shape().head.format);
    if (!format.pack) refuse("no word can be added to a head in format %d", shape().head.format);
    const int hidden = shape().hidden;
    const size_t bytes = format.tile_bytes(hidden);
    for (int i = 0; i < count; i++) {
        const size_t number = own.ids.size();
        own.ids.push_back(ids[i]);
        if (number % TILE == 0) {
            own.last.clear();
            std::vector<uint8_t> larger((number / TILE + 1) * bytes + 64);
            const uint8_t* from = own.packed();
            std::swap(own.tiles, larger);
            if (number) std::memcpy((void*)own.packed(), from, number / TILE * bytes);
        }
        own.last.insert(own.last.end(), rows + (size_t)i * hidden, rows + (size_t)(i + 1) * hidden);
        if (i + 1 < count && own.ids.size() % TILE) continue;
        const float* some[TILE] = {};
        for (size_t k = 0; k * hidden < own.last.size(); k++) some[k] = own.last.data() + k * hidden;
        format.pack((uint8_t*)own.packed() + number / TILE * bytes, some, hidden);
    }
}

void DraftHead::turn(int64_t position) {
    const int half = model_.layers[0].head_dim / 2;
    for (int64_t p = (int64_t)cos_.size() / half; p <= position; p++)
        for (int k = 0; k < half; k++) {
            const double angle = (double)p * frequencies_[k];
            cos_.push_back((float)std::cos(angle));
            sin_.push_back((float)std::sin(angle));
        }
}

void DraftHead::run(const std::vector<Row>& rows, const std::vector<int64_t>& wanted, int threads,
                    const float* features, const float* hidden) {
    const Shape& s = shape();
    const size_t count = rows.size(), half = model_.layers[0].head_dim / 2, outputs = wanted.size();
    std::vector<int64_t> tokens, slots, starts, lengths, tails, tail_starts, tail_lengths;
    std::vector<const int64_t*> contexts;
    std::vector<uint8_t> chains, only_best(outputs, 0);
    std::vector<float> cos, sin;
    for (size_t i = 0; i < count; i++) {
        const Row& row = rows[i];
        if (i == 0 || row.context != rows[i - 1].context) {
            starts.push_back(i);
            int64_t length;
            contexts.push_back(row.context->slots.recent(std::max<int64_t>(window_ - row.seen, 0), length));
            lengths.push_back(length);
            chains.push_back(1);
        } else if (row.seen != rows[i - 1].seen + 1 || row.tail != rows[i - 1].tail) {
            chains.back() = 0;  // not one row after the other
        }
        tokens.push_back(row.token);
        slots.push_back(row.slot);
        tail_starts.push_back(tails.size());
        tail_lengths.push_back(row.seen);
        tails.insert(tails.end(), row.tail, row.tail + row.seen);
        turn(row.position);
        cos.insert(cos.end(), cos_.begin() + row.position * half, cos_.begin() + (row.position + 1) * half);
        sin.insert(sin.end(), sin_.begin() + row.position * half, sin_.begin() + (row.position + 1) * half);
    }
    starts.push_back(count);
    hidden_.resize(outputs * s.hidden);
    logits_.resize(outputs * s.vocabulary);
    std::vector<int64_t> best(outputs), groups(count, 0);
    void *keys = pool_.keys(), *values = pool_.values();
    StepArgs a{};
    a.kv_format = BF16;
    a.slot_count = pool_.slots();
    a.tail_count = (int64_t)tails.size();
    a.threads = threads;
    a.rows = (int32_t)count;
    a.requests = (int32_t)contexts.size();
    a.outputs = (int32_t)outputs;
    a.seen_rows = (int32_t)outputs;
    a.features = 1;
    a.tokens = tokens.data();
    a.slots = slots.data();
    a.groups = groups.data();
    a.cos = cos.data();
    a.sin = sin.data();
    a.starts = starts.data();
    a.contexts = contexts.data();
    a.context_lengths = lengths.data();
    a.chains = chains.data();
    a.tails = tails.data();
    a.tail_starts = tail_starts.data();
    a.tail_lengths = tail_lengths.data();
    a.keys = &keys;
    a.values = &values;
    a.wanted = a.seen = wanted.data();
    a.only_best = only_best.data();
    a.best = best.data();
    a.logits = logits_.data();
    a.feature_layers = &ZERO;
    a.feature_values = hidden_.data();
    a.fused = features;
    a.hidden = hidden;
    run_step(model_, a);
    add_own_logits(rows, wanted);
}

void DraftHead::add_own_logits(const std::vector<Row>& rows, const std::vector<int64_t>& wanted) {
    const Shape& s = shape();
    const Format& format = format_of(s.head.format);
    const size_t bytes = format.tile_bytes(s.hidden);
    own_.resize(wanted.size());
    uint8_t* ready = model_.scratch[0].ready;  // the crew's other threads have their own
    for (size_t m = 0; m < wanted.size(); m++) {
        const OwnWords& own = rows[wanted[m]].context->own;
        const int tiles = ((int)own.ids.size() + TILE - 1) / TILE;
        own_[m].resize((size_t)tiles * TILE);
        if (!tiles) continue;
        const Step& last = *model_.steps[(model_.turn + Crew::TASKS - 1) % Crew::TASKS];
        const UseTiles use;
        format.prepare(ready, last.normed(0, (int)wanted[m], s.norm), s.hidden);
        alignas(64) float out[TILE];
        for (int t = 0; t < tiles; t++) {
            const uint8_t* const row = ready;
            const uint8_t* const tile = own.packed() + t * bytes;
            format.product[0](tile, tile + AHEAD, s.hidden, &row, out);
            std::copy_n(out, TILE, own_[m].data() + (size_t)t * TILE);
        }
        own_[m].resize(own.ids.size());
    }
}

template <class Pass>
void DraftHead::in_parts(const DraftArgs& args, const std::vector<DraftContext*>& contexts, Pass pass) {
    const size_t width = shape().fuse.inputs;
    std::vector<Row> rows;
    std::vector<DraftContext*> members;
    int64_t done = 0;  // rows of the call that were run
    auto flush = [&] {
        if (rows.empty()) return;
        pass(rows, members, args.features + done * width);
        done += rows.size();
        rows.clear();
        members.clear();
    };
    const int64_t* after = args.after;
    for (size_t b = 0; b < contexts.size(); b++) {
        DraftContext& c = *contexts[b];
        for (int64_t left = args.fresh[b]; left > 0;) {
            if ((int64_t)rows.size() >= MOST_FRESH || (!members.empty() && members.back() == &c)) flush();
            const int64_t count = std::min(left, MOST_FRESH - (int64_t)rows.size());
            const int64_t* slots = c.slots.behind(pool_, count);
            for (int64_t i = 0; i < count; i++)
                rows.push_back({&c, *after++, c.position + i, slots[i], slots, i + 1});
            members.push_back(&c);
            left -= count;
        }
    }
    flush();
}

void DraftHead::commit(DraftContext& c, const std::vector<Row>& rows) {
    const int64_t own = std::count_if(rows.begin(), rows.end(),
                                      [&](const Row& row) { return row.context == &c; });
    c.slots.commit(pool_, own, window_);
    c.position += own;
}

void DraftHead::take_in(const DraftArgs& args, const std::vector<DraftContext*>& contexts) {
    in_parts(args, contexts, [&](const std::vector<Row>& rows, const std::vector<DraftContext*>& members,
                                 const float* features) {
        std::vector<int64_t> wanted;  // the last row of each
        for (size_t i = 0; i < rows.size(); i++)
            if (i + 1 == rows.size() || rows[i + 1].context != rows[i].context) wanted.push_back(i);
        run(rows, wanted, args.threads, features, nullptr);
        const size_t hidden = shape().hidden, vocabulary = shape().vocabulary;
        for (size_t m = 0; m < members.size(); m++) {
            DraftContext& c = *members[m];
            commit(c, rows);
            c.hidden.assign(hidden_.begin() + m * hidden, hidden_.begin() + (m + 1) * hidden);
            c.logits.assign(logits_.begin() + m * vocabulary, logits_.begin() + (m + 1) * vocabulary);
            c.logits.insert(c.logits.end(), own_[m].begin(), own_[m].end());
        }
    });
}

void DraftHead::read(const DraftArgs& args) {
    const std::vector<DraftContext*> contexts = members(args);
    in_parts(args, contexts, [&](std::vector<Row>& rows, const std::vector<DraftContext*>& members,
                                 const float* features) {
        for (Row& row : rows) {  // no row attends, so a row need not list those before it
            row.tail = &row.slot;
            row.seen = 1;
        }
        run(rows, {}, args.threads, features, nullptr);
        for (DraftContext* c : members) {
            commit(*c, rows);
            c->chain.clear();
            c->hidden.clear();
            c->logits.clear();
        }
    });
}

void DraftHead::draft(const DraftArgs& args) {
    check(limits::WIDTH, args.width);
    check(limits::NODES, args.depth);
    check(limits::NODES, args.most);
    check_all("number of nodes", args.nodes, args.requests, 0, (int64_t)args.most + 1);
    const std::vector<DraftContext*> contexts = members(args);
    for (DraftContext* c : contexts) c->chain.clear();
    take_in(args, contexts);
    Forest forest(*this, args, contexts);
    forest.grow();
}

void DraftHead::advance(const int64_t* contexts, const int64_t* tokens, int count, int threads) {
    std::vector<Row> rows;
    std::vector<int64_t> wanted;
    std::vector<float> states;
    check_different("text", contexts, count);
    check_tokens(tokens, count);
    for (int b = 0; b < count; b++) {
        const DraftContext& c = at(contexts[b]);
        check(limits::POSITION, c.position + (int64_t)c.chain.size());
        if ((c.chain.empty() ? c.hidden : c.chain_hidden).empty())
            refuse("text %lld has no row to draft from", (long long)contexts[b]);
    }
    for (int b = 0; b < count; b++) {
        DraftContext& c = at(contexts[b]);
        const int64_t place = c.chain.size();
        const std::vector<float>& state = place ? c.chain_hidden : c.hidden;
        states.insert(states.end(), state.begin(), state.end());
        c.chain.push_back(c.slots.behind(pool_, place + 1)[place]);
        rows.push_back({&c, tokens[b], c.position + place, c.chain.back(), c.chain.data(), place + 1});
        wanted.push_back(b);
    }
    run(rows, wanted, threads, nullptr, states.data());
    const size_t hidden = shape().hidden, vocabulary = shape().vocabulary;
    for (int b = 0; b < count; b++) {
        DraftContext& c = *rows[b].context;
        c.chain_hidden.assign(hidden_.begin() + b * hidden, hidden_.begin() + (b + 1) * hidden);
        c.chain_logits.assign(logits_.begin() + b * vocabulary, logits_.begin() + (b + 1) * vocabulary);
        c.chain_logits.insert(c.chain_logits.end(), own_[b].begin(), own_[b].end());
    }
}

const float* DraftHead::logits(int64_t context, int64_t* size) {
    const DraftContext& c = at(context);
    const std::vector<float>& found = c.chain.empty() ? c.logits : c.chain_logits;
    *size = (int64_t)found.size();
    return found.data();
}

}  // namespace fastslow
