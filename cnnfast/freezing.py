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
_LAYERS = ("torch.nn.modules.", "cnnfast.nn", "cnnfast.frozen")
#: Attributes of a program, not of its class.
_OF_PROGRAMS = frozenset(vars(fx.GraphModule(nn.Module(), fx.Graph())))
#: In the meta of a node that calls a FrozenConv2d: that.
_STEP = "cnnfast_step"
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

    The copy shares nothing with ``model``, and holds its weights once more. It can be moved, copied, saved and
    compiled, and passes gradients on to its input, but is not for training: there is no BatchNorm any more, and a
    convolution's weights are buffers. A program has ``model``'s forward only, no other method or attribute. While it is
    made, as with every ``torch.fx`` trace, no other thread may run a module.

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
                tracing.trace(child, keeps_none=False)
            except tracing.NotTraceable:
                continue
            yield prefix + name
        yield from _inlined(child, f"{prefix}{name}.")


def _program(module: nn.Module) -> fx.GraphModule:
    """All of ``module`` that can be traced, with its convolutions frozen. The module itself is not changed: something
    that is called may know it, or what is in it, too."""
    if isinstance(module, _LISTS):
        raise tracing.NotTraceable("nobody calls a list of modules")
    if blocks.is_observed(module) or blocks.observes_all():
        raise tracing.NotTraceable("hooks want to see the module that they are on")
    graphs, _ = tracing.trace(module, list(_inlined(module)), keeps_none=False)
    graph = graphs[False]
    steps: dict[tuple[Any, ...], FrozenConv2d] = {}
    for chain in _chains(module, graph):
        key = tuple(_identity(link) for link in chain)
        if key not in steps:  # else it is called again
            stages: dict[str, Any] = {_STAGES[link.stage]: link.module for link in chain}
            steps[key] = FrozenConv2d(**stages)
        first, last = chain[0].node, chain[-1].node
        with graph.inserting_before(last):
            call = graph.call_module(str(first.target), (first.args[0], *_residuals(chain)))
        call.meta[_STEP] = steps[key]
        last.replace_all_uses_with(call)
        for link in reversed(chain):
            graph.erase_node(link.node)
    root = _named(module, graph)
    for name in root:
        if hasattr(fx.GraphModule, name.partition(".")[0]) or name.partition(".")[0] in _OF_PROGRAMS:
            raise tracing.NotTraceable(f"a program has an attribute {name.partition('.')[0]} of its own")
    graph.lint()
    return fx.GraphModule(root, graph, class_name=f"Frozen{type(module).__name__}").eval()


def _named(module: nn.Module, graph: fx.Graph) -> dict[str, Any]:
    """What the nodes of a program refer to, by name. A step has its convolution's, or that with a number where
    something else has it."""
    own = {name for name, _ in module.named_modules(remove_duplicate=False)}
    left = {str(node.target) for node in graph.nodes if node.op == "call_module" and _STEP not in node.meta}
    root: dict[str, Any] = {}
    names: dict[FrozenConv2d, str] = {}
    for node in graph.nodes:
        node.type = None  # an annotation's text says nothing out of its module, and keeps programs from being pickled
        name = str(node.target)
        step = node.meta.pop(_STEP, None)
        if step is not None:
            if step not in names:
                numbered = (number for i in itertools.count(1) if (number := f"{name}_{i}") not in own)
                names[step] = next(n for n in itertools.chain([name], numbered) if n not in left and n not in root)
            node.target = names[step]
            root[names[step]] = step
        elif node.op == "call_module" and name not in root:
            root[name] = _frozen(module.get_submodule(name))
        elif node.op == "get_attr":
            parent, _, attribute = name.rpartition(".")
            root[name] = getattr(module.get_submodule(parent), attribute)
    return root


def _chains(module: nn.Module, graph: fx.Graph) -> list[list[fusion.Link]]:
    """Disjoint: of two convolutions whose results are added, the first takes the sum."""
    taken: set[fx.Node] = set()
    found = []
    for first in graph.nodes:
        chain = list(itertools.takewhile(lambda link: link.node not in taken, _chain(module, first)))
        if chain:
            taken.update(link.node for link in chain)
            found.append(chain)
    return found


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
