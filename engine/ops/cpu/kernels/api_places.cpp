// What followed the end of a text in a corpus, for a drafter.

#include <algorithm>

#include "places.h"

using namespace fastslow;

extern "C" {

// See longest_match. `found`: its length; how many places it has; of `most` of them at most, in equal
// steps, how many tokens followed; and these tokens, one run behind another, each of `ahead` at most.
void fs_find_runs(const int32_t* tokens, const int32_t* order, int64_t low, int64_t high, const int32_t* key,
                  int size, int most, int ahead, int32_t* found) {
    const Places places{tokens, order};
    const Match match = longest_match(places, low, high, key, size);
    const int64_t count = match.end - match.first, taken = std::min<int64_t>(count, most);
    found[0] = match.length;
    found[1] = (int32_t)count;
    int32_t *sizes = found + 2, *runs = sizes + most;
    for (int64_t i = 0; i < taken; i++) {
        sizes[i] = (int32_t)copy_run(places, order[match.first + i * count / taken], ahead, runs);
        runs += sizes[i];
    }
}

}  // extern "C"
