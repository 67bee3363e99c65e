// The residual in several streams: a sublayer reads a mixture of them, and they take what it gives, each its part, and
// parts of each other. Zhu et al., arXiv 2409.19606; Xie et al., arXiv 2512.24880.
#pragma once

#include "threads.h"

namespace fastslow {

struct Step;

constexpr int STREAMS = 4;
constexpr int MIXES = STREAMS * (STREAMS + 2);   // of a row: what is read, what is taken, what goes from stream to stream
constexpr int STREAM_PIECE = 512;                // numbers of a stream in a chunk, as in pieces/layers.py; sums depend on it
constexpr int MIX_SUMS = MIXES + STREAMS;        // of a chunk: products, and squares
constexpr float STREAMS_LEAST = 1e-6f;           // beside what is divided by, and of a stream that is read

// Floats of a row: sums of all chunks, and behind them what it takes and what goes from stream to stream.
size_t mix_floats(int width);

// x becomes what a sublayer reads, and what it gives will be added to zeros. mix: as in `Layer`.
void read_streams(Step& step, int thread, const float* mix, int& phase, Stream next);

// x becomes what the head reads; or features, behind another layer.
void merge_streams(Step& step, int thread, int layer, int& phase);

// The streams take what a sublayer gave, normed.
void write_streams(Step& step, int thread, const float* norm, int& phase, Stream next);

// All streams of a row are normed together.
void norm_streams(Step& step, int thread, const float* norm, int& phase, Stream next);

}  // namespace fastslow
