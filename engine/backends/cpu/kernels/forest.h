// Trees of the likeliest nodes, grown depth by depth, then cut to their budgets. EAGLE-2: Li et al.,
// arXiv 2406.16858. The counterpart of draft/head/tree.py.
#pragma once

#include <cstdint>
#include <vector>

#include "draft.h"

namespace fastslow {

// The likeliest of some tokens.
struct Likely {
    int place;
    float log_q;  // logarithm of its share of the whole
};

// The `count` largest of logits in two runs, largest first; none where some logit is not finite.
// `room` holds as many.
int likeliest(const float* logits, int size, const float* own, int own_size, int count, Likely* room);

// One request's tree while it grows.
struct GrowingTree {
    struct Node {
        int64_t token;
        int parent;
        float score;  // logarithm of the path's likelihood
        int64_t slot = -1;  // of its row, once it went on
    };
    DraftContext* context = nullptr;
    int most = 0;
    float least = 0.0f;  // no score below it
    std::vector<Node> nodes;
    std::vector<int> frontier;
    std::vector<std::vector<float>> states;  // hidden states in the order of the frontier's parents
    int64_t rows = 0;  // slots used behind the committed rows

    std::vector<int64_t> path(int node) const;  // slots from the first node to this one
    int64_t depth(int node) const;
};

struct Forest {
    Forest(DraftHead& head, const DraftArgs& args, const std::vector<DraftContext*>& contexts);
    // All trees in lockstep, one pass through the layer a depth; then they are written to the caller.
    void grow();

private:
    void sprout(GrowingTree& tree, const std::vector<int>& parents, const float* logits,
                const std::vector<std::vector<float>>* own, size_t first);
    void deepen(std::vector<GrowingTree*>& growing);
    void write() const;

    DraftHead& head_;
    const DraftArgs& args_;
    std::vector<GrowingTree> trees_;
};

}  // namespace fastslow
