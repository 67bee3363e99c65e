#include "streams.h"

#include <algorithm>
#include <cmath>

#include "simd.h"
#include "step.h"

namespace fastslow {

namespace {

int pieces(int width) { return (width + STREAM_PIECE - 1) / STREAM_PIECE; }

// Where a row's streams lie, what is known of them, and a part of each.
struct Streams {
    Streams(Step& step, int row)
        : width(step.model.hidden_pad),
          all(step.model.space.streams + (size_t)row * STREAMS * width),
          sums(step.model.space.mixes + (size_t)row * mix_floats(width)),
          taken(sums + (size_t)STREAMS * pieces(width) * MIX_SUMS) {}

    float* at(int stream, int column = 0) const { return all + (size_t)stream * width + column; }

    int width;
    float *all, *sums, *taken;
};

// Chunks of rows and pieces: work(row's streams, its number, first column, columns).
template <class Work> void each_piece(Step& step, int thread, int& phase, Stream next, Work work) {
    const int width = step.model.hidden_pad, parts = pieces(width);
    step.phases.run(phase++, thread, step.args.rows * parts, [&](int c) {
        const int row = c / parts, first = c % parts * STREAM_PIECE;
        work(Streams(step, row), row, first, std::min(STREAM_PIECE, width - first));
    }, next);
}

// Products of a row's piece with weights [outputs][count], STREAMS of them at a time.
void multiply_piece(const float* x, const float* weights, int count, int outputs, float* to) {
    for (int o = 0; o < outputs; o += STREAMS, weights += STREAMS * count) {
        vf sums[STREAMS][TURNS]{};
        for (int first = 0; first < count; first += SPAN)
            UNROLL for (int t = 0; t < TURNS; t++) {
                const int k = first + t * W;
                UNROLL for (int j = 0; j < STREAMS; j++)
                    sums[j][t] = fma(load<vf>(x + k), load<vf>(weights + j * count + k), sums[j][t]);
            }
        for (int j = 0; j < STREAMS; j++) to[o + j] = sum(sums[j]);
    }
}

// Of all rows, a stream's piece at a time, so that its weights are read once.
void multiply_streams(Step& step, int thread, const float* mix, int outputs, int& phase, Stream next) {
    const int width = step.model.hidden_pad, parts = pieces(width);
    step.phases.run(phase++, thread, STREAMS * parts, [&](int c) {
        const int stream = c / parts, first = c % parts * STREAM_PIECE, count = std::min(STREAM_PIECE, width - first);
        for (int row = 0; row < step.args.rows; row++) {
            const Streams own(step, row);
            const float* x = own.at(stream, first);
            float* sums = own.sums + (size_t)c * MIX_SUMS;
            multiply_piece(x, mix + ((size_t)stream * width + first) * outputs, count, outputs, sums);
            vf squares[TURNS]{};
            for (int k = 0; k < count; k += SPAN)
                UNROLL for (int t = 0; t < TURNS; t++)
                    squares[t] = fma(load<vf>(x + k + t * W), load<vf>(x + k + t * W), squares[t]);
            sums[MIXES] = sum(squares);
        }
    }, next);
}

// What the products say, once the row is normed.
void add_up(const Streams& own, int hidden, const float* bias, int outputs, float eps, float* to) {
    float squares = 0.0f;
    std::fill_n(to, outputs, 0.0f);
    for (int c = 0; c < STREAMS * pieces(own.width); c++) {
        const float* sums = own.sums + (size_t)c * MIX_SUMS;
        for (int o = 0; o < outputs; o++) to[o] += sums[o];
        squares += sums[MIXES];
    }
    const float scale = 1.0f / std::sqrt(squares / (float)(STREAMS * hidden) + eps);
    for (int o = 0; o < outputs; o++) to[o] = to[o] * scale + bias[o];
}

// Weights from old streams [r] to new ones [c], of which each row and column adds up to one: Sinkhorn's rounds.
void balance(float (&m)[STREAMS][STREAMS], int rounds) {
    for (auto& row : m) {
        const float most = *std::max_element(row, row + STREAMS);
        float total = 0.0f;
        for (float& x : row) total += x = std::exp(x - most);
        for (float& x : row) x = x / total + STREAMS_LEAST;
    }
    for (int round = 0; round < 2 * rounds - 1; round++) {
        const bool rows = round % 2;
        float totals[STREAMS];
        for (int i = 0; i < STREAMS; i++) {
            totals[i] = STREAMS_LEAST;
            for (int j = 0; j < STREAMS; j++) totals[i] += rows ? m[i][j] : m[j][i];
        }
        for (int r = 0; r < STREAMS; r++)
            for (int c = 0; c < STREAMS; c++) m[r][c] /= totals[rows ? r : c];
    }
}

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

// x = the streams, each times the sigmoid of its number.
void mix_streams(const Streams& own, const float* mixes, int first, int count, float* x) {
    vf weights[STREAMS];
    for (int s = 0; s < STREAMS; s++) weights[s] = splat(sigmoid(mixes[s]) + STREAMS_LEAST);
    for (int k = first; k < first + count; k += W) {
        vf sum = load<vf>(own.at(0, k)) * weights[0];
        for (int s = 1; s < STREAMS; s++) sum = fma(load<vf>(own.at(s, k)), weights[s], sum);
        store(x + k, sum);
    }
}

}  // namespace

size_t mix_floats(int width) { return padded(STREAMS * pieces(width) * MIX_SUMS + MIXES, TILE); }

void read_streams(Step& step, int thread, const float* mix, int& phase, Stream next) {
    const Shape& s = step.model.shape;
    const float* bias = mix + (size_t)MIXES * STREAMS * step.model.hidden_pad;
    multiply_streams(step, thread, mix, MIXES, phase, next);
    each_piece(step, thread, phase, next, [&](const Streams& own, int row, int first, int count) {
        float mixes[MIXES];
        add_up(own, s.hidden, bias, MIXES, s.streams_eps, mixes);
        mix_streams(own, mixes, first, count, step.columns(step.model.space.x, row, 0));
        std::fill_n(step.columns(step.model.space.moved, row, 0) + first, count, 0.0f);
        if (first) return;
        for (int i = 0; i < STREAMS; i++) own.taken[i] = 2.0f * sigmoid(mixes[STREAMS + i]);
        float between[STREAMS][STREAMS];
        std::copy_n(mixes + 2 * STREAMS, STREAMS * STREAMS, between[0]);
        balance(between, s.stream_rounds);
        std::copy_n(between[0], STREAMS * STREAMS, own.taken + STREAMS);
    });
}

void merge_streams(Step& step, int thread, int layer, int& phase) {
    const Shape& s = step.model.shape;
    const float* bias = s.merge_mix + (size_t)STREAMS * STREAMS * step.model.hidden_pad;
    multiply_streams(step, thread, s.merge_mix, STREAMS, phase, step.next_stream(layer).slice(thread, step.threads));
    each_piece(step, thread, phase, {}, [&](const Streams& own, int row, int first, int count) {
        float mixes[STREAMS];
        add_up(own, s.hidden, bias, STREAMS, s.merge_eps, mixes);
        mix_streams(own, mixes, first, count, step.columns(step.model.space.x, row, 0));
        step.note_features(layer, row, first, std::min(first + count, s.hidden));
    });
}

void write_streams(Step& step, int thread, const float* norm, int& phase, Stream next) {
    const Shape& s = step.model.shape;
    each_piece(step, thread, phase, next, [&](const Streams& own, int row, int first, int count) {
        const float* given = step.columns(step.model.space.moved, row, 0);
        const vf scale = splat(norm_scale(given, s.hidden, own.width, s.eps));
        for (int k = first; k < first + count; k += W) {
            const vf y = load<vf>(given + k) * scale * load_some(norm + k, std::max(s.hidden - k, 0));
            vf old[STREAMS];
            for (int r = 0; r < STREAMS; r++) old[r] = load<vf>(own.at(r, k));
            for (int c = 0; c < STREAMS; c++) {
                vf sum = y * own.taken[c];
                for (int r = 0; r < STREAMS; r++) sum = fma(old[r], splat(own.taken[STREAMS * (1 + r) + c]), sum);
                store(own.at(c, k), sum);
            }
        }
    });
}

void norm_streams(Step& step, int thread, const float* norm, int& phase, Stream next) {
    const Shape& s = step.model.shape;
    step.phases.run(phase++, thread, step.args.rows, [&](int row) {
        const Streams own(step, row);
        const vf scale = splat(norm_scale(own.all, STREAMS * s.hidden, STREAMS * own.width, s.eps));
        for (int k = 0; k < STREAMS * own.width; k += W)
            store(own.all + k, load<vf>(own.all + k) * scale * load<vf>(norm + k));
    }, next);
}

}  // namespace fastslow
