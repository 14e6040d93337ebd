"""Whole studies for the eye: reports, explorers, the atlas."""

from typing import TYPE_CHECKING

from pure_nb._imports import lazily

if TYPE_CHECKING:
    from pure_nb.show.atlas import write as write_atlas
    from pure_nb.show.report import evaluate, part_names
    from pure_nb.show.widgets import explore, explorer
else:
    __getattr__, __dir__ = lazily(__name__)

__all__ = ["evaluate", "explore", "explorer", "part_names", "write_atlas"]
