"""Convolution, pooling and ReLU for PyTorch on hand-written kernels, fused where that saves memory traffic.

    >>> import cnnfast
    >>> layer = cnnfast.ConvReLUMaxPool2d(1, 12, kernel_size=3, padding=1)   # a torch.nn.Conv2d, with its weights

:mod:`cnnfast.functional` has the ops, :mod:`cnnfast.models` the example network, ``python -m cnnfast.info`` tells
what was built and runs where.
"""

import importlib
from typing import Any

from . import functional, nn, registration as _registration
from .conversion import convert, report, revert
from .decomposition import decompositions
from .explanation import Explanation, explain
from .folding import repack
from .freezing import freeze
from .nn import AvgPool2d, Conv2d, ConvReLU2d, ConvReLUMaxPool2d, ConvTranspose2d, MaxPool2d, ReLU
from .routing import fallbacks
from .tuning import autotune
from .version import __version__

__all__ = ["functional", "nn", "models", "info", "augment", "viz", "__version__", *nn.__all__]
__all__ += ["convert", "revert", "report", "repack", "freeze", "decompositions", "fallbacks"]
__all__ += ["Explanation", "explain", "autotune"]

# Imported at first use: not needed to run a layer, and `python -m cnnfast.info` imports its own.
_LAZY = ("models", "info", "augment", "viz")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
