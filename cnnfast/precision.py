"""torch's own switch for float32 convolutions on CUDA, read in one place."""

from __future__ import annotations

import torch


@torch.compiler.assume_constant_result
def allow_tf32() -> bool:
    """Whether convolutions of float32 on CUDA may round their operands to tf32 (ten bits of mantissa) for tensor cores.

    That is ``torch.backends.cudnn.conv.fp32_precision``, which torch sets to "tf32" at first; "ieee" asks for float32's
    own. A compiled graph keeps what the switch was when it was traced. On the CPU float32 is always float32.
    """
    return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
