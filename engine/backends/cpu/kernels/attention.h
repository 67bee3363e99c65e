// Grouped-query attention over paged keys and values. GQA: Ainslie et al., arXiv 2305.13245.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fastslow {

struct StepArgs;
struct Shape;
struct Layer;
struct Step;

constexpr int KEY_BLOCK = 256;  // keys per partial softmax; fixed, since sums depend on it
constexpr size_t MOST_PARTIALS = 64 << 20;  // floats; a step that needs more is not split
constexpr int MOST_QUERIES = 64;  // of a chunk: rows times query heads
constexpr int QUERY_ROOM = MOST_QUERIES + 16;  // matrix tiles are written whole
constexpr int SCORE_STRIDE = KEY_BLOCK + 16;   // floats from query to query: not a power of 2, see Model::spread

// Rows of one request that attend as a group, so that a key is read once for all of them.
struct RowGroup {
    int request, first, count;
    int64_t longest;  // keys that its last row sees
    int64_t least;    // the first place that some row sees

    // The key blocks that some row sees, by their places in the text.
    int first_block() const { return (int)(least / KEY_BLOCK); }
    int blocks() const { return (int)((longest + KEY_BLOCK - 1) / KEY_BLOCK) - first_block(); }
};

// How a step's attention is cut into chunks, in layers of one kind. The cut decides who works, never a sum's
// order: blocks of keys begin at fixed places of the text, and learned sinks come before them.
struct AttentionPlan {
    void plan(const StepArgs& args, const Shape& shape, const Layer& layer);
    int chunks(int kv_heads) const {
        return (int)(split ? items.size() : groups.size()) * (kv_heads / heads_at_once);
    }

    struct Item {
        int group, part;
    };

    // Parts of the softmax of a group's rows: blocks of learned sinks, and then of keys.
    int parts(const RowGroup& group) const { return sink_blocks + group.blocks(); }

    // The first place that a row sees which sees so many keys.
    int64_t first(int64_t sees) const { return window && sees > window ? sees - window : 0; }

    // Keys that a row sees of so many, which an indexer chose.
    int64_t seen(int64_t all) const { return most && all > most ? most : all; }
    bool chooses() const { return most && longest > most; }

    int window = 0;  // keys that a row sees at most; 0 = all
    int64_t most = 0, longest = 0;  // keys that an indexer leaves a row, 0: all; keys before some row, itself included
    int sink_blocks = 0;
    std::vector<RowGroup> groups;
    std::vector<Item> items;  // where split: every part of every group
    bool split = false;       // too few groups for the threads: parts run apart, merged after
    int heads_at_once = 1;    // KV heads of a chunk: all, so that a page is one stream, or one
    int most_parts = 1;
    std::size_t partial_floats = 0;
};

// One chunk of a layer's attention over keys of one kind, and of an indexer's scores.
struct Attend {
    void (*attend)(Step& step, int thread, int layer, int chunk);
    void (*score_index)(Step& step, int thread, int layer, int chunk);
};
bool attends(int kv_format);

// One chunk of a layer's attention, of an indexer's scores before it; and, where split, one chunk of merging.
void score_index(Step& step, int thread, int layer, int chunk);
void attend(Step& step, int thread, int layer, int chunk);
void merge(Step& step, int thread, int layer, int chunk);

}  // namespace fastslow
