"""A network that only infers as one program, whose weights are constants.

A converted model asks at each call, layer by layer, whether somebody has hooked a module or written to a parameter; of
a MobileNet's time on one image that is a third. :func:`freeze` is told once that nobody will.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from . import blocks, conversion, fusion, tracing
from .frozen import FrozenConv2d
from .nn import Conv2d

__all__ = ["freeze"]

_LISTS = (nn.ModuleList, nn.ModuleDict)
#: Modules (of Python) whose classes are layers.
_LAYERS = ("torch.nn.", "cnnfast.nn", "cnnfast.frozen")
#: FrozenConv2d's arguments, by stage of a block.
_STAGES = {
    blocks.CONV: "conv",
    blocks.BN: "bn",
    blocks.SUM: "add",
    blocks.ACTIVATION: "activation",
    blocks.POOL: "pool",
}


def freeze(model: nn.Module) -> nn.Module:
    """A copy of ``model`` for inference alone, on cnnfast's kernels: fused, folded and packed once and for all.

    Of each convolution, BatchNorm is folded into the weight for good; an activation (ReLU, ReLU6, SiLU, Hardswish), the
    sum with a residual, and max-pool behind ReLU run with it. All layers are one program, a ``torch.fx.GraphModule``,
    where forwards can be traced as by :func:`cnnfast.convert`; a module that cannot, or has a hook, is called, and is
    what ``convert`` makes of it. Hooks that are registered afterwards see only the program and what it calls. As
    ``torch.jit.freeze``, in eager mode.

    The copy shares nothing with ``model``. It can be moved, copied, saved and compiled, and passes gradients on to its
    input, but is not for training: there is no BatchNorm any more.

    Args:
        model: a model in evaluation mode, converted or not.

    Raises:
        TypeError: model is no nn.Module, or a ScriptModule.
        RuntimeError: model, or a module in it, is in training mode; or it cannot be copied.

    Example::

        >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU()).eval()
        >>> frozen = cnnfast.freeze(model)
        >>> with torch.inference_mode():
        ...     frozen(torch.randn(1, 3, 8, 8)).shape
        torch.Size([1, 16, 6, 6])
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"freeze: model must be an nn.Module that is no ScriptModule, but got {type(model).__name__}")
    for name, module in model.named_modules():
        if module.training:
            raise RuntimeError(
                f"freeze: model must be in evaluation mode (model.eval()), but {name or 'it'} is in training mode"
            )
    with torch.inference_mode(False), torch.no_grad():  # inference tensors would have no version
        model = conversion.revert(conversion.copied(model, "freeze: model must be copyable"))
        return _frozen(conversion.convert(model, fuse=False, inplace=True)).requires_grad_(False)


def _frozen(module: nn.Module) -> nn.Module:
    """``module`` as a program; where it cannot be one, fused. A program has neither the attributes nor the children
    that what is left of Python may ask for, so that there are none in a module that runs as it was written."""
    if _is_layer(module) or not any(isinstance(child, Conv2d) for child in module.modules()):
        return module
    try:
        return _program(module)
    except tracing.NotTraceable:
        return conversion.convert(module, inplace=True)


def _is_layer(module: nn.Module) -> bool:
    """One of torch's or ours, which a program calls, whatever its forward does."""
    cls = type(module)
    return cls.__module__.startswith(_LAYERS) and not isinstance(module, tracing.CONTAINERS)


def _inlined(module: nn.Module, prefix: str = "") -> Iterator[str]:
    """The names of the modules within ``module`` whose forwards become part of its program."""
    for name, child in module._modules.items():
        if child is None or _is_layer(child) or blocks.is_observed(child):
            continue
        if not isinstance(child, _LISTS):
            try:
                tracing.names_read(child)
            except tracing.NotTraceable:
                continue
            yield prefix + name
        yield from _inlined(child, f"{prefix}{name}.")


def _program(module: nn.Module) -> fx.GraphModule:
    """All of ``module`` that can be traced, with its convolutions frozen."""
    if isinstance(module, _LISTS):
        raise tracing.NotTraceable("nobody calls a list of modules")
    if blocks.is_observed(module):
        raise tracing.NotTraceable("hooks want to see the module that they are on")
    graphs, _ = tracing.trace(module, list(_inlined(module)))
    graph = graphs[False]
    steps: dict[str, nn.Module] = {}
    names: dict[tuple[Any, ...], str] = {}
    for first in list(graph.nodes):
        chain = _chain(module, first)
        if not chain:
            continue
        key = tuple(_identity(link) for link in chain)
        if key not in names:  # else it is called again
            names[key] = str(first.target)
            if names[key] in steps:  # and then other things are done
                numbered = (f"{first.target}_{i}" for i in itertools.count(1))
                names[key] = next(name for name in numbered if name not in steps and not _has(module, name))
            stages: dict[str, Any] = {_STAGES[link.stage]: link.module for link in chain}
            steps[names[key]] = FrozenConv2d(**stages)
        last = chain[-1].node
        with graph.inserting_before(last):
            call = graph.call_module(names[key], (first.args[0], *_residuals(chain)))
        last.replace_all_uses_with(call)
        for link in reversed(chain):
            graph.erase_node(link.node)
    for node in graph.nodes:
        node.type = None  # an annotation's text says nothing out of its module, and keeps programs from being pickled
        if node.op == "call_module" and node.target not in steps:
            steps[str(node.target)] = _frozen(module.get_submodule(str(node.target)))
    for name, step in steps.items():
        parent, _, own = name.rpartition(".")
        module.get_submodule(parent)._modules[own] = step
    graph.lint()
    return fx.GraphModule(module, graph, class_name=f"Frozen{type(module).__name__}")


def _chain(module: nn.Module, first: fx.Node) -> list[fusion.Link]:
    """A convolution and what runs with it, up to what somebody observes or no kernel does."""
    chain: list[fusion.Link] = []
    for link in fusion.chain_of(module, first):
        if blocks.is_observed(link.module) or (link.stage == blocks.BN and not _folds(chain[0].module, link.module)):
            break
        if link.stage == blocks.ACTIVATION and blocks.name_of(link.module) is None:
            break
        chain.append(link)
    return chain


def _folds(conv: nn.Module, bn: nn.Module) -> bool:
    """Whether BatchNorm is a constant, and of a type in which the folded shift is as exact as it was."""
    assert isinstance(conv, Conv2d) and isinstance(bn, nn.BatchNorm2d)
    if bn.running_mean is None or bn.running_var is None or bn.num_features != conv.out_channels:
        return False
    return conv.weight.dtype in (torch.float32, torch.float64)


def _has(module: nn.Module, name: str) -> bool:
    parent, _, own = name.rpartition(".")
    return hasattr(module.get_submodule(parent), own)


def _identity(link: fusion.Link) -> tuple[Any, ...]:
    """Equal where two calls do the same to other tensors."""
    options = [arg for arg in link.node.args if not isinstance(arg, fx.Node)]
    return link.stage, link.node.target, str(options), str(link.node.kwargs), getattr(link.module, "swapped", None)


def _residuals(chain: list[fusion.Link]) -> list[Any]:
    return [
        arg
        for before, link in itertools.pairwise(chain)
        if link.stage == blocks.SUM
        for arg in link.node.args
        if arg is not before.node
    ]
