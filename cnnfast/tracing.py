"""A module's own forward as an fx graph, its children being calls; or why that graph might not be the same program.

torch.fx runs a forward once with placeholders and records what happens to them. What happens to anything else is lost
without a word: a ``with torch.no_grad():``, a printed line, a counter, a random number of Python's, a branch on
``torch.is_grad_enabled()``. Here a forward is therefore read before it is run: only functions that use nothing but
torch, their own arguments and constants are traced, everything else is refused with its reason. What a trace bakes in
(plain attributes, which children there are) is kept as :class:`Snapshot` and compared at each call.
"""

from __future__ import annotations

import builtins
import dis
import inspect
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

__all__ = ["NotTraceable", "Snapshot", "trace"]


class NotTraceable(Exception):
    """A forward is left as it is; the text says why."""


_LIBRARIES = frozenset({"torch", "torchvision", "cnnfast", "math", "operator", "typing", "collections"})
_BUILTINS = frozenset(
    {
        abs,
        bool,
        dict,
        enumerate,
        float,
        int,
        len,
        list,
        map,
        max,
        min,
        range,
        reversed,
        slice,
        str,
        sum,
        super,
        tuple,
        zip,
    }
)
#: Modes that a trace would bake in, and functions that hide a part of the program from it.
_REFUSED_NAMES = frozenset({"autocast", "inference_mode", "no_grad", "enable_grad", "set_grad_enabled"})
_REFUSED_NAMES |= {"is_autocast_enabled", "is_inference_mode_enabled", "is_grad_enabled", "get_default_dtype"}
_REFUSED_NAMES |= {"is_compiling", "is_dynamo_compiling", "is_exporting", "is_tracing"}
_REFUSED_NAMES |= {"checkpoint", "checkpoint_sequential", "cond", "while_loop", "parallel_apply", "seed", "manual_seed"}
_REFUSED_OPCODES = {"STORE_ATTR", "DELETE_ATTR", "STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE", "STORE_GLOBAL"}
_REFUSED_OPCODES |= {"DELETE_GLOBAL", "IMPORT_NAME", "YIELD_VALUE", "LOAD_SPECIAL"}
_CONSTANTS = (int, float, str, bool, types.NoneType, types.FunctionType, types.BuiltinFunctionType)
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


class Snapshot:
    """What the trace of a module has baked in besides ``training``: attributes that its forward reads, its children."""

    def __init__(self, module: nn.Module, names: frozenset[str]) -> None:
        self.attributes = {name: vars(module)[name] for name in sorted(names & vars(module).keys() - {"training"})}
        self.children = _children(module)
        for name, value in self.attributes.items():
            items = value if isinstance(value, tuple) else (value,)
            if name not in _MODULE_STATE and not all(isinstance(item, _CONSTANTS) for item in items):
                raise NotTraceable(f"forward reads the attribute {name} of type {type(value).__name__}")
        self.attributes = {name: value for name, value in self.attributes.items() if name not in _MODULE_STATE}

    def fits(self, module: nn.Module) -> bool:
        attributes = module.__dict__
        for name, value in self.attributes.items():
            if name not in attributes or attributes[name] != value:
                return False
        return self.children == _children(module)


_MODULE_STATE = frozenset(vars(nn.Module()))


def _children(module: nn.Module) -> list[str]:
    """Names of the children that are there, and of those inside lists of modules."""
    names = []
    for name, child in module._modules.items():
        if child is not None:
            names.append(name)
            if isinstance(child, _CONTAINERS):
                names.extend(f"{name}.{key}" for key in child._modules)
    return names


def trace(module: nn.Module) -> tuple[dict[bool, fx.Graph], Snapshot]:
    """The graphs of ``module.forward`` in training (True) and in evaluation (False), every module call a leaf.

    Raises:
        NotTraceable: where forward is more than what a trace can show.
    """
    names = _names_read(module)
    snapshot = Snapshot(module, names)
    training = module.training
    random = torch.get_rng_state()
    graphs = {}
    try:
        for mode in (True, False):
            # Not module.train(mode), which would set the children too and call methods that users override.
            module.training = mode
            graphs[mode] = _Tracer().trace(module)
    except Exception as error:  # Whatever a forward may raise when it meets a proxy.
        raise NotTraceable(f"forward does not trace ({type(error).__name__}: {error})".splitlines()[0]) from error
    finally:
        module.training = training
    if not torch.equal(random, torch.get_rng_state()):
        torch.set_rng_state(random)
        raise NotTraceable("forward draws random numbers outside of its input")
    for graph in graphs.values():
        if any(node.op == "get_attr" and str(node.target).startswith("_tensor_constant") for node in graph.nodes):
            raise NotTraceable("forward makes tensors that do not depend on its input")
    return graphs, snapshot


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _names_read(module: nn.Module) -> frozenset[str]:
    """Every global or attribute name in forward and in the methods it may call, all of them found harmless."""
    forward = type(module).forward
    if not isinstance(forward, types.FunctionType):
        raise NotTraceable("forward is not a plain Python function")
    for name, parameter in list(inspect.signature(forward).parameters.items())[1:]:
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD or parameter.default is not parameter.empty:
            raise NotTraceable(f"forward has the optional argument {name}")
    names: set[str] = set()
    pending, seen = [forward], {forward}
    while pending:
        function = pending.pop()
        for code in _codes(function.__code__):
            _check(function, code)
            names.update(code.co_names)
            for method in _methods(module, code.co_names):
                if method not in seen:
                    seen.add(method)
                    pending.append(method)
    return frozenset(names)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _methods(module: nn.Module, names: tuple[str, ...]) -> Iterator[types.FunctionType]:
    """The module's own methods and properties of these names, those that super() reaches too; not nn.Module's."""
    for cls in type(module).__mro__:
        if cls in (nn.Module, object):
            continue
        for name in names:
            member = vars(cls).get(name)
            member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            if isinstance(member, types.FunctionType):
                yield member


def _check(function: types.FunctionType, code: types.CodeType) -> None:
    for instruction in dis.get_instructions(code):
        if instruction.opname in _REFUSED_OPCODES or "WITH" in instruction.opname:
            raise NotTraceable(f"{function.__name__} has effects that a trace does not show ({instruction.opname})")
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            _check_global(function, instruction.argval)
        elif instruction.argval in _REFUSED_NAMES:
            raise NotTraceable(f"{function.__name__} uses {instruction.argval}")
    if set(function.__code__.co_freevars) - {"__class__"}:
        raise NotTraceable(f"{function.__name__} is decorated or a closure")


def _check_global(function: types.FunctionType, name: str) -> None:
    if name in function.__globals__:
        value: Any = function.__globals__[name]
        origin = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
        harmless = name not in _REFUSED_NAMES and str(origin).partition(".")[0].lstrip("_") in _LIBRARIES
    else:
        value = getattr(builtins, name, None)
        exception = isinstance(value, type) and issubclass(value, BaseException)
        harmless = exception or value in _BUILTINS
    if not harmless:
        raise NotTraceable(f"{function.__name__} uses {name}, which a trace might not show")
