"""What decides what an object computes, in sixteen characters, by which stored results are found again.

Everything is told in an order of its own and without addresses, so that it is the same in another process. Of modules
these are parameters, buffers, parts, hooks and plain attributes; of classes and functions their compiled code, which is
what runs, and of those that are the user's own also what they refer to. What belongs to torch, NumPy and Python itself
goes by its name, and so do classes of torchvision and of the network that ships: code is another under each Python, and
what ships is found under all. What other libraries have installed goes by its code alone. Devices, memory formats and
training modes are left out, and what a forward pass writes.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from itertools import count
from pathlib import Path, PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

BY_NAME = frozenset(("torch", "numpy", "builtins")) | sys.stdlib_module_names
"""Libraries whose classes and functions go by their names."""

NAMED = ("torchvision.", "pure_nb.glyphs.")
"""Modules whose classes do, too; their functions may have been made with something that decides."""

SILENT = frozenset(("logging", "threading", "_thread", "weakref", "_weakref"))
"""Whose objects decide nothing."""

LIBRARIES = (Path(__file__).parents[1], *map(Path, map(sysconfig.get_path, ("stdlib", "platstdlib"))))
"""Where files lie that are not the user's, besides the folders of installed packages."""

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
"""Where a module keeps what is called before and after it."""

UNTOLD = "_untold"
"""Attribute of a module's class: names of its attributes and buffers that follow from the rest, or decide nothing."""

INTERNAL = frozenset(vars(nn.Module())) | {"_compiled_call_impl"}
"""What every module has."""

LOADS = ("LOAD_ATTR", "LOAD_METHOD")
"""Instructions that take an attribute of what was loaded before."""

CHANGES = frozenset(("add", "append", "clear", "extend", "insert", "pop", "setdefault", "update"))
"""What changes a container."""


def digest(value: object) -> str:
    """Sixteen characters that change when what an object computes may change.

    Parameters
    ----------
    value
        A network, a function, or anything that they are made of.
    """
    digest = _Digest()
    digest.add(value)
    return digest.sum.hexdigest()[:16]


def installed(place: str | None) -> bool:
    """Whether a file, or the lack of one, belongs to a library or to Python, and not to the user."""
    if place is None:  # compiled into Python
        return True
    path = Path(place)
    return bool({"site-packages", "dist-packages"} & set(path.parts)) or any(map(path.is_relative_to, LIBRARIES))


def place_of(module: ModuleType) -> str | None:
    """The file of a module, or the folder of a package without one."""
    file: str | None = getattr(module, "__file__", None)
    return file or next(iter(getattr(module, "__path__", ())), None)


def _root(thing: Any) -> str:
    """The library that a class or a function belongs to."""
    return str(getattr(thing, "__module__", None) or "builtins").partition(".")[0]


def _loaded(code: CodeType) -> set[str]:
    """The global names that a code refers to, those of functions within it as well."""
    own = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return own.union(*(_loaded(one) for one in code.co_consts if isinstance(one, CodeType)))


def _attributes(code: CodeType) -> set[str]:
    """All names that a code refers to, those of attributes as well."""
    return set(code.co_names).union(*(_attributes(one) for one in code.co_consts if isinstance(one, CodeType)))


def _written(module: nn.Module) -> set[str]:
    """Attributes that a forward pass sets or fills: what is kept of the last one does not decide the next."""
    found, waiting, done = set[str](), ["forward"], set[str]()
    while waiting:
        name = waiting.pop()
        done.add(name)
        function: Any = inspect.getattr_static(module, name, None)
        function = getattr(function, "__func__", function)
        if not isinstance(function, FunctionType) or _root(function) in BY_NAME:
            continue
        steps = [step for step in dis.get_instructions(inspect.unwrap(function)) if step.opname != "CACHE"]
        for place, step in enumerate(steps):
            if step.opname in ("STORE_ATTR", "DELETE_ATTR"):
                found.add(step.argval)
            elif step.opname in LOADS:
                waiting += {step.argval} - done
                if step.argval in CHANGES and steps[place - 1].opname in LOADS:
                    found.add(steps[place - 1].argval)
            elif step.opname == "STORE_SUBSCR":  # the key lies above what it is put into
                height = 0
                while height < 1 and place > 0:
                    place -= 1
                    height += dis.stack_effect(steps[place].opcode, steps[place].arg, jump=False)
                if steps[place - 1].opname in LOADS:
                    found.add(steps[place - 1].argval)
    return found


class _Digest:
    """A running digest of all that it has been told."""

    def __init__(self) -> None:
        self.sum = hashlib.sha256()
        self.met: dict[int, tuple[int, Any]] = {}  # the things too, or their places in memory would be used again
        self.numbers = count()

    def text(self, *words: object) -> None:
        """Take in a few words."""
        self.sum.update("\x1f".join(map(str, (*words, ""))).encode("utf-8", "surrogatepass"))

    def add(self, value: Any) -> None:
        """Take in a value of any kind."""
        self.text(type(value).__qualname__)
        if isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, Enum):
            self.text(value.name)
        elif value is None or isinstance(value, (bool, int, float, complex, str, bytes, np.generic)):
            self.text(repr(value))
        elif isinstance(value, np.ndarray):
            self.text(value.dtype, value.shape)
            self.sum.update(repr(value.tolist()).encode() if value.dtype == object else value.tobytes())
        elif isinstance(value, PurePath):
            self.text(value.as_posix())
        elif isinstance(value, torch.device) or _root(type(value)) in SILENT:
            return
        elif id(value) in self.met:
            self.text("again", self.met[id(value)][0])
        elif isinstance(value, (tuple, list, set, frozenset, Mapping)):
            self.met[id(value)] = next(self.numbers), value
            self._container(value)
            del self.met[id(value)]  # whether two equal ones are one and the same is chance
        else:
            self.met[id(value)] = next(self.numbers), value
            self._thing(value)

    def _tensor(self, tensor: Tensor) -> None:
        tensor = tensor.detach()
        self.text(tensor.dtype, tuple(tensor.shape))
        if not tensor.is_meta:
            dense = tensor.to_dense() if tensor.layout != torch.strided else tensor
            self.sum.update(dense.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())

    def _container(self, values: Any) -> None:
        self.text(len(values))
        if isinstance(values, (set, frozenset)):
            values = sorted(map(digest, values))
        for value in values.items() if isinstance(values, Mapping) else values:
            self.add(value)

    def _thing(self, value: Any) -> None:
        for kinds, inside in KINDS.items():
            if isinstance(value, kinds):
                inside(self, value)
                return
        self.add(type(value))
        slots = {name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())}
        state = {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(value, "__dict__", {})
        if state:
            self.add(dict(sorted(state.items())))
        else:
            self.text(re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value)))

    def _module(self, module: nn.Module) -> None:
        if isinstance(inner := vars(module)["_modules"].get("_orig_mod"), nn.Module):  # what torch.compile returns
            self.add(inner)
            return
        self.add(type(module))
        kept = vars(module)
        untold: frozenset[str] = getattr(type(module), UNTOLD, frozenset())
        skipped = INTERNAL | _written(module) | untold
        # Plain tensors beside parameters of such names are what hooks made of these: weight of weight_g and weight_v.
        made = {name.rpartition("_")[0] for name in kept["_parameters"]}
        skipped |= {name for name in made & set(kept) if isinstance(kept[name], Tensor)}
        for name in sorted(set(kept) - skipped):
            self.text(name)
            self.add(kept[name])
        for name in ("_parameters", "_buffers", "_modules"):
            self.text(name)
            self.add({key: one for key, one in kept[name].items() if key not in untold})
        for name in HOOKS:
            self.add(list(kept[name].values()))
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            self.add(module.get_extra_state())

    def _class(self, kind: type) -> None:
        for one in kind.__mro__:
            self.text(one.__qualname__)
            if _root(one) in BY_NAME or one.__module__.startswith(NAMED):
                self.text(one.__module__)
                for name, value in sorted(vars(one).items()):  # what is put into its place is the user's
                    if isinstance(value, FunctionType) and _root(value) != _root(one):
                        self.text(name)
                        self.add(value)
                continue
            for name, value in sorted(vars(one).items()):
                if not name.startswith("__") or isinstance(value, (FunctionType, staticmethod, classmethod)):
                    self.text(name)
                    self.add(value)

    def _function(self, function: Any) -> None:
        function = getattr(function, "_torchdynamo_orig_callable", function)
        if _root(function) in BY_NAME:
            self.text(function.__module__, function.__qualname__)
            return
        self._code(function.__code__)
        self.add((function.__defaults__, function.__kwdefaults__))
        for cell in function.__closure__ or ():
            if repr(cell).find(": empty>") < 0:
                self.add(cell.cell_contents)
        code = function.__code__
        if not installed(code.co_filename):
            for name, value in _referred(function.__globals__, _loaded(code), _attributes(code)):
                self.text(name)
                self.add(value)

    def _method(self, method: MethodType) -> None:
        self.add(method.__func__)
        self.add(method.__self__)

    def _code(self, code: CodeType) -> None:
        self.text(code.co_argcount, code.co_kwonlyargcount, code.co_flags, *code.co_names, *code.co_freevars)
        self.sum.update(code.co_code)
        self.add(code.co_consts)


KINDS: dict[Any, Callable[[_Digest, Any], None]] = {
    type: _Digest._class,
    ModuleType: lambda digest, module: digest.text(module.__name__),
    CodeType: _Digest._code,
    FunctionType: _Digest._function,
    MethodType: _Digest._method,
    (staticmethod, classmethod, functools._lru_cache_wrapper): lambda digest, own: digest.add(own.__wrapped__),
    property: lambda digest, own: digest.add((own.fget, own.fset)),
    functools.partial: lambda digest, own: digest.add((own.func, own.args, own.keywords)),
    BuiltinFunctionType: lambda digest, own: digest.text(own.__module__, own.__qualname__),
    torch.jit.ScriptFunction: lambda digest, own: digest.text(own.code),
    nn.Module: _Digest._module,
}
"""How things are told, by what they are; the first that fits counts."""


def _referred(
    scope: Mapping[str, Any], names: set[str], attributes: set[str], within: tuple[object, ...] = ()
) -> Iterator[tuple[str, Any]]:
    """What names stand for in a module, and attributes in the user's own modules that are among it."""
    for name in sorted(names & set(scope)):
        value = scope[name]
        if not isinstance(value, ModuleType) or installed(place_of(value)):
            yield name, value
        elif value not in within:
            yield from _referred(vars(value), attributes, attributes, (*within, value))
