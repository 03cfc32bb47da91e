"""Convolution, BatchNorm, ReLU and max-pool run as one, wherever a module's forward calls them one after the other.

:func:`fuse` replaces the forward of a *parent* by its trace with the fused calls in it; children stay what they are, so
that calling one of them, slicing an nn.Sequential or hooking a layer later gives what it always gave. Whether a group
may be fused is asked at each call (:func:`run_block`): a hook, a parametrization, a replaced child, a BatchNorm in
training or a gradient through it, and the modules run one by one.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules import module as _nn_module

from . import functional
from .folding import Folded, folded
from .nn import Conv2d, MaxPool2d, ReLU, _padded
from .tracing import NotTraceable, trace

__all__ = ["Group", "fuse", "groups", "is_fused", "run_block", "unfuse"]

_RELUS = (nn.ReLU, ReLU)
_MAX_POOLS = (nn.MaxPool2d, MaxPool2d)
_STAGES: tuple[tuple[type, ...], ...] = ((Conv2d,), (nn.BatchNorm2d,), (*_RELUS, nn.ReLU6), _MAX_POOLS)
#: Functions that a forward calls in place of a module, and the module's class.
_FUNCTIONS: dict[Any, type[nn.Module]] = {
    F.relu: nn.ReLU,
    torch.relu: nn.ReLU,
    torch.relu_: nn.ReLU,
    F.relu6: nn.ReLU6,
    F.max_pool2d: nn.MaxPool2d,
    torch.max_pool2d: nn.MaxPool2d,
    functional.relu: nn.ReLU,
    functional.max_pool2d: nn.MaxPool2d,
}


#: Methods that some programs replace on the object.
OVERRIDES = frozenset({"forward", "_conv_forward"})


class Group(NamedTuple):
    """Names, within the parent, of what runs as one; functions by theirs."""

    stages: tuple[str, ...]

    def __str__(self) -> str:
        return " + ".join(self.stages)


class _Fusion:
    """What a fused parent keeps: its two traces as functions of (module, *inputs), and what they have baked in."""

    def __init__(self, module: nn.Module) -> None:
        graphs, self.snapshot = trace(module)
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
    ):
        return fusion.run[module.training](module, *args)
    return original(module, *args, **kwargs)


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
    if OVERRIDES & vars(module).keys():
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


def _fuse_graph(module: nn.Module, graph: fx.Graph) -> list[Group]:
    """Replaces every group in ``graph`` by one call of :func:`run_block`."""
    found = []
    for first in list(graph.nodes):
        chain = list(_chain(module, first))
        stages: list[Any] = [None] * len(_STAGES)
        for stage, _, follower in chain:
            stages[stage] = follower
        if len(chain) < 2 or (stages[1] is None and not isinstance(stages[2], _RELUS)):
            continue
        last = chain[-1][1]
        with graph.inserting_before(last):
            arguments = []
            for stage, node, follower in chain:
                is_module = node.op == "call_module"
                stages[stage] = graph.get_attr(str(node.target)) if is_module else follower
            for value in stages:
                arguments.append(value if value is None or isinstance(value, fx.Node) else _constant(graph, value))
            fused = graph.call_function(run_block, (first.args[0], *arguments))
        last.replace_all_uses_with(fused)
        for _, node, _ in reversed(chain):
            graph.erase_node(node)
        found.append(Group(tuple(_name(node) for _, node, _ in chain)))
    return found


def _chain(module: nn.Module, node: fx.Node) -> Iterator[tuple[int, fx.Node, nn.Module]]:
    """(stage, node, module) of a convolution and of what directly follows it, each the only use of the one before."""
    stage = -1
    while True:
        follower = _as_module(module, node)
        stages = [at for at, types_ in enumerate(_STAGES) if at > stage and type(follower) in types_]
        # A max-pool is fused only behind a ReLU.
        if follower is None or not stages or (stage < 0) != (stages[0] == 0) or (stages[0] == 3 and stage != 2):
            return
        stage = stages[0]
        yield stage, node, follower
        # Nothing else may happen between: it could change in place what the convolution reads.
        following = node.next
        while following.op == "get_attr":
            following = following.next
        if list(node.users) != [following]:
            return
        node = following


def _as_module(module: nn.Module, node: fx.Node) -> nn.Module | None:
    """The module that ``node`` calls, or one that does what its function does; None for anything else."""
    if not node.args or not isinstance(node.args[0], fx.Node):
        return None
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
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
    value.__dict__["_stands_in"] = True
    return graph.call_function(_Holder(value))


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


def run_block(
    input: Tensor, conv: nn.Module, bn: nn.Module | None, activation: nn.Module | None, pool: nn.Module | None
) -> Tensor:
    """``pool(activation(bn(conv(input))))`` without those that are None, as one op where nobody could tell."""
    parameters = _parameters(input, conv, bn, activation, pool)
    if parameters is None:
        for module in (conv, bn, activation, pool):
            if module is not None:
                # Global hooks never saw a module where there is only a function.
                input = module.forward(input) if "_stands_in" in module.__dict__ else module(input)
        return input
    assert isinstance(conv, Conv2d)
    weight, bias, packed = parameters
    input, padding = _padded(conv, input)
    arguments = (input, weight, bias, conv.stride, padding, conv.dilation, conv.groups)
    # With a BatchNorm that is folded, no gradient is wanted.
    if bn is not None and pool is None and (name := _name_of(activation)) is not None:
        output = functional.conv2d_constant(*arguments, name, packed)
        if output is not None:
            return output
    if type(activation) not in _RELUS:
        output = functional.conv2d(*arguments)
        output = output if activation is None else activation(output)
        return output if pool is None else pool(output)
    if pool is None:
        return functional.conv2d_relu(*arguments)
    assert isinstance(pool, nn.MaxPool2d)
    return functional.conv2d_relu_max_pool2d(
        *arguments,
        pool_kernel_size=pool.kernel_size,
        pool_stride=pool.stride,
        pool_padding=pool.padding,
        pool_dilation=pool.dilation,
        ceil_mode=pool.ceil_mode,
    )


def _name_of(activation: nn.Module | None) -> Literal["none", "relu", "relu6"] | None:
    """What functional.conv2d_constant calls it; None for another."""
    if activation is None:
        return "none"
    if isinstance(activation, nn.ReLU6):
        return "relu6" if (activation.min_val, activation.max_val) == (0, 6) else None
    return "relu" if type(activation) in _RELUS else None


def _parameters(input: Tensor, *modules: nn.Module | None) -> Folded | None:
    """Weight and bias with which one convolution does what the modules do; None where somebody could tell."""
    if (
        _nn_module._global_forward_hooks
        or _nn_module._global_forward_pre_hooks
        or _nn_module._global_backward_hooks
        or _nn_module._global_backward_pre_hooks
    ):
        return None
    for module, known in zip(modules, _STAGES, strict=True):
        if module is not None and not (type(module) in known and _unobserved(module)):
            return None
    conv, bn, _, _ = modules
    assert isinstance(conv, Conv2d)
    if bn is None:
        return Folded(conv.weight, conv.bias, None)
    assert isinstance(bn, nn.BatchNorm2d)
    return folded(input, conv, bn)


def _unobserved(module: nn.Module) -> bool:
    own = module.__dict__
    return not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or not OVERRIDES.isdisjoint(own)
    )
