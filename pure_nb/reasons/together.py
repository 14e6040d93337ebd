"""The reference images of several layers, found in one pass over the images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pure_nb.compute.store import Arrays, Store
from pure_nb.compute.sweep import noted, sweep
from pure_nb.methods.quantiles import accumulator

if TYPE_CHECKING:
    from pure_nb.study import Study


def rank(studies: Sequence[Study]) -> None:
    """Find the reference images of several layers in one pass over the images."""
    new = [study for study in studies if study.store and "references" not in study.known()]
    if len(new) < 2:
        return
    first = new[0]
    key = first.key("references")

    def compute(shards: Store | None) -> tuple[Arrays, Any]:
        asked = [study.parameters for study in new]
        tops = [accumulator(p) for p in asked]
        lost = sweep(first.model, first.images, tops, precision=asked[0].precision, store=shards, run=first.run)
        found = [(top.state(), noted(lost)) for top in tops]
        for study, own in zip(new[1:], found[1:]):
            study.results.arrays("references", study.key("references"), partial(_found, own))
        return found[0]

    first.results.arrays("references", key, compute, {**key, "with": [study.parameters.target for study in new]})


def _found(found: tuple[Arrays, Any], _: Store | None) -> tuple[Arrays, Any]:
    """What is kept is there already."""
    return found
