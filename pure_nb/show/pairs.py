"""A site of two networks side by side, such as two checkpoints, or of two layers.

Each has an atlas of its own in a folder, ``A`` and ``B``. The page on top has a row for each part, with the part of the
other that it was matched with by :mod:`pure_nb.show.comparing`: by what both show, and by what activates both.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pure_nb.compute.store import write_text
from pure_nb.errors import PureError, StudyError
from pure_nb.methods.virtual import WHOLE, part_name
from pure_nb.show.comparing import LEAST, By, Match, PartList, matches, parts_of, similarities
from pure_nb.show.facts import Atlas
from pure_nb.show.layers import drawn, require_own
from pure_nb.show.map import part_strips
from pure_nb.show.pages import templates_of, write_assets, write_pages
from pure_nb.show.pictures import Strip

KINDS = ("matched", "split", "merged", "appeared", "vanished")
"""What a row of the page says of its parts, in the order of the page."""


@dataclass(frozen=True)
class _Pairs:
    """The parts of both atlases, and how they were matched: by pictures or circuits, or why they could not be."""

    every: tuple[Atlas, Atlas]
    parts: tuple[PartList, PartList]
    alike: dict[str, NDArray[np.float64]]
    found: list[tuple[str, Match]]
    why: dict[str, str]


def write_pairs(made: Atlas, other: Atlas, folder: Path, channels: Sequence[int] | None, home: str) -> None:
    """Write a site of two atlases.

    Parameters
    ----------
    made, other
        The earlier one first.
    folder
        Gets a folder for each, ``A`` and ``B``, and a page with the pairs of their parts.
    channels
        Which neurons of the first; of the other those that have parts like theirs. All by default.
    home
        Address of a page to link back to; "" is none.
    """
    require_own(folder)
    pairs = _paired((replace(made, pair="A"), replace(other, pair="B")), channels)
    back = f"../{home}" if home and not (home.startswith("/") or ":" in home) else home
    for one, number in zip(pairs.every, (0, 1)):
        own = None if channels is None else channels if not number else _neurons(pairs, number)
        write_pages(one, folder / one.place, drawn(one, folder / one.place, own), back)
    strips = [
        _strips(one, folder, parts, _used(pairs, n)) for n, (one, parts) in enumerate(zip(pairs.every, pairs.parts))
    ]
    rows = [_row(pairs, strips, by, match) for by, match in pairs.found]
    table = {"columns": list(rows[0]) if rows else [], "rows": [list(row.values()) for row in rows]}
    text = json.dumps(table, separators=(",", ":"), allow_nan=False)
    write_text(folder / "data/index.js", f"pureNb.index({text});\n")
    write_assets(folder)
    templates = templates_of(pairs.every[0], home)
    counts = {by: Counter(match.what for own, match in pairs.found if own == by) for by in pairs.alike}
    judge, lower = made.embedder, made.study.parameters.lower
    means = {
        "pictures": f"what {judge.name} sees in their crops" if judge else "the images that both have",
        "circuits": f"the channels of {lower} that activate them",
    }
    told = {
        "means": means,
        "every": pairs.every,
        "rows": rows,
        "counts": counts,
        "why": pairs.why,
        "kinds": KINDS,
        "least": LEAST,
    }
    credited = [one.pair for one in pairs.every if (folder / one.pair / "credits.html").is_file()]
    page = templates.get_template("pairs.html").render(root="", top="", credited=credited, **told)
    write_text(folder / "index.html", page)


def _paired(every: tuple[Atlas, Atlas], channels: Sequence[int] | None) -> _Pairs:
    """Match the parts of two atlases in all ways that they can be; raises if there is none."""
    studies = one, other = every[0].study, every[1].study
    first, second = parts_of(one), parts_of(other)
    judge = every[0].embedder and every[0].embedder.joint
    ways: dict[str, By] = {"pictures": "embedder" if judge else "images", "circuits": "circuits"}
    alike, why = {}, {}
    for way, by in ways.items():
        try:
            alike[way] = similarities(*studies, first, second, by, judge if by == "embedder" else None)
        except PureError as problem:  # of a published study, also that the network is missing
            why[way] = str(problem)
    if not alike:
        raise StudyError(f"{one.name!r} and {other.name!r} can't be compared: {'; '.join(why.values())}")
    wanted = None if channels is None else set(channels)
    found = []
    for way, table in alike.items():
        own = [(way, match) for match in matches(table, LEAST)]
        if wanted is not None:
            own = [(by, match) for by, match in own if match.one is not None and first.channel[match.one] in wanted]
        found += sorted(own, key=lambda entry: -_value(table, entry[1]))
    return _Pairs(every, (first, second), alike, found, why)


def _value(alike: NDArray[np.float64], match: Match) -> float:
    """How alike the two of a pair are, less than any if one is missing."""
    return -2.0 if match.one is None or match.other is None else float(alike[match.one, match.other])


def _used(pairs: _Pairs, number: int) -> list[int]:
    """The parts of one of the two that some row shows."""
    return sorted({part for _, match in pairs.found if (part := match.parts[number]) is not None})


def _neurons(pairs: _Pairs, number: int) -> list[int]:
    """Their neurons."""
    return sorted({pairs.parts[number].channel[part] for part in _used(pairs, number)})


def _strips(made: Atlas, folder: Path, parts: PartList, used: Sequence[int]) -> dict[int, Strip]:
    """Write strips of the strongest images of parts, cut out of the sheets of their atlas; where they are."""
    own = folder / made.place
    found = part_strips(made, own, "parts", {part: (parts.channel[part], parts.ranks[part]) for part in used})
    return {part: at._replace(file=f"{made.place}/{at.file}") for part, at in found.items()}


def _row(pairs: _Pairs, strips: Sequence[dict[int, Strip]], by: str, match: Match) -> dict[str, Any]:
    """A row of the page's table."""
    row: dict[str, Any] = {"by": by, "what": match.what}
    for number, name in enumerate(("one", "other")):
        part, parts = match.parts[number], pairs.parts[number]
        row |= {name: None, f"images_{name}": None, f"says_{name}": ""}
        if part is not None:
            own = parts.channel[part], parts.part[part]
            row[name] = [own[0], part_name(own[1])]
            row[f"images_{name}"] = strips[number].get(part)
            row[f"says_{name}"] = _said(pairs.every[number], *own)
    for way, alike in pairs.alike.items():
        row[way] = None if match.one is None or match.other is None else round(_value(alike, match), 3)
    return row | {"alike": row[by]}


def _said(made: Atlas, channel: int, part: int) -> str:
    """What a part is called, and what it answers to."""
    neuron = made.study.neuron(channel)
    label = made.label(channel, part_name(part) if neuron.virtual.k > 1 else WHOLE)
    return ", ".join(filter(None, [f"“{label}”" if label else "", neuron.meanings(part)]))
