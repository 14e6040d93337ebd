"""Results on disk: found again when nothing they depend on has changed, and never trusted blindly.

An artifact is a file, safetensors for arrays or parquet for tables, and beside it a manifest, a small JSON
file with the *key* (all the result depends on: fingerprints of weights and data, parameters) and the SHA-256
of the artifact and of itself. Both are written to a temporary name and then renamed, the manifest last, so that an
interrupted write leaves nothing behind that looks whole. A file that does not match its manifest is reported
and computed again. Nothing is ever unpickled. An array too large for memory is kept as ``.npy``, and mapped.

Processes may share a store: :meth:`Store.claimed` lets one compute a result while the others wait for it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.lib.format import open_memmap
from numpy.typing import DTypeLike, NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pure_nb.errors import StoreError, StoreWarning
from pure_nb.images.contents import cache_folder

if TYPE_CHECKING:
    import pandas as pd

Arrays = dict[str, NDArray[Any]]
Key = Mapping[str, object]
New = Callable[[tuple[int, ...], DTypeLike], NDArray[Any]]
"""Makes an array of a shape and type, to be filled: in memory, as ``np.empty``, or in a file."""

SUFFIXES = (".safetensors", ".parquet", ".npy")
"""Of artifacts: arrays, a table, and one array that is mapped."""


def fingerprint(key: Key) -> str:
    """Twelve hexadecimal digits that stand for a key (any JSON value)."""
    text = json.dumps(key, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a temporary file beside ``path``, then give it its name in one step.

    Raises
    ------
    StoreError
        If that is not possible, say on a full disk. What was at ``path`` before is still there.
    """
    with _temporary(path) as temporary, _writing(path):
        temporary.touch()
        mode = temporary.stat().st_mode  # of any new file here; safetensors gives its files another
        write(temporary)
        if temporary.stat().st_mode != mode:
            temporary.chmod(mode)
        os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Write a text at once or not at all: see :func:`write_atomically`."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A name for a file beside ``path``, which is gone afterwards."""
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    # A name of our own and no mkstemp, whose files only their owner may read: a web server reads the book's pictures.
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(8)}{path.suffix}")
    try:
        yield temporary
    finally:
        with suppress(OSError):  # the folder may be gone, or its disk
            temporary.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """What goes wrong in writing a file, in words."""
    try:
        yield
    except (OSError, SafetensorError) as problem:
        raise StoreError(
            f"{str(path)!r} can't be written: {problem}. Make room, or name another folder (store=..., --store, --out "
            "or $PURE_NB_STORE). What was finished before is kept, and the same call goes on from there"
        ) from problem


def _reserve(path: Path) -> None:
    """Take the room on the disk that a file says it has: where it lacks, writing to a mapped file kills the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


@dataclass(frozen=True)
class Store:
    """A folder of artifacts, each found by its name and its key.

    Attributes
    ----------
    folder
        Where artifacts are kept.
    shipped
        A folder of artifacts that ship: read where the first lacks one, and left as it is.

    Examples
    --------
    >>> store = Store(folder / "store")
    >>> key = {"step": "means", "of": "layer4"}
    >>> path = store.save_arrays("means", key, {"mean": np.arange(3)})
    >>> arrays, note = store.load_arrays("means", key)
    >>> arrays["mean"]
    array([0, 1, 2])
    """

    folder: Path
    shipped: Path | None = None

    def path(self, name: str, key: Key, suffix: str = ".safetensors") -> Path:
        """Where an artifact is kept, or would be."""
        return self.folder / f"{name}-{fingerprint(key)}{suffix}"

    def found(self, name: str, key: Key, suffix: str = ".safetensors") -> Path | None:
        """Where an artifact can be read that looks whole: here, or among those that ship; None if nowhere."""
        own = self.path(name, key, suffix)
        places = (own, self.shipped / own.name) if self.shipped else (own,)
        return next((path for path in places if path.exists() and _manifest_of(path).exists()), None)

    def part(self, name: str, key: Key) -> Store:
        """A store in a folder of its own within this one, for the pieces of one result."""
        return Store(self.path(name, key, suffix=""))

    def clear(self) -> None:
        """Remove the folder and all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def remove(self, name: str, key: Key, suffix: str = ".safetensors") -> None:
        """Remove an artifact, if it is there; its manifest first, so that it never looks whole."""
        _remove(self.path(name, key, suffix))

    @contextmanager
    def claimed(self, name: str, key: Key) -> Iterator[None]:
        """Alone among all processes with an artifact: whoever comes second waits, and is told for whom.

        The claim ends with the process, however that ends. What a killed one left half-written is removed.

        Raises
        ------
        StoreError
            If the folder can't be written to.
        """
        path = self.path(f".{name}", key, ".lock")
        owner = path.with_suffix(".owner")
        with _writing(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                warnings.warn(
                    f"waiting for {_read(owner) or 'another process'}, which computes {name!r} in "
                    f"{str(self.folder)!r}. Interrupt to stop waiting; another --store shares nothing",
                    StoreWarning,
                    stacklevel=3,
                )
                lock.acquire()
        try:
            with suppress(OSError):  # none of this is needed
                self._sweep_up(path.stem)
                for other in self.folder.glob(".*.owner"):
                    with suppress(Timeout), FileLock(other.with_suffix(".lock"), timeout=0):
                        self._sweep_up(other.stem)
                owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
            yield
        finally:
            with suppress(OSError):
                owner.unlink(missing_ok=True)
            lock.release()

    def _sweep_up(self, stem: str) -> None:
        """Remove what a killed process left of a claim; whoever calls holds the claim."""
        for pattern in (f"{stem}-*", f"{stem}.*-*", f"{stem}.owner"):  # of artifacts, of manifests, and its name
            for stale in self.folder.glob(pattern):
                stale.unlink(missing_ok=True)

    def save_arrays(self, name: str, key: Key, arrays: Arrays, note: object = None) -> Path:
        """Keep arrays, and a note (any JSON value) beside them."""
        solid = {label: np.asarray(array, order="C") for label, array in arrays.items()}
        return self._save(self.path(name, key), key, note, lambda temporary: save_file(solid, temporary))

    def save_table(self, name: str, key: Key, table: pd.DataFrame, note: object = None) -> Path:
        """Keep a table, and a note (any JSON value) beside it."""
        path = self.path(name, key, ".parquet")
        return self._save(path, key, note, lambda temporary: table.to_parquet(temporary, index=False))

    def _save(self, path: Path, key: Key, note: object, write: Callable[[Path], object]) -> Path:
        write_atomically(path, write)
        return self._sign(path, key, note)

    def save_mapped(self, name: str, key: Key, fill: Callable[[New], object]) -> Path:
        """Keep one array that need not fit into memory.

        ``fill`` gets a function that makes the array in a file, must call it once, and fills the array.
        """
        path = self.path(name, key, ".npy")
        made = []
        with _temporary(path) as temporary:

            def new(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
                with _writing(path):
                    made.append(open_memmap(temporary, "w+", np.dtype(dtype), shape))
                    _reserve(temporary)
                return made[0]

            fill(new)  # may take hours, and fail in its own ways
            with _writing(path):
                made.pop().flush()  # and no longer mapped: Windows renames no file that is
                os.replace(temporary, path)
        return self._sign(path, key, None)

    def load_mapped(self, name: str, key: Key) -> NDArray[Any] | None:
        """An array of :meth:`save_mapped`, read from its file as it is looked at; None if it can't be trusted."""
        saved = self._load(name, key, ".npy", partial(np.load, mmap_mode="r", allow_pickle=False))
        return saved and saved[0]

    def load_arrays(self, name: str, key: Key) -> tuple[Arrays, Any] | None:
        """The arrays and the note kept under a name and key; None if there are none that can be trusted."""
        return self._load(name, key, ".safetensors", load_file)

    def load_table(self, name: str, key: Key) -> tuple[pd.DataFrame, Any] | None:
        """The table and the note kept under a name and key; None if there is none that can be trusted."""
        import pandas as pd  # late, see pure_nb._imports

        return self._load(name, key, ".parquet", pd.read_parquet)

    def _load(self, name: str, key: Key, suffix: str, read: Callable[[Path], Any]) -> tuple[Any, Any] | None:
        """What is in an artifact and the note beside it, if both are whole and made from this very key."""
        path = self.found(name, key, suffix)
        if path is None:
            return None
        try:
            manifest = _read_manifest(path)
            if fingerprint(manifest["key"]) != fingerprint(key):
                raise ValueError("its manifest belongs to another result")
            if _checksum(path) != manifest["sha256"]:
                raise ValueError("its bytes do not match the checksum in its manifest")
            return read(path), manifest["note"]
        # Also of another user, who keeps it to themselves.
        except (SafetensorError, StoreError, ValueError, OSError) as problem:
            reason = f"{path} is not used and will be computed again: {problem}"
            warnings.warn(reason, StoreWarning, stacklevel=3)
            return None

    def manifests(self) -> list[dict[str, Any]]:
        """What the folder holds: each artifact's file, key and checksum."""
        found = []
        for path in sorted(self.folder.glob("*.json")):
            with suppress(json.JSONDecodeError, UnicodeDecodeError):
                found.append(json.loads(path.read_text(encoding="utf-8")))
        return found

    def results(self) -> list[Result]:
        """What is kept here, with its size and age: whole results, unfinished ones, and what belongs to none.

        Files that are not ours are not among them.
        """
        found = []
        for path in sorted(self.folder.iterdir()) if self.folder.is_dir() else ():
            if not _OURS.fullmatch(path.name):
                continue
            if path.is_dir():
                if all(_OURS.fullmatch(inner.name) for inner in path.iterdir()):
                    found.append(Result.of(path, None, path.rglob("*")))
                continue
            manifest: dict[str, Any] = {}
            with suppress(StoreError):
                manifest = _read_manifest(path)
            ours = manifest.get("file") == path.name
            # Where the manifest does not say so, the lock does: nothing else is made under one of its name.
            if ours or (self.folder / f".{path.stem}.lock").exists():
                key = dict(manifest["key"]) if ours else {}
                found.append(Result.of(path, key, (path, _manifest_of(path))))
        return found

    def prune(self, chosen: Callable[[Result], bool]) -> list[Result]:
        """Remove results, and what killed processes have left; returns the results that were removed.

        Raises
        ------
        StoreError
            If another process computes something here, or the files can't be removed. Nothing was removed then, or
            not all.
        """
        gone = []
        with ExitStack() as held, _writing(self.folder):
            for path in self.folder.glob(".*.lock"):
                try:
                    held.enter_context(FileLock(path, timeout=0))
                except Timeout:
                    raise StoreError(
                        f"{str(self.folder)!r} is in use by {_read(path.with_suffix('.owner')) or 'another process'}, "
                        "so nothing in it is removed; try again when that has finished"
                    ) from None
                self._sweep_up(path.stem)
            for result in filter(chosen, self.results()):
                if result.path.is_dir():
                    shutil.rmtree(result.path)
                else:
                    _remove(result.path)
                gone.append(result)
            left = {_stem(result.path) for result in self.results()}
            for path in self.folder.glob(".*.lock"):
                if path.stem.removeprefix(".") not in left:
                    with suppress(PermissionError):  # Windows removes no open file; there it goes with its lock
                        path.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()  # if nothing is left in it
        return gone

    def _sign(self, path: Path, key: Key, note: object) -> Path:
        manifest = {"file": path.name, "sha256": _checksum(path), "key": key, "note": note}
        text = json.dumps(manifest | {"seal": _seal(manifest)}, indent=1, sort_keys=True)
        write_text(_manifest_of(path), text)
        return path


@dataclass(frozen=True)
class Result:
    """What a store has of one result.

    Attributes
    ----------
    path
        Its artifact; of an unfinished one the folder of its parts.
    key
        What it was made from; None for an unfinished one, and empty where that can't be read.
    size
        Bytes, with the manifest.
    written
        When, in seconds since 1970.
    """

    path: Path
    key: dict[str, Any] | None
    size: int
    written: float

    @classmethod
    def of(cls, path: Path, key: dict[str, Any] | None, files: Iterable[Path]) -> Result:
        """A result in some files."""
        stats = [path.stat(), *(file.stat() for file in files if file.is_file())]
        return cls(path, key, sum(stat.st_size for stat in stats[1:]), max(stat.st_mtime for stat in stats))

    @property
    def name(self) -> str:
        """The step that it is of."""
        return self.path.name.rpartition("-")[0]


_OURS = re.compile(rf"\w+-[0-9a-f]{{12}}({'|'.join(map(re.escape, SUFFIXES))})?")
"""Names of artifacts, and of folders of parts."""


def _stem(path: Path) -> str:
    """The name and fingerprint of a result."""
    return path.name.partition(".")[0]


def _read_manifest(path: Path) -> dict[str, Any]:
    """What the manifest of an artifact says, but for its seal; raises where it is not as it was written."""
    try:
        manifest: dict[str, Any] = json.loads(_manifest_of(path).read_text(encoding="utf-8"))
        seal = manifest.pop("seal")
        manifest["sha256"], manifest["key"], manifest["note"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise StoreError("its manifest is damaged") from problem
    if _seal(manifest) != seal:
        raise StoreError("its manifest does not match its own checksum")
    return manifest


def _remove(path: Path) -> None:
    with _writing(path):
        _manifest_of(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def _seal(manifest: Mapping[str, object]) -> str:
    """What stands for all that a manifest says."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> str:
    """A text, or none where it can't be read."""
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8")
    return ""


def _manifest_of(path: Path) -> Path:
    return path.with_suffix(path.suffix + ".json")


def store_folder(store: str | Path | None) -> Path:
    """The folder of all results: the given one, ``$PURE_NB_STORE``, or the user's cache."""
    return cache_folder() if store is None else Path(store)
