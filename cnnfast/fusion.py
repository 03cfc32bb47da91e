"""Convolution, BatchNorm, ReLU and max-pool run as one, wherever a module's forward calls them one after the other.

:func:`fuse` replaces the forward of a *parent* by its trace with the fused calls in it; children stay what they are, so
that calling one of them, slicing an nn.Sequential or hooking a layer later gives what it always gave. Whether a group
may be fused is asked at each call (:mod:`cnnfast.blocks`): a hook, a parametrization, a replaced child, and the modules
run one by one; a BatchNorm in training, and it runs with what follows it, the convolution apart.
"""

from __future__ import annotations

import copy
import functools
import itertools
import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from . import blocks, functional
from .nn import Conv2d
from .tracing import NotTraceable, trace

__all__ = ["Group", "branches", "fuse", "groups", "is_fused", "unfuse"]

#: Functions that a forward calls in place of a module, and the module's class.
_FUNCTIONS: dict[Any, type[nn.Module]] = {
    F.relu: nn.ReLU,
    torch.relu: nn.ReLU,
    torch.relu_: nn.ReLU,
    F.relu6: nn.ReLU6,
    F.silu: nn.SiLU,
    F.hardswish: nn.Hardswish,
    F.max_pool2d: nn.MaxPool2d,
    torch.max_pool2d: nn.MaxPool2d,
    functional.relu: nn.ReLU,
    functional.max_pool2d: nn.MaxPool2d,
}
#: Functions and methods by which it adds two tensors.
_SUMS: dict[Any, Callable[..., Tensor]] = {
    operator.add: operator.add,
    operator.iadd: operator.iadd,
    torch.add: torch.add,
    "add": Tensor.add,
    "add_": Tensor.add_,
}
_IN_PLACE_SUMS = (operator.iadd, Tensor.add_)


class Group(NamedTuple):
    """Names, within the parent, of what runs as one; functions by theirs."""

    stages: tuple[str, ...]

    def __str__(self) -> str:
        return " + ".join(self.stages)


class _Fusion:
    """What a fused parent keeps: its two traces as functions of (module, *inputs), and what they have baked in."""

    def __init__(self, module: nn.Module) -> None:
        graphs, self.snapshot = trace(module)
        inlined = _branches_to_add_to(module, graphs[False])
        if inlined:
            graphs, self.snapshot = trace(module, inlined)
        self.inlined = [name.split(".") for name in inlined]
        found = {mode: _fuse_graph(module, graph) for mode, graph in graphs.items()}
        self.groups = list(dict.fromkeys(found[True] + found[False]))
        if not self.groups:
            raise NotTraceable("nothing in it follows a convolution that could be fused with it")
        self.inputs = sum(node.op == "placeholder" for node in graphs[True].nodes)
        self.run = {mode: _function(module, graph) for mode, graph in graphs.items()}

    # Copies share all but the children that were last seen to fit.
    def __deepcopy__(self, memo: dict[int, Any]) -> _Fusion:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__, snapshot=copy.copy(self.snapshot))
        return twin

    # Nor can it be pickled: what is restored is traced again.
    def __reduce__(self) -> Any:
        return type(None), ()


class _Fused(nn.Module):
    """Mixed into a parent's class, whose forward then is the trace where that is the same program: see _fused_class."""

    # A class made at run time cannot be found by its name.
    def __reduce_ex__(self, protocol: Any) -> Any:
        state = self.__getstate__() if hasattr(self, "__getstate__") else self.__dict__
        return _new_fused, (_original(type(self)),), state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.__dict__.get("_fusion") is None:  # out of a pickle, not a copy
            cls = type(self)
            self.__class__ = _original(cls)  # type: ignore[assignment]  # whose forward it is that is traced
            try:
                self.__dict__["_fusion"] = _Fusion(self)
            except NotTraceable as reason:
                self.__dict__["_fusion"] = str(reason)
            finally:
                self.__class__ = cls

    # Those of the original class may want arguments, or keep a list of subclasses.
    def __init_subclass__(cls, **kwargs: Any) -> None:
        pass


def _forward(module: nn.Module, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # None in a slice of an nn.Sequential, which is a new module of the same class. Never traced here: fx changes
    # nn.Module while it traces, and other threads may be running modules.
    fusion = module.__dict__.get("_fusion")
    if (
        isinstance(fusion, _Fusion)
        and not kwargs
        and all(type(arg) is Tensor for arg in args)
        and len(args) == fusion.inputs
        and fusion.snapshot.fits(module)
        and not (fusion.inlined and _are_noticed(module, fusion.inlined))
    ):
        return fusion.run[module.training](module, *args)
    return original(module, *args, **kwargs)


def _are_noticed(module: nn.Module, inlined: list[list[str]]) -> bool:
    """Whether somebody could tell that containers are not called, but their children."""
    if blocks.observes_all():
        return True
    for path in inlined:
        child: Any = module
        for name in path:
            child = child._modules[name]
        if blocks.is_observed(child) or not blocks.is_sequential(child):
            return True
    return False


def _original(cls: type[nn.Module]) -> type[nn.Module]:
    """The class that a fused class was made of; others, fully_shard's for one, may have been made of that again."""
    return cls.__mro__[cls.__mro__.index(_Fused) + 1]


def _new_fused(cls: type[nn.Module]) -> nn.Module:
    fused = _fused_class(cls)
    return fused.__new__(fused)


_classes: dict[type[nn.Module], type[nn.Module]] = {}


def _fused_class(cls: type[nn.Module]) -> type[nn.Module]:
    if cls not in _classes:
        original = cls.forward

        @functools.wraps(original)  # for those who look at its arguments
        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return _forward(self, original, args, kwargs)

        names = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
        _classes[cls] = type(cls.__name__, (_Fused, cls), {**names, "forward": forward})
    return _classes[cls]


def is_fused(module: nn.Module) -> bool:
    return isinstance(module, _Fused)


def groups(module: nn.Module) -> list[Group] | str:
    """What runs as one in a fused parent, or why nothing does."""
    fusion = vars(module).get("_fusion")
    return fusion.groups if isinstance(fusion, _Fusion) else fusion or "a slice of a fused module: convert it, too"


def fuse(module: nn.Module) -> None:
    """Lets ``module`` run its traced forward with fused groups, if there are any.

    Raises:
        NotTraceable: and the module is as it was.
    """
    if blocks.OVERRIDES & vars(module).keys():
        raise NotTraceable("the module has a forward of its own, not its class's")
    if is_fused(module):  # a slice of a fused nn.Sequential
        unfuse(module)
    cls = type(module)
    if cls.__reduce_ex__ is not object.__reduce_ex__ or cls.__reduce__ is not object.__reduce__:
        raise NotTraceable(f"{cls.__name__} has its own way of being pickled")
    module.__dict__["_fusion"] = _Fusion(module)
    module.__class__ = _fused_class(type(module))


def unfuse(module: nn.Module) -> None:
    """Undoes :func:`fuse`.

    Raises:
        RuntimeError: something else has changed the module's class since.
    """
    check_unfusable(module)
    module.__class__ = _original(type(module))
    module.__dict__.pop("_fusion", None)


def check_unfusable(module: nn.Module) -> None:
    """Raises RuntimeError where something else has changed the module's class since."""
    cls = type(module)
    if _classes.get(_original(cls)) is not cls:
        raise RuntimeError(
            f"revert: the class of a module must be the one that convert gave it, but got {cls.__name__}"
        )


class Link(NamedTuple):
    """A node that is a stage of a block, and the module that it calls or that does what its function does."""

    stage: int
    node: fx.Node
    module: nn.Module


def _fuse_graph(module: nn.Module, graph: fx.Graph) -> list[Group]:
    """Replaces every group in ``graph`` by calls of cnnfast.blocks."""
    found = []
    for first in list(graph.nodes):
        chain = chain_of(module, first)
        if len(chain) < 2:
            continue
        last = chain[-1].node
        with graph.inserting_before(first):
            stages = [_stage(graph, chain, stage) for stage in range(len(blocks.STAGES))]
            conv, bn, add, activation, pool = stages
            if add is not None:
                before, sum_ = next(pair for pair in itertools.pairwise(chain) if pair[1].stage == blocks.SUM)
                between = [graph.get_attr(str(node.target)) for node in _between(before.node, sum_.node)]
                begun = graph.call_function(blocks.begin_block, (first.args[0], conv, bn, *between))
        with graph.inserting_before(last):
            if add is None:
                fused = graph.call_function(blocks.run_block, (first.args[0], conv, bn, activation, pool))
            else:
                (residual,) = (arg for arg in sum_.node.args if arg is not before.node)
                fused = graph.call_function(blocks.end_block, (begun, residual, add, activation))
        last.replace_all_uses_with(fused)
        for link in reversed(chain):
            graph.erase_node(link.node)
        found.append(Group(tuple("add" if stage == blocks.SUM else _name(node) for stage, node, _ in chain)))
    return found


def _stage(graph: fx.Graph, chain: list[Link], stage: int) -> fx.Node | None:
    """The module of a chain's stage, as a value in the graph."""
    for at, node, module in chain:
        if at == stage:
            return graph.get_attr(str(node.target)) if node.op == "call_module" else _constant(graph, module)
    return None


def chain_of(module: nn.Module, node: fx.Node) -> list[Link]:
    """A convolution and what directly follows it, each the only use of the one before."""
    chain: list[Link] = []
    follower: fx.Node | None = node
    while follower is not None and (link := _link(module, follower, chain)) is not None:
        chain.append(link)
        follower = _follower(module, link.node)
    return chain


def _link(module: nn.Module, node: fx.Node, chain: list[Link]) -> Link | None:
    """``node`` as the stage that it is behind others; behind none, as a convolution."""
    called = (_as_sum(node, chain[-1].node) if chain else None) or _as_module(module, node)
    for stage in range(chain[-1].stage + 1 if chain else 0, len(blocks.STAGES)):
        if type(called) in blocks.STAGES[stage]:
            break
    else:
        return None
    if (stage == blocks.CONV) != (not chain):
        return None
    # A max-pool is fused only behind a ReLU, and not of a sum.
    if stage == blocks.POOL and (chain[-1].module.__class__ not in blocks.RELUS or chain[-2].stage == blocks.SUM):
        return None
    assert called is not None
    return Link(stage, node, called)


def _follower(module: nn.Module, node: fx.Node) -> fx.Node | None:
    """The only use of ``node``, if nothing between could change in place what a convolution reads."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    between = list(_between(node, user))
    if not between:
        return user
    # A residual may be computed meanwhile: what begin_block takes down, end_block runs.
    computed = _as_sum(user, node) is not None and all(other.op == "call_module" for other in between)
    return user if computed and all(blocks.changes_nothing(_called(module, other)) for other in between) else None


def _between(node: fx.Node, user: fx.Node) -> Iterator[fx.Node]:
    """What runs after ``node`` and before its user."""
    while (node := node.next) is not user:
        if node.op != "get_attr":
            yield node


def _called(module: nn.Module, node: fx.Node) -> nn.Module:
    return module.get_submodule(str(node.target))


def _as_sum(node: fx.Node, before: fx.Node) -> blocks.Sum | None:
    """The sum of ``before`` and another tensor, which is not written to."""
    function = _SUMS.get(node.target) if node.op in ("call_function", "call_method") else None
    if function is None or node.kwargs or len(node.args) != 2 or not all(map(_holds_node, node.args)):
        return None
    first, second = node.args
    if first is second or before not in (first, second) or (second is before and function in _IN_PLACE_SUMS):
        return None
    return blocks.Sum(function, swapped=second is before)


def branches(module: nn.Module) -> dict[str, list[str]]:
    """Children that end in a convolution, maybe with BatchNorm, for something to be added to; with the names of all
    containers that it is in."""
    found: dict[str, list[str]] = {}
    child: nn.Module | None
    for name, child in module.named_children():
        names = [name]
        while child is not None and blocks.is_sequential(child) and (children := list(child._modules.items())):
            types_ = [type(layer) for _, layer in children]
            if types_[-1] is Conv2d or types_[-2:] == [Conv2d, nn.BatchNorm2d]:
                found[name] = names
                break
            last, child = children[-1]
            names.append(f"{names[-1]}.{last}")
    return found


def _branches_to_add_to(module: nn.Module, graph: fx.Graph) -> list[str]:
    """The names of containers that are to be inlined, so that the sum is a stage of their last convolution's block."""
    inlined: list[str] = []
    known = branches(module)
    taken = {link.node for node in graph.nodes for link in chain_of(module, node) if link.stage == blocks.SUM}
    for node in graph.nodes:
        if node.op != "call_module" or node.target not in known or len(node.args) != 1 or node.kwargs:
            continue
        sum_ = _follower(module, node)
        if sum_ is not None and sum_ not in taken and _as_sum(sum_, node) is not None:
            taken.add(sum_)
            inlined += known[node.target]
    return inlined


def _as_module(module: nn.Module, node: fx.Node) -> nn.Module | None:
    """The module that ``node`` calls, or one that does what its function does; None for anything else."""
    if not node.args or not isinstance(node.args[0], fx.Node):
        return None
    if node.op == "call_module":
        called = _called(module, node)
        pooled_indices = isinstance(called, nn.MaxPool2d) and called.return_indices
        return called if len(node.args) == 1 and not node.kwargs and not pooled_indices else None
    options = (*node.args[1:], *node.kwargs.values())
    if node.op == "call_method" and node.target in ("relu", "relu_"):
        return nn.ReLU()
    if node.op != "call_function" or node.target not in _FUNCTIONS or any(map(_holds_node, options)):
        return None
    if _FUNCTIONS[node.target] is not nn.MaxPool2d:
        return _FUNCTIONS[node.target]()
    arguments: tuple[Any, ...] = node.args[1:]
    names: dict[str, Any] = dict(node.kwargs)
    pool = nn.MaxPool2d(*_positional_max_pool2d(*arguments, **names))
    return None if pool.return_indices else pool


def _positional_max_pool2d(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Any, ...]:
    """F.max_pool2d's arguments in the order of nn.MaxPool2d's."""
    return kernel_size, stride, padding, dilation, return_indices, ceil_mode


def _holds_node(value: Any) -> bool:
    return any(isinstance(item, fx.Node) for item in (value if isinstance(value, (tuple, list)) else (value,)))


def _name(node: fx.Node) -> str:
    return getattr(node.target, "__name__", str(node.target))


def _constant(graph: fx.Graph, value: nn.Module) -> fx.Node:
    """A module that stands for a function, as a value in the graph: called with nothing, it is there."""
    return graph.call_function(_Holder(blocks.stand_in(value)))


class _Holder:
    """fx prints constants as their repr, which only plain values survive; a function it binds by name."""

    def __init__(self, value: nn.Module) -> None:
        self.value = value
        self.__name__ = self.__qualname__ = type(value).__name__
        self.__module__ = "cnnfast.fusion"

    def __call__(self) -> nn.Module:
        return self.value


def _function(module: nn.Module, graph: fx.Graph) -> Callable[..., Any]:
    graph.lint()
    code = graph.python_code("self")
    namespace = dict(code.globals)
    exec(compile(code.src, f"<cnnfast: fused forward of {type(module).__name__}>", "exec"), namespace)
    return namespace["forward"]
