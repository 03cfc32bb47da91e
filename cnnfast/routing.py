"""Own kernel or torch's own op, and why: the single table.

:func:`why_not` decides on type, device, dtype, layout and torch's current mode, never on sizes or values: compiled
graphs must not branch on those, and choosing an algorithm by shape is the C++ planner's job. Each call that goes to
torch's own op is counted (:func:`fallbacks`), logged once per (op, reason) on the logger ``cnnfast``, and refused
with ``CNNFAST_STRICT=1`` in the environment. While torch.compile or torch.export traces, nothing is logged or counted.
"""

from __future__ import annotations

import functools
import logging
import os
from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import library

logger = logging.getLogger("cnnfast")

#: Every op, by its name in :mod:`cnnfast.functional`.
OPS = (
    "conv2d",
    "conv_transpose2d",
    "relu",
    "max_pool2d",
    "avg_pool2d",
    "conv2d_relu",
    "conv2d_relu_max_pool2d",
)

#: device type -> the dtypes that have kernels there, the same for every op.
_DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})
KERNELS: dict[str, frozenset[torch.dtype]] = {"cpu": _DTYPES}
if library.cuda_error is None:
    KERNELS["cuda"] = _DTYPES

_CPU = KERNELS["cpu"]
_STRIDED = torch.strided
#: Types whose kernels are slower than torch's where there are no tensor cores that they can use.
_NEED_TENSOR_CORES = frozenset({torch.bfloat16, torch.float16})

# A subclass may give torch's functions another meaning, which a raw op would go around; hence the exact type.
_PLAIN_TYPES = frozenset({Tensor, torch.nn.Parameter})


class Reason(NamedTuple):
    """Why a call goes another way than to its own kernel. Logged as a warning where the user loses speed unasked."""

    text: str
    level: int = logging.WARNING


NOT_LOADED = Reason("the compiled library is not available")
SUBCLASS = Reason("an argument is a tensor subclass or a tracer's proxy", logging.INFO)
FUNCTORCH = Reason("a torch.func transform (vmap, grad, jvp, ...) is active", logging.INFO)
FORWARD_AD = Reason("forward-mode automatic differentiation is active", logging.INFO)
TRACING = Reason("torch.jit tracing is active", logging.INFO)
ONNX = Reason("ONNX export writes standard operators", logging.INFO)
INPLACE = Reason("inplace=True is torch's own relu_", logging.INFO)
LARGE_WINDOW = Reason("a window of more than 254 elements has no one-byte code: unfused", logging.INFO)
MEASURED = Reason("torch's own op was measured to be the faster (cnnfast.autotune)", logging.INFO)

_counts: Counter[tuple[str, str]] = Counter()


def why_not(op: str, compiling: bool, *tensors: Tensor | None) -> Reason | None:
    """Why ``op`` on ``tensors`` (None for an absent bias) cannot run on its own kernel; None where it can.

    ``compiling`` is ``torch.compiler.is_compiling()``, which the caller has asked for already: this is part of every
    call, and small ones feel each function it goes through.
    """
    for position, tensor in enumerate(tensors):
        if (
            type(tensor) in _PLAIN_TYPES
            and tensor.is_cpu  # type: ignore[union-attr]
            and tensor.dtype in _CPU  # type: ignore[union-attr]
            and tensor.layout is _STRIDED  # type: ignore[union-attr]
        ):
            continue
        if tensor is None and position == 2:  # bias
            continue
        unfit = _why_unfit(op, compiling, position, tensor)
        if unfit is not None:
            return unfit
    if library.load_error is not None:
        return NOT_LOADED
    if torch._C._are_functorch_transforms_active():
        return FUNCTORCH
    # A tracer can't look at tangents.
    if forward_ad._current_level >= 0 and (compiling or has_tangent(*tensors)):
        return FORWARD_AD
    if compiling:  # ONNX has convolution and pooling, not our ops
        return ONNX if torch.onnx.is_in_onnx_export() else None
    if torch._C._get_tracing_state() is not None:
        return ONNX if torch.onnx.is_in_onnx_export() else TRACING
    return None


def _why_unfit(op: str, compiling: bool, position: int, tensor: Tensor | None) -> Reason | None:
    """Why a kernel cannot take this tensor; None where it can."""
    # Tracing shows fake tensors as what they stand for.
    if tensor is None or (type(tensor) not in _PLAIN_TYPES and not compiling):
        if not hasattr(type(tensor), "__torch_function__"):
            raise _wrong_type(op, position, tensor)
        return SUBCLASS
    device = tensor.device.type
    dtypes = KERNELS.get(device)
    if dtypes is None:
        built = f" ({library.cuda_error})" if tensor.is_cuda else ""
        return Reason(f"no kernel for device {device}{built}")
    if tensor.dtype not in dtypes:
        return Reason(f"no kernel for {tensor.dtype}")
    if tensor.is_cuda and not compiling:
        unfit = _no_cuda_kernel(tensor.get_device(), tensor.dtype in _NEED_TENSOR_CORES)
        if unfit is not None:
            return unfit
    return None if tensor.layout is _STRIDED else Reason(f"no kernel for layout {tensor.layout}")


def has_tangent(*tensors: Tensor | None) -> bool:
    """Whether forward-mode automatic differentiation is active on any of ``tensors``."""
    # The level is that of the innermost dual_level(), -1 outside all.
    return forward_ad._current_level >= 0 and any(
        tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors
    )


@functools.cache
def _no_cuda_kernel(index: int, tensor_cores: bool) -> Reason | None:
    """Why GPU ``index`` cannot run what the library was built for; None where it can."""
    major, minor = torch.cuda.get_device_capability(index)
    if tensor_cores and major < 8:
        return Reason(f"no fast kernel for 16-bit types on compute capability {major}.{minor}, below 8.0")
    built = torch.ops.cnnfast.cuda_archs()
    for arch in built.replace(" ", ";").split(";"):
        number, _, ptx = arch.partition("+")
        lowest = tuple(int(part) for part in number.rstrip("a").split("."))
        # Machine code runs on later minors of its generation, PTX on everything later.
        usable = lowest <= (major, minor) and (ptx or lowest[0] == major)
        if usable and (not tensor_cores or lowest[0] >= 8):
            return None
    return Reason(f"no kernel for compute capability {major}.{minor} (built for {built})")


def _wrong_type(op: str, position: int, value: object) -> TypeError:
    name = ("input", "weight", "bias")[position]
    return TypeError(f"{op}: {name} must be a Tensor, but got {name}={type(value).__name__}")


def to_torch(op: str, reason: Reason) -> None:
    """Records that this call of ``op`` runs on torch's own op; raises RuntimeError instead in strict mode."""
    if reason is ONNX:  # written down, not run
        return
    if is_strict():
        raise RuntimeError(f"{op}: CNNFAST_STRICT=1 allows own kernels only, but got {_explain(reason)}")
    record(op, reason, "runs on torch's own op")


def _check_environment() -> None:
    asked = os.environ.get("CNNFAST_STRICT", "")
    if asked not in ("", "0", "1"):
        logger.warning("CNNFAST_STRICT must be 0 or 1, but got %s; ignored", asked)


_check_environment()


def is_strict() -> bool:
    """Whether a call that cannot run on its own kernel is an error."""
    return os.environ.get("CNNFAST_STRICT") == "1"


def record(op: str, reason: Reason, what: str) -> None:
    """Counts, and logs at its first time, that ``op`` took another way."""
    if torch.compiler.is_compiling():
        return
    _counts[op, reason.text] += 1
    if _counts[op, reason.text] == 1:
        logger.log(reason.level, "%s %s: %s", op, what, _explain(reason))


def _explain(reason: Reason) -> str:
    return f"{reason.text} ({library.load_error})" if reason is NOT_LOADED else reason.text


def fallbacks(reset: bool = False) -> dict[str, dict[str, int]]:
    """How often each op went another way than to its own kernel, by reason, since import or the last reset.

    Args:
        reset: start counting from zero, and log each (op, reason) once more.

    Example::

        >>> cnnfast.functional.relu(torch.tensor([-1, 2]))
        tensor([0, 2])
        >>> cnnfast.fallbacks()
        {'relu': {'no kernel for torch.int64': 1}}
    """
    result: dict[str, dict[str, int]] = {}
    for (op, reason), count in _counts.items():
        result.setdefault(op, {})[reason] = count
    if reset:
        _counts.clear()
    return result


def table() -> dict[str, Any]:
    """op -> device type -> the dtypes its own kernels take; empty where the library did not load."""
    devices = {} if library.load_error else KERNELS
    return {
        op: {
            device: sorted(str(dtype).removeprefix("torch.") for dtype in dtypes) for device, dtypes in devices.items()
        }
        for op in OPS
    }
