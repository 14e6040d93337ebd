"""A picture that is dropped into the explorer in Jupyter, explained: what its panel asks, and what it is told."""

from __future__ import annotations

import base64
from dataclasses import replace
from io import BytesIO
from typing import TYPE_CHECKING, Any

from PIL import Image, UnidentifiedImageError

from pure_nb.errors import ImageError
from pure_nb.reasons.explaining import output_count

if TYPE_CHECKING:
    from pure_nb.study import Study


def answer(study: Study, asked: dict[str, Any]) -> dict[str, Any]:
    """What the panel is told.

    Parameters
    ----------
    study
        By whose parts pictures are explained.
    asked
        Nothing, for the names of the ``outputs``; or a ``picture``, an address with its bytes in it, its ``name``, and
        the numbers of the ``output`` and of the one ``against`` it, None for the largest and for none.

    Raises
    ------
    ImageError
        If the file is no picture, or not of the size of the study's images.
    """
    if "picture" not in asked:
        return {"outputs": study.classes.output_names(output_count(study))}
    content = base64.b64decode(asked["picture"].partition(",")[2])
    try:
        with Image.open(BytesIO(content)) as opened:
            picture = opened.copy()
    except (UnidentifiedImageError, OSError) as problem:
        raise ImageError(f"{asked['name']!r} can't be read as a picture; choose a PNG, JPEG or WebP file") from problem
    found = study.explain(picture, asked["output"], against=asked["against"])
    return {"html": replace(found, picture=found.picture._replace(name=asked["name"]))._repr_html_()}
