#include "emulation.h"

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "context.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

cnnfast::emulation::Index threadIdx, blockIdx, blockDim, gridDim;

namespace cnnfast::emulation {
namespace {

constexpr size_t kStackBytes = size_t{256} << 10;
constexpr unsigned kWarp = 32, kMostThreads = 1024;
// What a block may ask for on every device since compute capability 7.5; most have more.
constexpr size_t kMostShared = size_t{64} << 10;

// Runs threads of the block, one after another until one waits; then it waits with that one.
struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  void* fake_stack = nullptr;  // AddressSanitizer's
};

// A cp.async that was issued.
struct Copy {
  void* to;
  const void* from;
  bool present;
  unsigned group;
};

enum class State { unstarted, ready, at_barrier, in_warp, done };

struct Thread {
  State state = State::unstarted;
  Fiber* fiber = nullptr;
  Site site;
  // Of a warp collective:
  unsigned mask = 0, ballot = 0;
  bool predicate = false;
  size_t size = 0;
  alignas(16) unsigned char value[16], result[16];
  const std::function<unsigned(unsigned)>* source = nullptr;
  void* operand = nullptr;
  void (*compute)(void* const* operands) = nullptr;
  // Of cp.async: copies on their way, and how many groups were closed.
  std::vector<Copy> copies;
  unsigned groups = 0;
};

struct Machine {
  Schedule schedule = Schedule::ascending;
  uint64_t seed = 0;
  uint8_t poison = 0xff;
  std::mt19937_64 random;

  const char* name = nullptr;
  const std::function<void()>* kernel = nullptr;
  std::vector<Thread> threads;
  std::vector<unsigned> order;  // of the threads, in this phase
  size_t next = 0;              // in `order`: threads before it have been looked at
  unsigned current = 0;
  std::map<std::tuple<std::string, unsigned, unsigned, std::string>, std::pair<size_t, std::unique_ptr<char[]>>> shared;
  std::unique_ptr<char[]> dynamic;
  size_t shared_bytes = 0;  // both
  std::string error;

  Context scheduler;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  std::vector<std::unique_ptr<Fiber>> fibers;  // all there are
  std::vector<Fiber*> idle;
};
Machine machine;

std::string where(const Site& site) {
  std::ostringstream text;
  const std::string file = site.file_name();
  text << file.substr(file.rfind('/') + 1) << ":" << site.line();
  return text.str();
}

// --- Switching. The sanitizers must be told which stack is in use.

void switch_to(Context& from, const Context& to, void** fake_stack, const void* stack, size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(fake_stack, stack, bytes);
#else
  (void)fake_stack, (void)stack, (void)bytes;
#endif
  from.switch_to(to);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack == nullptr ? nullptr : *fake_stack, nullptr, nullptr);
#endif
}

void to_scheduler(Fiber& fiber) {
  switch_to(fiber.context, machine.scheduler, &fiber.fake_stack, machine.scheduler_stack,
            machine.scheduler_stack_bytes);
}

void to_fiber(Fiber& fiber) {
  static void* fake_stack;
  switch_to(machine.scheduler, fiber.context, &fake_stack, fiber.stack.get(), kStackBytes);
}

// The next thread of this phase that has not started, if there is one.
bool take_unstarted() {
  for (; machine.next < machine.order.size(); ++machine.next) {
    const unsigned index = machine.order[machine.next];
    if (machine.threads[index].state == State::unstarted) {
      machine.current = index;
      ++machine.next;
      return true;
    }
    if (machine.threads[index].state == State::ready) return false;  // its turn, on a fiber of its own
  }
  return false;
}

void enter_thread(unsigned index, Fiber* fiber) {
  machine.current = index;
  machine.threads[index].fiber = fiber;
  threadIdx = {index, 0, 0};
}

void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &machine.scheduler_stack, &machine.scheduler_stack_bytes);
#endif
  for (;;) {
    // Whoever switched here for a new thread has set `current` and taken it.
    Fiber* const fiber = machine.threads[machine.current].fiber;
    do {
      const unsigned index = machine.current;
      enter_thread(index, fiber);
      (*machine.kernel)();
      if (!machine.threads[index].copies.empty())
        violation("a thread ends while its copies are on their way", Site::current());
      machine.threads[index].state = State::done;
    } while (take_unstarted());
    machine.idle.push_back(fiber);
    to_scheduler(*fiber);
  }
}

Fiber* idle_fiber() {
  if (machine.idle.empty()) {
    machine.fibers.push_back(std::make_unique<Fiber>());
    Fiber& fiber = *machine.fibers.back();
    fiber.context.prepare(fiber.stack.get(), kStackBytes, fiber_main);
    machine.idle.push_back(&fiber);
  }
  Fiber* const fiber = machine.idle.back();
  machine.idle.pop_back();
  return fiber;
}

void wait(State state, const Site& site) {
  Thread& thread = machine.threads[machine.current];
  thread.state = state;
  thread.site = site;
  Fiber& fiber = *thread.fiber;
  const unsigned index = machine.current;
  to_scheduler(fiber);
  machine.current = index;
  threadIdx = {index, 0, 0};
}

// --- One block.

void order_threads() {
  const auto count = static_cast<unsigned>(machine.threads.size());
  machine.order.resize(count);
  for (unsigned i = 0; i < count; ++i) {
    machine.order[i] = machine.schedule == Schedule::descending ? count - 1 - i : i;
    if (machine.schedule == Schedule::warps_descending) {
      const unsigned warps = (count + kWarp - 1) / kWarp, warp = warps - 1 - i / kWarp, lane = i % kWarp;
      machine.order[i] = warp * kWarp + lane;
    }
  }
  if (machine.schedule == Schedule::warps_descending) {  // the last warp may be short
    std::erase_if(machine.order, [&](unsigned i) { return i >= count; });
    for (unsigned i = count / kWarp * kWarp; i < count && machine.order.size() < count; ++i) machine.order.push_back(i);
  }
  if (machine.schedule == Schedule::random) std::shuffle(machine.order.begin(), machine.order.end(), machine.random);
  machine.next = 0;
}

// Everyone waits: at one barrier, which opens, or for ever.
void open_barrier() {
  const Thread* first = nullptr;
  bool left = false;
  for (const Thread& thread : machine.threads) {
    if (thread.state == State::done) left = true;
    if (thread.state == State::in_warp)
      return violation("deadlock: lanes of the mask never come to a warp collective", thread.site);
    if (thread.state != State::at_barrier) continue;
    if (first == nullptr) first = &thread;
    if (thread.site.line() != first->site.line() || std::strcmp(thread.site.file_name(), first->site.file_name()) != 0)
      return violation("threads of a block wait at different barriers", thread.site);
  }
  if (left) return violation("a barrier that some threads of the block never reach", first->site);
  for (Thread& thread : machine.threads) thread.state = State::ready;
}

void run_block() {
  for (;;) {
    order_threads();
    bool ran = false;
    while (machine.next < machine.order.size()) {
      const unsigned index = machine.order[machine.next];
      Thread& thread = machine.threads[index];
      if (thread.state == State::unstarted) {
        ++machine.next;
        Fiber* const fiber = idle_fiber();
        machine.current = index;
        thread.fiber = fiber;
        to_fiber(*fiber);
        ran = true;
      } else if (thread.state == State::ready) {
        ++machine.next;
        to_fiber(*thread.fiber);
        ran = true;
      } else {
        ++machine.next;
      }
      if (!machine.error.empty()) return;
    }
    if (ran) continue;
    if (std::all_of(machine.threads.begin(), machine.threads.end(),
                    [](const Thread& thread) { return thread.state == State::done; }))
      return;
    open_barrier();
    if (!machine.error.empty()) return;
  }
}

// The last lane of the mask has come: everyone's result is known.
bool complete_collective() {
  const unsigned first = machine.current / kWarp * kWarp;
  const Thread& mine = machine.threads[machine.current];
  unsigned ballot = 0;
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if ((mine.mask >> lane & 1) == 0) continue;
    if (first + lane >= machine.threads.size()) violation("a lane of the mask is beyond the block", mine.site);
    const Thread& other = machine.threads[first + lane];
    if (other.state != State::in_warp) return false;
    if (other.site.line() != mine.site.line() || other.mask != mine.mask)
      violation("lanes of a warp collective differ in place or mask", mine.site);
    ballot |= static_cast<unsigned>(other.predicate) << lane;
  }
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if ((mine.mask >> lane & 1) == 0) continue;
    Thread& other = machine.threads[first + lane];
    other.ballot = ballot;
    if (other.source != nullptr) {
      const unsigned from = (*other.source)(lane);
      if ((mine.mask >> from & 1) == 0) violation("a shuffle reads a lane that is not of the mask", mine.site);
      std::memcpy(other.result, machine.threads[first + from].value, other.size);
    }
  }
  if (mine.compute != nullptr) {
    void* operands[kWarp];
    for (unsigned lane = 0; lane < kWarp; ++lane) operands[lane] = machine.threads[first + lane].operand;
    mine.compute(operands);
  }
  for (unsigned lane = 0; lane < kWarp; ++lane)
    if ((mine.mask >> lane & 1) != 0) machine.threads[first + lane].state = State::ready;
  return true;
}

void join_collective(unsigned mask, const Site& site) {
  Thread& thread = machine.threads[machine.current];
  if ((mask >> machine.current % kWarp & 1) == 0) violation("a lane is not of its own mask", site);
  thread.mask = mask;
  thread.site = site;
  thread.state = State::in_warp;
  if (complete_collective()) {
    // The others resume in the schedule's order, this one too. That begins anew, so that in all schedules but one a
    // warp may come to its next collective, and the next, before another has left its first.
    if (machine.schedule != Schedule::ascending) machine.next = 0;
    wait(State::ready, site);
  } else {
    wait(State::in_warp, site);
  }
}

}  // namespace

void set_schedule(Schedule schedule, uint64_t seed, uint8_t poison) {
  machine.schedule = schedule;
  machine.seed = seed;
  machine.poison = poison;
}

void violation(const char* rule, const Site& site) {
  std::ostringstream text;
  text << machine.name << ", block " << blockIdx.x << ", thread " << machine.current << ", " << where(site) << ": "
       << rule;
  if (machine.error.empty()) machine.error = text.str();
  // From the scheduler's own stack the caller returns; a kernel's thread is left where it is.
  const char* const here = static_cast<const char*>(__builtin_frame_address(0));
  for (const auto& fiber : machine.fibers)
    if (here >= fiber->stack.get() && here < fiber->stack.get() + kStackBytes) to_scheduler(*fiber);
  throw std::runtime_error(machine.error);
}

void launch(const char* name, unsigned blocks, unsigned threads, size_t shared_bytes,
            const std::function<void()>& kernel) {
  const auto check = [&](bool holds, const std::string& rule) {
    if (!holds) throw std::runtime_error(std::string(name) + ": " + rule);
  };
  check(threads > 0 && threads <= kMostThreads, "a block has 1 to 1024 threads, not " + std::to_string(threads));
  check(blocks <= 0x7fffffffu, "a grid has at most 2^31 - 1 blocks");
  check(shared_bytes <= kMostShared, "a block has at most 64 KB of shared memory");

  machine.name = name;
  machine.kernel = &kernel;
  machine.error.clear();
  machine.random.seed(machine.seed);
  gridDim = {blocks, 1, 1};
  blockDim = {threads, 1, 1};
  std::vector<unsigned> order(only_ends ? std::min(blocks, 2u) : blocks);
  for (unsigned i = 0; i < order.size(); ++i) order[i] = machine.schedule == Schedule::ascending ? i : blocks - 1 - i;
  if (machine.schedule == Schedule::random) std::shuffle(order.begin(), order.end(), machine.random);
  if (only_ends && blocks > 1) order = {0, blocks - 1};
  for (const unsigned block : order) {
    blockIdx = {block, 0, 0};
    machine.threads.assign(threads, Thread{});
    machine.shared.clear();
    machine.shared_bytes = shared_bytes;
    machine.dynamic.reset(new char[shared_bytes]);
    std::memset(machine.dynamic.get(), machine.poison, shared_bytes);
    try {
      run_block();
    } catch (const std::runtime_error&) {
    }
    if (!machine.error.empty()) {
      // Fibers that were left in a kernel cannot be used again.
      machine.idle.clear();
      machine.fibers.clear();
      throw std::runtime_error(machine.error);
    }
  }
}

void barrier(const Site& site) { wait(State::at_barrier, site); }

void* shared_array(size_t bytes, const char* type, const Site& site) {
  auto& [size, data] = machine.shared[{site.file_name(), site.line(), site.column(), type}];
  if (data == nullptr) {
    size = bytes;
    machine.shared_bytes += bytes;
    if (machine.shared_bytes > kMostShared) violation("a block has at most 64 KB of shared memory", site);
    data.reset(new char[bytes]);
    std::memset(data.get(), machine.poison, bytes);
  }
  if (size != bytes) violation("threads of a block declare a shared array with different sizes", site);
  return data.get();
}

void* dynamic_shared() { return machine.dynamic.get(); }

void exchange(unsigned mask, void* value, size_t size, const std::function<unsigned(unsigned)>& source,
              const Site& site) {
  const unsigned index = machine.current;
  Thread& thread = machine.threads[index];
  if (size > sizeof thread.value) violation("a shuffled value has at most 16 bytes", site);
  std::memcpy(thread.value, value, size);
  thread.size = size;
  thread.source = &source;
  thread.compute = nullptr;
  join_collective(mask, site);
  std::memcpy(value, machine.threads[index].result, size);
}

unsigned vote(unsigned mask, bool predicate, const Site& site) {
  const unsigned index = machine.current;
  machine.threads[index].predicate = predicate;
  machine.threads[index].source = nullptr;
  machine.threads[index].compute = nullptr;
  join_collective(mask, site);
  return machine.threads[index].ballot;
}

void whole_warp(void* operand, void (*compute)(void* const* operands), const Site& site) {
  Thread& thread = machine.threads[machine.current];
  thread.source = nullptr;
  thread.operand = operand;
  thread.compute = compute;
  join_collective(0xffffffffu, site);
}

void deliver(const Copy& copy) {
  if (copy.present) {
    std::memcpy(copy.to, copy.from, 16);
  } else {
    std::memset(copy.to, 0, 16);
  }
}

void copy_async(void* to, const void* from, bool present, const Site& site) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0)
    violation("cp.async of 16 bytes whose places are not aligned to them", site);
  Thread& thread = machine.threads[machine.current];
  const Copy copy{to, from, present, thread.groups};
  const bool late = machine.schedule == Schedule::ascending || machine.schedule == Schedule::warps_descending;
  if (!late) return deliver(copy);
  std::memset(to, machine.poison, 16);
  thread.copies.push_back(copy);
}

void commit_copies() { ++machine.threads[machine.current].groups; }

void wait_for_copies(unsigned pending) {
  Thread& thread = machine.threads[machine.current];
  std::erase_if(thread.copies, [&](const Copy& copy) {
    if (copy.group + pending >= thread.groups) return false;
    deliver(copy);
    return true;
  });
}

}  // namespace cnnfast::emulation
