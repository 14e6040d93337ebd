"""Results: found in the store, or computed once and kept there, and resumed after a stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import time
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pure_nb.compute.store import SUFFIXES, Arrays, New, Result, Store
from pure_nb.parameters import Run, renamed

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")

FORMAT = {
    "references": 4,
    "circuits": 5,
    "virtual": 9,
    "layouts": 5,
    "neurons": 9,
    "labels": 1,
    "classes": 5,
    "boxes": 4,
    "embeddings": 3,
    "map": 1,
    "activations": 3,
    "objects": 1,
    "concepts": 1,
    "ratios": 2,
    "through": 1,
    "stability": 1,
    "peaks": 1,
    "weights": 1,
    "reasons": 1,
    "faithfulness": 1,
}
"""Part of what a stored step is found by; raised when this package computes it, or one before it, differently."""


ASKED: dict[str, tuple[str, ...]] = {
    "references": ("target", "n_references", "ranked_by"),
    "circuits": ("target", "lower", "n_references", "ranked_by", "rule", "start"),
    "virtual": ("target", "lower", "n_references", "ranked_by", "rule", "start", "described_by", "n_clusters", "seed"),
    "layouts": ("target", "lower", "n_references", "ranked_by", "rule", "start", "described_by", "seed"),
    "neurons": ("target", "lower", "n_references", "ranked_by", "rule", "start", "described_by", "n_clusters", "seed"),
    "peaks": ("target", "lower", "n_references", "ranked_by"),
    "weights": ("target", "lower", "n_references", "ranked_by", "rule", "start", "seed"),
    "labels": (),
    "classes": ("target", "lower", "seed"),
    "boxes": ("target", "n_references", "ranked_by", "crop", "crop_lower"),
    "activations": ("target", "lower", "n_references", "ranked_by"),
    "objects": ("target", "n_references", "ranked_by"),
    "stability": (
        "target",
        "lower",
        "n_references",
        "ranked_by",
        "rule",
        "start",
        "described_by",
        "n_clusters",
        "seed",
    ),
    "concepts": ("target", "seed"),
}
"""The parameters that a step depends on."""


RULES = 2
"""Of relevance by LRP, wherever it is asked for; raised when its rules are others."""

AS_BEFORE = {"described_by": "circuits", "references": "top"}
"""Parameters of which there was none once, and how it was then."""


def as_before(asked: Mapping[str, object]) -> dict[str, object]:
    """Parameters without those of :data:`AS_BEFORE`, so that results of before are found."""
    return {name: value for name, value in asked.items() if AS_BEFORE.get(name, ...) != value}


def outdated(key: Mapping[str, object]) -> bool:
    """Whether a stored result is computed or called differently now, so that no study finds it any more."""
    if any(renamed(name, value) != name for name, value in key.items()):
        return True  # of before 0.1.0
    step = str(key.get("step"))
    # Whose keys are theirs, with more in them.
    same = {"embeddings": "boxes", "ratios": "classes", "map": "virtual", "graph": "reasons", "faithfulness": "virtual"}
    step = same.get(step, step)
    if step == "reasons" and any(outdated(parts) for parts in key.get("layers", [])):  # type: ignore[attr-defined]
        return True
    return step in FORMAT and key.get("format") != FORMAT[step]


def unwanted(result: Result, days: float | None = None) -> bool:
    """Whether no study finds a stored result any more, or it is older than so many days."""
    useless = result.key is not None and (not result.key or outdated(result.key))
    return useless or (days is not None and time() - result.written > days * 86400)


@dataclass(frozen=True)
class Results:
    """Where the results of a study are.

    Attributes
    ----------
    store
        Where they are kept; None keeps none.
    run
        How networks run: the last digits of unfinished parts may depend on it, so parts are kept apart.
    """

    store: Store | None
    run: Run = Run()

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

        def keep(store: Store, parts: Store) -> tuple[Arrays, Any]:
            arrays, note = compute(parts)
            store.save_arrays(step, key, arrays, note)
            return arrays, note

        return self._once(step, key, parts_key or key, Store.load_arrays, keep) or compute(None)

    def mapped(
        self, step: str, key: dict[str, object], compute: Callable[[Store | None, New], NDArray[Any]]
    ) -> NDArray[Any]:
        """One large array: mapped from the store, or computed now, in a file, and mapped then; see :meth:`arrays`.

        ``compute`` also gets a function that makes the array.
        """

        def keep(store: Store, parts: Store) -> NDArray[Any]:
            path = store.save_mapped(step, key, lambda new: compute(parts, new))
            return np.load(path, mmap_mode="r", allow_pickle=False)

        found = self._once(step, key, key, Store.load_mapped, keep)
        return compute(None, np.empty) if found is None else found

    def table(self, step: str, key: dict[str, object], compute: Callable[[Store | None], pd.DataFrame]) -> pd.DataFrame:
        """A table: from the store, or computed now and kept there. ``compute`` gets a store as in :meth:`arrays`."""

        def keep(store: Store, parts: Store) -> tuple[pd.DataFrame, None]:
            table = compute(parts)
            store.save_table(step, key, table)
            return table, None

        found = self._once(step, key, key, Store.load_table, keep)
        return compute(None) if found is None else found[0]

    def _once(
        self,
        step: str,
        key: dict[str, object],
        parts_key: dict[str, object],
        load: Callable[[Store, str, dict[str, object]], T | None],
        keep: Callable[[Store, Store], T],
    ) -> T | None:
        """What can be loaded, or else is kept now, by one process at a time, and its parts cleared; None: no store."""
        if self.store is None:
            return None
        saved = load(self.store, step, key)
        # Apart for all on which the last digits of parts may depend.
        how = {
            "device": self.run.device,
            "threads": torch.get_num_threads(),
            "channels_last": self.run.channels_last,
        }
        every = self.store.part(step, parts_key)
        if saved is not None and not every.folder.exists():
            return saved
        with self.store.claimed(step, key):
            # Another process may have been at it, or was killed before it cleared the parts.
            saved = load(self.store, step, key)
            if saved is None:
                saved = keep(self.store, every.part("run", how))
            every.clear()  # and with them those that were made under other settings
        return saved

    def stored(self) -> list[Result]:
        """All that is stored, of whatever study; with what killed runs have left."""
        return self.store.results() if self.store else []

    def manifests(self) -> list[dict[str, Any]]:
        """What is found again: each result's file, key and checksum."""
        return self.store.manifests() if self.store else []

    def prune(self, days: float | None = None) -> list[Result]:
        """Remove what no study finds any more, and what is older than so many days; returns what was removed."""
        return self.store.prune(lambda result: unwanted(result, days)) if self.store else []

    def has(self, step: str, key: Mapping[str, object]) -> bool:
        """Whether a step is in the store."""
        return self.store is not None and any(self.store.found(step, key, suffix) for suffix in SUFFIXES)
