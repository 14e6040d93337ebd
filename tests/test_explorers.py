"""The explorers of the built book: every control changes what is seen and said, by keyboard and by touch, anywhere.

Needs ``make book`` and Chromium (from PATH, or Playwright's own).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from built import DESK, PHONE, SITE, Visit, explorer_pages, served

pytestmark = pytest.mark.book

EXPLORERS = explorer_pages()

# What an explorer shows, what it says about it, and the addresses of its pictures, sprites among them.
STATE = """explorer => {
    const view = explorer.querySelector('.explorer-view');
    const behind = [view, ...view.querySelectorAll('*')]
        .map(element => getComputedStyle(element).backgroundImage.match(/url\\("(.*)"\\)/)?.[1]);
    const pictures = [...[...view.querySelectorAll('img')].map(image => image.currentSrc || image.src), ...behind];
    const shown = [...new Set(pictures.filter(Boolean))];
    return {
        view: [view.outerHTML, ...shown].join(' '),
        words: [...explorer.querySelectorAll('[aria-live]')].map(element => element.textContent.trim()).join(' '),
        pictures: shown,
    };
}"""

# All that is shown has arrived.
LOADED = """async explorer => {
    const {pictures} = (STATE)(explorer);
    const every = [...explorer.querySelectorAll('.explorer-view img')];
    const images = every.filter(image => image.checkVisibility()); // of two themes' variants one, which alone is loaded
    if (every.length && !images.length) return false;
    await Promise.all([...images, ...pictures.map(url => Object.assign(new Image(), {src: url}))]
        .map(image => image.decode()));
    return pictures.length > 0 && images.every(image => image.complete && image.naturalWidth) &&
        every.every(image => image.alt.trim());
}""".replace("STATE", STATE)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with served(SITE) as address:
        yield address


class Explorer:
    """One explorer of an open page."""

    def __init__(self, visit: Visit, place: int) -> None:
        self.page = visit.page
        self.box = visit.page.locator("figure.explorer").nth(place)
        self.name = f"explorer {place + 1}"
        self.controls = self.box.locator("input[type=range], select, fieldset")

    def state(self) -> dict[str, Any]:
        """What is seen now, once it has arrived."""
        assert self.box.evaluate(LOADED), f"{self.name} shows no picture, or one that is broken or has no alt text"
        return self.box.evaluate(STATE)  # type: ignore[no-any-return]

    def until(self, wanted: Callable[[dict[str, Any]], bool], milliseconds: int = 5000) -> dict[str, Any]:
        """What is seen as soon as it is as wanted, or at last: what a neuron shows arrives a moment later."""
        for _ in range(milliseconds // 50):
            if wanted(self.state()):
                break
            self.page.wait_for_timeout(50)
        return self.state()

    def press(self, control: Any, key: str) -> dict[str, Any]:
        """What is seen after a key; two of a control's values may show the same, so the wait for a change is short."""
        before = self.state()
        control.press(key)
        return self.until(lambda state: state["view"] != before["view"], 600)


def play_slider(explorer: Explorer, slider: Any, name: str, touch: bool) -> None:
    """Run through all values by keyboard, to both ends by touch or mouse, then back to the start."""
    lowest, highest, start = slider.evaluate("slider => [slider.min, slider.max, slider.value].map(Number)")
    assert lowest < highest, f"{name} has one value only"
    before = explorer.state()
    states = [before if start == lowest else explorer.press(slider, "Home")]
    values = [slider.get_attribute("aria-valuetext")]
    for _ in range(lowest, highest):
        states.append(explorer.press(slider, "ArrowRight"))
        values.append(slider.get_attribute("aria-valuetext"))
    assert slider.input_value() == str(highest), f"{name} does not reach its end step by step"
    assert all(values), f"{name} does not say its value"
    assert len(set(values)) == len(values), f"{name} says the same for several values: {values}"
    # Two steps may show the same, such as the number of parts found and that very number; most may not.
    assert 2 * len({state["view"] for state in states}) > len(states), f"{name} hardly changes the picture"
    assert 2 * len({state["words"] for state in states}) > len(states), f"{name} hardly changes the description"
    for share, end in ((0.01, lowest), (0.99, highest)):
        box = slider.bounding_box()  # the value beside it may be wider than the last one
        assert min(box["width"] / 4, box["height"]) >= 24, f"{name} is too small for a finger: {box}"
        (slider.tap if touch else slider.click)(position={"x": share * box["width"], "y": box["height"] / 2})
        moved = "([slider, end]) => slider.value === end"
        explorer.page.wait_for_function(moved, arg=[slider.element_handle(), str(end)])
    for _ in range(start, highest):
        slider.press("ArrowLeft")
    assert explorer.until(before.__eq__) == before, f"{name} does not come back to its start"


def play_choice(explorer: Explorer, choice: Any, name: str) -> None:
    """Choose every option by keyboard; what is seen must not be the same for all."""
    start, count = choice.evaluate("choice => [choice.selectedIndex, choice.options.length]")
    assert count > 1, f"{name} has one option only"
    before = explorer.state()
    states = [before if start == 0 else explorer.press(choice, "Home")]
    states += [explorer.press(choice, "ArrowDown") for _ in range(1, count)]
    assert choice.evaluate("choice => choice.selectedIndex") == count - 1, f"{name} cannot be chosen by keyboard"
    assert len({state["view"] for state in states}) > 1, f"{name} does not change the picture"
    for _ in range(start, count - 1):
        choice.press("ArrowUp")
    assert explorer.until(before.__eq__) == before, f"{name} does not come back to its start"


def play_keys(explorer: Explorer, keys: Any, name: str) -> None:
    """Press every key by keyboard; what is seen must not be the same for all."""
    inputs = keys.locator("input")
    count = inputs.count()
    assert count > 1, f"{name} has one key only"
    before = explorer.state()
    states = [before]
    for place in range(1, count):
        states.append(explorer.press(inputs.nth(place - 1), "ArrowRight"))
        assert inputs.nth(place).is_checked(), f"{name} cannot be pressed by keyboard"
    assert len({state["view"] for state in states}) > 1, f"{name} does not change the picture"
    explorer.press(inputs.nth(count - 1), "ArrowRight")
    assert explorer.until(before.__eq__) == before, f"{name} does not come back to its start"


def play_all(visit: Visit, touch: bool) -> None:
    """Use every control of every explorer of a page."""
    shown = [Explorer(visit, place) for place in range(visit.page.locator("figure.explorer").count())]
    assert shown, "no explorer"
    first = {url for explorer in shown for url in explorer.state()["pictures"]}
    folders = {url.rsplit("/", 1)[0] for url in first}
    early = {url for url in visit.asked if url.rsplit("/", 1)[0] in folders} - first
    assert not early, f"pictures asked for before they were needed: {sorted(early)}"
    data = [url for url in visit.asked if re.search(r"/data/\d+\.js$", url)]
    assert len(data) <= len(shown), f"data of neurons asked for before they were needed: {data}"
    for explorer in shown:
        explorer.box.scroll_into_view_if_needed()
        assert explorer.box.locator("figcaption").inner_text().strip(), f"{explorer.name} has no caption"
        assert explorer.state()["words"], f"{explorer.name} says nothing about what it shows"
        assert explorer.controls.count(), f"{explorer.name} has no control"
        for place in range(explorer.controls.count()):
            control = explorer.controls.nth(place)
            label = control.evaluate("one => (one.labels?.[0] ?? one.querySelector('legend'))?.innerText.trim() || ''")
            name = f"{explorer.name}, {label!r}"
            assert label, f"{name} has no label"
            assert control.is_visible(), f"{name} is not to be seen"
            assert control.is_enabled(), f"{name} cannot be used"
            kind = control.evaluate("control => control.tagName")
            if kind == "SELECT":
                play_choice(explorer, control, name)
            elif kind == "FIELDSET":
                play_keys(explorer, control, name)
            else:
                play_slider(explorer, control, name, touch)
    assert not visit.troubles, "\n".join(visit.troubles)


def test_there_are_explorers() -> None:
    assert EXPLORERS, "no page of the built book has an explorer"


@pytest.mark.parametrize("page", EXPLORERS)
def test_from_the_disk_on_a_phone(browser: Any, page: str) -> None:
    context = browser.new_context(viewport=PHONE, has_touch=True, color_scheme="dark")
    with Visit(context, (SITE / page).as_uri()) as visit:
        play_all(visit, touch=True)
    context.close()


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.nightly] * bool(place)) for place, page in enumerate(EXPLORERS)]
)
def test_from_a_server(browser: Any, server: str, page: str) -> None:
    context = browser.new_context(viewport=DESK)
    with Visit(context, f"{server}/{page}") as visit:
        play_all(visit, touch=False)
    context.close()


@pytest.mark.parametrize("size", [PHONE, {"width": 1440, "height": 500}])
def test_the_picker_of_a_neuron_stays_below_the_head(browser: Any, size: Any) -> None:
    context = browser.new_context(viewport=size)
    with Visit(context, (SITE / "book/virtual-neurons.html").as_uri()) as visit:
        visit.page.locator(".explorer-picker").first.wait_for()
        last = "() => document.querySelector('.explorer-tools').scrollIntoView({block: 'end', behavior: 'instant'})"
        visit.page.evaluate(last)
        edges = """() => [document.querySelector('.bd-header-article').getBoundingClientRect().bottom,
            document.querySelector('.explorer-picker').getBoundingClientRect().top]"""
        head, picker = visit.page.evaluate(edges)
        assert head == picker
        assert visit.page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0
    context.close()
