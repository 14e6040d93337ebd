"""The wheel: what is in it, what it says of itself, and that with it alone a notebook of the book runs."""

from __future__ import annotations

import ast
import email
import os
import re
import subprocess
import sys
import zipfile
from email.message import Message
from importlib.metadata import packages_distributions
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement

from pure_nb.loading import SHIPPED

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "_build" / "html" / "notebooks"
CLEAN = os.environ.get("PURE_NB_CLEAN_INSTALL", "0") not in ("", "0")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """All that git knows of the package, whatever else lies in the folder; nothing of the tests or the book."""
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    known = subprocess.run(["git", "ls-files", "pure_nb"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not known:
        pytest.skip("no git here that could tell what belongs to the package")
    assert set(known) <= held
    assert all(name.startswith("pure_nb/") for name in held)
    assert not [name for name in held if name.endswith((".pyc", ".ipynb")) or "/test" in name]
    assert {"pure_nb/py.typed", "pure_nb/studies/glyphs.toml", "pure_nb/glyphs/network.safetensors"} <= held
    assert {f"pure_nb/studies/results/{path.name}" for path in SHIPPED.iterdir()} <= held


def test_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < 20e6, "PyPI takes more, but the shipped world should stay small"


def test_metadata_is_complete(metadata: Message) -> None:
    assert metadata["Name"] == "pure-nb"
    assert metadata["License-Expression"] == "MIT"
    assert len(metadata.get_all("License-File", [])) == 2
    assert all(metadata[name] for name in ("Requires-Python", "Summary", "Keywords"))
    links = dict(line.split(", ", 1) for line in metadata.get_all("Project-URL", []))
    assert {"Homepage", "Documentation", "Repository", "Changelog", "Issues"} <= set(links)
    classified = metadata.get_all("Classifier", [])
    for version in ("3.10", "3.11", "3.12", "3.13"):
        assert f"Programming Language :: Python :: {version}" in classified


def test_readme_is_readable_on_pypi(metadata: Message) -> None:
    """PyPI shows the README without the repository around it: every link and picture must be absolute."""
    assert metadata["Description-Content-Type"] == "text/markdown"
    text = str(metadata.get_payload())
    assert text.strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()
    targets = re.findall(r"\]\(([^)\s]+)", text)
    assert targets
    assert not [target for target in targets if not target.startswith("https://")]


@pytest.mark.book
def test_notebooks_need_nothing_beyond_it(metadata: Message) -> None:
    """What the notebooks import comes with Python, the wheel, or what the wheel requires for them."""
    required = required_by(metadata, "") | required_by(metadata, "chapters")
    providers = packages_distributions()
    beyond = {}
    for path in NOTEBOOKS.glob("*.ipynb"):
        book = nbformat.read(path, as_version=4)
        written = {line.split("/")[-1] for cell in book.cells for line in cell.source.splitlines()[:1]}
        for cell in book.cells:
            first = cell.source.partition("\n")[0]
            if cell.cell_type != "code" or (first.startswith("%%writefile") and not first.endswith(".py")):
                continue
            for name in imported(re.sub(r"^( *)[%!].*$", r"\1pass", cell.source, flags=re.MULTILINE)):
                known = {found.lower().replace("_", "-") for found in providers.get(name, [])}
                if name in sys.stdlib_module_names or name == "pure_nb" or f"{name}.py" in written or known & required:
                    continue
                beyond[path.name, name] = known
    assert not beyond


def required_by(metadata: Message, extra: str) -> set[str]:
    """What the wheel requires without extras, or what one of its extras and those that it is made of add."""
    lines = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    asked = f'extra == "{extra}"'
    lines = [one for one in lines if (asked in str(one.marker) if extra else "extra" not in str(one.marker))]
    inner = [required_by(metadata, name) for one in lines if one.name == "pure-nb" for name in one.extras]
    return {one.name.lower().replace("_", "-") for one in lines}.union(*inner)


def test_extras_say_what_they_are_made_of(metadata: Message) -> None:
    assert {"dask", "nltk", "open-clip-torch", "timm", "ipywidgets", "zennit-crp"} <= required_by(metadata, "chapters")
    assert len(required_by(metadata, "")) <= 18


def imported(code: str) -> set[str]:
    """The packages that code imports."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.slow
@pytest.mark.skipif(not CLEAN, reason="installs 6 GB from the index; PURE_NB_CLEAN_INSTALL=1 asks for it")
def test_alone_runs_a_notebook(wheel: Path, tmp_path: Path) -> None:
    """In a new environment, outside of the repository, with the wheel, what its notebooks name, and a kernel."""
    notebook = NOTEBOOKS / "why.ipynb"
    assert notebook.is_file(), "make book writes the notebooks"
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    packages = [f"{wheel}[chapters]", "ipykernel", "nbclient"]
    subprocess.run([sys.executable, "-m", "uv", "pip", "install", "-q", "--python", str(python), *packages], check=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    script = (
        "import nbformat, nbclient, sys\n"
        "book = nbformat.read(sys.argv[1], as_version=4)\n"
        "nbclient.NotebookClient(book, timeout=600, kernel_name='python3').execute()\n"
        "print(sum(len(cell.get('outputs', [])) for cell in book.cells))\n"
    )
    variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PURE_NB_BOOK")}
    done = subprocess.run(
        [str(python), "-c", script, str(notebook)], cwd=empty, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout) >= 5
