"""The built book in a browser: each page, in both themes, on a phone and on a desk.

Needs ``make book`` and Chromium (from PATH, or Playwright's own).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from built import CHAPTERS, DESK, LOAD_ALL, PAGES, PHONE, SITE, Visit, file_sizes

pytestmark = pytest.mark.book

LOOKS = {
    f"{theme}-{size['width']}": {"color_scheme": theme, "viewport": size}
    for theme in ("light", "dark")
    for size in (PHONE, DESK)
}
DAILY = ("light-375", "light-1440")
DARK = {("dark-1440", f"book/{name}.html") for name in ("index", "virtual-neurons", "api")}
"""What is looked at each day; all else is nightly."""
HEAVIEST = 2_000_000
"""Bytes that a page and all it loads may have before its first slider is moved."""

AXE = Path(__file__).parent / "_vendor" / "axe" / "axe.min.js"
AXE_LOOKS = {"light-1440": True, "dark-1440": True, "light-375": False}
"""Where axe looks, and whether at colours: they are the same on a phone, where it looks at the room for fingers."""

# What is folded can be unfolded, so it is looked at as well.
UNFOLD = """() => {
    document.querySelectorAll('details').forEach(details => { details.open = true; });
    document.querySelectorAll('.toggle-hidden > .toggle-button').forEach(button => button.click());
}"""

# The outermost elements, and the text, that run out of the window to the right with nothing around them that scrolls.
OVERFLOWING = """() => {
    const width = document.documentElement.clientWidth;
    const scrolls = new Map();
    const inScroller = element => {
        if (!element || element === document.body) return false;
        if (!scrolls.has(element)) {
            const own = ['auto', 'scroll'].includes(getComputedStyle(element).overflowX);
            scrolls.set(element, own || inScroller(element.parentElement));
        }
        return scrolls.get(element);
    };
    const out = box => box.width > 1 && box.height > 1 && (box.right > width + 1 || box.left < -1);
    const name = element => element.tagName.toLowerCase() + (element.id ? '#' + element.id : '') +
        [...element.classList].map(c => '.' + c).join('');
    const cut = element => element.ownerSVGElement && getComputedStyle(element.ownerSVGElement).overflow === 'hidden';
    const hidden = element => !element.checkVisibility({visibilityProperty: true}) || cut(element) ||
        element.closest('mjx-assistive-mml, .visually-hidden, .sr-only');
    const found = [];
    const say = (element, what) => {
        if (hidden(element) || inScroller(element.parentElement) || found.some(([other]) => other.contains(element)))
            return;
        found.push([element, `${what} of ${name(element)}: ${element.textContent.trim().slice(0, 40)}`]);
    };
    const root = document.querySelector('main') || document.body;
    root.querySelectorAll('*').forEach(element => out(element.getBoundingClientRect()) && say(element, 'box'));
    const texts = document.createTreeWalker(root, NodeFilter.SHOW_TEXT), range = document.createRange();
    while (texts.nextNode()) {
        range.selectNodeContents(texts.currentNode);
        const parent = texts.currentNode.parentElement;
        if (!inScroller(parent) && [...range.getClientRects()].some(out)) say(parent, 'text');
    }
    const page = Math.max(document.documentElement.scrollWidth, document.body.scrollWidth);
    return [...(page > width ? [`the page is ${page} wide`] : []), ...found.map(([, text]) => text)];
}"""

# A picture without words is fine where it only decorates a link that has some.
BAD_IMAGES = """() => [...document.images]
    .filter(image => !image.hasAttribute('alt') || (image.checkVisibility() && !image.naturalWidth) ||
                     (!image.alt.trim() && image.closest('main') && !image.closest('a')))
    .map(image => image.outerHTML.slice(0, 200))"""

# What was unfolded fades in, and is looked at when it is there.
VIOLATIONS = """async colours => {
    document.getAnimations().filter(one => one.effect.getTiming().iterations !== Infinity).forEach(one => one.finish());
    const runOnly = ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa'];
    const rules = {'color-contrast': {enabled: colours}, 'target-size': {enabled: !colours}};
    const found = await axe.run(document, {runOnly, rules, preload: false, resultTypes: ['violations']});
    return found.violations.filter(rule => ['serious', 'critical'].includes(rule.impact)).flatMap(rule =>
        rule.nodes.map(node => `${rule.id}: ${node.target.join(' ')}: ${node.any[0]?.message || rule.help}`));
}"""


@pytest.fixture(scope="module")
def look(browser: Any) -> Iterator[Callable[[str], Any]]:
    """A browser context of each look, opened when it is first asked for."""
    contexts: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in contexts:
            contexts[name] = browser.new_context(**LOOKS[name])
        return contexts[name]

    yield get
    for context in contexts.values():
        context.close()


@pytest.mark.parametrize(
    ("page", "name"),
    [
        pytest.param(page, name, marks=[] if name in DAILY or (name, page) in DARK else pytest.mark.nightly)
        for page in PAGES
        for name in LOOKS
    ],
)
def test_page(look: Callable[[str], Any], page: str, name: str) -> None:
    """It loads without an error and with nothing from elsewhere, fits, is light, and axe finds no serious fault."""
    assert (SITE / page).is_file(), "not in the built book"
    with Visit(look(name), (SITE / page).as_uri()) as visit:
        found = list(visit.troubles)
        shown = visit.page
        if page in CHAPTERS:
            assert shown.locator("h1").first.inner_text().strip()
            assert shown.locator("html").get_attribute("data-theme") == name.split("-")[0]
        sizes = file_sizes(visit.asked)
        if sum(sizes.values()) > HEAVIEST:
            largest = sorted(sizes.items(), key=lambda item: -item[1])[:5]
            found.append(f"weight: {sum(sizes.values()):,} bytes, the largest {largest}")
        shown.evaluate(UNFOLD)
        shown.evaluate(LOAD_ALL)  # what was folded, too
        found += [f"mathematics: {text}" for text in shown.locator("mjx-merror, [data-mjx-error]").all_inner_texts()]
        found += [f"image: {html}" for html in shown.evaluate(BAD_IMAGES)]
        found += [f"overflow: {text}" for text in shown.evaluate(OVERFLOWING)]
        if name in AXE_LOOKS:
            shown.add_script_tag(path=AXE)
            found += [f"axe: {text}" for text in shown.evaluate(VIOLATIONS, AXE_LOOKS[name])]
        assert not found, "\n".join(found)


def test_front_door(look: Callable[[str], Any]) -> None:
    with Visit(look("light-1440"), (SITE / "index.html").as_uri(), settle=False) as visit:  # it leads on
        visit.page.wait_for_url("**/book/index.html")
        assert not visit.troubles, "\n".join(visit.troubles)


def test_figures_of_several_panels_can_be_read_on_a_phone(look: Callable[[str], Any]) -> None:
    """They are wider than the phone, and scroll by touch and keyboard in a box of their own."""
    with Visit(look("light-375"), (SITE / "book/scale.html").as_uri()) as visit:
        picture = visit.page.locator("#fig-scaling img").first
        assert picture.evaluate("image => image.clientWidth") > 500
        box = picture.locator("xpath=ancestor::*[contains(@class, 'cell_output')]")
        assert box.evaluate("box => [box.clientWidth < 375, box.tabIndex]") == [True, 0]


def test_one_search_box(look: Callable[[str], Any]) -> None:
    with Visit(look("light-1440"), (SITE / CHAPTERS[0]).as_uri()) as visit:
        boxes = visit.page.locator("button.search-button, .search-button__button, .search-button-field")
        assert sum(boxes.nth(i).is_visible() for i in range(boxes.count())) == 1


def test_search_from_the_disk(look: Callable[[str], Any]) -> None:
    """It finds the chapters that speak of gamma, without a server."""
    with Visit(look("light-1440"), f"{(SITE / 'search.html').as_uri()}?q=gamma") as visit:
        visit.page.locator("#search-results ul.search li").first.wait_for()
        visit.page.wait_for_function(
            "document.querySelector('#search-results .search-summary').textContent.match(/\\d/)"
        )
        links = visit.page.locator("#search-results ul.search a").evaluate_all("all => all.map(link => link.pathname)")
        found = {Path(link).name for link in links}
        assert {"arv.html", "wordnet.html"} <= found, found
        assert not visit.troubles, "\n".join(visit.troubles)


@pytest.mark.skipif(not (SITE / "neurons" / "index.html").is_file(), reason="the built book has no atlas of neurons")
def test_table_of_neurons(look: Callable[[str], Any]) -> None:
    """It finds a neuron by its number, and is sorted by a click on a column's head."""
    with Visit(look("light-1440"), (SITE / "neurons" / "index.html").as_uri()) as visit:
        rows, search = visit.page.locator("#neurons tbody th"), visit.page.get_by_role("searchbox")
        count = rows.count()
        search.fill("17")
        assert rows.all_inner_texts() == ["17"]
        search.fill("")
        assert rows.count() == count > 1
        before = rows.all_inner_texts()
        head = visit.page.locator("#neurons thead th").first
        head.get_by_role("button").press("Enter")
        after = rows.all_inner_texts()
        assert after != before
        assert after == [str(channel) for channel in range(len(after))]
        assert head.get_attribute("aria-sort") == "ascending"
        assert not visit.troubles, "\n".join(visit.troubles)
