"""What is imported when: nothing heavy for a name or for help, and of libraries that not everyone has none unasked."""

from __future__ import annotations

import ast
import compileall
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement
from small import noise

import pure_nb
from pure_nb.errors import ClusterError, EmbedderError, ImageError, ModelError, PureError, WordNetError
from pure_nb.images.labels import class_labels, display_names
from pure_nb.images.sources import as_images
from pure_nb.judges.embedders import load_embedder
from pure_nb.judges.naming import nouns
from pure_nb.loading import load_model, tomllib
from pure_nb.study import Study

SOURCE = Path(pure_nb.__file__).parent
PROJECT = tomllib.loads((SOURCE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]

LATE = {
    "IPython",
    "anywidget",
    "dask",
    "distributed",
    "ipywidgets",
    "jinja2",
    "matplotlib.pyplot",
    "nltk",
    "open_clip",
    "pandas",
}
LATE |= {"anywidget", "pyarrow", "scipy.stats", "seaborn", "sklearn", "timm", "umap"}
"""What a study needs at the earliest when it computes or shows something."""

HEAVY = LATE | {"PIL", "matplotlib", "numpy", "safetensors", "scipy", "torch", "torchvision", "zennit"}
"""What takes longer to import than help may take."""

PACKAGES = ["pure_nb"] + [f"pure_nb.{path.parent.name}" for path in sorted(SOURCE.glob("*/__init__.py"))]
LAZY = [name for name in PACKAGES if name != "pure_nb.glyphs"]


def loaded(code: str, *arguments: str) -> set[str]:
    """The modules that a new process has when it has run some code."""
    code += "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_front_door_is_light() -> None:
    assert not loaded("import pure_nb\nassert 'Study' in dir(pure_nb)\npure_nb.PureError, pure_nb.Parameters") & HEAVY


def test_help_is_light() -> None:
    """Of all commands; torch alone takes longer than three of them may."""
    code = """
from typer.testing import CliRunner
from pure_nb.cli import app
commands = [(command.name or command.callback.__name__) for command in app.registered_commands]
assert "bench" in commands and "store" in commands
for arguments in ([], *([command] for command in commands)):
    made = CliRunner().invoke(app, [*arguments, "--help"])
    assert made.exit_code == 0 and "Usage" in made.output, made.output
"""
    assert not loaded(code) & HEAVY


def test_what_splits_and_lays_out_a_neuron_does_without_torch() -> None:
    """Each core's process imports it, and torch takes longer than the first neurons."""
    assert not loaded("import pure_nb.methods.virtual, numpy; pure_nb.methods.virtual.kmeans(numpy.eye(3), 2)") & {
        "torch"
    }


@pytest.mark.slow
def test_the_five_lines_import_nothing_that_computes(tmp_path: Path) -> None:
    """What ships is found, and drawn without what takes longer to import than to draw."""
    (five,) = re.findall(r"```python\n(.*?)```", (SOURCE.parent / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    found = loaded(f"import os, sys\nos.chdir(sys.argv[1])\n{five}", str(tmp_path))
    assert not found & {"numba", "scipy.stats", "seaborn", "sklearn", "umap"}
    assert (tmp_path / "neuron.png").is_file()
    assert not any(Path(os.environ["PURE_NB_STORE"]).iterdir())


@pytest.mark.slow
def test_a_study_is_loaded_without_what_it_does_not_need_yet() -> None:
    found = loaded("import pure_nb\npure_nb.load_study('glyphs')")
    assert "torchvision" in found
    assert not found & LATE


def handed_out(package: str) -> dict[str, tuple[str, str]]:
    """The names that type checkers see in a package: where each comes from, and what it is called there."""
    file = SOURCE.parent / package.replace(".", "/") / "__init__.py"
    (block,) = (node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.If))
    nodes = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: (str(node.module), alias.name) for node in nodes for alias in node.names}


@pytest.mark.parametrize("package", LAZY)
def test_a_package_hands_out_what_type_checkers_see(package: str) -> None:
    module, names = importlib.import_module(package), handed_out(package)
    own = {"PureError", "__version__"} if package == "pure_nb" else set()
    assert set(module.__all__) == set(names) | own
    assert dir(module) == sorted(module.__all__)
    for name, (home, called) in names.items():
        module.__dict__.pop(name, None)
        assert getattr(module, name) is getattr(importlib.import_module(home), called)
        assert name in vars(module)  # and is not asked for again
        assert not [*Path(*module.__path__).glob(f"{name}*")], "a module of that name comes first"


def test_names_are_found_without_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a package is installed compiled."""
    folder = tmp_path / "compiled_only"
    folder.mkdir()
    (folder / "inner.py").write_text("first, second = 1, 2")
    (folder / "__init__.py").write_text(
        "from typing import TYPE_CHECKING\nfrom pure_nb._imports import lazily\n"
        "if TYPE_CHECKING:\n    from compiled_only.inner import first as own, second\n"
        "else:\n    __getattr__, __dir__ = lazily(__name__)\n__all__ = ['own', 'second']"
    )
    compileall.compile_dir(folder, quiet=1, legacy=True)
    for source in folder.glob("*.py"):
        source.unlink()
    monkeypatch.syspath_prepend(tmp_path)
    package = importlib.import_module("compiled_only")
    assert (package.own, package.second, package.inner.first) == (1, 2, 1)
    assert dir(package) == ["own", "second"]


def test_there_are_few_names() -> None:
    names = {name for package in LAZY for name in importlib.import_module(package).__all__}
    assert 14 < len(names) <= 45


def test_modules_come_by_their_names_too() -> None:
    vars(pure_nb).pop("methods", None)
    vars(pure_nb.methods).pop("splitting", None)
    assert pure_nb.methods.splitting is sys.modules["pure_nb.methods.splitting"]
    for package in (pure_nb, importlib.import_module("pure_nb.methods")):
        with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'nonsense'"):
            package.nonsense  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'nonsense' from 'pure_nb'"):
        exec("from pure_nb import nonsense")


def named(requirement: str) -> str:
    return Requirement(requirement).name.lower().replace("_", "-")


def installed_by(extra: str) -> set[str]:
    """The distributions that an extra names, and the extras that it is made of."""
    parts = [Requirement(line) for line in EXTRAS[extra]]
    inner = [installed_by(one) for part in parts if part.name == "pure-nb" for one in part.extras]
    others = [part for part in parts if part.name != "pure-nb"]  # dask[distributed] brings distributed
    return {named(str(part)) for part in others}.union(*inner, *(part.extras for part in others))


HARD = {named(line) for line in PROJECT["dependencies"]}


def imports(tree: ast.AST, extra: str = "") -> Iterator[tuple[str, str]]:
    """The packages that code imports when it runs, each with the extra that is named around the import."""
    for node in ast.iter_child_nodes(tree):
        inner = extra
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.With):
            text = ast.unparse(node.items[0])
            inner = text.split("'")[1] if text.startswith("needed(") else extra
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], extra) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0], extra
        yield from imports(node, inner)


def test_every_import_is_of_a_hard_dependency_or_says_which_extra_brings_it() -> None:
    providers = {name: {named(one) for one in some} for name, some in packages_distributions().items()}
    providers["tomli"] = {"tomli"}  # of Python 3.10 alone
    hard = set()
    for path in SOURCE.rglob("*.py"):
        for name, extra in imports(ast.parse(path.read_text(encoding="utf-8"))):
            if name in sys.stdlib_module_names or name == "pure_nb":
                continue
            assert providers[name] & (HARD | (installed_by(extra) if extra else set())), f"{path.name} imports {name}"
            hard |= providers[name] & HARD if not extra else set()
    assert hard | {"pyarrow"} == HARD  # by which pandas writes tables


@pytest.mark.parametrize("folder", ["benchmarks", "tools"])
def test_scripts_import_what_the_package_has(folder: str) -> None:
    """Few of them run in tests."""
    for path in sorted((SOURCE.parent / folder).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pure_nb":
                names = ", ".join(alias.name for alias in node.names)
                exec(f"from {node.module} import {names}")


def test_there_are_few_hard_dependencies() -> None:
    assert len(PROJECT["dependencies"]) <= 18
    assert installed_by("all") == {
        one for extra in ("clip", "cluster", "huggingface", "show", "wordnet") for one in installed_by(extra)
    }
    assert installed_by("all") <= installed_by("book") & installed_by("test")
    assert not HARD & installed_by("all")


def without(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    """Let a library be missing, also for our modules that have imported it."""
    for name in [library, *(name for name in sys.modules if name.startswith(f"{library}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    for module in (
        "compute.cluster",
        "compute._packing",
        "methods.wordnet",
        "show.atlas",
        "show.layers",
        "show.live",
        "show.pages",
        "show.widgets",
    ):
        monkeypatch.delitem(sys.modules, f"pure_nb.{module}", raising=False)


def wnids() -> Any:
    images = as_images((noise(2), [0, 1]))
    images.dataset.classes = ["n01440764", "n02701002"]
    return class_labels(images, 1000)


def imported(module: str) -> Callable[[], Any]:
    return lambda: importlib.import_module(f"pure_nb.{module}")


MISSING: list[tuple[str, Callable[[], Any], type[PureError], str]] = [
    ("dask", imported("compute.cluster"), ClusterError, "clusters need more packages: pip install 'pure-nb[cluster]'"),
    ("cloudpickle", imported("compute._packing"), ClusterError, "'pure-nb[cluster]'"),
    ("dask_jobqueue", lambda: imported("compute.cluster")().connect("slurm:1"), ClusterError, "'pure-nb[cluster]'"),
    (
        "open_clip",
        lambda: load_embedder("mini-clip"),
        EmbedderError,
        "CLIP needs more packages: pip install 'pure-nb[clip]'",
    ),
    ("open_clip", lambda: load_embedder("clip"), EmbedderError, "'pure-nb[clip]'"),
    ("open_clip", lambda: load_embedder("open_clip:ViT-B-32"), EmbedderError, "'pure-nb[clip]'"),
    ("timm", lambda: load_embedder("dinov2"), EmbedderError, "DINOv2 needs more packages: pip install 'pure-nb[timm]'"),
    (
        "timm",
        lambda: load_model("timm:resnet18"),
        ModelError,
        "'timm:resnet18' needs more packages: pip install 'pure-nb[timm]'",
    ),
    ("timm", nouns, EmbedderError, "the nouns of WordNet need more packages: pip install 'pure-nb[timm]'"),
    ("timm", wnids, ImageError, "ImageNet's classes need more packages: pip install 'pure-nb[timm]'"),
    ("nltk", imported("methods.wordnet"), WordNetError, "WordNet needs more packages: pip install 'pure-nb[wordnet]'"),
    ("ipywidgets", imported("show.widgets"), PureError, "explorers need more packages: pip install 'pure-nb[show]'"),
    ("anywidget", imported("show.live"), PureError, "explorers need more packages: pip install 'pure-nb[show]'"),
    ("jinja2", imported("show.atlas"), PureError, "an atlas needs more packages: pip install 'pure-nb[show]'"),
]


@pytest.mark.parametrize(("library", "use", "kind", "words"), MISSING)
def test_what_is_missing_is_named_with_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, library: str, use: Callable[[], Any], kind: type[PureError], words: str
) -> None:
    without(monkeypatch, library)
    with pytest.raises(kind, match=re.escape(words)) as caught:
        use()
    assert library in str(caught.value)
    (extra,) = re.findall(r"pure-nb\[(\w+)\]", str(caught.value))
    assert {named(one) for one in packages_distributions()[library]} & installed_by(extra)


def test_a_study_without_nltk(glyph_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs can be had, and their similarities not."""
    without(monkeypatch, "nltk")
    study = glyph_study.replace(target="layer4.0.conv2", lower="input:layer4.0.conv2")
    assert len(study.classes.pairs)
    with pytest.raises(WordNetError, match=re.escape("pip install 'pure-nb[wordnet]'")):
        study.classes.wordnet_pairs()


def test_what_needs_no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("open_clip", "timm", "huggingface_hub", "nltk"):
        without(monkeypatch, library)
    assert load_embedder("pixels").images([np.zeros((8, 8, 3), np.uint8)]).shape == (1, 768)
    assert display_names(["n01440764", "hop_clover"]) == ["n01440764", "hop clover"]
    images = as_images((noise(2), [0, 1]))
    assert class_labels(images, 2)[0].tolist() == [0, 1]


def needed_by(names: set[str]) -> set[str]:
    """All that some distributions need, at any remove and here."""
    found: set[str] = set()
    while names - found:
        name = (names - found).pop()
        found.add(name)
        try:
            lines = [Requirement(line) for line in requires(name) or ()]
        except PackageNotFoundError:
            continue
        names = names | {named(str(one)) for one in lines if not one.marker or one.marker.evaluate({"extra": ""})}
    return found


@pytest.mark.slow
def test_the_five_lines_need_the_hard_dependencies_alone(tmp_path: Path) -> None:
    """Those of the README, on few images, in a process that finds nothing of what the extras bring."""
    hard, extra = needed_by(HARD), needed_by(installed_by("all"))
    here = {name: {named(one) for one in some} for name, some in packages_distributions().items()}
    barred = {name for name, some in here.items() if some & extra and not some & hard}
    assert {"dask", "ipywidgets", "nltk", "open_clip", "timm"} <= barred
    code = """
import json, sys
sys.modules.update(dict.fromkeys(json.loads(sys.argv[1])))
import pure_nb
study = pure_nb.load_study(sys.argv[2], progress=False)
print(study.neurons[["channel", "k", "score", "sizes"]].head().to_string(index=False))
study.neuron(22).plot().savefig(sys.argv[3])
"""
    study, picture = tmp_path / "few.toml", tmp_path / "neuron.png"
    study.write_text(
        '[model]\nsource = "glyphnet"\n[images]\nsource = "glyphs"\nlength = 60\n'
        '[parameters]\ntarget = "layer4"\nlower = "layer3"\nn_references = 6\nn_clusters = 2\n',
        encoding="utf-8",
    )
    loaded(code, json.dumps(sorted(barred)), str(study), str(picture))
    assert picture.is_file()
