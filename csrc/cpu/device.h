// Selects the CPU's overloads: see ops/device.h.
#pragma once

namespace cnnfast {

struct Cpu {};

}  // namespace cnnfast
