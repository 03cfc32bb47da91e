// Stacks to switch between. On x86-64 by hand: ucontext's swapcontext asks the kernel for the signal mask each time,
// which is most of an emulated launch.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace cnnfast::emulation {

#if defined(__x86_64__)

class Context {
 public:
  // What start() is called on, when first switched to; it must not return.
  void prepare(char* stack, size_t bytes, void (*start)()) {
    // The callee-saved registers that switch_context pops, then the address it returns to. At a function's first
    // instruction the stack is 8 bytes off a multiple of 16.
    uintptr_t* top = reinterpret_cast<uintptr_t*>((reinterpret_cast<uintptr_t>(stack) + bytes) / 16 * 16) - 2;
    *top = reinterpret_cast<uintptr_t>(start);
    for (int i = 0; i < 6; ++i) *--top = 0;
    stack_ = top;
  }
  void switch_to(const Context& other) { switch_context(&stack_, other.stack_); }

 private:
  __attribute__((naked, noinline)) static void switch_context(void** /*from*/, void* /*to*/) {
    asm("push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
        "mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
        "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret");
  }

  void* stack_ = nullptr;
};

#else

class Context {
 public:
  void prepare(char* stack, size_t bytes, void (*start)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = bytes;
    context_.uc_link = nullptr;
    makecontext(&context_, start, 0);
  }
  void switch_to(const Context& other) { swapcontext(&context_, &other.context_); }

 private:
  ucontext_t context_;
};

#endif

}  // namespace cnnfast::emulation
