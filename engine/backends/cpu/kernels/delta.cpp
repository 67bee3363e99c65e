// The gated delta net. Yang et al., arXiv 2412.06464.
//
// S is a head's state [key dim][value dim]; k, q, v, g and b are a row's key, query, value, gate and beta:
//     read = k S, seen = q S, d = (v - g read) b, the row gives g seen + (q k) d, and S becomes g S + k d.
// A column of S needs no other, so a head lies in blocks of 32 columns, [value dim / 32][key dim][32], the last one
// narrower where it must be: a block stays in the first cache for all rows of the step, and is read and written once.
#include <algorithm>
#include <cmath>

#include "running.h"
#include "simd.h"
#include "step.h"

namespace fastslow {

namespace {

constexpr int UNIT_ROWS = FINAL_ROWS + RING;
constexpr int ROWS_AHEAD = 4;
constexpr float TINY = 1e-6f;  // beside sums of squares of queries and keys

// Compilers read from memory twice what is multiplied twice, unless they believe that it may change.
static inline void hold(vf& x) {
#if defined(__x86_64__)
    asm("" : "+v"(x));
#elif defined(FASTSLOW_NEON)
    asm("" : "+w"(x));
#endif
}

// read = k S and seen = q S, of a block.
void look(const float* s, int dim, const float* k, const float* q, float* read, float* seen) {
    for (int v = 0; v < TILE; v += 2 * W) {
        vf reads[2][2] = {}, sees[2][2] = {};
        auto take = [&](int i, int part) {
            UNROLL for (int u = 0; u < 2; u++) {
                vf x = load<vf>(s + i * TILE + v + u * W);
                hold(x);
                reads[part][u] = fma(splat(k[i]), x, reads[part][u]);
                sees[part][u] = fma(splat(q[i]), x, sees[part][u]);
            }
        };
        int i = 0;
        for (; i + 2 <= dim; i += 2) {
            take(i, 0);
            take(i + 1, 1);
        }
        if (i < dim) take(i, 0);
        UNROLL for (int u = 0; u < 2; u++) {
            store(read + v + u * W, reads[0][u] + reads[1][u]);
            store(seen + v + u * W, sees[0][u] + sees[1][u]);
        }
    }
}

// to = g S + k d, of a block; `to` may be S.
void fold(const float* s, float* to, int dim, float g, const float* k, const float* d) {
    for (int v = 0; v < TILE; v += 2 * W) {
        const vf gate = splat(g), d0 = load<vf>(d + v), d1 = load<vf>(d + v + W);
        for (int i = 0; i < dim; i++) {
            const float* from = s + i * TILE + v;
            const vf key = splat(k[i]);
            store(to + i * TILE + v, fma(key, d0, load<vf>(from) * gate));
            store(to + i * TILE + v + W, fma(key, d1, load<vf>(from + W) * gate));
        }
    }
}

float dot(const float* a, const float* b, int count) {
    vf sums[TURNS] = {};
    for (int first = 0; first < count; first += SPAN)
        UNROLL for (int t = 0; t < TURNS; t++) {
            const int i = first + t * W;
            sums[t] = fma(load_some(a + i, count - i), load_some(b + i, count - i), sums[t]);
        }
    return sum(sums);
}

float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

// One key head of one request, and the value heads that read it.
struct Unit {
    Unit(Step& step, int thread, int layer, int request, int key_head);
    void run();

    // A row of those that are ready.
    float* query(int i) const { return rows_ + (size_t)i * width_; }
    float* key(int i) const { return query(i) + keys_; }
    float* value(int i, int j) const { return key(i) + keys_ + (size_t)j * values_; }
    float* numbers(int i) const { return value(i, ratio_); }  // query times key, and of each head its gate and beta
    float gate(int i, int j) const { return numbers(i)[1 + 2 * j]; }
    float beta(int i, int j) const { return numbers(i)[2 + 2 * j]; }

private:
    int head(int j) const { return r_.tiled ? j * r_.key_heads + key_head_ : key_head_ * ratio_ + j; }
    float* block(int64_t place, int j, int column) const {
        const size_t size = (size_t)r_.key_dim * r_.value_dim;
        return line_.memory.heads + ((size_t)place * r_.value_heads + head(j)) * size + (size_t)r_.key_dim * column;
    }
    float* slot(int n) const { return blocks_ + (size_t)n * r_.key_dim * TILE; }
    float* seen(int row, int j) const {
        return model_.space.seen + (size_t)(line_.first + row) * model_.attention_width + (size_t)head(j) * r_.value_dim;
    }
    void ask(int row, int column, int count) const;
    void convolve(int row, int channel, int count, float* to) const;
    void make_ready(int i, int row);
    void plan(int at, int count);
    void columns(int j, int column, int at, int count);
    void pass(const float* s, int j, int column, int folded) const;
    void close(int row, int j) const;
    void write_ring() const;

    const Model& model_;
    const Layer& l_;
    const Recurrence& r_;
    const int key_head_, ratio_, keys_, values_, width_;
    const Columns at_;
    const Line line_;
    float *rows_, *blocks_;
    int last_[UNIT_ROWS], slot_[UNIT_ROWS];  // the last row that follows one, -1: none; where the state after it is
};

int unit_width(const Recurrence& r) {
    const int ratio = r.value_heads / r.key_heads;
    return 2 * padded(r.key_dim, TILE) + ratio * padded(r.value_dim, TILE) + padded(1 + 2 * ratio, TILE);
}

Unit::Unit(Step& step, int thread, int layer, int request, int key_head)
    : model_(step.model),
      l_(step.model.layers[layer]),
      r_(step.model.shape.recurrence),
      key_head_(key_head),
      ratio_(r_.value_heads / r_.key_heads),
      keys_(padded(r_.key_dim, TILE)),
      values_(padded(r_.value_dim, TILE)),
      width_(unit_width(r_)),
      at_(l_, r_),
      line_(step, layer, request, step.model.scratch[thread].unit) {
    rows_ = line_.window + padded((r_.kernel - 1) * r_.channels, TILE);
    blocks_ = rows_ + (size_t)UNIT_ROWS * width_;
}

// Ask for some numbers of a row that comes soon: rows lie far from each other.
void Unit::ask(int row, int column, int count) const {
    if (row >= line_.count) return;
    const float* from = model_.space.mixed + (size_t)(line_.first + row) * model_.mixed_width + column;
    for (int c = 0; c < count; c += 16) prefetch(from + c);
}

// silu of the convolution, zeros behind it.
void Unit::convolve(int row, int channel, int count, float* to) const {
    line_.convolve(row, channel, count, to);
    std::fill(to + count, to + padded(count, TILE), 0.0f);
    for (int c = 0; c < count; c += W) {
        const vf x = load<vf>(to + c);
        store(to + c, x * sigmoid(x));
    }
}

void Unit::make_ready(int i, int row) {
    const int dim = r_.key_dim, keys = r_.key_heads * dim;
    auto scale = [&](float* x, float factor) {
        const vf by = splat(factor / std::sqrt(dot(x, x, dim) + TINY));
        for (int c = 0; c < dim; c += W) store(x + c, load<vf>(x + c) * by);
    };
    convolve(row, key_head_ * dim, dim, query(i));
    scale(query(i), 1.0f / std::sqrt((float)dim));
    convolve(row, keys + key_head_ * dim, dim, key(i));
    scale(key(i), 1.0f);
    numbers(i)[0] = dot(query(i), key(i), dim);
    const float* rates = model_.space.mixed + (size_t)(line_.first + row) * model_.mixed_width + at_.rates;
    for (int j = 0; j < ratio_; j++) {
        const int n = head(j);
        convolve(row, 2 * keys + n * r_.value_dim, r_.value_dim, value(i, j));
        const float rate = l_.decay[n] * softplus(rates[n] + l_.dt_bias[n]);
        numbers(i)[1 + 2 * j] = exp(splat(rate))[0];
        numbers(i)[2 + 2 * j] = sigmoid(splat(rates[r_.value_heads + n]))[0];
    }
}

// Where the state after each drafted row lies that another one follows. The last that follows takes its place.
void Unit::plan(int at, int count) {
    std::fill_n(last_, count, -1);
    for (int i = 0; i < count; i++)
        if (const int above = line_.parent(at + i) - at; above >= 0) last_[above] = i;
    int taken = 1;  // the first is for rows between the state and the step
    for (int i = 0; i < count; i++) {
        if (at + i < line_.work.stable || last_[i] < 0) continue;
        const int above = line_.parent(at + i) - at;
        const bool takes = above >= 0 && at + above >= line_.work.stable && last_[above] == i;
        slot_[i] = takes ? slot_[above] : taken++;
    }
}

// Copy the block to the snapshots that are made once so many rows were folded in.
void Unit::pass(const float* s, int j, int column, int folded) const {
    const int width = std::min(TILE, r_.value_dim - column);
    for (int n = 0; n < line_.work.passed_count; n++) {
        const Passed& passed = line_.step.args.passed[line_.work.passed + n];
        if (passed.folded != folded) continue;
        float* to = block(passed.place, j, column);
        for (int i = 0; i < r_.key_dim; i++) std::copy_n(s + i * TILE, width, to + i * width);
    }
}

// `count` rows from `at` on through 32 columns of a head.
void Unit::columns(int j, int column, int at, int count) {
    const int dim = r_.key_dim, width = std::min(TILE, r_.value_dim - column), n = head(j);
    const RunningRows& work = line_.work;
    float* memory = block(work.place, j, column);
    float* s = width == TILE ? memory : slot(RING + 1);
    if (s != memory)
        for (int i = 0; i < dim; i++) {
            std::fill_n(s + i * TILE, TILE, 0.0f);
            std::copy_n(memory + i * width, width, s + i * TILE);
        }
    const float* base = s;  // what drafted rows begin with
    alignas(64) float d[TILE], read[TILE], sees[TILE];
    for (int b = 0; b < work.before_count && !at; b++) {
        const size_t ring = line_.ring_before(b);
        std::fill_n(d, TILE, 0.0f);
        std::copy_n(line_.memory.deltas + (ring * r_.value_heads + n) * r_.value_dim + column, width, d);
        float* to = work.folds ? s : slot(0);
        fold(base, to, dim, line_.memory.gates[ring * r_.value_heads + n],
             line_.memory.keys + (ring * r_.key_heads + key_head_) * dim, d);
        base = to;
        if (work.folds) pass(s, j, column, b + 1);
    }
    for (int i = 0; i < count; i++) {
        const int row = at + i, above = line_.parent(row) - at;
        const bool stable = row < work.stable, hangs = above >= 0 && at + above >= work.stable;
        const float* from = hangs ? slot(slot_[above]) : base;
        look(from, dim, key(i), query(i), read, sees);
        const float g = gate(i, j), b = beta(i, j), qk = numbers(i)[0];
        const float* v = value(i, j) + column;
        for (int c = 0; c < TILE; c += W) {
            const vf delta = (load<vf>(v + c) - load<vf>(read + c) * g) * b;
            store(d + c, delta);
            store(sees + c, fma(splat(qk), delta, load<vf>(sees + c) * g));
        }
        std::copy_n(sees, width, seen(row, j) + column);
        if (stable) {
            fold(s, s, dim, g, key(i), d);
            pass(s, j, column, (int)work.folds + row + 1);
            continue;
        }
        std::copy_n(d, width, line_.memory.deltas + (line_.ring_at(row) * r_.value_heads + n) * r_.value_dim + column);
        if (last_[i] >= 0) fold(from, slot(slot_[i]), dim, g, key(i), d);
    }
    if (s != memory && line_.folded())
        for (int i = 0; i < dim; i++) std::copy_n(s + i * TILE, width, memory + i * width);
}

// The norm of what a head gives, and its gate.
void Unit::close(int row, int j) const {
    const int dim = r_.value_dim;
    float* x = seen(row, j);
    const float* z = model_.space.mixed + (size_t)(line_.first + row) * model_.mixed_width + at_.gates + head(j) * dim;
    const vf scale = splat(1.0f / std::sqrt(dot(x, x, dim) / (float)dim + r_.eps));
    for (int c = 0; c < dim; c += W) {
        const vf gate = load_some(z + c, dim - c);
        const vf normed = load_some(x + c, dim - c) * scale * load_some(l_.value_norm + c, dim - c);
        store_some(x + c, normed * (gate * sigmoid(gate)), dim - c);
    }
}

void Unit::run() {
    const int dim = r_.key_dim, keys = r_.key_heads * dim, stable = (int)line_.work.stable;
    auto each = [&](auto some) {  // of the unit's channels
        some(key_head_ * dim, dim);
        some(keys + key_head_ * dim, dim);
        for (int j = 0; j < ratio_; j++) some(2 * keys + head(j) * r_.value_dim, r_.value_dim);
    };
    each([&](int channel, int count) { line_.read_window(channel, count); });
    for (int at = 0, count; at < line_.count; at += count) {
        count = stable - at > FINAL_ROWS ? FINAL_ROWS : line_.count - at;
        for (int i = 0; i < count; i++) {
            each([&](int channel, int size) { ask(at + i + ROWS_AHEAD, channel, size); });
            make_ready(i, at + i);
        }
        plan(at, count);
        for (int j = 0; j < ratio_; j++) {
            for (int column = 0; column < r_.value_dim; column += TILE) columns(j, column, at, count);
            for (int i = 0; i < count; i++) {
                ask(at + i + ROWS_AHEAD, at_.gates + head(j) * r_.value_dim, r_.value_dim);
                close(at + i, j);
            }
        }
        if (at + count < line_.count) continue;
        for (int i = std::max(stable - at, 0); i < count; i++) {  // kept until they are folded in
            const size_t ring = line_.ring_at(at + i);
            std::copy_n(key(i), dim, line_.memory.keys + (ring * r_.key_heads + key_head_) * dim);
            for (int j = 0; j < ratio_; j++) line_.memory.gates[ring * r_.value_heads + head(j)] = gate(i, j);
        }
    }
    each([&](int channel, int count) { line_.write_windows(channel, count); });
    each([&](int channel, int count) { line_.write_ring(channel, count); });
}

}  // namespace

size_t unit_floats(const Recurrence& r) {
    const size_t window = padded((r.kernel - 1) * r.channels, TILE);
    if (!r.key_heads) return window + (size_t)RING * CONV_CHANNELS;
    return window + (size_t)UNIT_ROWS * unit_width(r) + (size_t)(RING + 2) * r.key_dim * TILE;
}

void run_delta(Step& step, int thread, int layer, int request, int key_head) {
    Unit(step, thread, layer, request, key_head).run();
}

}  // namespace fastslow
