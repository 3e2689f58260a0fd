// What Python calls (see yunque.native.library): plain C, numbers and pointers only.

#include <exception>

#include "decoder.h"
#include "measure.h"

using namespace yunque;

namespace {

enum Place : int32_t { EMBEDDING, HEAD, QUERY, KEY, VALUE, OUTPUT, GATE, UP, DOWN };
enum Gain : int32_t { LAST, ATTENTION, FEED_FORWARD, OF_QUERY, OF_KEY };

Matrix& matrix_at(Decoder& decoder, int place, int number) {
    if (place == EMBEDDING) return decoder.embedding;
    if (place == HEAD) return decoder.head;
    Layer& layer = decoder.layers[number];
    Matrix* const found[] = {&layer.query, &layer.key, &layer.value, &layer.output, &layer.gate, &layer.up, &layer.down};
    return *found[place - QUERY];
}

}  // namespace

// All else is this library's own: two of them may be in one process.
#pragma GCC visibility push(default)
extern "C" {

const char* yunque_instructions() {
#if defined(YUNQUE_512)
    return "AVX-512 VNNI";
#elif defined(YUNQUE_256) && defined(__AVXVNNI__)
    return "AVX-VNNI";
#elif defined(YUNQUE_256)
    return "AVX2";
#else
    return "plain C++";
#endif
}

void* yunque_decoder(const Shape* shape, int32_t threads) {
    try {
        return new Decoder(*shape, threads);
    } catch (const std::exception&) {
        return nullptr;
    }
}

void yunque_free(void* decoder) { delete static_cast<Decoder*>(decoder); }

int32_t yunque_matrix(void* decoder, int32_t place, int32_t layer, const Source* source) {
    try {
        Decoder& found = *static_cast<Decoder*>(decoder);
        matrix_at(found, place, layer).read(*source, found.arena);
        return 0;
    } catch (const std::exception&) {
        return 1;
    }
}

void yunque_gain(void* decoder, int32_t place, int32_t number, const float* gain) {
    Decoder& found = *static_cast<Decoder*>(decoder);
    Layer* layer = place == LAST ? nullptr : &found.layers[number];
    switch (place) {
        case LAST: found.norm_gain = gain; break;
        case ATTENTION: layer->attention_norm = gain; break;
        case FEED_FORWARD: layer->feed_forward_norm = gain; break;
        case OF_QUERY: layer->query_norm = gain; break;
        case OF_KEY: layer->key_norm = gain; break;
    }
}

void yunque_cache(void* decoder, int32_t number, float* keys, float* values, int32_t window) {
    Layer& layer = static_cast<Decoder*>(decoder)->layers[number];
    layer.keys = keys;
    layer.values = values;
    layer.window = window;
}

void yunque_angles(void* decoder, const float* cosines, const float* sines) {
    static_cast<Decoder*>(decoder)->cosines = cosines;
    static_cast<Decoder*>(decoder)->sines = sines;
}

// 0, or 1 where memory does not suffice.
int32_t yunque_step(void* decoder, const Batch* batch) {
    try {
        static_cast<Decoder*>(decoder)->step(*batch);
        return 0;
    } catch (const std::exception&) {
        return 1;
    }
}

// The most that this machine does a second: bytes read by `threads` from so many `bytes`; products of INT8 numbers.
double yunque_bandwidth(int32_t threads, int64_t bytes, int32_t rounds) {
    try {
        return bandwidth(threads, size_t(bytes), rounds);
    } catch (const std::exception&) {
        return 0;
    }
}

double yunque_integer_speed(int32_t threads, int32_t rounds) {
    try {
        return integer_speed(threads, rounds);
    } catch (const std::exception&) {
        return 0;
    }
}

// A product on its own, for tests: outputs [rows, source->rows] of x [rows, source->columns].
int32_t yunque_multiply(const Source* source, const float* x, int32_t rows, float* to) {
    try {
        Arena arena;
        Matrix matrix;
        matrix.read(*source, arena);
        const Layout& layout = matrix.layout;
        const size_t stride = layout.numbers();
        std::vector<uint8_t> numbers(rows * stride * 2);
        std::vector<float> scales(rows);
        std::vector<int32_t> sums(size_t(rows) * layout.groups);
        Inputs inputs{layout, x, size_t(layout.columns), numbers.data(), stride, scales.data(), sums.data()};
        if (layout.kind != FLOAT32)
            for (int row = 0; row < rows; row++) quantize(layout, x + size_t(row) * layout.columns, inputs, row);
        Product product(matrix);
        Unpacked unpacked;
        alignas(64) Tile tile;
        const int wide = product.panels_at_once(rows), high = product.rows_at_once(rows);
        for (int panel = 0; panel < matrix.panels; panel += wide) {
            const int panels = std::min(wide, matrix.panels - panel);
            product.begin(panel, panels, rows, unpacked);
            for (int row = 0; row < rows; row += high) {
                const int count = std::min(high, rows - row);
                product.compute(inputs, row, count, tile);
                for (int m = 0; m < count; m++)
                    for (int i = 0; i < std::min(panels * PANEL, matrix.rows - panel * PANEL); i++)
                        to[size_t(row + m) * matrix.rows + panel * PANEL + i] = tile[m * panels * PANEL + i];
            }
        }
        return 0;
    } catch (const std::exception&) {
        return 1;
    }
}

}  // extern "C"
#pragma GCC visibility pop
