#include "running.h"

#include <algorithm>
#include <cstring>

#include "simd.h"
#include "step.h"

namespace fastslow {

Line::Line(const Step& step, int layer, int request, float* window, const float* inputs, size_t stride)
    : step(step),
      work(step.args.running[request]),
      memory(step.args.states[layer]),
      shape(step.model.shape.recurrence),
      weights(step.model.layers[layer].conv),
      window(window),
      inputs(inputs ? inputs : step.model.space.mixed),
      stride(inputs ? stride : step.model.mixed_width),
      first((int)step.args.starts[request]),
      count((int)(step.args.starts[request + 1] - step.args.starts[request])) {}

size_t Line::ring_before(int n) const { return ring(step.args.before[work.before + n]); }

size_t Line::ring_at(int row) const { return ring(step.args.ring_rows[first + row]); }

int Line::parent(int row) const { return (int)step.args.parents[first + row]; }

const float* Line::input(int entry) const {
    const int kept = shape.kernel - 1, between = (int)work.before_count;
    if (entry < kept) return window + (size_t)entry * shape.channels;
    if (entry < kept + between) return memory.mixed + ring_before(entry - kept) * shape.channels;
    return inputs + (size_t)(first + entry - kept - between) * stride;
}

int Line::above(int entry) const {
    const int fresh = shape.kernel - 1 + (int)work.before_count;
    return entry < fresh ? entry - 1 : std::max(fresh + parent(entry - fresh), fresh - 1);
}

void Line::read_window(int channel, int count) const {
    const float* from = memory.window + (size_t)work.place * (shape.kernel - 1) * shape.channels;
    for (int j = 0; j < shape.kernel - 1; j++)
        std::copy_n(from + (size_t)j * shape.channels + channel, count, window + (size_t)j * shape.channels + channel);
}

void Line::write_window(int folded, int64_t place, int channel, int count) const {
    float* to = memory.window + (size_t)place * (shape.kernel - 1) * shape.channels;
    for (int j = 0; j < shape.kernel - 1; j++)
        std::copy_n(input(folded + j) + channel, count, to + (size_t)j * shape.channels + channel);
}

void Line::write_windows(int channel, int count) const {
    if (folded()) write_window(folded(), work.place, channel, count);
    for (int i = 0; i < work.passed_count; i++) {
        const Passed& passed = step.args.passed[work.passed + i];
        write_window((int)passed.folded, passed.place, channel, count);
    }
}

void Line::write_ring(int channel, int count) const {
    const int fresh = shape.kernel - 1 + (int)work.before_count;
    for (int row = (int)work.stable; row < this->count; row++)
        std::copy_n(input(fresh + row) + channel, count, memory.mixed + ring_at(row) * shape.channels + channel);
}

void Line::convolve(int row, int channel, int count, float* to) const {
    const float* from[MOST_KERNEL];
    int entry = shape.kernel - 1 + (int)work.before_count + row;
    for (int j = shape.kernel - 1; j >= 0; j--) {
        from[j] = input(entry) + channel;
        if (j) entry = above(entry);
    }
    for (int c = 0; c < count; c += W) {
        const int some = count - c;
        vf sum = load_some(from[0] + c, some) * load_some(weights + channel + c, some);
        for (int j = 1; j < shape.kernel; j++)
            sum = fma(load_some(from[j] + c, some),
                      load_some(weights + (size_t)j * shape.channels + channel + c, some), sum);
        store_some(to + c, sum, some);
    }
}

void project_mixed(Step& step, int thread, int n, int& phase) {
    Model& model = step.model;
    const Layer& l = model.layers[n];
    const Columns columns(l, model.shape.recurrence);
    Scratch& own = model.scratch[thread];
    const int hidden = model.shape.hidden, rows_count = step.args.rows;
    const bool few = step.narrow();
    auto normed = [&](int i) { return step.normed(thread, i, l.attention_norm); };
    auto into = [&](const Matrix& m, int tile, int column, const uint8_t* rows, size_t stride) {
        multiply(m, m.tiles + tile * tile_bytes(m), rows, stride, rows_count, [&](int first, int got, float* out) {
            add_bias(m.bias, tile, got, out);
            for (int i = 0; i < got; i++)
                std::copy_n(out + i * TILE, TILE,
                            model.space.mixed + (size_t)(first + i) * model.mixed_width + column + tile * TILE);
        });
        if (l.mixer != LATENT || !l.conv || column >= columns.rates) return;
        const int before = column ? l.qkv[0].inputs : 0, count = (column ? l.value_dim : l.qkv[0].inputs) - tile * TILE;
        add_convolved(step, thread, n, model.space.mixed + column + tile * TILE, model.mixed_width,
                      before + tile * TILE, std::min(count, TILE));
    };
    auto ready = [&](const Matrix& m, int chunks) {
        return step.ready(thread, phase, chunks, rows_count, few, format_of(m.format), hidden, model.ready_bytes,
                          model.space.ready, own.ready, normed);
    };
    struct Part {
        const Matrix& m;
        int column;
    };
    const Part parts[] = {{l.mixed, 0}, {l.z, columns.gates}, {l.index_keys, columns.index}};
    int rate_tiles = tiles_of(l.rates);
    for (int first = 0, last; first < 3; first = last) {  // at once what takes the same rows
        const Matrix& m = parts[first].m;
        int tiles = 0;
        for (last = first; last < 3 && (!parts[last].m.outputs || same_rows(m, parts[last].m)); last++)
            tiles += tiles_of(parts[last].m);
        if (!tiles) continue;
        const int chunks = tiles + rate_tiles;
        const uint8_t* exact = !rate_tiles ? nullptr :
            step.ready(thread, phase, chunks, rows_count, few, format_of(F32), hidden, model.ready_router_bytes,
                       model.space.ready_router, own.ready_router, normed);
        const uint8_t* rows = ready(m, chunks);
        step.phases.run(phase++, thread, chunks, [&](int c) {
            if (c >= tiles) return into(l.rates, c - tiles, columns.rates, exact, model.ready_router_bytes);
            int part = first;
            while (c >= tiles_of(parts[part].m)) c -= tiles_of(parts[part++].m);
            into(parts[part].m, c, parts[part].column, rows, model.ready_bytes);
        });
        rate_tiles = 0;
    }
    step.mark(thread, QKV);
}

void add_convolved(Step& step, int thread, int n, float* rows, size_t stride, int channel, int count) {
    const StepArgs& a = step.args;
    float* window = step.model.scratch[thread].unit;
    for (int b = 0; b < a.requests && count > 0; b++) {
        const Line line(step, n, b, window, rows - channel, stride);
        float *kept = window + padded((line.shape.kernel - 1) * line.shape.channels, TILE), *own = rows + line.first * stride;
        alignas(64) float added[CONV_CHANNELS];
        line.read_window(channel, count);
        line.write_windows(channel, count);
        const int stable = (int)line.work.stable;
        for (int row = stable; row < line.count; row++) std::copy_n(own + row * stride, count, kept + (row - stable) * count);
        for (int row = line.count; row-- > 0;) {  // the last first: those before it still are as they were
            const int at = line.first + row;
            if (a.context_lengths[b] + a.tail_lengths[at] < line.shape.kernel) continue;
            line.convolve(row, channel, count, added);
            for (int c = 0; c < count; c++) own[row * stride + c] += added[c];
        }
        for (int row = stable; row < line.count; row++)
            std::copy_n(kept + (row - stable) * count, count,
                        line.memory.mixed + line.ring_at(row) * line.shape.channels + channel);
    }
}

void run_recurrent(Step& step, int thread, int n, int& phase) {
    const Layer& l = step.model.layers[n];
    const Recurrence& r = step.model.shape.recurrence;
    project_mixed(step, thread, n, phase);
    const bool delta = l.mixer == DELTA;
    const int units = delta ? r.key_heads : (r.channels + CONV_CHANNELS - 1) / CONV_CHANNELS;
    step.phases.run(phase++, thread, step.args.requests * units, [&](int c) {
        (delta ? run_delta : run_short_conv)(step, thread, n, c / units, c % units);
    }, stream_of(l.out).slice(thread, step.threads));
}

void run_short_conv(Step& step, int thread, int n, int request, int block) {
    const Model& model = step.model;
    const Line line(step, n, request, model.scratch[thread].unit);
    const int channels = line.shape.channels, from = block * CONV_CHANNELS;
    const int count = std::min(CONV_CHANNELS, channels - from);
    auto column = [&](int row, int part) {  // of what in_proj gives: gate before, gate after, input
        return model.space.mixed + (size_t)(line.first + row) * model.mixed_width + (size_t)part * channels + from;
    };
    auto times = [&](const float* a, const float* b, float* to) {
        for (int c = 0; c < count; c += W)
            store_some(to + c, load_some(a + c, count - c) * load_some(b + c, count - c), count - c);
    };
    line.read_window(from, count);
    for (int row = 0; row < line.count; row++) times(column(row, 0), column(row, 2), column(row, 0));
    for (int row = 0; row < line.count; row++) {
        float* seen = model.space.seen + (size_t)(line.first + row) * model.attention_width + from;
        line.convolve(row, from, count, seen);
        times(seen, column(row, 1), seen);
    }
    line.write_windows(from, count);
    line.write_ring(from, count);
}

}  // namespace fastslow
