// torch::stable::Tensor, as the launchers of every device use it: views, memory formats, allocation, dtypes.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>

#include "common/number.h"
#include "common/shape.h"
#include "error.h"
#include "huge_pages.h"

namespace cnnfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Data pointer of a tensor whose dtype the caller has dispatched on.
template <class T>
T* data_of(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// An [N, C, H, W] tensor (or [C, H, W], with N = 1) as the kernels see it.
template <class T>
View<T> view_of(const Tensor& tensor) {
  const auto stride = tensor.strides();
  const size_t d = stride.size();
  return {data_of<T>(tensor), {d == 4 ? stride[0] : 0, stride[d - 3], stride[d - 2], stride[d - 1]}};
}

// Whether torch would give a result computed from this tensor the channels_last format
// (suggest_memory_format() == channels_last): 4 dimensions whose strides order as N > H > W > C, with size-1
// dimensions of no say but where all would be ambiguous.
inline bool suggests_channels_last(const Tensor& tensor) {
  if (tensor.dim() != 4) return false;
  const auto size = tensor.sizes();
  const auto stride = tensor.strides();
  if (stride[1] == 0) return false;
  int64_t smallest = 0;
  for (const int d : {1, 3, 2, 0}) {
    if (size[d] == 0 || stride[d] < smallest) return false;
    // N111 with identical strides is contiguous; so is N11W whose W has stride 1.
    if (d == 0 && smallest == stride[1]) return false;
    smallest = stride[d];
    if (size[d] > 1) smallest *= size[d];
  }
  return true;
}

inline bool same_size(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) != b.size(d)) return false;
  return true;
}

// Strides of a dense [N, C, H, W] tensor. As torch does, those of empty tensors count each size as at least 1.
inline Strides dense_strides(int64_t C, int64_t H, int64_t W, bool channels_last) {
  const int64_t c = max<int64_t>(C, 1), h = max<int64_t>(H, 1), w = max<int64_t>(W, 1);
  return channels_last ? Strides{c * h * w, 1, w * c, c} : Strides{c * h * w, h * w, w, 1};
}

// A tensor that is not written yet, asked for on huge pages where it is large.
inline Tensor on_huge_pages(Tensor tensor) {
  if (tensor.is_cpu())
    advise_huge_pages(tensor.data_ptr(), static_cast<size_t>(tensor.numel()) * tensor.element_size());
  return tensor;
}

// An uninitialised tensor like `like` in dtype (unless given) and device.
inline Tensor empty(const Tensor& like, const std::array<int64_t, 4>& size, int64_t dims, bool channels_last,
                    ScalarType dtype) {
  // dims == 3 drops the leading (batch) dimension.
  const Strides dense = dense_strides(size[1], size[2], size[3], channels_last);
  const std::array<int64_t, 4> stride{dense.n, dense.c, dense.h, dense.w};
  const int64_t skip = 4 - dims;
  int32_t device_type, device_index;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle;
  const int32_t dtype_code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dims, size.data() + skip, stride.data() + skip, dtype_code,
                                                         device_type, device_index, &handle));
  return on_huge_pages(Tensor(handle));
}
inline Tensor empty(const Tensor& like, const std::array<int64_t, 4>& size, int64_t dims, bool channels_last) {
  return empty(like, size, dims, channels_last, like.scalar_type());
}

// An uninitialised contiguous vector of `size` elements, on the device of `like` and, unless given, of its dtype.
inline Tensor empty_vector(const Tensor& like, int64_t size, ScalarType dtype) {
  AtenTensorHandle handle;
  int32_t device_type, device_index;
  const int64_t stride = 1;
  const int32_t dtype_code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(1, &size, &stride, dtype_code, device_type, device_index, &handle));
  return Tensor(handle);
}
inline Tensor empty_vector(const Tensor& like, int64_t size) { return empty_vector(like, size, like.scalar_type()); }

// Calls f(T{}) with the storage type of `dtype`.
template <class F>
auto dispatch_dtype(const char* op, ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::BFloat16:
      return f(bfloat16{});
    case ScalarType::Half:
      return f(float16{});
    default:
      fail(op, ": dtype must be float32, float64, bfloat16 or float16, but got dtype=", dtype);
  }
}

}  // namespace cnnfast
