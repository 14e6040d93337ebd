"""An atlas: a static site with a page for every neuron of a study, to read, to search and to share.

It is a folder of plain files that works from a disk and from any web server: ``index.html`` with all neurons, the most
polysemantic first; ``17.html`` with reference images, virtual neurons, circuit, classes and scores of neuron 17;
``lower/5.html`` for each lower channel that carries one of them. What the pages' explorers show is beside them:
``data/17.js``, and in ``images`` sheets of reference images, each of which is there once, so that a page loads little;
``images.json`` tells which are in which. Where it is asked for, ``outputs/3.html`` tells what carries output 3.
``compare.html`` shows two neurons at a time. Of several layers each is such a folder, ``layer4/17.html``; so is each of
two networks, ``A/17.html``, beside a page with the pairs of their parts.

The chapter :doc:`Your own network </book/your-network>` makes one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pure_nb.errors import ArgumentError
from pure_nb.show.facts import METHODS, Atlas
from pure_nb.show.layers import write_layer, write_layers
from pure_nb.show.outputs import asked
from pure_nb.show.pairs import write_pairs

if TYPE_CHECKING:
    from pure_nb.judges.embedders import Embedder
    from pure_nb.study import Study


# What a site shows: most are left as they are.
def write(  # noqa: PLR0913
    study: Study,
    folder: Path | str,
    *,
    channels: Sequence[int] | None = None,
    methods: Sequence[str] = METHODS[:1],
    count: int = 100,
    embedder: Embedder | None = None,
    words: Sequence[str] | None = None,
    side: int = Atlas.side,
    home: str = "",
    layers: Sequence[str] = (),
    other: Study | None = None,
    outputs: Sequence[str | int] | str = (),
    graph: bool = False,
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
        With a text tower, such as CLIP: names the virtual neurons, finds them by words, and those that are alike.
    words
        What they may be called, and what can be looked for; the names of the network's classes by default.
    side
        Pixels to which the longer side of an image is scaled down: more for crops that are to be enlarged.
    home
        Address of a page that the atlas is part of, for a link back.
    layers
        Several layers, each in a folder of its own, linked from part to part; by default only the study's target.
        Of the uppermost those ``channels`` are written, of the others those that carry them.
    other
        A second study, such as of another checkpoint or layer: each gets a folder of its own, ``A`` and ``B``, and a
        page shows their parts in pairs, by :func:`pure_nb.show.comparing.compare`: what is the same, what appeared,
        vanished, split or merged. ``channels`` are then those of the first, beside what is like them.
    outputs
        Names or numbers of outputs that get a page, with the parts of the (uppermost) layer that carry them over the
        labelled images of their classes; ``"all"`` for all that have images. Each takes a backward pass for every such
        image and channel that carries it.
    graph
        Show on these pages the circuits through the layers of the site, or else through the atlas's layer and the lower
        one, which is taken apart for that; see :meth:`pure_nb.study.Study.graph`.

    Returns
    -------
    Path
        ``index.html``.

    Raises
    ------
    StudyError
        If a method is not known, the folder holds another site, the parts of two studies can't be compared, or there
        are no images of an output.
    LayerError
        If a layer can't be studied, or not through the next of them.
    ArgumentError
        If there is no such channel or output.

    Examples
    --------
    >>> write_atlas(study, folder / "atlas", channels=[3], count=4).name
    'index.html'
    """
    folder = Path(folder)
    made = Atlas(study, tuple(methods), count, embedder, side, None if words is None else tuple(words))
    if outputs:
        made = replace(made, outputs=asked(study, outputs), graph=graph)
    elif graph:
        raise ArgumentError("a graph is shown on the pages of outputs, and none are asked for; name some, or all")
    if other is not None:
        if layers or outputs:
            raise ArgumentError("two studies are shown side by side by one layer each, got layers or outputs, too")
        write_pairs(made, replace(made, study=other), folder, channels, home)
    elif layers:
        write_layers(made, layers, folder, channels, home)
    else:
        write_layer(made, folder, channels, home)
    return folder / "index.html"


def identity_of(folder: Path) -> str:
    """:attr:`Atlas.identity` of an atlas that is written to a folder; "" if there is none."""
    path = folder / "study.txt"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""
