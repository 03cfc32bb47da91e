"""torch.export, AOTInductor and ONNX, of every module, for any batch."""

from __future__ import annotations

import io
from typing import Any

import numpy
import pytest
import torch
from modules import TWINS, Twin, every_module, results
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import cnnfast
from cnnfast.autograd import PUBLIC

LECTURE = next(twin for twin in TWINS if twin.name == "LectureCNN")
FUSED = next(twin for twin in TWINS if twin.name == "ConvReLUMaxPool2d")
# torch's own, in its own use of its own functions.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`isinstance.treespec, LeafSpec:FutureWarning", "ignore:Using padding='same' with even kernel"
)


def _export(module: nn.Module, input: Tensor, **options: Any) -> ExportedProgram:
    return torch.export.export(module, (input,), dynamic_shapes=({0: Dim("batch")},), **options)


def _called(program: ExportedProgram) -> set[Any]:
    return {node.target for node in program.graph.nodes if node.op == "call_function"}


@every_module
def test_export_save_load(twin: Twin) -> None:
    module, _ = twin.modules()
    file = io.BytesIO()
    program = _export(module, twin.input(2))
    assert _called(program) & set(PUBLIC.values())
    torch.export.save(program, file)
    file.seek(0)
    for one in (program, torch.export.load(file)):
        run = one.module()
        for batch in (5, 1):
            torch.testing.assert_close(run(twin.input(batch)), module(twin.input(batch)))


def test_strict_export() -> None:
    """By dynamo, as torch.compile; the others here run the module's Python code."""
    module, _ = FUSED.modules()
    program = _export(module, FUSED.input(2), strict=True)
    assert _called(program) & set(PUBLIC.values())
    torch.testing.assert_close(program.module()(FUSED.input(3)), module(FUSED.input(3)))


@every_module
def test_gradients_of_an_exported_program(twin: Twin) -> None:
    module, _ = twin.modules()
    run = _export(module, twin.input(2)).module()
    torch.testing.assert_close(results(run, twin.input(3)), results(module, twin.input(3)))


def test_any_image_size() -> None:
    model = nn.Sequential(
        cnnfast.ConvReLUMaxPool2d(2, 4, 3, padding=1), cnnfast.MaxPool2d(3, 2, 1), cnnfast.ConvTranspose2d(4, 2, 2, 2)
    )
    sizes = {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}
    run = torch.export.export(model, (torch.randn(2, 2, 16, 18),), dynamic_shapes=(sizes,)).module()
    for shape in ((3, 2, 12, 30), (5, 2, 21, 17)):
        input = torch.randn(shape)
        torch.testing.assert_close(run(input), model(input))


@every_module
def test_decompositions(twin: Twin) -> None:
    """Applied where asked for; torch's usual ones leave our ops alone."""
    module, _ = twin.modules()
    program = _export(module, twin.input(2))
    assert _called(program.run_decompositions()) & set(PUBLIC.values())
    decomposed = program.run_decompositions(cnnfast.decompositions())
    assert not _called(decomposed) & set(PUBLIC.values())
    torch.testing.assert_close(decomposed.module()(twin.input(3)), module(twin.input(3)))


def _all_ops() -> nn.Module:
    return nn.Sequential(
        cnnfast.Conv2d(2, 4, (2, 3), padding="same", groups=2),
        cnnfast.ReLU(),
        cnnfast.MaxPool2d(3, 2, 1, ceil_mode=True),
        cnnfast.ConvTranspose2d(4, 4, 3, 2, 1, 1),
        cnnfast.AvgPool2d(2),
        cnnfast.ConvReLU2d(4, 2, 3),
        cnnfast.ConvReLUMaxPool2d(2, 4, 3, padding=1),
    )


def _check_onnx(program: Any, module: nn.Module, inputs: list[Tensor]) -> None:
    """Standard operators alone, and torch's results by onnxruntime."""
    onnxruntime = pytest.importorskip("onnxruntime")
    model = program.model_proto
    assert not model.functions
    assert {opset.domain for opset in model.opset_import} == {""}
    layers = {"Conv", "ConvTranspose", "Relu", "MaxPool", "AveragePool", "Pad", "Gemm"}
    # flatten(1), of any batch, computes its shape.
    shapes = {"Shape", "Gather", "Concat", "Constant", "Reshape", "Slice", "Squeeze"}
    assert {node.op_type for node in model.graph.node} <= layers | shapes
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for input in inputs:
        (output,) = session.run(None, {session.get_inputs()[0].name: input.numpy()})
        numpy.testing.assert_allclose(output, module(input).detach().numpy(), rtol=1e-4, atol=1e-5)


@every_module
def test_onnx(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    module, _ = twin.modules()
    with monkeypatch.context() as patch:
        patch.setenv("CNNFAST_STRICT", "1")  # nothing is run
        shapes = ({0: Dim("batch")},)
        program = torch.onnx.export(module, (twin.input(2),), dynamo=True, dynamic_shapes=shapes, verbose=False)
    _check_onnx(program, module, [twin.input(5), twin.input(1)])


def test_onnx_of_an_exported_program() -> None:
    """torch.export has written our ops; decompositions() says what they stand for."""
    pytest.importorskip("onnxscript")
    module = _all_ops()
    exported = _export(module, torch.randn(2, 2, 16, 18))
    # Whoever wants no indices gets max_pool2d_with_code.
    assert _called(exported) >= set(PUBLIC.values()) - {PUBLIC["max_pool2d"]}
    program = torch.onnx.export(exported.run_decompositions(cnnfast.decompositions()), (), dynamo=True, verbose=False)
    _check_onnx(program, module, [torch.randn(5, 2, 16, 18), torch.randn(1, 2, 16, 18)])


@pytest.mark.long
@pytest.mark.parametrize(
    "twin", [LECTURE, Twin("all ops", _all_ops, _all_ops, (2, 16, 18))], ids=lambda twin: twin.name
)
def test_aot_inductor(twin: Twin, tmp_path: Any) -> None:
    module, _ = twin.modules()
    program = _export(module, twin.input(2))
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    run = torch._inductor.aoti_load_package(path)
    for batch in (2, 5, 1):
        torch.testing.assert_close(run(twin.input(batch)), module(twin.input(batch)), rtol=1e-4, atol=1e-4)
