#include "indexer.h"

#include "head_rows.h"

namespace fastslow {

namespace {

// The least of the `count` largest numbers. count: becomes how many of those that are equal to it are among them.
uint32_t least_of(const uint32_t* numbers, int64_t length, int64_t& count) {
    uint32_t least = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        int64_t sizes[256] = {};
        for (int64_t k = 0; k < length; k++)
            if ((uint64_t)(numbers[k] ^ least) >> (shift + 8) == 0) sizes[numbers[k] >> shift & 255]++;
        uint32_t digit = 255;
        while (sizes[digit] < count) count -= sizes[digit--];
        least |= digit << shift;
    }
    return least;
}

// Of equal scores the earlier.
void choose_best(const Step& step, int row, const uint32_t* scores) {
    const StepArgs& a = step.args;
    const int64_t length = a.context_lengths[request_of(a, row)] + a.tail_lengths[row];
    int64_t equal = step.model.index_most;
    if (length <= equal) return;
    const uint32_t least = least_of(scores, length, equal);
    uint32_t* chosen = step.chosen(row);
    for (int64_t k = 0; k < length; k++)
        if (scores[k] > least || (scores[k] == least && equal-- > 0)) *chosen++ = (uint32_t)k;
}

}  // namespace

void choose_keys(Step& step, int thread, int n, int& phase) {
    Model& model = step.model;
    const Layer& l = model.layers[n];
    const Matrix& m = l.index_queries;
    const int count = step.args.rows, tiles = tiles_of(m) / l.index_heads, blocks = index_blocks(step);
    auto query = [&](int row, int tile) { return model.space.index_queries + (size_t)row * model.index_width + tile * TILE; };
    const uint8_t* rows = step.ready(
        thread, phase, l.index_heads, count, step.narrow(), format_of(m.format), m.inputs, model.ready_bytes,
        model.space.ready, model.scratch[thread].ready,
        [&](int i) { return model.space.mixed + (size_t)i * model.mixed_width; });
    step.phases.run(phase++, thread, l.index_heads, [&](int head) {
        for (int tile = head * tiles; tile < (head + 1) * tiles; tile++)
            multiply(m, m.tiles + tile * tile_bytes(m), rows, model.ready_bytes, count, [&](int first, int got, float* out) {
                for (int i = 0; i < got; i++) std::copy_n(out + i * TILE, TILE, query(first + i, tile));
            });
        for (int row = 0; row < count; row++) turn(step, n, row, l.head_dim - l.value_dim, query(row, head * tiles));
    });
    auto choose = [&](int row) { choose_best(step, row, index_scores(step, row, thread)); };
    step.phases.run(phase++, thread, count * blocks, [&](int c) {
        score_index(step, thread, n, c);
        if (blocks == 1) choose(c);
    });
    if (blocks > 1) step.phases.run(phase++, thread, count, choose);
}

}  // namespace fastslow
