"""Files of submissions to an edition of the benchmark, sealed by a checksum, and the leaderboard that they make."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pure_nb.compute.store import write_text
from pure_nb.errors import StudyError

SCORED = {"contestant": ("ari", "low", "high", "ami", "accuracy"), "score": ("auc", "low", "high", "rho")}
"""What is told of each world, by what was submitted; the first leads."""

NAMED = re.compile(r"[\w ,.+:'-]{1,80}")
"""What a name may be: it stands in a table of a page."""

Record = dict[str, Any]
"""A submission, as it is in its file."""


def sealed(record: Record) -> Record:
    """A submission with its own checksum, ``sha256``."""
    bare = {name: value for name, value in record.items() if name != "sha256"}
    text = json.dumps(bare, sort_keys=True, allow_nan=False)
    return bare | {"sha256": hashlib.sha256(text.encode()).hexdigest()}


def read_submission(path: Path) -> Record:
    """A submission from its file; one that is damaged or was changed is refused."""

    def refuse(constant: str) -> None:
        raise StudyError(f"{str(path)!r} has a number that is {constant}; expected finite ones")

    try:
        record = json.loads(read_text(path), parse_constant=refuse)
        same = sealed(record)["sha256"] == record["sha256"]
        fits = all(isinstance(record[name], str) for name in ("edition", "edition_sha256", "name", "source", "digest"))
        fits &= record["kind"] in SCORED and isinstance(record["versions"], dict)
        fits &= all(bool(NAMED.fullmatch(record[name])) for name in ("name", "source"))
        for world in record["worlds"].values():
            fits &= isinstance(world["scores"], dict) and isinstance(world.get("seconds", 0), (int, float))
            fits &= all(isinstance(value, (int, float)) for value in world["scores"].values())
        fits &= all(bool(NAMED.fullmatch(name)) for name in record["worlds"])
        fits &= record.get("verified", "answers") in ("answers", "function")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise StudyError(f"{str(path)!r} is no submission: expected what pure-nb bench --edition wrote") from problem
    if not same or not fits:
        raise StudyError(f"{str(path)!r} was changed after it was made: its checksum is another; submit it anew")
    return dict(record)


def keep(record: Record, folder: Path, *, board: bool = True) -> list[Path]:
    """Write a submission to a folder, in a file of its name; and the leaderboard of all that are there.

    Raises
    ------
    StudyError
        If there is another of its name.
    """
    path = folder / f"{re.sub(r'[^A-Za-z0-9]+', '-', record['name']).strip('-')}.json"
    if path.is_file():
        there = read_submission(path)
        same = [there[name] == record[name] for name in ("source", "digest")]
        if not all(same) or (not board and "verified" in there):
            raise StudyError(
                f"{str(path)!r} is there, of {there['source']!r} {there['digest'][:12]}; name the function otherwise, "
                "write to another folder, or remove it first"
            )
    write_text(path, json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n")
    if not board:
        return [path]
    records = [read_submission(one) for one in sorted(folder.glob("*.json"))]
    done = [one for one in records if one["edition"] == record["edition"] and "verified" in one]
    write_text(folder / "leaderboard.md", page(done))
    return [path, folder / "leaderboard.md"]


def read_text(path: Path) -> str:
    """A text file that someone named."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise StudyError(f"{str(path)!r} can't be read: {problem}") from problem


def page(records: list[Record]) -> str:
    """The leaderboards of contestants and of scores, in Markdown: of one edition, the best first."""
    parts = []
    for kind, (lead, *_) in SCORED.items():
        rows, own = [], [one for one in records if one["kind"] == kind]
        answered = [{name for name, world in one["worlds"].items() if "answers" in world} for one in own]
        common = set.intersection(*answered) if answered else set()  # a mean is over the same worlds for all
        for record in own:
            worlds = record["worlds"]
            open_ = [world["scores"][lead] for name, world in worlds.items() if name in common]
            seconds = sum(world.get("seconds", 0) for world in worlds.values())
            row = {kind: record["name"], "mean": round(float(np.mean(open_)), 2) + 0.0}
            for name, world in worlds.items():
                value, low, high = (round(world["scores"][one], 2) + 0.0 for one in SCORED[kind][:3])  # 0 and not -0
                row[name] = f"{value:.2f} ({low:.2f} to {high:.2f})"
            rows.append(row | {"minutes": f"{seconds / 60:.1f}", "checked": record["verified"], "of": record["source"]})
        if rows:
            table = pd.DataFrame(rows).sort_values("mean", ascending=False, kind="stable").fillna("")
            last = ["minutes", "checked", "of"]
            table = table[[*table.columns.drop(last), *last]].assign(mean=table["mean"].map("{:.2f}".format))
            lines = [table.columns, ["---"] * len(table.columns), *table.to_numpy()]
            parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts) + "\n"
