// Which instruction set is chosen: by default, as CNNFAST_CPU_ISA says, and where that makes no sense.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

#include "kernels_testing.h"

using namespace cnnfast;

namespace {

// The choice is made once in a process, so each test makes it in a child of its own. Returns what the child reports
// of its choice, and what it printed to stderr.
struct Outcome {
  std::string report, printed;
};

std::string read_all(int descriptor) {
  std::string text;
  char part[256];
  for (ssize_t count; (count = read(descriptor, part, sizeof part)) > 0;) text.append(part, static_cast<size_t>(count));
  close(descriptor);
  return text;
}

Outcome choose_under(const char* choice) {
  int report[2], printed[2];
  if (pipe(report) != 0 || pipe(printed) != 0) std::abort();
  const pid_t child = fork();
  if (child == 0) {
    dup2(printed[1], 2);
    if (choice == nullptr) {
      unsetenv("CNNFAST_CPU_ISA");
    } else {
      setenv("CNNFAST_CPU_ISA", choice, 1);
    }
    const std::string text = cpu_isa_report();
    _exit(write(report[1], text.data(), text.size()) == static_cast<ssize_t>(text.size()) ? 0 : 1);
  }
  close(report[1]);
  close(printed[1]);
  Outcome outcome{read_all(report[0]), read_all(printed[0])};
  int status = 0;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  return outcome;
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST(best_is_chosen_by_default) {
  const Outcome outcome = choose_under(nullptr);
  WHERE(outcome.report);
  CHECK(outcome.printed.empty());
  CHECK(contains(outcome.report, "\"reason\": \"default for this processor\""));
  CHECK_EQ(choose_under("").report, outcome.report);
}

TEST(every_supported_choice_works) {
  // Asked of a child: this process has not chosen yet.
  const std::string all = choose_under(nullptr).report;
  const std::string supported = all.substr(all.find("\"supported\""));
  CHECK(contains(supported, "\"scalar\""));
  for (const char* name : {"scalar", "avx2", "avx512", "neon", "wide"}) {
    WHERE("CNNFAST_CPU_ISA=", name);
    const Outcome outcome = choose_under(name);
    const bool known = contains(supported, std::string("\"") + name + "\"");
    CHECK_EQ(contains(outcome.report, std::string("\"isa\": \"") + name + "\", \"reason\": \"CNNFAST_CPU_ISA\""),
             known);
    CHECK_EQ(outcome.printed.empty(), known);
  }
}

TEST(unknown_choice_warns_and_is_ignored) {
  const Outcome outcome = choose_under("sse9");
  CHECK_EQ(outcome.report, choose_under(nullptr).report);
  CHECK(contains(outcome.printed, "CNNFAST_CPU_ISA=sse9 was not built or is not supported here; ignored"));
}

TEST(set_cpu_isa_takes_what_runs_here) {
  CHECK(!set_cpu_isa("sse9"));
  CHECK(set_cpu_isa("scalar"));
  CHECK_EQ(std::string(cpu_kernels().isa), "scalar");
  CHECK(!set_cpu_isa(""));
  CHECK_EQ(std::string(cpu_kernels().isa), "scalar");
}

TEST(tables_are_whole) {
  CHECK(!runnable_kernels().empty());
  for (const CpuKernels* table : runnable_kernels())
    CHECK(table->f32.relu.forward != nullptr && table->f16.relu.backward != nullptr && table->fma_peak.run != nullptr);
}
