"""What is in files: digests of their bytes, kept in the cache, so that a file is read once and not at every start."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
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
    named = os.environ.get("PURE_NB_STORE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pure_nb"


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

    A file whose path, size and times of change are known is not read again.
    """
    with suppress(sqlite3.Error, OSError, RuntimeError):  # a read-only folder, a damaged file; no home
        cache_folder().mkdir(parents=True, exist_ok=True)
        return _digests(paths, cache_folder() / "digests.sqlite")
    return _digests(paths, ":memory:")


def _digests(paths: Sequence[str], place: Path | str) -> list[str]:
    found: list[str] = []
    with closing(sqlite3.connect(place)) as kept:
        kept.execute(
            "CREATE TABLE IF NOT EXISTS states "
            "(path BLOB PRIMARY KEY, size INTEGER, written INTEGER, changed INTEGER, digest TEXT) WITHOUT ROWID"
        )
        for start in range(0, len(paths), EVERY):
            some = [os.fsencode(path) for path in paths[start : start + EVERY]]
            asked = f"SELECT * FROM states WHERE path IN ({', '.join('?' * len(some))})"
            known = {path: (state, own) for path, *state, own in kept.execute(asked, some)}
            new = []
            for path in dict.fromkeys(some):  # one file may hold many images
                state, own = _digest(path, *known.get(path, ([], "")))
                known[path] = state, own
                if state and time() - state[1] / 1e9 > FRESH:
                    new.append((path, *state, own))
            found += [known[path][1] for path in some]
            with suppress(sqlite3.Error), kept:  # not kept where the disk is full, or another writes for long
                kept.executemany("INSERT OR REPLACE INTO states VALUES (?, ?, ?, ?, ?)", new)
    return found


def _digest(path: bytes, known: list[int], digest: str) -> tuple[list[int], str]:
    """A file's size and times of change and its digest, if they are not known; its digest alone if they are."""
    try:
        status = os.stat(path)
        state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        if state == known:
            return [], digest
        if stat.S_ISDIR(status.st_mode):  # as of frames: what is in it is the data set's to tell
            return [], f"folder {status.st_mtime_ns}"
        return state, f"{status.st_size} {hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest()[:32]}"
    except OSError:
        return [], "can't be read"
