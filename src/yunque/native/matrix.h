// Matrices as they are multiplied: float32 where they lie, INT8 and INT4 packed in panels of 16 outputs.
//
// A packed panel is read from its beginning to its end, once for a row of inputs alone and a few times where rows are
// many. INT8: 64 bytes are 4 inputs of 16 outputs, each weight plus 128. INT4: the same with two steps in a byte (the
// first in its low half), each weight plus 8; behind a group's weights stand 16 scales and 16 centers (bfloat16).
#pragma once

#include <sys/mman.h>

#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "dots.h"

namespace yunque {

enum Kind : int32_t { FLOAT32 = 0, INT8 = 1, INT4 = 2 };

// A matrix as Python gives it: rows are outputs. INT8 has `scales` (float32) for each row; INT4 is what
// yunque.model.quantized_layers.Int4Matrix holds: two's complement halves of bytes, the low ones being the first half
// of a row, and bfloat16 scales and centers of groups `width` wide.
struct Source {
    int32_t kind, rows, columns, width;
    const void* values;
    const void* scales;
    const void* centers;
    const float* bias;
};

constexpr int round_up(int count, int unit) { return (count + unit - 1) / unit * unit; }

// How a row of inputs is laid out for a matrix: in groups, each padded with zeros.
struct Layout {
    Kind kind = FLOAT32;
    int columns = 0, groups = 1, width = 0, padded = 0;

    int steps() const { return padded / 4; }
    int numbers() const { return groups * padded; }
};

inline Layout layout_of(const Source& source) {
    Layout layout;
    layout.kind = static_cast<Kind>(source.kind);
    layout.columns = source.columns;
    if (layout.kind == INT4) {
        layout.width = source.width;
        layout.groups = (source.columns + source.width - 1) / source.width;
        layout.padded = round_up(source.width, 8);
    } else {
        layout.width = source.columns;
        layout.padded = round_up(source.columns, 16);
    }
    return layout;
}

// Memory in large pages, which a processor finds sooner.
class Arena {
public:
    ~Arena() {
        for (void* chunk : chunks_) free(chunk);
    }

    uint8_t* take(size_t bytes) {
        bytes = (bytes + 63) / 64 * 64;
        if (bytes > left_) {
            const size_t chunk = (std::max<size_t>(bytes, 64 << 20) + PAGE - 1) / PAGE * PAGE;
            void* memory = aligned_alloc(PAGE, chunk);
            if (!memory) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
            madvise(memory, chunk, MADV_HUGEPAGE);
#endif
            chunks_.push_back(memory);
            at_ = static_cast<uint8_t*>(memory);
            left_ = chunk;
        }
        uint8_t* found = at_;
        at_ += bytes;
        left_ -= bytes;
        return found;
    }

private:
    static constexpr size_t PAGE = 2 << 20;
    std::vector<void*> chunks_;
    uint8_t* at_ = nullptr;
    size_t left_ = 0;
};

INLINE float wide(uint16_t bfloat16) {
    const uint32_t bits = uint32_t(bfloat16) << 16;
    return bytes_at<float>(&bits);
}

// 16 bfloat16 numbers, the part that a register of floats has.
INLINE floats wide_part(const uint16_t* numbers, int part) {
    float found[LANES];
    for (int lane = 0; lane < LANES; lane++) found[lane] = wide(numbers[part * LANES + lane]);
    return load(found);
}

class Matrix {
public:
    Layout layout;
    int rows = 0, panels = 0;
    const float* values = nullptr;     // FLOAT32 [rows, columns]
    const uint8_t* packed = nullptr;   // [panels, panel_bytes]
    size_t panel_bytes = 0;
    const float* scales = nullptr;     // INT8 [panels * 16]
    const float* bias = nullptr;       // [panels * 16], or none

    void read(const Source& source, Arena& arena) {
        layout = layout_of(source);
        rows = source.rows;
        panels = (rows + PANEL - 1) / PANEL;
        if (source.bias) bias = padded_copy(source.bias, arena);
        if (layout.kind == FLOAT32) values = static_cast<const float*>(source.values);
        if (layout.kind == INT8) pack_int8(source, arena);
        if (layout.kind == INT4) pack_int4(source, arena);
    }

    // Row `row` as floats: the vector of a token.
    void row_values(int row, float* to) const {
        if (layout.kind == FLOAT32) {
            memcpy(to, values + size_t(row) * layout.columns, layout.columns * sizeof(float));
            return;
        }
        const uint8_t* from = packed + (row / PANEL) * panel_bytes + (row % PANEL) * 4;
        const float scale = scales[row];
        for (int column = 0; column < layout.columns; column++)
            to[column] = float(int(from[column / 4 * 64 + column % 4]) - 128) * scale;
    }

    size_t group_bytes() const { return size_t(layout.padded) * PANEL / 2 + 4 * PANEL; }

private:
    const float* padded_copy(const float* from, Arena& arena) const {
        auto* to = reinterpret_cast<float*>(arena.take(sizeof(float) * panels * PANEL));
        for (int row = 0; row < panels * PANEL; row++) to[row] = row < rows ? from[row] : 0.0f;
        return to;
    }

    void pack_int8(const Source& source, Arena& arena) {
        scales = padded_copy(static_cast<const float*>(source.scales), arena);
        panel_bytes = size_t(layout.padded) * PANEL;
        uint8_t* to = arena.take(panels * panel_bytes);
        packed = to;
        const auto* from = static_cast<const int8_t*>(source.values);
        for (int panel = 0; panel < panels; panel++)
            for (int step = 0; step < layout.steps(); step++)
                for (int output = 0; output < PANEL; output++)
                    for (int i = 0; i < 4; i++) {
                        const int row = panel * PANEL + output, column = 4 * step + i;
                        const bool there = row < rows && column < layout.columns;
                        *to++ = there ? from[size_t(row) * layout.columns + column] + 128 : 128;
                    }
    }

    void pack_int4(const Source& source, Arena& arena) {
        panel_bytes = layout.groups * group_bytes();
        uint8_t* to = arena.take(panels * panel_bytes);
        packed = to;
        const auto* from = static_cast<const uint8_t*>(source.values);
        const size_t half = size_t(layout.groups) * layout.width / 2;
        const auto weight = [&](int row, int group, int number) -> uint8_t {
            if (row >= rows || number >= layout.width) return 8;
            const size_t column = size_t(group) * layout.width + number;
            const uint8_t both = from[row * half + column % half];
            return (column < half ? both & 15 : both >> 4) ^ 8;
        };
        for (int panel = 0; panel < panels; panel++)
            for (int group = 0; group < layout.groups; group++) {
                for (int step = 0; step < layout.steps(); step += 2)
                    for (int output = 0; output < PANEL; output++)
                        for (int i = 0; i < 4; i++) {
                            const int row = panel * PANEL + output, number = 4 * step + i;
                            *to++ = weight(row, group, number) | weight(row, group, number + 4) << 4;
                        }
                for (const void* of_groups : {source.scales, source.centers})
                    for (int output = 0; output < PANEL; output++) {
                        const int row = panel * PANEL + output;
                        const auto* numbers = static_cast<const uint16_t*>(of_groups);
                        const uint16_t one = row < rows ? numbers[size_t(row) * layout.groups + group] : 0;
                        memcpy(to, &one, 2);
                        to += 2;
                    }
            }
    }
};

}  // namespace yunque
