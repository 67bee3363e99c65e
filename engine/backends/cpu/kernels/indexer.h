// The indexer of sparse attention: of a long text a row sees the keys of the highest scores alone. A score is the sum of
// products of the row's queries and a key's own index key, cut off below 0, times weights. DeepSeek-V3.2, arXiv 2512.02556.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "step.h"

namespace fastslow {

constexpr int INDEX_BLOCK = 512;  // keys whose scores are a chunk, where rows are few

// Choose what each row sees of its text, where that is not all, to `Step::chosen`; index keys are in their pages.
void choose_keys(Step& step, int thread, int layer, int& phase);

inline size_t index_stride(const Step& step) {
    return ((size_t)step.longest + INDEX_BLOCK - 1) / INDEX_BLOCK * INDEX_BLOCK;
}

// Chunks that the scores of a row are made in.
inline int index_blocks(const Step& step) {
    return step.args.rows < 2 * step.threads ? (int)(index_stride(step) / INDEX_BLOCK) : 1;
}

// Room for scores: of each row, or of those that each thread is at.
inline size_t index_floats(const Step& step) {
    return index_stride(step) * (index_blocks(step) > 1 ? step.args.rows : step.threads);
}

// Scores of a row's keys, as whole numbers in the same order.
inline uint32_t* index_scores(const Step& step, int row, int thread) {
    return (uint32_t*)step.model.space.partial + index_stride(step) * (index_blocks(step) > 1 ? row : thread);
}

inline int request_of(const StepArgs& a, int row) {
    return (int)(std::upper_bound(a.starts, a.starts + a.requests, row) - a.starts) - 1;
}

}  // namespace fastslow
