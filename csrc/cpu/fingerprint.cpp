// fingerprint: tells whether parameters changed behind their version counters, as writes through `.data` do.
#include <cstring>
#include <optional>

#include "checks.h"
#include "tensor.h"

namespace cnnfast {
namespace {

// All elements of small tensors are looked at; of larger ones about kSamples, in a step that has no factor in common
// with any of the tensor's sizes, so that no slice of it is passed over.
constexpr int64_t kAll = 4096, kSamples = 512;

int64_t step_of(int64_t count) {
  int64_t step = count <= kAll ? 1 : count / kSamples;
  while (gcd(step, count) != 1) ++step;
  return step;
}

void add(const Tensor& tensor, uint64_t& sum) {
  const char* data = static_cast<const char*>(tensor.data_ptr());
  const int64_t count = tensor.numel(), size = static_cast<int64_t>(tensor.element_size());
  CNNFAST_CHECK(size % 4 == 0, "fingerprint: elements must be of 4 or 8 bytes, but got dtype=", tensor.scalar_type());
  const int64_t step = count > 0 ? step_of(count) : 1;
  for (int64_t i = 0; i < count; i += step) {
    for (int64_t byte = 0; byte < size; byte += 4) {
      uint32_t bits;
      std::memcpy(&bits, data + i * size + byte, sizeof bits);
      sum = (sum ^ bits) * 0x100000001b3;  // FNV-1a, by words
    }
  }
}

// Of dense tensors, whatever the order of their dimensions.
int64_t fingerprint(const Tensor& a, const std::optional<Tensor>& b, const std::optional<Tensor>& c,
                    const std::optional<Tensor>& d, const std::optional<Tensor>& e, const std::optional<Tensor>& f) {
  uint64_t sum = 0xcbf29ce484222325;
  add(a, sum);
  for (const std::optional<Tensor>* tensor : {&b, &c, &d, &e, &f})
    if (tensor->has_value()) add(**tensor, sum);
  int64_t result;
  std::memcpy(&result, &sum, sizeof result);
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cnnfast, CPU, m) { m.impl("fingerprint", TORCH_BOX(&fingerprint)); }

}  // namespace cnnfast
