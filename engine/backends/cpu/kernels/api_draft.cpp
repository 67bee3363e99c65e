// What Python calls of draft heads. All of it runs under the crew's lock.

#include <algorithm>

#include "check.h"
#include "draft.h"

using namespace fastslow;

namespace {

template <class Work> int with_head(void* head, Work work) {
    return guarded([&] { work(*(DraftHead*)head); });
}

int threads_of(int wanted) { return std::clamp(wanted, 1, MOST_THREADS); }

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// `shape` and `layer` are copied; what they and `ids` point to must outlive the head, which is written to
// `head`.
int fs_draft_new(const Shape* shape, const Layer* layer, const int64_t* ids, int64_t window,
                 const double* frequencies, void** head) {
    return caught([&] {
        check_model(*shape, layer);
        if (!shape->fuse.outputs) refuse("matrix fuse is missing");
        check(limits::WINDOW, window);
        check_all("drafted token", ids, shape->vocabulary, 0, shape->embedding_rows);
        *head = new DraftHead(*shape, *layer, ids, window, frequencies);
    });
}

void fs_draft_delete(void* head) { delete (DraftHead*)head; }

// A new text, whose next row stands at `position`; its number, or less than 0: a Failure, negated.
int64_t fs_draft_open(void* head, int64_t position) {
    int64_t context = -1;
    const int failed = with_head(head, [&](DraftHead& h) { context = h.open(position); });
    return failed ? -failed : context;
}

// A copy of a text without its last `drop` rows; as above.
int64_t fs_draft_fork(void* head, int64_t context, int64_t drop) {
    int64_t fresh = -1;
    const int failed = with_head(head, [&](DraftHead& h) { fresh = h.fork(context, drop); });
    return failed ? -failed : fresh;
}

int fs_draft_close(void* head, int64_t context) {
    return with_head(head, [&](DraftHead& h) { h.close(context); });
}

int fs_draft_skip(void* head, int64_t context, int64_t position) {
    return with_head(head, [&](DraftHead& h) { h.skip(context, position); });
}

// rows: [count, H] of the target's head.
int fs_draft_words(void* head, int64_t context, const int64_t* ids, const float* rows, int count) {
    return with_head(head, [&](DraftHead& h) { h.add_words(context, ids, rows, count); });
}

// Take rows in, and nothing else.
int fs_draft_read(void* head, const DraftArgs* given) {
    return with_head(head, [&](DraftHead& h) {
        DraftArgs args = *given;
        args.threads = threads_of(args.threads);
        h.read(args);
    });
}

// Take rows in and grow trees.
int fs_draft_grow(void* head, const DraftArgs* given) {
    return with_head(head, [&](DraftHead& h) {
        DraftArgs args = *given;
        args.threads = threads_of(args.threads);
        h.draft(args);
    });
}

// One more token of each chain.
int fs_draft_advance(void* head, const int64_t* contexts, const int64_t* tokens, int count, int threads) {
    return with_head(head, [&](DraftHead& h) { h.advance(contexts, tokens, count, threads_of(threads)); });
}

// Logits after the last token of a chain, until the next call; and how many.
int fs_draft_logits(void* head, int64_t context, const float** logits, int64_t* size) {
    return with_head(head, [&](DraftHead& h) { *logits = h.logits(context, size); });
}

}  // extern "C"
