"""Results: found in the store, or computed once and kept there, and resumed after a stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pure_nb.compute.store import Arrays, New, Store

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")

FORMAT = {
    "references": 4,
    "circuits": 5,
    "virtual": 8,
    "layouts": 5,
    "neurons": 8,
    "labels": 1,
    "classes": 5,
    "boxes": 3,
    "embeddings": 3,
    "activations": 3,
    "objects": 1,
    "ratios": 2,
}
"""Part of what a stored step is found by; raised when this package computes it, or one before it, differently."""


def outdated(key: Mapping[str, object]) -> bool:
    """Whether a stored result is computed differently now, so that no study finds it any more."""
    step = str(key.get("step"))
    step = {"embeddings": "boxes", "ratios": "classes"}.get(step, step)  # whose keys are theirs, with more in them
    return step in FORMAT and key.get("format") != FORMAT[step]


@dataclass(frozen=True)
class Results:
    """Where the results of a study are.

    Attributes
    ----------
    store
        Where they are kept; None keeps none.
    device, channels_last
        How networks run: the last digits of unfinished parts may depend on it, so parts are kept apart.
    """

    store: Store | None
    device: str = "cpu"
    channels_last: bool = False

    def arrays(
        self,
        step: str,
        key: dict[str, object],
        compute: Callable[[Store | None], tuple[Arrays, Any]],
        parts_key: dict[str, object] | None = None,
    ) -> tuple[Arrays, Any]:
        """Arrays and a note of a step: from the store, or computed now and kept there.

        ``compute`` gets a store for the parts of its result, for whoever has to go on after a stop; it is cleared
        when the whole is safe. The parts may depend on more than the result: ``parts_key``.
        """
        if self.store is None:
            return compute(None)
        store, parts = self.store, self._parts(step, parts_key or key)

        def keep() -> tuple[Arrays, Any]:
            arrays, note = compute(parts)
            store.save_arrays(step, key, arrays, note)
            return arrays, note

        return self._once(step, key, lambda: store.load_arrays(step, key), keep, parts)

    def mapped(
        self, step: str, key: dict[str, object], compute: Callable[[Store | None, New], NDArray[Any]]
    ) -> NDArray[Any]:
        """One large array: mapped from the store, or computed now, in a file, and mapped then; see :meth:`arrays`.

        ``compute`` also gets a function that makes the array.
        """
        if self.store is None:
            return compute(None, np.empty)
        store, parts = self.store, self._parts(step, key)

        def keep() -> NDArray[Any]:
            store.save_mapped(step, key, lambda new: compute(parts, new))
            return np.load(store.path(step, key, ".npy"), mmap_mode="r", allow_pickle=False)

        return self._once(step, key, lambda: store.load_mapped(step, key), keep, parts)

    def _once(
        self, step: str, key: dict[str, object], load: Callable[[], T | None], keep: Callable[[], T], parts: Store
    ) -> T:
        """What can be loaded; or else computed and kept, by one process at a time, and its parts cleared."""
        assert self.store is not None
        saved = load()
        if saved is not None and not parts.folder.parent.exists():
            return saved
        with self.store.claimed(step, key):
            saved = load()  # another process may have been at it, or was killed before it cleared the parts
            if saved is None:
                saved = keep()
            Store(parts.folder.parent).clear()  # and with them those that were made under other settings
        return saved

    def _parts(self, step: str, key: dict[str, object]) -> Store:
        """Where the parts of a step are kept, apart for all on which their last digits may depend."""
        assert self.store is not None
        how = {"device": self.device, "threads": torch.get_num_threads(), "channels_last": self.channels_last}
        return self.store.part(step, key).part("run", how)

    def table(self, name: str, key: dict[str, object], compute: Callable[[Store | None], pd.DataFrame]) -> pd.DataFrame:
        """A table: from the store, or computed now and kept there. ``compute`` gets a store as in :meth:`arrays`."""
        if self.store is None:
            return compute(None)
        store, parts = self.store, self._parts(name, key)

        def load() -> pd.DataFrame | None:
            saved = store.load_table(name, key)
            return saved[0] if saved else None

        def keep() -> pd.DataFrame:
            table = compute(parts)
            store.save_table(name, key, table)
            return table

        return self._once(name, key, load, keep, parts)

    def has(self, step: str, key: Mapping[str, object]) -> bool:
        """Whether a step is in the store."""
        suffix = ".npy" if step == "circuits" else ".safetensors"
        return self.store is not None and self.store.path(step, key, suffix).exists()
