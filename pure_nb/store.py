"""Results on disk: found again when nothing they depend on has changed, and never trusted blindly.

An artifact is a file, safetensors for arrays or parquet for tables, and beside it a manifest, a small JSON
file with the *key* (all the result depends on: fingerprints of weights and data, parameters) and the SHA-256
of the artifact. Both are written to a temporary name and then renamed, the manifest last, so that an
interrupted write leaves nothing behind that looks whole. A file that does not match its manifest is reported
and computed again. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

Arrays = dict[str, NDArray[Any]]
Key = Mapping[str, object]


class StoreWarning(UserWarning):
    """A stored file that can't be used and is computed again."""


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
    """Let ``write`` make a temporary file beside ``path``, then give it its name in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of our own and no mkstemp, whose files only their owner may read: a web server reads the book's pictures.
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(8)}{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class Store:
    """A folder of artifacts, each found by its name and its key."""

    folder: Path

    def path(self, name: str, key: Key, suffix: str = ".safetensors") -> Path:
        """Where an artifact is, or would be."""
        return self.folder / f"{name}-{fingerprint(key)}{suffix}"

    def part(self, name: str, key: Key) -> Store:
        """A store in a folder of its own within this one, for the pieces of one result."""
        return Store(self.path(name, key, suffix=""))

    def clear(self) -> None:
        """Remove the folder and all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def save_arrays(self, name: str, key: Key, arrays: Arrays, note: object = None) -> Path:
        """Keep arrays, and a note (any JSON value) beside them."""
        path = self.path(name, key)
        solid = {label: np.asarray(array, order="C") for label, array in arrays.items()}
        write_atomically(path, lambda temporary: save_file(solid, temporary))
        self._sign(path, key, note)
        return path

    def save_table(self, name: str, key: Key, table: pd.DataFrame, note: object = None) -> Path:
        """Keep a table, and a note (any JSON value) beside it."""
        path = self.path(name, key, ".parquet")
        write_atomically(path, lambda temporary: table.to_parquet(temporary, index=False))
        self._sign(path, key, note)
        return path

    def load_arrays(self, name: str, key: Key) -> tuple[Arrays, Any] | None:
        """The arrays and the note kept under a name and key; None if there are none that can be trusted."""
        path = self.path(name, key)
        manifest = self._verified(path, key)
        if manifest is None:
            return None
        try:
            return load_file(path), manifest["note"]
        except (SafetensorError, OSError) as problem:
            _distrust(path, str(problem))
            return None

    def load_table(self, name: str, key: Key) -> tuple[pd.DataFrame, Any] | None:
        """The table and the note kept under a name and key; None if there is none that can be trusted."""
        path = self.path(name, key, ".parquet")
        manifest = self._verified(path, key)
        if manifest is None:
            return None
        try:
            return pd.read_parquet(path), manifest["note"]
        except (ValueError, OSError) as problem:
            _distrust(path, str(problem))
            return None

    def manifests(self) -> list[dict[str, Any]]:
        """What the folder holds: each artifact's file, key and checksum."""
        found = []
        for path in sorted(self.folder.glob("*.json")):
            try:
                found.append(json.loads(path.read_text(encoding="utf-8")))
            except (json.JSONDecodeError, UnicodeDecodeError):
                continue
        return found

    def _sign(self, path: Path, key: Key, note: object) -> None:
        manifest = {"file": path.name, "sha256": _checksum(path), "key": key, "note": note}
        text = json.dumps(manifest, indent=1, sort_keys=True)
        write_atomically(_manifest_of(path), lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def _verified(self, path: Path, key: Key) -> dict[str, Any] | None:
        """The manifest of an artifact, if that and the artifact are whole and made from this very key."""
        if not path.exists() or not _manifest_of(path).exists():
            return None
        try:
            manifest: dict[str, Any] = json.loads(_manifest_of(path).read_text(encoding="utf-8"))
            expected, made_from, _ = manifest["sha256"], manifest["key"], manifest["note"]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
            _distrust(path, "its manifest is damaged")
            return None
        if fingerprint(made_from) != fingerprint(key):
            _distrust(path, "its manifest belongs to another result")
            return None
        if _checksum(path) != expected:
            _distrust(path, "its bytes do not match the checksum in its manifest")
            return None
        return manifest


def _distrust(path: Path, reason: str) -> None:
    warnings.warn(f"{path} is not used and will be computed again: {reason}", StoreWarning, stacklevel=4)


def _manifest_of(path: Path) -> Path:
    return path.with_suffix(path.suffix + ".json")


def store_folder(store: str | Path | None) -> Path:
    """The folder of all results: the given one, ``$PURE_NB_STORE``, or the user's cache."""
    if store is not None:
        return Path(store)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("PURE_NB_STORE") or cache / "pure_nb")
