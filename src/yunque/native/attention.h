// Attention of rows of one text to its positions, which lie in blocks of a pool.
//
// A query meets keys 16 at a time, each with a lane of its own, and positions it may not see weigh exactly 0: what it
// computes is the same whether its text is read at once or in pieces.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "simd.h"

namespace yunque {

constexpr int BLOCK = 16;
static_assert(BLOCK == PANEL, "keys of a block are as many as a panel's outputs");

// Keys or values of one key-value head: [blocks, heads, 16, head_dim].
struct Blocks {
    const float* memory;
    const int32_t* table;  // of this text
    int heads, head, head_dim;

    const float* at(int block) const {
        return memory + (size_t(table[block]) * heads + head) * BLOCK * head_dim;
    }
};

// Queries of one text and key-value head; query i stands at position `position(i)` and looks back over `window`.
struct Queries {
    const float* const* q;  // [count] pointers to [head_dim], scaled
    float* const* out;      // [count] pointers to [head_dim]
    const int* positions;   // [count], never falling
    int count, head_dim, window;

    int first(int query) const { return window ? std::max(0, positions[query] - window + 1) : 0; }
};

// Memory that a thread works in.
struct AttentionSpace {
    Memory<float> keys, values, weights;
    std::vector<const float*> q;
    std::vector<float*> out;
    std::vector<int> positions;
};

// [16, head_dim] to [head_dim, 16].
inline void transpose_block(const float* from, int head_dim, float* to) {
    int begin = 0;
#if defined(YUNQUE_512) || defined(YUNQUE_256)
    for (; begin + 8 <= head_dim; begin += 8)
        for (int half = 0; half < BLOCK; half += 8) {
            // Eight rows of eight, as two by two of four by four.
            const auto rows = [&](int row, int column) {
                const float* at = from + size_t(half + row) * head_dim + begin + column;
                return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(at)),
                                            _mm_loadu_ps(at + 4 * size_t(head_dim)), 1);
            };
            for (int column = 0; column < 8; column += 4) {
                const __m256 a = rows(0, column), b = rows(1, column), c = rows(2, column), d = rows(3, column);
                const __m256 ab_low = _mm256_unpacklo_ps(a, b), ab_high = _mm256_unpackhi_ps(a, b);
                const __m256 cd_low = _mm256_unpacklo_ps(c, d), cd_high = _mm256_unpackhi_ps(c, d);
                float* at = to + size_t(begin + column) * BLOCK + half;
                _mm256_storeu_ps(at, _mm256_shuffle_ps(ab_low, cd_low, 0x44));
                _mm256_storeu_ps(at + BLOCK, _mm256_shuffle_ps(ab_low, cd_low, 0xEE));
                _mm256_storeu_ps(at + 2 * BLOCK, _mm256_shuffle_ps(ab_high, cd_high, 0x44));
                _mm256_storeu_ps(at + 3 * BLOCK, _mm256_shuffle_ps(ab_high, cd_high, 0xEE));
            }
        }
#endif
    for (; begin < head_dim; begin++)
        for (int key = 0; key < BLOCK; key++) to[size_t(begin) * BLOCK + key] = from[size_t(key) * head_dim + begin];
}

// Scores of `COUNT` queries and the 16 keys of a block, into rows `apart` floats apart.
template <int COUNT>
inline void score(const float* const* q, const float* keys, int head_dim, float* to, size_t apart) {
    floats sums[COUNT][PARTS];
    for (auto& of_query : sums)
        for (auto& one : of_query) one = all(0.0f);
    for (int i = 0; i < head_dim; i++) {
        floats of_keys[PARTS];
#pragma GCC unroll 4
        for (int part = 0; part < PARTS; part++) of_keys[part] = load(keys + i * BLOCK + part * LANES);
#pragma GCC unroll 8
        for (int query = 0; query < COUNT; query++) {
            const floats x = all(q[query][i]);
#pragma GCC unroll 4
            for (int part = 0; part < PARTS; part++)
                sums[query][part] = fused(x, of_keys[part], sums[query][part]);
        }
    }
    for (int query = 0; query < COUNT; query++)
        for (int part = 0; part < PARTS; part++) store(to + query * apart + part * LANES, sums[query][part]);
}

// Scores [count] of positions from the first block's on become e^score, 0 outside of [first, last]; 1 / their sum.
inline float weigh(float* scores, int begin, int count, int first, int last) {
    const float never = -std::numeric_limits<float>::infinity();
    for (int position = begin; position < first; position++) scores[position - begin] = never;
    for (int position = last + 1; position < begin + count; position++) scores[position - begin] = never;
    floats most = all(never);
    for (int i = 0; i < count; i += LANES) most = larger(load(scores + i), most);
    const floats top = all(largest(most));
    // A sum of its own for each place in a block, so that it does not matter where the first block is.
    floats sums[PARTS];
    for (auto& part : sums) part = all(0.0f);
    for (int i = 0; i < count; i += BLOCK)
        for (int part = 0; part < PARTS; part++) {
            const floats weight = exponential(load(scores + i + part * LANES) - top);
            store(scores + i + part * LANES, weight);
            sums[part] += weight;
        }
    floats total = sums[0];
    for (int part = 1; part < PARTS; part++) total += sums[part];
    return 1.0f / sum(total);
}

// Values [16, stride] of a block, `VECTORS` registers wide, added to the sums of `COUNT` queries by their weights.
template <int COUNT, int VECTORS>
INLINE void mix(floats (&sums)[COUNT][VECTORS], const float* values, size_t stride, const float* weights,
                size_t apart, int count) {
    for (int key = 0; key < count; key++) {
        floats of_key[VECTORS];
#pragma GCC unroll 4
        for (int i = 0; i < VECTORS; i++) of_key[i] = load(values + key * stride + i * LANES);
#pragma GCC unroll 4
        for (int query = 0; query < COUNT; query++) {
            const floats weight = all(weights[query * apart + key]);
#pragma GCC unroll 4
            for (int i = 0; i < VECTORS; i++) sums[query][i] = fused(weight, of_key[i], sums[query][i]);
        }
    }
}

constexpr int SCORED_AT_ONCE = LANES == 16 ? 8 : 4, MIXED_AT_ONCE = 4;
constexpr int MIXED_VECTORS = LANES == 16 ? 4 : 2;

class Attention {
public:
    Attention(const Queries& queries, const Blocks& keys, const Blocks& values, AttentionSpace& space)
        : queries_(queries), keys_(keys), values_(values), space_(space) {}

    void run() {
        const int last = queries_.positions[queries_.count - 1];
        begin_ = queries_.first(0) / BLOCK;
        end_ = last / BLOCK + 1;
        apart_ = size_t(end_ - begin_) * BLOCK;
        space_.weights.resize(queries_.count * apart_);
        score_all();
        std::vector<float>& scales = scales_;
        scales.resize(queries_.count);
        for (int query = 0; query < queries_.count; query++) {
            const int top = end_of_group(query, MIXED_AT_ONCE);
            const int from = begin_of_group(query, MIXED_AT_ONCE);
            scales[query] = weigh(row(query) + (from - begin_) * BLOCK, from * BLOCK, (top - from) * BLOCK,
                                  queries_.first(query), queries_.positions[query]);
        }
        mix_all();
    }

private:
    float* row(int query) { return space_.weights.data() + query * apart_; }

    // The blocks that some query sees of the `size` that are computed together with this one.
    int begin_of_group(int query, int size) const { return queries_.first(query / size * size) / BLOCK; }
    int end_of_group(int query, int size) const {
        const int last = std::min(query / size * size + size, queries_.count) - 1;
        return queries_.positions[last] / BLOCK + 1;
    }

    template <int COUNT>
    void score_group(int query, int block, int count) {
        if constexpr (COUNT > 1)
            if (count < COUNT) return score_group<COUNT - 1>(query, block, count);
        score<COUNT>(queries_.q + query, space_.keys.data(), queries_.head_dim,
                     row(query) + (block - begin_) * BLOCK, apart_);
    }

    void score_all() {
        space_.keys.resize(size_t(queries_.head_dim) * BLOCK);
        for (int block = begin_; block < end_; block++) {
            transpose_block(keys_.at(block), queries_.head_dim, space_.keys.data());
            for (int query = 0; query < queries_.count; query += SCORED_AT_ONCE) {
                // Mixing takes groups of another size, which must not find blocks that have no scores.
                static_assert(SCORED_AT_ONCE % MIXED_AT_ONCE == 0, "groups lie within groups");
                if (block < begin_of_group(query, SCORED_AT_ONCE) || block >= end_of_group(query, SCORED_AT_ONCE))
                    continue;
                score_group<SCORED_AT_ONCE>(query, block, std::min(SCORED_AT_ONCE, queries_.count - query));
            }
        }
    }

    template <int COUNT, int VECTORS>
    void mix_group(int query, int column) {
        floats sums[COUNT][VECTORS];
        for (auto& of_query : sums)
            for (auto& one : of_query) one = all(0.0f);
        const int last = queries_.positions[query + COUNT - 1];
        for (int block = begin_of_group(query, MIXED_AT_ONCE); block <= last / BLOCK; block++) {
            const float* values = values_.at(block);
            size_t stride = queries_.head_dim;
            const int count = std::min(BLOCK, last - block * BLOCK + 1);
            if (stride % LANES) {
                // Whole registers are read: behind the last value there may be no memory.
                stride = (stride + LANES - 1) / LANES * LANES;
                space_.values.resize(stride * BLOCK);
                for (int key = 0; key < count; key++)
                    memcpy(space_.values.data() + key * stride, values + size_t(key) * queries_.head_dim,
                           queries_.head_dim * sizeof(float));
                values = space_.values.data();
            }
            mix(sums, values + column, stride, row(query) + (block - begin_) * BLOCK, apart_, count);
        }
        for (int i = 0; i < COUNT; i++)
            for (int vector = 0; vector < VECTORS; vector++) {
                float found[LANES];
                store(found, sums[i][vector] * all(scales_[query + i]));
                const int at = column + vector * LANES;
                memcpy(queries_.out[query + i] + at, found,
                       std::min(LANES, queries_.head_dim - at) * sizeof(float));
            }
    }

    template <int COUNT>
    void mix_columns(int query, int count) {
        if constexpr (COUNT > 1)
            if (count < COUNT) return mix_columns<COUNT - 1>(query, count);
        int column = 0;
        for (; queries_.head_dim - column > (MIXED_VECTORS - 1) * LANES; column += MIXED_VECTORS * LANES)
            mix_group<COUNT, MIXED_VECTORS>(query, column);
        for (; column < queries_.head_dim; column += LANES) mix_group<COUNT, 1>(query, column);
    }

    void mix_all() {
        for (int query = 0; query < queries_.count; query += MIXED_AT_ONCE)
            mix_columns<MIXED_AT_ONCE>(query, std::min(MIXED_AT_ONCE, queries_.count - query));
    }

    const Queries& queries_;
    const Blocks &keys_, &values_;
    AttentionSpace& space_;
    std::vector<float> scales_;
    int begin_ = 0, end_ = 0;
    size_t apart_ = 0;
};

}  // namespace yunque
