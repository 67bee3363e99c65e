// Routing decisions of one layer. MoGE: Pangu Pro MoE, arXiv 2505.21411.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

namespace fastslow {

struct Step;

constexpr int TILES_AT_ONCE = 4;  // most tiles of an expert in one chunk

// One expert that some rows chose: entries start .. start + count - 1.
struct Job {
    int expert, start, count;
};

// Entries are (row, group) pairs, sorted by expert and then by row.
struct Choice {
    std::vector<Job> jobs;
    std::vector<int> rows;       // row of each entry
    std::vector<float> weights;  // probability times router scale
    std::atomic<int> tiles_done{0};

    // Memory for a step's decisions, so that making them needs none.
    void reserve(int rows, int experts, int group_count, int width);

    // From router logits [T, width]: softmax over all experts, the likeliest of each group (the
    // first on a tie), and of those the `groups[t]` of largest weight (the lower group on a tie);
    // -1 is all. Nothing is renormalised.
    void choose(const float* logits, int width, int experts, int group_count, const float* scale,
                const std::vector<int64_t>& groups);

private:
    std::vector<int> expert_, sizes_;
    std::vector<float> weight_, probs_;
};

// The MLP of a layer whose routed experts some row runs.
void run_moge(Step& step, int thread, int layer, int& phase);

}  // namespace fastslow
