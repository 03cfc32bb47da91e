"""BatchNorm by the statistics of the batch, with residual and activation: the kernels against float64, the modules'
behaviour against torch's."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnfast import normalization
from cnnfast.testing import DTYPES, accumulation_dtype as parameter_dtype

ops = torch.ops.cnnfast
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
ACTIVATIONS = {"none": 0, "relu": 1, "relu6": 2}
# Registers' tails in channels and in planes; chunks of 64 rows and of 4096 elements; segments of 2^15 elements.
SHAPES = [
    (2, 1, 3, 5),
    (3, 8, 7, 7),
    (2, 29, 5, 13),
    (4, 160, 1, 1),
    (1, 12, 67, 63),
    (2, 45, 41, 27),
    (1, 3, 190, 181),
]
EPS = 1e-5


def clip(x: Tensor, activation: str) -> Tensor:
    return {"none": x, "relu": x.clamp(min=0), "relu6": x.clamp(0, 6)}[activation]


def kept(x: Tensor, activation: str) -> Tensor:
    """Where an activation lets a gradient through, NaN's as well."""
    return ~{"none": x != x, "relu": x <= 0, "relu6": (x <= 0) | (x >= 6)}[activation] | x.isnan()


def per_channel(x: Tensor) -> Tensor:
    return x.view(1, -1, 1, 1)


def mean(x: Tensor) -> Tensor:
    return x.mean((0, 2, 3), keepdim=True)


def roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def stored_error(x: Tensor, dtype: torch.dtype) -> Tensor:
    """That of storing x; numbers below the normal ones are spaced as the least of those."""
    return roundoff(dtype) * x.abs().clamp(min=torch.finfo(dtype).tiny)


class Data(NamedTuple):
    input: Tensor
    residual: Tensor | None
    weight: Tensor
    bias: Tensor
    grad_output: Tensor


def make(shape: tuple[int, ...], dtype: torch.dtype, layout: str, residual: bool) -> Data:
    generator = torch.Generator().manual_seed(sum(shape))

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    C = shape[1]
    spread, shift = random(C).abs() + 0.1, 3 * random(C)
    images = [random(*shape) * per_channel(spread) + per_channel(shift), random(*shape), random(*shape)]
    images = [image.to(dtype).to(memory_format=FORMATS[layout]) for image in images]
    weight, bias = (vector.to(parameter_dtype(dtype)) for vector in (random(C), random(C) + 1))
    return Data(images[0], images[1] if residual else None, weight, bias, images[2])


@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_float64(dtype: torch.dtype, layout: str, residual: bool, isa: str) -> None:
    # A lane has 64 terms of a chunk or, in planes, 4096 / 4 / lanes; then the lanes of 4 registers are added up, and a
    # handful of operations follow.
    lanes = {"avx512": 512, "avx2": 256}.get(isa, 128) // torch.finfo(parameter_dtype(dtype)).bits
    gamma = (max(64, 1024 // lanes) + 50) * roundoff(parameter_dtype(dtype))
    for shape, activation in itertools.product(SHAPES, ACTIVATIONS):
        data = make(shape, dtype, layout, residual)
        C = shape[1]
        running = torch.zeros(C, dtype=parameter_dtype(dtype)), torch.ones(C, dtype=parameter_dtype(dtype))
        code = ACTIVATIONS[activation]
        operands = (data.input, data.residual, data.weight, data.bias)
        output, center, invstd, shift = ops.batch_norm_forward(*operands, *running, 0.25, EPS, code)
        what = f"{shape} {activation}"

        x = data.input.double()
        added = 0 if data.residual is None else data.residual.double()
        weight, bias = per_channel(data.weight.double()), per_channel(data.bias.double())
        m = mean(x)
        var = mean((x - m) ** 2)
        scale = weight / (var + EPS).sqrt()
        sums = (x - m) * scale + bias + added
        size = (x.abs() + m.abs() + mean((x - m).abs())) * scale.abs() + bias.abs() + abs(added)
        bound = gamma * size + stored_error(sums, dtype)
        assert output.dtype == dtype and output.stride() == data.input.stride()
        assert ((output.double() - clip(sums, activation)).abs() <= bound).all(), what
        assert (per_channel(center.double()) - m).abs().le(gamma * mean(x.abs())).all(), what
        assert (per_channel(invstd.double()) * (var + EPS).sqrt() - 1).abs().le(gamma).all(), what
        n = x.numel() // C
        torch.testing.assert_close(running[0].double(), 0.25 * m.flatten(), rtol=gamma, atol=gamma)
        torch.testing.assert_close(running[1].double(), 0.75 + 0.25 * var.flatten() * n / (n - 1), rtol=gamma, atol=0)

        # What is within an error of being clipped may be, or not.
        edges = [sums.abs(), (sums - 6).abs()]
        sure = (edges[0] > 2 * bound) & (edges[1] > 2 * bound)
        grad_output = torch.where(sure, data.grad_output, 0).to(memory_format=FORMATS[layout])
        clipped = output if residual and activation != "none" else None
        grads = ops.batch_norm_backward(
            grad_output, data.input, clipped, data.weight, center, invstd, shift, code, [True, residual, True, True]
        )
        g = torch.where(kept(sums, activation), grad_output.double(), 0)
        xhat = (x - m) / (var + EPS).sqrt()
        far = (x.abs() + m.abs()) / (var + EPS).sqrt() + 1
        expected = scale * (g - mean(g) - xhat * mean(g * xhat))
        size = scale.abs() * (g.abs() + mean(g.abs()) + far * mean(g.abs() * far))
        assert grads[0].dtype == dtype and grads[0].stride() == data.input.stride()
        assert ((grads[0].double() - expected).abs() <= gamma * size + stored_error(expected, dtype)).all(), what
        if clipped is not None:
            assert torch.equal(grads[1].double(), g), what
        bound = n * (gamma * mean(g.abs() * far)).flatten()
        assert ((grads[2].double() - n * mean(g * xhat).flatten()).abs() <= bound).all(), what
        assert ((grads[3].double() - n * mean(g).flatten()).abs() <= n * gamma * mean(g.abs()).flatten()).all(), what


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exact(dtype: torch.dtype, layout: str, isa: str) -> None:
    """Neighbours 2 above and 2 below a whole number: nothing is rounded."""
    for N, C, H, W in [(2, 5, 3, 8), (4, 24, 14, 14), (2, 4, 160, 144)]:
        index = torch.arange(H * W).view(H, W).expand(N, C, H, W)
        signs, pairs = (
            torch.where(index // step % 2 == 0, 1, -1).to(dtype).contiguous(memory_format=FORMATS[layout])
            for step in (1, 2)
        )
        channel = torch.arange(C)
        weight, bias = (channel % 5 - 2).to(parameter_dtype(dtype)), (channel % 3 - 1).to(parameter_dtype(dtype))
        input = (2 * signs + per_channel(channel - C // 2)).to(dtype)
        sums = signs * per_channel(weight) + per_channel(bias) + pairs
        output, center, invstd, shift = ops.batch_norm_forward(input, pairs, weight, bias, None, None, 0.1, 0.0, 1)
        assert torch.equal(output, sums.clamp(min=0).to(dtype))
        assert torch.equal(center, (channel - C // 2).to(center.dtype))
        assert torch.equal(invstd, torch.full_like(center, 0.5))
        # Of a gradient, its mean and what goes along with the input are lost.
        grad_output = (pairs + per_channel(channel % 4) * signs + per_channel(channel % 3)).to(dtype)
        grads = ops.batch_norm_backward(
            grad_output, input, None, weight, center, invstd, shift, 0, [True, False, True, True]
        )
        assert torch.equal(grads[0], (pairs * per_channel(weight / 2)).to(dtype))
        assert torch.equal(grads[2], (channel % 4 * N * H * W).to(center.dtype))
        assert torch.equal(grads[3], (channel % 3 * N * H * W).to(center.dtype))


def module(C: int, **options: Any) -> nn.BatchNorm2d:
    generator = torch.Generator().manual_seed(C)
    bn = nn.BatchNorm2d(C, **options).double()
    for tensor in (*bn.parameters(), *bn.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.5, 1.5, generator=generator)
    return bn


@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"track_running_stats": False}, {"affine": False}], ids=str
)
def test_buffers_are_torchs(options: dict[str, Any]) -> None:
    ours, theirs = module(6, **options), module(6, **options)
    for seed in range(3):
        x = torch.randn(2, 6, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            torch.testing.assert_close(normalization.batch_norm(x, ours), theirs(x))
        assert [buffer._version for buffer in ours.buffers()] == [buffer._version for buffer in theirs.buffers()]
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value)


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(activation: str, residual: bool, affine: bool) -> None:
    bn = module(3, affine=affine)
    generator = torch.Generator().manual_seed(2)
    shape = (2, 3, 3, 4)
    inputs = [
        torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(1 + residual)
    ]
    parameters = [parameter.detach().requires_grad_() for parameter in bn.parameters()]

    def run(input: Tensor, *others: Tensor) -> Tensor:
        weight, bias = others[-2:] if affine else (None, None)
        options = (None, None, 0.1, EPS, ACTIVATIONS[activation])
        return normalization.BatchNorm.apply(input, others[0] if residual else None, weight, bias, options)

    assert torch.autograd.gradcheck(run, (*inputs, *parameters))
    assert torch.autograd.gradgradcheck(run, (*inputs, *parameters))


@pytest.mark.parametrize("layout", FORMATS)
def test_gradients_of_parts(layout: str) -> None:
    """Any of them, of a gradient in any strides."""
    data = make((2, 6, 5, 4), torch.float64, layout, residual=True)
    assert data.residual is not None
    strange = data.grad_output[:, :, :1].expand_as(data.input)
    for wanted in itertools.product([False, True], repeat=4):
        if not any(wanted):
            continue
        ours, theirs = [
            [t.clone().requires_grad_(w) for t, w in zip(data[:4], wanted, strict=True)]
            for _ in range(2)  # type: ignore[union-attr]
        ]
        output = normalization.BatchNorm.apply(*ours, (None, None, 0.1, EPS, ACTIVATIONS["relu"]))
        output.backward(strange)
        expected = F.batch_norm(theirs[0], None, None, theirs[2], theirs[3], training=True, eps=EPS)
        (expected + theirs[1]).relu().backward(strange)
        for mine, other in zip(ours, theirs, strict=True):
            assert (mine.grad is None) == (other.grad is None)
            if mine.grad is not None:
                torch.testing.assert_close(mine.grad, other.grad)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_not_finite(activation: str, layout: str, isa: str) -> None:
    """A channel with NaN or infinity is NaN, as torch's, and its gradients; others do not know of it."""
    data = make((2, 5, 9, 8), torch.float32, layout, residual=False)
    data.input[0, 1, 3, 3], data.input[1, 3, 2, 2] = float("nan"), float("inf")
    code = ACTIVATIONS[activation]
    output, center, invstd, shift = ops.batch_norm_forward(*data[:4], None, None, 0.1, EPS, code)
    lost = torch.tensor([False, True, False, True, False])
    assert output[:, lost].isnan().all() and output[:, ~lost].isfinite().all()
    grads = ops.batch_norm_backward(
        data.grad_output, data.input, None, data.weight, center, invstd, shift, code, [True, False, True, True]
    )
    for grad in (grads[0].transpose(0, 1), grads[2]):
        assert grad[lost].isnan().all() and grad[~lost].isfinite().all()
    # The bias' gradient does not go by way of the statistics: NaN lets it through.
    torch.testing.assert_close(grads[3][lost], data.grad_output.sum((0, 2, 3))[lost])


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_clipped_is_what_was_stored(activation: str, dtype: torch.dtype, layout: str, isa: str) -> None:
    """Rounding to 16 bits makes 6 of what is a little less, and 0 of what is a little more."""
    data = make((4, 19, 33, 21), dtype, layout, residual=False)
    tiny = 2.0**-24 if dtype == torch.float16 else 1.0
    weight, bias = data.weight * tiny, torch.full_like(data.bias, 6 if activation == "relu6" else 0)
    weight[::2] = 1
    operands = (data.input, None, weight, bias, None, None, 0.1, EPS, ACTIVATIONS[activation])
    output, center, invstd, shift = ops.batch_norm_forward(*operands)
    ones = torch.ones_like(data.input)
    grads = ops.batch_norm_backward(
        ones, data.input, None, weight, center, invstd, shift, ACTIVATIONS[activation], [False, False, False, True]
    )
    assert torch.equal(grads[3].double(), kept(output, activation).double().sum((0, 2, 3)))


def test_more_segments_than_are_kept_apart() -> None:
    x = torch.randn(1, 2, 2100, 2050, generator=torch.Generator().manual_seed(0))
    x = x.to(memory_format=torch.channels_last)
    _, center, invstd, _ = ops.batch_norm_forward(x, None, None, None, None, None, 0.1, EPS, 0)
    variance, mean_ = torch.var_mean(x.double(), (0, 2, 3), unbiased=False)
    torch.testing.assert_close(center.double(), mean_, rtol=0, atol=1e-7)
    torch.testing.assert_close(invstd.double(), (variance + EPS).rsqrt(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("layout", FORMATS)
def test_threads_change_no_bits(layout: str) -> None:
    data = make((3, 40, 61, 67), torch.float32, layout, residual=True)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        try:
            output, center, invstd, shift = ops.batch_norm_forward(*data[:4], None, None, 0.1, EPS, 1)
            grads = ops.batch_norm_backward(
                data.grad_output, data.input, output, data.weight, center, invstd, shift, 1, [True] * 4
            )
        finally:
            torch.set_num_threads(before)
        results.append((output, center, invstd, *grads))
    for others in results[1:]:
        assert all(map(torch.equal, results[0], others))


def test_large_mean() -> None:
    """Squares of what is left without the mean: no digits are lost to it."""
    x = torch.randn(4, 8, 30, 30, generator=torch.Generator().manual_seed(0)) + 4096
    _, center, invstd, _ = ops.batch_norm_forward(x, None, None, None, None, None, 0.1, EPS, 0)
    variance, mean_ = torch.var_mean(x.double(), (0, 2, 3), unbiased=False)
    torch.testing.assert_close(center.double(), mean_, rtol=1e-7, atol=0)
    torch.testing.assert_close(invstd.double(), (variance + EPS).rsqrt(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda a: a | {"input": torch.ones(3, 4, 5)},
            r"input must be 4D: \[N, C, H, W\], but got input.shape=\[3, 4, 5\]",
        ),
        (lambda a: a | {"input": torch.ones(1, 3, 1, 1)}, r"more than 1 value per channel when training, but got"),
        (lambda a: a | {"weight": torch.ones(4)}, r"weight must have shape \[C\] = \[3\], but got weight.shape=\[4\]"),
        (lambda a: a | {"bias": torch.ones(3).double()}, r"bias must have dtype Float for an input of Float, but got"),
        (lambda a: a | {"running_var": torch.ones(6)[::2]}, "running_var must be contiguous, but got stride 2"),
        (lambda a: a | {"residual": torch.ones(2, 3, 4, 4)}, "residual must have the shape of the output, but got"),
        (lambda a: a | {"residual": torch.ones(2, 3, 4, 5).double()}, "residual must have the dtype of input"),
        (lambda a: a | {"activation": 3}, r"activation must be none, ReLU or ReLU6 \(0, 1, 2\), but got activation=3"),
        (lambda a: a | {"activation": 256}, r"activation must be none, ReLU or ReLU6 .*, but got activation=256"),
    ],
)
def test_errors_name_the_rule(change: Callable[[dict[str, Any]], dict[str, Any]], message: str) -> None:
    arguments = {"input": torch.ones(2, 3, 4, 5), "residual": None, "weight": None, "bias": None, "running_mean": None}
    arguments |= {"running_var": None, "momentum": 0.1, "eps": EPS, "activation": 0}
    with pytest.raises(RuntimeError, match=message):
        ops.batch_norm_forward(*change(arguments).values())


def test_backward_errors_name_the_rule() -> None:
    x, statistics = torch.ones(2, 3, 4, 5), (torch.ones(3), torch.ones(3), torch.ones(3))
    with pytest.raises(RuntimeError, match=r"grad_output must have the shape of input, but got grad_output.shape"):
        ops.batch_norm_backward(x[:1], x, None, None, *statistics, 0, [True] * 4)
    with pytest.raises(RuntimeError, match=r"output must have the shape of input, but got output.shape"):
        ops.batch_norm_backward(x, x, x[:1], None, *statistics, 1, [True] * 4)
    with pytest.raises(RuntimeError, match="output_mask must have 4 values, but got 3"):
        ops.batch_norm_backward(x, x, None, None, *statistics, 0, [True] * 3)


def test_what_does_not_fit() -> None:
    bn, x = nn.BatchNorm2d(3), torch.randn(2, 3, 4, 4)
    assert normalization.fits(x, bn)
    assert normalization.fits(x.bfloat16(), bn)  # as torch's: statistics in float32
    assert not normalization.fits(x[0], bn) and not normalization.fits(x[:, :2], bn)
    assert not normalization.fits(x[:1, :, :1, :1], bn)
    assert not normalization.fits(x[:0], bn)
    assert not normalization.fits(x.double(), bn) and not normalization.fits(x.bfloat16(), copy.deepcopy(bn).bfloat16())
    assert not normalization.fits(x.to("meta"), bn) and not normalization.fits(x.to_sparse(), bn)
    with torch.autograd.forward_ad.dual_level():
        assert not normalization.fits(x, bn)
