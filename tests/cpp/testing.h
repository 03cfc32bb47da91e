// The test framework, small enough to need no package: TEST registers a function, CHECK and CHECK_EQ report where
// they fail and what was in scope (WHERE), main.cpp runs every test of its executable.
#pragma once

#include <cstdio>
#include <sstream>
#include <string>
#include <vector>

namespace testing {

struct Test {
  const char* name;
  void (*run)();
};
std::vector<Test>& tests();
bool add(const char* name, void (*run)());

// Counts a check; says where it failed.
void report(bool passed, const char* file, int line, const std::string& what);

// What the checks of this scope are about: printed with each failure.
class Scope {
 public:
  explicit Scope(const std::string& text);
  ~Scope();
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;
};

template <class... Parts>
std::string join(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <class A, class B>
void check_equal(const A& a, const B& b, const char* file, int line, const char* text) {
  const bool passed = a == b;
  report(passed, file, line, passed ? std::string() : join(text, ": ", a, " != ", b));
}

}  // namespace testing

#define TEST(name)                                                                    \
  static void test_##name();                                                          \
  [[maybe_unused]] static const bool added_##name = testing::add(#name, test_##name); \
  static void test_##name()
#define CHECK(condition) testing::report((condition), __FILE__, __LINE__, #condition)
#define CHECK_EQ(a, b) testing::check_equal((a), (b), __FILE__, __LINE__, #a " == " #b)
#define WHERE(...) const testing::Scope scope(testing::join(__VA_ARGS__))
