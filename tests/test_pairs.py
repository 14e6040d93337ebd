"""Two networks side by side as pages: what was matched is what compare finds, and it can be searched and linked to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from built import DESK, PHONE, Visit
from PIL import Image
from small import noise, plain
from test_browser import AXE, OVERFLOWING, VIOLATIONS
from test_comparing import study_of

from pure_nb import Study, write_atlas
from pure_nb.errors import ArgumentError, StudyError
from pure_nb.show.comparing import compare
from pure_nb.show.map import cuts, small_pictures
from pure_nb.show.pictures import STRIP, THUMB


@pytest.fixture(scope="module")
def studies() -> list[Study]:
    """One network, split into two parts and into three."""
    return [study_of(plain(), crop="activation", name="two"), study_of(plain(), n_clusters=3, crop="activation")]


@pytest.fixture(scope="module")
def folder(studies: list[Study], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs") / "site"
    write_atlas(studies[0], folder, other=studies[1])
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> str:
    return (folder / "index.html").as_uri()


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """What the page's table holds."""
    text = (folder / "data/index.js").read_text(encoding="utf-8")
    told = json.loads(text[text.index("(") + 1 : text.rindex(")")])
    return [dict(zip(told["columns"], row)) for row in told["rows"]]


@pytest.mark.parametrize("by", ["pictures", "circuits"])
def test_rows_are_the_pairs_that_compare_finds(studies: list[Study], folder: Path, by: str) -> None:
    table = compare(studies[0], studies[1], "images" if by == "pictures" else "circuits")
    expected = {
        (*(None if pd.isna(value) else f"{value}" for value in row[:4]), row[5]): row[4]
        for row in table.astype(object).itertuples(index=False, name=None)
    }
    rows = [row for row in rows_of(folder) if row["by"] == by]
    found = {
        (*map(str, row["one"] or [None] * 2), *map(str, row["other"] or [None] * 2), row["what"]): row for row in rows
    }
    assert {tuple(None if one == "None" else one for one in key) for key in found} == set(expected)
    for key, row in found.items():
        value = expected[tuple(None if one == "None" else one for one in key)]
        assert (row[by] is None) == (pd.isna(value) or row["one"] is None or row["other"] is None)
        assert row["alike"] == row[by]
        if row[by] is not None:
            assert row[by] == pytest.approx(value, abs=1e-3)
    values = [-2 if row["alike"] is None else row["alike"] for row in rows]
    assert values == sorted(values, reverse=True)
    assert {"matched", "split"} <= {row["what"] for row in rows}


def test_strips_show_the_strongest_of_each_part(studies: list[Study], folder: Path) -> None:
    for row in rows_of(folder)[:4]:
        for name, study, own in (("one", studies[0], "A"), ("other", studies[1], "B")):
            channel, letter = row[name]
            file, at = row[f"images_{name}"]
            neuron = study.neuron(channel)
            ranks = neuron.members("ABC".index(letter))[:STRIP].tolist()
            expected = small_pictures(folder / own, cuts(folder / own, channel, ranks), THUMB)
            with Image.open(folder / file) as image:
                sheet = np.asarray(image.convert("RGB")).astype(int)
            top = round(at / 100 * (len(sheet) - THUMB))
            for place, tile in enumerate(expected):
                found = sheet[top : top + THUMB, place * THUMB : (place + 1) * THUMB]
                assert np.abs(found - tile).mean() < 25  # noise, of which the file loses much


def test_found_filtered_and_linked(context: Any, url: str, folder: Path) -> None:
    rows = rows_of(folder)
    pictures = [row for row in rows if row["by"] == "pictures"]
    with Visit(context, url) as visit:
        page = visit.page

        def shown() -> list[list[str]]:
            cells = "all => all.map(row => [...row.cells].filter(cell => cell.matches('.of-what, .of-one, .of-other'))"
            return page.locator("#neurons tbody:not([aria-hidden]) tr").evaluate_all(
                f"{cells}.map(cell => cell.textContent))"
            )

        def told(row: dict[str, Any]) -> list[str]:
            return [row["what"], *(" ".join(map(str, row[name])) if row[name] else "–" for name in ("one", "other"))]

        assert shown()[:5] == [told(row) for row in pictures[:5]]
        page.locator("[name=what]").select_option("split")
        split = [told(row) for row in pictures if row["what"] == "split"]
        page.locator("#found", has_text=f"{len(split)} of {len(pictures)} pairs").wait_for()
        assert shown() == split
        page.wait_for_function("location.hash === '#what=split'")
        page.locator("[name=by]").select_option("circuits")
        page.wait_for_function("location.hash === '#what=split&by=circuits'")
        assert shown() == [told(row) for row in rows if row["by"] == "circuits" and row["what"] == "split"]
        page.go_back()
        page.wait_for_function("document.querySelector('[name=by]').value === ''")
        assert shown() == split
        page.locator("[name=what]").select_option("")
        page.get_by_label("Search").fill("3")
        page.wait_for_function("location.hash.includes('search=3')")
        assert all(row[1].startswith("3 ") or row[2].startswith("3 ") for row in shown())
        first = page.locator("#neurons tbody .of-other a").first
        channel, letter = first.inner_text().split()
        first.click()
        page.wait_for_url(f"**/B/{channel}.html#{letter}")
        page.get_by_role("link", name="Both side by side").click()
        page.wait_for_url("**/site/index.html")
        assert not visit.troubles


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE])
def test_accessible_in_both_themes(browser: Any, url: str, theme: str, size: dict[str, int]) -> None:
    context = browser.new_context(viewport=size, color_scheme=theme, has_touch=size == PHONE)
    with Visit(context, url) as visit:
        visit.page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        assert visit.page.evaluate(OVERFLOWING) == []
        cut = "all => all.filter(row => row.scrollHeight > row.clientHeight + 1).length"
        assert visit.page.locator("#neurons tbody:not([aria-hidden]) tr").evaluate_all(cut) == 0
        visit.page.add_script_tag(path=AXE)
        assert visit.page.evaluate(VIOLATIONS, size == DESK) == []
    context.close()


def test_some_neurons_and_what_can_not_be_matched(studies: list[Study], tmp_path: Path) -> None:
    other = study_of(plain(seed=1), crop="activation", name="other")
    write_atlas(studies[0], tmp_path / "site", other=other, channels=[3])
    page = (tmp_path / "site/index.html").read_text(encoding="utf-8")
    assert "Not by circuits: circuits are compared where they come from the same lower channels" in page
    rows = rows_of(tmp_path / "site")
    assert {row["by"] for row in rows} == {"pictures"}
    assert {row["one"][0] for row in rows} == {3}
    assert [path.stem for path in (tmp_path / "site/A").glob("[0-9]*.html")] == ["3"]
    pages = {int(path.stem) for path in (tmp_path / "site/B").glob("[0-9]*.html")}
    assert pages == {row["other"][0] for row in rows if row["other"]}
    strange = study_of(plain(seed=1), noise(40, seed=1).sigmoid(), name="strange")
    with pytest.raises(StudyError, match="'two' and 'strange' can't be compared: parts share images only if"):
        write_atlas(studies[0], tmp_path / "none", other=strange)
    with pytest.raises(ArgumentError, match="side by side by one layer each"):
        write_atlas(studies[0], tmp_path / "none", other=other, layers=["4", "2"])
