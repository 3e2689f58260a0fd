// Sums of products of whole numbers: four inputs of each of the 16 outputs of a panel at a time.
//
// Weights are unsigned (0 to 255, or 0 to 15 where two share a byte), inputs are -127 to 127, and sums are exact in 32
// bits whatever the instructions are: AVX-512 VNNI, AVX-VNNI, AVX2 (products of 16 bits added in pairs) or plain C++.
// 64 bytes of a panel are 4 inputs of 16 outputs. A kind of sums has
//
//   ROWS, PANELS        how many rows of inputs and panels fit in the registers together
//   STRANDS             how many sums of each output a row alone needs, so that none waits for the last
//   Input               the type that inputs are kept in
//   load                64 weights, as they lie in memory;  low, high: those in the halves of 64 bytes
//   input               4 inputs of a row, for every output
//   add                 sum += weights inputs
//   flush               to be called at least every 8 times that `add` is
//   total               sums of part of a panel, in order
#pragma once

#include "simd.h"

namespace yunque {

template <class Value>
INLINE Value bytes_at(const void* from) {
    Value value;
    memcpy(&value, from, sizeof value);
    return value;
}

#if defined(YUNQUE_512)

struct ByteDots {
    static constexpr int ROWS = 6, PANELS = 3, STRANDS = 4;
    using Input = int8_t;
    using Weights = __m512i;
    using Value = __m512i;
    using Sums = __m512i;
    static INLINE Sums none() { return _mm512_setzero_si512(); }
    static INLINE Weights load(const uint8_t* from) { return _mm512_loadu_si512(from); }
    static INLINE Weights low(Weights w) { return _mm512_and_si512(w, _mm512_set1_epi8(15)); }
    static INLINE Weights high(Weights w) { return low(_mm512_srli_epi16(w, 4)); }
    static INLINE Value input(const Input* from) { return _mm512_set1_epi32(bytes_at<int32_t>(from)); }
    static INLINE void add(Sums& sums, Weights w, Value x) { sums = _mm512_dpbusd_epi32(sums, w, x); }
    static INLINE void flush(Sums&) {}
    static INLINE void join(Sums& sums, Sums more) { sums = _mm512_add_epi32(sums, more); }
    static INLINE ints total(const Sums& sums, int) { return (ints)sums; }
};
using HalfByteDots = ByteDots;

#elif defined(YUNQUE_256) && defined(__AVXVNNI__)

struct ByteDots {
    static constexpr int ROWS = 6, PANELS = 1, STRANDS = 4;
    using Input = int8_t;
    using Value = __m256i;
    struct Weights {
        __m256i half[2];
    };
    struct Sums {
        __m256i half[2];
    };
    static INLINE Sums none() { return {{_mm256_setzero_si256(), _mm256_setzero_si256()}}; }
    static INLINE Weights load(const uint8_t* from) {
        return {{bytes_at<__m256i>(from), bytes_at<__m256i>(from + 32)}};
    }
    static INLINE __m256i low(__m256i w) { return _mm256_and_si256(w, _mm256_set1_epi8(15)); }
    static INLINE Weights low(const Weights& w) { return {{low(w.half[0]), low(w.half[1])}}; }
    static INLINE Weights high(const Weights& w) {
        return {{low(_mm256_srli_epi16(w.half[0], 4)), low(_mm256_srli_epi16(w.half[1], 4))}};
    }
    static INLINE Value input(const Input* from) { return _mm256_set1_epi32(bytes_at<int32_t>(from)); }
    static INLINE void add(Sums& sums, const Weights& w, Value x) {
        sums.half[0] = _mm256_dpbusd_avx_epi32(sums.half[0], w.half[0], x);
        sums.half[1] = _mm256_dpbusd_avx_epi32(sums.half[1], w.half[1], x);
    }
    static INLINE void flush(Sums&) {}
    static INLINE void join(Sums& sums, const Sums& more) {
        sums.half[0] = _mm256_add_epi32(sums.half[0], more.half[0]);
        sums.half[1] = _mm256_add_epi32(sums.half[1], more.half[1]);
    }
    static INLINE ints total(const Sums& sums, int part) { return (ints)sums.half[part]; }
};
using HalfByteDots = ByteDots;

#elif defined(YUNQUE_256)

// The sum of two products of a weight up to 255 and an input does not fit in 16 bits, so both are widened to 16 bits
// before they are multiplied: a pair's sum is then 32 bits. A register has 4 outputs, each in two places.
struct ByteDots {
    static constexpr int ROWS = 2, PANELS = 1, STRANDS = 1;
    using Input = int16_t;
    using Value = __m256i;
    struct Weights {
        __m256i quarter[4];
    };
    struct Sums {
        __m256i quarter[4];
    };
    static INLINE Sums none() {
        const __m256i zero = _mm256_setzero_si256();
        return {{zero, zero, zero, zero}};
    }
    static INLINE Weights load(const uint8_t* from) {
        return {{wide(from), wide(from + 16), wide(from + 32), wide(from + 48)}};
    }
    static INLINE __m256i wide(const uint8_t* from) { return _mm256_cvtepu8_epi16(bytes_at<__m128i>(from)); }
    static INLINE Value input(const Input* from) { return _mm256_set1_epi64x(bytes_at<int64_t>(from)); }
    static INLINE void add(Sums& sums, const Weights& w, Value x) {
        for (int i = 0; i < 4; i++)
            sums.quarter[i] = _mm256_add_epi32(sums.quarter[i], _mm256_madd_epi16(w.quarter[i], x));
    }
    static INLINE void flush(Sums&) {}
    static INLINE void join(Sums& sums, const Sums& more) {
        for (int i = 0; i < 4; i++) sums.quarter[i] = _mm256_add_epi32(sums.quarter[i], more.quarter[i]);
    }
    static INLINE ints total(const Sums& sums, int part) {
        const __m256i pairs = _mm256_hadd_epi32(sums.quarter[2 * part], sums.quarter[2 * part + 1]);
        return (ints)_mm256_permute4x64_epi64(pairs, 0xD8);
    }
};

// Weights up to 15 are small enough for sums of 16 bits: eight steps are 8 * 2 * 15 * 127 = 30,480.
struct HalfByteDots {
    static constexpr int ROWS = 4, PANELS = 1;
    using Input = int8_t;
    using Value = __m256i;
    struct Weights {
        __m256i half[2];
    };
    struct Sums {
        __m256i half[2], small[2];
    };
    static INLINE Sums none() {
        const __m256i zero = _mm256_setzero_si256();
        return {{zero, zero}, {zero, zero}};
    }
    static INLINE Weights load(const uint8_t* from) {
        return {{bytes_at<__m256i>(from), bytes_at<__m256i>(from + 32)}};
    }
    static INLINE __m256i low(__m256i w) { return _mm256_and_si256(w, _mm256_set1_epi8(15)); }
    static INLINE Weights low(const Weights& w) { return {{low(w.half[0]), low(w.half[1])}}; }
    static INLINE Weights high(const Weights& w) {
        return {{low(_mm256_srli_epi16(w.half[0], 4)), low(_mm256_srli_epi16(w.half[1], 4))}};
    }
    static INLINE Value input(const Input* from) { return _mm256_set1_epi32(bytes_at<int32_t>(from)); }
    static INLINE void add(Sums& sums, const Weights& w, Value x) {
        for (int i = 0; i < 2; i++)
            sums.small[i] = _mm256_add_epi16(sums.small[i], _mm256_maddubs_epi16(w.half[i], x));
    }
    static INLINE void flush(Sums& sums) {
        const __m256i ones = _mm256_set1_epi16(1);
        for (int i = 0; i < 2; i++) {
            sums.half[i] = _mm256_add_epi32(sums.half[i], _mm256_madd_epi16(sums.small[i], ones));
            sums.small[i] = _mm256_setzero_si256();
        }
    }
    static INLINE void join(Sums& sums, const Sums& more) {
        for (int i = 0; i < 2; i++) sums.half[i] = _mm256_add_epi32(sums.half[i], more.half[i]);
    }
    static INLINE ints total(const Sums& sums, int part) { return (ints)sums.half[part]; }
};

#else

struct ByteDots {
    static constexpr int ROWS = 4, PANELS = 1, STRANDS = 1;
    using Input = int8_t;
    struct Value {
        Input x[4];
    };
    struct Weights {
        uint8_t w[4 * PANEL];
    };
    struct Sums {
        int32_t sum[PANEL];
    };
    static INLINE Sums none() { return {}; }
    static INLINE Weights load(const uint8_t* from) { return bytes_at<Weights>(from); }
    static INLINE Weights low(Weights w) {
        for (auto& one : w.w) one &= 15;
        return w;
    }
    static INLINE Weights high(Weights w) {
        for (auto& one : w.w) one >>= 4;
        return w;
    }
    static INLINE Value input(const Input* from) { return bytes_at<Value>(from); }
    static INLINE void add(Sums& sums, const Weights& w, const Value& x) {
        for (int output = 0; output < PANEL; output++)
            for (int i = 0; i < 4; i++) sums.sum[output] += w.w[4 * output + i] * x.x[i];
    }
    static INLINE void flush(Sums&) {}
    static INLINE void join(Sums& sums, const Sums& more) {
        for (int output = 0; output < PANEL; output++) sums.sum[output] += more.sum[output];
    }
    static INLINE ints total(const Sums& sums, int part) { return bytes_at<ints>(sums.sum + part * LANES); }
};
using HalfByteDots = ByteDots;

#endif

}  // namespace yunque
