"""Which size of batches suits a network and a machine: ``batch_size="auto"``.

On a GPU it is the largest power of two that fits, found by trial; on a CPU the smallest one beyond which images take no
less time. What is tried are circuits, for which a network runs forward, and back from the target to the lower layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import torch

from pure_nb.errors import PureError, StudyError
from pure_nb.methods.circuits import cuts
from pure_nb.parameters import Run

if TYPE_CHECKING:
    from pure_nb.study import Study

MOST = 1024
"""Images in the largest batch that is tried."""

FIRST = 8
"""Images in the smallest batch that is tried on a CPU."""

GAIN = 0.95
"""On a CPU, twice as many at once are worth it if each image takes at most this part of the time."""


def largest(tried: Callable[[int], object], most: int) -> int:
    """The largest power of two up to ``most`` that can be tried without running out of memory; 0 if not even one can.

    Parameters
    ----------
    tried
        Runs a batch of so many images.
    most
        No more are tried.
    """
    size = 1
    while size <= most:
        try:
            tried(size)
        except (PureError, RuntimeError) as problem:  # torch.OutOfMemoryError is one, and that of other devices
            if "out of memory" not in f"{problem} {problem.__cause__}".lower():
                raise
            break
        size *= 2
    return size // 2


def fastest(tried: Callable[[int], object], most: int, clock: Callable[[], float] = perf_counter) -> int:
    """The power of two up to ``most`` beyond which images take no less time each.

    Parameters
    ----------
    tried, most
        As for :func:`largest`.
    clock
        In seconds.
    """
    size, before = min(FIRST, most), inf
    tried(size)  # whatever takes time only once
    while size <= most:
        begin = clock()
        tried(size)
        each = (clock() - begin) / size
        if each > GAIN * before:
            break
        size, before = 2 * size, each
    return max(1, size // 2)


def measured(study: Study) -> Run:
    """The run of a study with the size of batches that suits it.

    The size is kept in the study's store, since what a run that was stopped has finished is of batches of this size.

    Raises
    ------
    StudyError
        If results would depend on the size, not even one image fits, or other machines are to compute.
    """
    model, parameters, run, store = study.model, study.parameters, study.run, study.store
    if parameters.allow_nondeterministic:
        raise StudyError("batch_size must be a number with allow_nondeterministic, since results depend on it")
    if run.device != run.local_device:
        raise StudyError(f"batch_size must be a number on a cluster, whose device {run.device!r} can't be tried here")
    example, count = study.images.example, len(study.images)
    key: dict[str, object] = {"step": "batches", "network": type(model).__name__, "image": list(example.shape)}
    key |= {"weights": sum(one.numel() for one in model.parameters()), "threads": torch.get_num_threads()}
    key |= {"target": parameters.target, "lower": parameters.lower, "device": run.device, "most": count}
    card = torch.cuda.get_device_name(run.device) if run.device.startswith("cuda") else ""
    key |= {"rule": parameters.rule, "card": card}
    if store and (saved := store.load_arrays("batches", key)):
        return replace(run, batch_size=int(saved[0]["size"]))

    def tried(size: int) -> None:
        batch = example.to(run.device).expand(size, *example.shape).contiguous()
        cut_at(batch).relevance(np.zeros(size, dtype=np.int64), last=True)  # which looks at the result, and so waits

    most = min(MOST, 1 << (count - 1).bit_length())
    asked = (parameters.target, parameters.lower, parameters.rule)
    with run.prepared(model), cuts(model, example[None].to(run.device), *asked) as cut_at:
        size = fastest(tried, most) if run.device == "cpu" else largest(tried, most)
    if run.device.startswith("cuda"):
        torch.cuda.empty_cache()
    if not size:
        raise StudyError(f"{type(model).__name__} does not fit into the memory of {run.device!r} with a single image")
    if store:
        store.save_arrays("batches", key, {"size": np.array(size)}, None)
    return replace(run, batch_size=size)
