"""Explanations, and the outliers among them, as one HTML file each, with its pictures in it."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from pure_nb._imports import needed
from pure_nb.figures.render import Picture, resized

with needed("show", "the page of an explanation needs"):
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

if TYPE_CHECKING:
    import pandas as pd

    from pure_nb.reasons.explaining import Explanation
    from pure_nb.reasons.outliers import Outliers

STATIC = Path(__file__).with_name("static")
"""The template and the style of the page."""

SIDE, TILE = 224, 112
"""Sides in pixels of the picture that is explained, and of all others."""


def section(found: Explanation) -> str:
    """An explanation as a part of a page, with its own style."""
    return _explained("section.html", found)


def whole_page(found: Explanation) -> str:
    """An explanation as a page of its own."""
    return _explained("page.html", found)


def outliers_page(found: Outliers) -> str:
    """Outliers as a page of its own."""
    how = {"inner": "outliers.html", "title": f"Outliers of {found.study.name}"}
    return environment().get_template("page.html").render(found=found, tile=TILE, **how)


def _explained(name: str, found: Explanation) -> str:
    rest = found.table[found.table["part"] == ""].to_dict("records")
    checked = _checked(found.faithfulness.areas) if "faithfulness" in vars(found) else None  # where it was asked for
    how = {"inner": "section.html", "title": f"Why {found.output}? {found.study.name}", "side": SIDE, "tile": TILE}
    most = found.table["share"].abs().max()
    return environment().get_template(name).render(found=found, rest=rest, checked=checked, most=most, **how)


def environment() -> Environment:
    """The templates, and how they write shares and pictures."""
    pages = Environment(loader=FileSystemLoader(STATIC), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    pages.filters |= {"uri": uri, "percent": percent}
    return pages


def _checked(areas: pd.DataFrame) -> dict[str, Any]:
    """The areas between the curves: a row for each order, a column for each ablation."""
    wide = areas.pivot(index="order", columns="ablation", values="between")
    wide = wide.loc[areas["order"].unique(), areas["ablation"].unique()]
    return {"units": areas["units"].max(), "columns": [*wide], "rows": dict(zip(wide.index, wide.to_numpy().tolist()))}


def percent(share: float) -> str:
    """A share as ``"+12.3 %"``, with a minus that is one."""
    return f"{100 * share:+.1f} %".replace("-", "−")


def uri(picture: Picture, side: int) -> str:
    """A picture as a page holds it."""
    buffer = BytesIO()
    Image.fromarray(resized(picture, 2 * side)).save(buffer, "webp", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
