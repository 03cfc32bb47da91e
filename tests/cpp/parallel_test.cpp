// Threads: every task once, whatever their number; scratch memory that does not overlap.
#include "cpu/parallel.h"

#include <omp.h>

#include <cstdint>
#include <cstring>

#include "cpu/workspace.h"
#include "kernels_testing.h"

using namespace cnnfast;

namespace {
constexpr int kThreadCounts[] = {1, 2, 5, 70};  // the last beyond the queues
}

TEST(every_task_runs_once) {
  for (const int threads : kThreadCounts) {
    omp_set_num_threads(threads);
    for (const int64_t tasks : {0, 1, 2, 3, 7, 1000}) {
      WHERE(threads, " threads, ", tasks, " tasks");
      std::vector<std::atomic<int>> runs(static_cast<size_t>(tasks));
      parallel_tasks(tasks, [&](int64_t i) { ++runs[static_cast<size_t>(i)]; });
      for (const std::atomic<int>& count : runs) CHECK_EQ(count.load(), 1);
    }
  }
}

TEST(ranges_cover_in_pieces_of_the_grain) {
  for (const int threads : kThreadCounts) {
    omp_set_num_threads(threads);
    for (const int64_t size : {0, 1, 9, 10, 11, 100, 101}) {
      WHERE(threads, " threads, size ", size);
      std::vector<std::atomic<int>> seen(static_cast<size_t>(size));
      std::atomic<bool> aligned{true};
      parallel_ranges(size, 10, [&](int64_t begin, int64_t end) {
        if (begin % 10 != 0 || (end != size && end != begin + 10)) aligned = false;
        for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
      });
      CHECK(aligned.load());
      for (const std::atomic<int>& count : seen) CHECK_EQ(count.load(), 1);
    }
  }
}

TEST(workspace_pieces_are_aligned_and_apart) {
  const int64_t counts[] = {1, 15, 16, 17, 1000};
  size_t bytes = 0;
  for (const int64_t count : counts) bytes += Workspace::needed<float>(count);
  Workspace workspace(bytes);
  const char* previous_end = nullptr;
  for (const int64_t count : counts) {
    float* piece = workspace.take<float>(count);
    CHECK_EQ(reinterpret_cast<uintptr_t>(piece) % 64, uintptr_t{0});
    CHECK(reinterpret_cast<char*>(piece) >= previous_end);
    previous_end = reinterpret_cast<char*>(piece + count) + Workspace::kSlackBytes;
    // Piece and slack are memory that may be written: AddressSanitizer looks on.
    std::memset(piece, 1, static_cast<size_t>(count) * sizeof(float) + Workspace::kSlackBytes);
  }
}

TEST(workspace_scopes_nest_and_are_reused) {
  const size_t bytes = Workspace::needed<float>(1000);
  // The first scopes make the arena grow to hold both.
  for (int round = 0; round < 2; ++round) {
    Workspace outer(bytes);
    Workspace inner(bytes);
  }
  float* first;
  {
    Workspace outer(bytes);
    first = outer.take<float>(1000);
    std::memset(first, 1, 4000);
    Workspace inner(bytes);
    float* second = inner.take<float>(1000);
    CHECK(second >= first + 1000 || second + 1000 <= first);
    std::memset(second, 2, 4000);
    CHECK_EQ(reinterpret_cast<char*>(first)[3999], 1);
  }
  Workspace again(bytes);
  CHECK(again.take<float>(1000) == first);
}

TEST(workspace_holds_more_than_it_keeps) {
  const int64_t count = int64_t{20} << 20;
  Workspace workspace(Workspace::needed<float>(count));
  float* piece = workspace.take<float>(count);
  piece[0] = 1, piece[count - 1] = 2;
  CHECK_EQ(piece[0] + piece[count - 1], 3.0f);
}

TEST(workspaces_of_threads_are_apart) {
  omp_set_num_threads(4);
  std::atomic<int> wrong{0};
#pragma omp parallel
  {
    const int mark = omp_get_thread_num() + 1;
    Workspace workspace(Workspace::needed<char>(100000));
    char* piece = workspace.take<char>(100000);
    std::memset(piece, mark, 100000);
#pragma omp barrier
    for (int i = 0; i < 100000; ++i) wrong += piece[i] != mark;
  }
  CHECK_EQ(wrong.load(), 0);
}
