// batch_norm_forward and batch_norm_backward on the CPU.
#include "ops/batch_norm.h"

#include <cmath>

#include "cpu/batch_norm.h"
#include "cpu/dispatch.h"
#include "cpu/guard.h"
#include "cpu/parallel.h"
#include "cpu/workspace.h"

namespace cnnfast {
namespace {

// Two numbers of each channel in each segment.
class Partials {
 public:
  Partials(Workspace& workspace, const BatchNormShape& s)
      : C_(s.C), count_(s.segments() * s.C), data_(workspace.take<double>(2 * count_)) {}

  static size_t needed(const BatchNormShape& s) { return Workspace::needed<double>(2 * s.segments() * s.C); }
  double* first(int64_t segment) const { return data_ + segment * C_; }
  double* second(int64_t segment) const { return data_ + count_ + segment * C_; }

 private:
  int64_t C_, count_;
  double* data_;
};

// Channels per task where each takes some steps a segment.
int64_t grain_of(const BatchNormShape& s) { return ceil_div(int64_t{1} << 13, max(s.segments(), int64_t{1})); }

// Rounded, as both directions multiply by it.
template <class A>
A scale_of(const A* weight, A invstd, int64_t c) {
  return static_cast<A>(invstd * (weight == nullptr ? 1.0 : static_cast<double>(weight[c])));
}

template <class A>
void move_average(A* average, double momentum, double value, int64_t c) {
  if (average != nullptr) average[c] = static_cast<A>((1 - momentum) * average[c] + momentum * value);
}

}  // namespace

template <class T>
void batch_norm_forward(Cpu, const BatchNormForward<T>& args) {
  using A = Compute<T>;
  const BatchNormShape& s = args.shape;
  const BatchNormKernels<T>& kernels = cpu_kernels().of<T>().batch_norm;
  Workspace workspace(Partials::needed(s) + Workspace::needed<A>(s.C));
  const Partials partials(workspace, s);
  A* scale = workspace.take<A>(s.C);

  parallel_tasks(s.pieces(), [&](int64_t i) {
    const BatchNormPiece piece = s.piece(i);
    kernels.statistics(s, piece, args.input, partials.first(piece.segment), partials.second(piece.segment));
  });
  parallel_ranges(s.C, grain_of(s), [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      Sample sample{};
      for (int64_t segment = 0; segment < s.segments(); ++segment) {
        sample.add({static_cast<double>(s.rows_of(segment)), partials.first(segment)[c], partials.second(segment)[c]});
      }
      args.mean[c] = static_cast<A>(sample.mean);
      args.invstd[c] = static_cast<A>(1 / std::sqrt(sample.squares / sample.count + args.eps));
      move_average(args.running_mean, args.momentum, sample.mean, c);
      move_average(args.running_var, args.momentum, sample.squares / (sample.count - 1), c);
      scale[c] = scale_of(args.weight, args.invstd[c], c);
      args.shift[c] = static_cast<A>((args.bias == nullptr ? 0.0 : static_cast<double>(args.bias[c])) -
                                     static_cast<double>(args.mean[c]) * scale[c]);
    }
  });
  // Descending: what the statistics have read last is still in the cache.
  const BatchNormApply<T> apply{args.input, args.residual, scale, args.shift, args.activation, args.output};
  parallel_tasks<TaskOrder::descending>(s.pieces(), [&](int64_t i) { kernels.apply(s, s.piece(i), apply); });
}

template <class T>
void batch_norm_backward(Cpu, const BatchNormBackward<T>& args) {
  using A = Compute<T>;
  const BatchNormShape& s = args.shape;
  const BatchNormKernels<T>& kernels = cpu_kernels().of<T>().batch_norm;
  Workspace workspace(Partials::needed(s) + 3 * Workspace::needed<A>(s.C));
  const Partials partials(workspace, s);
  A *scale = workspace.take<A>(s.C), *slope = workspace.take<A>(s.C), *offset = workspace.take<A>(s.C);
  for (int64_t c = 0; c < s.C; ++c) scale[c] = scale_of(args.weight, args.invstd[c], c);

  BatchNormGradient<T> gradient{};
  gradient.grad_output = args.grad_output, gradient.input = args.input, gradient.output = args.output;
  gradient.scale = scale, gradient.shift = args.shift, gradient.mean = args.mean;
  gradient.slope = slope, gradient.offset = offset;
  gradient.activation = args.activation;
  gradient.grad_residual = args.grad_residual, gradient.grad_input = args.grad_input;
  parallel_tasks(s.pieces(), [&](int64_t i) {
    const BatchNormPiece piece = s.piece(i);
    kernels.sums(s, piece, gradient, partials.first(piece.segment), partials.second(piece.segment));
  });
  parallel_ranges(s.C, grain_of(s), [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      double sum = 0, product = 0;
      for (int64_t segment = 0; segment < s.segments(); ++segment) {
        sum += partials.first(segment)[c];
        product += partials.second(segment)[c];
      }
      const double invstd = args.invstd[c], count = static_cast<double>(s.count());
      if (args.grad_weight != nullptr) args.grad_weight[c] = static_cast<A>(product * invstd);
      if (args.grad_bias != nullptr) args.grad_bias[c] = static_cast<A>(sum);
      slope[c] = static_cast<A>(-scale[c] * invstd * invstd * product / count);
      offset[c] = static_cast<A>(-scale[c] * sum / count);
    }
  });
  if (args.grad_input == nullptr) return;
  if (args.grad_residual != nullptr) {  // which is the gradient that they have just found
    gradient.grad_output = args.grad_residual;
    gradient.activation = Activation::none;
  }
  parallel_tasks<TaskOrder::descending>(s.pieces(), [&](int64_t i) { kernels.gradient(s, s.piece(i), gradient); });
}

#define CNNFAST_INSTANTIATE(T)                                       \
  template void batch_norm_forward(Cpu, const BatchNormForward<T>&); \
  template void batch_norm_backward(Cpu, const BatchNormBackward<T>&);
CNNFAST_FOR_EACH_TYPE(CNNFAST_INSTANTIATE)
#undef CNNFAST_INSTANTIATE

STABLE_TORCH_LIBRARY_IMPL(cnnfast, CPU, m) {
  m.impl("batch_norm_forward", TORCH_BOX(&batch_norm_forward_op<Cpu>));
  m.impl("batch_norm_backward", TORCH_BOX(&batch_norm_backward_op<Cpu>));
}

}  // namespace cnnfast
