// Routing decisions of one layer, and the MLP that follows them. MoGE: Pangu Pro MoE, arXiv 2505.21411.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

namespace fastslow {

struct Step;
struct Shape;
struct Layer;

constexpr int TILES_AT_ONCE = 4;  // most tiles of an expert in one chunk

// One expert that some rows chose: entries start .. start + count - 1.
struct Job {
    int expert, start, count;
};

// Entries are (row, expert) pairs, sorted by expert and then by row.
struct Choice {
    std::vector<Job> jobs;
    std::vector<int> rows;       // row of each entry
    std::vector<float> weights;  // that the expert's output is multiplied by
    std::vector<float> shared;   // that each row's shared expert is multiplied by, where it has a gate
    std::atomic<int> tiles_done{0};

    // Memory for a step's decisions, so that making them needs none.
    void reserve(int rows, const Shape& shape);

    // From router logits [T, experts padded to tiles]: the experts of each row, of which `groups[t]` run; -1 is
    // all that the model chooses.
    void choose(const float* logits, const Shape& shape, const Layer& layer, const std::vector<int64_t>& groups);

private:
    // One row's: `chosen` gets their numbers, less than 0 for those that do not run, and `weight` what each
    // counts.
    void by_group(const float* logits, const Shape& shape, const float* scale, int64_t running, int* chosen,
                  float* weight);
    void best_of_all(const float* logits, const Shape& shape, const Layer& layer, int kept, int64_t running,
                     int* chosen, float* weight);
    // Exponentials of the logits less `most` in `probs_`; their sum over all experts.
    float exponentials(const float* logits, int experts, float most);
    // Leaves the ranks of the best groups' experts, and makes all others the lowest.
    void keep_groups(const Shape& shape, int kept);
    // Sorts what the rows chose.
    void gather(int rows, int experts, int most);

    std::vector<int> expert_, sizes_;
    std::vector<float> weight_, probs_, ranked_, group_, sums_;
};

// The MLP of a layer whose routed experts some row runs.
void run_moge(Step& step, int thread, int layer, int& phase);

}  // namespace fastslow
