// conv2d_chosen_forward: conv2d by an algorithm that somebody has found the fastest by measuring, instead of the
// planner's.
#include <string>

#include "cpu/conv2d_launch.h"
#include "cpu/guard.h"
#include "cpu/relu.h"
#include "ops/conv2d.h"

namespace cnnfast {

enum class Conv2dAlgorithm { winograd, direct, depthwise, implicit_gemm };

// A device of its own, so that ops/conv2d.h needs no argument for it, and the planner's calls no question.
template <Conv2dAlgorithm kAlgorithm>
struct ChosenCpu : Cpu {};

template <Conv2dAlgorithm kAlgorithm>
class Guard<ChosenCpu<kAlgorithm>> {
 public:
  explicit Guard(const Tensor&, bool = false) {}
  ChosenCpu<kAlgorithm> device() const { return {}; }
};

// What it does not take, or not with a finite result, is the planner's.
template <class T, Conv2dAlgorithm kAlgorithm>
void conv2d_forward(ChosenCpu<kAlgorithm>, const Conv2dShape& s, View<const T> input, View<const T> weight,
                    const T* bias, const Epilogue<T>& epilogue, View<T> output) {
  if constexpr (std::is_same_v<T, float> && kAlgorithm == Conv2dAlgorithm::winograd) {
    if (winograd_conv2d_forward(s, input, weight, bias, epilogue, 1, output, WinogradRival::none)) return;
  } else if constexpr (std::is_same_v<T, float> && kAlgorithm == Conv2dAlgorithm::direct) {
    if (direct_conv2d_forward(s, input, weight, bias, epilogue, output)) return;
  } else if constexpr (kAlgorithm == Conv2dAlgorithm::depthwise) {
    if (depthwise_conv2d_forward<T>(s, input, weight, bias, epilogue, output)) return;
  } else if constexpr (kAlgorithm == Conv2dAlgorithm::implicit_gemm) {
    return implicit_gemm_forward<T>(s, input, weight, bias, epilogue, output);
  }
  conv2d_forward(Cpu{}, s, input, weight, bias, epilogue, output);
}

namespace {

Tensor chosen_forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                      const IntList& options, int64_t activation, const std::optional<Tensor>& residual,
                      std::string algorithm) {
  constexpr const char* kOp = "conv2d_chosen_forward";
  check_options(kOp, options, Conv2dOptions::kCount + 1);
  check_epilogue<Cpu>(kOp, activation, residual);
  const auto run = [&](auto device) {
    return conv2d_forward_as<decltype(device)>(input, weight, bias, conv2d_options(options),
                                               static_cast<Activation>(activation), residual);
  };
  if (algorithm == "winograd") return run(ChosenCpu<Conv2dAlgorithm::winograd>{});
  if (algorithm == "direct") return run(ChosenCpu<Conv2dAlgorithm::direct>{});
  if (algorithm == "depthwise") return run(ChosenCpu<Conv2dAlgorithm::depthwise>{});
  CNNFAST_CHECK(algorithm == "implicit_gemm", kOp,
                ": algorithm must be winograd, direct, depthwise or implicit_gemm, but got algorithm=", algorithm);
  return run(ChosenCpu<Conv2dAlgorithm::implicit_gemm>{});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cnnfast, CPU, m) { m.impl("conv2d_chosen_forward", TORCH_BOX(&chosen_forward)); }

}  // namespace cnnfast
