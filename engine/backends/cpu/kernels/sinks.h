// Learned keys and values that every row of a layer sees before its text, in float32 whatever the text's are.
#pragma once

#include <algorithm>

#include "chunk.h"
#include "score.h"

namespace fastslow {

// A block of them for all queries of a chunk, which leave most[q], total[q] and the weighted values out[q][width].
template <class T>
void run_sink_block(const Chunk<T>& c, int from, int count, Scratch& own, float* most, float* total, float* out) {
    using Floats = Inner<float>;
    const Shape& s = c.shape();
    const Layer& l = c.step.model.layers[c.layer];
    const int dim = l.head_dim, width = padded(dim, LANES), each = c.each();
    const int tiles = (count + LANES - 1) / LANES;
    auto start = [&](int t, int head) {
        return Tile<float>::value_start(from + t * LANES, c.kept(head), l.kept_heads(), dim);  // keys start there, too
    };
    const float *query[MOST_QUERIES], *mass[MOST_QUERIES];
    float *scores[MOST_QUERIES], *sums[MOST_QUERIES], unused;
    for (int i = 0; i < c.queries(); i++) {
        float* turned = own.queries + (size_t)i * dim;
        Floats::turn(c.q(i), dim, turned, nullptr);
        query[i] = turned;
    }
    for (int t = 0; t < tiles; t++) {
        for (int i = 0; i < c.queries(); i++) scores[i] = own.scores + (size_t)i * SCORE_STRIDE + t * LANES;
        for (int i = 0; i < c.queries(); i += each) {
            const float* keys = l.sink_keys + start(t, i / each);
            score_some<float>(keys, dim, each, query + i, scores + i, (const char*)keys);
        }
    }
    for (int i = 0; i < c.queries(); i++) {
        sums[i] = out + (size_t)i * width;
        if (s.score_cap > 0.0f) soft_cap(own.scores + (size_t)i * SCORE_STRIDE, 0, count, s.score_cap);
        mass[i] = Floats::soften(own, i, 0, count, most[i], total[i], sums[i], width, unused);
    }
    for (int t = 0; t < tiles; t++)
        for (int i = 0; i < c.queries(); i += each) {
            const float* values = l.sink_values + start(t, i / each);
            const char* soon = (const char*)values;
            for (int j = i; j < i + each;)
                j += few<Floats::AT_ONCE>(i + each - j, [&](auto n) {
                    Floats::weigh_all<n()>(&values, std::min(LANES, count - t * LANES), dim, mass + j, t * LANES,
                                           sums + j, &soon);
                });
        }
}

}  // namespace fastslow
