// Threads that go through the phases of a step together.
//
// A phase is divided into pieces, and is over when all pieces are done: nobody waits for a thread that has none of them.
// So a thread that the system holds up costs its piece, and not each of the hundreds of phases of a step; it catches up
// when it comes. Who waits does so in a loop for some microseconds before it sleeps: waking a thread takes longer than
// most phases of a small model. The threads are ours and not OpenMP's, which would stand in the way of torch's.
#pragma once

#include <unistd.h>

#include <algorithm>
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
    // A thread's way through the phases of a step.
    class Way {
    public:
        Way(Team& team, int number) : number(number), team_(team) {}

        const int number;

        int threads() const { return team_.size_; }

        // `work(begin, end)` for pieces of `count`, at most `length` long, until all are done. Every thread must come
        // through the same phases.
        template <class Work>
        void share(int count, int length, const Work& work) {
            Phase& phase = team_.phases_.at(next_++);
            for (int begin; (begin = phase.taken.fetch_add(length)) < count;) {
                const int end = std::min(count, begin + length);
                work(begin, end);
                if (phase.done.fetch_add(end - begin) + end - begin == count) team_.done_.change();
            }
            for (;;) {
                const unsigned seen = team_.done_.value();
                if (phase.done.load() >= count) return;
                team_.done_.wait_for_change(seen);
            }
        }

    private:
        Team& team_;
        int next_ = 0;
    };

    Team(int size, int phases) : size_(size), process_(getpid()), phases_(phases) {
        for (int number = 1; number < size; number++) threads_.emplace_back([this, number] { work(number); });
    }

    ~Team() {
        over_ = true;
        begin_.change();
        for (auto& thread : threads_) thread.join();
    }

    // A forked process has none of the threads.
    bool is_here() const { return process_ == getpid(); }

    // Threads of a parent process cannot be joined: they are forgotten.
    void forget() {
        for (auto& thread : threads_) thread.detach();
        threads_.clear();
    }

    // Go through a step: in this thread, which is number 0, and in all others that come in time.
    void run(const std::function<void(Way&)>& step) {
        for (Phase& phase : phases_) phase.taken.store(0), phase.done.store(0);
        step_ = &step;
        open_.store(true);
        if (size_ > 1) begin_.change();
        Way way(*this, 0);
        step(way);
        open_.store(false);
        for (;;) {
            const unsigned seen = left_.value();
            if (!inside_.load()) return;
            left_.wait_for_change(seen);
        }
    }

private:
    struct alignas(64) Phase {
        std::atomic<int> taken{0}, done{0};
    };

    void work(int number) {
        for (unsigned seen = 0;;) {
            begin_.wait_for_change(seen);
            seen = begin_.value();
            if (over_) return;
            // Whoever is inside when a step closes is waited for; whoever comes later finds it closed.
            inside_.fetch_add(1);
            if (open_.load()) {
                Way way(*this, number);
                (*step_)(way);
            }
            inside_.fetch_sub(1);
            left_.change();
        }
    }

    const int size_;
    const pid_t process_;
    const std::function<void(Way&)>* step_ = nullptr;
    std::atomic<bool> open_{false}, over_{false};
    std::atomic<int> inside_{0};
    Signal begin_, done_, left_;
    std::vector<Phase> phases_;
    std::vector<std::thread> threads_;
};

}  // namespace yunque
