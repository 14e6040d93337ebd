"""Studies on disk: a small TOML file says what is studied, over which images, and how.

Its table ``[images]`` names a ``source``:

=======================  =============================================================================================
``"glyphs"``             the world that ships; ``length``, ``seed``
``"folder"``             pictures in the folder ``root``, one subfolder a class or none; see
                         :func:`pure_nb.images.sources.folder_images`
``"paths"``              pictures that the text file ``root`` lists, one a line
``"torchvision:NAME"``   a data set of torchvision in the folder ``root``; the other entries are arguments of its own
``"huggingface:NAME"``   a data set of Hugging Face, of which ``split`` and ``config`` are fetched, or which
                         ``save_to_disk`` put in the folder ``root``; ``columns`` chooses among several of its columns
=======================  =============================================================================================

All but glyphs take ``resize``, ``crop``, ``mean``, ``std`` and ``grey``, as
:func:`pure_nb.images.sources.preprocessing`, and ``turned`` and ``white``, as :class:`pure_nb.images.sources.Reader`;
those of torchvision need a mean and std, keep their size by default, and take the last two if they read files with a
loader, as ``ImageFolder`` does. All take ``synsets``, what WordNet calls some classes: ``{king = "king.n.10"}``. A path
starts from the study's own folder. Nothing is fetched into a folder outside of it that the user has not named; what the
hub sends goes to Hugging Face's own cache.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from dataclasses import replace
from importlib import import_module, resources
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset
from torchvision import datasets
from torchvision.datasets.folder import default_loader

from pure_nb._imports import needed
from pure_nb.compute.store import Store, store_folder
from pure_nb.errors import ArgumentError, ImageError, StudyError
from pure_nb.glyphs import glyph_images
from pure_nb.glyphs.network import GLYPHNET
from pure_nb.images._fitting import repeated
from pure_nb.images.data import Images
from pure_nb.images.sources import Reader, as_images, folder_images, path_images, preprocessing
from pure_nb.network import models
from pure_nb.parameters import RUN, Run, checked, word
from pure_nb.study import Study

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def load_model(source: str, weights: str | Path | None = None, **options: Any) -> nn.Module:
    """Make a network and fill in its weights: ``"glyphnet"``, the one that ships, or any other.

    Parameters
    ----------
    source, weights, options
        As for :func:`pure_nb.network.models.load_model`, which it calls.
    """
    return models.load_model(source, weights, shipped={"glyphnet": GLYPHNET}, **options)


def load_study(
    source: str | Path,
    *,
    data: str | Path | None = None,
    weights: str | Path | None = None,
    store: str | Path | None = None,
    **changes: Any,
) -> Study:
    """A study from a TOML file.

    Parameters
    ----------
    source
        Name of a study that ships (:func:`shipped_studies`), or path of a file. The chapter
        :doc:`Your own network </book/your-network>` shows one.
    data, weights
        Folder of the images (or file that lists them) and file of the weights, if other than the study says.
    store
        Folder of results: each study gets a folder of its own in it. By default ``$PURE_NB_STORE``, or the
        user's cache.
    changes
        As for :meth:`Study.using`: ``n=50``, ``device="cuda"``.

    Returns
    -------
    Study
        With nothing computed yet.

    Raises
    ------
    StudyError
        If there is no such study, or it is not as expected.
    ModelError, ImageError, LayerError
        If its network, images or layers can't be had.
    """
    path = _study_path(source)
    try:
        text = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise StudyError(f"{str(path)!r} is not valid TOML: {problem}") from problem
    unknown = set(text) - {"name", "model", "images", "parameters", "run"}
    if unknown or not {"model", "images", "parameters"} <= set(text):
        raise StudyError(
            f"{str(path)!r}: expected the tables [model], [images] and [parameters], and optionally a name and [run]; "
            f"found {sorted(text)}"
        )
    tables = {table: text.get(table, {}) for table in ("model", "images", "parameters", "run")}
    for table, entries in tables.items():
        if not isinstance(entries, dict):
            raise StudyError(f"{str(path)!r}: expected the table [{table}], got {table} = {entries!r}")
        for entry in {"source", "root", "weights"} & set(entries):
            if not isinstance(entries[entry], str):
                raise StudyError(f"{str(path)!r}: {entry} of [{table}] must be a text, got {entries[entry]!r}")
    folder = path.parent
    model_options, image_options = dict(text["model"]), dict(text["images"])
    try:
        if weights is not None:
            model_options["weights"] = Path(weights).absolute()
        elif "weights" in model_options:
            model_options["weights"] = _expanded(model_options["weights"], "--weights")
        model = load_model(model_options.pop("source"), folder=folder, **model_options)
        images = repeated(model, _images(image_options, data, folder))
    except KeyError as problem:
        raise StudyError(f"{str(path)!r} lacks the entry {problem}") from problem
    except TypeError as problem:
        raise StudyError(f"{str(path)!r} has an entry that is not known: {problem}") from problem
    name = word(text.get("name", path.stem))
    run = tables["run"]
    if unknown := set(run) - (set(RUN) - {"client"}):
        raise StudyError(f"{str(path)!r} has an entry in [run] that is not known: {sorted(unknown)[0]!r}")
    # A device that this process lacks may be one that a cluster has.
    run |= {option: changes.pop(option) for option in RUN if option in changes}
    study = Study(name, model, images, checked(text["parameters"]), Store(store_folder(store) / name), Run(**run))
    return study.using(**changes)


def shipped_studies() -> list[str]:
    """Names of the studies in the package."""
    return sorted(entry.name[:-5] for entry in _shipped().iterdir() if entry.name.endswith(".toml"))


def _shipped() -> Path:
    return Path(str(resources.files("pure_nb") / "studies"))


def _study_path(source: str | Path) -> Path:
    path = Path(source)
    if path.suffix == ".toml":
        if not path.is_file():
            raise StudyError(f"there is no study file {str(path)!r}")
        return path
    shipped = _shipped() / f"{source}.toml"
    if not shipped.is_file():
        raise StudyError(
            f"there is no study {str(source)!r}; name a .toml file, or one that ships: {', '.join(shipped_studies())}"
        )
    return shipped


def _images(options: dict[str, Any], data: str | Path | None, folder: Path) -> Images:
    synsets = options.pop("synsets", {})
    if not isinstance(synsets, dict) or not all(isinstance(name, str) for name in synsets.values()):
        raise StudyError(f'[images]: expected synsets as in {{king = "king.n.10"}}, got {synsets!r}')
    images = _sourced(options.pop("source"), options, data, folder)
    return replace(images, synsets={**images.synsets, **synsets}) if synsets else images


def _sourced(source: str, options: dict[str, Any], data: str | Path | None, folder: Path) -> Images:
    """Images of the source that a study names."""
    if source == "glyphs":
        if data is not None:
            raise StudyError(f"the glyph scenes are drawn and not read, so there is no use for --data {str(data)!r}")
        try:
            return glyph_images(**options)
        except ArgumentError as problem:
            raise StudyError(f"[images]: {problem}") from problem
    kind, _, name = source.partition(":")
    known = {"folder": not name, "paths": not name, "huggingface": bool(name), "torchvision": _of_torchvision(name)}
    if not known.get(kind):
        raise StudyError(
            f"images from {source!r} are not known; expected 'glyphs', 'folder', 'paths', 'torchvision:NAME' or "
            "'huggingface:NAME'"
        )
    if kind == "huggingface" and data is None and "root" not in options:
        return _fetched(name, options)
    root = Path(data) if data is not None else folder / _expanded(options["root"], "--data")
    options.pop("root", None)
    if kind == "huggingface":
        return _kept(name, root, options)
    if kind == "torchvision":
        mine = data is not None or root.resolve().is_relative_to(folder.resolve())
        return _torchvision_images(name, root, options, mine)
    return folder_images(root, **options) if kind == "folder" else path_images(root, **options)


def _of_torchvision(name: str) -> bool:
    """Whether torchvision has such a data set."""
    found = getattr(datasets, name, None)
    return isinstance(found, type) and issubclass(found, Dataset)


def _torchvision_images(name: str, root: Path, options: dict[str, Any], mine: bool) -> Images:
    """A data set of torchvision; ``mine`` says that it may be fetched into its folder, or unpacked there."""
    made, reading = getattr(datasets, name), _reading(options)
    how: dict[str, Any] = {"transform": _preprocessing(options)}
    if "download" in inspect.signature(made).parameters:
        how["download"] = mine
    elif not mine:  # without that argument, some unpack archives or keep indices beside the data
        raise ImageError(
            f"torchvision's {name} may write to its folder, and {str(root)!r} lies outside of the study's: give the "
            "folder yourself (--data PATH)"
        )
    try:
        found = made(str(root), **how, **options)
    except (OSError, RuntimeError) as problem:
        said = (
            "can't be fetched"
            if mine
            else "is not fetched into a folder outside of the study's; give the folder yourself (--data PATH)"
        )
        raise ImageError(f"torchvision's {name} is not in {str(root)!r} and {said}: {problem}") from problem
    if getattr(found, "loader", None) is default_loader:
        found.loader = Reader(**reading)
    elif reading:
        raise StudyError(
            f"[images]: torchvision's {name} reads its pictures by itself and does not take {', '.join(reading)}"
        )
    return Images(found, name)


def _reading(options: dict[str, Any]) -> dict[str, Any]:
    """How pictures are read, out of a study's options."""
    return {name: options.pop(name) for name in ("turned", "white") if name in options}


def _preprocessing(options: dict[str, Any]) -> Any:
    """The transform that a study asks for; pictures keep their size unless it says otherwise."""
    sizes = {name: options.pop(name, None) for name in ("resize", "crop")}
    return preprocessing(**sizes, mean=options.pop("mean"), std=options.pop("std"), grey=options.pop("grey", False))


def _fetched(name: str, options: dict[str, Any]) -> Images:
    """A data set of Hugging Face's hub, or of the user's cache of it."""
    load = _hub().load_dataset
    split, config = options.pop("split"), options.pop("config", None)
    try:
        rows = load(name, config, split=split)
    except Exception as problem:  # its libraries raise a dozen kinds
        raise ImageError(
            f"Hugging Face's {name} (split {split!r}, config {config!r}) can't be fetched: {type(problem).__name__}: "
            f'{problem}. Without network, bring a folder that its save_to_disk made: root = "...", or --data PATH'
        ) from problem
    return _hub_images(name, rows, options)


def _kept(name: str, root: Path, options: dict[str, Any]) -> Images:
    """A data set of Hugging Face that was saved to a folder."""
    load = _hub().load_from_disk
    split = options.pop("split", None)
    options.pop("config", None)
    try:
        rows = load(str(root))
    except Exception as problem:
        raise ImageError(
            f"{str(root)!r} is no folder that save_to_disk of Hugging Face's datasets made: {problem}"
        ) from problem
    if isinstance(rows, dict):
        if split not in rows:
            raise ImageError(
                f"{str(root)!r} has the splits {', '.join(map(repr, rows))}, not {split!r}: name one of them"
            )
        rows = rows[split]
    return _hub_images(name, rows, options)


def _hub_images(name: str, rows: Any, options: dict[str, Any]) -> Images:
    columns = options.pop("columns", None)
    if columns is not None:
        if not isinstance(columns, list) or not set(columns) <= set(rows.column_names):
            raise ImageError(f"{name} has the columns {rows.column_names}, expected some of them, got {columns!r}")
        rows = rows.select_columns(columns)
    reading = _reading(options)
    return as_images(rows, name, transform=preprocessing(**options), **reading)


def _hub() -> Any:
    with needed("huggingface", "data sets of Hugging Face need", ImageError):
        return import_module("datasets")


def _expanded(text: str, flag: str) -> str:
    """A path with its environment variables filled in."""
    for variable in re.findall(r"\$\{?(\w+)\}?", text):
        if variable not in os.environ:
            raise StudyError(f"the study needs {text!r}: set the environment variable {variable}, or give {flag} PATH")
    return os.path.expandvars(text)
