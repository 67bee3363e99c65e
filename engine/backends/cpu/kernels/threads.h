// A crew of threads that runs a step phase by phase.
//
// A phase ends when its chunks are done, not when every thread has arrived: a thread that lost its
// core while it held no chunk delays no other. A late thread walks through phases that are over; it may
// then prepare rows from memory that has moved on, but it finds no chunk to use them for.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <thread>

namespace fastslow {

constexpr int MOST_THREADS = 256;

struct alignas(64) Counter {
    std::atomic<int> value{0};
};

// Bytes that a thread will read next, fetched while it waits.
struct Stream {
    const uint8_t* from = nullptr;
    size_t bytes = 0;

    // The share of a thread: threads start on slices of their own.
    Stream slice(int thread, int threads) const {
        size_t first = bytes * thread / threads / 64 * 64;
        return {from ? from + first : nullptr, bytes * (thread + 1) / threads - first};
    }
};

void pause(int spins);
void fetch(const uint8_t* from, size_t bytes);

class Phases {
public:
    void reset(int phases, int threads);
    int threads() const { return threads_; }

    bool open(int phase, int chunks) const {
        return at(phase)->value.load(std::memory_order_acquire) < chunks;
    }

    // Work on chunks of a phase, own slice first and then what others left, until all are done.
    template <class Work>
    void run(int phase, int thread, int chunks, Work work, Stream next = {}) {
        Counter* done = at(phase);
        Counter* taken = done + 1;
        int did = 0;
        for (int i = 0; i < threads_; i++) {
            int owner = (thread + i) % threads_;
            int first = (int)((int64_t)chunks * owner / threads_);
            int count = (int)((int64_t)chunks * (owner + 1) / threads_) - first;
            if (i && taken[owner].value.load(std::memory_order_relaxed) >= count) continue;
            for (int c; (c = taken[owner].value.fetch_add(1, std::memory_order_relaxed)) < count; did++)
                work(first + c);
        }
        if (did) done->value.fetch_add(did, std::memory_order_acq_rel);
        wait(done, chunks, next);
    }

private:
    Counter* at(int phase) const {
        if (phase >= phases_) std::abort();  // a miscount would overwrite memory
        return counters_.get() + (size_t)phase * (threads_ + 1);
    }
    static void wait(const Counter* done, int chunks, Stream next);

    int threads_ = 1, phases_ = 0;
    size_t size_ = 0;
    std::unique_ptr<Counter[]> counters_;
};

// What the crew runs: every thread below `threads` calls work once.
struct Task {
    int threads = 1;
    uint32_t epoch = 0;  // when it last ran
    virtual void work(int thread) = 0;
    virtual ~Task() = default;
};

// Threads that spin for a moment between steps and then sleep. One crew serves all models.
class Crew {
public:
    static Crew& get();

    // Run a task; the caller is thread 0. It returns when its own part is done, which is when all
    // chunks are; late threads may still be walking out.
    void run(Task& task);

    // Wait until no thread is inside this task any more, so that it may be filled anew.
    void reclaim(const Task& task);

    // Wait until no thread is inside any task.
    void settle();

    std::mutex lock;  // held while a task runs, and to change what late threads may read

    static constexpr int TASKS = 4;

private:
    void grow(int threads);
    void serve(int thread);
    int behind(int thread, uint32_t epoch) const;

    int workers_ = 0;
    std::atomic<uint32_t> epoch_{0};  // wraps around: compared by difference
    std::mutex sleeping_;             // held where it changes
    std::condition_variable awake_;
    Task* tasks_[TASKS] = {};
    Counter left_[MOST_THREADS];  // the last epoch that a thread is through with
};

}  // namespace fastslow
