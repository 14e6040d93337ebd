"""What is sent to workers, as bytes: networks and data sets by themselves, so that they travel once for all steps."""

from __future__ import annotations

import pickle
import sys
from functools import lru_cache
from io import BytesIO
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from pure_nb._imports import needed
from pure_nb._resting import frozen_eval
from pure_nb.errors import ClusterError
from pure_nb.images.data import Images
from pure_nb.network.models import USER

with needed("cluster", "clusters need", ClusterError):
    import cloudpickle

PIECES = 4
"""Networks and data sets that are kept for the next step, by the client and by each worker: a study has one of each."""


def packed(thing: object) -> tuple[bytes, list[bytes]]:
    """A thing as bytes, and apart from it the networks and data sets that are somewhere in it."""
    for name, module in list(sys.modules.items()):
        if name.startswith(USER):  # a user's own file, which workers can't import
            cloudpickle.register_pickle_by_value(module)
    apart: dict[int, tuple[int, Any]] = {}

    class Packer(cloudpickle.Pickler):  # type: ignore[misc]
        def persistent_id(self, one: Any) -> int | None:
            if isinstance(one, Images) or (isinstance(one, nn.Module) and any(True for _ in one.parameters())):
                return apart.setdefault(id(one), (len(apart), one))[0]
            return None

    buffer = BytesIO()
    Packer(buffer).dump(thing)
    every = [one for _, one in apart.values()]
    networks = sorted((one for one in every if isinstance(one, nn.Module)), key=lambda one: -len(list(one.modules())))

    def home(one: Any) -> tuple[Any, str]:
        """A layer goes with its network, so that it is the same object there as well."""
        found = ((root, name) for root in networks for name, part in root.named_modules() if part is one)
        return next(found, (one, ""))

    homes = list(map(home, every))
    roots = list({id(root): root for root, _ in homes}.values())
    numbers = {id(root): number for number, root in enumerate(roots)}
    places = [(numbers[id(root)], name) for root, name in homes]
    return pickle.dumps((buffer.getvalue(), places)), list(map(_alone, roots))


_IMAGES: WeakKeyDictionary[Images, bytes] = WeakKeyDictionary()
"""Data sets as bytes: they do not change, but for what some note while they are read, and can be long."""


def _alone(root: Any) -> bytes:
    """A network at rest, since its state of the moment would make it another one; or a data set."""
    if isinstance(root, nn.Module):
        with frozen_eval(root, "cpu", torch.contiguous_format):
            return bytes(cloudpickle.dumps(root))
    if root not in _IMAGES:
        _IMAGES[root] = cloudpickle.dumps(root)
    return _IMAGES[root]


# What is unpickled, here and below, comes from the client through Dask, which itself sends pickles: who can send one
# can have the workers compute anything as it is. None comes from a file: nothing in a store is ever unpickled.
@lru_cache(maxsize=PIECES)
def _piece(pack: bytes) -> Any:
    return pickle.loads(pack)


@lru_cache(maxsize=1)
def received(packed: bytes, *packs: bytes) -> Any:
    """The inverse of :func:`packed`; the same network or data set is the same object for one thing after the other."""
    inner, places = pickle.loads(packed)

    class Unpacker(pickle.Unpickler):
        def persistent_load(self, number: int) -> Any:
            place, name = places[number]
            found = _piece(packs[place])
            return found.get_submodule(name) if name else found

    return Unpacker(BytesIO(inner)).load()


def forget() -> None:
    """Let the last thing go, and the processes that load images for it."""
    received.cache_clear()
