"""Images of a class that are explained unlike the others: shortcuts, and odd ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pure_nb.compute.store import write_text
from pure_nb.errors import ArgumentError, StudyError
from pure_nb.figures.render import Picture as Pixels
from pure_nb.figures.render import View
from pure_nb.reasons.class_parts import ClassParts, class_parts
from pure_nb.reasons.explaining import part_references
from pure_nb.reasons.looking import Picture, number_of
from pure_nb.reasons.parts import UNLIKE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pure_nb.study import Study

FEWEST = 3
"""Images of a class, below which none can be unlike the others."""

DIFFER = 3
"""Parts that are shown of an image: those that do more in it than in the others of its class."""


class Odd(NamedTuple):
    """A part by which an image differs: its share of the image's relevance, and its mean share in the others."""

    part: str
    name: str
    share: float
    usual: float
    view: View
    references: list[Pixels]


class Usual(NamedTuple):
    """A part that usually carries a class: its row of :attr:`pure_nb.reasons.class_parts.ClassParts.table`."""

    row: dict[str, Any]
    references: list[Pixels]


class Outlier(NamedTuple):
    """An image that is shown: its row of the table, its picture, and the parts by which it differs."""

    row: dict[str, Any]
    pixels: Pixels
    odd: list[Odd]


@dataclass(frozen=True, eq=False)
class Outliers:
    """The images of classes that are explained unlike the others: :meth:`pure_nb.classes.Classes.outliers`.

    Attributes
    ----------
    study
        By whose parts.
    classes
        What carries each class.
    count
        How many images of each are shown.
    channels
        How many are taken apart in each image.
    """

    study: Study
    classes: tuple[ClassParts, ...]
    count: int
    channels: int

    @cached_property
    def table(self) -> pd.DataFrame:
        """All images, the most unusual first.

        ``class``, and the columns of :attr:`pure_nb.reasons.class_parts.ClassParts.images`; ``usual``, the median of
        ``unusual`` in the class; and ``differs``, the parts that do most here beyond what they do in the other images
        of the class, with their shares of the image's relevance, by size, and the mean share in the others:
        ``"22.C +21% (+2%)"``; ``"22.?"`` where channel 22 is unlike any of its parts.
        """
        import pandas as pd  # late, see pure_nb._imports

        tables = []
        for one in self.classes:
            own = one.images.assign(usual=one.images["unusual"].median())
            own.insert(0, "class", one.name)
            told = dict(zip(one.sample.tolist(), (self._told(one, row) for row in range(len(one.sample)))))
            tables.append(own.assign(differs=own["sample"].map(told)))
        every = pd.concat(tables, ignore_index=True)
        return every.sort_values("unusual", ascending=False, kind="stable", ignore_index=True)

    def _told(self, one: ClassParts, row: int) -> str:
        keys, share, usual = one.shares
        told = (
            f"{one.label(*keys[key])} {share[row, key]:+.0%} ({usual[row, key]:+.0%})"
            for key in _most(share[row], usual[row])
        )
        return ", ".join(told)

    @cached_property
    def shown(self) -> list[tuple[ClassParts, list[Usual], list[Outlier]]]:
        """For each class, that with the most unusual image first, the parts that usually carry it and its outliers."""
        found = []
        for name in self.table["class"].drop_duplicates():
            one = next(one for one in self.classes if one.name == name)
            rows: Any = self.table[self.table["class"] == name].head(self.count).to_dict("records")
            parts: Any = one.table[one.table["part"] != ""].head(DIFFER).to_dict("records")
            usual = [Usual(*both) for both in zip(parts, one.references(DIFFER))]
            found.append((one, usual, [self._outlier(one, row) for row in rows]))
        return found

    def _outlier(self, one: ClassParts, row: dict[str, Any]) -> Outlier:
        labelled, sample = self.study.classes.labelled, int(row["sample"])
        keys, share, usual = one.shares
        place = int(np.flatnonzero(one.sample == sample)[0])
        chosen = _most(share[place], usual[place])
        picture = Picture(labelled, sample, f"image {sample} of {labelled.name}")
        why = self.study.explain(picture, one.number, channels=self.channels)
        odd = []
        for key, view in zip(chosen, why.views([int(keys[key, 0]) for key in chosen])):
            channel, part = keys[key].tolist()
            name = one.part_name(channel, part)
            but = sample if labelled is self.study.images else None
            references = part_references(self.study, channel, None if part == UNLIKE else part, but=but)
            own = float(share[place, key]), float(usual[place, key])
            odd.append(Odd(one.label(channel, part), name, *own, view, references))
        return Outlier(row, why.pixels, odd)

    def figure(self) -> Figure:
        """Each outlier with the parts by which it differs, and their references."""
        from pure_nb.figures.reason_plots import outliers_figure  # late, as in pure_nb.neuron

        return outliers_figure(self)

    def write(self, path: Path | str) -> Path:
        """Write it as ``.html``, one file with all pictures in it; as ``.csv``, the table; or both into a folder.

        Raises
        ------
        PureError
            If Jinja is missing.
        """
        place = Path(path)
        if not place.suffix:
            self.write(place / "outliers.csv")
            return self.write(place / "outliers.html")
        if place.suffix == ".csv":
            write_text(place, self.table.to_csv(index=False))
        elif place.suffix == ".html":
            from pure_nb.reasons.page import outliers_page  # late: it needs an extra

            write_text(place, outliers_page(self))
        else:
            raise ArgumentError(f"outliers are written to an .html or .csv file, or a folder, got {str(path)!r}")
        return place

    def __repr__(self) -> str:
        return f"<Outliers of {len(self.classes)} classes: {len(self.table)} images>"


def outliers(
    study: Study, names: str | int | Sequence[str | int] | None = None, *, count: int = 3, channels: int = 50
) -> Outliers:
    """For each class the images that other parts carry than the others.

    They are not for labels that the network does not agree with: such images are found as well or better by a small
    output. They are for images that it calls what they are labelled, for another reason than the others; see
    ``benchmarks/outliers.py``.

    Parameters
    ----------
    study
        Whose images have labels.
    names
        Names or numbers of classes; by default all that have at least three images.
    count
        How many images of each are shown.
    channels
        How many are taken apart in each image, those that carry most.

    Raises
    ------
    StudyError
        If the images have no labels, or there are fewer than three of a class.
    ArgumentError
        If there is no such class.
    """
    if count < 1:
        raise ArgumentError(f"at least one image of a class is shown, got count={count}")
    if study.classes.without_labels:
        raise StudyError(f"outliers are among the images of a class, and {study.classes.without_labels}")
    chosen: list[Any]
    if names is None:
        labels, known = study.classes._labels
        chosen = np.flatnonzero(np.bincount(labels[labels >= 0], minlength=len(known)) >= FEWEST).tolist()
        if not chosen:
            raise StudyError(
                f"no class has {FEWEST} images in {study.classes.labelled.name!r}, and with fewer none is unlike the "
                "others; give more images"
            )
    else:
        asked, there = [names] if isinstance(names, (str, int)) else list(names), len(study.classes.names)
        chosen = [*dict.fromkeys(number_of(study, one, there) for one in asked)]
        if not chosen:
            raise ArgumentError("no class is named: name one, or leave names out for all")
    found = tuple(class_parts(study, name, channels) for name in chosen)
    for one in found:
        if len(one.sample) < FEWEST:
            raise StudyError(
                f"{one.name!r} has {len(one.sample)} images in {study.classes.labelled.name!r}, and with fewer than "
                f"{FEWEST} none is unlike the others; give more images of it"
            )
    return Outliers(study, found, count, channels)


def _most(share: NDArray[np.float64], usual: NDArray[np.float64]) -> list[int]:
    """The places of the parts that do most here beyond what they usually do, for the class or against it."""
    more = np.abs(share) - np.maximum(0, np.sign(share) * usual)  # all of it, where it usually says the opposite
    return [int(place) for place in np.argsort(-more, kind="stable")[:DIFFER] if more[place] > 0]
