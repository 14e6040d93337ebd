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


def told(files: Sequence[Path]) -> bytes:
    """What tells files from others: their names from the folder on that they have in common, and what is in them.

    Neither where that folder is nor when they were written, so that copies are the same.
    """
    names = [os.path.abspath(file) for file in files]
    with suppress(ValueError):  # none, or on several drives
        folder = os.path.commonpath(map(os.path.dirname, names))
        names = [os.path.relpath(name, folder) for name in names]
    told = (Path(name).as_posix() + f" {content}\n" for name, content in zip(names, digests(files)))
    return b"".join(map(os.fsencode, told))


def digests(files: Sequence[Path]) -> list[str]:
    """The digest of what is in each file; or that it can't be read.

    A file whose path, size and time of change are known is not read again.
    """
    with suppress(sqlite3.Error, OSError):  # a folder that is read-only, a full disk, a damaged file
        cache_folder().mkdir(parents=True, exist_ok=True)
        return _digests(files, cache_folder() / "digests.sqlite")
    return _digests(files, ":memory:")


def _digests(files: Sequence[Path], place: Path | str) -> list[str]:
    found: list[str] = []
    with closing(sqlite3.connect(place)) as kept:
        kept.execute(
            "CREATE TABLE IF NOT EXISTS files "
            "(path BLOB PRIMARY KEY, size INTEGER, changed INTEGER, digest TEXT) WITHOUT ROWID"
        )
        for start in range(0, len(files), EVERY):
            found += [_digest(kept, file) for file in files[start : start + EVERY]]
            kept.commit()
    return found


def _digest(kept: sqlite3.Connection, file: Path) -> str:
    path = hashlib.blake2b(os.fsencode(os.path.abspath(file)), digest_size=16).digest()
    try:
        status = os.stat(file)
        state = path, status.st_size, status.st_mtime_ns
        known = kept.execute("SELECT digest FROM files WHERE path = ? AND size = ? AND changed = ?", state).fetchone()
        if known:
            return str(known[0])
        found = f"{status.st_size} {hashlib.sha256(file.read_bytes()).hexdigest()[:32]}"
    except OSError:
        return "can't be read"
    if time() - status.st_mtime > FRESH:
        kept.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", (*state, found))
    return found
