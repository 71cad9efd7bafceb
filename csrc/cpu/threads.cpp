#include "threads.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace dlmt {
namespace {

// About 10 microseconds: the next call of a busy loop finds the threads awake, an idle program does not feel them.
constexpr int kSpins = 300;

// More threads than processors help nobody, but a few are allowed everywhere, so that a small machine can test them.
int most_threads() {
    static const int most = std::max(16, static_cast<int>(std::thread::hardware_concurrency()));  // slow: reads files
    return most;
}

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

struct Work {
    void (*body)(void*, int64_t);
    void* context;
    int64_t parts;
    std::atomic<int64_t> next{0};

    void take() {
        for (int64_t part; (part = next.fetch_add(1, std::memory_order_relaxed)) < parts;) body(context, part);
    }
};

// Never destroyed: its threads are detached and wait in its memory until the process ends.
class Pool {
  public:
    // False where another caller has the threads.
    bool run(Work& work, int threads) {
        std::unique_lock<std::mutex> mine(busy_, std::try_to_lock);
        if (!mine.owns_lock()) return false;
        start(threads - 1);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            work_ = &work;
            wanted_ = std::min(threads - 1, started_);
            generation_.fetch_add(1);
            for (int i = std::min(wanted_, asleep_); i > 0; --i) wake_.notify_one();
        }
        work.take();
        std::unique_lock<std::mutex> lock(mutex_);
        work_ = nullptr;  // who has not come by now is not waited for
        if (inside_ != 0) {
            lock.unlock();
            for (int i = 0; i < kSpins && inside_ != 0; ++i) pause();
            lock.lock();
            done_.wait(lock, [this] { return inside_ == 0; });
        }
        return true;
    }

  private:
    void start(int threads) {
        if (started_ >= threads) return;
        sigset_t all, before;  // signals are for the threads that Python knows
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        try {
            for (; started_ < threads; ++started_) std::thread(&Pool::serve, this).detach();
        } catch (const std::system_error&) {
            // The system gives no more; those that run will do.
        }
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }

    void serve() {
        uint64_t seen = 0;
        for (;;) {
            for (int i = 0; i < kSpins && generation_ == seen; ++i) pause();
            std::unique_lock<std::mutex> lock(mutex_);
            ++asleep_;
            wake_.wait(lock, [&] { return generation_ != seen; });
            --asleep_;
            seen = generation_;
            if (work_ == nullptr || wanted_ == 0) continue;
            --wanted_;
            ++inside_;
            Work& work = *work_;
            lock.unlock();
            work.take();
            lock.lock();
            if (--inside_ == 0) done_.notify_one();
        }
    }

    std::mutex busy_;  // held by the caller whose work it is
    int started_ = 0;  // under busy_

    std::mutex mutex_;  // over what follows
    std::condition_variable wake_, done_;
    Work* work_ = nullptr;
    int wanted_ = 0;                       // threads that may still join the work
    int asleep_ = 0;                       // threads that wait for wake_
    std::atomic<int> inside_{0};           // threads that hold the work; atomic for the spinning caller
    std::atomic<uint64_t> generation_{0};  // one more with every work; atomic for the spinning threads
};

std::atomic<Pool*> current{nullptr};

// The child of a fork has a copy of the pool, perhaps with a locked mutex, and no thread behind it: it is left alone.
void forget_in_child() { current.store(nullptr); }

Pool& pool() {
    Pool* found = current.load(std::memory_order_acquire);
    if (found == nullptr) {
        static std::atomic<bool> registered{false};
        if (!registered.exchange(true)) pthread_atfork(nullptr, nullptr, forget_in_child);
        Pool* made = new Pool;
        if (current.compare_exchange_strong(found, made)) return *made;
        delete made;  // another thread was faster; no thread of this one was started
    }
    return *found;
}

}  // namespace

void parallel(int64_t parts, int threads, void (*body)(void*, int64_t), void* context) {
    Work work{body, context, parts};
    if (parts < threads) threads = static_cast<int>(parts);
    if (threads > 1) threads = std::min(threads, most_threads());
    if (threads < 2 || !pool().run(work, threads)) work.take();
}

}  // namespace dlmt
