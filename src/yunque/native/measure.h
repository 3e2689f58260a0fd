// What this machine can do at most: bytes read from memory and products of whole numbers, a second.
#pragma once

#include <chrono>

#include "product.h"
#include "threads.h"

namespace yunque {

// Seconds of `job(number)` in each of some threads.
inline double seconds_of(int threads, const std::function<void(int)>& job) {
    const auto begin = std::chrono::steady_clock::now();
    std::vector<std::thread> others;
    for (int number = 1; number < threads; number++) others.emplace_back(job, number);
    job(0);
    for (auto& thread : others) thread.join();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Bytes a second that the threads read together, the most of several rounds.
inline double bandwidth(int threads, size_t bytes, int rounds) {
    Arena arena;
    const size_t each = bytes / threads / 1024 * 1024;
    std::vector<uint8_t*> parts;
    for (int number = 0; number < threads; number++) parts.push_back(arena.take(each));
    std::vector<float> found(threads * 64);
    // Each thread writes what it will read, so that it lies near to it.
    seconds_of(threads, [&](int number) { memset(parts[number], 1, each); });
    double best = 0;
    for (int round = 0; round < rounds; round++) {
        const double seconds = seconds_of(threads, [&](int number) {
            const auto* from = reinterpret_cast<const float*>(parts[number]);
            floats sums[4] = {all(0.0f), all(0.0f), all(0.0f), all(0.0f)};
            for (size_t i = 0; i < each / sizeof(float); i += 4 * LANES)
                for (int strand = 0; strand < 4; strand++) sums[strand] += load(from + i + strand * LANES);
            found[number * 64] = sum(sums[0] + sums[1] + sums[2] + sums[3]);
        });
        best = std::max(best, double(each) * threads / seconds);
    }
    return best;
}

// Products and sums of INT8 numbers a second, where all of them lie near the processor.
inline double integer_speed(int threads, int rounds) {
    constexpr int COLUMNS = 256, REPEATS = 4000, ROWS = ByteDots::ROWS, PANELS = ByteDots::PANELS;
    Arena arena;
    const std::vector<int8_t> values(PANELS * PANEL * COLUMNS, 3);
    const std::vector<float> ones(PANELS * PANEL, 1.0f);
    const Source source{INT8, PANELS * PANEL, COLUMNS, 0, values.data(), ones.data(), nullptr, nullptr};
    Matrix matrix;
    matrix.read(source, arena);
    std::vector<ByteDots::Input> numbers(ROWS * (COLUMNS + 64), 2);
    std::vector<float> scales(ROWS, 1.0f);
    std::vector<int32_t> sums(ROWS, 2 * COLUMNS);
    const Inputs inputs{matrix.layout, nullptr, 0, numbers.data(), COLUMNS + 64, scales.data(), sums.data()};
    double best = 0;
    for (int round = 0; round < rounds; round++) {
        const double seconds = seconds_of(threads, [&](int) {
            alignas(64) Tile tile;
            for (int repeat = 0; repeat < REPEATS; repeat++) {
                int8_tile<ROWS, PANELS>(matrix, 0, inputs, 0, tile);
                // What nobody looks at would not be computed.
                asm volatile("" : : "r"(tile) : "memory");
            }
        });
        best = std::max(best, double(ROWS) * PANELS * PANEL * COLUMNS * REPEATS * threads / seconds);
    }
    return best;
}

}  // namespace yunque
