"""Random shapes, arguments, dtypes, layouts and wanted gradients of every op against the float64 reference.

Forward runs on normal values. Gradients too, but for the ops whose ReLU or maximum selects among sums, where rounding
may decide a near-tie either way: there values are small integers, which make every sum exact and every tie a true one.

`SHORT` configurations of each op run by default, all `LONG` of them with `-m long`; a seed fixes everything.
"""

from __future__ import annotations

import dataclasses
import random
import zlib

import pytest
import torch
from calls import forward_backward

from cnnfast.testing import (
    DTYPES,
    LAYOUTS,
    OPS,
    Case,
    accepted,
    assert_within,
    make_tensors,
    random_tensor,
    reference,
)

pytestmark = pytest.mark.usefixtures("direct_sums")

OP_NAMES = ("conv2d", "conv2d_relu", "conv2d_relu_max_pool2d", "conv_transpose2d", "max_pool2d", "avg_pool2d")
SHORT, LONG = 50, 550
# Multiply-adds of one forward, so that thousands of configurations take minutes in float64.
MOST_WORK = 2_000_000
SELECTS_AMONG_SUMS = ("conv2d_relu", "conv2d_relu_max_pool2d")


@dataclasses.dataclass(frozen=True)
class Configuration:
    """One random call. Its repr and its seed are all that is needed to run it again."""

    seed: int
    case: Case
    dtype: torch.dtype
    layout: str
    weight_layout: str
    grad_layout: str
    wanted: tuple[bool, ...]


def _channels(rng: random.Random) -> int:
    return rng.choice((rng.randint(1, 5), rng.randint(6, 18), rng.choice((24, 31, 32, 33, 48)), rng.randint(49, 300)))


def _pair(rng: random.Random, least: int, most: int) -> int | tuple[int, int]:
    return rng.choice((rng.randint(least, most), (rng.randint(least, most), rng.randint(least, most))))


def _as_pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _kernel(rng: random.Random) -> tuple[int, int]:
    size = rng.choice((1, 2, 3, 3, 3, 4, 5))
    return rng.choice(((size, size), (rng.randint(1, 7), rng.randint(1, 5))))


def _image(rng: random.Random, channels: int) -> tuple[int, ...]:
    size = rng.choice(((rng.randint(1, 9),) * 2, (rng.randint(1, 30), rng.randint(1, 30))))
    batch = rng.choice(((), (0,), (1,), (2,), (3,), (rng.randint(1, 20),), (rng.randint(1, 70),)))
    return (*batch, channels, *size)


def _convolution(rng: random.Random, op: str) -> Case:
    groups = rng.choice((1, 1, 1, 2, 3, 5, 16))
    in_group, out_group = _channels(rng), _channels(rng)
    if groups > 1:
        in_group, out_group = rng.choice(((1, rng.randint(1, 3)), (in_group // groups + 1, out_group // groups + 1)))
    kernel = _kernel(rng)
    arguments = {"stride": _pair(rng, 1, 3), "dilation": _pair(rng, 1, 3), "groups": groups}
    if op == "conv_transpose2d":
        arguments["padding"] = _pair(rng, 0, 3)
        steps = zip(_as_pair(arguments["stride"]), _as_pair(arguments["dilation"]))
        arguments["output_padding"] = tuple(rng.randint(0, 1) if max(step) > 1 else 0 for step in steps)
        weight = (in_group * groups, out_group, *kernel)
    else:
        arguments["padding"] = rng.choice((_pair(rng, 0, 4), "valid", "same"))
        if arguments["padding"] == "same":
            arguments["stride"] = 1
        weight = (out_group * groups, in_group, *kernel)
    if op == "conv2d_relu_max_pool2d":
        arguments |= {f"pool_{name}": value for name, value in _pooling(rng).items() if name != "ceil_mode"}
        arguments |= {"pool_dilation": _pair(rng, 1, 2), "ceil_mode": rng.random() < 0.5}
    return Case("random", op, _image(rng, in_group * groups), weight, rng.random() < 0.7, arguments)


def _pooling(rng: random.Random) -> dict[str, object]:
    kernel = _pair(rng, 1, 4)
    least = kernel if isinstance(kernel, int) else min(kernel)
    arguments = {"kernel_size": kernel, "padding": _pair(rng, 0, least // 2), "ceil_mode": rng.random() < 0.5}
    if rng.random() < 0.7:
        arguments["stride"] = _pair(rng, 1, 4)
    return arguments


def _case(rng: random.Random, op: str) -> Case:
    if "conv" in op:
        return _convolution(rng, op)
    arguments = _pooling(rng)
    if op == "max_pool2d":
        arguments["dilation"] = _pair(rng, 1, 3)
    else:
        arguments["count_include_pad"] = rng.random() < 0.5
        if rng.random() < 0.3:
            arguments["divisor_override"] = rng.choice((1, 3, -2))
    return Case("random", op, _image(rng, _channels(rng)), arguments=arguments)


def _work(case: Case) -> int:
    *batch, _, H, W = case.input
    per_pixel = torch.Size(case.weight).numel() if case.weight else case.input[-3] * 9
    return per_pixel * H * W * (batch[0] if batch else 1)


def _runs(case: Case) -> bool:
    """Whether torch runs the case, forward and backward.

    A dilated window may lie between all elements of a padded input. torch 2.13 then returns -inf with an index out of
    range, and its backward writes there; test_nan.py has a test of its own for such windows.
    """
    if not accepted(case):
        return False
    spec = OPS[case.op]
    linear, selection = spec.split(case.arguments)
    meta = [torch.empty(shape, device="meta") for shape in (case.input, case.weight) if shape is not None]
    size = spec.linear(*meta, **linear).shape[-2:]
    # Some of torch's backends refuse an output without pixels, which a transposed convolution's padding can make.
    return min(size) > 0 and not spec.selection(torch.zeros(1, *size), **selection).isinf().any()


def configuration(op: str, seed: int) -> Configuration:
    """The configuration of this op and seed: the first drawn that torch runs and that is not too much work."""
    rng = random.Random(zlib.crc32(f"{op} {seed}".encode()))
    while _work(case := _case(rng, op)) > MOST_WORK or not _runs(case):
        pass
    tensors = 1 + (case.weight is not None) + case.bias
    wanted = tuple(rng.random() < 0.8 for _ in range(tensors))
    return Configuration(
        seed,
        case,
        rng.choice((torch.float32, *DTYPES)),
        *(rng.choice(("contiguous", *LAYOUTS)) for _ in range(3)),
        wanted if any(wanted) else (True,) * tensors,
    )


def check(config: Configuration, device: torch.device | str = "cpu") -> None:
    """Raises AssertionError unless output and wanted gradients of the configuration keep within their bounds."""
    case, layouts = config.case, {"layout": config.layout, "weight_layout": config.weight_layout}
    # The test's own name is what runs it again: python -m pytest "tests/test_random_configurations.py::test_...".
    what = f'"tests/test_random_configurations.py::test_configuration[{case.op}-{config.seed}]", {config}'
    tensors = make_tensors(case, config.dtype, config.seed, **layouts)
    if case.op in SELECTS_AMONG_SUMS:
        expected_output = reference(case.op, *tensors, **case.arguments).output
        for wanted in (config.wanted, (False,) * len(tensors)):  # inference may take another algorithm
            output, _ = forward_backward(case.op, tensors, case.arguments, None, device, wanted)
            assert_within(output.cpu(), expected_output, f"output of {what}, wanted={wanted}")
        tensors = make_tensors(case, config.dtype, config.seed, integers=True, **layouts)

    shape = reference(case.op, *tensors, **case.arguments).output.value.shape
    generator = torch.Generator().manual_seed(config.seed + 1)
    grad_output = LAYOUTS[config.grad_layout](random_tensor(shape, config.dtype, generator))
    expected = reference(case.op, *tensors, grad_output=grad_output, **case.arguments)
    output, gradients = forward_backward(case.op, tensors, case.arguments, grad_output, device, config.wanted)
    assert output.dtype == config.dtype, what
    assert_within(output.cpu(), expected.output, f"output of {what}")
    wanted = [gradient for gradient, w in zip(expected.gradients, config.wanted) if w]
    names = [name for name, w in zip(("input", "weight", "bias"), config.wanted) if w]
    assert len(gradients) == len(wanted), what
    for name, actual, gradient in zip(names, gradients, wanted):
        assert_within(actual.cpu(), gradient, f"gradient of {name} of {what}")


@pytest.mark.parametrize(
    ("op", "seed"),
    [
        pytest.param(op, seed, marks=[pytest.mark.long] if seed >= SHORT else [], id=f"{op}-{seed}")
        for op in OP_NAMES
        for seed in range(LONG)
    ],
)
def test_configuration(op: str, seed: int, device: torch.device) -> None:
    check(configuration(op, seed), device)


@pytest.mark.parametrize("op", OP_NAMES)
def test_configurations_are_varied(op: str) -> None:
    configs = [configuration(op, seed) for seed in range(SHORT)]
    assert {c.dtype for c in configs} == set(DTYPES)
    assert {c.layout for c in configs} == set(LAYOUTS)
    assert len({repr(c.case) for c in configs}) == SHORT
    assert max(c.case.input[-3] for c in configs) > 100
    assert any(c.case.input[0] == 0 for c in configs)
    assert configuration(op, 7) == configuration(op, 7)
