// Where a draft head keeps keys and values: blocks of sixteen slots, handed out and taken back.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "tile.h"

namespace fastslow {

// Memory for blocks; it grows by copying, so pointers into it hold for one pass only.
class Pool {
public:
    explicit Pool(size_t bytes) : bytes_(bytes) {}  // of a block's keys, and of its values

    int64_t take();
    void give(int64_t block) { free_.push_back(block); }
    void copy(int64_t from, int64_t to);
    int64_t slots() const { return blocks_ * LANES; }
    void* keys() const { return keys_.get(); }
    void* values() const { return values_.get(); }

private:
    struct Free {
        void operator()(void* memory) const { std::free(memory); }
    };
    using Memory = std::unique_ptr<uint8_t, Free>;
    Memory larger(const Memory& old, int64_t blocks) const;

    size_t bytes_;
    int64_t blocks_ = 0;
    Memory keys_, values_;
    std::vector<int64_t> free_;
};

// One text's slots, in the order of its rows: those taken in, and a draft's behind them.
class Slots {
public:
    int64_t committed() const { return committed_; }

    // Slots behind the committed rows, `count` of them at least.
    const int64_t* behind(Pool& pool, int64_t count);
    // The first `count` slots behind them are rows of the text now; of those before, about `window`
    // stay.
    void commit(Pool& pool, int64_t count, int64_t window);
    // Take over copies of another text's rows but the last `drop`; into slots that hold nothing.
    void copy(Pool& pool, const Slots& other, int64_t drop);
    // The last rows of the text, at most `most`, from the start of a block on.
    const int64_t* recent(int64_t most, int64_t& count) const;
    void release(Pool& pool);

private:
    int64_t committed_ = 0;
    std::vector<int64_t> slots_;  // whole blocks
};

}  // namespace fastslow
