// A whole step of a decoder of Llama's shape: rows of many texts in, scores out.
//
// Shapes: M rows (a token of a text, each), D hidden, N query heads, K key-value heads, H head_dim, F intermediate, V
// vocabulary.
#pragma once

#include <string>

#include "attention.h"
#include "product.h"
#include "threads.h"

namespace yunque {

// The same as Shape in yunque.native.library.
struct Shape {
    int32_t layers, hidden, heads, key_value_heads, head_dim, intermediate, vocabulary, gate;
    float eps, scale;
};

enum Gate : int32_t { SILU = 0, GELU = 1, TANH_GELU = 2, RELU = 3 };

// Rows of this call. Those of a text stand together, in order; `rows_of` and `blocks_of` say where each text's begin,
// and where the last's end.
struct Batch {
    int32_t rows, texts, wanted;
    const int32_t* tokens;      // [M]
    const int32_t* positions;   // [M]
    const int32_t* rows_of;     // [texts + 1]
    const int32_t* blocks_of;   // [texts + 1]
    const int32_t* blocks;      // the texts' tables
    const int32_t* wanted_rows; // rows whose scores are given
    float* scores;              // [wanted, V]
};

struct Layer {
    Matrix query, key, value, output, gate, up, down;
    const float *attention_norm = nullptr, *feed_forward_norm = nullptr, *query_norm = nullptr, *key_norm = nullptr;
    float *keys = nullptr, *values = nullptr;  // the pool's [blocks, K, 16, H]
    int window = 0;
};

inline float inverse_root(const float* x, int count, float eps) {
    floats squares = all(0.0f);
    int i = 0;
    for (; i + LANES <= count; i += LANES) squares = fused(load(x + i), load(x + i), squares);
    float total = sum(squares);
    for (; i < count; i++) total = fused(x[i], x[i], total);
    return 1.0f / std::sqrt(total / float(count) + eps);
}

inline void norm(const float* x, const float* gain, int count, float eps, float* to) {
    const float scale = inverse_root(x, count, eps);
    for (int i = 0; i < count; i++) to[i] = x[i] * scale * gain[i];
}

INLINE floats silu(floats x) { return x / (all(1.0f) + exponential(-x)); }

inline floats gated(int gate, floats x) {
    if (gate == SILU) return silu(x);
    if (gate == RELU) return larger(x, all(0.0f));
    float parts[LANES];
    store(parts, x);
    for (float& one : parts)
        if (gate == GELU)
            one = 0.5f * one * (1.0f + std::erf(one * 0.70710678118654752f));
        else
            one = 0.5f * one * (1.0f + std::tanh(0.79788456080286536f * (one + 0.044715f * one * one * one)));
    return load(parts);
}

// Memory that threads share, and that one has for itself.
struct Space {
    Memory<float> x, heads, mixed, inner;
};

struct OwnSpace {
    Memory<float> row, normed, scales;
    Memory<uint8_t> numbers;
    Memory<int32_t> sums;
    Unpacked unpacked[2];
    AttentionSpace attention;
};

class Decoder {
public:
    Decoder(const Shape& shape, int threads) : shape(shape), layers(shape.layers), team_(new Team(threads, phases())) {
        own_.resize(threads);
    }

    ~Decoder() {
        if (!team_->is_here()) team_->forget(), team_.release();
    }

    Shape shape;
    std::vector<Layer> layers;
    Matrix embedding, head;
    const float* norm_gain = nullptr;
    const float *cosines = nullptr, *sines = nullptr;  // [positions, H / 2]
    Arena arena;

    void step(const Batch& batch) {
        if (!team_->is_here()) {
            team_->forget();
            team_.release();
            team_.reset(new Team(int(own_.size()), phases()));
        }
        prepare_space(batch.rows);
        team_->run([&](Team::Way& way) { Worker{*this, batch, own_[way.number], way}.run(); });
    }

private:
    // Few rows are made ready by every thread for itself: that takes less than to wait for one that does it. A thread
    // that comes late may read what others change already; nothing is left then to be computed of it.
    static constexpr int FEW = 4;

    // Ten in a layer, and those around the layers.
    int phases() const { return 10 * shape.layers + 4; }

    struct Worker {
        Decoder& decoder;
        const Batch& batch;
        OwnSpace& own;
        Team::Way& way;

        const Shape& shape() const { return decoder.shape; }
        Space& space() const { return decoder.shared_; }
        int rows() const { return batch.rows; }

        void run() {
            embed();
            for (Layer& layer : decoder.layers) {
                attend(layer);
                feed_forward(layer);
            }
            score();
        }

        // Call `work(row)` for all rows, in any thread.
        template <class Work>
        void for_rows(int count, const Work& work) {
            way.share(count, std::max(1, count / (4 * way.threads())), [&](int begin, int end) {
                for (int row = begin; row < end; row++) work(row);
            });
        }

        void embed() {
            for_rows(rows(), [&](int row) {
                decoder.embedding.row_values(batch.tokens[row], space().x.data() + size_t(row) * decoder.width_);
            });
        }

        // Inputs for matrices of a layout from rows that `at(row, room)` gives: it may write them to `room`.
        template <class At>
        Inputs ready(const Layout& layout, int count, const At& at) {
            Inputs inputs;
            inputs.layout = layout;
            const bool alone = count <= FEW;
            OwnSpace& room = alone ? own : decoder.together_;
            const size_t stride = layout.numbers() + 64;
            inputs.x_stride = layout.columns;
            inputs.stride = stride;
            if (alone) decoder.make_room(room, layout, count);
            inputs.x = room.normed.data();
            inputs.numbers = room.numbers.data();
            inputs.scales = room.scales.data();
            inputs.sums = room.sums.data();
            own.row.resize(std::max<size_t>(own.row.size(), layout.columns));
            const auto make = [&](int row) {
                if (layout.kind == FLOAT32) {
                    float* to = room.normed.data() + size_t(row) * layout.columns;
                    const float* from = at(row, to);
                    if (from != to) memcpy(to, from, layout.columns * sizeof(float));
                } else {
                    quantize(layout, at(row, own.row.data()), inputs, row);
                }
            };
            if (alone)
                for (int row = 0; row < count; row++) make(row);
            else
                for_rows(count, make);
            return inputs;
        }

        Inputs normed(const Layout& layout, const float* gain) {
            return ready(layout, rows(), [&, gain](int row, float* to) {
                norm(space().x.data() + size_t(row) * decoder.width_, gain, shape().hidden, shape().eps, to);
                return to;
            });
        }

        Inputs rows_of(const Layout& layout, const Memory<float>& from, size_t stride) {
            return ready(layout, rows(), [&, stride](int row, float*) { return from.data() + row * stride; });
        }

        // Panels of several matrices, one behind the other, shared out among the threads: `work(matrix, panel, panels)`.
        template <class Work>
        void for_panels(std::initializer_list<const Matrix*> matrices, int count, const Work& work) {
            int total = 0;
            for (const Matrix* matrix : matrices) total += matrix->panels;
            const int at_once = Product(**matrices.begin()).panels_at_once(count);
            const int length = std::max(1, total / (8 * way.threads()) / at_once) * at_once;
            way.share(total, length, [&](int begin, int end) {
                int offset = 0;
                for (const Matrix* matrix : matrices) {
                    const int last = std::min(end - offset, matrix->panels);
                    for (int panel = std::max(begin - offset, 0); panel < last; panel += at_once)
                        work(*matrix, panel, std::min(at_once, last - panel));
                    offset += matrix->panels;
                }
            });
        }

        // `put(row, output, y)` for every part of outputs that this thread's panels give.
        template <class Put>
        void multiply(const Matrix& matrix, int panel, int panels, const Inputs& inputs, int count, const Put& put) {
            Product product(matrix);
            product.begin(panel, panels, count, own.unpacked[0]);
            alignas(64) Tile tile;
            const int most = product.rows_at_once(count);
            for (int row = 0; row < count; row += most) {
                const int rows = std::min(most, count - row);
                product.compute(inputs, row, rows, tile);
                for (int m = 0; m < rows; m++)
                    for (int i = 0; i < panels * PANEL; i += LANES) {
                        const int output = panel * PANEL + i;
                        floats y = load(tile + m * panels * PANEL + i);
                        if (matrix.bias) y += load(matrix.bias + output);
                        put(row + m, output, y);
                    }
            }
        }

        void attend(Layer& layer) {
            const Inputs inputs = normed(layer.query.layout, layer.attention_norm);
            const size_t stride = decoder.heads_width_;
            for_panels({&layer.query, &layer.key, &layer.value}, rows(), [&](const Matrix& matrix, int panel, int panels) {
                const size_t offset = &matrix == &layer.query ? 0
                                      : &matrix == &layer.key ? layer.query.panels * PANEL
                                                              : (layer.query.panels + layer.key.panels) * PANEL;
                multiply(matrix, panel, panels, inputs, rows(), [&](int row, int output, floats y) {
                    store(space().heads.data() + row * stride + offset + output, y);
                });
            });
            turn_and_keep(layer);
            look_back(layer);
            const Inputs mixed = rows_of(layer.output.layout, space().mixed, layer.output.layout.columns);
            add(layer.output, mixed);
        }

        // x += inputs matrix^T
        void add(const Matrix& matrix, const Inputs& inputs) {
            for_panels({&matrix}, rows(), [&](const Matrix&, int panel, int panels) {
                multiply(matrix, panel, panels, inputs, rows(), [&](int row, int output, floats y) {
                    float* to = space().x.data() + size_t(row) * decoder.width_ + output;
                    store(to, load(to) + y);
                });
            });
        }

        // Turn queries and keys by their positions' angles, and keep keys and values in the text's blocks.
        void turn_and_keep(Layer& layer) {
            const int head_dim = shape().head_dim;
            for_rows(rows(), [&](int row) {
                float* heads = space().heads.data() + row * decoder.heads_width_;
                float* keys = heads + layer.query.panels * PANEL;
                const float* values = keys + layer.key.panels * PANEL;
                const int position = batch.positions[row];
                for (int head = 0; head < shape().heads; head++)
                    turn(heads + head * head_dim, layer.query_norm, position, shape().scale);
                const int block = batch.blocks[batch.blocks_of[text_of(row)] + position / BLOCK];
                for (int head = 0; head < shape().key_value_heads; head++) {
                    turn(keys + head * head_dim, layer.key_norm, position, 1.0f);
                    const size_t at =
                        ((size_t(block) * shape().key_value_heads + head) * BLOCK + position % BLOCK) * head_dim;
                    memcpy(layer.keys + at, keys + head * head_dim, head_dim * sizeof(float));
                    memcpy(layer.values + at, values + head * head_dim, head_dim * sizeof(float));
                }
            });
        }

        int text_of(int row) const {
            return int(std::upper_bound(batch.rows_of, batch.rows_of + batch.texts, row) - batch.rows_of) - 1;
        }

        void turn(float* x, const float* gain, int position, float scale) {
            const int half = shape().head_dim / 2;
            if (gain) norm(x, gain, shape().head_dim, shape().eps, x);
            const float* cosine = decoder.cosines + size_t(position) * half;
            const float* sine = decoder.sines + size_t(position) * half;
            for (int i = 0; i < half; i++) {
                const float first = x[i], second = x[i + half];
                x[i] = (first * cosine[i] - second * sine[i]) * scale;
                x[i + half] = (second * cosine[i] + first * sine[i]) * scale;
            }
        }

        // Each key-value head of some rows of a text at a time.
        void look_back(Layer& layer) {
            const int group = shape().heads / shape().key_value_heads;
            // So many rows that keys which were turned over serve often, and their weights stay in the cache.
            const auto rows_at_once = [&](int last) {
                return std::max(1, std::min(96, (1 << 18) / (last + 1)) / group);
            };
            int items = 0;
            for (int text = 0; text < batch.texts; text++) {
                const int count = batch.rows_of[text + 1] - batch.rows_of[text];
                const int at_once = rows_at_once(batch.positions[batch.rows_of[text + 1] - 1]);
                items += (count + at_once - 1) / at_once * shape().key_value_heads;
            }
            int text = 0, before = 0;
            way.share(items, 1, [&](int item, int) {
                for (;; text++) {
                    const int begin = batch.rows_of[text], end = batch.rows_of[text + 1];
                    const int at_once = rows_at_once(batch.positions[end - 1]);
                    const int here = (end - begin + at_once - 1) / at_once * shape().key_value_heads;
                    if (item >= before + here) {
                        before += here;
                        continue;
                    }
                    // The last rows of a text take longest, so they come first.
                    const int tile = here / shape().key_value_heads - 1 - (item - before) / shape().key_value_heads;
                    const int first = begin + tile * at_once;
                    look_back(layer, text, first, std::min(end, first + at_once),
                              (item - before) % shape().key_value_heads);
                    break;
                }
            });
        }

        void look_back(Layer& layer, int text, int begin, int end, int head) {
            const int group = shape().heads / shape().key_value_heads, head_dim = shape().head_dim;
            AttentionSpace& room = own.attention;
            room.q.clear(), room.out.clear(), room.positions.clear();
            const size_t stride = layer.output.layout.columns;
            for (int row = begin; row < end; row++)
                for (int query = head * group; query < (head + 1) * group; query++) {
                    room.q.push_back(space().heads.data() + row * decoder.heads_width_ + query * head_dim);
                    room.out.push_back(space().mixed.data() + row * stride + query * head_dim);
                    room.positions.push_back(batch.positions[row]);
                }
            const Queries queries{room.q.data(), room.out.data(), room.positions.data(), (end - begin) * group,
                                  head_dim, layer.window};
            const int32_t* table = batch.blocks + batch.blocks_of[text];
            const Blocks keys{layer.keys, table, shape().key_value_heads, head, head_dim};
            const Blocks values{layer.values, table, shape().key_value_heads, head, head_dim};
            Attention(queries, keys, values, room).run();
        }

        void feed_forward(Layer& layer) {
            const Inputs inputs = normed(layer.gate.layout, layer.feed_forward_norm);
            const size_t stride = decoder.inner_width_;
            for_panels({&layer.gate}, rows(), [&](const Matrix&, int panel, int panels) {
                gate(layer, panel, panels, inputs, space().inner.data(), stride);
            });
            add(layer.down, rows_of(layer.down.layout, space().inner, stride));
        }

        void gate(const Layer& layer, int panel, int panels, const Inputs& inputs, float* inner, size_t stride) {
            Product gates(layer.gate), ups(layer.up);
            gates.begin(panel, panels, rows(), own.unpacked[0]);
            ups.begin(panel, panels, rows(), own.unpacked[1]);
            alignas(64) Tile of_gates, of_ups;
            const int most = gates.rows_at_once(rows());
            for (int row = 0; row < rows(); row += most) {
                const int count = std::min(most, rows() - row);
                gates.compute(inputs, row, count, of_gates);
                ups.compute(inputs, row, count, of_ups);
                for (int m = 0; m < count; m++)
                    for (int i = 0; i < panels * PANEL; i += LANES) {
                        const int output = panel * PANEL + i;
                        floats x = load(of_gates + m * panels * PANEL + i), y = load(of_ups + m * panels * PANEL + i);
                        if (layer.gate.bias) x += load(layer.gate.bias + output);
                        if (layer.up.bias) y += load(layer.up.bias + output);
                        store(inner + (row + m) * stride + output, gated(shape().gate, x) * y);
                    }
            }
        }

        void score() {
            if (!batch.wanted) return;
            const Matrix& head = decoder.head.panels ? decoder.head : decoder.embedding;
            const Inputs inputs = ready(head.layout, batch.wanted, [&](int number, float* to) {
                const float* x = space().x.data() + size_t(batch.wanted_rows[number]) * decoder.width_;
                norm(x, decoder.norm_gain, shape().hidden, shape().eps, to);
                return to;
            });
            for_panels({&head}, batch.wanted, [&](const Matrix&, int panel, int panels) {
                multiply(head, panel, panels, inputs, batch.wanted, [&](int number, int output, floats y) {
                    float* to = batch.scores + size_t(number) * shape().vocabulary + output;
                    const int there = std::min(LANES, shape().vocabulary - output);
                    if (there == LANES)
                        store(to, y);
                    else if (there > 0)
                        memcpy(to, &y, there * sizeof(float));
                });
            });
        }
    };

    void make_room(OwnSpace& room, const Layout& layout, int rows) const {
        const auto grow = [](auto& memory, size_t size) {
            if (memory.size() < size) memory.resize(size);
        };
        if (layout.kind == FLOAT32) return grow(room.normed, size_t(rows) * layout.columns);
        grow(room.numbers, size_t(rows) * (layout.numbers() + 64) * sizeof(int16_t));
        grow(room.scales, rows);
        grow(room.sums, size_t(rows) * layout.groups);
    }

    void prepare_space(int rows) {
        const Layer& layer = layers[0];
        width_ = round_up(shape.hidden, PANEL);
        heads_width_ = size_t(layer.query.panels + layer.key.panels + layer.value.panels) * PANEL;
        inner_width_ = size_t(layer.gate.panels) * PANEL;
        shared_.x.resize(rows * width_);
        shared_.heads.resize(rows * heads_width_);
        shared_.mixed.resize(size_t(rows) * layer.output.layout.columns);
        shared_.inner.resize(rows * inner_width_);
        const Matrix& last = head.panels ? head : embedding;
        for (const Matrix* matrix : {&layer.query, &layer.output, &layer.gate, &layer.down, &last})
            make_room(together_, matrix->layout, rows);
    }

    std::unique_ptr<Team> team_;
    std::vector<OwnSpace> own_;
    OwnSpace together_;
    Space shared_;
    size_t width_ = 0, heads_width_ = 0, inner_width_ = 0;
};

}  // namespace yunque
