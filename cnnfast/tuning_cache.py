"""What :class:`cnnfast.autotune` has measured, kept in a file for the next process.

The file is JSON. It holds the choices of several environments side by side: those of another version, processor or
instruction set are kept, and not used.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import platform
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import library
from .version import __version__

logger = logging.getLogger("cnnfast")

_FORMAT = "cnnfast autotune 1"
#: What tells processors apart: of x86 a name, of Arm three numbers.
_PROCESSOR = re.compile(r"^(model name|CPU implementer|CPU variant|CPU part)\s*:\s*(.+)$", re.MULTILINE)

#: op -> what tuned.py may choose for it.
_CHOICES = {
    "conv2d_forward": frozenset({"winograd", "direct", "depthwise", "implicit_gemm", "torch"}),
    "conv2d_backward": frozenset({"planned", "torch", "torch_for_input", "torch_for_weight"}),
}

#: (op, ((shape, strides) of each tensor), options, variant, dtype, threads)
Key = tuple[Any, ...]


class Choice(NamedTuple):
    """The algorithm that was the fastest, and the median of each one's times."""

    algorithm: str
    seconds: dict[str, float]


Table = dict[Key, Choice]


def environment() -> str:
    """Versions, processor and instruction set: choices of another may be wrong here."""
    isa = "no kernels" if library.load_error else json.loads(torch.ops.cnnfast.cpu_info())["isa"]
    return f"cnnfast {__version__}, torch {torch.__version__}, {_processor()}, {isa}"


@functools.cache
def _processor() -> str:
    try:
        found = dict(reversed(_PROCESSOR.findall(Path("/proc/cpuinfo").read_text())))
    except OSError:
        found = {}
    return " ".join(found[name].strip() for name in sorted(found)) or platform.processor() or platform.machine()


#: Files that are not ours: told once, not read, not written to.
_refused: set[Path] = set()


def read(path: Path, environment: str) -> Table:
    """The choices of an environment; none where there is no file, or one that is damaged or of something else."""
    content = _content(path)
    if content is None:
        return {}
    try:
        return dict(_entry(value) for value in content["environments"].get(environment, ()))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        _refuse(path, error)
        return {}


def write(path: Path, environment: str, table: Table) -> None:
    """Puts the choices of an environment into the file, in place of those that it has of the same convolutions."""
    # What other processes have found meanwhile is kept; two that write at the same moment lose but choices.
    table = {**read(path, environment), **table}
    content = _content(path)
    if content is None:
        return
    content["environments"][environment] = [_value(key, choice) for key, choice in table.items()]
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(content))
        os.replace(beside, path)  # readers see the old file or the new one
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        _refuse(path, error)


def _content(path: Path) -> Any:
    """The whole file, an empty one where there is none; None where it is not to be touched."""
    if path in _refused:
        return None
    try:
        content = json.loads(path.read_text())
        if content["format"] != _FORMAT or not isinstance(content["environments"], dict):
            raise ValueError(f"its format is not {_FORMAT!r}")
        return content
    except FileNotFoundError:
        return {"format": _FORMAT, "environments": {}}
    except (KeyError, OSError, TypeError, ValueError) as error:  # json's and Unicode's errors are ValueErrors
        _refuse(path, error)
        return None


def _refuse(path: Path, error: Exception) -> None:
    if path not in _refused:
        _refused.add(path)
        logger.warning(
            "autotune: cache must be a file that it can write and has written, but got %s (%s: %s); ignored",
            path,
            type(error).__name__,
            error,
        )


def _value(key: Key, choice: Choice) -> dict[str, Any]:
    op, tensors, options, variant, dtype, threads = key
    return {
        "op": op,
        "tensors": tensors,
        "options": options,
        "variant": variant,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": threads,
        "algorithm": choice.algorithm,
        "seconds": choice.seconds,
    }


def _entry(value: dict[str, Any]) -> tuple[Key, Choice]:
    """The inverse of :func:`_value`; raises for what it has not written."""
    dtype = getattr(torch, value["dtype"])
    seconds = {str(name): float(time) for name, time in value["seconds"].items()}
    known = isinstance(dtype, torch.dtype) and seconds.keys() <= _CHOICES[value["op"]]
    if not known or value["algorithm"] not in seconds:
        raise ValueError(f"not a choice: {value}")
    tensors = tuple((tuple(shape), tuple(stride)) for shape, stride in value["tensors"])
    key = (value["op"], tensors, tuple(value["options"]), tuple(value["variant"]), dtype, value["threads"])
    hash(key)  # raises where something in it is a list
    return key, Choice(value["algorithm"], seconds)
