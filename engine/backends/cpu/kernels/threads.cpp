#include "threads.h"

#include <chrono>
#include <new>

#if !defined(_WIN32)
#include <pthread.h>
#endif

#include "amx.h"
#include "simd.h"

namespace fastslow {

namespace {

constexpr auto PATIENCE = std::chrono::microseconds(2000);  // an idle thread sleeps after this
constexpr int SPINS = 4000;          // before a waiting thread offers its core to others
constexpr size_t FIRST_FETCH = 16384;  // bytes fetched before the first look whether a phase is over
constexpr size_t MOST_FETCH = 131072;  // an early thread fetches this much, well below its L2

Crew* crew = nullptr;
std::mutex making;

// In a forked child, which has none of the threads; another one may have held the mutex.
void forget() {
    new (&making) std::mutex;
    crew = nullptr;
}

}  // namespace

void pause(int spins) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("isb");  // `yield` does nothing on most chips
#endif
    if (spins % SPINS == SPINS - 1) std::this_thread::yield();
}

void fetch(const uint8_t* from, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
}

void Phases::reset(int phases, int threads) {
    size_t size = (size_t)phases * (threads + 1);
    if (size > size_) {
        counters_.reset(new Counter[size]);
        size_ = size;
    }
    threads_ = threads;
    phases_ = phases;
    for (size_t i = 0; i < size; i++) counters_[i].value.store(0, std::memory_order_relaxed);
}

void Phases::wait(const Counter* done, int chunks, Stream next) {
    size_t fetched = 0;
    if (next.from) {
        fetched = next.bytes < FIRST_FETCH ? next.bytes : FIRST_FETCH;
        fetch(next.from, fetched);
    }
    size_t most = next.bytes < MOST_FETCH ? next.bytes : MOST_FETCH;
    for (int i = 0; done->value.load(std::memory_order_acquire) < chunks; i++) {
        if (next.from && fetched < most) {
            fetch(next.from + fetched, 64);
            fetched += 64;
        } else {
            pause(i);
        }
    }
}

Crew& Crew::get() {
    std::lock_guard<std::mutex> guard(making);
    if (!crew) {
#if !defined(_WIN32)
        static bool registered = false;
        if (!registered) registered = pthread_atfork(nullptr, nullptr, forget) == 0;
#endif
        crew = new Crew;  // never deleted: its threads live as long as the process
    }
    return *crew;
}

void Crew::grow(int threads) {
    for (; workers_ < threads - 1; workers_++) {
        int thread = workers_ + 1;
        left_[thread].value.store((int)epoch_.load());
        std::thread([this, thread] { serve(thread); }).detach();
    }
}

int Crew::behind(int thread, uint32_t epoch) const {
    return (int)(epoch - (uint32_t)left_[thread].value.load(std::memory_order_acquire));
}

void Crew::serve(int thread) {
    uint32_t seen = (uint32_t)left_[thread].value.load();
    for (;;) {
        auto since = std::chrono::steady_clock::now();
        uint32_t now;
        for (int i = 0; (now = epoch_.load(std::memory_order_acquire)) == seen; i++) {
            pause(i);
            if (i % 64 != 63 || std::chrono::steady_clock::now() - since <= PATIENCE) continue;
            std::unique_lock<std::mutex> guard(sleeping_);
            awake_.wait(guard, [&] { return epoch_.load() != seen; });
        }
        Task* task = tasks_[now % TASKS];
        if (thread < task->threads) {
            const UseTiles tiles;
            task->work(thread);
        }
        seen = now;
        left_[thread].value.store((int)seen, std::memory_order_release);
    }
}

void Crew::run(Task& task) {
    const UseTiles tiles;
    if (task.threads == 1) {
        task.work(0);
        return;
    }
    grow(task.threads);
    for (int i = 1; i <= workers_; i++)
        for (int spins = 0; behind(i, epoch_.load()) > TASKS - 2; spins++) pause(spins);
    uint32_t next = epoch_.load() + 1;
    tasks_[next % TASKS] = &task;
    task.epoch = next;
    {
        const std::lock_guard<std::mutex> guard(sleeping_);
        epoch_.store(next);
    }
    awake_.notify_all();
    task.work(0);
}

void Crew::reclaim(const Task& task) {
    if ((int)(task.epoch - epoch_.load()) > 0) return;  // it ran in a crew that a fork left behind
    for (int i = 1; i <= workers_; i++)
        for (int spins = 0; behind(i, task.epoch) > 0; spins++) pause(spins);
}

void Crew::settle() {
    for (int i = 1; i <= workers_; i++)
        for (int spins = 0; behind(i, epoch_.load()) > 0; spins++) pause(spins);
}

}  // namespace fastslow
