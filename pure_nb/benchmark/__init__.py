"""Is it right, says a truth that is known: planted channels, contestants, leaderboards."""

from typing import TYPE_CHECKING

from pure_nb._imports import lazily

if TYPE_CHECKING:
    from pure_nb.benchmark.contestants import Contestant
    from pure_nb.benchmark.leaderboards import compete
    from pure_nb.benchmark.worlds import objects_world, planted_world
else:
    __getattr__, __dir__ = lazily(
        __name__, {"contestants": "Contestant", "leaderboards": "compete", "worlds": "objects_world planted_world"}
    )

__all__ = ["Contestant", "compete", "objects_world", "planted_world"]
