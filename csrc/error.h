// How an argument error leaves a kernel: as std::runtime_error, which torch turns into Python's RuntimeError. (Not
// STD_TORCH_CHECK, whose messages begin with the path of the source file on the machine that built it.)
#pragma once

#include <sstream>
#include <stdexcept>

namespace cnnfast {

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

}  // namespace cnnfast

// Message parts are evaluated only on failure.
#define CNNFAST_CHECK(condition, ...) \
  do {                                \
    if (!(condition)) [[unlikely]]    \
      ::cnnfast::fail(__VA_ARGS__);   \
  } while (0)
