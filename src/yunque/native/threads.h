// Threads that run one function together, and wait for one another within it.
//
// They look for work in a loop for some microseconds before they sleep: a step of a small model has hundreds of places
// where all wait for all, and waking a thread takes longer than the work between two of them. They are ours and not
// OpenMP's, whose threads would stand in the way of torch's.
#pragma once

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "simd.h"

namespace yunque {

INLINE void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Something that changes, and threads that wait until it has.
class Signal {
public:
    unsigned value() const { return value_.load(std::memory_order_acquire); }

    void change() {
        value_.fetch_add(1);
        if (sleepers_.load()) {
            std::lock_guard<std::mutex> lock(mutex_);
            changed_.notify_all();
        }
    }

    void wait_for_change(unsigned from) {
        for (int turn = 0; turn < TURNS; turn++) {
            if (value() != from) return;
            relax();
        }
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1);
        changed_.wait(lock, [&] { return value_.load() != from; });
        sleepers_.fetch_sub(1);
    }

private:
    static constexpr int TURNS = 1000;
    std::atomic<unsigned> value_{0};
    std::atomic<int> sleepers_{0};
    std::mutex mutex_;
    std::condition_variable changed_;
};

class Team {
public:
    explicit Team(int size) : size_(size), process_(getpid()) {
        for (int number = 1; number < size; number++) threads_.emplace_back([this, number] { work(number); });
    }

    ~Team() {
        job_ = nullptr;
        begin_.change();
        for (auto& thread : threads_) thread.join();
    }

    int size() const { return size_; }

    // A forked process has none of the threads.
    bool is_here() const { return process_ == getpid(); }

    // Threads of a parent process cannot be joined: they are forgotten.
    void forget() {
        for (auto& thread : threads_) thread.detach();
        threads_.clear();
    }

    // Run `job(number)` in every thread; this one is number 0.
    void run(const std::function<void(int)>& job) {
        job_ = &job;
        next_.store(0);
        if (size_ > 1) begin_.change();
        job(0);
        meet();
    }

    // Wait until every thread is here. What is taken next is number 0 again.
    void meet() {
        if (size_ == 1) {
            next_.store(0, std::memory_order_relaxed);
            return;
        }
        const unsigned seen = met_.value();
        if (arrived_.fetch_add(1) == size_ - 1) {
            arrived_.store(0);
            next_.store(0);
            met_.change();
        } else {
            met_.wait_for_change(seen);
        }
    }

    // The next of `count` pieces of work, in runs of `length`: where it begins, or `count` when all are taken.
    int take(int count, int length) {
        const int begin = next_.fetch_add(length);
        return begin < count ? begin : count;
    }

private:
    void work(int number) {
        for (unsigned seen = 0;; seen++) {
            begin_.wait_for_change(seen);
            if (!job_) return;
            (*job_)(number);
            meet();
        }
    }

    const int size_;
    const pid_t process_;
    const std::function<void(int)>* job_ = nullptr;
    Signal begin_, met_;
    std::atomic<int> arrived_{0};
    alignas(64) std::atomic<int> next_{0};
    std::vector<std::thread> threads_;
};

}  // namespace yunque
