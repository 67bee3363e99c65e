// What a draft head has in front of its layer: embedding and hidden state become one row.
#pragma once

namespace fastslow {

struct Step;

constexpr int ENTRY_PHASES = 6;  // rows, three products' rows made ready at most, two products, a norm

// x of all rows: entry * [norm(embedding), norm(hidden)], where hidden is what the head put out before,
// or fuse * features. Without an entry x is the hidden state, and the pair stays for the layer's qkv.
// EAGLE-3: Li et al., arXiv 2503.01840.
void run_entry(Step& step, int thread, int& phase);

}  // namespace fastslow
