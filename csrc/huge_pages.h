// Large results on huge pages. New memory is given to a process page by page at its first write, which for a result of
// some megabytes takes as long as computing it; Linux gives 2 MiB at a time where it is asked to. (NumPy asks from the
// same size on, torch where it is told to by THP_MEM_ALLOC_ENABLE.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace cnnfast {

// Memory that is not written yet, of the CPU. CNNFAST_HUGE_PAGES=0 leaves it as it is.
inline void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr size_t kLeast = size_t{1} << 22;
  if (bytes < kLeast) return;
  static const bool wanted = [] {
    const char* asked = std::getenv("CNNFAST_HUGE_PAGES");
    return asked == nullptr || std::strcmp(asked, "0") != 0;
  }();
  static const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t first = reinterpret_cast<uintptr_t>(data), begin = (first + page - 1) / page * page;
  // It is but advice: a kernel without huge pages says no, and nothing is lost.
  if (wanted) (void)madvise(reinterpret_cast<void*>(begin), first + bytes - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace cnnfast
