"""Networks by name: torchvision's, timm's, or a function in a user's file; and their weights.

Weights come from safetensors files, or from torch files read with ``weights_only=True``, which cannot run code.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from pure_nb._imports import needed
from pure_nb.errors import ModelError, StudyError
from pure_nb.network.digests import digest, installed, place_of

USER = "_user_"
"""Before the names of modules that are made of users' files."""


def load_model(
    source: str,
    weights: str | Path | None = None,
    *,
    folder: Path = Path(),
    shipped: Mapping[str, tuple[Callable[..., nn.Module], Path | Callable[[], Mapping[str, Tensor]]]] | None = None,
    **options: Any,
) -> nn.Module:
    """Make a network and fill in its weights.

    Parameters
    ----------
    source
        ``"torchvision:resnet50"``; ``"timm:resnet34.a1_in1k"``; or ``"my_file.py:my_function"``, a function that
        returns a ``torch.nn.Module``.
    weights
        A ``.safetensors`` or ``.pth`` file; ``"random"`` for random ones, the same each time;
        None for the published ones: torchvision's
        default or timm's pretrained weights, fetched from their hubs.
    folder
        What relative paths start from.
    shipped
        Networks that are known by a name: what makes them, and the file of their weights, or what gives them.
    options
        Passed on to the model's constructor.

    Returns
    -------
    Module
        In evaluation mode, float32.

    Raises
    ------
    ModelError
        If the source is not of these forms, the weights don't fit, or a hub can't be reached.
    """
    kind, _, name = source.rpartition(":")
    hub = weights is None
    if weights == "random":  # the same ones each time, or no stored result would ever be found again
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return load_model(source, "", folder=folder, shipped=shipped, **options)
    if shipped and source in shipped:
        make, own = shipped[source]
        model: nn.Module = make(**options)
        if not isinstance(own, Path):
            if hub:
                model.load_state_dict(own())
        elif hub:
            weights = own
    elif kind == "torchvision":
        published = "DEFAULT" if hub else None
        model = _fetched(source, lambda: torchvision.models.get_model(name, weights=published, **options))
    elif kind == "timm":
        with needed("timm", f"{source!r} needs", ModelError):
            import timm
        model = _fetched(source, lambda: timm.create_model(name, pretrained=hub, **options))
    elif kind.endswith(".py"):
        model = _from_file(folder / kind, name, options)
    else:
        raise ModelError(
            f"can't tell what network {source!r} is; expected {''.join(f'{name!r}, ' for name in shipped or ())}"
            "'torchvision:NAME', 'timm:NAME' or 'FILE.py:FUNCTION'"
        )
    if weights:
        load_weights(model, folder / weights)
    return model.float().eval()


def _fetched(source: str, make: Callable[[], nn.Module]) -> nn.Module:
    """Make a model of a library, and turn the many errors of an unreachable hub into one that helps."""
    kind, _, name = source.rpartition(":")
    hub = f"model.safetensors of timm/{name} on the Hugging Face hub"
    where = hub if kind == "timm" else f"the state_dict that torchvision names in its weights of {name}"
    try:
        return make()
    except (URLError, OSError) as problem:  # huggingface_hub's and requests' errors are OSErrors
        raise ModelError(
            f"the weights of {source!r} could not be fetched from their hub ({type(problem).__name__}: {problem}). "
            f"Without a network, bring the file ({where}) and name it: weights = 'FILE.safetensors' in the study, or "
            "--weights"
        ) from problem
    except (ValueError, RuntimeError) as problem:
        raise ModelError(f"{source!r} can't be made: {problem}") from problem


def function_in(path: Path, name: str) -> Any:
    """A function in a user's own Python file, which is run for it.

    Raises
    ------
    ModelError
        If there is no such file or function, or the file can't be run.
    """
    with _beside(path):
        return _run(path, name)


def _run(path: Path, name: str) -> Any:
    """Run a file, and return the function."""
    if not path.is_file():
        raise ModelError(f"there is no file {str(path)!r} with a function {name!r}")
    place = hashlib.sha256(str(path.absolute()).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    specification: Any = importlib.util.spec_from_file_location(f"{USER}{path.stem}_{place}", path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up there
    try:
        specification.loader.exec_module(module)
    except (Exception, SystemExit) as problem:
        raise ModelError(f"{str(path)!r} can't be run: {type(problem).__name__}: {problem}") from problem
    make = getattr(module, name, None)
    if make is None:
        raise ModelError(f"{str(path)!r} has no function {name!r}")
    return make


@contextmanager
def _beside(path: Path) -> Iterator[Callable[[], list[ModuleType]]]:
    """Within it imports look beside a file first, and what they find there is known to no other file.

    Yields
    ------
    callable
        The modules that were found beside the file so far.
    """
    folder = path.parent.absolute()
    names = {entry.stem for entry in folder.iterdir()} if folder.is_dir() else set()
    searched, writing = sys.path.copy(), sys.dont_write_bytecode

    def others() -> dict[str, ModuleType]:
        """The users' own modules of such names."""
        return {
            name: module
            for name, module in list(sys.modules.items())
            if name.partition(".")[0] in names and not installed(place_of(module))
        }

    for name in (hidden := others()):
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True  # a file that was changed twice in a second would run as it was at first
    importlib.invalidate_caches()
    try:
        yield lambda: [*others().values()]
    finally:
        sys.path[:], sys.dont_write_bytecode = searched, writing
        for name in others():
            del sys.modules[name]
        sys.modules.update(hidden)


def _from_file(path: Path, name: str, options: dict[str, Any]) -> nn.Module:
    """Call a function in a user's own file that makes a network."""
    model, files = made_by(path, name, options)
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name!r} of {str(path)!r} returned a {type(model).__name__}, expected a torch.nn.Module")
    vars(model)["_made_by"] = files
    return model


def made_by(path: Path, name: str, options: dict[str, Any]) -> tuple[Any, list[str]]:
    """What a function in a user's own file returns, and the checksums of that file and of those beside it that it ran.

    These are for fingerprints, since a name that is put together at run time can't be followed.

    Raises
    ------
    ModelError
        As :func:`function_in`; or if the function can't be called so, or fails.
    """
    with _beside(path) as beside:
        make = _run(path, name)
        try:
            inspect.signature(make).bind(**options)
        except TypeError as problem:
            raise ModelError(f"{name!r} of {str(path)!r} can't be called with {options}: {problem}") from problem
        try:
            made = make(**options)
        except (Exception, SystemExit) as problem:
            raise ModelError(f"{name!r} of {str(path)!r} failed: {type(problem).__name__}: {problem}") from problem
        files = {Path(file) for file in (str(path), *map(place_of, beside())) if file and Path(file).is_file()}
        return made, sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)


def read_weights(path: Path | str) -> dict[str, Any]:
    """Read a state dictionary from a file, safetensors or a torch file of tensors alone; never unpickles anything else.

    Raises
    ------
    ModelError
        If the file is missing or damaged, or holds more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"there is no file of weights {str(path)!r}")
    try:
        safe = path.suffix == ".safetensors"
        state: Any = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, OSError, ValueError, EOFError) as problem:
        raise ModelError(f"{str(path)!r} can't be read as weights: {problem}") from problem
    except Exception as problem:  # torch raises pickle's own error for a file that holds more than tensors
        raise ModelError(
            f"{str(path)!r} is damaged, or holds more than tensors and is not loaded, since unpickling it could run "
            f"code; save the state_dict alone, best as .safetensors ({type(problem).__name__})"
        ) from problem
    extra = torch.nn.modules.module._EXTRA_STATE_KEY_SUFFIX  # what a module keeps besides tensors
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) or str(name).endswith(extra) for name, value in state.items()
    ):
        raise ModelError(f"{str(path)!r} is no state_dict, a dictionary from names to tensors; save that alone")
    return {
        name: value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in state.items()
    }


def load_weights(model: nn.Module, path: Path | str) -> None:
    """Read weights from a file into a model; batch norms' step counters may be missing, nothing else.

    Raises
    ------
    ModelError
        If the file is missing or damaged, or its names or shapes don't fit.
    """
    state, own = read_weights(path), model.state_dict()
    wrong = {
        "missing": [name for name in own if name not in state and not name.endswith("num_batches_tracked")],
        "unexpected": [name for name in state if name not in own],
        "of another shape": [
            f"{name} {list(state[name].shape)} and not {list(tensor.shape)}"
            for name, tensor in own.items()
            if name in state and isinstance(tensor, Tensor) and state[name].shape != tensor.shape
        ],
    }
    told = [
        f"{len(names)} {kind}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
        for kind, names in wrong.items()
        if names
    ]
    if told:
        raise ModelError(
            f"{str(path)!r} does not fit {type(model).__name__}; {'; '.join(told)}. "
            "Take the weights of this network, or the network of these weights"
        )
    model.load_state_dict(state, strict=False)


class Absent(nn.Module):
    """A network that is not here, and that a published study tells of; who asks for its layers or runs it is told so.

    Attributes
    ----------
    known
        What its :func:`fingerprint` is.
    why
        What to say.
    """

    def __init__(self, known: str, why: str) -> None:
        super().__init__()
        self.known, self.why = known, why

    def named_modules(self, *_: Any, **__: Any) -> Any:
        """Raise: all that looks into a network, or puts it somewhere, begins here."""
        raise StudyError(self.why)

    forward = named_modules


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile``.

    Parameters
    ----------
    model
        Any network, wrapped once, several times or not at all.

    Returns
    -------
    Module
        The network itself, whose layers have their own names again, without ``"module."`` or ``"_orig_mod."``.

    Raises
    ------
    ModelError
        If it is TorchScript, an exported graph, or quantised: hooks do not reach what the first two compute, and no
        gradients lead through the last; if it wants more than images, or has no weights to compute with.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"a network is a torch.nn.Module, got {type(model).__name__}; bring the module that it was made from"
        )
    if isinstance(model, Absent):
        return model
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):  # what torch.compile returns
            model = inner
        else:
            break
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                f"{f'layer {name!r} of ' if name else ''}{type(model).__name__} is TorchScript, whose layers can't be "
                "watched; bring the torch.nn.Module that it was made from, with the same weights"
            )
        if type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")):
            raise ModelError(
                f"layer {name!r} of {type(model).__name__} is quantised, and no gradients lead through it; bring the "
                "network as it was before"
            )
    _require_layers(model)
    _require_image(model)
    require_weights(model)
    return model


def _require_layers(model: nn.Module) -> None:
    """Refuse graphs whose weights are no module's any more, as torch.export makes them."""
    if isinstance(model, GraphModule):
        called = {node.target for node in model.graph.nodes if node.op == "call_module"}
        weighty = [name for name, module in model.named_modules() if module._parameters]
        if weighty and not any(name == one or name.startswith(f"{one}.") for one in called for name in weighty):
            raise ModelError(
                f"{type(model).__name__} is an exported graph, in which layers such as {weighty[0]!r} do not run as "
                "modules and can't be watched; bring the torch.nn.Module that it was made from, with the same weights"
            )


def _require_image(model: nn.Module) -> None:
    """Refuse networks that want more than a batch of images."""
    try:
        wanted = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # not to be had from all that can be called
        return
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = [one.name for one in wanted if one.default is inspect.Parameter.empty and one.kind not in variadic]
    if len(names) > 1:
        raise ModelError(
            f"{type(model).__name__}.forward({', '.join(names)}) wants {' and '.join(map(repr, names[1:]))} besides "
            "the images, and is called with images alone; wrap it in a torch.nn.Module that fills in the rest"
        )


def require_weights(model: nn.Module) -> None:
    """Check that a network has weights to compute with.

    Raises
    ------
    ModelError
        If some are not made yet (lazy layers), hold no numbers (on the device ``meta``), or can't be used for gradients
        (made in inference mode).
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        reason = (
            "is made in the first forward pass of a lazy layer; run the network on a batch of images first"
            if isinstance(tensor, (UninitializedParameter, UninitializedBuffer))
            else "is on the device 'meta' and holds no numbers; load the weights"
            if tensor.is_meta
            else "was made in torch.inference_mode() and can't be used for gradients; make the network outside it"
            if tensor.is_inference()
            else ""
        )
        if reason:
            raise ModelError(f"{name!r} of {type(model).__name__} {reason}")


def fingerprint(model: nn.Module) -> str:
    """Changes when what a network computes may change; see :mod:`pure_nb.network.digests`."""
    return model.known if isinstance(model, Absent) else digest(model)
