// What followed the end of a text in a corpus, for a drafter.

#include <algorithm>

#include "places.h"

using namespace fastslow;

constexpr int LINE = 64 / sizeof(int32_t);

#pragma GCC visibility push(default)
extern "C" {

// See longest_match; `text` has `size` tokens, `longest` of them at most are looked at. `found`: the
// length of the match; how many places it has; of `most` of them at most, in equal steps, how many
// tokens followed; and these tokens, one run behind another, each of `ahead` at most.
void fs_find_runs(const Places* places, const int32_t* text, int size, int longest, int most, int ahead,
                 int32_t* found) {
    if (size < 1) {
        found[0] = found[1] = 0;
        return;
    }
    const Match match = longest_match(*places, text + size, std::min(size, longest));
    const int64_t count = match.end - match.first, taken = std::min<int64_t>(count, most);
    found[0] = match.length;
    found[1] = (int32_t)count;
    int32_t *sizes = found + 2, *runs = sizes + taken;
    for (int64_t i = 0; i < taken; i++) {  // they lie far apart: one wait for all
        const int64_t place = places->place(match.first + i * count / taken);
        for (int64_t n = 1; n <= std::min<int64_t>(ahead, place); n += LINE)
            __builtin_prefetch(places->tokens + place - n);
    }
    for (int64_t i = 0; i < taken; i++) {
        sizes[i] = (int32_t)copy_run(*places, places->place(match.first + i * count / taken), ahead, runs);
        runs += sizes[i];
    }
}

}  // extern "C"
