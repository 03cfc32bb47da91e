// CUDA's execution model on the CPU, for kernels as they stand (csrc/cuda/kernels): every thread of a block is a fiber
// that runs until a collective, in an order that a schedule chooses. What a GPU would let pass is an error here:
// threads that wait at different barriers or leave before others arrive, lanes that are missing from a warp collective,
// launches beyond a limit. Shared memory has exactly the size asked for and is full of poison. A kernel whose result
// depends on the schedule, or on the poison, has a race or reads what nobody wrote.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <typeinfo>

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace cnnfast::emulation {

struct Index {
  unsigned x, y, z;
};
using Site = std::source_location;

// The order in which threads run, and blocks: of each schedule's own.
enum class Schedule { ascending, descending, warps_descending, random };
constexpr int kSchedules = 4;

// For launches from now on. `poison` fills shared memory before a block starts.
void set_schedule(Schedule schedule, uint64_t seed, uint8_t poison);

// Runs no block but a grid's first and last, for tensors of more than 2^31 elements.
inline bool only_ends = false;

// Whether kernels are told of them.
inline bool has_tensor_cores = true;

void launch(const char* name, unsigned blocks, unsigned threads, size_t shared_bytes,
            const std::function<void()>& kernel);

// Ends the launch with an error.
[[noreturn]] void violation(const char* rule, const Site& site);

void barrier(const Site& site);
// The block's array declared at `site`, the same for all its threads.
void* shared_array(size_t bytes, const char* type, const Site& site);
void* dynamic_shared();

// Waits until every lane of `mask` has come to `site` with the same mask, each with `size` bytes; then each reads those
// of the lane source(lane), which must be of the mask.
void exchange(unsigned mask, void* value, size_t size, const std::function<unsigned(unsigned)>& source,
              const Site& site);
unsigned vote(unsigned mask, bool predicate, const Site& site);

// Waits until all 32 lanes have come to `site`; then compute(every lane's operand) is called once.
void whole_warp(void* operand, void (*compute)(void* const* operands), const Site& site);

// cp.async of 16 bytes. What is on its way is delivered as late as is allowed, or in half of the schedules at once;
// until then its place is poisoned.
void copy_async(void* to, const void* from, bool present, const Site& site);
void commit_copies();
void wait_for_copies(unsigned pending);

template <class T>
T* shared_array_of(int64_t count, const Site& site = Site::current()) {
  return static_cast<T*>(shared_array(static_cast<size_t>(count) * sizeof(T), typeid(T).name(), site));
}

template <class T, class Source>
T shuffle(unsigned mask, T value, const Source& source, const Site& site) {
  exchange(mask, &value, sizeof value, source, site);
  return value;
}

}  // namespace cnnfast::emulation

extern cnnfast::emulation::Index threadIdx, blockIdx, blockDim, gridDim;

#define CNNFAST_SHARED(type, name, count) type* const name = ::cnnfast::emulation::shared_array_of<type>(count)
#define CNNFAST_DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(::cnnfast::emulation::dynamic_shared())

inline void __syncthreads(const std::source_location& site = std::source_location::current()) {
  cnnfast::emulation::barrier(site);
}
inline void __syncwarp(unsigned mask = 0xffffffffu,
                       const std::source_location& site = std::source_location::current()) {
  cnnfast::emulation::vote(mask, true, site);
}
inline unsigned __ballot_sync(unsigned mask, bool predicate,
                              const std::source_location& site = std::source_location::current()) {
  return cnnfast::emulation::vote(mask, predicate, site);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, const std::source_location& site = std::source_location::current()) {
  return cnnfast::emulation::shuffle(mask, value, [=](unsigned) { return static_cast<unsigned>(lane) % 32; }, site);
}
// A lane beyond the warp's end: each keeps its own value.
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance,
                   const std::source_location& site = std::source_location::current()) {
  return cnnfast::emulation::shuffle(
      mask, value, [=](unsigned lane) { return lane + distance < 32 ? lane + distance : lane; }, site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int distance,
                  const std::source_location& site = std::source_location::current()) {
  return cnnfast::emulation::shuffle(
      mask, value, [=](unsigned lane) { return lane ^ static_cast<unsigned>(distance); }, site);
}
template <class T>
T __ldg(const T* p) {
  return *p;
}
