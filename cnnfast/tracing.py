"""A module's own forward as an fx graph, its children being calls; or why that graph might not be the same program.

torch.fx runs a forward once with placeholders and records what happens to them. What happens to anything else is lost
without a word: a ``with torch.no_grad():``, a printed line, a counter, an exception that is caught, a branch on
``torch.is_grad_enabled()``. Here a forward is therefore read before it is run, and traced only if all that it uses is
known to be harmless: its arguments, constants, its own children, parameters, buffers, methods that are so themselves,
operations of tensors and of torch.nn.functional. What a trace bakes in (constants that are attributes, which children
there are) is kept as :class:`Snapshot` and compared at each call.
"""

from __future__ import annotations

import dis
import inspect
import math
import operator
import types
from collections.abc import Collection, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

__all__ = ["NotTraceable", "Snapshot", "trace"]


class NotTraceable(Exception):
    """A forward is left as it is; the text says why."""


_BUILTINS = frozenset(
    {abs, bool, dict, enumerate, float, int, len, list, map, max, min, range, reversed, slice, str, sum, tuple, zip}
)
#: Attributes of anything but self: of tensors, which fx records, and of torch and torch.nn.functional.
_ATTRIBUTES = frozenset(
    set(dir(Tensor))
    | {name for name in dir(F) if isinstance(getattr(F, name), (types.FunctionType, types.BuiltinFunctionType))}
    | {name for name in dir(torch) if isinstance(getattr(torch, name), (torch.dtype, torch.memory_format))}
    | {"append", "cat", "concat", "extend", "functional", "nn", "pi", "stack"}
)
_MODULES = (torch, torch.nn, F, math, operator)
_OPCODES = {"STORE_ATTR", "DELETE_ATTR", "STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE", "STORE_GLOBAL"}
_OPCODES |= {"DELETE_GLOBAL", "IMPORT_NAME", "YIELD_VALUE", "LOAD_SPECIAL", "LOAD_SUPER_ATTR", "LOAD_SUPER_METHOD"}
_OPCODES |= {"PUSH_EXC_INFO", "CHECK_EXC_MATCH", "SETUP_FINALLY", "BEFORE_WITH", "SETUP_WITH"}
#: Methods by which Python's operators call a module; torch's own are known.
_OPERATORS = ("__call__", "__getattr__", "__getattribute__", "__getitem__", "__iter__", "__len__", "__contains__")
_CONSTANTS = (int, float, str, bool, types.NoneType)
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
_STATE = frozenset(vars(nn.Module())) - {"training"}
_MISSING = object()


class Snapshot:
    """What the trace of a module has baked in besides ``training``: attributes that its forward reads, its children."""

    def __init__(self, module: nn.Module, names: set[str]) -> None:
        self.attributes = {name: _lookup(module, name) for name in sorted(names)}
        self.members = _members(module)
        self._fitting = _children(module)

    def fits(self, module: nn.Module) -> bool:
        for name, value in self.attributes.items():
            current = _lookup(module, name)
            # The type as well: a tensor that equals a number is no number.
            if current is not value and (type(current) is not type(value) or current != value):
                return False
        own = module._parameters or module._buffers
        children = _children(module)
        if children == self._fitting and not own:
            return True
        if self.members != _members(module):
            return False
        self._fitting = children
        return True


def _lookup(module: nn.Module, name: str) -> Any:
    attributes = module.__dict__
    return attributes[name] if name in attributes else getattr(type(module), name, _MISSING)


def _children(module: nn.Module) -> list[tuple[str, int]]:
    """Name and id of each child, those in containers too: :func:`_members` says of them what follows from this, in four
    times the time."""
    children = []
    pending = [module]
    for parent in pending:
        for key, child in parent._modules.items():
            children.append((key, id(child)))
            if isinstance(child, CONTAINERS):
                pending.append(child)
    return children


def _members(module: nn.Module) -> list[str]:
    """Names of the parameters, buffers and children that are there, those in containers too; a child's second name
    with its first."""
    names = [name for name, value in module._parameters.items() if value is not None]
    names += [name for name, value in module._buffers.items() if value is not None]
    first: dict[int, str] = {}
    pending = [("", module)]
    while pending:
        prefix, parent = pending.pop()
        for key, child in parent._modules.items():
            if child is not None:
                name = f"{prefix}{key}"
                names.append(f"{name}={first.setdefault(id(child), name)}")
                if isinstance(child, CONTAINERS):
                    pending.append((f"{name}.", child))
    return names


def trace(
    module: nn.Module, inlined: Collection[str] = (), keeps_none: bool = True
) -> tuple[dict[bool, fx.Graph], Snapshot]:
    """The graphs of ``module.forward`` in training (True) and in evaluation (False), every module call a leaf but those
    of ``inlined`` containers.

    fx changes nn.Module for the time of a trace: no other thread may run one meanwhile. Without ``keeps_none`` a
    forward may not ask whether an argument is None: the trace keeps the answer for arguments that are not.

    Raises:
        NotTraceable: where forward is more than what a trace can show.
    """
    snapshot = Snapshot(module, names_read(module, keeps_none))
    training = module.training
    graphs = {}
    try:
        for mode in (True, False):
            # Not module.train(mode), which would set the children too and call methods that users override.
            module.training = mode
            graphs[mode] = _Tracer(inlined).trace(module)
    except Exception as error:  # Whatever a forward may raise when it meets a proxy.
        raise NotTraceable(f"forward does not trace ({type(error).__name__}: {error})".splitlines()[0]) from error
    finally:
        module.training = training
    return graphs, snapshot


class _Proxy(fx.Proxy):
    """fx knows no operators in place, for which Python then takes those that are not: aliases would be lost."""


def _in_place(function: Any) -> Any:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor"):
    setattr(_Proxy, f"__{_name}__", _in_place(getattr(operator, _name)))


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # else their values, dtypes and devices would be constants

    def __init__(self, inlined: Collection[str] = ()) -> None:
        super().__init__()
        self.inlined = inlined

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.inlined

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


def names_read(module: nn.Module, keeps_none: bool = True) -> set[str]:
    """The attributes of self that forward and the methods it calls read as constants; all else is found harmless."""
    for name in _OPERATORS:
        value = getattr(type(module), name, None)
        if getattr(value, "__module__", "torch").partition(".")[0] != "torch":
            raise NotTraceable(f"{type(module).__name__} has its own {name}")
    forward = type(module).forward
    if not isinstance(forward, types.FunctionType):
        raise NotTraceable("forward is not a plain Python function")
    for argument, parameter in list(inspect.signature(forward).parameters.items())[1:]:
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD or parameter.default is not parameter.empty:
            raise NotTraceable(f"forward has the optional argument {argument}")
    names: set[str] = set()
    pending, seen = [forward], {forward}
    while pending:
        function = pending.pop()
        own = set(_own_attributes(module, function, keeps_none))
        for name in own:
            method = _method(module, name)
            if method is not None and method not in seen:
                seen.add(method)
                pending.append(method)
        names |= own
    return names - {"training"} - module._parameters.keys() - module._buffers.keys() - module._modules.keys()


def _method(module: nn.Module, name: str) -> types.FunctionType | None:
    """The function behind an attribute of self; None for a constant, a child or a tensor; others are refused."""
    if name == "training" or any(name in there for there in (module._parameters, module._buffers, module._modules)):
        return None
    if name in _STATE or hasattr(nn.Module, name):
        raise NotTraceable(f"forward uses {name} of nn.Module")
    value = vars(module).get(name, inspect.getattr_static(type(module), name, _MISSING))
    value = value.fget if isinstance(value, property) else value
    value = value.__func__ if isinstance(value, staticmethod) else value
    if isinstance(value, types.FunctionType) and name not in vars(module):
        return value
    items = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(item, _CONSTANTS) or _is_of_torch(item) for item in items):
        raise NotTraceable(f"forward reads the attribute {name} of type {type(value).__name__}")
    return None


def _own_attributes(module: nn.Module, function: types.FunctionType, keeps_none: bool) -> Iterator[str]:
    """What ``function`` reads of its first argument, nested functions included."""
    name, main = function.__name__, function.__code__
    if set(main.co_freevars) - {"__class__"}:
        raise NotTraceable(f"{name} is decorated or a closure")
    for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        if not isinstance(default, _CONSTANTS):
            raise NotTraceable(f"{name} has a default of type {type(default).__name__}")
    this = main.co_varnames[0] if main.co_argcount else ""
    for code in _codes(main):
        on_self = on_child = of_self = none = False
        for instruction in dis.get_instructions(code):
            opcode, value = instruction.opname, instruction.argval
            if opcode in _OPCODES or "WITH" in opcode:
                raise NotTraceable(f"{name} has effects that a trace does not show ({opcode})")
            if opcode in ("LOAD_GLOBAL", "LOAD_NAME"):
                _check_global(function, value)
            if opcode.startswith(("STORE_FAST", "STORE_DEREF", "DELETE_FAST")) and this in _variables(value):
                raise NotTraceable(f"{name} assigns to {this}")
            is_attribute = opcode in ("LOAD_ATTR", "LOAD_METHOD")
            if opcode == "IS_OP" or opcode.endswith("_NONE"):
                # Converted modules are fused where all arguments are tensors: none is None, but one may be another.
                for_none = none or opcode != "IS_OP"
                if not (of_self or (for_none and keeps_none)):
                    raise NotTraceable(f"{name} asks what an object is ({opcode})")
            none = opcode == "LOAD_CONST" and value is None
            of_self = is_attribute and on_self or of_self and none
            if is_attribute and on_self:
                yield value
            elif is_attribute and (on_child or value not in _ATTRIBUTES):
                raise NotTraceable(f"{name} uses {value}, which a trace might not show")
            on_child = is_attribute and on_self and value in module._modules
            on_self = opcode.startswith(("LOAD_FAST", "LOAD_DEREF")) and _variables(value)[-1:] == (this,)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _variables(value: Any) -> tuple[Any, ...]:
    """Instructions of later Pythons load two variables at once."""
    return value if isinstance(value, tuple) else (value,)


def _check_global(function: types.FunctionType, name: str) -> None:
    if name in function.__globals__:
        value = function.__globals__[name]
        harmless = any(value is module for module in _MODULES) or (_is_of_torch(value) and name in _ATTRIBUTES)
    else:
        value = __builtins__[name] if isinstance(__builtins__, dict) else getattr(__builtins__, name, None)
        exception = isinstance(value, type) and issubclass(value, BaseException)
        harmless = exception or value in _BUILTINS
    if not harmless:
        raise NotTraceable(f"{function.__name__} uses {name}, which a trace might not show")


def _is_of_torch(value: Any) -> bool:
    """A function of torch's that computes with tensors: those that fx records."""
    if not isinstance(value, (types.FunctionType, types.BuiltinFunctionType)):
        return False
    origin = str(getattr(value, "__module__", None) or "")
    own = getattr(value, "__self__", None)
    known = origin.partition(".")[0] in ("torch", "cnnfast", "math", "_operator")
    return known and value.__name__ in _ATTRIBUTES and (own is None or isinstance(own, types.ModuleType))
