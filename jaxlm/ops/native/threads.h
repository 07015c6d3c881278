// What the products share: work on the threads of XLA, memory for vectors, an error.

#ifndef JAXLM_THREADS_H
#define JAXLM_THREADS_H

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>
#include <thread>
#include <utility>

#include "xla/ffi/api/ffi.h"

// Runs work(0) to work(count - 1), on XLA's threads and the calling one, which waits for none that has not begun.
inline void run_parallel(xla::ffi::ThreadPool& pool, int64_t count, std::function<void(int64_t)> work) {
  struct Tasks {
    std::function<void(int64_t)> work;
    int64_t count;
    std::atomic<int64_t> next{0}, done{0};

    void run() {
      for (int64_t task; (task = next.fetch_add(1)) < count;) {
        work(task);
        done.fetch_add(1, std::memory_order_release);
      }
    }
  };
  auto tasks = std::make_shared<Tasks>();
  tasks->work = std::move(work);
  tasks->count = count;
  for (int64_t thread = 1; thread < std::min<int64_t>(pool.num_threads(), count); thread++) {
    pool.Schedule([tasks] { tasks->run(); });
  }
  tasks->run();
  while (tasks->done.load(std::memory_order_acquire) < count) std::this_thread::yield();
}

// Returns how many of `rows` a thread takes at a time: as many blocks as threads or a multiple of that, none of more
// than `largest` rows, whole panels of `panel` rows.
inline int64_t rows_of_part(xla::ffi::ThreadPool& pool, int64_t rows, int64_t largest, int64_t panel) {
  int64_t threads = std::max<int64_t>(1, pool.num_threads());
  int64_t parts = (std::max<int64_t>(1, rows) + largest * threads - 1) / (largest * threads) * threads;
  return (rows + parts * panel - 1) / (parts * panel) * panel;
}

inline xla::ffi::Error different_sizes() {
  return xla::ffi::Error::InvalidArgument("the sizes of the operands differ where they are summed or scaled");
}

// Returns memory for some vectors, aligned as the widest are.
template <typename Vector>
std::unique_ptr<Vector[], decltype(&std::free)> allocated(int64_t vectors) {
  int64_t bytes = (vectors * sizeof(Vector) + 63) / 64 * 64;
  auto* memory = static_cast<Vector*>(std::aligned_alloc(64, bytes));
  if (memory == nullptr && bytes > 0) throw std::bad_alloc();
  return {memory, &std::free};
}

#endif
