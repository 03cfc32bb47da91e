// Every op of cnnfast, on one page. Kernels are registered beside their launchers (csrc/cpu, csrc/cuda).
//
// The raw ops (*_forward, *_backward) have no autograd: cnnfast/autograd.py and normalization.py call them. The public
// ops below them are what torch.compile, torch.export and direct callers get; cnnfast/registration.py gives them fake
// kernels, autograd and autocast rules.
//
// The raw ops of convolutions take all their numbers as one list, `options`: of conv2d (stride, padding as top, bottom,
// left, right, dilation, groups), of conv_transpose2d (stride, padding, output_padding, groups, dilation), of
// conv2d_relu_max_pool2d those of conv2d, then (kernel_size, stride, padding, dilation, ceil_mode) of the pool; pairs
// are (height, width). The last number is allow_tf32. output_mask says which of (grad_input, grad_weight, grad_bias)
// are wanted, the others come back undefined. `code` is one byte per pooled element: the row-major index of the winner
// in its window, or 255 where ReLU clipped it.
#include "namespace.h"

CNNFAST_LIBRARY(m) {
  // activation: csrc/common/activation.h, of the sum with residual, a tensor of the output's shape
  m.def(
      "conv2d_forward(Tensor input, Tensor weight, Tensor? bias, int[] options, int activation, "
      "Tensor? residual=None) -> Tensor");
  // By the algorithm of that name where it takes the shape, else as conv2d_forward; on the CPU.
  m.def(
      "conv2d_chosen_forward(Tensor input, Tensor weight, Tensor? bias, int[] options, int activation, "
      "Tensor? residual, str algorithm) -> Tensor");
  // `packed` is what conv2d_pack_weight has made of the weight for an input of the same size and layout; what was made
  // for another is not used. It is empty where that gains nothing.
  m.def("conv2d_pack_weight(Tensor input, Tensor weight, int[] options) -> Tensor");
  m.def(
      "conv2d_packed_forward(Tensor input, Tensor weight, Tensor? bias, Tensor packed, int[] options, int activation, "
      "Tensor? residual=None) -> Tensor");
  m.def(
      "conv2d_backward(Tensor grad_output, Tensor input, Tensor weight, int[] options, bool[] output_mask) "
      "-> (Tensor, Tensor, Tensor)");
  // grad_output is that of ReLU's result `output`.
  m.def(
      "conv2d_relu_backward(Tensor grad_output, Tensor output, Tensor input, Tensor weight, int[] options, "
      "bool[] output_mask) -> (Tensor, Tensor, Tensor)");
  m.def("conv_transpose2d_forward(Tensor input, Tensor weight, Tensor? bias, int[] options) -> Tensor");
  m.def(
      "conv_transpose2d_backward(Tensor grad_output, Tensor input, Tensor weight, int[] options, bool[] output_mask) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "conv2d_relu_max_pool2d_forward(Tensor input, Tensor weight, Tensor? bias, int[] options, bool return_code) "
      "-> (Tensor, Tensor)");
  m.def(
      "conv2d_relu_max_pool2d_backward(Tensor grad_output, Tensor code, Tensor input, Tensor weight, int[] options, "
      "bool[] output_mask) -> (Tensor, Tensor, Tensor)");
  m.def("relu_forward(Tensor input) -> Tensor");
  m.def("relu_backward(Tensor grad_output, Tensor output) -> Tensor");
  // options are (kernel_size, stride, padding, dilation, ceil_mode). The second result tells each window's winner in
  // winner_bytes: 8 for its int64 index in the plane, 1 for its code (above), 0 for nothing, an empty tensor.
  m.def("max_pool2d_forward(Tensor input, int[] options, int winner_bytes) -> (Tensor, Tensor)");
  // input_size is (H, W), SymInt so that a compiled graph serves every size. The memory format of the result is that of
  // winner. An index outside of the plane is an error; a code that no forward stores is one or wins nothing.
  m.def("max_pool2d_backward(Tensor grad_output, Tensor winner, SymInt[] input_size, int[] options) -> Tensor");
  m.def(
      "avg_pool2d_forward(Tensor input, int[] kernel_size, int[] stride, int[] padding, bool ceil_mode, "
      "bool count_include_pad, int? divisor_override) -> Tensor");
  m.def(
      "avg_pool2d_backward(Tensor grad_output, SymInt[] input_size, bool channels_last, int[] kernel_size, "
      "int[] stride, int[] padding, bool ceil_mode, bool count_include_pad, int? divisor_override) -> Tensor");
  // By the statistics of the batch, on the CPU. activation: one that clips, of the sum with residual, a tensor of the
  // input's shape. The results are (output, mean, invstd, shift): the sum is input * (weight * invstd) + shift +
  // residual.
  m.def(
      "batch_norm_forward(Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, "
      "Tensor(b!)? running_var, float momentum, float eps, int activation) -> (Tensor, Tensor, Tensor, Tensor)");
  // `output` is wanted where a residual was added and then clipped. Gradients, as output_mask asks for them: of input,
  // residual, weight and bias; that of a residual which was not clipped is grad_output, and comes back undefined.
  m.def(
      "batch_norm_backward(Tensor grad_output, Tensor input, Tensor? output, Tensor? weight, Tensor mean, "
      "Tensor invstd, Tensor shift, int activation, bool[] output_mask) -> (Tensor, Tensor, Tensor, Tensor)");

  m.def(
      "conv2d(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, int groups, "
      "bool allow_tf32=False) -> Tensor");
  m.def(
      "conv2d_relu(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, "
      "int groups, bool allow_tf32=False) -> Tensor");
  m.def(
      "conv2d_relu_max_pool2d(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, "
      "int[] dilation, int groups, int[] pool_kernel_size, int[] pool_stride, int[] pool_padding, "
      "int[] pool_dilation, bool ceil_mode, bool allow_tf32=False) -> (Tensor, Tensor)");
  m.def(
      "conv_transpose2d(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, "
      "int[] output_padding, int groups, int[] dilation, bool allow_tf32=False) -> Tensor");
  m.def("relu(Tensor input) -> Tensor");
  m.def(
      "max_pool2d(Tensor input, int[] kernel_size, int[] stride, int[] padding, int[] dilation, bool ceil_mode) "
      "-> (Tensor, Tensor)");
  // As max_pool2d, with codes instead of indices: windows of at most 254 elements.
  m.def(
      "max_pool2d_with_code(Tensor input, int[] kernel_size, int[] stride, int[] padding, int[] dilation, "
      "bool ceil_mode) -> (Tensor, Tensor)");
  m.def(
      "avg_pool2d(Tensor input, int[] kernel_size, int[] stride, int[] padding, bool ceil_mode, "
      "bool count_include_pad, int? divisor_override) -> Tensor");

  // One pass of cnnfast.augment over images of [N, C, H, W]: csrc/common/augment.h has the meaning of all numbers.
  // options are (P, Q, output channels, nearest, fill); a step of geometry is ten numbers (kind, H, W, six columns,
  // constant), one of points four (kind, column, constant, integers).
  m.def(
      "augment(Tensor images, Tensor parameters, Tensor constants, Tensor? means, Tensor? key, int[] options, "
      "int[] geometry, int[] points, ScalarType dtype) -> Tensor");
  // [N]: of each image the mean of its grey, each grey truncated where the image is of integers.
  m.def("augment_gray_mean(Tensor images) -> Tensor");
  // [N, 6] in float64: the affine map from a pass's output to its images, of indices, row by row. size is (H, W, P, Q).
  m.def("augment_maps(Tensor parameters, Tensor constants, int[] size, int[] geometry) -> Tensor");

  // A number that most likely changes when elements of the dense tensors do: of large ones it looks at some 500.
  m.def("fingerprint(Tensor a, Tensor? b, Tensor? c, Tensor? d, Tensor? e, Tensor? f) -> int");
  // Which algorithms take a convolution, its forward pass, its input and its weight gradient, and which could take the
  // forward pass, as JSON; nothing is read or computed.
  m.def("explain_conv2d(Tensor input, Tensor weight, int[] options, bool input_gradient) -> str");
  // The compute capabilities that the CUDA kernels were built for; of cnnfast._cuda, so without it not callable.
  m.def("cuda_archs() -> str");
  // What was built and chosen, as JSON; another instruction set, for tests; the machine's FMA rate.
  m.def("cpu_info() -> str");
  m.def("set_cpu_isa(str isa) -> bool");
  m.def("set_winograd(bool enabled) -> bool");
  m.def("fma_peak(float seconds, int threads) -> float");
}
