#include "places.h"

#include <algorithm>

namespace fastslow {

namespace {

constexpr int DEEPEST = 64;  // probes of a search, each of which halves an interval

struct Key {
    const Places& places;
    const int32_t* end;
    int size;

    int common(int64_t slot) const {
        const int64_t place = places.place(slot);
        const int32_t* there = places.tokens + place;
        const int most = (int)std::min<int64_t>(size, places.token_count - place);
        int n = 0;
        while (n < most && there[n] == end[-1 - n] && there[n] >= 0) n++;  // -1 ends a text
        return n;
    }

    bool after(int64_t slot, int shared) const {
        const int64_t at = places.place(slot) + shared;
        if (shared >= size || at >= places.token_count) return false;
        return __builtin_bswap32(places.tokens[at]) < __builtin_bswap32(end[-1 - shared]);
    }
};

// The first of low..high of which `left` does not hold; it holds of all before.
template <class Left>
int64_t bisect(int64_t low, int64_t high, Left left) {
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (left(middle))
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

struct Probe {
    int64_t slot;
    int shared;
};

}  // namespace

// The probes on either side of the key share more and more with it, so each bound of the longest
// match lies between two of them: nothing that was looked at is looked at again.
Match longest_match(const Places& places, const int32_t* text_end, int size) {
    const int32_t last = text_end[-1];
    if (last < 0 || last >= places.ids) return {0, 0, 0};
    const int64_t low = std::clamp<int64_t>(places.buckets[last][0], 0, places.order_count);
    const int64_t high = std::clamp<int64_t>(places.buckets[last][1], low, places.order_count);
    const Key key{places, text_end, size};
    Probe lefts[DEEPEST], rights[DEEPEST];
    int left = 0, right = 0, length = 0;
    const int64_t at = bisect(low, high, [&](int64_t slot) {
        const int shared = key.common(slot);
        length = std::max(length, shared);
        const bool after = key.after(slot, shared);
        (after ? lefts[left++] : rights[right++]) = {slot, shared};
        return after;
    });
    if (!length) return {0, at, at};

    int64_t first = low, inside = at;
    for (int i = 0; i < left; i++) {
        if (lefts[i].shared < length)
            first = lefts[i].slot + 1;
        else
            inside = std::min(inside, lefts[i].slot);
    }
    first = bisect(first, inside, [&](int64_t slot) { return key.common(slot) < length; });

    int64_t end = high;
    inside = at;
    for (int i = 0; i < right; i++) {
        if (rights[i].shared < length)
            end = rights[i].slot;
        else
            inside = std::max(inside, rights[i].slot + 1);
    }
    end = bisect(inside, end, [&](int64_t slot) { return key.common(slot) == length; });
    return {length, first, end};  // first <= at <= end, were the places in no order at all
}

int64_t copy_run(const Places& places, int64_t place, int64_t ahead, int32_t* out) {
    int64_t n = 0;
    for (; n < ahead && n < place; n++) {
        const int32_t token = places.tokens[place - 1 - n];
        if (token < 0 || token >= places.ids) break;
        out[n] = token;
    }
    return n;
}

}  // namespace fastslow
