// Vectors of floats as wide as the processor has them, and what is computed with them.
//
// Three ways are compiled, one at a time: 512 bits (AVX-512 with VNNI), 256 bits (AVX2 and FMA) and 128 bits in plain
// C++ (any processor; YUNQUE_PLAIN asks for it). Products and sums are fused only where `fused` says so: the compiler
// may not choose (-ffp-contract=off), or a number would depend on the loop that it was computed in.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#if !defined(YUNQUE_PLAIN) && (defined(__x86_64__) || defined(__i386__))
#include <immintrin.h>
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__) && \
    defined(__AVX512VNNI__)
#define YUNQUE_512 1
#elif defined(__AVX2__) && defined(__FMA__)
#define YUNQUE_256 1
#endif
#endif

#define INLINE inline __attribute__((always_inline))

namespace yunque {

#if defined(YUNQUE_512)
using floats = __m512;
constexpr int LANES = 16;
#elif defined(YUNQUE_256)
using floats = __m256;
constexpr int LANES = 8;
#else
typedef float floats __attribute__((vector_size(16)));
constexpr int LANES = 4;
#endif
typedef int32_t ints __attribute__((vector_size(LANES * 4)));

// Outputs of a matrix are computed in panels of so many; a block of the cache holds as many positions.
constexpr int PANEL = 16;
constexpr int PARTS = PANEL / LANES;

// Memory that begins where a cache line does: a register that lies across two lines takes twice as long to read.
template <class Value>
struct Lines {
    using value_type = Value;
    Lines() = default;
    template <class Other>
    Lines(const Lines<Other>&) {}
    Value* allocate(size_t count) {
        return static_cast<Value*>(::operator new(count * sizeof(Value), std::align_val_t(64)));
    }
    void deallocate(Value* memory, size_t) { ::operator delete(memory, std::align_val_t(64)); }
    template <class Other>
    bool operator==(const Lines<Other>&) const {
        return true;
    }
    template <class Other>
    bool operator!=(const Lines<Other>&) const {
        return false;
    }
};

template <class Value>
using Memory = std::vector<Value, Lines<Value>>;

INLINE floats load(const float* from) {
    floats x;
    memcpy(&x, from, sizeof x);
    return x;
}

INLINE void store(float* to, floats x) { memcpy(to, &x, sizeof x); }

INLINE floats all(float x) {
#if defined(YUNQUE_512)
    return _mm512_set1_ps(x);
#elif defined(YUNQUE_256)
    return _mm256_set1_ps(x);
#else
    return floats{x, x, x, x};
#endif
}

INLINE ints all(int32_t x) { return ints{} + x; }

// x y + z
INLINE floats fused(floats x, floats y, floats z) {
#if defined(YUNQUE_512)
    return _mm512_fmadd_ps(x, y, z);
#elif defined(YUNQUE_256)
    return _mm256_fmadd_ps(x, y, z);
#else
    return x * y + z;
#endif
}

// As `fused`, of one number.
INLINE float fused(float x, float y, float z) {
#if defined(YUNQUE_512) || defined(YUNQUE_256)
    return __builtin_fmaf(x, y, z);
#else
    return x * y + z;
#endif
}

INLINE floats converted(ints x) {
#if defined(YUNQUE_512)
    return _mm512_cvtepi32_ps((__m512i)x);
#elif defined(YUNQUE_256)
    return _mm256_cvtepi32_ps((__m256i)x);
#else
    return __builtin_convertvector(x, floats);
#endif
}

INLINE floats larger(floats x, floats y) { return x > y ? x : y; }

INLINE float sum(floats x) {
    float parts[LANES];
    store(parts, x);
    for (int width = LANES / 2; width; width /= 2)
        for (int lane = 0; lane < width; lane++) parts[lane] += parts[lane + width];
    return parts[0];
}

INLINE float largest(floats x) {
    float best = x[0];
    for (int lane = 1; lane < LANES; lane++) best = x[lane] > best ? x[lane] : best;
    return best;
}

// Adding it leaves the nearest whole number (halves to even) in the last bits of a float.
constexpr float ROUNDER = 12582912.0f;

INLINE ints nearest(floats x) { return (ints)(x + all(ROUNDER)) - (ints)all(ROUNDER); }

// e^x to about 1e-7 of itself; 0 below -87.3; NaN stays NaN.
INLINE floats exponential(floats x) {
    const floats lowest = all(-87.33f), highest = all(88.0f);
    const ints none = x < lowest;
    x = x > highest ? highest : x;
    const floats shifted = fused(x, all(1.44269504088896341f), all(ROUNDER));
    const floats power = shifted - all(ROUNDER);
    // ln 2 in two parts, so that nothing of x is lost; the polynomial is Cephes' (S. Moshier, 1989).
    floats rest = fused(power, all(-0.693359375f), x);
    rest = fused(power, all(2.12194440e-4f), rest);
    floats y = all(1.9875691500e-4f);
    y = fused(y, rest, all(1.3981999507e-3f));
    y = fused(y, rest, all(8.3334519073e-3f));
    y = fused(y, rest, all(4.1665795894e-2f));
    y = fused(y, rest, all(1.6666665459e-1f));
    y = fused(y, rest, all(5.0000001201e-1f));
    y = fused(y, rest * rest, rest + all(1.0f));
    const ints exponent = ((ints)shifted - (ints)all(ROUNDER) + 127) << 23;
    y = y * (floats)exponent;
    return none ? all(0.0f) : y;
}

}  // namespace yunque
