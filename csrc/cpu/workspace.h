// Scratch memory: one growing arena per thread, kept between calls, so that kernels neither allocate nor fault pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace cnnfast {

// A scope's scratch. Scopes of one thread nest; what a scope took is free again at its end. Pieces are uninitialised.
class Workspace {
 public:
  // Pieces are followed by this much readable memory, so that kernels may load whole registers at their ends.
  static constexpr size_t kSlackBytes = 64;

  // What a piece of `count` elements takes up; a scope is asked for the sum of its pieces.
  template <class T>
  static constexpr size_t needed(int64_t count) {
    return (static_cast<size_t>(count) * sizeof(T) + kSlackBytes + 63) / 64 * 64;
  }

  explicit Workspace(size_t bytes) : bytes_(bytes) {
    Arena& arena = thread_arena();
    base_ = arena.push(bytes);
    if (base_ == nullptr) {
      base_ = allocate(bytes);
      owned_ = true;
    }
  }
  ~Workspace() {
    if (owned_) {
      std::free(base_);
    } else {
      thread_arena().pop(bytes_);
    }
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // The next piece.
  template <class T>
  T* take(int64_t count) {
    char* piece = base_ + taken_;
    taken_ += needed<T>(count);
    return reinterpret_cast<T*>(piece);
  }

 private:
  // Scratch larger than this is returned to the system at once.
  static constexpr size_t kKeptBytes = size_t{32} << 20;

  static char* allocate(size_t bytes) {
    void* p = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (p == nullptr) throw std::bad_alloc();
    return static_cast<char*>(p);
  }

  struct Arena {
    char* data = nullptr;
    size_t size = 0, used = 0, wanted = 0;

    // Null if the arena cannot hold it now; it then grows as soon as no scope is open.
    char* push(size_t bytes) {
      if (used + bytes <= kKeptBytes && used + bytes > wanted) wanted = used + bytes;
      if (used == 0 && wanted > size) {
        std::free(data);
        data = nullptr;
        size = 0;
        data = allocate(wanted);
        size = wanted;
      }
      if (used + bytes > size) return nullptr;
      char* piece = data + used;
      used += bytes;
      return piece;
    }
    void pop(size_t bytes) { used -= bytes; }
    ~Arena() { std::free(data); }
  };
  static Arena& thread_arena() {
    static thread_local Arena arena;
    return arena;
  }

  char* base_ = nullptr;
  size_t bytes_;
  size_t taken_ = 0;
  bool owned_ = false;
};

}  // namespace cnnfast
