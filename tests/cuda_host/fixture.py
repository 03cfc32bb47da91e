"""The emulated ops beneath cnnfast's own functions."""

from __future__ import annotations

import types
from collections.abc import Iterator

import pytest
import torch

from cnnfast import autograd

from .build import build


def raw_ops() -> dict[str, str]:
    """Names in autograd.py of what it has taken from library.function, and the ops' names."""
    found = {
        name: name.removeprefix("_")
        for name, function in vars(autograd).items()
        if isinstance(function, types.BuiltinFunctionType)
    }
    assert {"conv2d_forward", "conv2d_backward", "max_pool2d_forward", "relu_backward"} <= set(found.values())
    return found


@pytest.fixture(scope="module")
def emulated() -> Iterator[None]:
    """torch.ops.cnnfast_emulated in the place of torch.ops.cnnfast."""
    torch.ops.load_library(str(build()))
    with pytest.MonkeyPatch.context() as patch:
        for name, op in raw_ops().items():
            patch.setattr(autograd, name, getattr(torch.ops.cnnfast_emulated, op).default)
        yield
