// The sorted places of a corpus: where the end of a text stood before, and what followed.
#pragma once

#include <cstdint>

namespace fastslow {

// Texts back to front, each ended by -1, and places in them, sorted by the run of tokens that begins
// there as bytes of little-endian int32 (draft/suffix/documents.py). They lie in a mapped file, which was
// checked once and may be written over since: no number in it is used before it is held against its
// limit, so that a changed file gives worse drafts and nothing else.
struct Places {
    const int32_t* tokens;
    const int32_t* order;
    const int32_t (*buckets)[2];  // where in `order` those begin and end that begin with a token
    int64_t token_count, order_count;
    int32_t ids;  // tokens that may be there, each with a bucket

    // A place in `tokens`.
    int64_t place(int64_t slot) const {
        const int64_t found = order[slot];
        return found >= 0 && found < token_count ? found : 0;
    }
};

// Neighbours in `order`: those whose runs share the most tokens with a text read back to front.
struct Match {
    int32_t length;  // tokens that are shared
    int64_t first, end;
};

// The longest match of the last tokens before `end`, of which there are `size`, at least one; length 0
// where there is none. All of its places, however many.
Match longest_match(const Places& places, const int32_t* end, int size);

// What followed at a place, until its text ends, `ahead` tokens at most; returns how many.
int64_t copy_run(const Places& places, int64_t place, int64_t ahead, int32_t* out);

}  // namespace fastslow
