// What a caller hands over is looked at before anything is read or written at an address made of it: a
// model's shapes once, the numbers of a step each time. A refusal is one sentence; nothing has happened.
#pragma once

#include <cstdint>
#include <exception>
#include <mutex>

#include "limits.h"
#include "threads.h"

namespace fastslow {

struct Shape;
struct Layer;
struct StepArgs;
struct Model;

// What functions return to Python.
enum Failure { NO_MEMORY = 1, UNREADABLE = 2, REFUSED = 3 };

// The file of the embedding gave no bytes.
struct Unreadable : std::exception {};

struct Refused : std::exception {};

// Keep a sentence, as by printf, for `refusal`, and throw Refused.
[[noreturn]] __attribute__((format(printf, 1, 2))) void refuse(const char* sentence, ...);

// Why this thread's last call was refused.
const char* refusal();

void check(const Limit& limit, int64_t value);

// All `count` numbers lie in low .. high - 1.
void check_all(const char* name, const int64_t* numbers, int64_t count, int64_t low, int64_t high);

// No two of the numbers are the same.
void check_different(const char* name, const int64_t* numbers, int64_t count);

void check_model(const Shape& shape, const Layer* layers);
void check_step(const Model& model, const StepArgs& args);

// Run something: 0, or a Failure.
template <class Work> int caught(Work work) try {
    work();
    return 0;
} catch (const Unreadable&) {
    return UNREADABLE;
} catch (const Refused&) {
    return REFUSED;
} catch (const std::exception&) {
    return NO_MEMORY;  // or no threads
}

// The same under the crew's lock.
template <class Work> int guarded(Work work) {
    return caught([&] {
        std::lock_guard<std::mutex> guard(Crew::get().lock);
        work();
    });
}

}  // namespace fastslow
