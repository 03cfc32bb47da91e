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

// Calls task(i) once for each i in [0, tasks), on the threads of the team. Which thread runs which task is open (a
// slow core takes fewer), so a task must write only what is its own.
template <class Task>
void parallel_tasks(int64_t tasks, const Task& task) {
  if (tasks <= 1) {
    if (tasks == 1) task(int64_t{0});
    return;
  }
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t, int64_t) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) task(i);
  };
#ifdef CNNFAST_TORCH_FREE
#pragma omp parallel
  work(0, 1);
#else
  const int64_t threads = torch::stable::get_num_threads();
  torch::stable::parallel_for(0, threads < tasks ? threads : tasks, 1, work);
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
