// A draft head that grows trees by itself: what its requests hold, and whole drafts in one call.
//
// Letters: B requests, R rows, D tokens that all can be drafted, E a request's own tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "slots.h"
#include "step.h"

namespace fastslow {

extern "C" {
// Mirror of the ctypes structure in library.py. All pointers stay valid during the call.
struct DraftArgs {
    int32_t threads, requests;
    int32_t rows;   // R
    int32_t width;  // nodes of a depth that go on, and children of each
    int32_t depth;  // of the deepest node
    int32_t most;   // room for nodes of a request
    const int64_t* contexts;  // [B]
    const int64_t* fresh;     // [B] rows to take in first
    const int64_t* after;     // [R] the token after each of them
    const float* features;    // [R, F]
    const int64_t* nodes;     // [B] most nodes to draft
    const float* least;       // [B] no node less likely than this, with all before it
    int64_t* counts;          // [B] nodes drafted
    int64_t *tokens, *parents;  // [B, most]; -1 = after the last row taken in
    float* scores;              // [B, most] likelihood of a node and all before it
};
}

// Tokens of one request's own, packed as they come.
struct OwnWords {
    std::vector<int64_t> ids;
    std::vector<uint8_t> tiles;  // room for alignment in front
    std::vector<float> last;     // rows of the tile that is not full

    const uint8_t* packed() const;
};

// What the head holds for a request.
struct DraftContext {
    Slots slots;
    int64_t position = 0;        // in the text, of the next row taken in
    OwnWords own;
    std::vector<float> hidden;   // [H] at the last row, once one was taken in
    std::vector<float> logits;   // [D + E] after it
    // A chain that the caller draws token by token: its rows, and the same of the last of them.
    std::vector<int64_t> chain;
    std::vector<float> chain_hidden, chain_logits;
};

class DraftHead {
public:
    // `layer` is the head's own; `ids` are the D tokens. They and what `shape` points to must outlive
    // the head. `window`: how many rows attention sees. `frequencies` [D / 2]: radians per position.
    DraftHead(const Shape& shape, const Layer& layer, const int64_t* ids, int64_t window,
              const double* frequencies);

    int64_t open(int64_t position);
    // A text that begins as another one did, without its last `drop` rows.
    int64_t fork(int64_t context, int64_t drop);
    void close(int64_t context);
    // The next row stands there: rows between were never shown.
    void skip(int64_t context, int64_t position);
    // Take rows in that nothing is drafted from, until others come behind them: keys and values alone.
    void read(const DraftArgs& args);
    void add_words(int64_t context, const int64_t* ids, const float* rows, int count);
    void draft(const DraftArgs& args);
    // For chains that the caller draws; `draft` begins them anew. One more token of each:
    void advance(const int64_t* contexts, const int64_t* tokens, int count, int threads);
    // and the logits [D + E] after the last one; `size` gets how many there are.
    const float* logits(int64_t context, int64_t* size);

    const Shape& shape() const { return model_.shape; }
    const int64_t* ids() const { return ids_; }

private:
    struct Row {  // of one pass through the layer
        DraftContext* context;
        int64_t token, position, slot;
        const int64_t* tail;  // slots of the path behind the committed rows, itself the last
        int64_t seen;         // how many
    };
    DraftContext& at(int64_t context);
    // Those of a call: all open, none twice, with as many rows as were handed over.
    std::vector<DraftContext*> members(const DraftArgs& args);
    void check_tokens(const int64_t* tokens, int64_t count) const;
    // The rows to take in, so many at a time, those of a context side by side: pass(rows, contexts, features).
    template <class Pass>
    void in_parts(const DraftArgs& args, const std::vector<DraftContext*>& contexts, Pass pass);
    // They were run: they are rows of the text now.
    void commit(DraftContext& context, const std::vector<Row>& rows);
    void take_in(const DraftArgs& args, const std::vector<DraftContext*>& contexts);
    // Run rows, those of a context side by side; hidden states and logits of the `wanted` ones. Where none
    // is wanted, only keys and values are made.
    void run(const std::vector<Row>& rows, const std::vector<int64_t>& wanted, int threads,
             const float* features, const float* hidden);
    void add_own_logits(const std::vector<Row>& rows, const std::vector<int64_t>& wanted);
    void turn(int64_t position);
    friend struct Forest;

    Model model_;
    const int64_t* ids_;
    int64_t window_;
    std::vector<double> frequencies_;
    Pool pool_;
    std::unordered_map<int64_t, std::unique_ptr<DraftContext>> contexts_;
    int64_t next_ = 0;
    std::vector<float> cos_, sin_;  // [positions, D / 2]
    // results of the last run, one row for each that was wanted
    std::vector<float> hidden_, logits_;
    std::vector<std::vector<float>> own_;
};

}  // namespace fastslow
