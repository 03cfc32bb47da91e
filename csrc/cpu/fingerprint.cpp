// fingerprint: tells whether parameters changed behind their version counters, as writes through `.data` do.
#include <array>
#include <bit>
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

// Every step is a bijection, so that one word that changed is always noticed; the rotation lets a word's highest bits
// reach the others. Several chains, since each waits for its own multiplication.
class Hash {
 public:
  static constexpr int kChains = 8;

  Hash() { chains_.fill(0xcbf29ce484222325); }

  void add(int chain, uint64_t word) { chains_[chain] = std::rotl((chains_[chain] ^ word) * 0x9e3779b97f4a7c15, 29); }

  int64_t value() const {
    Hash all;
    for (const uint64_t chain : chains_) all.add(0, chain);
    return std::bit_cast<int64_t>(all.chains_[0]);
  }

 private:
  std::array<uint64_t, kChains> chains_;
};

template <class Word>
void add_elements(const Tensor& tensor, Hash& hash) {
  const char* data = static_cast<const char*>(tensor.data_ptr());
  const int64_t count = tensor.numel(), step = count > 0 ? step_of(count) : 1;
  const auto add = [&](int chain, int64_t i) {
    Word word;
    std::memcpy(&word, data + i * static_cast<int64_t>(sizeof word), sizeof word);
    hash.add(chain, word);
  };
  int64_t i = 0;
  for (; i + (Hash::kChains - 1) * step < count; i += Hash::kChains * step)
    for (int chain = 0; chain < Hash::kChains; ++chain) add(chain, i + chain * step);
  for (int chain = 0; i < count; i += step) add(chain++, i);
}

void add(const Tensor& tensor, Hash& hash) {
  hash.add(0, std::bit_cast<uint64_t>(tensor.data_ptr()));
  hash.add(1, static_cast<uint64_t>(tensor.scalar_type()));
  for (const int64_t size : tensor.sizes()) hash.add(2, static_cast<uint64_t>(size));
  for (const int64_t stride : tensor.strides()) hash.add(3, static_cast<uint64_t>(stride));
  switch (tensor.element_size()) {
    case 4:
      return add_elements<uint32_t>(tensor, hash);
    case 8:
      return add_elements<uint64_t>(tensor, hash);
    default:
      fail("fingerprint: elements must be of 4 or 8 bytes, but got dtype=", tensor.scalar_type());
  }
}

// Of dense tensors, whatever the order of their dimensions: where they are, what they are, and what they hold.
int64_t fingerprint(const Tensor& a, const std::optional<Tensor>& b, const std::optional<Tensor>& c,
                    const std::optional<Tensor>& d, const std::optional<Tensor>& e, const std::optional<Tensor>& f) {
  Hash hash;
  add(a, hash);
  for (const std::optional<Tensor>* tensor : {&b, &c, &d, &e, &f})
    if (tensor->has_value()) add(**tensor, hash);
  return hash.value();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cnnfast, CPU, m) { m.impl("fingerprint", TORCH_BOX(&fingerprint)); }

}  // namespace cnnfast
