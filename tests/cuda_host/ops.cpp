// torch.ops.cnnfast_emulated: csrc/library.cpp's ops, and how the emulation runs them.
#include <stdexcept>

#include "emulation.h"
#include "namespace.h"

namespace cnnfast {
namespace {

void set_schedule(int64_t schedule, int64_t seed, int64_t poison) {
  if (schedule < 0 || schedule >= emulation::kSchedules) throw std::runtime_error("no such schedule");
  emulation::set_schedule(static_cast<emulation::Schedule>(schedule), static_cast<uint64_t>(seed),
                          static_cast<uint8_t>(poison));
}

void set_tensor_cores(bool present) { emulation::has_tensor_cores = present; }
void set_only_ends(bool only) { emulation::only_ends = only; }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(cnnfast_emulated, m) {
  m.def("set_schedule(int schedule, int seed, int poison) -> ()");
  m.def("set_tensor_cores(bool present) -> ()");
  m.def("set_only_ends(bool only) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(cnnfast_emulated, CompositeExplicitAutograd, m) {
  m.impl("set_schedule", TORCH_BOX(&set_schedule));
  m.impl("set_tensor_cores", TORCH_BOX(&set_tensor_cores));
  m.impl("set_only_ends", TORCH_BOX(&set_only_ends));
}

}  // namespace cnnfast
