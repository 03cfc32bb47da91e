"""The suite `models`: torchvision's networks, converted and frozen, against themselves: inference, a training step."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

import cnnfast

from .case import Case, NotInstalled
from .results import Row
from .suites import Options, case_of
from .work import FORWARD, STEP, Work, sgd

__all__ = ["MODELS", "cases", "work_of"]

# torchvision.models' name of each.
MODELS: Mapping[str, str] = {"ResNet-18": "resnet18", "VGG-11": "vgg11", "MobileNet-v2": "mobilenet_v2"}
QUICK_MODELS = ("ResNet-18",)
BATCHES = {"cpu": (1, 8), "cuda": (1, 64)}
SIZE = 224
CLASSES = 1000
FUSED, SWAPPED, FROZEN = "", ", layers swapped only", ", frozen"
_VARIANTS: Mapping[str, Callable[[nn.Module], nn.Module]] = {
    FUSED: lambda model: cnnfast.convert(model, inplace=True),
    SWAPPED: lambda model: cnnfast.convert(model, fuse=False, inplace=True),
    FROZEN: lambda model: cnnfast.freeze(model.eval()),
}
# Whose means and variances BatchNorm gets before anything is timed.
IMAGES = 8
# A kink of ReLU or max-pooling that rounding crosses moves a gradient, and in many layers many do: torch's own training
# step was 2e-2 from float64 in MobileNet-v2 at batch 8.
GRADIENT_LIMIT = 5e-2


def _torchvision() -> Callable[..., nn.Module]:
    """What makes a model by its name."""
    try:
        from torchvision.models import get_model
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was built for another torch
        raise NotInstalled(f"needs torchvision: {str(error).splitlines()[0]}") from error
    return get_model


@functools.lru_cache(maxsize=1)
def _model(name: str) -> nn.Module:
    """With random weights; its BatchNorm statistics are of random images, so that what evaluation returns is finite."""
    make = _torchvision()
    torch.manual_seed(0)
    model = make(MODELS[name], weights=None, num_classes=CLASSES)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum, usual = 1.0, norm.momentum
    if norms:
        with torch.no_grad():
            model(torch.randn(IMAGES, 3, SIZE, SIZE))
    for norm in norms:
        norm.momentum = usual
    return model


@functools.lru_cache(maxsize=1)  # one work in several layouts has one reference
def work_of(name: str, batch: int, mode: str, variant: str = FUSED) -> Work:
    """The model and ours of it, each with parameters of its own: a training step changes them."""
    plain = _model(name)
    ours = _VARIANTS[variant](copy.deepcopy(plain))
    torch.manual_seed(1)
    images, target = torch.randn(batch, 3, SIZE, SIZE), torch.randint(CLASSES, (batch,))
    return Work(ours, plain, images, mode, target=target, optimizer=sgd, one_gradient=True)


def cases(options: Options) -> Iterator[Case | Row]:
    """Ours fused and, in inference, frozen in both layouts, and with its layers swapped only in NCHW; the rivals beside
    torch's two layouts in NCHW, and where it is frozen.

    Quick: ResNet-18 on two images.
    """
    _torchvision()
    torchs = dataclasses.replace(options, rivals=[r for r in options.rivals if r in ("eager", "channels_last")])
    training = dataclasses.replace(options, rivals=[r for r in options.rivals if r not in ("onnxruntime", "openvino")])
    batches = (options.batch,) if options.batch else (2,) if options.quick else BATCHES[options.device]
    works = [("Inference", FORWARD, batch, options) for batch in batches]
    works.append(("Training step", STEP, batches[-1], training))
    for name in QUICK_MODELS if options.quick else MODELS:
        for section, mode, batch, rivals in works:
            for variant, layout, against in (
                (FUSED, "NCHW", rivals),
                (FUSED, "channels_last", torchs),
                (SWAPPED, "NCHW", torchs),
                (FROZEN, "NCHW", rivals),
                (FROZEN, "channels_last", rivals),
            ):
                if variant == FROZEN and mode != FORWARD:
                    continue
                if options.wants(section + variant, name, f"batch {batch}", layout):
                    case = case_of(section + variant, name, work_of(name, batch, mode, variant), against, layout)
                    yield dataclasses.replace(case, gradient_limit=max(case.gradient_limit, GRADIENT_LIMIT))
