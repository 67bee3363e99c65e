// The rows of a step of which something is read in the end. Layers without keys of their own run these alone: what they
// make of others nobody sees.
#pragma once

#include <cstdint>
#include <vector>

#include "step.h"

namespace fastslow {

struct ReadRows {
    ReadRows(const Model& model, const StepArgs& whole);

    // Move what the layers before made of these rows to the front.
    void gather(const Model& model) const;

    std::vector<int64_t> rows;  // their numbers in the whole step
    StepArgs args;              // of a step of them

private:
    template <class T> const T* pick(const T* from, size_t width, std::vector<T>& to) const;
    const int64_t* numbers(const int64_t* from, int count, std::vector<int64_t>& to) const;

    std::vector<int64_t> tokens_, slots_, groups_, starts_, tail_starts_, tail_lengths_, wanted_, seen_;
    std::vector<float> cos_, sin_, query_scale_;
};

}  // namespace fastslow
