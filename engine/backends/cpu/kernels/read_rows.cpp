#include "read_rows.h"

#include <algorithm>
#include <cstring>

namespace fastslow {

ReadRows::ReadRows(const Model& model, const StepArgs& whole) : args(whole) {
    if (model.own_layers == model.shape.layers) return;
    rows.assign(whole.wanted, whole.wanted + whole.outputs);
    rows.insert(rows.end(), whole.seen, whole.seen + whole.seen_rows);
    std::sort(rows.begin(), rows.end());
    rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
    if (rows.size() == (size_t)whole.rows) return;
    args.rows = (int32_t)rows.size();
    args.tokens = pick(whole.tokens, 1, tokens_);
    args.slots = pick(whole.slots, 1, slots_);
    args.groups = pick(whole.groups, 1, groups_);
    args.tail_starts = pick(whole.tail_starts, 1, tail_starts_);
    args.tail_lengths = pick(whole.tail_lengths, 1, tail_lengths_);
    args.cos = pick(whole.cos, model.shape.angles, cos_);
    args.sin = pick(whole.sin, model.shape.angles, sin_);
    args.query_scale = whole.query_scale ? pick(whole.query_scale, 1, query_scale_) : nullptr;
    args.starts = numbers(whole.starts, whole.requests + 1, starts_);
    args.wanted = numbers(whole.wanted, whole.outputs, wanted_);
    args.seen = numbers(whole.seen, whole.seen_rows, seen_);
}

// What each of these rows has, `width` of a kind.
template <class T> const T* ReadRows::pick(const T* from, size_t width, std::vector<T>& to) const {
    for (const int64_t row : rows) to.insert(to.end(), from + row * width, from + (row + 1) * width);
    return to.data();
}

// Numbers of rows among these: of the first that is no earlier.
const int64_t* ReadRows::numbers(const int64_t* from, int count, std::vector<int64_t>& to) const {
    for (int i = 0; i < count; i++)
        to.push_back(std::lower_bound(rows.begin(), rows.end(), from[i]) - rows.begin());
    return to.data();
}

void ReadRows::gather(const Model& model) const {
    const size_t by_token = model.layers.size() * model.token_pad;
    auto move = [&](float* of, size_t width) {
        for (size_t i = 0; i < rows.size(); i++)
            std::memmove(of + i * width, of + rows[i] * width, sizeof(float) * width);
    };
    move(model.space.x, model.hidden_pad);
    move(model.space.tokens, by_token);
}

}  // namespace fastslow
