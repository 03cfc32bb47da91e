// The only place that starts threads: torch's own team in the extension, OpenMP in the torch-free build.
#pragma once

#include <atomic>
#include <cstdint>

#ifdef CNNFAST_TORCH_FREE
#include <omp.h>
#else
#include <torch/csrc/stable/ops.h>
#endif

namespace cnnfast {

// How many threads the team has.
inline int64_t thread_count() {
#ifdef CNNFAST_TORCH_FREE
  return omp_get_max_threads();
#else
  return torch::stable::get_num_threads();
#endif
}

// The tasks that one worker begins with.
struct alignas(64) TaskQueue {
  std::atomic<int64_t> next;
  int64_t begin, end;
};

enum class TaskOrder { ascending, descending };

// Calls task(i) once for each i in [0, tasks), on the threads of the team. Each begins with its own share, a range of
// consecutive tasks: what one op wrote for these images is in that core's cache when the next op reads it. Done with
// it, a thread helps the others (a slow core takes fewer); so which thread runs which task is open, and a task must
// write only what is its own.
template <TaskOrder kOrder = TaskOrder::ascending, class Task>
void parallel_tasks(int64_t tasks, const Task& task) {
  if (tasks <= 1) {
    if (tasks == 1) task(int64_t{0});
    return;
  }
  const int64_t threads = thread_count();
  constexpr int64_t kMaxQueues = 64;  // on the stack; with more threads, several share one
  const int64_t workers = threads < tasks ? threads : tasks, queues = workers < kMaxQueues ? workers : kMaxQueues;
  TaskQueue queue[kMaxQueues];
  for (int64_t q = 0; q < queues; ++q) {
    queue[q].next = queue[q].begin = tasks * q / queues;
    queue[q].end = tasks * (q + 1) / queues;
  }
  const auto work = [&](int64_t worker) {
    for (int64_t q = 0; q < queues; ++q) {
      TaskQueue& from = queue[(worker + q) % queues];
      for (int64_t i; (i = from.next.fetch_add(1, std::memory_order_relaxed)) < from.end;)
        task(kOrder == TaskOrder::ascending ? i : from.begin + from.end - 1 - i);
    }
  };
#ifdef CNNFAST_TORCH_FREE
#pragma omp parallel
  work(omp_get_thread_num());
#else
  torch::stable::parallel_for(0, workers, 1, [&](int64_t worker, int64_t) { work(worker); });
#endif
}

// Calls body(begin, end) on consecutive ranges of at least `grain` that cover [0, size).
template <class Body>
void parallel_ranges(int64_t size, int64_t grain, const Body& body) {
  const int64_t tasks = (size + grain - 1) / grain;
  parallel_tasks(tasks, [&](int64_t i) {
    const int64_t begin = i * grain;
    body(begin, begin + grain < size ? begin + grain : size);
  });
}

}  // namespace cnnfast
