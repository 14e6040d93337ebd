"""Why did the network say so? Outputs explained by the parts of neurons: a picture, a class, through all layers."""

from typing import TYPE_CHECKING

from pure_nb._imports import lazily

if TYPE_CHECKING:
    pass  # a study hands out all that is in here
else:
    __getattr__, __dir__ = lazily(__name__)

__all__: list[str] = []
