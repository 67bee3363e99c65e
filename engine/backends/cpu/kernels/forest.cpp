#include "forest.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "simd.h"

namespace fastslow {

namespace {

constexpr float NOTHING = -std::numeric_limits<float>::infinity();
constexpr float TWICE = 0.6931472f;  // as a logarithm

// The least likely node that gets children: a level costs a pass over the head, and a child has little more than half
// of its parent's chance; where even sure nodes hardly pay, halfway between the least and 1, as logarithms.
float least_parent(float least) { return std::min(least + TWICE, least / 2); }

// Takes the large ones of a run of logits in.
void gather(const float* logits, int size, int first, int count, std::vector<Likely>& best) {
    auto add = [&](int i) {
        const float logit = logits[i];
        if ((int)best.size() == count && !(logit > best.back().log_q)) return;
        auto place = std::upper_bound(best.begin(), best.end(), logit,
                                      [](float x, const Likely& l) { return x > l.log_q; });
        best.insert(place, {first + i, logit});
        if ((int)best.size() > count) best.pop_back();
    };
    int i = 0;
    for (; i < size && (int)best.size() < count; i++) add(i);
    for (; i + W <= size; i += W) {
        const vi larger = load<vf>(logits + i) > splat(best.back().log_q);
        int32_t any = 0;
        for (int k = 0; k < W; k++) any |= larger[k];
        if (any)
            for (int k = 0; k < W; k++) add(i + k);
    }
    for (; i < size; i++) add(i);
}

// Sum of e^(logit - most).
float mass(const float* logits, int size, float most) {
    vf sums[TURNS] = {};
    int i = 0;
    for (; i + SPAN <= size; i += SPAN)
        UNROLL for (int t = 0; t < TURNS; t++) sums[t] += exp(load<vf>(logits + i + t * W) - splat(most));
    float total = sum(sums);
    for (; i < size; i++) total += std::exp(logits[i] - most);
    return total;
}

}  // namespace

int likeliest(const float* logits, int size, const float* own, int own_size, int count, Likely* room) {
    std::vector<Likely> best;
    count = std::min(count, size + own_size);
    best.reserve(count + 1);
    gather(logits, size, 0, count, best);
    gather(own, own_size, size, count, best);
    const float most = best.front().log_q;
    const float total = mass(logits, size, most) + mass(own, own_size, most);
    if (!std::isfinite(total) || !(total > 0.0f)) return 0;
    const float whole = most + std::log(total);
    for (int i = 0; i < count; i++) room[i] = {best[i].place, best[i].log_q - whole};
    return count;
}

std::vector<int64_t> GrowingTree::path(int node) const {
    std::vector<int64_t> slots;
    for (; node >= 0; node = nodes[node].parent) slots.push_back(nodes[node].slot);
    std::reverse(slots.begin(), slots.end());
    return slots;
}

int64_t GrowingTree::depth(int node) const {
    int64_t count = 0;
    for (; node >= 0; node = nodes[node].parent) count++;
    return count;
}

Forest::Forest(DraftHead& head, const DraftArgs& args, const std::vector<DraftContext*>& contexts)
    : head_(head), args_(args) {
    trees_.resize(contexts.size());
    for (size_t b = 0; b < contexts.size(); b++) {
        trees_[b].context = contexts[b];
        trees_[b].least = args.least[b] > 0.0f ? std::log(args.least[b]) : NOTHING;
        trees_[b].most = (int)std::min<int64_t>(args.nodes[b], args.most);
    }
}

// Children of the nodes `parents`, whose logits are rows from `first` on.
void Forest::sprout(GrowingTree& tree, const std::vector<int>& parents, const float* logits,
                    const std::vector<std::vector<float>>* own, size_t first) {
    const int size = head_.shape().vocabulary, width = args_.width;
    const int before = (int)tree.nodes.size();
    std::vector<Likely> room(width);
    for (size_t i = 0; i < parents.size(); i++) {
        const float* row = logits + (first + i) * size;
        const float* words = own ? (*own)[first + i].data() : row + size;
        const int own_size = own ? (int)(*own)[first + i].size() : (int)tree.context->logits.size() - size;
        const float base = parents[i] < 0 ? 0.0f : tree.nodes[parents[i]].score;
        const int found = likeliest(row, size, words, own_size, width, room.data());
        for (int k = 0; k < found; k++) {
            const int place = room[k].place;
            const int64_t token = place < size ? head_.ids()[place] : tree.context->own.ids[place - size];
            tree.nodes.push_back({token, parents[i], base + room[k].log_q});
        }
    }
    // A node that is not among the best so far has no child that is.
    std::vector<float> scores;
    for (const auto& node : tree.nodes) scores.push_back(node.score);
    tree.frontier.clear();
    if (scores.empty()) return;
    const size_t last = std::min<size_t>(tree.most, scores.size()) - 1;
    std::nth_element(scores.begin(), scores.begin() + last, scores.end(), std::greater<float>());
    const float bar = std::max(scores[last], least_parent(tree.least));
    std::vector<int> fresh;
    for (int n = before; n < (int)tree.nodes.size(); n++) fresh.push_back(n);
    std::stable_sort(fresh.begin(), fresh.end(),
                     [&](int a, int b) { return tree.nodes[a].score > tree.nodes[b].score; });
    for (int n : fresh)
        if ((int)tree.frontier.size() < width && tree.nodes[n].score >= bar) tree.frontier.push_back(n);
    std::sort(tree.frontier.begin(), tree.frontier.end());
}

void Forest::grow() {
    std::vector<GrowingTree*> growing;
    for (GrowingTree& tree : trees_) {
        DraftContext& c = *tree.context;
        if (tree.most < 1 || c.logits.empty()) continue;
        sprout(tree, {-1}, c.logits.data(), nullptr, 0);
        tree.states.assign(tree.frontier.size(), c.hidden);
        if (!tree.frontier.empty()) growing.push_back(&tree);
    }
    for (int depth = 1; depth < args_.depth && !growing.empty(); depth++) deepen(growing);
    write();
}

// The frontiers of all trees become rows, and their children the next frontiers.
void Forest::deepen(std::vector<GrowingTree*>& growing) {
    const size_t hidden = head_.shape().hidden;
    std::vector<DraftHead::Row> rows;
    std::vector<std::vector<int64_t>> tails;
    std::vector<int64_t> wanted;
    std::vector<float> states;
    size_t count = 0;
    for (GrowingTree* tree : growing) count += tree->frontier.size();
    tails.reserve(count);
    for (GrowingTree* tree : growing) {
        const int64_t* slots = tree->context->slots.behind(head_.pool_, tree->rows + tree->frontier.size());
        for (size_t i = 0; i < tree->frontier.size(); i++) {
            const int node = tree->frontier[i];
            tree->nodes[node].slot = slots[tree->rows++];
            tails.push_back(tree->path(node));
            const auto& tail = tails.back();
            // the token after the row that drafted it stands one place further
            const int64_t position = tree->context->position + (int64_t)tail.size() - 1;
            wanted.push_back(rows.size());
            rows.push_back({tree->context, tree->nodes[node].token, position, tree->nodes[node].slot,
                            tail.data(), (int64_t)tail.size()});
            states.insert(states.end(), tree->states[i].begin(), tree->states[i].end());
        }
    }
    head_.run(rows, wanted, args_.threads, nullptr, states.data());
    size_t first = 0;
    std::vector<GrowingTree*> going;
    for (GrowingTree* tree : growing) {
        const std::vector<int> parents = tree->frontier;
        sprout(*tree, parents, head_.logits_.data(), &head_.own_, first);
        tree->states.clear();
        for (int node : tree->frontier) {
            const size_t row =
                first + (std::find(parents.begin(), parents.end(), tree->nodes[node].parent) - parents.begin());
            const float* state = head_.hidden_.data() + row * hidden;
            tree->states.emplace_back(state, state + hidden);
        }
        first += parents.size();
        if (!tree->frontier.empty()) going.push_back(tree);
    }
    growing = going;
}

// The likeliest nodes within the budget; a parent is never less likely than its child. The likeliest path
// comes first, then what branches off its end: rows of an accepted path mostly stand where they should.
void Forest::write() const {
    for (size_t b = 0; b < trees_.size(); b++) {
        const GrowingTree& tree = trees_[b];
        std::vector<int> order;
        for (int n = 0; n < (int)tree.nodes.size(); n++)
            if (tree.nodes[n].score >= tree.least) order.push_back(n);
        std::stable_sort(order.begin(), order.end(),
                         [&](int a, int b) { return tree.nodes[a].score > tree.nodes[b].score; });
        order.resize(std::min<size_t>(order.size(), std::max(tree.most, 0)));
        std::vector<std::vector<int>> children(tree.nodes.size() + 1);  // of node n at n + 1
        for (size_t i = order.size(); i-- > 0;)  // so that the likeliest is taken first
            children[tree.nodes[order[i]].parent + 1].push_back(order[i]);
        const size_t at = b * args_.most;
        std::vector<int> ahead = children[0], place(tree.nodes.size() + 1, -1);
        size_t count = 0;
        for (; !ahead.empty(); count++) {
            const int n = ahead.back();
            ahead.pop_back();
            place[n + 1] = (int)count;
            args_.tokens[at + count] = tree.nodes[n].token;
            args_.parents[at + count] = place[tree.nodes[n].parent + 1];
            args_.scores[at + count] = std::exp(tree.nodes[n].score);
            ahead.insert(ahead.end(), children[n + 1].begin(), children[n + 1].end());
        }
        args_.counts[b] = (int64_t)count;
    }
}

}  // namespace fastslow
