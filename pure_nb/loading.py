"""Studies on disk: a small TOML file says what is studied, over which images, and how.

Its table ``[images]`` names a ``source``:

=======================  =============================================================================================
``"glyphs"``             the world that ships; ``length``, ``seed``
``"marked-glyphs"``      the same with a mark in some; also ``share``, ``others``
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
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset
from torchvision import datasets
from torchvision.datasets.folder import default_loader

from pure_nb._imports import needed
from pure_nb._publication import MANIFEST
from pure_nb.compute.store import Store, store_folder
from pure_nb.errors import ArgumentError, ImageError, StudyError
from pure_nb.glyphs import glyph_images
from pure_nb.glyphs.marks import marked_images
from pure_nb.glyphs.network import NETWORKS
from pure_nb.images._fitting import repeated
from pure_nb.images.data import Images
from pure_nb.images.sources import Reader, as_images, folder_images, path_images, preprocessing
from pure_nb.judges.zero_shot import open_clip_network
from pure_nb.network import models
from pure_nb.network.dictionary import anchored
from pure_nb.parameters import RUN, Run, check_name, checked
from pure_nb.published import HUB, load_published
from pure_nb.study import Study

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

STUDIES = Path(__file__).with_name("studies")
"""The files of those that ship."""

SHIPPED = STUDIES / "results"
"""What is known of them without computing; ``tools/ship_results.py`` makes it."""

PHOTOGRAPHS = Path(__file__).parents[1] / "book" / "photographs"
"""The published study ``"photographs"``, beside the book and in no wheel; ``tools/make_photographs.py`` makes it."""


@dataclass(frozen=True)
class Table:
    """What a study's file says of its images: the rest of its source's name, the other entries, and their place."""

    name: str
    options: dict[str, Any]
    data: Path | None
    folder: Path

    def root(self) -> Path:
        """Where they lie: what the user has named, or else the entry ``root``."""
        if self.data is None:
            return self.folder / _expanded(self.options.pop("root"), "--data")
        self.options.pop("root", None)
        return self.data


def load_model(source: str, weights: str | Path | None = None, **options: Any) -> nn.Module:
    """Make a network and fill in its weights: ``"glyphnet"``, the one that ships, a sibling of it, or any other.

    A sibling has another last stage: ``"glyphnet-16"``, ``-32``, ``-64`` and ``-128`` of so many channels, trained
    alike; ``"glyphnet-shared"`` of 48, of which half are shared by two given classes each; ``"glyphnet-shortcut"`` took
    a shortcut, see :mod:`pure_nb.glyphs.marks`. ``"glyphvit"`` is a small transformer,
    :class:`pure_nb.glyphs.vit.GlyphViT`. ``"open_clip:NAME"`` is a visual tower of CLIP with words as its
    outputs, :class:`pure_nb.judges.zero_shot.ZeroShot`.

    Parameters
    ----------
    source, weights, options
        As for :func:`pure_nb.network.models.load_model`, which it calls; of CLIP the options are
        ``outputs=["cat", ...]`` and perhaps ``prompts=["a photo of a {}."]``.

    Examples
    --------
    >>> model = load_model("glyphnet")
    >>> model(torch.rand(2, 3, 96, 96)).shape
    torch.Size([2, 48])
    """
    if source.startswith("open_clip:"):
        return open_clip_network(source.partition(":")[2], weights, **options)
    return models.load_model(source, weights, shipped=NETWORKS, **options)


def load_study(
    source: str | Path,
    *,
    data: str | Path | None = None,
    weights: str | Path | None = None,
    store: str | Path | None = None,
    **changes: Any,
) -> Study:
    """A study from a TOML file, or a published one.

    Parameters
    ----------
    source
        Name of a study that ships (:func:`shipped_studies`), or path of a file. The chapter
        :doc:`Your own network </book/your-network>` shows one. Or a published study: ``"photographs"``, which lies
        beside the book (elsewhere, where ``$PURE_NB_PHOTOGRAPHS`` says) unless a folder of that name here holds one;
        the folder that :func:`pure_nb.publishing.publish` wrote; or ``"hf://owner/name"`` (``@`` a revision) for one on
        Hugging Face's hub. It needs neither the network nor the images for what was published; with ``model=...`` and
        ``images=...``, which must be the same, it can compute the rest.
    data, weights
        Folder of the images (or file that lists them) and file of the weights, if other than a TOML file says.
    store
        Folder of results: each study gets a folder of its own in it. By default ``$PURE_NB_STORE``, or the
        user's cache.
    changes
        As for :meth:`Study.replace`: ``n_references=50``, ``device="cuda"``.

    Returns
    -------
    Study
        With nothing computed yet.

    Raises
    ------
    StudyError
        If there is no such study, or it is not as expected.
    ModelError, ImageError, LayerError
        If its network, images or layers are not available.

    Examples
    --------
    >>> study = load_study("glyphs", n_references=50)
    >>> study.parameters.target, study.parameters.n_references
    ('layer4', 50)
    """
    source = _photographs() if str(source) == "photographs" else source
    path = Path(source) if Path(source).suffix == ".toml" else STUDIES / f"{source}.toml"
    ships = source == path.stem and path.is_file()  # by its name, and not by the path of a folder called so
    if str(source).startswith(HUB) or (source != "" and Path(source).is_dir() and not ships):
        if data is not None or weights is not None:
            raise StudyError(f"{str(source)!r} is a published study, which takes model=... and images=... instead")
        return load_published(source, store=store, **changes)
    if not path.is_file():
        what = "study file" if path == Path(source) else "study"
        known = ", ".join(shipped_studies())
        raise StudyError(f"there is no {what} {str(source)!r}; name a .toml file, or one that ships: {known}")
    tables = _tables(path)
    network, run, folder = tables["model"], tables["run"], path.parent
    if weights is not None:
        network["weights"] = Path(weights).absolute()
    elif "weights" in network:
        network["weights"] = _expanded(network["weights"], "--weights")
    try:
        model = load_model(network.pop("source"), folder=folder, **network)
        images = repeated(model, _images(tables["images"], data, folder))
    except KeyError as problem:
        raise StudyError(f"{str(path)!r} lacks the entry {problem}") from problem
    except TypeError as problem:
        raise StudyError(f"{str(path)!r} has an entry that is not known: {problem}") from problem
    name = check_name(tables["name"])
    if unknown := set(run) - (set(RUN) - {"client"}):
        raise StudyError(f"{str(path)!r} has an entry in [run] that is not known: {sorted(unknown)[0]!r}")
    # A device that this process lacks may be one that a cluster has.
    run |= {option: changes.pop(option) for option in RUN if option in changes}
    made: dict[str, Any] = {"name": name, "model": model, "images": images, "run": Run(**run)}
    made |= {field: changes.pop(field) for field in made if field in changes}
    asked = tables["parameters"]
    if isinstance(target := asked.get("target"), str):
        asked["target"] = anchored(target, folder)
    parameters = checked({**asked, **changes})
    made["notes_file"] = None if folder == STUDIES else path.with_suffix(".notes.toml")
    return Study(parameters=parameters, store=Store(store_folder(store) / name, SHIPPED), **made)


def shipped_studies() -> list[str]:
    """Names of the studies in the package.

    ``"photographs"`` is not among them: it lies beside the book, see :func:`load_study`.

    Examples
    --------
    >>> shipped_studies()
    ['cifar10-resnet20', 'glyphs', 'glyphs-shared', ...]
    """
    return sorted(path.stem for path in STUDIES.glob("*.toml"))


def _photographs() -> Path:
    """The folder of the study of photographs: the user's own, if there is one here, or else the book's."""
    if (own := Path("photographs") / MANIFEST).is_file():
        return own.parent
    folder = Path(os.environ.get("PURE_NB_PHOTOGRAPHS") or PHOTOGRAPHS)
    if not folder.is_dir():
        raise StudyError(
            f"the published study 'photographs' is not in {str(folder)!r}: set PURE_NB_PHOTOGRAPHS to the folder "
            "book/photographs of a clone of https://github.com/pure-nb/pure-nb, since no wheel holds it"
        )
    return folder


def _tables(path: Path) -> dict[str, Any]:
    """The name and the tables of a study's file, all of them there."""
    try:
        text = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise StudyError(f"{str(path)!r} is not valid TOML: {problem}") from problem
    if not {"model", "images", "parameters"} <= set(text) <= {"name", "model", "images", "parameters", "run"}:
        raise StudyError(
            f"{str(path)!r}: expected the tables [model], [images] and [parameters], and optionally a name and [run]; "
            f"found {sorted(text)}"
        )
    text.setdefault("run", {})
    for table, entries in text.items():
        if table == "name":
            continue
        if not isinstance(entries, dict):
            raise StudyError(f"{str(path)!r}: expected the table [{table}], got {table} = {entries!r}")
        for entry in {"source", "root", "weights"} & set(entries):
            if not isinstance(entries[entry], str):
                raise StudyError(f"{str(path)!r}: {entry} of [{table}] must be a text, got {entries[entry]!r}")
    return {"name": path.stem, **text}


def _images(options: dict[str, Any], data: str | Path | None, folder: Path) -> Images:
    """The images that the table of a study asks for."""
    synsets = options.pop("synsets", {})
    if not isinstance(synsets, dict) or not all(isinstance(name, str) for name in synsets.values()):
        raise StudyError(f'[images]: expected synsets as in {{king = "king.n.10"}}, got {synsets!r}')
    source = options.pop("source")
    kind, _, name = source.partition(":")
    read = SOURCES.get(f"{kind}:NAME" if name else kind)
    if read is None or (kind == "torchvision" and not _of_torchvision(name)):
        *most, last = map(repr, SOURCES)
        raise StudyError(f"images from {source!r} are not known; expected {', '.join(most)} or {last}")
    images = read(Table(name, options, None if data is None else Path(data), folder))
    return replace(images, synsets={**images.synsets, **synsets}) if synsets else images


def _drawn(draw: Callable[..., Images], table: Table) -> Images:
    """Images of a world that ships."""
    if table.data is not None:
        raise StudyError(f"the glyph scenes are drawn and not read, so there is no use for --data {str(table.data)!r}")
    try:
        return draw(**table.options)
    except ArgumentError as problem:
        raise StudyError(f"[images]: {problem}") from problem


def _of_torchvision(name: str) -> bool:
    """Whether torchvision has such a data set."""
    found = getattr(datasets, name, None)
    return isinstance(found, type) and issubclass(found, Dataset)


def _torchvision_images(table: Table) -> Images:
    """A data set of torchvision; it may be fetched into the study's folder or the user's, or unpacked there."""
    name, options, root = table.name, table.options, table.root()
    mine = table.data is not None or root.resolve().is_relative_to(table.folder.resolve())
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


def _hub_images(table: Table) -> Images:
    """A data set of Hugging Face: in a folder, or of its hub or the user's cache of that."""
    with needed("huggingface", "data sets of Hugging Face need", ImageError):
        library = import_module("datasets")
    name, options = table.name, table.options
    fetched = table.data is None and "root" not in options
    rows = _fetched(library, name, options) if fetched else _kept(library, table.root(), options)
    columns = options.pop("columns", None)
    if columns is not None:
        if not isinstance(columns, list) or not set(columns) <= set(rows.column_names):
            raise ImageError(f"{name} has the columns {rows.column_names}, expected some of them, got {columns!r}")
        rows = rows.select_columns(columns)
    reading = _reading(options)
    return as_images(rows, name, transform=preprocessing(**options), **reading)


def _fetched(library: Any, name: str, options: dict[str, Any]) -> Any:
    split, config = options.pop("split"), options.pop("config", None)
    try:
        return library.load_dataset(name, config, split=split)
    except Exception as problem:  # its libraries raise a dozen kinds
        raise ImageError(
            f"Hugging Face's {name} (split {split!r}, config {config!r}) can't be fetched: {type(problem).__name__}: "
            f'{problem}. Without network, bring a folder that its save_to_disk made: root = "...", or --data PATH'
        ) from problem


def _kept(library: Any, root: Path, options: dict[str, Any]) -> Any:
    split, _ = options.pop("split", None), options.pop("config", None)
    try:
        rows = library.load_from_disk(str(root))
    except Exception as problem:
        raise ImageError(
            f"{str(root)!r} is no folder that save_to_disk of Hugging Face's datasets made: {problem}"
        ) from problem
    if isinstance(rows, dict) and split not in rows:
        raise ImageError(f"{str(root)!r} has the splits {', '.join(map(repr, rows))}, not {split!r}: name one of them")
    return rows[split] if isinstance(rows, dict) else rows


def _expanded(text: str, flag: str) -> str:
    """A path with its environment variables filled in."""
    for variable in re.findall(r"\$\{?(\w+)\}?", text):
        if variable not in os.environ:
            raise StudyError(f"the study needs {text!r}: set the environment variable {variable}, or give {flag} PATH")
    return os.path.expandvars(text)


SOURCES: dict[str, Callable[[Table], Images]] = {
    "glyphs": partial(_drawn, glyph_images),
    "marked-glyphs": partial(_drawn, marked_images),
    "folder": lambda table: folder_images(table.root(), **table.options),
    "paths": lambda table: path_images(table.root(), **table.options),
    "torchvision:NAME": _torchvision_images,
    "huggingface:NAME": _hub_images,
}
"""What draws or reads the images of each kind of source."""
