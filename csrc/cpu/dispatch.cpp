// Compiled without any instruction set flags: this code must run before the processor is known.
#include "cpu/dispatch.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>

namespace cnnfast {

#define CNNFAST_ISA_ROW(name, supported, by_default) extern const CpuKernels name##_kernels;
#include "cpu/isa/isa.inc"
#undef CNNFAST_ISA_ROW

namespace {

#if defined(__x86_64__)
// __builtin_cpu_supports also asks whether the operating system saves the registers (xgetbv).
[[maybe_unused]] bool processor_has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
[[maybe_unused]] bool processor_has_avx512() {
  return processor_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
}
// Two 512-bit multiply-adds a cycle, at no lower clock than two of 256 bits: Intel's servers from Sapphire Rapids on.
// (Earlier ones slow their clock, Intel's small processors have one such unit, AMD's Zen 4 halves the rate.)
[[maybe_unused]] bool processor_doubles_avx512() {
  return processor_has_avx512() && __builtin_cpu_is("intel") && __builtin_cpu_supports("avx512fp16");
}
#endif

struct Row {
  const CpuKernels* kernels;
  bool supported;
  bool by_default;
};

const Row kRows[] = {
#define CNNFAST_ISA_ROW(name, supported, by_default) {&name##_kernels, supported, by_default},
#include "cpu/isa/isa.inc"
#undef CNNFAST_ISA_ROW
};

struct Choice {
  std::atomic<const CpuKernels*> kernels{nullptr};
  std::string reason;

  Choice() {
    const char* asked = std::getenv("CNNFAST_CPU_ISA");
    if (asked != nullptr && *asked != '\0') {
      for (const Row& row : kRows) {
        if (row.supported && std::string(asked) == row.kernels->isa) {
          kernels = row.kernels;
          reason = "CNNFAST_CPU_ISA";
          return;
        }
      }
      std::fprintf(stderr, "cnnfast: CNNFAST_CPU_ISA=%s was not built or is not supported here; ignored\n", asked);
    }
    for (const Row& row : kRows) {
      if (row.supported && row.by_default) {
        kernels = row.kernels;
        reason = "default for this processor";
        return;
      }
    }
  }
};

Choice& choice() {
  static Choice instance;
  return instance;
}

}  // namespace

const CpuKernels& cpu_kernels() { return *choice().kernels.load(std::memory_order_relaxed); }

bool set_cpu_isa(const std::string& name) {
  for (const Row& row : kRows) {
    if (row.supported && name == row.kernels->isa) {
      choice().kernels = row.kernels;
      choice().reason = "set by the caller";
      return true;
    }
  }
  return false;
}

std::string cpu_isa_report() {
  std::string built, supported;
  for (const Row& row : kRows) {
    const std::string quoted = std::string("\"") + row.kernels->isa + "\"";
    built += (built.empty() ? "" : ", ") + quoted;
    if (row.supported) supported += (supported.empty() ? "" : ", ") + quoted;
  }
  return std::string("{\"isa\": \"") + cpu_kernels().isa + "\", \"reason\": \"" + choice().reason + "\", \"built\": [" +
         built + "], \"supported\": [" + supported + "]}";
}

}  // namespace cnnfast
