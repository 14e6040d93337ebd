"""The benchmark, where the right answer is known: planted channels, contestants, leaderboards."""

from typing import TYPE_CHECKING

from pure_nb._imports import lazily

if TYPE_CHECKING:
    from pure_nb.benchmark.contestants import Contestant
    from pure_nb.benchmark.leaderboards import run_benchmark
    from pure_nb.benchmark.tasks import objects_task, planted_task
else:
    __getattr__, __dir__ = lazily(__name__)

__all__ = ["Contestant", "objects_task", "planted_task", "run_benchmark"]
