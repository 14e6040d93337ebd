"""Studies on disk: a small TOML file says what is studied, over which images, and how."""

from __future__ import annotations

import os
import re
import sys
from importlib import resources
from pathlib import Path
from typing import Any

from torchvision import datasets, transforms

from pure_nb import models
from pure_nb.data import ImageError, Images, folder_images, glyph_images
from pure_nb.parameters import StudyError, checked, word
from pure_nb.store import Store, store_folder
from pure_nb.study import Study

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


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
        Name of a study that ships (:func:`shipped_studies`), or path of a file. The chapter *Real networks* shows one.
    data, weights
        Folder of the images and file of the weights, if other than the study says.
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
    folder = path.parent
    model_options, image_options = dict(text["model"]), dict(text["images"])
    try:
        if weights is not None:
            model_options["weights"] = Path(weights).absolute()
        elif "weights" in model_options:
            model_options["weights"] = _expanded(model_options["weights"], "--weights")
        model = models.load_model(model_options.pop("source"), folder=folder, **model_options)
        images = _images(image_options, data, folder)
    except KeyError as problem:
        raise StudyError(f"{str(path)!r} lacks the entry {problem}") from problem
    except TypeError as problem:
        raise StudyError(f"{str(path)!r} has an entry that is not known: {problem}") from problem
    name = word(text.get("name", path.stem))
    run = text.get("run", {})
    try:
        study = Study(name, model, images, checked(text["parameters"]), Store(store_folder(store) / name), **run)
    except TypeError as problem:
        raise StudyError(f"{str(path)!r} has an entry in [run] that is not known: {problem}") from problem
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
    kind = options.pop("source")
    if kind == "glyphs":
        try:
            return glyph_images(**options)
        except ValueError as problem:
            raise StudyError(f"[images]: {problem}") from problem
    root = Path(data) if data is not None else folder / _expanded(options["root"], "--data")
    options.pop("root", None)
    if kind == "folder":
        return folder_images(root, **options)
    name = kind.removeprefix("torchvision:")
    if name == kind or not hasattr(datasets, name):
        raise StudyError(f"images from {kind!r} are not known; expected 'glyphs', 'folder' or 'torchvision:NAME'")
    return _torchvision_images(name, root, options)


def _torchvision_images(name: str, root: Path, options: dict[str, Any]) -> Images:
    """A data set of torchvision, downloaded where it is not there."""
    steps = [transforms.ToTensor(), transforms.Normalize(options.pop("mean"), options.pop("std"))]
    try:
        dataset = getattr(datasets, name)(str(root), download=True, transform=transforms.Compose(steps), **options)
    except (OSError, RuntimeError) as problem:
        raise ImageError(f"torchvision's {name} is not in {str(root)!r} and can't be fetched: {problem}") from problem
    return Images(dataset, name)


def _expanded(text: str, flag: str) -> str:
    """A path with its environment variables filled in."""
    for variable in re.findall(r"\$\{?(\w+)\}?", text):
        if variable not in os.environ:
            raise StudyError(f"the study needs {text!r}: set the environment variable {variable}, or give {flag} PATH")
    return os.path.expandvars(text)
