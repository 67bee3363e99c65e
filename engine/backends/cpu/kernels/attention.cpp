#include "attend.h"
#include "score_index.h"

namespace fastslow {

namespace {

void attend_halves(Step& step, int thread, int layer, int chunk) {
    const UseHalfTiles use;
    attend_as<uint16_t>(step, thread, layer, chunk);
}

const Attend halves{attend_halves, score_index_as<uint16_t>};
const Attend* attending[FORMATS] = {nullptr, &halves};

}  // namespace

void AttentionPlan::plan(const StepArgs& a, const Shape& shape, const Layer& l) {
    window = l.window;
    most = l.index_most;
    longest = 0;
    groups.clear();
    items.clear();
    const int most_rows = std::max(1, MOST_QUERIES / (l.heads / l.kv_heads));
    sink_blocks = (shape.sinks + KEY_BLOCK - 1) / KEY_BLOCK;
    most_parts = 1;
    for (int b = 0; b < a.requests; b++) {
        const int stop = (int)a.starts[b + 1];
        int64_t all = 0;
        for (int i = (int)a.starts[b]; i < stop; i++) all = std::max(all, a.context_lengths[b] + a.tail_lengths[i]);
        longest = std::max(longest, all);
        const int at_once = seen(all) < all ? 1 : most_rows;  // each row has its own choice
        for (int first = (int)a.starts[b]; first < stop; first += at_once) {
            RowGroup group{b, first, std::min(at_once, stop - first), 0, INT64_MAX};
            for (int i = first; i < first + group.count; i++) {
                const int64_t sees = seen(a.context_lengths[b] + a.tail_lengths[i]);
                group.longest = std::max(group.longest, sees);
                group.least = std::min(group.least, this->first(sees));
            }
            most_parts = std::max(most_parts, parts(group));
            for (int part = 0; part < parts(group); part++) items.push_back({(int)groups.size(), part});
            groups.push_back(group);
        }
    }
    const bool few = (int)groups.size() * l.kv_heads < 4 * a.threads;
    const size_t size = padded(l.head_dim, LANES) + LANES;
    partial_floats = (size_t)a.rows * most_parts * l.heads * size;
    split = few && a.threads > 1 && items.size() > groups.size() && partial_floats <= MOST_PARTIALS;
    if (!split) partial_floats = 0;
    int most_count = 1;
    for (const RowGroup& group : groups) most_count = std::max(most_count, group.count);
    const bool enough = (int)(split ? items.size() : groups.size()) >= 4 * a.threads || a.threads == 1;
    const bool fits = most_count * l.heads <= MOST_QUERIES;
    heads_at_once = enough && fits ? l.kv_heads : 1;
}

bool attends(int kv_format) { return kv_format >= 0 && kv_format < FORMATS && attending[kv_format]; }

// Keys and values of one kind more, which another library attends over.
extern "C" EXPORT void fs_add_attention(int kv_format, const Attend* attend) { attending[kv_format] = attend; }

void attend(Step& step, int thread, int layer, int chunk) {
    attending[step.args.kv_format]->attend(step, thread, layer, chunk);
}

void score_index(Step& step, int thread, int layer, int chunk) {
    attending[step.args.kv_format]->score_index(step, thread, layer, chunk);
}

void merge(Step& step, int thread, int layer, int chunk) {
    const Layer& l = step.model.layers[layer];
    const AttentionPlan& plan = step.plan(layer);
    const int kv_head = chunk % l.kv_heads, ratio = l.heads / l.kv_heads;
    const RowGroup& group = plan.groups[chunk / l.kv_heads];
    const int width = padded(l.head_dim, LANES);
    const int parts = plan.parts(group);
    float* sums = step.model.scratch[thread].outs;
    for (int row = group.first; row < group.first + group.count; row++)
        for (int head = kv_head * ratio; head < (kv_head + 1) * ratio; head++) {
            float most = 0.0f, total = 0.0f;
            for (int p = 0; p < parts; p++) {
                const float* part = partial_of(step, plan, l, row, p, head);
                join(most, total, sums, part[0], part[1], part + LANES, width);
            }
            finish(step, layer, row, head, most, total, sums);
        }
}

}  // namespace fastslow
