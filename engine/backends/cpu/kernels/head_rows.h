// A row's queries, keys and values, a head at a time, on their way from the product to where attention reads them.
#pragma once

namespace fastslow {

struct Step;

// One head of q, k or v of a row, with zeros up to whole tiles: norm and turn it, and keep it or write it to
// its page.
void place_head(const Step& step, int layer, int head, int row, float* v);

// The queries and keys of a row that are normed together, once all heads are there.
void place_whole(const Step& step, int layer, int row);

// Rotate pairs of `dims` numbers, half of them apart.
void turn(const Step& step, int layer, int row, int dims, float* v);

// A head that is normed and turned: a query is scaled and kept, a key or value goes to its page.
void put_head(const Step& step, int layer, int head, int row, const float* v);

// An index key that is normed and turned, to its row's page, beside the latent key.
void put_index_key(const Step& step, int layer, int row, const float* v);

// Before the product: stores to lines that are far away would hold up the stores after them.
void ask_place(const Step& step, int layer, int head, int row);

}  // namespace fastslow
