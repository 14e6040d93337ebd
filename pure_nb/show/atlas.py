"""An atlas: a static site with a page for every neuron of a study, to read, to search and to share.

It is a folder of plain files that works from a disk and from any web server: ``index.html`` with all neurons, the most
polysemantic first; ``17.html`` with reference images, virtual neurons, circuit, classes and scores of neuron 17;
``lower/5.html`` for each lower channel that carries one of them. What the pages' explorers show is beside them:
``data/17.js``, and the reference images in ``crops/17.webp`` and ``whole/17.webp``, so that a page loads little.

The chapter :doc:`Your own network </book/your-network>` makes one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from pure_nb._imports import needed
from pure_nb.compute.bars import progress_bar
from pure_nb.compute.store import write_atomically
from pure_nb.errors import LayerError, StudyError
from pure_nb.figures.colours import part_colour
from pure_nb.figures.plots import image_grid
from pure_nb.figures.render import Picture, View
from pure_nb.images.labels import display_names
from pure_nb.judges.truth import scores
from pure_nb.methods.descriptions import LRP, OWN, Description, descriptions
from pure_nb.methods.virtual import CHOICES, kmeans_some, part_name
from pure_nb.parameters import NEAREST
from pure_nb.show.plane import points_apart, relettered

with needed("show", "an atlas needs"):
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

if TYPE_CHECKING:
    from pure_nb.judges.embedders import Embedder
    from pure_nb.study import Study

STATIC = Path(__file__).with_name("static")
"""The templates, styles and scripts of the pages."""

SHOWN = {"circuits": OWN, "circuits (LRP)": LRP, "activations": "activation"}
METHODS = tuple(SHOWN)
"""Descriptions by which an explorer can split a neuron into parts; the first is the study's own."""

FORMAT = 4
"""Part of what finished pictures are known by; raised when this module draws them differently."""

WEBP = {"quality": 82, "method": 2}
"""How pictures are saved; Pillow's own method, 4, makes them 4 % smaller in twice the time."""

CROP, WHOLE, THUMB = 72, 96, 48
"""Sides in pixels of a reference image: cropped, whole, and in the index."""

COLUMNS, LOWER, CARRIERS = 10, 8, 6
"""Reference images in a row of a neuron's file, those that are shown of a lower channel, and the lower channels that a
page names: those that carry most of the relevance, on average."""

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz-"
"""Stand for the parts in the data of an explorer, the last for the part -1."""

PAIRS, TOGETHER = 1024, 16
"""Reference images that are drawn at once, and lower channels: few, so that the progress bar moves."""


class Carrier(NamedTuple):
    """A lower channel, and the share of a part's relevance that it carries, on average over the part's images."""

    channel: int
    share: float


class Part(NamedTuple):
    """A virtual neuron, or the whole neuron (``name`` "all"), as a page shows it."""

    name: str
    size: int
    meanings: str
    label: str
    carriers: tuple[Carrier, ...]


@dataclass(frozen=True, eq=False)
class Atlas:
    """What an atlas is made of: :func:`write` writes it, and says what is what."""

    study: Study
    methods: tuple[str, ...] = METHODS[:1]
    count: int = 100
    embedder: Embedder | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.methods if name not in METHODS]
        if unknown or METHODS[0] not in self.methods:
            raise StudyError(
                f"methods must be {METHODS[0]!r} and any of {METHODS[1:]}, got {', '.join(map(repr, self.methods))}"
            )
        if self.count < 1:
            raise StudyError(f"at least one reference image is shown of each neuron, got count={self.count}")
        if self.embedder is not None:
            self.embedder.joint  # noqa: B018  raises where there is no text tower

    @cached_property
    def identity(self) -> str:
        """Stands for the study."""
        return _digest([asdict(self.study.parameters), self.study.identity])

    @cached_property
    def key(self) -> str:
        """Stands for all that the pictures and data of a neuron depend on."""
        told = {"format": FORMAT, "methods": self.methods, "count": self.count}
        named = self.embedder.fingerprint if self.embedder else None
        return f"{self.identity} {_digest([told, named])}"

    @cached_property
    def described(self) -> dict[str, Description]:
        """The descriptions by which each method splits a neuron into parts."""
        given = descriptions(self.study)
        return {name: given[SHOWN[name]] for name in self.methods}

    @cached_property
    def names(self) -> pd.Series[str] | None:
        """What the parts are called, by channel and part; None without an embedder."""
        if self.embedder is None:
            return None
        from pure_nb.show.report import part_names  # open_clip takes a second to import

        return part_names(self.study, self.embedder).set_index(["channel", "part"])["label"]

    def label(self, channel: int, part: str) -> str:
        """The word that a part is called; "" where there is none, or none is sure enough."""
        if self.names is None or (channel, part) not in self.names.index:
            return ""
        word = str(self.names.loc[(channel, part)])
        return "" if word == "unsure" else word

    def labels(self, channel: int) -> dict[str, list[NDArray[np.int64]]]:
        """Which part each reference belongs to: by method, with the study's own number of parts, then each choice."""
        own, seed = self.study.virtual_of(channel).labels, self.study.parameters.seed
        active = own >= 0
        found: dict[str, list[NDArray[np.int64]]] = {}
        for name, description in self.described.items():
            vectors = description.of(channel)
            first = own if name == METHODS[0] else kmeans_some(vectors, active, max(1, int(own.max()) + 1), seed=seed)
            every = [first, *(kmeans_some(vectors, active, k, seed=seed) for k in CHOICES)]
            reference = found.get(METHODS[0], every)  # the study's own is the first of all descriptions
            found[name] = [relettered(labels, like) for labels, like in zip(every, reference)]
        return found

    def data(self, channel: int) -> dict[str, Any]:
        """What an explorer needs to know of a neuron."""
        study, neuron, labels = self.study, self.study.neuron(channel), self.labels(channel)
        k = int(labels[METHODS[0]][0].max()) + 1
        names = sorted({name for name in neuron.names if name})
        found: dict[str, Any] = {
            "channel": channel,
            "points": points_apart(study.layout_of(channel)).tolist(),
            "sample": neuron.sample.tolist(),
            "activation": [float(f"{score:.4g}") for score in neuron.score],
            "counts": ["as chosen", *map(str, CHOICES)],
            "parts": {name: ["".join(DIGITS[part] for part in own) for own in every] for name, every in labels.items()},
            "colours": [part_colour(part) for part in range(max(k, *CHOICES))],
            "names": names,
            "label": [names.index(name) if name else -1 for name in neuron.names],
            "known": neuron.objects is not None,
            "part_labels": [self.label(channel, part_name(part)) for part in range(k)],
            "tiles": min(self.count, len(neuron.sample)),
            "columns": COLUMNS,
            "crops": f"crops/{channel}.webp",
            "whole": f"whole/{channel}.webp",
        }
        if neuron.objects is not None:
            found["agreement"] = {
                name: [round(scores(neuron.objects, own)["ami"], 4) for own in every] for name, every in labels.items()
            }
        return found

    def parts(self, channel: int) -> list[Part]:
        """The whole neuron and its virtual neurons."""
        neuron = self.study.neuron(channel)
        k = neuron.virtual.k
        found = []
        for part in [None, *(range(k) if k > 1 else ())]:
            name = "all" if part is None else part_name(part)
            ranks = neuron.members(part)
            mean = neuron.vectors[ranks].mean(axis=0, dtype=np.float64)
            top = np.argsort(-mean, kind="stable")[:CARRIERS].tolist()
            carriers = tuple(Carrier(lower, float(mean[lower])) for lower in top if mean[lower] > 0)
            said = self.label(channel, "whole" if part is None else name)
            found.append(Part(name, len(ranks), neuron.meanings(part), said, carriers))
        return found

    @cached_property
    def below(self) -> Study | None:
        """The study of the lower layer, for its reference images; None where it can't be studied by itself."""
        try:
            below = self.study.replace(target=self.study.parameters.lower, lower=NEAREST)
            below.shapes  # noqa: B018  raises
        except LayerError:
            return None
        return below

    @cached_property
    def without_classes(self) -> str:
        """Why there are no classes; "" if there are."""
        if self.study.classes.take_long:
            return "they take a backward pass for each channel and batch of images, and pure-nb arv did not run yet"
        if why := self.study.classes.without_labels:
            return why
        try:
            self.study.classes.pairs  # noqa: B018  raises where they do not fit into memory
        except LayerError as problem:
            return str(problem)
        return ""

    def classes(self, channel: int) -> list[tuple[str, float]]:
        """Classes that a channel is relevant to, with the share of their images in which it is so, largest first."""
        study, statistics = self.study, self.study.classes.statistics
        classes, share = statistics.strongest_classes(channel, study.parameters.min_frequency)
        return [(self._display_names[study.classes.names[label]], float(own)) for label, own in zip(classes, share)]

    def pairs(self, channel: int) -> list[tuple[str, str, float]]:
        """Pairs of these classes and the cosine of their average relevance vectors, the least alike first."""
        table = self.study.classes.pairs
        own = table[table["channel"] == channel].sort_values("cosine", kind="stable")
        return [
            (self._display_names[one], self._display_names[other], cosine)
            for one, other, cosine in own[["class_1", "class_2", "cosine"]].itertuples(index=False, name=None)
        ]

    @cached_property
    def _display_names(self) -> dict[str, str]:
        names = self.study.classes.names
        return dict(zip(names, display_names(names)))


def write(
    study: Study,
    folder: Path | str,
    *,
    channels: Sequence[int] | None = None,
    methods: Sequence[str] = METHODS[:1],
    count: int = 100,
    embedder: Embedder | None = None,
    home: str = "",
) -> Path:
    """Write an atlas of a study.

    Neurons that are finished are not drawn again, so a run that was stopped goes on where it was.

    Parameters
    ----------
    study
        Any study; its parameter ``crop`` says what pictures are cropped to.
    folder
        Is made if it is not there; an atlas in it is brought up to date.
    channels
        Which neurons; all by default.
    methods
        By what explorers split neurons: ``"circuits"``, the study's own, and any others of :data:`METHODS`.
    count
        The strongest reference images that get a picture.
    embedder
        With a text tower, such as CLIP: names the virtual neurons.
    home
        Address of a page that the atlas is part of, for a link back.

    Returns
    -------
    Path
        ``index.html``.

    Raises
    ------
    StudyError
        If a method is not known, or the folder holds another site.
    ArgumentError
        If there is no such channel.

    Examples
    --------
    >>> write_atlas(study, folder / "atlas", channels=[3], count=4).name
    'index.html'
    """
    folder = Path(folder)
    made = Atlas(study, tuple(methods), count, embedder)
    _require_own(folder)
    every = range(study.references.channels) if channels is None else channels
    chosen = [study.neuron(channel).channel for channel in every]
    _write_text(folder / "study.txt", made.identity)  # first: the book's chapters run while their atlas is drawn
    # The index needs all of them, and so no neuron's circuits are computed again on its own.
    study.neurons  # noqa: B018
    if channels is None:
        study.layouts  # noqa: B018
    draw(made, folder, chosen)
    _write_pages(made, folder, chosen, _templates(made, home))
    return folder / "index.html"


def draw(made: Atlas, folder: Path, channels: Sequence[int]) -> None:
    """Write data and pictures of some neurons, without pages; finished ones are left alone."""
    alive = [channel for channel in channels if made.study.references.alive[channel]]
    missing = [channel for channel in alive if not _is_drawn(made, folder, channel)]
    count = min(made.count, made.study.references.n)
    done = len(alive) - len(missing)
    for channel, own in _pictured(made.study, missing, count, max(1, PAIRS // count), "atlas", done):
        _save(folder / f"crops/{channel}.webp", [view.highlighted(CROP) for view in own])
        _save(folder / f"whole/{channel}.webp", [view.highlighted(WHOLE, crop=False) for view in own])
        _save(folder / f"thumbs/{channel}.webp", [view.highlighted(THUMB) for view in own[:6]], 6)
        # Last, since it says that the neuron is finished.
        text = f"// {made.key}\npureNb.neuron({json.dumps(made.data(channel), separators=(',', ':'))});\n"
        _write_text(folder / f"data/{channel}.js", text)


def _pictured(
    study: Study, channels: Sequence[int], count: int, together: int, what: str, done: int
) -> Iterator[tuple[int, list[View]]]:
    """Each of some channels with its strongest reference images; they are drawn for some channels together."""
    with progress_bar(None, what, done + len(channels), initial=done, unit="channel", shown=study.run.progress) as bar:
        blocks = [list(channels[first : first + together]) for first in range(0, len(channels), together)]
        samples = [study.references.sample[block, :count] for block in blocks]
        pairs = [(np.repeat(block, own.shape[1]), own.ravel()) for block, own in zip(blocks, samples)]
        for number, views in study.crops.drawn(pairs):
            found = iter(views)
            for channel in blocks[number]:
                yield channel, list(islice(found, samples[number].shape[1]))
                bar.update()


def identity_of(folder: Path) -> str:
    """:attr:`Atlas.identity` of an atlas that is written to a folder; "" if there is none."""
    path = folder / "study.txt"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def _is_drawn(made: Atlas, folder: Path, channel: int) -> bool:
    """Whether a neuron's data and pictures are there, and of this atlas."""
    data = folder / f"data/{channel}.js"
    files = [data, *(folder / f"{kind}/{channel}.webp" for kind in ("crops", "whole", "thumbs"))]
    return all(file.is_file() for file in files) and data.read_text(encoding="utf-8").startswith(f"// {made.key}\n")


def _write_pages(made: Atlas, folder: Path, channels: Sequence[int], templates: Environment) -> None:
    study = made.study
    table = study.neurons[study.neurons["channel"].isin(channels)]
    rows = {int(row["channel"]): row for row in table.to_dict("records")}
    parts = {channel: made.parts(channel) for channel in channels if study.references.alive[channel]}
    carried = _carried(parts)
    pictured = _write_lower_pictures(made, folder, sorted(carried))
    order, known = list(rows), not made.without_classes
    neuron, lower = templates.get_template("neuron.html"), templates.get_template("lower.html")
    for place, channel in enumerate(progress_bar(order, "pages", unit="page", shown=study.run.progress)):
        text = neuron.render(
            root="",
            channel=channel,
            row=rows[channel],
            whole=study.virtual_of(channel),
            parts=parts.get(channel, []),
            before=order[place - 1] if place else None,
            after=order[place + 1] if place + 1 < len(order) else None,
            pictured=pictured,
            without_classes=made.without_classes,
            classes=made.classes(channel) if known else [],
            pairs=made.pairs(channel) if known else [],
        )
        _write_text(folder / f"{channel}.html", text)
    for channel, users in carried.items():
        text = lower.render(root="../", channel=channel, users=users, pictured=pictured)
        _write_text(folder / f"lower/{channel}.html", text)
    text = templates.get_template("index.html").render(root="", rows=rows, alive=set(parts), parts=parts)
    for asset in ("explorer/explorer.js", "explorer/explorer.css", "atlas/atlas.js", "atlas/atlas.css"):
        _write_text(folder / Path(asset).name, (STATIC / asset).read_text(encoding="utf-8"))
    _write_text(folder / "index.html", text)


def _carried(parts: Mapping[int, Sequence[Part]]) -> dict[int, list[tuple[int, float]]]:
    """For each lower channel that a page names: the neurons it carries and its share in each, the largest first."""
    found: dict[int, dict[int, float]] = {}
    for channel, every in parts.items():
        for lower, share in (carrier for part in every for carrier in part.carriers):
            own = found.setdefault(lower, {})
            own[channel] = max(own.get(channel, 0.0), share)
    return {lower: sorted(own.items(), key=lambda entry: (-entry[1], entry[0])) for lower, own in sorted(found.items())}


def _write_lower_pictures(made: Atlas, folder: Path, lower: Sequence[int]) -> set[int]:
    """Write reference images of lower channels; returns the channels that have some."""
    below = made.below
    if below is None or not lower:
        return set()
    alive = [channel for channel in lower if below.references.alive[channel]]
    # The key in the name tells whether the picture is of these images and this network.
    paths = {channel: folder / f"lower/{channel}-{made.key}.webp".replace(" ", "-") for channel in alive}
    missing = [channel for channel, path in paths.items() if not path.is_file()]
    done = len(alive) - len(missing)
    for channel, own in _pictured(below, missing, LOWER, TOGETHER, "lower channels", done):
        for old in (folder / "lower").glob(f"{channel}-*.webp"):
            old.unlink()
        _save(paths[channel], [view.highlighted(CROP) for view in own], LOWER)
    return set(alive)


def _templates(made: Atlas, home: str) -> Environment:
    """The templates of an atlas's pages, with what they all tell."""
    loader = FileSystemLoader(STATIC / "atlas")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    study = made.study
    pages.globals |= {
        "study": study.name,
        "network": type(study.model).__name__,
        "p": study.parameters,
        "channels": study.references.channels,
        "images": len(study.images),
        "source": study.images.name,
        "home": home,
        "key": made.key.replace(" ", "-"),
        "said": made.embedder.name if made.embedder else "",
        "unsteady": study.unsteady,
    }
    return pages


def _require_own(folder: Path) -> None:
    """Raise unless a folder is empty, not there, or holds an atlas."""
    index = folder / "index.html"
    if folder.exists() and not folder.is_dir():
        raise StudyError(f"{str(folder)!r} is a file; an atlas is written to a folder")
    if index.exists() and 'content="pure_nb atlas"' not in index.read_text(encoding="utf-8", errors="replace"):
        raise StudyError(f"{str(index)!r} is another site's page; an atlas goes to an empty folder, or to its own")


def _save(path: Path, pictures: Sequence[Picture], columns: int = COLUMNS) -> None:
    """Write pictures of one size as one, without gaps."""
    image = Image.fromarray(image_grid(pictures, columns, gap=0))
    write_atomically(path, lambda temporary: image.save(temporary, format="webp", **WEBP))


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
