"""What is in files: digests of their bytes, kept in the cache, so that a file is read once and not at every start."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from time import time

FRESH = 2.0
"""Seconds after a change in which a file may change again without another time: till then its digest is not kept."""

EVERY = 256
"""Files between two times that digests are written: others can write meanwhile, and who is stopped goes on there."""


def cache_folder() -> Path:
    """Where results and digests are kept: ``$PURE_NB_STORE``, or the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("PURE_NB_STORE") or cache / "pure_nb")


def told(files: Sequence[str]) -> bytes:
    """What tells files from others: their names from the folder on that they have in common, and what is in them.

    Neither where that folder is nor when they were written, so that copies are the same.
    """
    paths = [os.path.abspath(file) for file in files]
    start = 0
    with suppress(ValueError):  # paths on several drives have no folder in common
        start = len(os.path.commonpath(map(os.path.dirname, paths)))
    names = (path[start:].replace(os.sep, "/") for path in paths)
    return b"".join(os.fsencode(f"{name} {found}\n") for name, found in zip(names, digests(paths)))


def digests(paths: Sequence[str]) -> list[str]:
    """The digest of what is in each file, by its whole path; or that it can't be read.

    A file whose path, size and time of change are known is not read again.
    """
    with suppress(sqlite3.Error, OSError):  # a folder that is read-only, a full disk, a damaged file
        cache_folder().mkdir(parents=True, exist_ok=True)
        return _digests(paths, cache_folder() / "digests.sqlite")
    return _digests(paths, ":memory:")


def _digests(paths: Sequence[str], place: Path | str) -> list[str]:
    found: list[str] = []
    with closing(sqlite3.connect(place)) as kept:
        kept.execute(
            "CREATE TABLE IF NOT EXISTS files "
            "(path BLOB PRIMARY KEY, size INTEGER, changed INTEGER, digest TEXT) WITHOUT ROWID"
        )
        for start in range(0, len(paths), EVERY):
            some = [os.fsencode(path) for path in paths[start : start + EVERY]]
            asked = f"SELECT * FROM files WHERE path IN ({', '.join('?' * len(some))})"
            known = {path: (state, own) for path, *state, own in kept.execute(asked, some)}
            for path in some:
                state, own = _digest(path, *known.get(path, ([], "")))
                found.append(own)
                if state and time() - state[1] / 1e9 > FRESH:
                    kept.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", (path, *state, own))
            kept.commit()
    return found


def _digest(path: bytes, known: list[int], digest: str) -> tuple[list[int], str]:
    """A file's size and time of change and its digest, if they are not known; its digest alone if they are."""
    try:
        status = os.stat(path)
        state = [status.st_size, status.st_mtime_ns]
        if state == known:
            return [], digest
        return state, f"{status.st_size} {hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest()[:32]}"
    except OSError:
        return [], "can't be read"
