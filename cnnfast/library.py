"""The compiled libraries: loaded once, at import; why not, if they cannot be.

Importing cnnfast never fails for a library that is missing or was built for another torch: the reason is kept here,
told at the first use of an op (routing.py) and by ``python -m cnnfast.info``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def _load(stem: str) -> tuple[Path | None, str | None]:
    """Loads the library ``stem`` beside this file; (its path, None) or (path or None, the reason why not)."""
    folder = Path(__file__).parent
    found = sorted(folder.glob(f"{stem}.*"))
    found = [path for path in found if path.suffix in (".so", ".pyd", ".dylib")]
    if not found:
        sources = "; install these sources by pip install -e ., or leave their folder for what is installed elsewhere"
        in_clone = (folder.parent / "setup.py").exists() and stem == "_C"
        return None, f"cnnfast.{stem} was not built (no {stem}.*.so in {folder}{sources if in_clone else ''})"
    try:
        torch.ops.load_library(str(found[0]))
    except Exception as error:  # whatever the dynamic loader or torch's registration finds wrong
        # torch names the file only; the loader's own words are behind it.
        reason = error.__cause__ or error
        return found[0], f"{found[0].name} cannot be loaded into torch {torch.__version__}: {reason}"
    return found[0], None


path, load_error = _load("_C")
#: The CUDA kernels, for a torch built with CUDA; their schemas are in _C.
cuda_path, cuda_error = _load("_cuda") if load_error is None else (None, "cnnfast._C is not loaded")


def op(name: str) -> Any:
    """The handle of ``torch.ops.cnnfast.NAME``, or None where the library did not load.

    Looked up once and kept by the callers: ``torch.ops.cnnfast.NAME(...)`` resolves its overload at each call.
    """
    return None if load_error else getattr(torch.ops.cnnfast, name).default


def function(name: str) -> Any:
    """What the handle of :func:`op` passes its arguments on to: for eager callers, half a microsecond less a call.

    torch.compile knows only the handle.
    """
    return None if load_error else op(name)._op
