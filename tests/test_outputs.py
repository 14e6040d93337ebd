"""The pages of outputs in an atlas: their numbers are the study's, and all links lead somewhere, from a disk, too."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from built import DESK, PHONE, Visit
from test_browser import AXE, OVERFLOWING, VIOLATIONS
from typer.testing import CliRunner

from pure_nb import Study
from pure_nb.cli import app
from pure_nb.errors import ArgumentError, StudyError
from pure_nb.show import atlas
from tests.small import noise, plain

SHOWN, CHANNELS = ["umbrella", "cloud", "anchor"], [22, 5, 18, 24]

pytestmark = pytest.mark.timeout(120)  # for the site two layers are taken apart


@pytest.fixture(scope="module")
def site(seen: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An atlas of some neurons, with pages of three outputs and their graphs."""
    folder = tmp_path_factory.mktemp("outputs") / "atlas"
    atlas.write(seen, folder, channels=CHANNELS, outputs=SHOWN, graph=True, count=12)
    return folder


def numbers(study: Study) -> list[int]:
    return [study.classes.names.index(name) for name in SHOWN]


def text(path: Path) -> str:
    return path.read_text("utf-8")


def test_pages_tell_what_the_study_found(seen: Study, site: Path) -> None:
    assert sorted(path.name for path in (site / "outputs").iterdir()) == sorted(
        [*(f"{number}.html" for number in numbers(seen)), "index.html"]
    )
    for number, name in zip(numbers(seen), SHOWN):
        page, own = text(site / f"outputs/{number}.html"), seen.classes.parts(name)
        rows = own.strongest(12)
        told = re.findall(r'<span class="carrier">([^<]*)</span> ([−\d.]+)%', page)
        assert told == [(row["part"], re.sub("^-", "−", f"{100 * row['share']:.1f}")) for row in rows]
        links = re.findall(r'class="output-part" href="\.\./(\d+)\.html(#\w)?"', page)
        assert [int(channel) for channel, _ in links] == [row["channel"] for row in rows if row["channel"] in CHANNELS]
        unusual = re.findall(r"image (\d+), answered", page)
        assert [int(sample) for sample in unusual] == own.images["sample"].head(6).tolist()


def test_shared_parts_are_told_on_both_pages(seen: Study, site: Path) -> None:
    one, other = (seen.classes.parts(name) for name in SHOWN[:2])
    least = one.shared(other)[["share_1", "share_2"]].min(axis=1)
    expected = least.sum() if least.max() >= 0.02 else None
    first, second = numbers(seen)[:2]
    for page, to in ((first, second), (second, first)):
        told = re.findall(rf'<li><a href="{to}\.html">\w+</a>: ([\d.]+)%', text(site / f"outputs/{page}.html"))
        assert told == ([] if expected is None else [f"{100 * expected:.1f}"])


def test_links_lead_somewhere(seen: Study, site: Path) -> None:
    pages = [*(site / "outputs").glob("*.html"), site / "22.html", site / "index.html"]
    linked = 0
    for page in pages:
        for link in re.findall(r'(?:href|src)="([^":]+)"', text(page)):
            file, _, anchor = link.partition("#")
            target = (page.parent / file).resolve() if file else page
            assert target.is_file(), f"{page}: {link}"
            if anchor and "=" not in anchor and anchor != "content":
                assert f'id="{anchor}"' in text(target), f"{page}: {link}"
                linked += 1
    assert linked > 8
    carried = 0
    for number, name in zip(numbers(seen), SHOWN):
        for row in seen.classes.parts(name).strongest(12):
            if row["channel"] in CHANNELS and row["share"] > 0:
                assert f'<a href="outputs/{number}.html">{name}</a>' in text(site / f"{row['channel']}.html")
                carried += 1
    assert carried > 2
    assert "outputs/index.html" in text(site / "index.html")


def test_a_graph_through_the_layers_of_a_site(tmp_path: Path) -> None:
    """Each node leads to its part, in the folder of its layer, and has a picture there."""
    how: dict[str, Any] = {"n_references": 12, "n_clusters": 2, "progress": False, "store": tmp_path / "store"}
    study = Study.from_model(plain(), (noise(40), torch.arange(40) % 4), "4", "2", **how)
    atlas.write(study, tmp_path / "site", layers=["4", "2", "0"], outputs=["1", 2], graph=True)
    nodes = 0
    for number in (1, 2):
        page = tmp_path / f"site/4/outputs/{number}.html"
        found = study.graph([1, 2], ["4", "2", "0"]).only(str(number))
        told = re.findall(r'<a class="graph-node[^>]* href="([^"]*)"[^>]*><img src="([^"]*)"', text(page))
        expected = []
        for node in found.nodes.to_dict("records"):
            channel, _, part = node["part"].partition(".")
            folder = "../" if node["layer"] == "4" else f"../../{node['layer']}/"
            expected.append(f"{folder}{channel}.html" + f"#{part}" * bool(part))
        assert [link for link, _ in told] == expected
        for link, picture in told:
            file, _, anchor = link.partition("#")
            assert not anchor or f'id="{anchor}"' in text(page.parent / file)
            assert (page.parent / picture).is_file()
        nodes += len(told)
    assert nodes > 6
    assert not (tmp_path / "site/2/outputs").exists()


def test_another_run_writes_the_same_and_draws_nothing(seen: Study, site: Path) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in site.rglob("*") if path.is_file()}
    atlas.write(seen, site, channels=CHANNELS, outputs=SHOWN, graph=True, count=12)
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in site.rglob("*") if path.is_file()}
    assert {path: content for path, (content, _) in after.items()} == {
        path: content for path, (content, _) in before.items()
    }
    drawn = [path for path in after if path.suffix in (".avif", ".webp") and path.name != "parts.webp"]
    assert drawn
    assert all(before[path][1] == after[path][1] for path in drawn)
    pages = [path.stat().st_size for path in (site / "outputs").glob("[0-9]*.html")]
    assert max(pages) < 40_000


@pytest.mark.parametrize(("scheme", "size"), [("light", DESK), ("dark", DESK), ("light", PHONE)], ids=str)
def test_they_can_be_read_by_all(browser: Any, seen: Study, site: Path, scheme: str, size: dict[str, int]) -> None:
    context = browser.new_context(viewport=size, color_scheme=scheme)
    for name in (f"outputs/{numbers(seen)[0]}.html", "outputs/index.html", "22.html"):
        with Visit(context, (site / name).as_uri()) as visit:
            found = visit.page.evaluate(OVERFLOWING)
            visit.page.add_script_tag(path=AXE)
            found += visit.page.evaluate(VIOLATIONS, size is DESK) + visit.troubles
            assert not found, f"{name}: {found}"
    context.close()


def test_a_graph_is_walked_through_and_opens_parts(browser: Any, seen: Study, site: Path) -> None:
    context = browser.new_context(viewport=DESK)
    with Visit(context, (site / f"outputs/{numbers(seen)[0]}.html").as_uri()) as visit:
        page = visit.page
        nodes, told = page.locator(".graph-node"), page.locator(".graph-told")
        assert told.inner_text().startswith("Point at a part")
        nodes.nth(0).focus()
        assert told.inner_text() == nodes.nth(0).get_attribute("data-told")
        ends = page.locator("path").evaluate_all("all => all.map(one => one.dataset.ends.split(' '))")
        own = page.locator("path.graph-own").evaluate_all("all => all.map(one => one.dataset.ends.split(' '))")
        assert own == [pair for pair in ends if "0" in pair]
        near = page.locator(".graph-near").evaluate_all("all => all.map(one => one.dataset.node)")
        assert {*near} == {end for pair in own for end in pair}
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.dataset.node") == "1"
        part = page.locator("a.graph-node").first
        part.hover()
        assert told.inner_text() == part.get_attribute("data-told")
        label = part.locator("b").inner_text()
        part.click()
        page.wait_for_url(f"**/{label.split('.')[0]}.html#*")
        assert page.locator("h1").inner_text() == f"layer4 / {label.split('.')[0]}"
        assert not visit.troubles
    context.close()


def test_a_graph_as_one_file(browser: Any, seen: Study, tmp_path: Path) -> None:
    found = seen.graph("umbrella", ["layer4", "layer3"])
    path = found.write(tmp_path / "graph.html")
    told = text(path)
    assert "http" not in re.sub("http://www.w3.org/\\S*", "", told)
    context = browser.new_context(viewport=PHONE, color_scheme="dark")
    with Visit(context, path.as_uri()) as visit:
        page = visit.page
        names = page.locator(".graph-node b").all_inner_texts()
        assert names == ["umbrella", *found.nodes["part"]]
        tops = page.locator(".graph-node").evaluate_all("all => all.map(one => [one.offsetLeft, one.offsetTop])")
        first = [top for left, top in tops if left == 232]
        assert first == sorted(first)  # the strongest above
        page.locator("a.graph-node").first.focus()
        page.keyboard.press("Enter")
        node = found.nodes.iloc[0]
        assert page.evaluate("decodeURI(location.hash)") == f"#{node['layer']}-{node['part']}"
        assert page.locator(":target img").count() >= 1
        page.add_script_tag(path=AXE)
        assert not page.evaluate(VIOLATIONS, True)
        assert not page.evaluate(OVERFLOWING)
        assert not visit.troubles
    context.close()


def test_bad_wishes(seen: Study, tmp_path: Path) -> None:
    def problem(kind: type[Exception], study: Study, **how: Any) -> str:
        with pytest.raises(kind) as found:
            atlas.write(study, tmp_path / "atlas", channels=[3], **how)
        assert not (tmp_path / "atlas").exists()
        return str(found.value)

    assert "there is no output 'dog'" in problem(ArgumentError, seen, outputs=["dog"])
    assert "no output" in problem(ArgumentError, seen, outputs="dog")
    assert "none are asked for" in problem(ArgumentError, seen, graph=True)
    assert "got layers or outputs" in problem(ArgumentError, seen, outputs=["cat"], other=seen)
    bare = Study.from_model(plain(), noise(12), "4", "2", n_references=4, n_clusters=1, progress=False)
    assert "have no labels" in problem(StudyError, bare, outputs="all")


def test_from_the_command_line(tmp_path: Path) -> None:
    toml = tmp_path / "small.toml"
    toml.write_text(
        '[model]\nsource = "glyphnet"\n[images]\nsource = "glyphs"\nlength = 20\n'
        '[parameters]\ntarget = "layer4"\nlower = "layer3"\nn_references = 8\nn_clusters = 2\n[run]\nprogress = false\n'
    )
    out = tmp_path / "atlas"
    command = ["atlas", str(toml), "--out", str(out), "--store", str(tmp_path / "store"), "--neurons", "0-2"]
    said = CliRunner().invoke(app, [*command, "--outputs", "umbrella, 3"])
    assert said.exit_code == 0, said.output
    assert (out / "outputs/3.html").is_file()
    assert len(list((out / "outputs").iterdir())) == 3
