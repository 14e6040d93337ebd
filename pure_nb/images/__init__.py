"""Which images: what they are read from, and what is known of them."""

from typing import TYPE_CHECKING

from pure_nb._imports import lazily

if TYPE_CHECKING:
    from pure_nb.images.boxes import boxed_images
    from pure_nb.images.data import Images
    from pure_nb.images.sources import Reader, as_images, preprocessing
else:
    __getattr__, __dir__ = lazily(__name__)

__all__ = ["Images", "Reader", "as_images", "boxed_images", "preprocessing"]
