"""Which calls run on torch's own op, what is told of them, and arguments as torch's front end reads them."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

import cnnfast
import cnnfast.functional as CF
from cnnfast import routing


@pytest.fixture(autouse=True)
def counted_from_zero() -> Iterator[None]:
    cnnfast.fallbacks(reset=True)
    yield
    cnnfast.fallbacks(reset=True)


class Subclass(Tensor):
    """A tensor subclass without behaviour of its own."""


def _image() -> Tensor:
    return torch.linspace(-1, 1, 32).reshape(1, 2, 4, 4)


def _dual() -> Tensor:
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(_image(), torch.ones(1, 2, 4, 4))
        return forward_ad.unpack_dual(CF.max_pool2d(dual, 2)).tangent


ELSEWHERE: dict[str, tuple[Callable[[], Any], Callable[[], Any], str, str]] = {
    # what: ours, torch's, op, part of the reason
    "int64": (lambda: CF.relu(_image().long()), lambda: F.relu(_image().long()), "relu", "torch.int64"),
    "complex64": (
        lambda: CF.conv2d(_image().cfloat(), torch.ones(1, 2, 2, 2).cfloat()),
        lambda: F.conv2d(_image().cfloat(), torch.ones(1, 2, 2, 2).cfloat()),
        "conv2d",
        "torch.complex64",
    ),
    "meta": (
        lambda: CF.avg_pool2d(_image().to("meta"), 2).shape,
        lambda: F.avg_pool2d(_image(), 2).shape,
        "avg_pool2d",
        "device meta",
    ),
    "sparse": (
        lambda: CF.relu(_image().to_sparse()).to_dense(),
        lambda: F.relu(_image()),
        "relu",
        "torch.sparse_coo",
    ),
    "subclass": (
        lambda: CF.max_pool2d(_image().as_subclass(Subclass), 2).as_subclass(Tensor),
        lambda: F.max_pool2d(_image(), 2),
        "max_pool2d",
        "subclass",
    ),
    "vmap": (
        lambda: torch.func.vmap(lambda image: CF.avg_pool2d(image, 2))(_image()),
        lambda: F.avg_pool2d(_image(), 2),
        "avg_pool2d",
        "torch.func",
    ),
    "func.grad": (
        lambda: torch.func.grad(lambda image: CF.relu(image).sum())(_image()),
        lambda: (_image() > 0).float(),
        "relu",
        "torch.func",
    ),
    "jvp": (
        lambda: torch.func.jvp(CF.relu, (_image(),), (torch.ones(1, 2, 4, 4),))[1],
        lambda: (_image() > 0).float(),
        "relu",
        "torch.func",
    ),
    "forward_ad": (_dual, lambda: torch.ones(1, 2, 2, 2), "max_pool2d", "forward-mode"),
    "jit.trace": (
        lambda: torch.jit.trace(lambda image: CF.max_pool2d(image, 2), (_image(),))(_image()),
        lambda: F.max_pool2d(_image(), 2),
        "max_pool2d",
        "tracing",
    ),
    "inplace": (lambda: CF.relu(_image(), inplace=True), lambda: F.relu(_image()), "relu", "inplace"),
}


@pytest.mark.parametrize("case", ELSEWHERE.values(), ids=ELSEWHERE.keys())
def test_torchs_own_op_is_counted_and_logged_once(case: Any, caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs, op, reason = case
    with caplog.at_level(logging.INFO, logger="cnnfast"):
        torch.testing.assert_close(ours(), theirs())
        (counted,) = cnnfast.fallbacks()[op]
        before = cnnfast.fallbacks()[op][counted]
        ours()
    assert reason in counted
    assert cnnfast.fallbacks()[op][counted] == 2 * before
    assert len(caplog.records) == 1
    assert op in caplog.text and reason in caplog.text


@pytest.mark.parametrize("case", ELSEWHERE.values(), ids=ELSEWHERE.keys())
def test_strict_mode_refuses(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _, op, reason = case
    monkeypatch.setenv("CNNFAST_STRICT", "1")
    with pytest.raises(RuntimeError, match=f"{op}: CNNFAST_STRICT=1 allows own kernels only, but got .*{reason}"):
        ours()
    assert cnnfast.fallbacks() == {}


def test_own_kernels_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNFAST_STRICT", "1")
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        CF.relu(_image().to(dtype))
        CF.max_pool2d(torch.nn.Parameter(_image().to(dtype)), 2)
    with forward_ad.dual_level():
        CF.relu(_image())
    assert cnnfast.fallbacks() == {}


def test_a_large_pooling_window_runs_unfused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNFAST_STRICT", "1")
    input, weight = torch.randn(1, 1, 40, 40), torch.randn(2, 1, 3, 3)
    output = CF.conv2d_relu_max_pool2d(input, weight, pool_kernel_size=16, pool_stride=8)
    torch.testing.assert_close(output, F.max_pool2d(F.relu(F.conv2d(input, weight)), 16, 8))
    assert list(cnnfast.fallbacks()) == ["conv2d_relu_max_pool2d"]


def test_a_symbolically_traced_module_holds_torchs_ops() -> None:
    traced = torch.fx.symbolic_trace(torch.nn.Sequential(cnnfast.Conv2d(2, 3, 3), cnnfast.MaxPool2d(2)))
    assert {node.target for node in traced.graph.nodes if node.op == "call_function"} >= {torch.conv2d}


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx_export_writes_standard_operators(dynamo: bool, tmp_path: Any) -> None:
    onnx = pytest.importorskip("onnx")
    if dynamo:
        pytest.importorskip("onnxscript")
    model = torch.nn.Sequential(cnnfast.ConvReLUMaxPool2d(2, 3, 3), cnnfast.AvgPool2d(2)).eval()
    file = tmp_path / "model.onnx"
    torch.onnx.export(model, (torch.randn(1, 2, 10, 10),), file, dynamo=dynamo)
    operators = {node.op_type for node in onnx.load(file).graph.node}
    assert operators >= {"Conv", "Relu", "MaxPool", "AveragePool"}


def test_without_the_library_torch_computes_and_says_why(tmp_path: Any) -> None:
    source = os.path.dirname(cnnfast.__file__)
    package = tmp_path / "cnnfast"
    package.mkdir()
    for name in os.listdir(source):
        if name.endswith(".py"):
            (package / name).symlink_to(os.path.join(source, name))
    (package / "_C.abi3.so").write_bytes(b"not a library")
    script = """
import cnnfast, pickle, sys, torch
output = cnnfast.Conv2d(1, 2, 3, padding=1)(torch.ones(1, 1, 4, 4))
info = cnnfast.info.collect()
sys.stdout.buffer.write(pickle.dumps((output.shape, cnnfast.fallbacks(), info["library"], info["ops"]["relu"])))
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True)
    assert result.returncode == 0, result.stderr.decode()
    shape, fallbacks, library, relu = pickle.loads(result.stdout)
    assert shape == (1, 2, 4, 4)
    assert fallbacks == {"conv2d": {routing.NOT_LOADED.text: 1}}
    assert "_C.abi3.so cannot be loaded" in library["error"]
    assert relu == {}
    assert b"_C.abi3.so cannot be loaded" in result.stderr


@pytest.mark.parametrize("value, warned", [("true", True), ("0", False), ("1", False), ("", False)])
def test_strict_of_another_value_is_ignored_and_said(value: str, warned: bool) -> None:
    result = subprocess.run(
        [sys.executable, "-c", "import cnnfast; print(cnnfast.routing.is_strict())"],
        env={**os.environ, "CNNFAST_STRICT": value},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ("CNNFAST_STRICT must be 0 or 1, but got true; ignored" in result.stderr) == warned
    assert result.stdout.strip() == str(value == "1")


X, W = torch.randn(1, 2, 5, 5), torch.randn(4, 2, 2, 2)
GOOD = {
    "numpy int": (CF.max_pool2d, F.max_pool2d, (X, numpy.int64(2)), {}),
    "int tensor": (CF.conv2d, F.conv2d, (X, W), {"stride": torch.tensor(2)}),
    "list": (CF.conv2d, F.conv2d, (X, W), {"stride": [1, 2], "dilation": [2, 1]}),
    "torch.Size": (CF.avg_pool2d, F.avg_pool2d, (X, torch.Size([2, 1])), {}),
    "one-tuple": (CF.conv2d, F.conv2d, (X, W), {"padding": (1,)}),
    "empty stride": (CF.max_pool2d, F.max_pool2d, (X, 2, []), {}),
    "valid": (CF.conv2d, F.conv2d, (X, W), {"padding": "valid"}),
    "same": (CF.conv2d, F.conv2d, (X, W), {"padding": "same", "dilation": (1, 3)}),
    "positional": (CF.conv_transpose2d, F.conv_transpose2d, (X, W.transpose(0, 1), None, 2, 1, 1, 1, 2), {}),
}


@pytest.mark.parametrize("case", GOOD.values(), ids=GOOD.keys())
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_arguments_that_torch_takes(case: Any) -> None:
    ours, theirs, args, kwargs = case
    torch.testing.assert_close(ours(*args, **kwargs), theirs(*args, **kwargs))
    assert cnnfast.fallbacks() == {}


BAD = {
    "float stride": ("conv2d", (X, W), {"stride": 1.0}, "stride=1.0"),
    "bool stride": ("conv2d", (X, W), {"stride": True}, "stride=True"),
    "bools": ("conv2d", (X, W), {"dilation": (True, 1)}, "dilation=True"),
    "no stride": ("conv2d", (X, W), {"stride": None}, "stride=None"),
    "three strides": ("conv2d", (X, W), {"stride": (1, 1, 1)}, r"stride=\[1, 1, 1\]"),
    "zero stride": ("conv2d", (X, W), {"stride": 0}, r"stride=\[0, 0\]"),
    "padding name": ("conv2d", (X, W), {"padding": "full"}, "padding='full'"),
    "negative padding": ("conv2d", (X, W), {"padding": -1}, "padding="),
    "same and stride": ("conv2d", (X, W), {"padding": "same", "stride": 2}, r"stride=\[2, 2\]"),
    "same and rank": ("conv2d", (X, W[0]), {"padding": "same"}, r"weight.shape=\[2, 2, 2\]"),
    "groups": ("conv2d", (X, W), {"groups": 1.0}, "groups=1.0"),
    "zero groups": ("conv2d", (X, W), {"groups": 0}, "groups=0"),
    "channels": ("conv2d", (X, W[:, :1]), {}, r"input.shape=\[1, 2, 5, 5\]"),
    "rank": ("conv2d", (X[0, 0], W), {}, r"input.shape=\[5, 5\]"),
    "large kernel": ("conv2d", (X, torch.randn(4, 2, 6, 2)), {}, r"\(5 x 5\)"),
    "bias size": ("conv2d", (X, W, torch.zeros(3)), {}, r"bias.shape=\[3\]"),
    "dtypes": ("conv2d", (X.double(), W), {}, "dtype="),
    "bias dtype": ("conv2d", (X, W, torch.zeros(4).double()), {}, "dtype="),
    "no weight": ("conv2d", (X, None), {}, "weight=NoneType"),
    "input list": ("relu", ([1.0],), {}, "input=list"),
    "bias number": ("conv2d", (X, W, 3), {}, "bias=int"),
    "transposed padding name": ("conv_transpose2d", (X, W.transpose(0, 1)), {"padding": "same"}, "padding='same'"),
    "output_padding": ("conv_transpose2d", (X, W.transpose(0, 1)), {"output_padding": 1}, "output_padding="),
    "float window": ("max_pool2d", (X, 2.0), {}, "kernel_size=2.0"),
    "no window": ("avg_pool2d", (X, None), {}, "kernel_size=None"),
    "zero window": ("max_pool2d", (X, 0), {}, r"kernel_size=\[0, 0\]"),
    "zero pool stride": ("avg_pool2d", (X, 2, 0), {}, r"stride=\[0, 0\]"),
    "pool padding": ("max_pool2d", (X, 2), {"padding": 2}, r"padding=\[2, 2\]"),
    "int ceil_mode": ("max_pool2d", (X, 2), {"ceil_mode": 1}, "ceil_mode=1"),
    "no ceil_mode": ("avg_pool2d", (X, 2), {"ceil_mode": None}, "ceil_mode=None"),
    "int count_include_pad": ("avg_pool2d", (X, 2), {"count_include_pad": 1}, "count_include_pad=1"),
    "zero divisor": ("avg_pool2d", (X, 2), {"divisor_override": 0}, "divisor_override=0"),
    "float divisor": ("avg_pool2d", (X, 2), {"divisor_override": 1.5}, "divisor_override=1.5"),
    "large window": ("avg_pool2d", (X, 6), {}, r"output size \(2x0x0\)"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_errors_are_torchs_and_name_the_argument(case: Any) -> None:
    op, args, kwargs, named = case
    with pytest.raises((TypeError, RuntimeError)) as theirs:
        getattr(F, op)(*args, **kwargs)
    with pytest.raises(theirs.type, match=f"^{op}: .*{named}"):
        getattr(CF, op)(*args, **kwargs)


FUSED_BAD = {
    "bool window": ({"pool_kernel_size": True}, TypeError, "pool_kernel_size=True"),
    "pool padding": ({"pool_padding": 2}, RuntimeError, "padding="),
    "int ceil_mode": ({"ceil_mode": 1}, TypeError, "ceil_mode=1"),
    "pool stride": ({"pool_stride": 0}, RuntimeError, "stride="),
}


@pytest.mark.parametrize("case", FUSED_BAD.values(), ids=FUSED_BAD.keys())
def test_errors_of_the_fused_op(case: Any) -> None:
    kwargs, kind, named = case
    with pytest.raises(kind, match=f"^conv2d_relu_max_pool2d: .*{named}"):
        CF.conv2d_relu_max_pool2d(X, W, **kwargs)
