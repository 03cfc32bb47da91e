"""What tests and benchmarks share: labelled cases, inputs in every layout, references, and one tolerance rule.

Every op is a *linear* part (convolution, average; the identity for ``relu`` and ``max_pool2d``) followed by a
*selection* (ReLU, maximum), which rounds nothing. The reference runs both with plain torch in float64. How far a
kernel may be from it follows from theory alone (N. J. Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd
ed., section 3.1): summed in any order with unit roundoff ``u``, a sum of ``n`` products ``a * b`` is off by at most ::

    gamma(n, u) * sum |a * b|,    gamma(n, u) = n u / (1 - n u)

to which storing the result in bfloat16 or float16 adds one rounding. ``sum |a * b|`` is the op itself on absolute
values and ``n`` is the op on ones, so one rule serves every op, its gradients and all dtypes, with no tuned constant.

    >>> case = cases("conv2d")[0]
    >>> tensors = make_tensors(case, torch.float32, seed=0)
    >>> expected = reference(case.op, *tensors, **case.arguments)
    >>> assert_within(torch.nn.functional.conv2d(*tensors, **case.arguments), expected.output, case.label)
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "CASES",
    "DTYPES",
    "LAYOUTS",
    "OPS",
    "Bounded",
    "Case",
    "Reference",
    "accepted",
    "accumulation_dtype",
    "assert_within",
    "cases",
    "make_tensors",
    "random_tensor",
    "reference",
    "worst_error",
]

DTYPES: tuple[torch.dtype, ...] = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


# ---------------------------------------------------------------------------------------------------- references


def _identity(input: Tensor) -> Tensor:
    return input


class _Op(NamedTuple):
    """An op as selection(linear(...)), both torch's own; the selection's arguments carry a prefix in fused ops."""

    linear: Callable[..., Tensor]
    selection: Callable[..., Tensor]
    selects: Callable[[str], bool] = lambda name: False

    def split(self, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The linear part's arguments and the selection's."""
        selection = {k: v for k, v in arguments.items() if self.selects(k)}
        linear = {k: v for k, v in arguments.items() if not self.selects(k)}
        return linear, {k.removeprefix("pool_"): v for k, v in selection.items()}


def _relu_max_pool2d(input: Tensor, kernel_size: Any = 2, **arguments: Any) -> Tensor:
    return F.max_pool2d(F.relu(input), kernel_size, **arguments)


OPS: dict[str, _Op] = {
    "conv2d": _Op(F.conv2d, _identity),
    "conv2d_relu": _Op(F.conv2d, F.relu),
    "conv2d_relu_max_pool2d": _Op(
        F.conv2d, _relu_max_pool2d, lambda name: name.startswith("pool_") or name == "ceil_mode"
    ),
    "conv_transpose2d": _Op(F.conv_transpose2d, _identity),
    "relu": _Op(_identity, F.relu),
    "max_pool2d": _Op(_identity, F.max_pool2d, lambda name: True),
    "avg_pool2d": _Op(F.avg_pool2d, _identity),
}


class Bounded(NamedTuple):
    """A float64 value and, element by element, how far a result in the dtype under test may be from it."""

    value: Tensor
    bound: Tensor


@dataclasses.dataclass(frozen=True)
class Reference:
    """What an op must return: its output and, where a gradient of it was given, those of its tensors in order."""

    output: Bounded
    gradients: tuple[Bounded, ...]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums over elements of ``dtype`` are kept: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _unit_roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def _bounded(value: Tensor, magnitude: Tensor, count: Tensor, dtype: torch.dtype, stored_between: bool) -> Bounded:
    # One more operation than products: the division of an average, the addition of a bias.
    count = count + 1
    magnitude = magnitude.abs()  # avg_pool2d takes negative divisors
    sums = sum(
        count * u / (1 - count * u) * magnitude
        for u in (_unit_roundoff(accumulation_dtype(dtype)), _unit_roundoff(torch.float64))
    )
    if stored_between:
        sums = sums + _unit_roundoff(dtype) * magnitude
    info = torch.finfo(dtype)
    smallest_subnormal = info.smallest_normal * info.eps
    return Bounded(value, sums + _unit_roundoff(dtype) * (value.abs() + sums) + smallest_subnormal / 2)


def reference(op: str, *tensors: Tensor | None, grad_output: Tensor | None = None, **arguments: Any) -> Reference:
    """Value and error bound of ``op`` and, with ``grad_output``, of its gradients.

    Args:
        op: a name of ``cnnfast.functional``, a key of ``OPS``.
        tensors: input and, for convolutions, weight and bias (or None), all of the dtype under test.
        grad_output: gradient of the output, of its shape.
        arguments: the op's other arguments, by torch's names (``return_indices`` excepted).

    Gradients come in the order of the tensors that are not None. Where ReLU or a maximum decides, they are those of
    the float64 winner: give values without near-ties (integers have exact ties only, which the first wins).
    """
    spec = OPS[op]
    linear_arguments, selection_arguments = spec.split(arguments)
    given = [t.detach() for t in tensors if t is not None]
    dtype = given[0].dtype
    exact = [t.double().contiguous().requires_grad_() for t in given]
    absolute = [t.detach().abs().requires_grad_() for t in exact]
    ones = [torch.ones_like(t, requires_grad=True) for t in exact]
    # An average over ones is one; the divisor 1 makes it the number of its terms.
    count_arguments = linear_arguments | ({"divisor_override": 1} if op == "avg_pool2d" else {})

    with torch.enable_grad():
        middle = spec.linear(*exact, **linear_arguments)
        output = spec.selection(middle, **selection_arguments)
        magnitude = spec.linear(*absolute, **linear_arguments)
        count = spec.linear(*ones, **count_arguments)

    before_selection = _bounded(middle.detach(), magnitude.detach(), count.detach(), dtype, False)
    # A selection moves no farther than the farthest of the values that it selects from.
    bound = spec.selection(before_selection.bound, **selection_arguments)
    result = Bounded(output.detach(), bound)
    if grad_output is None:
        return Reference(result, ())

    def gradients(through: Sequence[Tensor], last: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        """Gradients of `through`, whose linear result is `last`, by way of this reference's own winners."""
        if spec.selection is not _identity:
            (grad,) = torch.autograd.grad(output, middle, grad, retain_graph=True)
        return tuple(torch.autograd.grad(last, through, grad, retain_graph=True))

    grad = grad_output.detach().double().contiguous()
    # A fused op may store the gradient that overlapping pooling windows add up before the convolution takes it.
    stored_between = op == "conv2d_relu_max_pool2d"
    parts = zip(
        gradients(exact, middle, grad),
        gradients(absolute, magnitude, grad.abs()),
        gradients(ones, count, torch.ones_like(grad)),
    )
    return Reference(result, tuple(_bounded(*part, dtype, stored_between) for part in parts))


def worst_error(actual: Tensor, expected: Bounded) -> float:
    """The largest error of ``actual`` in units of its bound: at most 1 where the rule holds, 0 for no elements.

    Equal infinities, and NaN where the reference is NaN, count as no error; any other NaN as an infinite one.
    """
    value, bound = expected
    actual = actual.detach().double()
    if actual.numel() == 0:
        return 0.0
    agrees = (actual == value) | (actual.isnan() & value.isnan())
    error = torch.where(agrees, 0.0, (actual - value).abs() / bound)
    return float(error.nan_to_num(nan=float("inf")).max())


def assert_within(actual: Tensor, expected: Bounded, what: str) -> None:
    """Raises AssertionError, naming ``what`` and the worst element, unless ``actual`` keeps within its bound."""
    value, bound = expected
    assert actual.shape == value.shape, f"{what}: shape {tuple(actual.shape)} instead of {tuple(value.shape)}"
    if worst_error(actual, expected) <= 1:
        return
    error = (actual.detach().double() - value).abs()
    excess = (error / bound).nan_to_num(nan=float("inf"))
    excess[(actual.double() == value) | (actual.isnan() & value.isnan())] = 0
    index = tuple(int(i) for i in torch.unravel_index(excess.argmax(), excess.shape))
    raise AssertionError(
        f"{what}: {int((excess > 1).sum())} of {excess.numel()} elements are out of bounds; the worst, at {index}, is "
        f"{float(actual[index])!r} instead of {float(value[index])!r} +- {float(bound[index]):.3g}"
    )


# ------------------------------------------------------------------------------------------------------- layouts


def _poisoned_window(tensor: Tensor, step: int) -> Tensor:
    """The same values as a window, every `step`-th element of it, in a larger tensor that is NaN elsewhere."""
    larger = torch.full([step * size + 2 for size in tensor.shape], float("nan"), dtype=tensor.dtype)
    window = larger[tuple(slice(1, 1 + step * size, step) for size in tensor.shape)]
    return window.copy_(tensor)


def _stored_as(order: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """The same values, stored densely with the dimensions (counted from the end) in the given order."""

    def layout(tensor: Tensor) -> Tensor:
        dims = [tensor.dim() + d for d in order if -d <= tensor.dim()]
        back = [dims.index(d) for d in range(tensor.dim())]
        return tensor.permute(dims).contiguous().permute(back)

    return layout


# Each takes a [N, C, H, W] or [C, H, W] tensor to one of its shape and, but for `expanded`, of its values.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": torch.Tensor.contiguous,
    "channels_last": _stored_as((-4, -2, -1, -3)),
    "transposed": _stored_as((-4, -3, -1, -2)),
    "batch_innermost": _stored_as((-3, -2, -1, -4)),
    "sliced": lambda tensor: _poisoned_window(tensor, 1),
    "strided": lambda tensor: _poisoned_window(tensor, 3),
    "expanded": lambda tensor: tensor[..., :1, :, :].expand_as(tensor),
}


# --------------------------------------------------------------------------------------------------------- cases


@dataclasses.dataclass(frozen=True)
class Case:
    """One labelled call: shapes of the tensors and the other arguments, by torch's names."""

    label: str
    op: str
    input: tuple[int, ...]
    weight: tuple[int, int, int, int] | None = None
    bias: bool = False
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.op}-{self.label}"


def accepted(case: Case) -> bool:
    """Whether torch runs the case: not every kernel fits every input, nor every pooling window every output."""
    tensors = (torch.empty(s, device="meta") for s in (case.input, case.weight) if s is not None)
    spec = OPS[case.op]
    linear, selection = spec.split(case.arguments)
    try:
        # torch warns that 'same' padding of an even kernel may copy.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spec.selection(spec.linear(*tensors, **linear), **selection)
    except RuntimeError:
        return False
    return True


# label, input, weight, bias, (stride, padding, dilation, groups)
_CONVOLUTIONS: tuple[tuple[str, tuple[int, ...], tuple[int, int, int, int], bool, tuple[Any, Any, Any, int]], ...] = (
    ("lecture_layer_1", (64, 1, 28, 28), (12, 1, 3, 3), True, (1, 1, 1, 1)),
    ("lecture_layer_2", (64, 12, 14, 14), (24, 12, 3, 3), True, (1, 1, 1, 1)),
    ("lecture_colour", (5, 3, 28, 28), (12, 3, 3, 3), True, (1, 1, 1, 1)),
    ("odd_batch_tail", (3, 12, 14, 14), (24, 12, 3, 3), True, (1, 1, 1, 1)),
    ("channels_below_8_lanes", (2, 7, 9, 9), (7, 7, 3, 3), True, (1, 1, 1, 1)),
    ("channels_above_8_lanes", (2, 9, 9, 9), (9, 9, 3, 3), False, (1, 1, 1, 1)),
    ("channels_below_16_lanes", (2, 15, 7, 15), (15, 15, 3, 3), True, (1, 0, 1, 1)),
    ("channels_above_16_lanes", (2, 17, 7, 17), (17, 17, 3, 3), True, (1, 1, 1, 1)),
    ("lopsided", (2, 5, 13, 11), (6, 5, 3, 2), True, ((2, 1), (1, 0), (2, 1), 1)),
    ("lopsided_the_other_way", (2, 5, 11, 13), (6, 5, 2, 3), True, ((1, 3), (0, 2), (1, 2), 1)),
    ("1x1", (2, 19, 6, 7), (33, 19, 1, 1), True, (1, 0, 1, 1)),
    ("1x1_stride_2", (2, 16, 7, 7), (8, 16, 1, 1), False, (2, 0, 1, 1)),
    ("1x1_padded", (2, 3, 4, 4), (5, 3, 1, 1), True, (1, 1, 1, 1)),
    ("groups", (2, 12, 8, 8), (18, 4, 3, 3), True, (1, 1, 1, 3)),
    ("depthwise", (2, 17, 9, 10), (17, 1, 3, 3), True, (1, 1, 1, 17)),
    ("depthwise_multiplier_stride_2", (2, 6, 9, 9), (12, 1, 3, 3), False, (2, 1, 1, 6)),
    ("even_kernel", (2, 4, 9, 8), (5, 4, 4, 2), True, (1, (2, 1), 1, 1)),
    ("same_even_kernel", (2, 4, 7, 8), (6, 4, 2, 4), True, (1, "same", 1, 1)),
    ("same_dilated", (2, 4, 9, 8), (6, 4, 4, 3), True, (1, "same", (1, 3), 1)),
    ("valid", (2, 4, 7, 8), (6, 4, 3, 3), True, (2, "valid", 1, 1)),
    ("padding_beyond_kernel", (2, 3, 5, 4), (4, 3, 3, 3), True, (1, (4, 5), 1, 1)),
    ("stride_beyond_kernel", (2, 3, 12, 13), (4, 3, 2, 2), True, (3, 0, 1, 1)),
    ("5x5", (2, 6, 12, 12), (8, 6, 5, 5), True, (1, 2, 1, 1)),
    ("7x7_stride_2", (2, 3, 20, 20), (10, 3, 7, 7), True, (2, 3, 1, 1)),
    ("11x11_stride_4", (2, 3, 27, 31), (20, 3, 11, 11), True, (4, 2, 1, 1)),
    ("patches", (2, 4, 12, 20), (17, 4, 4, 4), True, (4, 0, 1, 1)),
    ("first_layer", (1, 3, 6, 70), (33, 3, 3, 3), True, (1, 1, 1, 1)),
    ("one_output", (2, 10, 4, 4), (20, 10, 4, 4), True, (1, 0, 1, 1)),
    ("one_pixel", (2, 8, 1, 1), (8, 8, 3, 3), True, (1, 1, 1, 1)),
    ("wide_row", (1, 2, 3, 131), (3, 2, 3, 3), True, (1, 1, 1, 1)),
    ("many_channels", (1, 300, 5, 6), (70, 300, 3, 3), True, (1, 1, 1, 1)),
    ("unbatched", (4, 9, 8), (6, 4, 3, 3), True, (1, 1, 1, 1)),
    ("empty_batch", (0, 4, 8, 8), (6, 4, 3, 3), True, (1, 1, 1, 1)),
)  # fmt: skip

_FUSED_POOLS: dict[str, dict[str, Any]] = {
    "": {},
    "_pool_3x3_stride_2_padded": {"pool_kernel_size": 3, "pool_stride": 2, "pool_padding": 1},
    "_pool_overlapping": {"pool_kernel_size": (3, 2), "pool_stride": 1, "ceil_mode": True},
    "_pool_dilated": {"pool_kernel_size": 2, "pool_stride": (2, 1), "pool_dilation": (1, 2)},
}

# label, input, weight, bias, (stride, padding, output_padding, groups, dilation)
_TRANSPOSED: tuple[
    tuple[str, tuple[int, ...], tuple[int, int, int, int], bool, tuple[Any, Any, Any, int, Any]], ...
] = (
    ("upsample_2", (2, 16, 7, 7), (16, 12, 2, 2), True, (2, 0, 0, 1, 1)),
    ("3x3", (3, 12, 14, 14), (12, 9, 3, 3), True, (1, 1, 0, 1, 1)),
    ("lopsided", (2, 5, 6, 7), (5, 6, 3, 2), True, ((2, 1), (1, 0), (1, 0), 1, (2, 1))),
    ("output_padding", (2, 4, 5, 5), (4, 3, 3, 3), False, (2, 1, 1, 1, 1)),
    ("groups", (2, 6, 5, 5), (6, 2, 3, 3), True, (2, 1, 0, 3, 1)),
    ("unbatched", (4, 5, 6), (4, 3, 3, 3), True, (1, 0, 0, 1, 1)),
    ("empty_batch", (0, 4, 5, 6), (4, 3, 3, 3), True, (1, 0, 0, 1, 1)),
)  # fmt: skip

# label, input, arguments of max_pool2d and avg_pool2d alike
_POOLS: tuple[tuple[str, tuple[int, ...], dict[str, Any]], ...] = (
    ("lecture_pool_1", (64, 12, 28, 28), {"kernel_size": 2}),
    ("lecture_pool_2", (64, 24, 14, 14), {"kernel_size": 2}),
    ("odd_size", (3, 5, 13, 15), {"kernel_size": 2}),
    ("odd_size_ceil", (3, 5, 13, 15), {"kernel_size": 2, "ceil_mode": True}),
    ("3x3_stride_2_padded", (2, 9, 14, 17), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ("3x3_stride_2_padded_ceil", (2, 9, 14, 17), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    ("overlapping", (2, 17, 9, 9), {"kernel_size": 3, "stride": 1}),
    ("lopsided", (2, 3, 12, 11), {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)}),
    ("gaps", (2, 3, 16, 16), {"kernel_size": 2, "stride": 5}),
    ("one_pixel", (2, 8, 1, 1), {"kernel_size": 1}),
    ("global", (2, 33, 7, 7), {"kernel_size": 7}),
    ("window_beyond_a_byte", (1, 2, 20, 19), {"kernel_size": 17, "stride": 1}),
    ("unbatched", (5, 9, 8), {"kernel_size": 2}),
    ("empty_batch", (0, 5, 9, 8), {"kernel_size": 2}),
)  # fmt: skip

_CONV_NAMES = ("stride", "padding", "dilation", "groups")
_TRANSPOSED_NAMES = ("stride", "padding", "output_padding", "groups", "dilation")


def _all_cases() -> list[Case]:
    found: list[Case] = []
    for label, input, weight, bias, geometry in _CONVOLUTIONS:
        arguments = dict(zip(_CONV_NAMES, geometry))
        found += (Case(label, op, input, weight, bias, arguments) for op in ("conv2d", "conv2d_relu"))
        for suffix, pool in _FUSED_POOLS.items():
            fused = Case(label + suffix, "conv2d_relu_max_pool2d", input, weight, bias, arguments | pool)
            if accepted(fused):
                found.append(fused)
    for label, input, weight, bias, transposed in _TRANSPOSED:
        found.append(Case(label, "conv_transpose2d", input, weight, bias, dict(zip(_TRANSPOSED_NAMES, transposed))))
    for label, input, arguments in _POOLS:
        found += (Case(label, op, input, arguments=arguments) for op in ("max_pool2d", "avg_pool2d"))
    found += (
        Case("dilated", "max_pool2d", (2, 6, 11, 12), arguments={"kernel_size": 3, "stride": 2, "dilation": (2, 1)}),
        Case("without_padding", "avg_pool2d", (2, 6, 9, 9),
             arguments={"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False, "ceil_mode": True}),
        Case("divisor", "avg_pool2d", (2, 6, 9, 9), arguments={"kernel_size": 3, "divisor_override": 7}),
    )  # fmt: skip
    for label, input in (("lecture", (64, 12, 28, 28)), ("tail", (3, 5, 7, 11)), ("empty_batch", (0, 3, 4, 4))):
        found.append(Case(label, "relu", input))
    return found


CASES: tuple[Case, ...] = tuple(_all_cases())


def cases(op: str) -> list[Case]:
    """The labelled cases of one op of ``cnnfast.functional``."""
    return [case for case in CASES if case.op == op]


# -------------------------------------------------------------------------------------------------------- inputs


def random_tensor(
    shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator, *, integers: bool = False, scale: float = 1.0
) -> Tensor:
    """Normal values times ``scale`` or, with ``integers``, -1, 0 and 1 evenly.

    Sums of products of such integers are exact in float32, whatever their order, and below bfloat16's first
    unrepresentable integer (257) for some 3,000 terms: results can be compared with ``torch.equal``.
    """
    if integers:
        return torch.randint(-1, 2, tuple(shape), generator=generator).to(dtype)
    return (torch.randn(tuple(shape), generator=generator, dtype=torch.float64) * scale).to(dtype)


def make_tensors(
    case: Case,
    dtype: torch.dtype,
    seed: int,
    *,
    integers: bool = False,
    layout: str = "contiguous",
    weight_layout: str = "contiguous",
) -> tuple[Tensor, ...]:
    """Input and, where the case has them, weight and bias; the same for the same seed.

    ``layout`` and ``weight_layout`` are keys of ``LAYOUTS``. Weights are scaled by 1 / sqrt(terms of an output), so
    that outputs are of order 1, within float16's range.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = [LAYOUTS[layout](random_tensor(case.input, dtype, generator, integers=integers))]
    if case.weight is not None:
        K, channels, R, S = case.weight
        scale = (channels * R * S) ** -0.5
        weight = random_tensor(case.weight, dtype, generator, integers=integers, scale=scale)
        tensors.append(LAYOUTS[weight_layout](weight))
        if case.bias:
            transposed = case.op == "conv_transpose2d"
            features = channels * case.arguments["groups"] if transposed else K
            tensors.append(random_tensor((features,), dtype, generator, integers=integers))
    return tuple(tensors)
