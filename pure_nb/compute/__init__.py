"""How it runs, and where results are: one pass, blocks of pairs, the store, clusters."""

from typing import TYPE_CHECKING

from pure_nb._imports import lazily

if TYPE_CHECKING:
    from pure_nb.compute.cluster import connect
    from pure_nb.compute.store import Store
    from pure_nb.compute.sweep import shards
else:
    __getattr__, __dir__ = lazily(__name__)

__all__ = ["Store", "connect", "shards"]
