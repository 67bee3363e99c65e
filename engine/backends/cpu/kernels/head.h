// The last phases: logits, or only the best token of a row.
//
// Greedy decoding needs no logits, only where the largest stands. A bfloat16 head is then not read
// whole: an int8 copy, half its bytes, screens the tokens. What a screened logit may be off by is
// bounded (Cauchy-Schwarz), so every token that could be the best is known, and the tiles of these
// few are multiplied exactly, as in the whole head; so are those of tokens that nothing bounds. The
// answer is the whole head's, bit for bit.
#pragma once

#include <cstdint>
#include <vector>

namespace fastslow {

struct Step;

// The largest logit of some tokens, the first of equals.
struct TopToken {
    float logit;
    int32_t token;  // -1: some logit is not finite, and stays so
};

// What the phases share; written before they start, but for what chunks write into it.
struct HeadPlan {
    int tiles, batch, chunks;
    bool screened;              // no row wants logits, and there is a screen for so few
    std::vector<int64_t> rows;  // [M] of the step; late threads read these, so they are copies
    std::vector<uint8_t> only_best;  // [M]
    std::vector<TopToken> best;      // [chunks, M]
    std::vector<float> least;        // [chunks, M] no best logit is below the largest of these
    std::vector<float> most;         // [tiles, M] no logit of the tile is above this

    void prepare(const Step& step);
    // The best token of every row, from all chunks, to the caller.
    void finish(const Step& step) const;
};

void run_head(Step& step, int thread, int& phase);

}  // namespace fastslow
