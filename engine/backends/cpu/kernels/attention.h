// Grouped-query attention over paged keys and values. GQA: Ainslie et al., arXiv 2305.13245.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fastslow {

struct StepArgs;
struct Shape;
struct Step;

constexpr int KEY_BLOCK = 256;  // keys per partial softmax; fixed, since sums depend on it
constexpr size_t MOST_PARTIALS = 64 << 20;  // floats; a step that needs more is not split
constexpr int MOST_QUERIES = 64;  // of a chunk: rows times query heads

// Rows of one request that attend as a group, so that a key is read once for all of them.
struct RowGroup {
    int request, first, count;
    int64_t longest;  // keys that its last row sees
};

// How a step's attention is cut into chunks. The cut decides who works, never a sum's order.
struct AttentionPlan {
    void plan(const StepArgs& args, const Shape& shape);
    int chunks(int kv_heads) const {
        return (int)(split ? items.size() : groups.size()) * (kv_heads / heads_at_once);
    }

    struct Item {
        int group, block;
    };

    std::vector<RowGroup> groups;
    std::vector<Item> items;  // where split: every key block of every group
    bool split = false;       // too few groups for the threads: key blocks run apart, merged after
    int heads_at_once = 1;    // KV heads of a chunk: all, so that a page is one stream, or one
    int most_blocks = 1;
    std::size_t partial_floats = 0;
};

// One chunk of a layer's attention; and, where split, one chunk of merging.
void attend(Step& step, int thread, int layer, int chunk);
void merge(Step& step, int thread, int chunk);

}  // namespace fastslow
