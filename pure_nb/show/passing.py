"""By which of its own virtual neurons a lower channel carries a part of a neuron, in an atlas of several layers.

Of the images of the part, those are looked at in which the channel carries most of it. Each belongs to the virtual
neuron of the channel that is nearest to how the image activated the channel. Of the channel's own references that is
known; of other images it takes a backward pass below the lower layer, which is taken in a site of several layers only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pure_nb.compute.bars import progress_bar
from pure_nb.compute.results import FORMAT
from pure_nb.compute.store import Arrays, Store
from pure_nb.methods.descriptions import describe_pairs
from pure_nb.methods.virtual import part_name
from pure_nb.show.facts import Atlas, Part
from pure_nb.study import Study

LOOKED = 5
"""Images that are looked at of a part and a channel."""

CLEARLY = 0.5
"""A channel is looked at in the parts of which it carries at least so much of the most that it carries of any."""

CELLS = 1024
"""Pairs of a part and a channel that are worked on at once, and kept."""

Cell = tuple[int, int, int]
"""A neuron, the place of a part in its list, where 0 is the whole neuron, and a lower channel."""


def passed_through(made: Atlas, parts: Mapping[int, Sequence[Part]]) -> dict[int, list[Part]]:
    """The parts of neurons, with what is known of the parts of their lower channels.

    Parameters
    ----------
    made
        Their atlas; of an atlas of one layer only what was found before is known.
    parts
        The parts of each neuron.
    """
    study, below = made.study, made.below_split
    if below is None:
        return {channel: list(every) for channel, every in parts.items()}
    cells = [cell for channel, every in parts.items() for cell in _cells(below, channel, every)]
    digest = hashlib.sha256(json.dumps([cells, LOOKED]).encode()).hexdigest()[:16]
    own = {"step": "through", "format": FORMAT["through"], "below": below.key("virtual"), "cells": digest}

    def compute(blocks: Store | None) -> tuple[Arrays, None]:
        found = np.full(len(cells), -1)
        with progress_bar(None, "parts below", len(cells), unit="part", shown=study.run.progress) as bar:
            for first in range(0, len(cells), CELLS):
                some = cells[first : first + CELLS]
                kept = blocks and blocks.load_arrays("block", {"first": first})
                arrays = kept[0] if kept else {"part": _most_of(study, below, some)}
                if blocks and not kept:
                    blocks.save_arrays("block", {"first": first}, arrays)
                found[first : first + CELLS] = arrays["part"]
                bar.update(len(some))
        return {"part": found}, None

    if made.under is None:
        found = _most_of(study, below, cells, new=False).tolist()
    else:
        found = study.results.arrays("through", study.key("virtual") | own, compute)[0]["part"].tolist()
    letters = {cell: part_name(part) for cell, part in zip(cells, found) if part >= 0}

    def told(channel: int, place: int, part: Part) -> Part:
        known = [one._replace(through=letters.get((channel, place, one.channel), "")) for one in part.carriers]
        return part._replace(carriers=tuple(known))

    return {channel: [told(channel, *one) for one in enumerate(every)] for channel, every in parts.items()}


def _cells(below: Study, channel: int, parts: Sequence[Part]) -> Iterator[Cell]:
    """What of a neuron is looked at."""
    for place, part in list(enumerate(parts))[len(parts) > 1 :]:
        for number, one in enumerate(part.carriers):
            most = max(abs(other.carriers[number].share) for other in parts)
            if below.virtual[one.channel].k > 1 and 0 < one.share >= CLEARLY * most:
                yield channel, place, one.channel


def _most_of(study: Study, below: Study, cells: Sequence[Cell], new: bool = True) -> NDArray[np.int64]:
    """The part of each cell's channel to which more than half of its images belong; -1 is none.

    Images that are no references of the channel are asked of the network if ``new``, or belong to none.
    """
    if not cells:
        return np.empty(0, dtype=np.int64)
    samples = []
    for channel, place, lower in cells:
        neuron = study.neuron(channel)
        ranks = neuron.members(place - 1 if place else None)
        share = neuron.vectors[ranks, lower]
        best = np.argsort(-share, kind="stable")[:LOOKED]
        samples.append(neuron.sample[ranks[best[share[best] > 0]]])
    lengths = [len(own) for own in samples]
    labels = _labels(below, np.repeat([lower for *_, lower in cells], lengths), np.concatenate(samples), new)
    found = np.full(len(cells), -1)
    for number, own in enumerate(np.split(labels, np.cumsum(lengths)[:-1])):
        counts = np.bincount(own[own >= 0], minlength=1)
        if 2 * counts.max() > len(own):
            found[number] = counts.argmax()
    return found


def _labels(below: Study, channel: NDArray[np.int64], sample: NDArray[np.int64], ask: bool) -> NDArray[np.int64]:
    """The virtual neurons of pairs of a channel and an image; -1 where one would have to ask the network."""
    pairs, place = np.unique(np.stack([channel, sample], axis=1), axis=0, return_inverse=True)
    references, found = below.references.sample, np.full(len(pairs), -1)
    matches = references[pairs[:, 0]] == pairs[:, 1, None]
    known = matches.any(axis=1)
    for number in np.flatnonzero(known):
        found[number] = below.virtual[pairs[number, 0]].labels[matches[number].argmax()]
    new = np.flatnonzero(~known)
    if len(new) and ask:
        vectors = describe_pairs(below, pairs[new, 0], pairs[new, 1])
        for number, own in zip(new, vectors):
            found[number] = below.virtual[pairs[number, 0]].predict(own[None])[0]
    return found[place.ravel()]
