"""The site of a layer, and that of several: one below the other, each in a folder of its own, linked part to part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pure_nb.compute.store import write_text
from pure_nb.errors import StudyError
from pure_nb.network.layers import activations
from pure_nb.parameters import NEAREST
from pure_nb.reasons.together import rank
from pure_nb.show.facts import Atlas
from pure_nb.show.pages import Users, carried, write_pages, write_start
from pure_nb.show.pictures import draw


def write_layer(made: Atlas, folder: Path, channels: Sequence[int] | None, home: str) -> None:
    """Write the site of one layer.

    Parameters
    ----------
    made
        The atlas of the layer.
    folder, channels, home
        As for :func:`pure_nb.show.atlas.write`.
    """
    write_pages(made, folder, drawn(made, folder, channels), home)


def drawn(made: Atlas, folder: Path, channels: Sequence[int] | None) -> list[int]:
    """Write the data and pictures of an atlas, and tell of which channels: all for None."""
    study = made.study
    require_own(folder)
    # Of a published study all may be some.
    every = sorted(study.neurons["channel"].tolist()) if channels is None else channels
    chosen = [study.neuron(channel).channel for channel in every]
    write_text(folder / "study.txt", made.identity)  # first: the book's chapters run while their atlas is drawn
    # The index needs all of them, and so no neuron's circuits are computed again on its own.
    ranked = study.neurons["channel"].tolist()
    if channels is None:
        study.layouts  # noqa: B018
    wanted = set(chosen)
    draw(made, folder, [channel for channel in ranked if channel in wanted])
    return chosen


def write_layers(made: Atlas, layers: Sequence[str], folder: Path, channels: Sequence[int] | None, home: str) -> None:
    """Write a site of several layers.

    Parameters
    ----------
    made
        An atlas of any layer of the network.
    layers
        Their names. Each is split by circuits through the next one below, the lowest through what is nearest below it;
        if it is the study's own target, as the study says.
    folder
        Gets a folder for each layer, and a page that leads to them.
    channels
        Which neurons of the uppermost; of the others those that carry these. All by default.
    home
        Address of a page to link back to; "" is none.
    """
    require_own(folder)
    made_of = stacked(made, layers)
    rank([one.study for one in made_of])
    if channels is not None:
        channels = [made_of[0].study.neuron(channel).channel for channel in channels]
    written: dict[Atlas, Sequence[int] | None] = {}
    own = {}
    for one in made_of:  # all pictures before any page, since a page shows those of the layer below
        written[one] = channels
        own[one] = drawn(one, folder / one.place, channels)
        channels = None if channels is None else sorted(carried(one, own[one]))
    users: Users | None = None
    back = f"../{home}" if home and not (home.startswith("/") or ":" in home) else home
    for above, one in zip([None, *made_of], made_of):
        users = write_pages(one, folder / one.place, own[one], back, above, users)
    write_start(written, folder, home)


def stacked(made: Atlas, layers: Sequence[str]) -> list[Atlas]:
    """The atlas of each layer, the uppermost first, each with the one below it."""
    study = made.study
    if len(set(layers)) < len(layers):
        raise StudyError(f"each layer is named once, got {', '.join(map(repr, layers))}")
    with study.run.prepared(study.model):
        example = study.images.example[None].to(study.run.local_device)
        upward = list(activations(study.model, example, layers))  # in the order in which they run
    found: list[Atlas] = []
    lower = study.parameters.lower if upward[0] == study.parameters.target else NEAREST
    for layer in upward:
        own = study.replace(target=layer, lower=lower)
        own.shapes  # noqa: B018  all are checked before any is written
        found.append(replace(made, study=own, under=found[-1] if found else None))
        lower = layer
    places = [one.place for one in found]
    if len(set(places)) < len(places):
        raise StudyError(f"layers {', '.join(map(repr, upward))} would share a folder; write them one by one")
    return found[::-1]


def require_own(folder: Path) -> None:
    """Raise unless a folder is empty, not there, or holds an atlas."""
    index = folder / "index.html"
    if folder.exists() and not folder.is_dir():
        raise StudyError(f"{str(folder)!r} is a file; an atlas is written to a folder")
    if index.exists() and 'content="pure_nb atlas"' not in index.read_text(encoding="utf-8", errors="replace"):
        raise StudyError(f"{str(index)!r} is another site's page; an atlas goes to an empty folder, or to its own")
