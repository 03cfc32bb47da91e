"""Bad arguments: the exception type that torch raises, and a message that names the rule and what was given."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from calls import ours, theirs

X, W, B = (2, 4, 8, 8), (6, 4, 3, 3), (6,)
WT = (4, 6, 3, 3)


class Bad(NamedTuple):
    """A wrong call: shapes (or values) of the tensors, other arguments, and what the message must say."""

    tensors: tuple[Any, ...]
    arguments: dict[str, Any]
    match: str


CONVOLUTION = {
    "input_rank": Bad(((4, 8), W), {}, r"input must be 3D .* or 4D .*but got input.shape=\[4, 8\]"),
    "input_rank_5": Bad(((1, 2, 4, 8, 8), W), {}, r"input must be 3D .* or 4D .*input.shape=\[1, 2, 4, 8, 8\]"),
    "weight_rank": Bad((X, (6, 4, 3)), {}, r"weight must have 4 dimensions.*but got weight.shape=\[6, 4, 3\]"),
    "channels": Bad((X, (6, 5, 3, 3)), {}, r"expects input to have 5 channels, but got input.shape=\[2, 4, 8, 8\]"),
    "bias_size": Bad((X, W, (5,)), {}, r"bias must have shape \[K\] = \[6\], but got bias.shape=\[5\]"),
    "bias_rank": Bad((X, W, (6, 1)), {}, r"bias must have shape \[K\] = \[6\], but got bias.shape=\[6, 1\]"),
    "groups_zero": Bad((X, W), {"groups": 0}, "groups must be greater than zero, but got groups=0"),
    "groups_do_not_divide": Bad((X, (6, 1, 3, 3)), {"groups": 4}, "out_channels must be divisible by groups, .*=6.*=4"),
    "stride": Bad((X, W), {"stride": (1, 0)}, r"stride must be greater than zero, but got stride=\[1, 0\]"),
    "stride_length": Bad((X, W), {"stride": (1, 1, 1)}, r"stride must be .* pair of ints, but got stride=\[1, 1, 1\]"),
    "stride_type": Bad((X, W), {"stride": 1.5}, r"stride must be an int .*, but got stride=1.5"),
    "padding_negative": Bad((X, W), {"padding": -1}, r"negative padding is not supported\), but got padding=\[-1"),
    "padding_word": Bad((X, W), {"padding": "full"}, "padding must be .*'same' or 'valid', but got padding='full'"),
    "same_with_stride": Bad((X, W), {"padding": "same", "stride": 2},
                            r"padding='same' is not supported for strided convolutions, but got stride=\[2, 2\]"),
    "dilation": Bad((X, W), {"dilation": 0}, r"dilation must be greater than zero, but got dilation=\[0, 0\]"),
    "kernel_beyond_input": Bad(((2, 4, 2, 8), W), {},
                               r"kernel size can't be greater than the padded input, but got kernel extent \(3 x 3\), "
                               r"padded input \(2 x 8\)"),
    "mixed_dtypes": Bad((X, torch.ones(W, dtype=torch.float64)), {}, r"input.dtype=Float, weight.dtype=Double"),
    "bias_dtype": Bad((X, W, torch.ones(B, dtype=torch.bfloat16)), {}, r"dtype of input.*, bias.dtype=BFloat16"),
    "not_a_tensor": Bad((X, [1.0]), {}, "weight must be a Tensor, but got weight=list"),
    "empty_weight": Bad((X, (6, 4, 0, 3)), {}, r"weight must have no empty dimension, but got weight.shape="),
    "kernel_beyond_width": Bad(((2, 4, 8, 1), W), {}, r"kernel size can.t be greater than the padded input.*\(8 x 1\)"),
    "empty_height": Bad(((2, 4, 0, 8), W), {"padding": 2}, r"must not be empty but for .* input.shape=\[2, 4, 0, 8\]"),
    "empty_width_unbatched": Bad(((4, 8, 0), W), {"padding": 2}, r"must not be empty .*input.shape=\[4, 8, 0\]"),
}  # fmt: skip

TRANSPOSED = {
    "input_rank": Bad(((4, 8), WT), {}, r"input must be 3D .* or 4D .*but got input.shape=\[4, 8\]"),
    "channels": Bad((X, (5, 6, 3, 3)), {}, r"expects input to have 5 channels, but got input.shape=\[2, 4, 8, 8\]"),
    "bias": Bad((X, WT, (5,)), {}, r"bias must have shape \[6\], but got bias.shape=\[5\]"),
    "stride": Bad((X, WT), {"stride": 0}, r"stride must be greater than zero, but got stride=\[0, 0\]"),
    "padding": Bad((X, WT), {"padding": -1}, r"negative padding is not supported\), but got padding=\[-1, -1\]"),
    "output_padding": Bad((X, WT), {"output_padding": 1}, r"smaller than either stride or dilation, but got "
                          r"output_padding=\[1, 1\], stride=\[1, 1\]"),
    "empty_height": Bad(((2, 4, 0, 8), WT), {}, r"must not be empty but for its batch.*input.shape=\[2, 4, 0, 8\]"),
    "empty_channels": Bad(((2, 0, 8, 8), (0, 6, 3, 3)), {}, r"must not be empty .*input.shape=\[2, 0, 8, 8\]"),
    "output_size": Bad(((2, 4, 1, 1), WT), {"padding": 2}, r"output size must be positive, but got output size \(-1"),
    "groups": Bad((X, (4, 2, 3, 3)), {"groups": 3}, "in_channels must be divisible by groups, .*=4.*=3"),
    "mixed_dtypes": Bad((X, torch.ones(WT, dtype=torch.float16)), {}, r"input.dtype=Float, weight.dtype=Half"),
}  # fmt: skip

POOLING = {
    "input_rank": Bad(((1, 2, 4, 8, 8),), {"kernel_size": 2}, r"input must be 3D .* or 4D .*=\[1, 2, 4, 8, 8\]"),
    "kernel_size": Bad((X,), {"kernel_size": 0}, r"kernel_size must be greater than zero, .* kernel_size=\[0, 0\]"),
    "kernel_length": Bad((X,), {"kernel_size": (2, 2, 2)}, r"kernel_size must be .*, but got kernel_size=\[2, 2, 2\]"),
    "kernel_type": Bad((X,), {"kernel_size": "2"}, r"kernel_size must be an int .*, but got kernel_size='2'"),
    "stride": Bad((X,), {"kernel_size": 2, "stride": 0}, r"stride must be greater than zero, but got stride=\[0, 0\]"),
    "padding_negative": Bad((X,), {"kernel_size": 2, "padding": -1}, r"padding must be non-negative.*=\[-1, -1\]"),
    "padding_large": Bad((X,), {"kernel_size": 3, "padding": 2}, r"at most half of .*padding=\[2, 2\].*=\[3, 3\]"),
    "output_size": Bad(((2, 4, 3, 8),), {"kernel_size": 4}, r"output size is too small"),
    "empty_channels": Bad(((2, 0, 8, 8),), {"kernel_size": 2}, r"input must not be empty but for its batch.*C=0"),
    "empty_image": Bad(((2, 4, 0, 8),), {"kernel_size": 1}, r"input must not be empty but for its batch.*H=0"),
    "ceil_mode": Bad((X,), {"kernel_size": 2, "ceil_mode": "yes"}, r"ceil_mode must be bool, but got ceil_mode='yes'"),
}  # fmt: skip

FUSED_POOL = {
    "pool_kernel_size": Bad((X, W), {"pool_kernel_size": 0}, r"kernel_size must be greater than zero, .*\[0, 0\]"),
    "pool_padding": Bad((X, W), {"pool_padding": 2}, r"at most half of .*padding=\[2, 2\]"),
    "pool_output": Bad((X, W), {"pool_kernel_size": 7}, r"output size is too small"),
    "pool_stride": Bad((X, W), {"pool_stride": -2}, r"stride must be greater than zero, but got .*\[-2, -2\]"),
}  # fmt: skip

TABLES: dict[str, dict[str, Bad]] = {
    "conv2d": CONVOLUTION,
    "conv2d_relu": CONVOLUTION,
    "conv2d_relu_max_pool2d": CONVOLUTION | FUSED_POOL,
    "conv_transpose2d": TRANSPOSED,
    "max_pool2d": POOLING
    | {"dilation": Bad((X,), {"kernel_size": 2, "dilation": 0}, r"dilation must be greater than zero.*=\[0, 0\]")},
    "avg_pool2d": POOLING
    | {"input_rank_2": Bad(((4, 8),), {"kernel_size": 2}, r"input must be 3D .* or 4D .*input.shape=\[4, 8\]")}
    | {"divisor": Bad((X,), {"kernel_size": 2, "divisor_override": 0}, "divisor must be not zero.*divisor_override=0")},
    "relu": {"not_a_tensor": Bad(([1.0],), {}, "input must be a Tensor, but got input=list")},
}


@pytest.mark.parametrize("wants_gradient", [False, True])
@pytest.mark.parametrize(
    ("op", "bad"),
    [pytest.param(op, bad, id=f"{op}-{label}") for op, table in TABLES.items() for label, bad in table.items()],
)
def test_error(op: str, bad: Bad, wants_gradient: bool, device: torch.device) -> None:
    tensors = [torch.ones(t, device=device) if isinstance(t, tuple) else t for t in bad.tensors]
    if wants_gradient:
        tensors[0] = tensors[0].requires_grad_() if isinstance(tensors[0], torch.Tensor) else tensors[0]
    with pytest.raises(Exception) as torchs:
        theirs(op, *tensors, **bad.arguments)
    with pytest.raises(torchs.type, match=bad.match) as mine:
        ours(op, *tensors, **bad.arguments)
    assert mine.type is torchs.type, str(torchs.value)
    assert str(mine.value).startswith(f"{op}: "), str(mine.value)
