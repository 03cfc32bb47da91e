// Counts the bytes of global memory that the fused kernels move in the lecture's network: traffic BATCH.
//
// The kernels' files are compiled with -fsanitize=thread, for which the compiler calls a function at each load and
// store; but the functions are those below, in the place of the sanitizer's library. They count sectors of 32 bytes,
// the unit in which a GPU moves memory: "moved", each once a kernel however often it is read, as if all that is read
// again were found in a cache; "requested", by each instruction of each warp, as if there were no cache. What a GPU
// moves lies between. Instructions are the C++ compiler's, for the same source.
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "cuda/conv2d_relu_max_pool2d.h"
#include "emulation.h"

namespace cnnfast {
namespace {

constexpr uintptr_t kSector = 32, kAllocation = 512;  // torch's allocator begins at multiples of that
constexpr unsigned kLanes = 32;

// A tensor in global memory.
struct Tensor {
  const char* name;
  bool of_images;  // or of the launch
  uintptr_t begin, bytes;
  std::unique_ptr<void, decltype(&std::free)> memory;
  std::vector<bool> read, written;  // sectors
  int64_t requested = 0;            // sectors, by warps' instructions

  template <class T>
  T* data() const {
    return static_cast<T*>(memory.get());
  }
  int64_t moved() const {
    int64_t sectors = 0;
    for (size_t i = 0; i < read.size(); ++i) sectors += read[i] + written[i];
    return sectors * static_cast<int64_t>(kSector);
  }
};
std::deque<Tensor> tensors;

Tensor& allocate(const char* name, bool of_images, int64_t count, size_t size = sizeof(float)) {
  const uintptr_t bytes = static_cast<uintptr_t>(count) * size;
  const uintptr_t all = (bytes + kAllocation - 1) / kAllocation * kAllocation;
  void* const memory = std::aligned_alloc(kAllocation, all);
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  const std::vector<bool> none(all / kSector);
  return tensors.emplace_back(Tensor{name, of_images, begin, bytes, {memory, std::free}, none, none});
}

Tensor* tensor_at(uintptr_t address) {
  for (Tensor& tensor : tensors)
    if (address >= tensor.begin && address < tensor.begin + tensor.bytes) return &tensor;
  return nullptr;
}

// Threads run one after another from barrier to barrier. Lanes that come to an instruction for the i-th time since the
// last one do so together.
std::map<std::pair<const void*, int>, std::set<uintptr_t>> requests;  // of a warp, in (instruction, i)
std::map<const void*, int> visits;                                    // of a thread
unsigned last_block = 0, last_thread = 0;

void end_warp() {
  for (const auto& [instruction, sectors] : requests)
    for (const uintptr_t sector : sectors) ++tensor_at(sector * kSector)->requested;
  requests.clear();
  visits.clear();
}

void access(const void* place, size_t bytes, bool writes, const void* instruction) {
  const auto address = reinterpret_cast<uintptr_t>(place);
  Tensor* const tensor = tensor_at(address);
  if (tensor == nullptr) return;  // shared memory or a thread's own
  if (blockIdx.x != last_block || threadIdx.x < last_thread || threadIdx.x / kLanes != last_thread / kLanes) end_warp();
  if (threadIdx.x != last_thread) visits.clear();
  last_block = blockIdx.x, last_thread = threadIdx.x;
  auto& request = requests[{instruction, visits[instruction]++}];
  for (uintptr_t sector = address / kSector; sector <= (address + bytes - 1) / kSector; ++sector) {
    (writes ? tensor->written : tensor->read)[sector - tensor->begin / kSector] = true;
    request.insert(sector);
  }
}

struct Scratch final : CudaScratch {
  void* allocate(size_t bytes) const override {
    return cnnfast::allocate("partial", false, static_cast<int64_t>(bytes), 1).data<void>();
  }
};

// What `call` moves, a line for each tensor.
template <class Call>
void count(const char* layer, const char* kernel, int64_t images, const Call& call) {
  for (Tensor& tensor : tensors) {
    tensor.requested = 0;
    tensor.read.assign(tensor.read.size(), false);
    tensor.written = tensor.read;
  }
  call();
  end_warp();
  for (const Tensor& tensor : tensors)
    if (tensor.moved() > 0)
      std::printf("%s,%s,%s,%d,%d,%lld,%lld\n", layer, kernel, tensor.name, tensor.of_images, static_cast<int>(images),
                  static_cast<long long>(tensor.moved()), static_cast<long long>(tensor.requested * kSector));
}

void fill(const Tensor& tensor) {
  for (uintptr_t i = 0; i < tensor.bytes / sizeof(float); ++i)
    tensor.data<float>()[i] = static_cast<float>(std::rand() % 7 - 3);
}

// A 3x3 convolution with padding, its ReLU and 2x2 pooling; the first layer's input has no gradient.
void count_layer(const char* layer, int64_t batch, int64_t C, int64_t size, int64_t K, bool first) {
  const int64_t P = size / 2;
  Conv2dShape conv{batch, C, size, size, K, 3, 3, size, size, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  Pool2dShape pool{batch, K, size, size, 2, 2, P, P, 2, 2, 0, 0, 1, 1};
  // As many images as the batch has slices: what is moved once a launch is then what the batch's launch moves.
  const int64_t N = pool_sparse_plan(conv, pool, !first).slices;
  conv.N = pool.N = N;
  const Strides image{C * size * size, size * size, size, 1}, map{K * P * P, P * P, P, 1}, filters{C * 9, 9, 3, 1};
  tensors.clear();
  const Tensor &input = allocate("input", true, N * image.n), &weight = allocate("weight", false, K * filters.n),
               &bias = allocate("bias", false, K), &output = allocate("output", true, N * map.n),
               &code = allocate("code", true, N * map.n, 1), &grad_output = allocate("grad_output", true, N * map.n),
               &grad_input = allocate("grad_input", true, N * image.n),
               &grad_weight = allocate("grad_weight", false, K * filters.n),
               &grad_bias = allocate("grad_bias", false, K);
  for (const Tensor* tensor : {&input, &weight, &bias, &grad_output}) fill(*tensor);
  const Scratch scratch;
  const Cuda device{nullptr, &scratch, false};
  const View<const float> x{input.data<float>(), image}, w{weight.data<float>(), filters};
  count(layer, "forward", N, [&] {
    fused_forward(device, conv, pool, x, w, bias.data<float>(), {output.data<float>(), map},
                  {code.data<uint8_t>(), map});
  });
  count(layer, "backward", N, [&] {
    pool_sparse_backward(device, conv, pool, {grad_output.data<float>(), map}, {code.data<uint8_t>(), map}, x, w,
                         {first ? nullptr : grad_input.data<float>(), image}, {grad_weight.data<float>(), filters},
                         grad_bias.data<float>());
  });
}

}  // namespace
}  // namespace cnnfast

#define CNNFAST_HOOK(name, size, writes) \
  void __tsan_##name##size(void* place) { cnnfast::access(place, size, writes, __builtin_return_address(0)); }
#define CNNFAST_HOOKS(size)                 \
  CNNFAST_HOOK(read, size, false)           \
  CNNFAST_HOOK(write, size, true)           \
  CNNFAST_HOOK(unaligned_read, size, false) \
  CNNFAST_HOOK(unaligned_write, size, true)

extern "C" {
CNNFAST_HOOKS(1)
CNNFAST_HOOKS(2)
CNNFAST_HOOKS(4)
CNNFAST_HOOKS(8)
CNNFAST_HOOKS(16)
void __tsan_read_range(void* place, size_t bytes) { cnnfast::access(place, bytes, false, __builtin_return_address(0)); }
void __tsan_write_range(void* place, size_t bytes) { cnnfast::access(place, bytes, true, __builtin_return_address(0)); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}

int main(int /*argc*/, char** argv) {
  const int64_t batch = std::atoll(argv[1]);
  std::printf("layer,kernel,tensor,of_images,images,moved,requested\n");
  cnnfast::count_layer("1 -> 12", batch, 1, 28, 12, true);
  cnnfast::count_layer("12 -> 24", batch, 12, 14, 24, false);
}
