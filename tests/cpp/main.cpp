// Runs the tests of one executable; fails if a check failed, or if there was none.
#include "testing.h"

namespace testing {
namespace {

std::vector<std::string> scopes;
long checks = 0, failures = 0;
constexpr long kMaxPrinted = 20;

}  // namespace

std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

bool add(const char* name, void (*run)()) {
  tests().push_back({name, run});
  return true;
}

void report(bool passed, const char* file, int line, const std::string& what) {
  ++checks;
  if (passed || ++failures > kMaxPrinted) return;
  std::printf("%s:%d: %s\n", file, line, what.c_str());
  for (const std::string& scope : scopes) std::printf("    in %s\n", scope.c_str());
}

Scope::Scope(const std::string& text) { scopes.push_back(text); }
Scope::~Scope() { scopes.pop_back(); }

}  // namespace testing

int main() {
  for (const testing::Test& test : testing::tests()) {
    const long before = testing::failures;
    test.run();
    std::printf("%s %s\n", testing::failures == before ? "passed" : "FAILED", test.name);
  }
  std::printf("%zu tests, %ld checks, %ld failed\n", testing::tests().size(), testing::checks, testing::failures);
  return testing::failures == 0 && testing::checks > 0 ? 0 : 1;
}
