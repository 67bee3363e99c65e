// What Python calls: models and steps. Formats alone are in api_format.cpp.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "check.h"
#include "simd.h"
#include "step.h"

using namespace fastslow;

#pragma GCC visibility push(default)
extern "C" {

// `layers` and `shape` are copied; what they point to must outlive the model.
// It is written to `model`. Returns 0 or a Failure, as all functions that return int and may fail.
int fs_model_new(const Shape* shape, const Layer* layers, void** model) {
    return caught([&] {
        check_model(*shape, layers);
        *model = new Model(*shape, layers);
    });
}

// One sentence: why this thread's last call returned REFUSED.
const char* fs_refusal() { return refusal(); }

void fs_model_delete(void* model) { delete (Model*)model; }

// Run a step; it returns when logits, best tokens and features are written.
int fs_step(void* handle, const StepArgs* given) {
    return guarded([&] {
        StepArgs args = *given;
        args.threads = std::clamp(args.threads, 1, MOST_THREADS);
        run_step(*(Model*)handle, args);
    });
}

// Start or stop measuring where steps spend their time; the seconds so far, one for each Part, are
// written to `seconds` and forgotten.
void fs_part_seconds(void* handle, int on, double* seconds) {
    std::lock_guard<std::mutex> guard(Crew::get().lock);
    PartTimer& timer = ((Model*)handle)->timer;
    std::copy(timer.seconds, timer.seconds + PARTS, seconds);
    std::fill(timer.seconds, timer.seconds + PARTS, 0.0);
    timer.on.store(on != 0);
}

// Experts whose weights the last step read, over all layers; 0 in a dense model.
int64_t fs_experts_read(void* handle) {
    Model& model = *(Model*)handle;
    std::lock_guard<std::mutex> guard(Crew::get().lock);
    const Step& last = *model.steps[(model.turn + Crew::TASKS - 1) % Crew::TASKS];
    int64_t count = 0;
    if (last.routed)
        for (const auto& choice : last.choices) count += (int64_t)choice->jobs.size();
    return count;
}

// Whether the last step screened its tokens instead of reading the whole head.
int fs_screened(void* handle) {
    Model& model = *(Model*)handle;
    std::lock_guard<std::mutex> guard(Crew::get().lock);
    const Step& last = *model.steps[(model.turn + Crew::TASKS - 1) % Crew::TASKS];
    return last.args.outputs && last.head_plan.screened;
}

// 16, 8 or 4 floats in a vector; and whether dot instructions of bfloat16 (1), of int8 (2), matrix tiles (4) and
// instructions that round a product and its sum once (8) are used.
int fs_vector_width() { return W; }

int fs_dot_instructions() {
    int found = 0;
#if defined(FASTSLOW_AVX512) && defined(__AVX512BF16__)
    found |= 1;
#endif
#if defined(FASTSLOW_VNNI) || (defined(FASTSLOW_NEON) && defined(__ARM_FEATURE_DOTPROD))
    found |= 2;
#endif
#if defined(FASTSLOW_AVX512) || defined(FASTSLOW_AVX2) || defined(FASTSLOW_NEON)
    found |= 8;
#endif
#if defined(FASTSLOW_AMX)
    found |= 4;
#endif
    return found;
}

// GB/s of reading memory, by so many threads, each a slice: the limit of a decode step. The best
// of three passes, since the first may wait for threads to wake. `threads` is at least 1.
double fs_read_bandwidth(const void* memory, int64_t bytes, int threads) {
    constexpr int PASSES = 3;
    std::atomic<int> ready{0};
    std::atomic<uint64_t> sink{0};
    double best = 0.0;
    const uint8_t* from = (const uint8_t*)memory;
    auto meet = [&](int pass) {
        ready++;
        for (int spins = 0; ready.load() < threads * pass; spins++) pause(spins);
    };
    auto read = [&](int i) {
        const int64_t first = bytes * i / threads / 256 * 256, last = bytes * (i + 1) / threads / 256 * 256;
        vu sums[4] = {};
        for (int pass = 0; pass < PASSES; pass++) {
            meet(2 * pass + 1);
            auto start = std::chrono::steady_clock::now();
            for (int64_t at = first; at < last; at += 4 * sizeof(vu)) {
                for (size_t line = 0; line < 4 * sizeof(vu); line += 64) prefetch(from + at + AHEAD + line);
                UNROLL for (int k = 0; k < 4; k++) sums[k] += load<vu>(from + at + k * sizeof(vu));
            }
            meet(2 * pass + 2);
            std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
            if (i == 0) best = std::max(best, (double)bytes / taken.count() / 1e9);
        }
        vu all = sums[0] + sums[1] + sums[2] + sums[3];
        for (int k = 0; k < W; k++) sink += all[k];
    };
    std::vector<std::thread> others;
    for (int i = 1; i < threads; i++) others.emplace_back(read, i);
    read(0);
    for (auto& thread : others) thread.join();
    return best;
}

}  // extern "C"
