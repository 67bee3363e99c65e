#include "head.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "product.h"
#include "score.h"
#include "simd.h"
#include "step.h"

namespace fastslow {

namespace {

constexpr float NOTHING = -std::numeric_limits<float>::infinity();
constexpr float ROUNDING = 0x1p-21f;  // of a product and its sum in float32, with room, per input

constexpr float SMALLEST = 0x1p-126f;  // of normal numbers: dot instructions take what is below for 0
constexpr float LARGEST = 1e38f;      // sums of more may overflow on their way

// What a row contributes to the bound of an output's screening error |w x - w' x'|, which is at most
// |w - w'| |x'| + |w| |x - x'| (Euclidean norms): w' and x' are in int8.
struct Slack {
    float screened;  // |x'|
    float lost;      // |x - x'|, and what sums round off
    float size;      // the larger of |x| and |x'|
    float floor;     // what numbers below SMALLEST add up to

    // Not finite where nothing is known.
    vf at(vf norms, vf errors) const {
        const vf bound = (errors * screened + norms * lost) * 1.001f + floor;
        return norms * size < splat(LARGEST) ? bound : splat(INFINITY);
    }
};

// Lanes whose screened logit and slack are both finite. No other lane bounds the best logit, and any
// other may be it.
vi bounded(vf logits, vf slack) { return (logits - logits) + (slack - slack) == vf{}; }

bool any(vi mask) {
#if defined(FASTSLOW_AVX512)
    return _mm512_movepi32_mask((__m512i)mask);
#elif defined(FASTSLOW_NEON)
    return vmaxvq_u32((uint32x4_t)mask);
#endif
    int32_t all = 0;
    for (int i = 0; i < W; i++) all |= mask[i];
    return all;
}

// Whether some lane is not zero: v - v is that where v is not finite.
bool strange(vf difference) { return any(difference != vf{}); }

Slack slack(const float* x, int inputs) {
    double whole = 0.0, screened = 0.0, lost = 0.0;
    const int shared = std::min(SHARING, inputs);
    for (int first = 0; first < inputs; first += shared) {
        const int last = std::min(first + shared, inputs);
        float top = 0.0f;
        for (int k = first; k < last; k++) top = std::max(top, std::fabs(x[k]));
        const float size = top / STEPS, lift = lifted(top), inverse = top > 1e-36f ? STEPS / (top * lift) : 0.0f;
        for (int k = first; k < last; k++) {
            const float exact = widen(narrow(x[k])), near = std::nearbyint(x[k] * lift * inverse) * size;
            whole += (double)exact * exact;
            screened += (double)near * near;
            lost += ((double)exact - near) * ((double)exact - near);
        }
    }
    const double size = std::sqrt(std::max(whole, screened)), width = std::sqrt((double)inputs);
    const double sums = (double)ROUNDING * (inputs + 32) * size, tiny = 4.0 * SMALLEST;
    return {(float)std::sqrt(screened), (float)(std::sqrt(lost) + sums + tiny * width), (float)size,
            (float)(tiny * (inputs + width * size))};
}

// Take a tile's logits in; `size` of them are tokens.
void take(TopToken& best, const float* out, int first, int size) {
    alignas(64) float some[TILE];
    if (size < TILE) {
        std::copy(out, out + size, some);
        std::fill(some + size, some + TILE, out[0]);
        out = some;
    }
    vf top = load<vf>(out), odd = top - top;
    for (int i = W; i < TILE; i += W) {
        const vf v = load<vf>(out + i);
        top = max(v, top);
        odd += v - v;
    }
    if (!any((odd != vf{}) | (top > splat(best.logit)))) return;  // as mostly
    if (strange(odd)) best.token = -1;
    if (best.token < 0) return;
    best.logit = largest(top);
    best.token = first + (int)(std::find(out, out + TILE, best.logit) - out);
}

int size_of(const Step& step, int tile) {
    return std::min(TILE, step.model.shape.vocabulary - tile * TILE);
}

}  // namespace

void HeadPlan::prepare(const Step& step) {
    const Shape& s = step.model.shape;
    const StepArgs& a = step.args;
    rows.assign(a.wanted, a.wanted + a.outputs);
    only_best.assign(a.only_best, a.only_best + a.outputs);
    tiles = tiles_of(s.head);
    batch = std::max(1, std::min(8, tiles / (a.threads * 4)));
    chunks = (tiles + batch - 1) / batch;
    const bool all = std::all_of(only_best.begin(), only_best.end(), [](uint8_t x) { return x; });
    screened = all && s.screen.tiles && a.outputs <= NARROW;
    best.assign((size_t)chunks * a.outputs, TopToken{NOTHING, 0});
    if (!screened) return;
    most.resize((size_t)a.outputs * tiles);
    least.resize((size_t)chunks * a.outputs);
}

void HeadPlan::finish(const Step& step) const {
    const size_t count = rows.size();
    for (size_t m = 0; m < count; m++) {
        TopToken found{NOTHING, 0};
        for (int c = 0; c < chunks; c++) {
            const TopToken& some = best[c * count + m];
            if (some.token < 0) found.token = -1;
            if (found.token >= 0 && some.logit > found.logit) found = some;
        }
        step.args.best[m] = only_best[m] || step.model.shape.logit_cap > 0.0f ? found.token : -1;
    }
}

// Prepared rows of the outputs in a format.
static const uint8_t* head_rows(Step& step, int thread, int& phase, int format) {
    Model& model = step.model;
    const HeadPlan& plan = step.head_plan;
    const int count = (int)plan.rows.size();
    return step.ready(thread, phase, plan.chunks, count, count <= NARROW, format_of(format),
                      model.shape.hidden, model.ready_bytes, model.space.ready,
                      model.scratch[thread].ready, [&](int i) {
                          return step.normed(thread, (int)plan.rows[i], model.shape.norm);
                      });
}

// All logits: written, or compared, as each row wants.
static void whole_head(Step& step, int thread, int& phase) {
    HeadPlan& plan = step.head_plan;
    const Shape& s = step.model.shape;
    const size_t stride = step.model.ready_bytes, count = plan.rows.size();
    const uint8_t* rows = head_rows(step, thread, phase, s.head.format);
    const size_t bytes = tile_bytes(s.head);
    step.phases.run(phase++, thread, plan.chunks, [&](int c) {
        for (int tile = c * plan.batch; tile < std::min((c + 1) * plan.batch, plan.tiles); tile++) {
            const int size = size_of(step, tile);
            for (size_t m = 0; m < count && count <= NARROW; m++)
                if (!plan.only_best[m])
                    for (int k = 0; k < size; k += 16)
                        prefetch_to_write(step.args.logits + m * s.vocabulary + tile * TILE + k);
            multiply(s.head, s.head.tiles + tile * bytes, rows, stride, (int)count,
                     [&](int first, int got, float* out) {
                         for (int i = 0; i < got; i++) {
                             const size_t m = first + i;
                             const float* logits = out + i * TILE;
                             const bool only = plan.only_best[m], capped = s.logit_cap > 0.0f;
                             if (only || capped) take(plan.best[c * count + m], logits, tile * TILE, size);
                             if (only) continue;
                             if (capped) soft_cap(out + i * TILE, 0, TILE, s.logit_cap);
                             std::memcpy(step.args.logits + m * s.vocabulary + tile * TILE, logits,
                                         sizeof(float) * size);
                         }
                     });
        }
    }, qkv_stream(step.model.layers[0]).slice(thread, step.threads));
}

// What the best logit of each tile may be at most, and what the best one of each chunk is at least.
static void screen_head(Step& step, int thread, int& phase, const Slack* slacks) {
    HeadPlan& plan = step.head_plan;
    const Shape& s = step.model.shape;
    const size_t stride = step.model.ready_bytes, count = plan.rows.size();
    const uint8_t* rows = head_rows(step, thread, phase, s.screen.format);
    const size_t bytes = tile_bytes(s.screen);
    step.phases.run(phase++, thread, plan.chunks, [&](int c) {
        std::fill_n(&plan.least[c * count], count, NOTHING);
        for (int tile = c * plan.batch; tile < std::min((c + 1) * plan.batch, plan.tiles); tile++) {
            const float* norms = s.screen_norms + (size_t)tile * TILE;
            const float* errors = norms + (size_t)plan.tiles * TILE;
            multiply(s.screen, s.screen.tiles + tile * bytes, rows, stride, (int)count,
                     [&](int first, int got, float* out) {
                         for (int m = first; m < first + got; m++, out += TILE) {
                             vf least = splat(NOTHING), most = splat(NOTHING);
                             for (int k = 0; k < TILE; k += W) {
                                 const vf v = load<vf>(out + k);
                                 const vf slack = slacks[m].at(load<vf>(norms + k), load<vf>(errors + k));
                                 const vi known = bounded(v, slack);
                                 least = max(known ? v - slack : splat(NOTHING), least);
                                 most = max(known ? v + slack : splat(INFINITY), most);
                             }
                             float& floor = plan.least[c * count + m];
                             floor = std::max(floor, largest(least));
                             plan.most[tile * count + m] = largest(most);
                         }
                     });
        }
    });
}

// The exact logits of every tile that holds a token which may be the best.
static void rescore(Step& step, int thread, int& phase) {
    HeadPlan& plan = step.head_plan;
    const Shape& s = step.model.shape;
    const size_t stride = step.model.ready_bytes, count = plan.rows.size();
    const uint8_t* rows = head_rows(step, thread, phase, s.head.format);
    const size_t bytes = tile_bytes(s.head);
    float least[NARROW];
    std::fill_n(least, NARROW, NOTHING);
    if (rows)
        for (int c = 0; c < plan.chunks; c++)
            for (size_t m = 0; m < count; m++) least[m] = std::max(least[m], plan.least[c * count + m]);
    step.phases.run(phase++, thread, plan.chunks, [&](int c) {
        for (int tile = c * plan.batch; tile < std::min((c + 1) * plan.batch, plan.tiles); tile++) {
            int some = 0, index[NARROW];
            for (size_t m = 0; m < count; m++)
                if (plan.most[tile * count + m] >= least[m]) index[some++] = (int)m;
            if (!some) continue;
            const uint8_t* at = s.head.tiles + tile * bytes;
            multiply_run(s.head, Run{at, 1, 0, at + AHEAD}, rows, stride, index, step.model.scratch[thread].gathered,
                         some, [&](int, int first, int got, float* out) {
                             for (int i = 0; i < got; i++)
                                 take(plan.best[c * count + index[first + i]], out + i * TILE,
                                      tile * TILE, size_of(step, tile));
                         });
        }
    }, qkv_stream(step.model.layers[0]).slice(thread, step.threads));
}

void run_head(Step& step, int thread, int& phase) {
    const HeadPlan& plan = step.head_plan;
    if (!plan.screened) return whole_head(step, thread, phase);
    Slack slacks[NARROW];
    if (step.phases.open(phase, plan.chunks))
        for (size_t m = 0; m < plan.rows.size(); m++)
            slacks[m] = slack(step.normed(thread, (int)plan.rows[m], step.model.shape.norm),
                              step.model.shape.hidden);
    screen_head(step, thread, phase, slacks);
    rescore(step, thread, phase);
}

}  // namespace fastslow
