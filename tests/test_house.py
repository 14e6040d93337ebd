"""The drawing of the house is that of the import contract."""

from __future__ import annotations

import draw_house
from small import ROOT


def test_every_member_is_in_one_layer() -> None:
    package = ROOT / "pure_nb"
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    modules = {path.stem for path in package.glob("*.py")} - {"__init__"}
    assert sorted(name for layer in draw_house.layers() for name in layer) == sorted(folders | modules)


def test_the_drawing_is_up_to_date() -> None:
    drawn = draw_house.drawing()
    assert drawn in draw_house.PAGE.read_text(encoding="utf-8"), "run python tools/draw_house.py"
    assert drawn.count("<br>") == drawn.count("<b>") == sum(map(len, draw_house.layers()))
    assert '<br>"' not in drawn  # each says something of itself
