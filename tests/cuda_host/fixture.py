"""The emulated ops beneath cnnfast's own functions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from cnnfast import autograd

from .build import build


@pytest.fixture(scope="module")
def emulated() -> Iterator[None]:
    """torch.ops.cnnfast_emulated in the place of torch.ops.cnnfast."""
    torch.ops.load_library(str(build()))
    with pytest.MonkeyPatch.context() as patch:
        for name, handle in vars(autograd).copy().items():
            if isinstance(handle, torch._ops.OpOverload) and handle.namespace == "cnnfast":
                op = handle.name().removeprefix("cnnfast::")
                patch.setattr(autograd, name, getattr(torch.ops.cnnfast_emulated, op).default)
        yield
