"""The index of an atlas in a browser: it finds, sorts, filters, and can be linked to; from a disk, in both themes."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from built import DESK, PHONE, Visit, served
from PIL import Image
from test_browser import AXE, OVERFLOWING, VIOLATIONS

from pure_nb import Study
from pure_nb.notes import Note
from pure_nb.show.facts import Atlas
from pure_nb.show.pages import templates_of, write_index
from pure_nb.show.pictures import Strip

DEAD = 31


@pytest.fixture(scope="module")
def made(glyph_study: Study) -> Atlas:
    """What an atlas tells, with made-up words of an embedder and a person's."""
    made = Atlas(glyph_study)
    words = {(channel, part): word for channel in range(0, 20) for part, word in (("A", "Säge"), ("B", "unsure"))}
    vars(made)["names"] = pd.Series(words)
    vars(made)["notes"] = {(22, "B"): Note("rain, cover", 'mostly "red"'), (3, "whole"): Note(text="odd")}
    return made


@pytest.fixture(scope="module")
def rows(made: Atlas) -> dict[int, dict[Any, Any]]:
    """The table of all neurons, one of them dead."""
    table = made.study.neurons.set_index("channel", drop=False)
    table.loc[DEAD, ["score", "q"]] = float("nan")
    return {int(row["channel"]): row for row in table.to_dict("records")}


@pytest.fixture(scope="module")
def folder(made: Atlas, rows: dict[int, dict[Any, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index alone; its links lead to pages with nothing in them."""
    folder = tmp_path_factory.mktemp("site")
    parts = {channel: made.parts(channel) for channel in rows if channel != DEAD}
    thumbs = {channel: Strip(f"thumbs/{channel}.webp", 0) for channel in parts}
    write_index(made, folder, rows, parts, thumbs, templates_of(made, "../book.html"))
    (folder / "thumbs").mkdir()
    for channel in rows:
        Image.new("RGB", (288, 48), (8 * channel, 99, 99)).save(folder / f"thumbs/{channel}.webp")
        (folder / f"{channel}.html").write_text("<title>a neuron</title><link rel=icon href=data:,>")
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> str:
    return (folder / "index.html").as_uri()


def first(visit: Visit, count: int = 8) -> list[int]:
    """The numbers of the first rows."""
    found = visit.page.locator("#neurons tbody th").all_inner_texts()
    return [int(text) for text in found[:count]]


def finds(visit: Visit, count: int) -> None:
    """Wait until it says how many there are."""
    visit.page.locator("#found", has_text=f"{count} of 32 neurons").wait_for()


def address(visit: Visit, ending: str) -> None:
    visit.page.wait_for_function("ending => location.href.endsWith(ending)", arg=ending)


def ask(visit: Visit, name: str, value: str) -> None:
    """Type into a field, or choose in it."""
    field = visit.page.locator(f"#find [name={name}]")
    if field.evaluate("field => field.tagName") == "SELECT":
        field.select_option(value)
    else:
        field.fill(value)


def test_sorted_by_any_column(context: Any, url: str, rows: dict[int, dict[Any, Any]]) -> None:
    with Visit(context, url) as visit:
        assert first(visit) == list(rows)[:8]
        assert visit.page.locator("#neurons tbody th").count() < len(rows)  # only those that are seen
        for key, name in (("strongest", "strongest activation"), ("q", "q")):
            head = visit.page.get_by_role("columnheader", name=name)
            for down in (True, False):
                head.get_by_role("button").click()
                assert head.get_attribute("aria-sort") == ("descending" if down else "ascending")
                values = [rows[channel][key] for channel in first(visit)]
                assert values == sorted((row[key] for row in rows.values() if row[key] == row[key]), reverse=down)[:8]
        visit.page.get_by_role("columnheader", name="neuron").get_by_role("button").click()
        assert first(visit) == list(range(8))
        visit.page.get_by_role("columnheader", name="answers to").get_by_role("button").click()
        texts = [rows[channel]["meanings"] for channel in first(visit)]
        assert texts == sorted(texts)
        visit.page.get_by_role("columnheader", name="score").get_by_role("button").click()
        visit.page.keyboard.press("Enter")  # ascending: the dead come last either way
        assert DEAD not in first(visit)
        assert not visit.troubles


def test_searched_and_filtered(context: Any, url: str, made: Atlas, rows: dict[int, dict[Any, Any]]) -> None:
    with Visit(context, url) as visit:
        ask(visit, "search", "17")
        finds(visit, 1)
        assert first(visit) == [17]
        ask(visit, "search", "umb RAIN")
        assert first(visit) == [22] if "umb" in rows[22]["meanings"] else not first(visit)
        ask(visit, "search", "säge")
        finds(visit, sum(channel < 20 for channel in rows))
        visit.page.get_by_role("button", name="Show all").click()
        assert first(visit) == list(rows)[:8]
        few = sorted(row["q"] for row in rows.values() if row["q"] == row["q"])[9]
        for name, value, expected in (
            ("q", f"{few:.4g}", sum(float(f"{row['q']:.4g}") <= float(f"{few:.4g}") for row in rows.values())),
            ("named", "yes", 21),
            ("named", "no", 11),
            ("named", "hand", 2),
            ("dead", "yes", 1),
            ("dead", "no", 31),
            ("class", "cat", sum("cat" in dict(made.classes(channel)) for channel in rows if channel != DEAD)),
            ("from", "0.1", sum(row["score"] >= 0.1 for row in rows.values())),
            ("to", "0.1", sum(row["score"] <= 0.1 for row in rows.values())),
        ):
            assert 0 < expected < 32, name
            ask(visit, name, value)
            finds(visit, expected)
            ask(visit, name, "")
        assert not visit.troubles


def test_the_histogram_is_brushed(context: Any, url: str, rows: dict[int, dict[Any, Any]]) -> None:
    with Visit(context, url) as visit:
        box = visit.page.locator("#scores").bounding_box()
        low, middle = box["x"] + 0.255 * box["width"], box["y"] + box["height"] / 2
        visit.page.mouse.move(low, middle)
        visit.page.mouse.down()
        visit.page.mouse.move(low + 0.24 * box["width"], middle, steps=3)
        visit.page.mouse.up()
        scores = [row["score"] for row in rows.values() if row["score"] == row["score"]]
        least, most = min(scores), max(scores)
        start, end = (float(visit.page.get_by_label(label, exact=True).input_value()) for label in ("Score from", "to"))
        assert (start, end) == pytest.approx((least + 0.25 * (most - least), least + 0.5 * (most - least)), abs=1e-3)
        finds(visit, sum(start <= row["score"] <= end for row in rows.values()))
        heights = [
            float(one)
            for one in visit.page.locator("#scores rect").evaluate_all("all => all.map(a => a.getAttribute('height'))")
        ]
        counts = [0] * 40
        for score in scores:
            counts[min(39, int(40 * (score - least) / (most - least)))] += 1
        assert heights == pytest.approx([58 * (count / max(counts)) ** 0.5 for count in counts], abs=1e-3)
        assert [height > 0 for height in heights] == [count > 0 for count in counts]


def test_keys_lead_through_the_rows(context: Any, url: str, rows: dict[int, dict[Any, Any]]) -> None:
    def focused() -> str:
        return str(visit.page.evaluate("document.activeElement.textContent"))

    with Visit(context, url) as visit:
        visit.page.keyboard.press("/")
        visit.page.keyboard.type("1")
        assert visit.page.get_by_label("Search").input_value() == "1"
        visit.page.keyboard.press("Backspace")
        visit.page.keyboard.press("ArrowDown")
        assert focused() == str(next(iter(rows)))
        for key, place in (
            ("ArrowDown", 1),
            ("ArrowDown", 2),
            ("ArrowUp", 1),
            ("End", 31),
            ("ArrowDown", 31),
            ("Home", 0),
        ):
            visit.page.keyboard.press(key)
            assert focused() == str(list(rows)[place]), key
            bottom = "document.activeElement.getBoundingClientRect().bottom"
            seen = f"{bottom} <= document.getElementById('box').getBoundingClientRect().bottom"
            assert visit.page.evaluate(seen)
        visit.page.keyboard.press("PageDown")
        visit.page.keyboard.press("PageDown")
        far = int(focused())
        assert list(rows).index(far) > 8
        visit.page.keyboard.press("Enter")
        visit.page.wait_for_url(f"**/{far}.html")
        visit.page.go_back()
        visit.page.locator(f"#neurons tbody th >> text='{far}'").wait_for()
        box = "document.getElementById('box').scrollTop"
        assert visit.page.evaluate(box) > 0  # where one was
        visit.page.mouse.move(600, 600)
        visit.page.locator("#box").focus()
        visit.page.keyboard.press("End")
        assert focused() == str(list(rows)[-1])
        visit.page.mouse.wheel(0, -9000)
        visit.page.wait_for_function(f"{box} === 0")
        visit.page.keyboard.press("ArrowDown")  # the row that was left is gone: it goes on from what is seen
        assert focused() == str(next(iter(rows)))
        assert not visit.troubles


def test_what_is_shown_is_in_the_address(context: Any, url: str) -> None:
    with Visit(context, url) as visit:
        ask(visit, "search", "säge")
        address(visit, "index.html#search=s%C3%A4ge")
        ask(visit, "named", "yes")
        address(visit, "#search=s%C3%A4ge&named=yes")  # what follows at once would share its place in the history
        visit.page.get_by_role("columnheader", name="neuron").get_by_role("button").click()
        address(visit, "#search=s%C3%A4ge&named=yes&sort=neuron")
        visit.page.get_by_text("Columns and").click()
        visit.page.get_by_label("strongest images").uncheck()
        visit.page.wait_for_function("location.href.includes('&columns=')")
        visit.page.get_by_label("images of each").check()
        address(visit, "&columns=k%2Csizes%2Cscore%2Cq%2Cstrongest%2Cmeanings%2Cnamed%2Cnotes")
        heads = visit.page.locator("#neurons thead th").all_inner_texts()
        assert heads[:3] == ["neuron", "parts", "images of each"]
        shown, link = first(visit), visit.page.url
        visit.page.evaluate("location.hash = '#content'")  # leads to a heading, and changes nothing
        assert first(visit) == shown
        for _ in range(5):
            visit.page.go_back()
        visit.page.wait_for_function("document.querySelector('#find [name=named]').value === ''")
        assert visit.page.get_by_label("Search").input_value() == "säge"
        visit.page.go_back()
        visit.page.wait_for_function("document.querySelector('#search').value === ''")
        assert "#" not in visit.page.url
        visit.page.go_forward()
        finds(visit, 20)
        assert not visit.troubles
    with Visit(context, f"{link}&map.zoom=3&sort=none") as visit:
        assert first(visit) == shown
        assert visit.page.locator("#neurons thead th").all_inner_texts() == heads
        ask(visit, "search", "")
        visit.page.wait_for_function("!location.href.includes('search')")
        assert "map.zoom=3" in visit.page.url  # what another script keeps there


def test_links_that_nothing_answers_to(context: Any, url: str, rows: dict[int, dict[Any, Any]]) -> None:
    for ending in ("#content", "#search=%E0%A4%A", "#sort=nonsense&columns=thumb,nothing&parts=77&class=none&q=x"):
        with Visit(context, url + ending) as visit:
            assert visit.page.locator("#neurons thead th").count()
            assert not visit.troubles


def test_other_scripts_show_some_only(context: Any, url: str, rows: dict[int, dict[Any, Any]]) -> None:
    with Visit(context, url) as visit:
        visit.page.evaluate("pureNbIndex.only([3, 22], 'near <b>rain')")
        finds(visit, 2)
        assert set(first(visit)) == {3, 22}
        address(visit, "#only=3%2C22&of=near+%3Cb%3Erain")
        chip = visit.page.locator("#only")
        assert "near <b>rain" in chip.inner_text()
        chip.get_by_role("button").click()
        assert first(visit) == list(rows)[:8]
        visit.page.evaluate("pureNbIndex.only([])")
        finds(visit, 0)
        assert not visit.troubles


def test_tables_to_take_along(context: Any, url: str, rows: dict[int, dict[Any, Any]]) -> None:
    def taken(name: str) -> str:
        with visit.page.expect_download() as download:
            visit.page.get_by_role("button", name=name).click()
        return Path(download.value.path()).read_text(encoding="utf-8")

    with Visit(context, url) as visit:
        visit.page.get_by_text("Columns and").click()
        table = list(csv.DictReader(io.StringIO(taken("CSV"), newline="")))
        every = json.loads(taken("JSON"))
        assert [int(row["neuron"]) for row in table] == [row["neuron"] for row in every] == list(rows)
        for row, whole in zip(table, every, strict=True):
            own = rows[int(row["neuron"])]
            assert row["meanings"] == whole["meanings"] == own["meanings"]
            for key in ("k", "p", "strongest"):
                assert float(row[key]) == whole[key] == pytest.approx(own[key], rel=1e-3)
        dead = next(row for row in every if row["neuron"] == DEAD)
        named = next(row for row in table if row["neuron"] == "22")
        assert (dead["score"], table[every.index(dead)]["score"]) == (None, "")
        assert (named["named"], named["notes"]) == ("B “rain, cover” (by hand)", 'B mostly "red"')
        ask(visit, "search", "17")
        assert len(json.loads(taken("JSON"))) == 1  # what is shown


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE])
def test_accessible_in_both_themes(browser: Any, url: str, theme: str, size: dict[str, int]) -> None:
    context = browser.new_context(viewport=size, color_scheme=theme, has_touch=size == PHONE)
    with Visit(context, url) as visit:
        visit.page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        visit.page.evaluate("pureNbIndex.only([3, 22, 31, 5], 'some')")
        assert visit.page.evaluate(OVERFLOWING) == []
        visit.page.add_script_tag(path=AXE)
        assert visit.page.evaluate(VIOLATIONS, size == DESK) == []
        if size == PHONE:
            low = "all => all.filter(one => one.offsetHeight && one.offsetHeight < 44).map(one => one.outerHTML)"
            assert (
                visit.page.locator(
                    "#find :is(button, select, input:not([type=checkbox]), summary), #box th button"
                ).evaluate_all(low)
                == []
            )
    context.close()


def test_the_books_own_switch(browser: Any, folder: Path) -> None:
    context = browser.new_context(color_scheme="light")
    dark = "getComputedStyle(document.body).backgroundColor === 'rgb(22, 22, 22)'"
    with served(folder) as address, Visit(context, f"{address}/index.html") as visit:
        assert not visit.page.evaluate(dark)
        with Visit(context, f"{address}/3.html") as other:  # as the book's theme does, in another tab
            other.page.evaluate("localStorage.setItem('mode', 'dark')")
            visit.page.wait_for_function(dark)
            other.page.evaluate("localStorage.setItem('mode', 'auto')")
            visit.page.wait_for_function(f"!({dark})")
    context.close()


def test_numbers_remain_without_scripts(browser: Any, url: str, rows: dict[int, dict[Any, Any]]) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(url)
    assert [int(text) for text in page.locator("ul.pairs a").all_inner_texts()] == list(rows)
    assert page.locator("#find").is_hidden()
    context.close()
