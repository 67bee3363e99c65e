// Layers that keep a running state of each request: gated delta nets and short convolutions.
//
// A unit of work is some channels of one request. Its rows run one after the other, whatever steps they come in, so
// that a state has one order of sums: first rows that were accepted since the last step are folded in, then those of
// the text, and drafted ones run from the state of the row that they follow and change nothing.
#pragma once

#include <cstdint>

#include "model.h"

namespace fastslow {

constexpr int RING = 48;         // rows of a request that are not folded in yet, as in kv/state/layout.py
constexpr int MOST_KERNEL = 16;  // tokens that a convolution sees
constexpr int FINAL_ROWS = 64;   // rows of a text that a unit makes ready at once

extern "C" {
// Mirrors of what running.py lays out. The numbers of `RunningRows` in engine/rows.py, for one request:
struct RunningRows {
    int64_t place, folds, stable;
    int64_t before, before_count;  // its part of StepArgs::before
    int64_t passed, passed_count;  // its part of StepArgs::passed
};

// A copy of the state, once so many rows were folded in.
struct Passed {
    int64_t folded, place;
};

// Of one layer: states by place, [places], and what rows add to them, [places][RING].
struct RunningMemory {
    float *window, *heads;               // [kernel - 1][channels]; see delta.cpp
    float *mixed, *gates, *keys, *deltas;  // [channels], [value heads], [key heads][key dim], [value heads][value dim]
};
}

struct Step;

// The rows of one request in one layer, each an entry: the convolution's last inputs before the state, rows between
// the state and the step, rows of the step. window: room for [kernel - 1][channels], of which a unit fills its own.
struct Line {
    // inputs: of the step's first row, the next one's `stride` floats on; null: what the layer's matrices gave.
    Line(const Step& step, int layer, int request, float* window, const float* inputs = nullptr, size_t stride = 0);

    // Keep the inputs before the state, of some channels, which the unit may then write over.
    void read_window(int channel, int count) const;
    // What the last inputs are once so many rows were folded in: at the state's place, and at those that are passed.
    void write_windows(int channel, int count) const;
    // The inputs of the rows that are not folded in.
    void write_ring(int channel, int count) const;
    // The convolution of a row of the step, over some channels.
    void convolve(int row, int channel, int count, float* to) const;

    int folded() const { return (int)(work.folds + work.stable); }
    size_t ring(int64_t row) const { return (size_t)work.place * RING + (size_t)row; }
    size_t ring_before(int n) const;
    size_t ring_at(int row) const;
    int parent(int row) const;  // of the request's rows; -1: none

    const Step& step;
    const RunningRows& work;
    const RunningMemory& memory;
    const Recurrence& shape;
    const float* weights;  // [kernel][channels]
    float* window;
    const float* inputs;
    size_t stride;
    int first, count;  // rows of the step

private:
    const float* input(int entry) const;
    int above(int entry) const;
    void write_window(int folded, int64_t place, int channel, int count) const;
};

// Numbers of a row of a recurrent layer: what its matrices give, the next one from a new tile on.
struct Columns {
    Columns(const Layer& l, const Recurrence& r)
        : gates(l.mixer == SHORT_CONV ? r.channels : padded(l.mixed.outputs, TILE)),
          rates(gates + padded(l.z.outputs, TILE)),
          index(rates + padded(l.rates.outputs, TILE)),
          width(l.mixer == SHORT_CONV ? padded(l.mixed.outputs, TILE) : index + padded(l.index_keys.outputs, TILE)) {}

    int gates, rates, index, width;  // where those begin; the first are what a convolution reads
};

// Floats that a thread needs for a unit.
size_t unit_floats(const Recurrence& r);

// What a layer's `mixed`, `z`, `rates` and `index_keys` give, in their Columns.
void project_mixed(Step& step, int thread, int layer, int& phase);

// A layer but for its last matrix, which reads `seen`.
void run_recurrent(Step& step, int thread, int layer, int& phase);

void run_delta(Step& step, int thread, int layer, int request, int key_head);
void run_short_conv(Step& step, int thread, int layer, int request, int block);

// Latent attention: add a convolution to some channels of all rows, which lie at `rows`, `stride` floats apart. Nothing
// is added to a text's first rows, which fill no kernel. channel: among those of the running state.
void add_convolved(Step& step, int thread, int layer, float* rows, size_t stride, int channel, int count);

constexpr int CONV_CHANNELS = 128;  // of a unit of a short convolution

}  // namespace fastslow
