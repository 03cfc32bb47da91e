"""torch's switch for tf32 reaches the raw ops."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from cnnfast import functional
from cnnfast.precision import allow_tf32


@pytest.fixture(autouse=True)
def kept() -> Iterator[None]:
    before = torch.backends.cudnn.conv.fp32_precision
    yield
    torch.backends.cudnn.conv.fp32_precision = before


@pytest.mark.parametrize(("precision", "allowed"), [("tf32", True), ("ieee", False)])
def test_switch(precision: str, allowed: bool) -> None:
    torch.backends.cudnn.conv.fp32_precision = precision
    assert allow_tf32() is allowed
    assert functional._with_precision("cuda", (1, 2, False)) == (1, 2, allowed)
    assert functional._with_precision("cpu", (1, 2, False)) == (1, 2, False)


def test_switch_of_all_of_cudnn() -> None:
    """torch.backends.cudnn.fp32_precision, whose own setter torch's test utilities freeze for the whole process."""
    torch.backends.cudnn.conv.fp32_precision = "none"
    before = torch.backends.cudnn.fp32_precision
    try:
        torch._C._set_fp32_precision_setter("cuda", "all", "ieee")
        assert not allow_tf32()
    finally:
        torch._C._set_fp32_precision_setter("cuda", "all", before)


def test_traced_graph_has_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the switch said is the exported call's last argument. (The CPU's op takes it, and does nothing with it.)"""
    monkeypatch.setattr(functional, "_with_precision", lambda device, options: (*options[:-1], True))
    module = torch.nn.Conv2d(2, 3, 3)
    module.forward = lambda x: functional.conv2d(x, module.weight, module.bias)  # type: ignore[method-assign]
    program = torch.export.export(module, (torch.ones(1, 2, 5, 5),))
    calls = [node for node in program.graph.nodes if "cnnfast.conv2d" in str(node.target)]
    assert len(calls) == 1
    assert calls[0].args[-1] is True
