"""What lies around the book: notebooks that run anywhere, previews, the page for wrong addresses, logo, workflows.

Tests of the built site need ``make book``; the others read the repository.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import nbformat
import pytest
import yaml
from chapters import cells
from IPython.core.inputtransformer2 import TransformerManager
from PIL import Image

ROOT = Path(__file__).parents[1]
SITE = ROOT / "_build" / "html"
URL = "https://pure-nb.github.io/pure-nb/"

sys.path.insert(0, str(ROOT / "book" / "_ext"))
notebooks = pytest.importorskip("bookext.notebooks")
from bookext import lighter, reference, site  # noqa: E402
from bookext.plain import MystError, References, plain  # noqa: E402

CHAPTERS = sorted(path.stem for path in (ROOT / "book").glob("*.md") if notebooks.CODE.search(path.read_text("utf-8")))


@pytest.mark.parametrize(("seconds", "read"), [(-1, []), (1, ["first"])])
def test_a_changed_style_has_a_page_read_again(tmp_path: Path, seconds: int, read: list[str]) -> None:
    config = SimpleNamespace(html_static_path=["styles"], root_doc="first")
    app = SimpleNamespace(outdir=tmp_path / "html", confdir=tmp_path, config=config)
    style, page = tmp_path / "styles/deep/a.css", tmp_path / "html/index.html"
    style.parent.mkdir(parents=True)
    style.touch()
    assert site.with_changed_files(app, None) == []  # nothing was built before
    page.parent.mkdir()
    page.touch()
    os.utime(style, (page.stat().st_mtime + seconds,) * 2)
    assert site.with_changed_files(app, None) == read


def test_numbers_stay_with_what_belongs_to_them() -> None:
    nodes = pytest.importorskip("docutils.nodes")
    text = nodes.Text("By 5 % of x % and 4 MB (0.1 to 0.25), 3 millions, in 2 steps")
    page = nodes.section("", nodes.paragraph("", "", text), nodes.literal("", "5 % 2"))
    site.with_numbers_kept(None, page)
    kept = "By 5\u00a0% of x % and 4\u00a0MB (0.1\u00a0to\u00a00.25), 3 millions, in 2 steps"
    assert [part.astext() for part in page] == [kept, "5 % 2"]
    told = "p < 0.05, < 0.1, 1.0 ± 0.1 in 2 GB and 3 s as 4 sets"
    assert site.WIDOW.sub("_", told) == "p_<_0.05, <_0.1, 1.0_±_0.1 in 2_GB and 3_s as 4 sets"


def test_long_names_in_tables_may_break() -> None:
    nodes = pytest.importorskip("docutils.nodes")
    name = "patches:blocks.1.norm_mlp"
    cell = nodes.entry("", nodes.paragraph("", name), nodes.paragraph("", "layer2.1"), nodes.literal("", name))
    page = nodes.section("", cell, nodes.paragraph("", name))
    site.with_long_names_broken(None, page)
    first, *others = cell.children
    assert "".join(child.astext() for child in first) == "<wbr>".join(["patches:", "blocks.", "1.", "norm_", "mlp"])
    assert [part.astext() for part in [*others, page[1]]] == ["layer2.1", name, name]


@pytest.mark.parametrize(
    ("what", "docstring", "shown"),
    [
        ("property", "int64 ``[n]``: one for each image", "int64 ``[n]``: one for each image"),
        ("data", "Random orders: how many", "Random orders: how many"),
        ("attribute", "Alias for field number 12", ""),
    ],
)
def test_a_sentence_with_a_colon_is_no_type(what: str, docstring: str, shown: str) -> None:
    napoleon = pytest.importorskip("sphinx.ext.napoleon")
    lines = [docstring]
    reference.without_types_in_words(None, what, "name", None, None, lines)
    read = str(napoleon.NumpyDocstring(lines, what=what, name="name")).splitlines()
    reference.with_colons(None, what, "name", None, None, read)
    assert "\n".join(read).strip() == shown


@pytest.mark.parametrize(
    ("value", "kept"),
    [("= 0.5", True), ("= " + "table " * 99, False), (": " + "int | " * 99, True), ("= PosixPath('/home/me')", False)],
)
def test_a_value_as_long_as_a_table_is_left_out(value: str, kept: bool) -> None:
    addnodes = pytest.importorskip("sphinx.addnodes")
    page = addnodes.desc_signature("", "", addnodes.desc_name("", "NAME"), addnodes.desc_annotation("", value))
    reference.without_long_values(None, page)
    assert page.astext() == "NAME" + value * kept


def test_the_table_of_runs_has_titles_and_words() -> None:
    nodes = pytest.importorskip("docutils.nodes")
    tables = pytest.importorskip("myst_nb.ext.execution_tables")
    data = {"mtime": 1.0, "method": "cache", "runtime": 3.14, "error": "a traceback"}
    told = {f"book/{name}": {"exec_data": data | {"succeeded": good}} for name, good in (("why", True), ("arv", False))}
    page = nodes.section("", tables.make_stat_table("book/runs", told))
    env = SimpleNamespace(titles={"book/why": nodes.title("", "Why?"), "book/arv": nodes.title("", "Vectors")})
    site.with_runs_in_words(SimpleNamespace(env=env), page, "book/index")  # on which the whole book is printed
    cells = [[cell.astext() for cell in row] for row in page.findall(nodes.row)]
    assert cells == [["chapter", "seconds", "end"], ["Vectors", "3.14", "failed"], ["Why?", "3.14", "ran"]]
    assert len([*page.findall(nodes.colspec)]) == page[0][0]["cols"] == 3


def test_the_book_says_when_it_last_ran() -> None:
    source = ["# Version\n\n% built\n\nText.\n"]
    site.with_last_run(SimpleNamespace(), "book/thanks", source)
    told = r"Built on [1-9]\d? \w+ \d{4}, .* without an error, with Python 3\.\d+\.\d+, pure-nb 0\.\d"
    assert re.search(told, source[0])
    env = SimpleNamespace(found_docs={"book/thanks", "book/why"})
    assert site.with_page_of_last_run(None, env, set(), {"book/why"}, set()) == ["book/thanks"]
    assert site.with_page_of_last_run(None, env, set(), set(), set()) == []


def refer(text: str) -> str:
    """Plain Markdown with references that show what was asked for."""
    return plain(text, References(lambda role, content: f"<{role}:{content}>", lambda target: f"@{target}", str.upper))


@pytest.mark.parametrize(
    ("myst", "expected"),
    [
        ("a {cite:p}`key` b", "a <cite:p:key> b"),
        ("{py:func}`~a\nb`", "<py:func:~a b>"),
        ("`` {term}`x` `` and `{y}`", "`` {term}`x` `` and `{y}`"),
        ("[a `b`](c.md#d) ![e](f.png){width=3}", "[a `b`](@c.md#d) ![e](@f.png)"),
        ("$a[b](c)$ [d](e)", "$a[b](c)$ [d](@e)"),
        ("(here)=\n# Title\n% a comment\ntext", "# Title\ntext"),
        ("Read it\n: The text\n  goes on.", "- **Read it**\n\n  The text\n  goes on."),
        ("Reuse it\n: ```python\n  a[0](b)\n  ```", "- **Reuse it**\n\n  ```python\n  a[0](b)\n  ```"),
        ("```console\n$ a {b}`c`\n```", "```console\n$ a {b}`c`\n```"),
        ("```{math}\n:label: x\na\n```", "$$\na\n$$"),
        ("```{literalinclude} slurm.sh\n:language: bash\n```", "```bash\nSLURM.SH\n```"),
        ("```{note}\nA {b}`c`.\n\nD.\n```", "> **Note.** A <b:c>.\n> \n> D."),
        (":::{admonition} Mind\nit.\n:::", "> **Mind.** it."),
        ("```{figure} a.png\n:alt: b\n\nC.\n```", "![b](@a.png)\n\n*C.*"),
    ],
)
def test_plain_markdown(myst: str, expected: str) -> None:
    assert refer(myst).strip() == expected


def test_solutions_fold_within_lists() -> None:
    solution = "   ````{admonition} Solution\n   :class: dropdown\n\n   ```python\n   f(x)\n   ```\n   ````"
    folded = refer(f"1. Why?\n\n{solution}\n\n2. How?")
    assert "   <details>\n   <summary>Solution</summary>\n\n   ```python\n   f(x)\n   ```\n\n   </details>" in folded
    assert folded.endswith("2. How?")


def test_unknown_directives_are_named() -> None:
    with pytest.raises(MystError, match="mermaid"):
        refer("```{mermaid}\na\n```")


@pytest.mark.book
@pytest.mark.parametrize("chapter", CHAPTERS)
class TestBuilt:
    """The notebook of each chapter."""

    @pytest.fixture
    def book(self, chapter: str) -> Any:
        path = SITE / "notebooks" / f"{chapter}.ipynb"
        assert path.is_file(), f"no notebook of {chapter} in the site"
        return nbformat.read(path, as_version=4)

    def test_is_valid_and_has_no_outputs(self, book: Any) -> None:
        nbformat.validate(book)
        assert all(not cell.outputs and cell.execution_count is None for cell in book.cells if cell.cell_type == "code")

    def test_installs_the_package_where_it_is_missing(self, book: Any) -> None:
        first = book.cells[0].source
        assert '%pip install -q "pure-nb[chapters]"' in first
        assert 'find_spec("pure_nb") is None' in first

    def test_becomes_a_script(self, book: Any, chapter: str) -> None:
        """What ``jupyter nbconvert --to script`` goes by is there, and the cells as it writes them are Python."""
        language = book.metadata.language_info
        assert (language.name, language.file_extension, language.nbconvert_exporter) == ("python", ".py", "python")
        assert book.metadata.kernelspec.language == "python"
        code = "\n".join(cell.source for cell in book.cells if cell.cell_type == "code")
        compile(TransformerManager().transform_cell(code), chapter, "exec")

    def test_runs_the_chapter(self, book: Any, chapter: str) -> None:
        """The same code cells in the same order."""
        code = [cell.source.strip() for cell in book.cells if cell.cell_type == "code"]
        bare = [cell.code.strip() for cell in cells(chapter)]
        assert code[-len(bare) :] == bare

    def test_reads_as_plain_markdown(self, book: Any) -> None:
        for cell in book.cells:
            if cell.cell_type == "markdown":
                prose = re.sub(r"^ *(`{3,}).*?^ *\1$|`[^`\n]*`", "", cell.source, flags=re.DOTALL | re.MULTILINE)
                assert not re.search(r"\{[\w:-]+\}`|^ *[`:]{3,}\{|^\([\w-]+\)=|^: ", cell.source, re.MULTILINE), (
                    cell.source
                )
                for target in re.findall(r"\]\(([^)\s]+)", prose):
                    assert target.startswith(("https://", "http://")), f"{target} leads nowhere outside of the book"

    def test_reads_only_what_it_brings(self, book: Any) -> None:
        code = [cell.source for cell in book.cells if cell.cell_type == "code"]
        written = {
            line.split("/")[-1] for cell in code for line in cell.splitlines()[:1] if line.startswith("%%writefile")
        }
        for name in re.findall(r"""["']([\w-]+\.csv)["']""", "\n".join(c for c in code if not c.startswith("%%"))):
            assert name in written or f"to_csv({name!r}" in str(code), f"{name} is not there outside of the repository"

    def test_has_buttons(self, chapter: str) -> None:
        page = (SITE / "book" / f"{chapter}.html").read_text("utf-8")
        colab = f"https://colab.research.google.com/github/pure-nb/pure-nb/blob/gh-pages/notebooks/{chapter}.ipynb"
        binder = f"https://mybinder.org/v2/gh/pure-nb/pure-nb/main?urlpath=lab/tree/book/{chapter}.md"
        for address in (colab, binder, f"../notebooks/{chapter}.ipynb", f"../_sources/book/{chapter}.md"):
            assert f'href="{address}"' in page
        assert f'href="../notebooks/{chapter}.ipynb" download' in page, "else the browser shows its text"
        assert "window.print()" in page
        assert (SITE / "_sources" / "book" / f"{chapter}.md").is_file()
        assert (ROOT / "book" / f"{chapter}.md").is_file()


@pytest.mark.book
@pytest.mark.slow
def test_a_notebook_runs_in_an_empty_folder(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient")
    book = nbformat.read(SITE / "notebooks" / "why.ipynb", as_version=4)
    variables = {"PURE_NB_STORE": str(tmp_path / "store"), "PYTHONPATH": str(ROOT)}
    stored = ROOT / "_build" / "store"
    if stored.is_dir():  # of the book, so that nothing is computed twice
        variables["PURE_NB_STORE"] = str(stored)
    client = nbclient.NotebookClient(
        book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env=os.environ | variables)
    shown = [output for cell in book.cells for output in cell.get("outputs", [])]
    assert any("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in shown), (
        "no live slider"
    )
    assert not list(tmp_path.glob("*.ipynb"))


@pytest.mark.book
@pytest.mark.parametrize("page", [f"book/{chapter}" for chapter in CHAPTERS])
def test_previews(page: str) -> None:
    text = (SITE / f"{page}.html").read_text("utf-8")
    told = dict(re.findall(r'<meta property="og:([\w:]+)" content="([^"]*)"', text))
    assert told["url"] == f"{URL}{page}.html"
    assert told["image"] == f"{URL}neuron.png"
    assert (SITE / "neuron.png").is_file()
    assert len(told["title"]) > 3
    assert 40 < len(told["description"]) <= 200
    assert 'name="description"' in text
    assert f'<link rel="canonical" href="{URL}{page}.html"' in text


@pytest.mark.book
def test_pages_around() -> None:
    """The front door can be previewed, and the page for wrong addresses stands on its own at any depth."""
    door = (SITE / "index.html").read_text("utf-8")
    assert "og:image" in door
    assert "url=book/index.html" in door
    lost = (SITE / "404.html").read_text("utf-8")
    targets = re.findall(r'(?:href|src|action)="([^"]*)"', lost)
    within = [target for target in targets if target.startswith("data:")]
    assert len(within) == 1  # the icon, which needs no address
    assert len(targets) > 1
    for target in set(targets) - set(within):
        assert target.startswith(URL)
        assert (SITE / target.removeprefix(URL)).is_file()
    assert (SITE / ".nojekyll").is_file()


@pytest.mark.book
def test_icons_are_few_and_there() -> None:
    """Of Font Awesome what the pages name, and neither the script nor the rest."""
    pages = [path.read_text("utf-8") for path in SITE.rglob("*.html")]
    assert not any("all.min.js" in page for page in pages)
    (styles,) = (SITE / "_static" / "vendor" / "fontawesome").glob("*/css/all.min.css")
    css = styles.read_text("utf-8")
    for name in ("fa-download", "fa-rocket", "fa-bars", "fa-magnifying-glass", "fa-github"):
        assert f".{name}:before" in css
    assert ".fa-hippo:before" not in css
    for font in re.findall(r"url\(\.\./webfonts/([\w.-]+)\)", css):
        path = styles.parents[1] / "webfonts" / font
        assert path.is_file()
        assert path.stat().st_size < 20_000


def test_pictures_become_smaller_and_stay_the_same(tmp_path: Path) -> None:
    ramp = Image.linear_gradient("L").convert("RGB").resize((300, 200))
    ramp.save(tmp_path / "ramp.png")
    assert lighter.pictures(tmp_path) == {"ramp"}
    with Image.open(tmp_path / "ramp.webp") as smaller:
        assert smaller.size == ramp.size
        difference = max(abs(a - b) for a, b in zip(smaller.convert("L").tobytes(), ramp.convert("L").tobytes()))
    assert difference < 8
    assert (tmp_path / "ramp.webp").stat().st_size < (tmp_path / "ramp.png").stat().st_size


def test_logo_is_what_the_tool_draws(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "tools" / "draw_logo.py", tmp_path], check=True)
    for name in ("logo.svg", "favicon.svg"):
        assert (tmp_path / name).read_bytes() == (ROOT / "book" / name).read_bytes(), f"run tools/draw_logo.py: {name}"


def test_the_icon_of_an_atlas_is_the_books() -> None:
    base = (ROOT / "pure_nb" / "show" / "static" / "atlas" / "base.html").read_text(encoding="utf-8")
    assert f'href="data:image/svg+xml,{quote((ROOT / "book" / "favicon.svg").read_text(encoding="utf-8"))}"' in base


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def steps(workflow: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(workflow.read_text("utf-8"))["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


def test_workflows_there_are() -> None:
    assert [path.stem for path in WORKFLOWS] == ["nightly", "pages", "release", "test", "weekly"]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_what_there_is(workflow: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for step in steps(workflow):
        assert ("uses" in step) != ("run" in step)
        if "uses" in step:
            assert re.search(r"@(v\d+|release/v\d+)$", step["uses"]), "a major version of an action"
        for called in re.findall(r"\bmake ([a-z]+)", step.get("run", "")):
            assert called in targets, f"make {called}"
        for path in re.findall(r"\b(?:tests|tools)/\w+\.py", step.get("run", "")):
            assert (ROOT / path).is_file()


def test_release_publishes_without_a_stored_token() -> None:
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8")
    assert "id-token: write" in text
    assert "secrets." not in text


def test_two_commands_run_on_every_supported_python() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text("utf-8"))["jobs"]
    job, elsewhere = jobs["commands"], jobs["elsewhere"]
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert job["strategy"]["matrix"]["python"] == re.findall(r'Python :: (3\.\d+)"', project)
    commands = " ".join(step.get("run", "") for step in job["steps"])
    assert "make check" in commands
    assert elsewhere["strategy"]["matrix"]["system"] == ["windows-latest", "macos-latest"]
    assert not any("make" in step.get("run", "") for step in elsewhere["steps"]), "Windows has none"


def test_site_of_the_workflow_is_that_of_the_book() -> None:
    """The branch that Colab reads is the one that is published, and the address is the same everywhere."""
    (publish,) = (
        step for step in steps(ROOT / ".github" / "workflows" / "pages.yml") if "peaceiris" in step.get("uses", "")
    )
    assert publish["with"]["publish_branch"] == notebooks.SITE_BRANCH
    assert publish["with"]["publish_dir"] == "_build/html"
    config = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
    assert config["html"]["baseurl"] == config["sphinx"]["config"]["ogp_site_url"] == URL


def test_binder_can_open_chapters() -> None:
    environment = yaml.safe_load((ROOT / "binder" / "environment.yml").read_text("utf-8"))
    names = [name for name in environment["dependencies"] if isinstance(name, str)]
    assert any(name.startswith("pytorch-cpu") for name in names), "torch with CUDA is too large for Binder"
    assert "set-default-viewer" in (ROOT / "binder" / "postBuild").read_text("utf-8")
    assert os.access(ROOT / "binder" / "postBuild", os.X_OK)


def test_five_lines_of_the_readme_print_what_it_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With nothing in the store, as a newcomer has it: what ships is found, the same bits everywhere."""
    text = (ROOT / "README.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (printed,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    assert len(ast.parse(code).body) <= 5
    monkeypatch.setenv("PURE_NB_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == printed
    assert (tmp_path / "neuron.png").stat().st_size > 20_000


def test_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= 110
    assert {"$ make book", "$ make test"} <= {line.split("    ")[0] for line in lines}


def test_the_weekly_run_is_as_in_colab() -> None:
    """Every notebook of the site, by the wheel of this commit alone, in an environment of its own."""
    text = (ROOT / ".github" / "workflows" / "weekly.yml").read_text("utf-8")
    assert "cron:" in text
    assert "tools/run_notebooks.py" in text
    assert "make wheel" in text


def test_citations_agree() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    archived = json.loads((ROOT / ".zenodo.json").read_text("utf-8"))
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)
    assert version
    assert version[1] == cited["version"] == archived["version"]
    assert cited["title"] == archived["title"]
    assert cited["license"] == archived["license"].upper()
    assert f"version **{version[1]}**" in (ROOT / "book" / "thanks.md").read_text("utf-8")
    assert f"## [{version[1]}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_whoever_asks_finds_a_form() -> None:
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert [form.stem for form in forms] == ["book", "config", "package", "submission"]
    for form in forms:
        made = yaml.safe_load(form.read_text("utf-8"))
        if form.stem == "config":
            assert any("discussions" in link["url"] for link in made["contact_links"])
        else:
            assert {"name", "description", "body"} <= set(made)
            assert all(field["attributes"]["label"] for field in made["body"] if field["type"] != "markdown")
