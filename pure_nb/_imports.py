"""Imports that wait: names that a package hands out when they are asked for, and libraries that not everyone has.

A study is loaded in little more time than torchvision. What is heavy and not needed until something is computed or
shown is imported late, by the functions that use it: pandas, scikit-learn, matplotlib, parts of SciPy (which ``import
scipy`` brings when they are used), and all that is optional. ``benchmarks/imports.py`` measures it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dis import get_instructions
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pkgutil import iter_modules
from typing import Any

from pure_nb.errors import PureError


def lazily(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's ``__getattr__`` and ``__dir__`` (PEP 562), so that whoever wants one name does not wait for all.

    What there is, and where, is what it imports for type checkers. Modules and packages within the package, and
    modules in such packages, come by their own names: ``pure_nb.sources`` is ``pure_nb.images.sources``.
    """

    @cache
    def found() -> dict[str, tuple[str, str]]:
        """The module of each name, and what it is called there, by the code, which there is without a source too."""
        loader: Any = sys.modules[package].__loader__
        names, steps = {}, [(step.opname, step.argval) for step in get_instructions(loader.get_code(package))]
        for (kind, own), (_, name) in pairwise(steps):
            if kind == "IMPORT_NAME":
                module = own
            elif kind == "IMPORT_FROM":
                names[name] = module, own
        return names

    def get(name: str) -> Any:
        if name in found():
            module, own = found()[name]
            value = getattr(import_module(module), own)
        elif not name.startswith("_") and (place := next(filter(find_spec, _places(package, name)), None)):
            value = import_module(place)
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)  # and is not asked for again
        return value

    return get, lambda: [*vars(sys.modules[package])["__all__"]]


def _places(package: str, name: str) -> Iterator[str]:
    """Where a module of this name may be."""
    yield f"{package}.{name}"
    folders = iter_modules(sys.modules[package].__path__)
    yield from (f"{package}.{folder.name}.{name}" for folder in folders if folder.ispkg)


@contextmanager
def needed(extra: str, what: str, kind: type[PureError] = PureError) -> Iterator[None]:
    """Around the imports of libraries that an extra of the package brings: say so where they are missing.

    Parameters
    ----------
    extra
        Its name in ``pyproject.toml``.
    what
        What needs them, as the first words of a sentence: ``"CLIP needs"``.
    kind
        Of the error to raise.
    """
    try:
        yield
    except ImportError as problem:
        raise kind(f"{what} more packages: pip install 'pure-nb[{extra}]' ({problem})") from problem
