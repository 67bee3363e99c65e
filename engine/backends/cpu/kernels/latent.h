// Multi-head latent attention: one key for all heads, of which the first part is their value, too. Keys and values of
// heads are never made: a head's query goes through its part of the matrix that would make keys, and what it saw
// through the part that would make values, in prompts and steps alike. DeepSeek-V2, arXiv 2405.04434.
#pragma once

namespace fastslow {

struct Step;

// Queries, and the row's key in its page.
void run_latent(Step& step, int thread, int layer, int& phase);

// What heads saw becomes their values, which the layer's last matrix reads.
void expand_latent(Step& step, int thread, int layer, int& phase);

}  // namespace fastslow
