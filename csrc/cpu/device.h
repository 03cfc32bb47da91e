// Selects the CPU's overloads: see ops/device.h.
#pragma once

#include "common/activation.h"

namespace cnnfast {

struct Cpu {
  static constexpr Activation kLastActivation = Activation::relu6;  // that convolution fuses
  static constexpr bool kWidens = true;                             // see ops/widened.h
};

}  // namespace cnnfast
