// What Python calls of draft heads. All of it runs under the crew's lock.

#include <algorithm>
#include <exception>
#include <mutex>

#include "draft.h"

using namespace fastslow;

namespace {

// Run something under the lock; 1 where memory or threads run out, 2 where the file of the
// embedding cannot be read.
template <class Work> int guarded(void* head, Work work) try {
    std::lock_guard<std::mutex> guard(Crew::get().lock);
    work(*(DraftHead*)head);
    return 0;
} catch (const Unreadable&) {
    return 2;
} catch (const std::exception&) {
    return 1;
}

int threads_of(int wanted) { return std::clamp(wanted, 1, MOST_THREADS); }

}  // namespace

extern "C" {

// `shape` and `layer` are copied; what they and `ids` point to must outlive the head. Null where
// memory runs out.
void* fs_draft_new(const Shape* shape, const Layer* layer, const int64_t* ids, int window, double theta) {
    try {
        return new DraftHead(*shape, *layer, ids, window, theta);
    } catch (const std::exception&) {
        return nullptr;
    }
}

void fs_draft_delete(void* head) { delete (DraftHead*)head; }

// A new text, whose next row stands at `position`; its number, or -1.
int64_t fs_draft_open(void* head, int64_t position) {
    int64_t context = -1;
    guarded(head, [&](DraftHead& h) { context = h.open(position); });
    return context;
}

// A copy of a text without its last `drop` rows; its number, or -1.
int64_t fs_draft_fork(void* head, int64_t context, int64_t drop) {
    int64_t fresh = -1;
    guarded(head, [&](DraftHead& h) { fresh = h.fork(context, drop); });
    return fresh;
}

int fs_draft_close(void* head, int64_t context) {
    return guarded(head, [&](DraftHead& h) { h.close(context); });
}

int fs_draft_skip(void* head, int64_t context, int64_t position) {
    return guarded(head, [&](DraftHead& h) { h.skip(context, position); });
}

// rows: [count, H] of the target's head.
int fs_draft_words(void* head, int64_t context, const int64_t* ids, const float* rows, int count) {
    return guarded(head, [&](DraftHead& h) { h.add_words(context, ids, rows, count); });
}

// Take rows in, and nothing else.
int fs_draft_read(void* head, const DraftArgs* given) {
    return guarded(head, [&](DraftHead& h) {
        DraftArgs args = *given;
        args.threads = threads_of(args.threads);
        h.read(args);
    });
}

// Take rows in and grow trees.
int fs_draft_grow(void* head, const DraftArgs* given) {
    return guarded(head, [&](DraftHead& h) {
        DraftArgs args = *given;
        args.threads = threads_of(args.threads);
        h.draft(args);
    });
}

// One more token of each chain.
int fs_draft_advance(void* head, const int64_t* contexts, const int64_t* tokens, int count, int threads) {
    return guarded(head, [&](DraftHead& h) { h.advance(contexts, tokens, count, threads_of(threads)); });
}

// Logits after the last token of a chain, until the next call; and how many. Null: unknown context.
const float* fs_draft_logits(void* head, int64_t context, int64_t* size) {
    const float* found = nullptr;
    guarded(head, [&](DraftHead& h) { found = h.logits(context, size); });
    return found;
}

}  // extern "C"
