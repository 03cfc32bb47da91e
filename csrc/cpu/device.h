// Selects the CPU's overloads: see ops/device.h.
#pragma once

#include "common/activation.h"

namespace cnnfast {

struct Cpu {
  static constexpr Activation kLastActivation = Activation::hardswish;  // that convolution fuses
  static constexpr bool kAddsResidual = true;
  static constexpr bool kWidens = true;  // see ops/widened.h
};

}  // namespace cnnfast
