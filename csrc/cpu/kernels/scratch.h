// A task's scratch memory, cut into pieces.
#pragma once

#include "cpu/kernels/vec.h"

namespace cnnfast::CNNFAST_ISA {

// Hands out pieces of a task's scratch. With no memory it only adds up what would be needed, so that the size asked
// for and the pieces taken come from the same code.
class Scratch {
 public:
  explicit Scratch(void* memory) : base_(static_cast<char*>(memory)) {}

  template <class T>
  T* take(int64_t count) {
    const size_t at = used_;
    used_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + at);
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

}  // namespace cnnfast::CNNFAST_ISA
