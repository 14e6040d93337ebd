"""Lower channels with their own parts: where an earlier run has found them, and without computing anything."""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image
from small import plain
from test_comparing import study_of

from pure_nb import write_atlas
from pure_nb.methods.virtual import part_name
from pure_nb.show.facts import Atlas
from pure_nb.show.pictures import STRIP, THUMB


def test_what_an_earlier_run_found_is_shown(tmp_path: Path, pairs: list[int]) -> None:
    study = study_of(plain(), crop="activation", store=tmp_path / "store")
    folder = tmp_path / "site"
    write_atlas(study, folder)
    assert Atlas(study).below_split is None
    assert not any("Its own parts" in page.read_text(encoding="utf-8") for page in folder.glob("lower/*.html"))
    lower = study.replace(target="2", lower="0", n_clusters=3)  # otherwise than this study asks for
    lower.virtual  # noqa: B018
    before = len(pairs)
    again = study_of(plain(), crop="activation", store=tmp_path / "store")
    found = Atlas(again).below_split
    assert found is not None
    assert (found.parameters.target, found.parameters.n_clusters) == ("2", 3)
    write_atlas(again, folder)
    assert len(pairs) == before
    pages = {int(page.stem): page.read_text(encoding="utf-8") for page in folder.glob("lower/*.html")}
    told = {channel for channel, page in pages.items() if "Its own parts" in page}
    assert told == {channel for channel in pages if lower.virtual[channel].k > 1 and lower.references.alive[channel]}
    assert told
    for channel in told:
        own = re.findall(r'<li id="(\w+)">.*?</strong>, (\d+) image', pages[channel])
        assert own == [(part_name(part), str(size)) for part, size in enumerate(lower.virtual[channel].sizes)]
        for file in re.findall(r'src="\.\./(beneath/[^"]+)"', pages[channel]):
            with Image.open(folder / file) as image:
                assert image.width == STRIP * THUMB
    links = {
        (int(channel), part)
        for page in folder.glob("[0-9]*.html")
        for channel, part in re.findall(
            r'<td [^>]*><a href="lower/(\d+)\.html#(\w+)">', page.read_text(encoding="utf-8")
        )
    }
    assert links
    assert all(part in map(part_name, range(lower.virtual[channel].k)) for channel, part in links)
