"""The index of an atlas: what its table tells of each neuron, as data for the page's script."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from pure_nb.show.facts import Atlas, Part
from pure_nb.show.pictures import Strip

NUMBERS = ("score", "p", "q", "strongest", "ami")
"""Columns of the study's table of neurons that the index takes as they are, to four digits."""


def index_script(
    made: Atlas,
    rows: Mapping[int, Mapping[Any, Any]],
    parts: Mapping[int, Sequence[Part]],
    thumbs: Mapping[int, Strip],
) -> str:
    """A script that hands the table of all neurons to the index: a page that is opened from a disk reads no files.

    Parameters
    ----------
    made
        What the atlas tells.
    rows
        Of the study's table of neurons, by channel, in the order of the index.
    parts, thumbs
        Of the neurons that are not dead, and where their strongest images are.
    """
    known = not made.without_classes
    classes: dict[str, int] = {}  # each is written once
    every = []
    for channel, row in rows.items():
        own = made.classes(channel) if known and channel in parts else []
        told: dict[str, Any] = {"neuron": channel, "thumb": thumbs.get(channel)}
        told |= {"k": int(row["k"]), "sizes": row["sizes"], "meanings": row["meanings"]}
        told |= {name: None if pd.isna(row[name]) else float(f"{row[name]:.4g}") for name in NUMBERS if name in row}
        told["named"] = [[part.name, part.label, part.by_hand] for part in parts.get(channel, []) if part.label]
        told["notes"] = [[part.name, part.note] for part in parts.get(channel, []) if part.note]
        told["classes"] = [classes.setdefault(name, len(classes)) for name, _ in own]
        every.append(told)
    table = {"columns": list(every[0]) if every else [], "rows": [list(told.values()) for told in every]}
    text = json.dumps(table | {"classes": list(classes)}, separators=(",", ":"), allow_nan=False)
    return f"pureNb.index({text});\n"
