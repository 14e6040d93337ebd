"""A neuron's page: the matrix of its parts and lower channels, two neurons on one page, several layers in one site."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from built import DESK, PHONE, Visit
from numpy.typing import NDArray
from test_browser import AXE, OVERFLOWING, VIOLATIONS
from typer.testing import CliRunner

from pure_nb import Study
from pure_nb.cli import app
from pure_nb.errors import LayerError, StudyError
from pure_nb.methods.virtual import part_name
from pure_nb.reasons import together as ranked
from pure_nb.show import atlas, passing
from pure_nb.show.facts import Atlas
from pure_nb.show.layers import stacked
from pure_nb.show.matrix import CARRYING, LEAST, RHO, ROWS, chosen, compact, differences, told
from pure_nb.show.passing import CLEARLY, LOOKED, passed_through
from tests.small import noise, plain

CHANNELS = [3, 8, 22]


def slow_differences(means: list[list[float]], sizes: list[int]) -> list[float]:
    """The variance between parts, channel by channel."""
    if len(means) == 1:
        return [0.0] * len(means[0])
    found = []
    for lower in range(len(means[0])):
        own = [row[lower] for row in means[1:]]
        middle = sum(size * value for size, value in zip(sizes, own)) / sum(sizes)
        found.append(sum(size * (value - middle) ** 2 for size, value in zip(sizes, own)) / sum(sizes))
    return found


def slow_chosen(means: list[list[float]], sizes: list[int]) -> list[tuple[int, int]]:
    """Which channels are shown, each with its owner, in their order."""
    carried, differ = [abs(value) for value in means[0]], slow_differences(means, sizes)
    every = range(len(carried))
    some = [c for c in sorted(every, key=lambda c: -carried[c])[:CARRYING] if carried[c] > 0]
    others = [c for c in sorted(every, key=lambda c: -differ[c]) if c not in some and differ[c] > 0]
    found = []
    for lower in some + others[: ROWS - CARRYING]:
        own = [max(0.0, row[lower]) for row in means[1:]]
        owner = -1
        for part, value in enumerate(own):
            if all(RHO * value > other for place, other in enumerate(own) if place != part) and len(own) > 1:
                owner = part
        found.append((owner, -abs(means[0 if owner < 0 else 1 + owner][lower]), lower))
    return [(owner, lower) for owner, _, lower in sorted(found, key=lambda entry: entry[:2])]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_matrix_is_what_it_says(k: int) -> None:
    generator = np.random.default_rng(k)
    sizes = generator.integers(1, 40, k).tolist()
    parts = generator.normal(0, 0.04, (k, 40))
    whole = (np.array(sizes)[:, None] * parts).sum(axis=0) / sum(sizes)
    means = whole[None] if k == 1 else np.vstack([whole, parts])
    slow = means.tolist()
    assert differences(means, sizes) == pytest.approx(slow_differences(slow, sizes), rel=1e-9, abs=1e-15)
    rows = chosen(means, sizes)
    assert rows == slow_chosen(slow, sizes)
    assert len(rows) == (CARRYING if k == 1 else ROWS)
    differ = slow_differences(slow, sizes)
    share = "" if k == 1 else f"{sum(differ[lower] for _, lower in rows) / sum(differ):.0%}"
    assert told(means, sizes) == share
    found = compact(means, sizes)
    assert found["sizes"] == sizes
    assert [row[0] for row in found["rows"][: found["shown"]]] == [lower for _, lower in rows]
    large = {c for c in range(40) if max(abs(row[c]) for row in slow) >= LEAST}
    assert {row[0] for row in found["rows"]} == large | {lower for _, lower in rows}
    for lower, *shares in found["rows"]:
        assert shares == [round(1000 * row[lower]) for row in slow]


def matrix(page: Path) -> tuple[list[str], dict[int, list[str]], dict[int, str], Any]:
    """The heads of a page's table, the cells of each lower channel, the block it is in, and the table."""
    text = re.search(r'<table class="matrix" id="circuits">.*?</table>', page.read_text(encoding="utf-8"), re.DOTALL)
    assert text
    table = ElementTree.fromstring(text[0])
    cells, block, said = {}, {}, ""
    for row in table.findall("tbody/tr"):
        if row.findall("td"):
            cells[lower_of(row)] = [words(cell).split()[0] for cell in row.findall("td")]
            block[lower_of(row)] = said
        else:
            said = words(row).strip()
    return [words(head).strip() for head in table.findall("thead//th")], cells, block, table


def words(element: ElementTree.Element) -> str:
    return "".join(element.itertext())


def lower_of(row: ElementTree.Element) -> int:
    return int(words(row[0]).split()[-1])


@pytest.fixture(scope="module")
def folder(glyph_study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An atlas of three neurons."""
    folder = tmp_path_factory.mktemp("site")
    atlas.write(glyph_study, folder, channels=CHANNELS)
    return folder


def means(study: Study, channel: int) -> NDArray[np.float64]:
    """Mean circuits of a neuron and of its two parts, image by image in float64."""
    labels = study.virtual_of(channel).labels.tolist()
    vectors = study.circuits[channel].astype(np.float64)
    every = [vectors, *([one for one, label in zip(vectors, labels) if label == part] for part in (0, 1))]
    return np.stack([sum(some) / len(some) for some in every])


def test_a_page_shows_shares_with_signs_in_blocks(glyph_study: Study, folder: Path) -> None:
    for channel in CHANNELS:
        own = means(glyph_study, channel)
        heads, cells, block, table = matrix(folder / f"{channel}.html")
        assert heads == ["layer3", "all", "A", "B"]
        rows = chosen(own, glyph_study.virtual_of(channel).sizes)
        assert [(lower, block[lower]) for lower in cells] == [
            (lower, "Shared" if owner < 0 else f"Mostly {'AB'[owner]}") for owner, lower in rows
        ]
        for lower, shown in cells.items():
            assert [float(text.replace("−", "-")) for text in shown] == pytest.approx(100 * own[:, lower], abs=0.051)
            assert not any(text in ("-0.0", "−0.0") for text in shown)
        less = table.findall(".//td[@class='less']")
        assert less
        assert all(words(cell).startswith(("−", "0.0")) for cell in less)


def test_what_two_neurons_are_compared_by(glyph_study: Study, folder: Path) -> None:
    text = (folder / "circuits.js").read_text(encoding="utf-8")
    known = {int(number): json.loads(own) for number, own in re.findall(r"^(\d+):(\{.*\}),?$", text, re.MULTILINE)}
    assert sorted(known) == CHANNELS
    for channel, own in known.items():
        assert own == compact(means(glyph_study, channel), glyph_study.virtual_of(channel).sizes)


def own_study(store: Path) -> Study:
    """A small network on noise."""
    how: dict[str, Any] = {"n_references": 12, "n_clusters": 2, "progress": False, "store": store}
    return Study.from_model(plain(), noise(40), "4", "2", **how)


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """A site of three layers, and its study."""
    study = own_study(tmp_path_factory.mktemp("store"))
    folder = tmp_path_factory.mktemp("layers") / "site"
    assert (
        atlas.write(study, folder, layers=["0", "4", "2"], channels=[1], home="../book.html") == folder / "index.html"
    )
    return study, folder


def test_each_layer_goes_through_the_next_down_to_the_first(layers: tuple[Study, Path]) -> None:
    _study, folder = layers
    start = (folder / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'<h2><a href="([^"]+)"', start) == ["4/index.html", "2/index.html", "0/index.html"]
    upper = {1}
    for place, lower in (("4", "2"), ("2", "0")):
        assert {int(path.stem) for path in (folder / place).glob("[0-9]*.html")} == upper
        heads, *_ = matrix(folder / place / f"{min(upper)}.html")
        assert heads[0] == lower
        upper = {number for channel in upper for number in matrix(folder / place / f"{channel}.html")[1]}
    assert {int(path.stem) for path in (folder / "0").glob("[0-9]*.html")} == upper
    for path in folder.rglob("*.html"):
        page = path.read_text(encoding="utf-8")
        for link in re.findall(r'(?:href|src)="([^"]+)"', page):
            file, _, part = link.partition("#")
            if file.endswith("book.html"):
                assert (path.parent / file).resolve() == folder.parent / "book.html"
            elif file and ":" not in file:
                assert (path.parent / file).is_file(), f"{path}: {link}"
                if part and "=" not in part:
                    assert f'id="{part}"' in (path.parent / file).read_text(encoding="utf-8"), f"{path}: {link}"
        for file in re.findall(r"url\((\S+)\)", page):
            assert (path.parent / file).is_file(), f"{path}: {file}"


def test_by_which_part_a_channel_carries(layers: tuple[Study, Path]) -> None:
    study, folder = layers
    upper, lower = study, study.replace(target="2", lower="0")
    cells = 0
    own, parts = means(upper, 1), upper.virtual_of(1)
    _, _, _, table = matrix(folder / "4/1.html")
    shown = {lower_of(row): row.findall("td") for row in table.findall("tbody/tr") if row.findall("td")}
    for channel, row in shown.items():
        assert not row[0].findall("a")  # nothing is told of the whole where there are parts
        for part in (0, 1):
            ranks = [rank for rank, label in enumerate(parts.labels) if label == part]
            ranks.sort(key=lambda rank: -upper.circuits[1, rank, channel])
            looked = [rank for rank in ranks[:LOOKED] if upper.circuits[1, rank, channel] > 0]
            share, most = own[1 + part, channel], np.abs(own[:, channel]).max()
            expected = []
            if share > 0 and share >= CLEARLY * most:
                samples = upper.references.sample[1, looked]
                found = [int(lower.neuron(channel).predict(study.images, [sample])[0]) for sample in samples]
                most_of = max(set(found), key=found.count)
                if most_of >= 0 and 2 * found.count(most_of) > len(found):
                    expected = [f"../2/{channel}.html#{part_name(most_of)}"]
            assert [link.get("href") for link in row[1 + part].findall("a")] == expected
            cells += len(expected)
    assert cells >= 4


def test_layers_are_ranked_in_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = [made.study for made in stacked(Atlas(own_study(tmp_path / "together")), ["2", "4"])]
    seen: list[int] = []
    read = ranked.sweep

    def counted(model: Any, images: Any, *rest: Any, **how: Any) -> Any:
        seen.append(len(images))
        return read(model, images, *rest, **how)

    monkeypatch.setattr(ranked, "sweep", counted)
    ranked.rank(together)
    ranked.rank(together)
    assert seen == [40]
    monkeypatch.setattr("pure_nb.study.sweep", None)  # they are there
    found = [one.references for one in together]
    monkeypatch.undo()
    for one, references in zip(together, found):
        alone = own_study(tmp_path / "alone").replace(target=one.parameters.target, lower="0").references
        assert (references.sample == alone.sample).all()
        assert (references.score == alone.score).all()


def test_a_site_of_layers_is_written_again_as_it_was(
    layers: tuple[Study, Path], tmp_path: Path, pairs: list[int]
) -> None:
    study, folder = layers
    again = own_study(study.store.folder.parent)  # type: ignore[union-attr]
    atlas.write(again, tmp_path / "again", layers=["0", "4", "2"], channels=[1], home="../book.html")
    assert not pairs
    for file in (path.relative_to(folder) for path in folder.rglob("*") if path.is_file()):
        assert (folder / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file


def test_a_stop_among_the_parts_below_loses_one_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, other = (stacked(Atlas(own_study(tmp_path / name)), ["4", "2"])[0] for name in ("a", "b"))
    parts = {channel: made.parts(channel) for channel in range(6)}
    expected = passed_through(other, parts)
    most_of, worked = passing._most_of, []

    def stopped(study: Study, below: Study, cells: Any) -> Any:
        worked.append(cells)
        if len(worked) == 3:
            raise KeyboardInterrupt
        return most_of(study, below, cells)

    monkeypatch.setattr(passing, "CELLS", 10)
    monkeypatch.setattr(passing, "_most_of", stopped)
    with pytest.raises(KeyboardInterrupt):
        passed_through(made, parts)
    assert passed_through(made, parts) == expected
    assert len(worked) > 4
    assert worked[2] == worked[3]
    assert len({tuple(cells) for cells in worked}) == len(worked) - 1  # all others were worked on once
    before = len(worked)
    assert passed_through(made, parts) == expected
    assert len(worked) == before


def test_bad_layers(tmp_path: Path) -> None:
    study = own_study(tmp_path / "store")
    with pytest.raises(StudyError, match="named once, got '4', '4'"):
        atlas.write(study, tmp_path / "a", layers=["4", "4"])
    with pytest.raises(LayerError, match="'nine'"):
        atlas.write(study, tmp_path / "a", layers=["4", "nine"])
    (tmp_path / "b/4").mkdir(parents=True)
    (tmp_path / "b/4/index.html").write_text("<p>my own page</p>")
    with pytest.raises(StudyError, match="another site"):
        atlas.write(study, tmp_path / "b", layers=["4", "2"], channels=[1])


def test_layers_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def written(study: Study, folder: Path, *, layers: list[str], **how: Any) -> Path:
        for layer in layers:
            (folder / layer).mkdir(parents=True)
            (folder / layer / "3.html").touch()
        return folder / "index.html"

    monkeypatch.setattr(atlas, "write", written)
    command = ["atlas", "glyphs", "--out", str(tmp_path / "atlas"), "--layers", "layer3, layer4"]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0, said.output
    assert "2 neurons" in said.output
    assert {path.parent.name for path in tmp_path.rglob("3.html")} == {"layer3", "layer4"}


# ---- in a browser ---------------------------------------------------------------------------------------------------


def test_parts_have_anchors_and_keys_lead_on(browser: Any, folder: Path) -> None:
    context = browser.new_context(viewport=DESK)
    with Visit(context, (folder / "22.html").as_uri() + "#B") as visit:
        page = visit.page
        assert page.locator("#circuits .marked").evaluate_all("all => all.map(cell => cell.dataset.part)") == ["B"] * (
            1 + page.locator("#circuits td[data-part=B]").count()
        )
        page.locator("#circuits thead .tile").nth(2).wait_for()
        assert page.locator("#circuits thead .tile").count() == 3
        assert page.evaluate("document.getElementById('B').getBoundingClientRect().top") < DESK["height"]
        page.locator("fieldset input[value='3']").click()
        page.locator(".explorer-words").filter(has_text="split into 3 parts").wait_for()
        page.wait_for_function("location.hash === '#1.parts=3'")
        # Not where the keys are the control's own.
        page.locator("fieldset input[value='3']").focus()
        page.keyboard.press("Shift+ArrowRight")
        page.locator(".parts a").first.focus()
        page.keyboard.press("ArrowRight")
        assert page.url.split("#")[0].endswith("/22.html")
        key, link = "Shift+ArrowRight", page.locator("a[rel=next]")
        if not link.count():
            key, link = "Shift+ArrowLeft", page.locator("a[rel=prev]")
        target = link.get_attribute("href")
        page.keyboard.press(key)
        page.wait_for_url(f"**/{target}")
        assert not visit.troubles
    context.close()


def test_a_part_without_a_picture_has_a_head(browser: Any, glyph_study: Study, tmp_path: Path) -> None:
    """Where few images have a picture, there may be none of a part: its column has letters only."""
    atlas.write(glyph_study, tmp_path, channels=CHANNELS, count=1)
    context = browser.new_context(viewport=DESK)
    for page in ("22.html", "compare.html#1.neuron=22&2.neuron=3"):
        with Visit(context, f"{tmp_path.as_uri()}/{page}") as visit:
            heads = visit.page.locator(".matrix thead th", has=visit.page.locator(".tile"))
            heads.first.wait_for()
            assert visit.page.locator(".matrix thead th").last.inner_text().strip().endswith("B")
            assert heads.count() == 2 * (1 + page.startswith("compare"))
            assert not visit.troubles
    context.close()


def test_two_neurons_on_one_page(browser: Any, glyph_study: Study, folder: Path) -> None:
    first, second, third = (c for c in glyph_study.neurons["channel"].tolist() if c in CHANNELS)
    context = browser.new_context(viewport=DESK)
    with Visit(context, (folder / f"{first}.html").as_uri()) as visit:
        page = visit.page
        page.get_by_role("link", name="Compare with").click()
        page.wait_for_url(f"**/compare.html#1.neuron={first}&2.neuron={second}")
        page.locator("#both thead th", has_text=f"{second} B").wait_for()
        heads = [f"{channel} {part}" for channel in (first, second) for part in ("all", "A", "B")]
        assert [one.strip() for one in page.locator("#both thead th").all_inner_texts()] == ["layer3", *heads]
        own = [means(glyph_study, channel) for channel in (first, second)]
        sizes = [glyph_study.virtual_of(channel).sizes for channel in (first, second)]
        told = "all => all.map(row => [...row.cells].map(cell => cell.innerText.trim()))"
        table = page.locator("#both tbody tr:has(td)").evaluate_all(told)
        union = {lower for mean, size in zip(own, sizes) for _, lower in chosen(mean, size)}
        assert {int(head.split()[-1]) for head, *_ in table} == union
        for head, *cells in table:
            for text, mean in zip(cells, np.concatenate(own)[:, int(head.split()[-1])].tolist()):
                if text == "·":
                    assert abs(mean) < LEAST
                else:
                    assert float(text.replace("−", "-")) == pytest.approx(100 * mean, abs=0.051)
        # The first stays, by key the second goes on; the address holds both, where they are not those of the start.
        page.locator("h1").click()
        page.keyboard.press("Shift+ArrowRight")
        page.locator("#both thead th", has_text=f"{third} B").wait_for()
        assert page.locator("#both thead th", has_text=f"{first} B").count() == 1
        page.wait_for_url(f"**/compare.html#2.neuron={third}")
        page.goto(page.url.replace("#2", f"#1.neuron={second}&2"))
        page.locator("#both thead th", has_text=f"{second} B").wait_for()
        assert page.locator("#both thead th", has_text=f"{third} B").count() == 1
        # Where it does not fit, what the rows are stays, and heads go by below that.
        page.set_viewport_size(PHONE)
        page.locator(".tall").evaluate("box => { box.scrollLeft = 100; }")
        assert page.locator(".tall").evaluate("box => box.scrollLeft") > 0
        row, head = (page.locator(f"#both {one}").first.bounding_box()["x"] for one in ("[scope=row]", "thead th"))
        assert row == head
        assert not visit.troubles
    context.close()


@pytest.mark.parametrize(("look", "viewport", "scheme"), [("phone", PHONE, "dark"), ("desk", DESK, "light")])
def test_pages_fit_and_are_for_everybody(
    browser: Any, folder: Path, layers: tuple[Study, Path], look: str, viewport: Any, scheme: str
) -> None:
    context = browser.new_context(viewport=viewport, color_scheme=scheme)
    for page in (folder / "22.html", folder / "compare.html", layers[1] / "4/1.html", layers[1] / "index.html"):
        with Visit(context, page.as_uri()) as visit:
            visit.page.wait_for_timeout(200)
            found = visit.page.evaluate(OVERFLOWING)
            visit.page.add_script_tag(path=AXE)
            found += visit.page.evaluate(VIOLATIONS, look == "desk") + visit.troubles
            assert not found, f"{page}: {found}"
    context.close()
