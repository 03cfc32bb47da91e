// There is but one CPU, and its scratch is each thread's own (workspace.h): nothing to guard.
#pragma once

#include "cpu/device.h"
#include "ops/device.h"

namespace cnnfast {

template <>
class Guard<Cpu> {
 public:
  explicit Guard(const Tensor&, bool = false) {}
  Cpu device() const { return {}; }
};

}  // namespace cnnfast
