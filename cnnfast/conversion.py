"""One line for an existing model: ``model = cnnfast.convert(model)``.

Layers are swapped by changing the class of the module object itself, so that parameters, buffers, hooks, names,
``state_dict`` keys, shared modules and every reference to a layer stay what they are. Fusion is done by
:mod:`cnnfast.fusion`.
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from . import blocks, fusion, nn as layers
from .frozen import FrozenConv2d
from .tracing import NotTraceable

__all__ = ["Change", "Report", "convert", "report", "revert"]

logger = logging.getLogger("cnnfast")
Model = TypeVar("Model", bound=nn.Module)

SWAPS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: layers.Conv2d,
    nn.ConvTranspose2d: layers.ConvTranspose2d,
    nn.ReLU: layers.ReLU,
    nn.MaxPool2d: layers.MaxPool2d,
    nn.AvgPool2d: layers.AvgPool2d,
}
_LISTS = (nn.ModuleList, nn.ModuleDict)
_ORIGINALS = {ours: original for original, ours in SWAPS.items()}


class Change(NamedTuple):
    """One line of a :class:`Report`: a module's name in the model, what was done, and with what or why not."""

    name: str
    action: str
    detail: str


class Report(tuple[Change, ...]):
    """What of a model runs on cnnfast: :class:`Change` after Change; ``str()`` is a table."""

    def __str__(self) -> str:
        if not self:
            return "nothing here that cnnfast has a kernel for"
        names = [change.name or "(model)" for change in self]
        width = max(map(len, names))
        return "\n".join(
            f"{name:{width}}  {change.action:7}  {change.detail}" for name, change in zip(names, self, strict=True)
        )


def convert(model: Model, *, fuse: bool = True, inplace: bool = False) -> Model:
    """``model`` with its convolution, pooling and ReLU layers on cnnfast's kernels, fused where the data flow allows.

    Conv2d, ConvTranspose2d, ReLU, MaxPool2d and AvgPool2d are swapped, wherever they are in the model. Where a module's
    forward calls a convolution and then, each the only use of the one before, BatchNorm2d, an activation (ReLU, ReLU6,
    SiLU, Hardswish) and, behind ReLU, MaxPool2d, as modules or as functions, they run as one. So does the sum of a
    convolution, with BatchNorm or not, and a residual of the same shape, with an activation or not. All but
    convolution, ReLU and MaxPool2d is fused in evaluation without gradients only, residuals and the other activations
    on the CPU only, at each call; parameters are never touched. In training, on the CPU, the BatchNorm of such a group
    runs as one op with the ReLU or ReLU6 behind it, or with the sum and its ReLU. A forward that does more than a trace
    can show keeps its layers unfused, and :func:`report` tells why. Whether a layer has hooks is asked at each call:
    such groups run one by one, whatever the report says.

    Args:
        model: any nn.Module. Subclasses of the layers, parametrized ones too, are left alone.
        fuse: fuse, too; False swaps layers only.
        inplace: change ``model`` itself. By default the result is a copy that shares parameters and buffers with it.

    Returns:
        The converted model, of the same class (with fused layers a subclass of it), with the same parameters, names,
        state_dict keys, hooks and mode. A model without any layer that cnnfast has is returned itself, unchanged, and
        the logger ``cnnfast`` says so.

    Raises:
        TypeError: ``model`` is not an nn.Module, or a compiled TorchScript one.
        RuntimeError: it cannot be copied; ``inplace=True`` needs no copy.

    Example::

        >>> model = cnnfast.convert(cnnfast.models.PlainLectureCNN())
        >>> print(cnnfast.report(model))
        cnn_layers    fused    0 + 1 + 2
        cnn_layers    fused    3 + 4 + 5
        cnn_layers.0  swapped  Conv2d
        cnn_layers.1  swapped  ReLU
        cnn_layers.2  swapped  MaxPool2d
        cnn_layers.3  swapped  Conv2d
        cnn_layers.4  swapped  ReLU
        cnn_layers.5  swapped  MaxPool2d
        fc_layers.1   swapped  ReLU
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"convert: model must be an nn.Module that is no ScriptModule, but got {type(model).__name__}")
    if not any(_why_left(module) is None for module in model.modules()) and not (fuse and _parents(model)):
        converted = any(type(module) in (*_ORIGINALS, FrozenConv2d) for module in model.modules())
        why = "is converted already" if converted else "has no layer that cnnfast could take over"
        logger.warning("convert: %s %s: unchanged", type(model).__name__, why)
        return model
    if not inplace:
        model = copied(
            model, "convert: model must be copyable unless inplace=True", [*model.parameters(), *model.buffers()]
        )
    for module in model.modules():
        if _why_left(module) is None:
            module.__class__ = SWAPS[type(module)]
    if fuse:
        for module in _parents(model):
            try:
                fusion.fuse(module)
            except NotTraceable as reason:
                logger.debug("convert: %s is not fused: %s", type(module).__name__, reason)
    return model


def revert(model: Model) -> Model:
    """Undoes :func:`convert` on ``model`` itself, and returns it: every layer and every forward is torch's again.

    Layers that were cnnfast's before are torch's afterwards, too, except ConvReLU2d and ConvReLUMaxPool2d, which are
    no layer of torch's.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"revert: model must be an nn.Module, but got {type(model).__name__}")
    fused = [module for module in model.modules() if fusion.is_fused(module)]
    for module in fused:
        fusion.check_unfusable(module)  # all of them before the first is changed
    for module in fused:
        fusion.unfuse(module)
    for module in model.modules():
        module.__class__ = _ORIGINALS.get(type(module), type(module))
    return model


def report(model: nn.Module) -> Report:
    """What of ``model`` is swapped, fused and left, and why.

    Example::

        >>> print(cnnfast.report(cnnfast.convert(nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU()))))
        (model)  fused    0 + 1
        0        swapped  Conv2d
        1        swapped  ReLU
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"report: model must be an nn.Module, but got {type(model).__name__}")
    frozen = [f"{name}." for name, module in model.named_modules() if type(module) is FrozenConv2d]
    named = [(name, module) for name, module in model.named_modules() if not name.startswith(tuple(frozen))]
    return Report(itertools.chain.from_iterable(_changes(name, module) for name, module in named))


def _changes(name: str, module: nn.Module) -> Iterator[Change]:
    if type(module) in _ORIGINALS or type(module) in (layers.ConvReLU2d, layers.ConvReLUMaxPool2d):
        in_place = type(module) is layers.ReLU and module.inplace
        yield Change(
            name, "swapped", type(module).__name__ + (", in place: torch's own unless fused" if in_place else "")
        )
    elif type(module) is FrozenConv2d:
        yield Change(name, "frozen", module.stages)
    elif isinstance(module, tuple(SWAPS)):
        yield Change(name, "left", _why_left(module) or "not converted")
    elif fusion.is_fused(module):
        groups = fusion.groups(module)
        if isinstance(groups, str):
            yield Change(name, "unfused", groups)
        else:
            yield from (Change(name, "fused", str(group)) for group in groups)
    elif _convolutions(module) or fusion.branches(module):
        yield Change(name, "unfused", _why_unfused(module))


def _why_left(module: nn.Module) -> str | None:
    """Why ``module`` cannot become cnnfast's; None where it can."""
    if type(module) not in SWAPS:
        return f"{type(module).__name__} is not one of torch's own layers"
    if blocks.OVERRIDES & vars(module).keys():
        return "it has a forward of its own, not its class's"
    return None


def _why_unfused(module: nn.Module) -> str:
    convolutions = _convolutions(module)
    if convolutions and not any(isinstance(convolution, layers.Conv2d) for convolution in convolutions):
        return "none of its convolutions was swapped"
    try:
        fusion.fuse(module)
    except NotTraceable as reason:
        return str(reason)
    fusion.unfuse(module)
    return "converted with fuse=False"


def _convolutions(module: nn.Module) -> list[nn.Module]:
    """Those among the children, inside lists of modules too."""
    if isinstance(module, _LISTS):
        return []
    lists = [child for child in module.children() if isinstance(child, _LISTS)]
    children = itertools.chain(module.children(), *(child.children() for child in lists))
    return [child for child in children if isinstance(child, nn.Conv2d)]


def _parents(model: nn.Module) -> list[nn.Module]:
    """Where something may be fused that is not yet."""
    return [
        module
        for module in model.modules()
        if "_fusion" not in vars(module) and (_convolutions(module) or fusion.branches(module))
    ]


def copied(model: Model, rule: str, shared: Iterable[Any] = ()) -> Model:
    """A copy that shares the objects in ``shared``; where there can be none, ``rule`` is what was broken."""
    modules = list(model.modules())
    shared = list(shared)
    # A hook that is another object's method goes on telling that object, not a copy of it.
    for module in modules:
        for name, hooks in vars(module).items():
            if name.endswith("_hooks") and isinstance(hooks, dict):
                owners = [getattr(hook, "__self__", None) for hook in hooks.values()]
                shared += [owner for owner in owners if not any(owner is own for own in modules)]
    try:
        return copy.deepcopy(model, {id(value): value for value in shared})
    except Exception as error:  # Whatever a model's own attributes raise.
        raise RuntimeError(f"{rule}, but got {type(model).__name__}: {error}") from error
