// Large results on huge pages. New memory is given to a process page by page at its first write, which for a result of
// some megabytes takes as long as computing it; Linux gives 2 MiB at a time where it is asked to. (NumPy asks from the
// same size on, with NUMPY_MADVISE_HUGEPAGE; torch, with THP_MEM_ALLOC_ENABLE.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace cnnfast {

// Memory that is not written yet, of the CPU. CNNFAST_HUGE_PAGES=0 leaves it as it is.
inline void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr size_t kLeast = size_t{1} << 22, kPage = 4096;
  if (bytes < kLeast) return;
  static const bool wanted = [] {
    const char* asked = std::getenv("CNNFAST_HUGE_PAGES");
    return asked == nullptr || std::strcmp(asked, "0") != 0;
  }();
  const uintptr_t first = reinterpret_cast<uintptr_t>(data), begin = (first + kPage - 1) / kPage * kPage;
  // It is but advice: a kernel without huge pages says no, and nothing is lost.
  if (wanted) (void)madvise(reinterpret_cast<void*>(begin), first + bytes - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace cnnfast
