"""An atlas: a static site with a page for every neuron of a study, to read, to search and to share.

It is a folder of plain files that works from a disk and from any web server: ``index.html`` with all neurons, the most
polysemantic first; ``17.html`` with reference images, virtual neurons, circuit, classes and scores of neuron 17;
``lower/5.html`` for each lower channel that carries one of them. What the pages' explorers show is beside them:
``data/17.js``, and in ``images`` sheets of reference images, each of which is there once, so that a page loads little.
``images.json`` tells which are in which.

The chapter :doc:`Your own network </book/your-network>` makes one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pure_nb.errors import StudyError
from pure_nb.show.facts import METHODS, Atlas
from pure_nb.show.pages import write_pages
from pure_nb.show.pictures import draw, write_text

if TYPE_CHECKING:
    from pure_nb.judges.embedders import Embedder
    from pure_nb.study import Study


def write(
    study: Study,
    folder: Path | str,
    *,
    channels: Sequence[int] | None = None,
    methods: Sequence[str] = METHODS[:1],
    count: int = 100,
    embedder: Embedder | None = None,
    side: int = Atlas.side,
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
        By what explorers split neurons: ``"circuits"``, the study's own, and any others of
        :data:`~pure_nb.show.facts.METHODS`.
    count
        The strongest reference images that get a picture.
    embedder
        With a text tower, such as CLIP: names the virtual neurons.
    side
        Pixels to which the longer side of an image is scaled down: more for crops that are to be enlarged.
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
    made = Atlas(study, tuple(methods), count, embedder, side)
    _require_own(folder)
    every = range(study.references.channels) if channels is None else channels
    chosen = [study.neuron(channel).channel for channel in every]
    write_text(folder / "study.txt", made.identity)  # first: the book's chapters run while their atlas is drawn
    # The index needs all of them, and so no neuron's circuits are computed again on its own.
    study.neurons  # noqa: B018
    if channels is None:
        study.layouts  # noqa: B018
    draw(made, folder, [channel for channel in study.neurons["channel"].tolist() if channel in chosen])
    write_pages(made, folder, chosen, home)
    return folder / "index.html"


def identity_of(folder: Path) -> str:
    """:attr:`Atlas.identity` of an atlas that is written to a folder; "" if there is none."""
    path = folder / "study.txt"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def _require_own(folder: Path) -> None:
    """Raise unless a folder is empty, not there, or holds an atlas."""
    index = folder / "index.html"
    if folder.exists() and not folder.is_dir():
        raise StudyError(f"{str(folder)!r} is a file; an atlas is written to a folder")
    if index.exists() and 'content="pure_nb atlas"' not in index.read_text(encoding="utf-8", errors="replace"):
        raise StudyError(f"{str(index)!r} is another site's page; an atlas goes to an empty folder, or to its own")
