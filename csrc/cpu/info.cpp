// What the CPU kernels say of themselves: cpu_info, set_cpu_isa, set_winograd, fma_peak.
#include <chrono>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "cpu/winograd_conv2d.h"
#include "tensor.h"

namespace cnnfast {
namespace {

std::string cpu_info() { return cpu_isa_report(); }

bool set_cpu_isa_op(std::string isa) { return set_cpu_isa(isa); }

// Floating point operations per second that `threads` threads reach with nothing but fused multiply-adds.
double fma_peak(double seconds, int64_t threads) {
  using Clock = std::chrono::steady_clock;
  CNNFAST_CHECK(seconds > 0 && threads > 0, "fma_peak: seconds and threads must be positive, but got seconds=", seconds,
                ", threads=", threads);
  // More than the team would run one after another, and count twice.
  const int64_t team = torch::stable::get_num_threads();
  CNNFAST_CHECK(threads <= team, "fma_peak: threads must be at most torch.get_num_threads() = ", team,
                ", but got threads=", threads);
  const FmaPeakKernel& kernel = cpu_kernels().fma_peak;
  std::vector<double> rates(static_cast<size_t>(threads), 0.0);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t kRound = 100000;
      volatile float sink = 0;
      int64_t rounds = 0;
      const auto start = Clock::now();
      double elapsed = 0;
      do {
        sink = kernel.run(kRound);
        ++rounds;
        elapsed = std::chrono::duration<double>(Clock::now() - start).count();
      } while (elapsed < seconds);
      (void)sink;
      rates[static_cast<size_t>(i)] = static_cast<double>(rounds * kRound * kernel.flops_per_iteration) / elapsed;
    }
  });
  double total = 0;
  for (const double rate : rates) total += rate;
  return total;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cnnfast, CompositeExplicitAutograd, m) {
  m.impl("cpu_info", TORCH_BOX(&cpu_info));
  m.impl("set_cpu_isa", TORCH_BOX(&set_cpu_isa_op));
  m.impl("set_winograd", TORCH_BOX(&set_winograd));
  m.impl("fma_peak", TORCH_BOX(&fma_peak));
}

}  // namespace cnnfast
