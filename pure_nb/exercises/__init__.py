"""Exercises of the book: a reader's function is tried on fresh inputs, beside one that is right."""

from typing import TYPE_CHECKING

from pure_nb._imports import lazily

if TYPE_CHECKING:
    from pure_nb.exercises.verdicts import check
else:
    __getattr__, __dir__ = lazily(__name__)

__all__ = ["check"]
