"""float16 and bfloat16 as the kernels read and write them: every value, also where subnormal floats are flushed."""

from __future__ import annotations

import pytest
import torch

import cnnfast.functional as CF


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_value(dtype: torch.dtype, flush: bool, isa: str) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).view(1, 1, 256, 256)
    # A subnormal bfloat16 is a subnormal float, which torch.set_flush_denormal is asked to make zero.
    kept = torch.isfinite(every) & ((every.abs() >= torch.finfo(dtype).tiny) | (dtype == torch.float16) | (not flush))
    weight = torch.ones(1, 1, 1, 1, dtype=dtype)
    if not torch.set_flush_denormal(flush):
        pytest.skip("this processor can't flush subnormals")
    try:
        results = [CF.max_pool2d(every, 1), CF.avg_pool2d(every, 1), CF.conv2d(every, weight)]
        strided = [CF.max_pool2d(every[..., 1:], 1, stride=2), CF.avg_pool2d(every[..., 1:], 1, stride=2)]
    finally:
        torch.set_flush_denormal(False)
    for result in results:
        assert torch.equal(result[kept], every[kept])
        assert torch.equal(result.isnan(), every.isnan())
    for result in strided:
        assert torch.equal(result[kept[..., ::2, 1::2]], every[..., ::2, 1::2][kept[..., ::2, 1::2]])
