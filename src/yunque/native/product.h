// Products of rows of inputs and the panels of a matrix.
//
// An output of a row is always the same sums in the same order, whatever rows and panels are computed beside it: sums
// of whole numbers are exact, and each sum of floats has a lane of its own.
#pragma once

#include "matrix.h"

namespace yunque {

// Rows of inputs for the matrices of one layout: floats, or whole numbers with a scale for each row and sums of groups.
struct Inputs {
    Layout layout;
    const float* x = nullptr;
    size_t x_stride = 0;
    void* numbers = nullptr;     // [rows, stride] of the Input of the kind's sums
    size_t stride = 0;
    float* scales = nullptr;     // [rows]
    int32_t* sums = nullptr;     // [rows, groups]
};

// Few rows wait for memory: weights so many bytes ahead are asked for early, further than processors do by themselves,
// which stop where a page ends. Where panels are taken together, the next ones are asked for.
constexpr int AHEAD = 4096;

constexpr int MOST_ROWS = 8, MOST_PANELS = 4;
// Where a tile's outputs go first: [rows, panels * 16].
using Tile = float[MOST_ROWS * MOST_PANELS * PANEL];

static_assert(ByteDots::ROWS <= MOST_ROWS && ByteDots::PANELS <= MOST_PANELS, "a tile must have room");
static_assert(HalfByteDots::ROWS <= MOST_ROWS && HalfByteDots::PANELS <= MOST_PANELS, "a tile must have room");

// Whole numbers of -127 to 127, rounded as yunque.model.quantized_layers.quantize_rows does: all of a row by one scale.
template <class Input>
inline void quantize_row(const Layout& layout, const float* x, Input* numbers, float* scale, int32_t* sums) {
    ints bits{};
    int column = 0;
    // The bits of a float without its sign are in its order, and those of NaN above all.
    for (; column + LANES <= layout.columns; column += LANES) {
        const ints size = (ints)load(x + column) & 0x7fffffff;
        bits = size > bits ? size : bits;
    }
    int32_t most = 0;
    for (int lane = 0; lane < LANES; lane++) most = bits[lane] > most ? bits[lane] : most;
    for (; column < layout.columns; column++) {
        const int32_t size = bytes_at<int32_t>(x + column) & 0x7fffffff;
        most = size > most ? size : most;
    }
    const float largest = bytes_at<float>(&most);
    *scale = most ? largest / 127.0f : 1.0f;
    if (*scale == 0.0f) *scale = 1.0f;
    const floats divisor = all(*scale);
    for (int group = 0; group < layout.groups; group++) {
        const int begin = group * layout.width;
        const int count = layout.columns - begin < layout.width ? layout.columns - begin : layout.width;
        Input* to = numbers + group * layout.padded;
        ints total{};
        int number = 0;
        for (; number + LANES <= count; number += LANES) {
            const ints whole = nearest(load(x + begin + number) / divisor);
            total += whole;
            for (int lane = 0; lane < LANES; lane++) to[number + lane] = Input(whole[lane]);
        }
        int32_t sum = 0;
        for (int lane = 0; lane < LANES; lane++) sum += total[lane];
        for (; number < count; number++) {
            const Input whole = Input(nearest(all(x[begin + number]) / divisor)[0]);
            to[number] = whole;
            sum += whole;
        }
        for (; number < layout.padded; number++) to[number] = 0;
        sums[group] = sum;
    }
}

inline void quantize(const Layout& layout, const float* x, const Inputs& to, int row) {
    float* scale = to.scales + row;
    int32_t* sums = to.sums + size_t(row) * layout.groups;
    if (layout.kind == INT8) {
        auto* numbers = static_cast<ByteDots::Input*>(to.numbers) + row * to.stride;
        quantize_row(layout, x, numbers, scale, sums);
    } else {
        auto* numbers = static_cast<HalfByteDots::Input*>(to.numbers) + row * to.stride;
        quantize_row(layout, x, numbers, scale, sums);
    }
}

// INT8: `ROWS` rows from `row`, `PANELS` panels from `panel`.
template <int ROWS, int PANELS>
void int8_tile(const Matrix& matrix, int panel, const Inputs& inputs, int row, float* tile) {
    using Dots = ByteDots;
    constexpr int STRANDS = ROWS == 1 ? Dots::STRANDS : 1;
    const uint8_t* weights = matrix.packed + panel * matrix.panel_bytes;
    const size_t apart = matrix.panel_bytes, stride = inputs.stride;
    const auto* x = static_cast<const Dots::Input*>(inputs.numbers) + row * stride;
    typename Dots::Sums sums[STRANDS][ROWS][PANELS];
    for (auto& strand : sums)
        for (auto& of_row : strand)
            for (auto& one : of_row) one = Dots::none();
    const int steps = matrix.layout.steps();
    const bool first = row == 0;
    for (int step = 0; step < steps; step += STRANDS) {
#pragma GCC unroll 4
        for (int strand = 0; strand < STRANDS; strand++) {
            typename Dots::Weights w[PANELS];
#pragma GCC unroll 4
            for (int p = 0; p < PANELS; p++) w[p] = Dots::load(weights + p * apart + (step + strand) * 64);
            for (int p = 0; p < PANELS && first; p++)
                __builtin_prefetch(weights + p * apart + (step + strand) * 64 + (PANELS == 1 ? AHEAD : PANELS * apart));
#pragma GCC unroll 8
            for (int m = 0; m < ROWS; m++) {
                const auto value = Dots::input(x + m * stride + (step + strand) * 4);
#pragma GCC unroll 4
                for (int p = 0; p < PANELS; p++) Dots::add(sums[strand][m][p], w[p], value);
            }
        }
    }
    for (int m = 0; m < ROWS; m++) {
        const ints excess = all(inputs.sums[row + m] * 128);
        const floats scale = all(inputs.scales[row + m]);
        for (int p = 0; p < PANELS; p++) {
            for (int strand = 1; strand < STRANDS; strand++) Dots::join(sums[0][m][p], sums[strand][m][p]);
            for (int part = 0; part < PARTS; part++) {
                const int output = p * PANEL + part * LANES;
                const floats whole = converted(Dots::total(sums[0][m][p], part) - excess);
                const floats of_output = load(matrix.scales + panel * PANEL + output);
                store(tile + m * PANELS * PANEL + output, whole * scale * of_output);
            }
        }
    }
}

// One group more of an INT4 output: y + (sum - 8 inputs) scale + inputs center.
INLINE floats with_group(floats y, ints sum, floats scale, floats offset, floats of_inputs) {
    return fused(of_inputs, offset, fused(converted(sum), scale, y));
}

INLINE floats offset_of(floats scale, floats center) { return fused(all(-8.0f), scale, center); }

// INT4, one row: weights are taken apart as they are read.
inline void int4_row(const Matrix& matrix, int panel, const Inputs& inputs, int row, float* tile) {
    using Dots = HalfByteDots;
    const Layout& layout = matrix.layout;
    const uint8_t* weights = matrix.packed + panel * matrix.panel_bytes;
    const auto* x = static_cast<const Dots::Input*>(inputs.numbers) + row * inputs.stride;
    const int32_t* of_inputs = inputs.sums + size_t(row) * layout.groups;
    floats y[PARTS];
    for (auto& part : y) part = all(0.0f);
    for (int group = 0; group < layout.groups; group++) {
        typename Dots::Sums low = Dots::none(), high = Dots::none();
        for (int step = 0; step < layout.steps(); step += 2) {
            const auto both = Dots::load(weights);
            __builtin_prefetch(weights + AHEAD);
            Dots::add(low, Dots::low(both), Dots::input(x));
            Dots::add(high, Dots::high(both), Dots::input(x + 4));
            if (step % 16 == 14) Dots::flush(low), Dots::flush(high);
            weights += 64;
            x += 8;
        }
        Dots::flush(low), Dots::flush(high);
        Dots::join(low, high);
        const auto* numbers = reinterpret_cast<const uint16_t*>(weights);
        const floats inputs_sum = all(float(of_inputs[group]));
        for (int part = 0; part < PARTS; part++) {
            const floats scale = wide_part(numbers, part), center = wide_part(numbers + PANEL, part);
            y[part] = with_group(y[part], Dots::total(low, part), scale, offset_of(scale, center), inputs_sum);
        }
        weights += 4 * PANEL;
    }
    for (int part = 0; part < PARTS; part++) store(tile + part * LANES, y[part] * all(inputs.scales[row]));
}

// INT4 panels taken apart for many rows: a byte for each weight, and 16 scales and 16 offsets for each group.
struct Unpacked {
    Memory<uint8_t> weights;
    Memory<float> scales;
    size_t apart = 0;

    void read(const Matrix& matrix, int panel, int count) {
        const Layout& layout = matrix.layout;
        apart = size_t(layout.numbers()) * PANEL;
        weights.resize(count * apart);
        scales.resize(size_t(count) * layout.groups * 2 * PANEL);
        uint8_t* to = weights.data();
        float* scales_to = scales.data();
        const uint8_t* from = matrix.packed + panel * matrix.panel_bytes;
        for (int group = 0; group < count * layout.groups; group++) {
            for (int step = 0; step < layout.steps(); step += 2) {
                __builtin_prefetch(from + AHEAD);
                const auto both = HalfByteDots::load(from), low = HalfByteDots::low(both);
                const auto high = HalfByteDots::high(both);
                memcpy(to, &low, 64);
                memcpy(to + 64, &high, 64);
                to += 128;
                from += 64;
            }
            const auto* numbers = reinterpret_cast<const uint16_t*>(from);
            for (int part = 0; part < PARTS; part++) {
                const floats scale = wide_part(numbers, part), center = wide_part(numbers + PANEL, part);
                store(scales_to + part * LANES, scale);
                store(scales_to + PANEL + part * LANES, offset_of(scale, center));
            }
            scales_to += 2 * PANEL;
            from += 4 * PANEL;
        }
    }
};

// INT4 from weights taken apart: the same sums as `int4_row`.
template <int ROWS, int PANELS>
void int4_tile(const Unpacked& panels, const Layout& layout, const Inputs& inputs, int row, float* tile) {
    using Dots = HalfByteDots;
    const size_t stride = inputs.stride;
    const auto* x = static_cast<const Dots::Input*>(inputs.numbers) + row * stride;
    floats y[ROWS][PANELS][PARTS];
    for (auto& of_row : y)
        for (auto& of_panel : of_row)
            for (auto& part : of_panel) part = all(0.0f);
    const uint8_t* weights = panels.weights.data();
    for (int group = 0; group < layout.groups; group++) {
        typename Dots::Sums sums[ROWS][PANELS];
        for (auto& of_row : sums)
            for (auto& one : of_row) one = Dots::none();
        for (int begin = 0; begin < layout.steps(); begin += 8) {
            const int count = layout.steps() - begin < 8 ? layout.steps() - begin : 8;
            for (int step = 0; step < count; step++) {
                typename Dots::Weights w[PANELS];
#pragma GCC unroll 4
                for (int p = 0; p < PANELS; p++) w[p] = Dots::load(weights + p * panels.apart);
#pragma GCC unroll 8
                for (int m = 0; m < ROWS; m++) {
                    const auto value = Dots::input(x + m * stride);
#pragma GCC unroll 4
                    for (int p = 0; p < PANELS; p++) Dots::add(sums[m][p], w[p], value);
                }
                weights += 64;
                x += 4;
            }
            for (auto& of_row : sums)
                for (auto& one : of_row) Dots::flush(one);
        }
        for (int m = 0; m < ROWS; m++) {
            const floats of_inputs = all(float(inputs.sums[size_t(row + m) * layout.groups + group]));
            for (int p = 0; p < PANELS; p++) {
                const float* numbers = panels.scales.data() + (size_t(p) * layout.groups + group) * 2 * PANEL;
                for (int part = 0; part < PARTS; part++)
                    y[m][p][part] = with_group(y[m][p][part], Dots::total(sums[m][p], part),
                                               load(numbers + part * LANES),
                                               load(numbers + PANEL + part * LANES), of_inputs);
            }
        }
    }
    for (int m = 0; m < ROWS; m++)
        for (int p = 0; p < PANELS; p++)
            for (int part = 0; part < PARTS; part++)
                store(tile + (m * PANELS + p) * PANEL + part * LANES,
                      y[m][p][part] * all(inputs.scales[row + m]));
}

// Float32: `ROWS` rows by the 16 outputs of a panel, four at a time; lanes go along the inputs.
template <int ROWS>
void float_tile(const Matrix& matrix, int panel, const Inputs& inputs, int row, float* tile, int tile_stride) {
    const int columns = matrix.layout.columns, whole = columns / LANES * LANES;
    for (int begin = 0; begin < PANEL; begin += 4) {
        const float* weights[4];
        for (int n = 0; n < 4; n++) {
            const int output = panel * PANEL + begin + n;
            weights[n] = matrix.values + size_t(output < matrix.rows ? output : matrix.rows - 1) * columns;
        }
        floats sums[ROWS][4];
        for (auto& of_row : sums)
            for (auto& one : of_row) one = all(0.0f);
        for (int column = 0; column < whole; column += LANES) {
            floats w[4];
#pragma GCC unroll 4
            for (int n = 0; n < 4; n++) {
                w[n] = load(weights[n] + column);
                if (ROWS == 1) __builtin_prefetch(weights[n] + column + 4 * columns);
            }
#pragma GCC unroll 8
            for (int m = 0; m < ROWS; m++) {
                const floats x = load(inputs.x + (row + m) * inputs.x_stride + column);
#pragma GCC unroll 4
                for (int n = 0; n < 4; n++) sums[m][n] = fused(x, w[n], sums[m][n]);
            }
        }
        for (int m = 0; m < ROWS; m++)
            for (int n = 0; n < 4; n++) {
                float y = sum(sums[m][n]);
                const float* x = inputs.x + (row + m) * inputs.x_stride;
                for (int column = whole; column < columns; column++) y = fused(x[column], weights[n][column], y);
                tile[m * tile_stride + begin + n] = y;
            }
    }
}

// Picks the tile of a size that is known only now.
template <int MOST, template <int> class Run, class... Arguments>
INLINE void with_size(int size, Arguments&&... arguments) {
    if constexpr (MOST > 1) {
        if (size < MOST) return with_size<MOST - 1, Run>(size, arguments...);
    }
    Run<MOST>::run(arguments...);
}

template <int ROWS>
struct Int8Rows {
    template <int PANELS>
    struct Panels {
        static void run(const Matrix& matrix, int panel, const Inputs& inputs, int row, float* tile) {
            int8_tile<ROWS, PANELS>(matrix, panel, inputs, row, tile);
        }
    };
    static void run(int panels, const Matrix& matrix, int panel, const Inputs& inputs, int row, float* tile) {
        with_size<ByteDots::PANELS, Panels>(panels, matrix, panel, inputs, row, tile);
    }
};

constexpr int INT4_ROWS = HalfByteDots::ROWS > 4 ? 4 : HalfByteDots::ROWS;

template <int ROWS>
struct Int4Rows {
    template <int PANELS>
    struct Panels {
        static void run(const Unpacked& from, const Layout& layout, const Inputs& inputs, int row, float* tile) {
            int4_tile<ROWS, PANELS>(from, layout, inputs, row, tile);
        }
    };
    static void run(int panels, const Unpacked& from, const Layout& layout, const Inputs& inputs, int row,
                    float* tile) {
        with_size<HalfByteDots::PANELS, Panels>(panels, from, layout, inputs, row, tile);
    }
};

template <int ROWS>
struct FloatRows {
    static void run(int panels, const Matrix& matrix, int panel, const Inputs& inputs, int row, float* tile) {
        for (int p = 0; p < panels; p++)
            float_tile<ROWS>(matrix, panel + p, inputs, row, tile + p * PANEL, panels * PANEL);
    }
};

// A matrix at work on some of its panels.
class Product {
public:
    explicit Product(const Matrix& matrix) : matrix_(matrix) {}

    // How many panels are best taken together, and how many rows, where there are so many of both.
    int panels_at_once(int rows) const {
        if (rows == 1) return 1;
        return matrix_.layout.kind == INT8 ? ByteDots::PANELS : matrix_.layout.kind == INT4 ? HalfByteDots::PANELS : 1;
    }

    int rows_at_once(int rows) const {
        const int most = matrix_.layout.kind == INT8 ? ByteDots::ROWS : matrix_.layout.kind == INT4 ? INT4_ROWS : 4;
        // Pieces of equal size: 4 and 4 take less than 6 and 2.
        const int pieces = (rows + most - 1) / most;
        return (rows + pieces - 1) / pieces;
    }

    void begin(int panel, int panels, int rows, Unpacked& unpacked) {
        panel_ = panel;
        panels_ = panels;
        unpacked_ = nullptr;
        if (matrix_.layout.kind == INT4 && rows > 1) {
            unpacked.read(matrix_, panel, panels);
            unpacked_ = &unpacked;
        }
    }

    // Outputs [rows, panels * 16] without bias.
    void compute(const Inputs& inputs, int row, int rows, float* tile) const {
        if (matrix_.layout.kind == FLOAT32)
            with_size<4, FloatRows>(rows, panels_, matrix_, panel_, inputs, row, tile);
        else if (matrix_.layout.kind == INT8)
            with_size<ByteDots::ROWS, Int8Rows>(rows, panels_, matrix_, panel_, inputs, row, tile);
        else if (unpacked_)
            with_size<INT4_ROWS, Int4Rows>(rows, panels_, *unpacked_, matrix_.layout, inputs, row, tile);
        else
            int4_row(matrix_, panel_, inputs, row, tile);
    }

private:
    const Matrix& matrix_;
    const Unpacked* unpacked_ = nullptr;
    int panel_ = 0, panels_ = 0;
};

}  // namespace yunque
