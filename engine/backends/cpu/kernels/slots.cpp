#include "slots.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "format.h"

namespace fastslow {

constexpr size_t SLACK = 4096;  // kernels read whole vectors, which may pass the end

Pool::Memory Pool::larger(const Memory& old, int64_t blocks) const {
    const size_t before = blocks_ * bytes_, size = to64(blocks * bytes_) + SLACK;
    Memory fresh((uint8_t*)std::aligned_alloc(64, size));
    if (!fresh) throw std::bad_alloc();
    if (before) std::memcpy(fresh.get(), old.get(), before);
    std::memset(fresh.get() + before, 0, size - before);  // zero times what was never written is zero
    return fresh;
}

int64_t Pool::take() {
    if (free_.empty()) {
        const int64_t more = std::max<int64_t>(2 * blocks_, 64);
        Memory keys = larger(keys_, more), values = larger(values_, more);
        free_.reserve(more);
        for (int64_t block = more; block-- > blocks_;) free_.push_back(block);
        keys_ = std::move(keys);
        values_ = std::move(values);
        blocks_ = more;
    }
    const int64_t block = free_.back();
    free_.pop_back();
    return block;
}

void Pool::copy(int64_t from, int64_t to) {
    std::memcpy(keys_.get() + to * bytes_, keys_.get() + from * bytes_, bytes_);
    std::memcpy(values_.get() + to * bytes_, values_.get() + from * bytes_, bytes_);
}

const int64_t* Slots::behind(Pool& pool, int64_t count) {
    while ((int64_t)slots_.size() < committed_ + count) {
        slots_.reserve(slots_.size() + LANES);
        const int64_t block = pool.take();
        for (int lane = 0; lane < LANES; lane++) slots_.push_back(block * LANES + lane);
    }
    return slots_.data() + committed_;
}

void Slots::commit(Pool& pool, int64_t count, int64_t window) {
    committed_ += count;
    const int64_t old = std::max<int64_t>(0, committed_ - window) / LANES * LANES;
    for (int64_t at = 0; at < old; at += LANES) pool.give(slots_[at] / LANES);
    slots_.erase(slots_.begin(), slots_.begin() + old);
    committed_ -= old;
}

void Slots::copy(Pool& pool, const Slots& other, int64_t drop) {
    committed_ = std::max<int64_t>(0, other.committed_ - drop);
    behind(pool, 0);
    for (size_t at = 0; at < slots_.size(); at += LANES)
        pool.copy(other.slots_[at] / LANES, slots_[at] / LANES);
}

const int64_t* Slots::recent(int64_t most, int64_t& count) const {
    const int64_t first = (std::max<int64_t>(0, committed_ - most) + LANES - 1) / LANES * LANES;
    const int64_t from = std::min(first, committed_);
    count = committed_ - from;
    return slots_.data() + from;
}

void Slots::release(Pool& pool) {
    for (size_t at = 0; at < slots_.size(); at += LANES) pool.give(slots_[at] / LANES);
    slots_.clear();
    committed_ = 0;
}

}  // namespace fastslow
