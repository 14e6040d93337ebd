"""Editions: the chapters of the book, written again for another study."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import edition as tool
import pytest
import yaml
from edition import CELL, NEEDS, Edition, EditionError
from myst_nb.core.read import read_myst_markdown_notebook
from myst_parser.config.main import MdParserConfig
from small import ROOT, Tokens, noise, picture_folder, plain
from torch import nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor

from pure_nb._lacking import splittable
from pure_nb.errors import ArgumentError
from pure_nb.methods.wordnet import shipped_wordnet
from pure_nb.network.models import function_in
from pure_nb.study import Study

STUDY = """\
[model]
source = "mine.py:make"
[images]
source = "folder"
root = "pictures"
resize = 12
crop = 12
[parameters]
target = "4"
lower = "2"
n_references = {n}
n_clusters = 2
[run]
progress = false
"""

CHAPTER = """\
---
kernelspec:
  name: python3
---

# A title

Text with ```code``` and `load_study("glyphs")`, `channel = 22`.

```{code-cell} ipython3
import pure_nb

study = pure_nb.load_study("glyphs", progress=False)
channel = 22
channels = [22, 10, 13]
other_channel = 22
print(channel == 22)  # channel = 22
```

{numref}`fig-one` and {numref}`the figure %s <fig-two>` show it.

```{code-cell} ipython3
---
tags: [hide-input, needs-objects]
mystnb:
  figure:
    name: fig-one
    caption: Clouds.
  image: {alt: "Clouds: two."}
---
study.objects
```

```{code-cell} ipython3
:tags: [needs-labels]

study.classes.statistics
```

Between.

```{code-cell} ipython3
:tags: [needs-objects]

study.objects[0]
```

```{code-cell} ipython3
---
mystnb:
  figure: {name: fig-two, caption: "Anchors: one."}
  image: {alt: Anchors.}
---
study.neuron(channel).plot();
```

````{admonition} Solution
```python
channel = 22
```
````
"""


def an_edition(layer: str | None = "layer3.2.conv2", **lacks: str) -> Edition:
    return Edition("mine", "/studies/mine.toml", "a network", layer, lacks)


def only(code: str, edition: Edition | None = None) -> str:
    """What becomes of the code of a chapter with one cell."""
    chapter = f'# A\n\n```{{code-cell}} ipython3\n{code}study = load_study("glyphs")\n```\n'
    text = tool.rewritten({"a.md": chapter}, edition or an_edition())["a.md"]
    (cell,) = CELL.finditer(text)
    return cell["code"].removesuffix('study = load_study("/studies/mine.toml")\n')


def test_a_chapter_that_lacks_nothing_has_another_study_and_a_banner() -> None:
    text = tool.rewritten({"a.md": CHAPTER}, an_edition())["a.md"]
    banner = an_edition().banner([])
    assert "a network" in banner
    assert "lack" not in banner
    expected = CHAPTER.replace("# A title\n", f"# A title\n\n{banner}")
    expected = expected.replace(
        'study = pure_nb.load_study("glyphs"', 'study = pure_nb.load_study("/studies/mine.toml"'
    )
    expected = expected.replace("\nchannel = 22\nch", "\nchannel = study.most_polysemantic(1)[0]\nch")
    expected = expected.replace("\nchannels = [22, 10, 13]", "\nchannels = study.most_polysemantic(3)")
    assert without_heads(text) == without_heads(expected)


def without_heads(text: str) -> str:
    """A chapter without the metadata of its cells, whose YAML may be laid out otherwise."""
    return CELL.sub(r"\g<fence>\g<code>", text)


def test_the_cells_of_a_chapter_are_those_that_the_book_runs() -> None:
    for path in [*(ROOT / "book").glob("*.md")]:
        text = path.read_text(encoding="utf-8")
        notebook = read_myst_markdown_notebook(text, MdParserConfig(enable_extensions={"colon_fence"}))
        run = [cell.source.strip("\n") for cell in notebook.cells if cell.cell_type == "code"]
        assert [cell["code"].strip("\n") for cell in CELL.finditer(text)] == run


def test_metadata_in_both_notations() -> None:
    edition = an_edition(objects="does not know objects", labels="has no labels")
    cells = [tool.metadata(cell) for cell in CELL.finditer(CHAPTER)]
    assert [cell.get("tags") for cell in cells] == [
        None,
        ["hide-input", "needs-objects"],
        ["needs-labels"],
        ["needs-objects"],
        None,
    ]
    first = [cell["code"].strip().splitlines()[0] for cell in CELL.finditer(CHAPTER)]
    assert first[1:4] == ["study.objects", "study.classes.statistics", "study.objects[0]"]
    chapter = tool.Chapter("a.md", edition)
    chapter.written(CHAPTER)
    assert (chapter.missing, chapter.lost) == ({"objects", "labels"}, ["fig-one"])


def test_cells_that_need_what_is_lacking_become_notes() -> None:
    edition = an_edition(objects="does not know objects", labels="has no labels")
    text = tool.rewritten({"a.md": CHAPTER}, edition)["a.md"]
    assert text.count("Not in this edition") == 2  # the first two are neighbours
    first, second = text.split("Between.")
    assert "This study does not know objects; it has no labels. What" in first
    assert "This study does not know objects. What" in second
    assert "study.objects" not in text
    assert "study.neuron(channel)" in text
    assert "This study does not know objects; it has no labels. Notes" in first.split("Text with")[0]


def test_cells_stay_whose_needs_are_met() -> None:
    text = tool.rewritten({"a.md": CHAPTER}, an_edition(labels="has no labels"))["a.md"]
    assert text.count("study.objects") == 2
    assert "study.classes.statistics" not in text


def test_a_chapter_that_lacks_everything_says_it_once() -> None:
    chapter = '# A\n\n```{code-cell} ipython3\n:tags: [needs-judge]\nload_study("glyphs")\n```\n\nText.\n'
    edition = an_edition(judge="has no judge")
    text = tool.rewritten({"a.md": chapter}, edition)["a.md"]
    assert text == f"# A\n\n{edition.banner(['judge'], cells=False)}\n\nText.\n"
    assert "This study has no judge. All" in text


def test_figures_that_are_gone_are_not_referred_to() -> None:
    edition = an_edition(objects="does not know objects")
    found = tool.rewritten(
        {"a.md": CHAPTER, "b.md": "# B\n\nSee {numref}`fig-one`, {numref}`fig-one-more`, [it](#fig-one).\n"}, edition
    )
    assert "a figure of the standard book and {numref}`the figure %s <fig-two>` show" in found["a.md"]
    assert found["b.md"] == "# B\n\nSee a figure of the standard book, {numref}`fig-one-more`, it.\n"


def test_captions_say_what_they_were_written_about() -> None:
    text = tool.rewritten({"a.md": CHAPTER}, an_edition())["a.md"]
    *_, figure = CELL.finditer(text)
    assert tool.metadata(figure) == {
        "mystnb": {
            "figure": {"name": "fig-two", "caption": "Drawn for mine. In the standard book: Anchors: one."},
            "image": {"alt": "Drawn for mine. In the standard book: Anchors."},
        }
    }


def test_an_unknown_need_is_an_error() -> None:
    chapter = CHAPTER.replace("needs-labels", "needs-lables")
    line = chapter[: chapter.index(":tags: [needs-lables]")].count("\n")
    with pytest.raises(EditionError, match=rf"a\.md, line {line}: the tag 'needs-lables' .*needs-labels"):
        tool.rewritten({"a.md": chapter}, an_edition())


def test_the_book_s_own_tags_are_known() -> None:
    chapters = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "book").glob("*.md")}
    found = tool.rewritten(chapters, an_edition(**dict.fromkeys(NEEDS, "lacks it")))
    assert sum(text.count("Not in this edition") for text in found.values()) > 0


@pytest.mark.parametrize(
    ("code", "lacks", "expected"),
    [
        ('layer = "layer4.0.conv2"\n', {}, 'layer = "layer3.2.conv2"\n'),
        ("layer = VirtualLayer.of(recipe)\n", {}, "layer = VirtualLayer.of(recipe)\n"),
        ("channel = 0  # our own\n", {}, "channel = study.most_polysemantic(1)[0]\n"),
        (
            'layer = "layer4.0.conv2"\nchannel = 0\nclasses = ["cloud", "atom"]\n',
            {},
            'layer = "layer3.2.conv2"\n'
            'channel = int(study.classes.pairs.dropna().iloc[0]["channel"])\n'
            'classes = study.classes.pairs.dropna().iloc[0][["class_1", "class_2"]].tolist()\n',
        ),
        (
            'layer = "layer4.0.conv2"\nchannel = 0\n',
            {"splits": "has too few"},
            'layer = "layer3.2.conv2"\nchannel = int(study.classes.pairs.iloc[0]["channel"])\n',
        ),
    ],
)
def test_code_is_of_the_study(code: str, lacks: dict[str, str], expected: str) -> None:
    assert only(code, an_edition(**lacks)) == expected


def test_pages_without_the_study_stay_but_the_first_has_a_banner() -> None:
    other = "# Other\n\n```{code-cell} ipython3\n:tags: [needs-objects]\nload_study(path)\n```\n"
    pages = {"index.md": "# Book\n\nText.\n", "glossary.md": "# Words\n", "other.md": other}
    edition = an_edition(objects="does not know objects")
    found = tool.rewritten(pages, edition)
    assert [found[name] for name in ("glossary.md", "other.md")] == [pages["glossary.md"], other]
    assert "Edition mine" in found["index.md"]
    assert "does not know objects" in found["index.md"]


def test_the_configuration() -> None:
    text = (ROOT / "_config.yml").read_text(encoding="utf-8")
    own, other = yaml.safe_load(text), yaml.safe_load(tool.configured(text, "mine"))
    assert other["title"] == f"{own['title']}: edition mine"
    assert not other["execute"]["raise_on_error"]
    own["title"], own["execute"]["raise_on_error"] = other["title"], False
    own["html"]["baseurl"] = own["sphinx"]["config"]["ogp_site_url"] = ""  # it is published nowhere
    assert other == own


def test_what_the_glyphs_have(glyph_study: Study) -> None:
    study = glyph_study.replace(n_references=4)
    assert splittable(study) == "layer4.0.conv2"
    assert tool.lacking(study) == {}


def lacked(study: Study) -> set[str]:
    return set(tool.lacking(study))


def mine(folder: Path, images: Any, model: nn.Module | None = None, target: str = "4", lower: str = "2") -> Study:
    return Study.from_model(
        model or plain(), images, target, lower, n_references=4, n_clusters=2, store=folder, progress=False
    )


GLYPHS = {"objects", "judge", "glyphs"}


def test_without_labels_there_are_no_classes(tmp_path: Path) -> None:
    assert lacked(mine(tmp_path, noise(15))) == GLYPHS | {"labels", "splits", "synsets"}


@pytest.mark.parametrize(("count", "lacks"), [(12, {"synsets"}), (4, {"splits", "synsets"})])
def test_labels_are_for_classes_and_two_of_each_for_splits(tmp_path: Path, count: int, lacks: set[str]) -> None:
    images = ImageFolder(picture_folder(tmp_path / "pictures", count, classes=4), ToTensor())
    study = mine(tmp_path, images)
    assert lacked(study) == GLYPHS | lacks
    flat = mine(tmp_path, images, target="6")
    assert flat.lacks("labels") == {"labels": "has no convolution or linear layer in `6`"}


def test_what_no_study_can_lack(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"'label' is nothing that a study can lack; expected one of .*'labels'"):
        mine(tmp_path, noise(15)).lacks("label")


def test_synsets_need_a_wordnet_that_has_the_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = picture_folder(tmp_path / "pictures", 12, classes=4)
    for old, new in zip(sorted(folder.iterdir()), ("anchor", "cat", "cow", "umbrella")):
        old.rename(folder / new)
    monkeypatch.setattr("pure_nb.methods.wordnet.find_wordnet", shipped_wordnet)
    assert lacked(mine(tmp_path, ImageFolder(folder, ToTensor()))) == GLYPHS


def test_plain_processes_can_not_import_a_network_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text("from torch import nn\n\nclass Own(nn.Sequential): ...\n\ndef make(*parts): return Own(*parts)\n")
    model = function_in(file, "make")(*plain())
    assert lacked(mine(tmp_path, noise(15), model)) == GLYPHS | {"labels", "splits", "synsets", "import"}


def test_a_transformer_lacks_a_grid(tmp_path: Path) -> None:
    study = mine(tmp_path, noise(15), Tokens(), "second", "first")
    assert "grid" in lacked(study)
    assert "lrp" not in lacked(study)
    assert splittable(study) == "second.mlp.2"
    assert splittable(study.replace(target="input:second")) is None
    patches = study.replace(target="patches:second", lower="patches:first")
    assert patches.lacks("grid")["grid"] == "has `patches:second`, which no module puts out as it is"


def test_what_goes_into_a_layer_is_as_good_as_what_comes_out(tmp_path: Path) -> None:
    study = mine(tmp_path, noise(15), lower="input:4")
    assert "grid" not in lacked(study)


def test_an_edition_is_written_and_an_old_build_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, folder = tmp_path / "small.toml", tmp_path / "out"
    path.write_text(STUDY.format(n=4))
    picture_folder(tmp_path / "pictures")
    (tmp_path / "mine.py").write_text("from small import plain as make\n")
    monkeypatch.setattr(sys, "argv", ["edition.py", str(path), str(folder)])
    tool.main()
    assert yaml.safe_load((folder / "_config.yml").read_text())["title"].endswith(": edition small")
    assert (folder / "_toc.yml").read_text() == (ROOT / "_toc.yml").read_text()
    assert {p.name for p in (folder / "book").iterdir()} == {p.name for p in (ROOT / "book").iterdir()}
    assert (folder / "_build" / "extra" / "neurons" / "index.html").is_file()
    assert f'load_study("{path}"' in (folder / "book" / "references.md").read_text()
    built = folder / "_build" / "html"
    built.mkdir(parents=True)
    tool.main()
    assert built.is_dir()
    path.write_text(STUDY.format(n=5))
    tool.main()
    assert not built.is_dir()


def test_a_study_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["edition.py", str(tmp_path / "none.toml"), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"No edition of .*none.toml: there is no study file"):
        tool.main()
    assert not (tmp_path / "out").exists()
