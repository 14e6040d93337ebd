"""Run chapters side by side, and keep what they put out where Jupyter Book finds it.

    python tools/run_chapters.py _build/.jupyter_cache book/why.md book/circuits.md ...

It does what ``jcache project execute`` does, but for three things. Kernels, and the processes that they start, are
forks of one that has imported the package already: the imports take longer than many a chapter, in a new environment
half a minute. A chapter is begun when a core is free, in the order given. And it runs again not only when its own code
has changed, but also when a module has that it imports, or its data (:func:`inputs`). A chapter that fails is not kept:
Jupyter Book runs it again, and shows the error.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import EntryPoint
from multiprocessing.context import ForkServerProcess
from multiprocessing.forkserver import _forkserver  # type: ignore[attr-defined]
from pathlib import Path
from threading import Thread
from time import perf_counter
from typing import Any

from dask.system import CPU_COUNT
from ipykernel.kernelapp import IPKernelApp
from jupyter_cache import get_cache
from jupyter_cache.executors import load_executor
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner
from two_themes import keep_both

ROOT = Path(__file__).parents[1]

IMPORTED = [
    "ipykernel.kernelapp",
    "jupyter_cache.executors",
    "open_clip",
    "pure_nb.compute.cluster",
    "pure_nb.methods.wordnet",
    "pure_nb.show.report",
    "pure_nb.show.widgets",
    "sklearn.cluster",
]
"""What kernels have imported already. It must start no thread of Python's, which a fork would lose."""

DATA = ("**/*.safetensors", "glyphs/*.txt", "judges/mini-*/*.*", "methods/wordnet-*/*", "studies/**/*.*")
"""Files of the package that any chapter may read."""

FIGURES = "import tools.two_themes"
"""What draws the figures of any chapter, see :func:`inputs`."""

INLINE = "module://matplotlib_inline.backend_inline"
"""How kernels draw; matplotlib must know when it is imported."""

SECONDS = 1800
"""How long a cell may take."""


def serve(connection: str, directory: str, environment: dict[str, str]) -> None:
    """Be a kernel."""
    end_with_parent()
    multiprocessing.set_start_method(None, force=True)  # how this one was started is not how it starts others
    _forkserver.ensure_running = lambda: None  # the server that this one is from also serves this one
    os.environ.update(environment)
    os.chdir(directory)
    tools = str(Path(__file__).parent)
    sys.path[:] = [folder for folder in sys.path if folder != tools]  # as in Jupyter
    options = [f"--IPKernelApp.parent_handle={os.getppid()}", "--IPKernelApp.log_level=ERROR"]
    if "PURE_NB_BOOK" in environment:
        keep_both(Path(environment["PURE_NB_BOOK"]).with_name("dark"))
        options.append("--InlineBackend.figure_formats=retina")
    IPKernelApp.launch_instance(argv=["-f", connection, *options])


def end_with_parent() -> None:
    """Let this process and what it starts end once the process is gone that asked for it, however that ended."""
    os.setsid()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os.killpg(os.getpgrp(), signal.SIGKILL)

    Thread(target=wait, daemon=True).start()


class Kernel(ForkServerProcess):
    """A forked process, with the methods of a ``Popen`` that Jupyter calls."""

    stdin = stdout = stderr = None

    def poll(self) -> int | None:
        """The exit code, once there is one."""
        return self.exitcode

    def wait(self) -> int | None:
        """The exit code."""
        self.join()
        return self.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        assert self.pid is not None
        os.kill(self.pid, number)


class Forked(LocalProvisioner):
    """Starts a kernel by a fork where Jupyter would start a program."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> dict[str, Any]:
        """Start the kernel of a connection file; see ``LocalProvisioner``."""
        connection = cmd[cmd.index("-f") + 1]
        self.process = Kernel(target=serve, args=(connection, kwargs["cwd"], kwargs["env"]))
        self.process.start()
        self.pid = self.pgid = self.process.pid
        return self.connection_info


def fork_kernels() -> None:
    """Let Jupyter start kernels by forks. macOS's own libraries do not survive one, so there they start as usual."""
    if sys.platform != "linux":
        return
    os.environ["MPLBACKEND"] = INLINE
    multiprocessing.set_forkserver_preload(IMPORTED)
    kernels = KernelProvisionerFactory.instance()
    kernels.provisioners["forked"] = EntryPoint("forked", f"{__name__}:{Forked.__name__}", kernels.GROUP_NAME)
    kernels.default_provisioner_name = "forked"


def inputs(code: str) -> str:
    """Stands for what the results of code depend on beside itself: the package's modules it reaches, data, versions.

    A module is reached where it is imported, by the code or by another that is reached, at its head or in a function.
    """
    found = {path for pattern in DATA for path in (ROOT / "pure_nb").glob(pattern)}
    found |= {ROOT / "constraints.txt", *ROOT.glob("book/photographs/manifest.json")}  # which tells of all its files
    wanted = _modules(ast.parse(code))
    while wanted:
        path = wanted.pop()
        if path not in found:
            found.add(path)
            wanted |= _reached(path)
    return hashlib.sha256("\n".join(f"{path} {_digest(path)}" for path in sorted(found)).encode()).hexdigest()


@cache
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def _reached(path: Path) -> frozenset[Path]:
    return frozenset(_modules(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def _shown_by(package: Path) -> dict[str, str]:
    """The names that a package shows, each with its module: it imports it when it is asked for."""
    path = package / "__init__.py"
    if not package.is_relative_to(ROOT / "pure_nb") or not path.is_file():
        return {}
    nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: f"{node.module}" for node in nodes for alias in node.names}


def _modules(tree: ast.AST) -> set[Path]:
    """The repository's modules that code imports, but for those that it needs for types alone."""
    names = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names] + [f"{node.module}"]
        elif isinstance(node, ast.Attribute):
            names.append(ast.unparse(node))
    parts = [name.split(".") for name in names]
    shown = [(_shown_by(ROOT.joinpath(*own[:end])), own[end]) for own in parts for end in range(1, len(own))]
    parts += [by[name].split(".") for by, name in shown if name in by]
    places = [ROOT.joinpath(*own[:end]) for own in parts for end in range(1, len(own) + 1)]  # with its packages
    found = {path for place in places for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()}
    inner = (
        n for n in ast.iter_child_nodes(tree) if not (isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test))
    )
    return found.union(*map(_modules, inner))


def says(stamp: Path, text: str) -> bool:
    """Whether a file is there and says this."""
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == text


class Chapters:
    """Chapters, and the cache that keeps their results.

    Parameters
    ----------
    folder
        Of the cache. Beside a result stands what it was made from, see :func:`inputs`.
    paths
        Files, in the order in which to begin them.
    """

    def __init__(self, folder: Path, paths: Iterable[Path]) -> None:
        self.folder, self.cache = folder, get_cache(folder)
        read = {"name": "myst_nb_md", "type": "plugin"}
        self.inputs: dict[str, str] = {}
        for path in paths:
            uri = self.cache.add_nb_to_project(str(path.resolve()), read_data=read).uri
            cells = self.cache.get_project_notebook(uri).nb.cells
            code = [cell.source for cell in cells if cell.cell_type == "code"]
            self.inputs[uri] = inputs("\n".join([FIGURES, *code]))

    def outdated(self) -> list[str]:
        """The chapters that have to run; what is kept of them is forgotten."""
        found = []
        for uri, now in self.inputs.items():
            record = self.cache.get_cached_project_nb(uri)
            if record is None or not says(self.stamp(record.hashkey), now):
                found.append(uri)
                if record:
                    self.cache.remove_cache(record.pk)
        return found

    def stamp(self, result: str) -> Path:
        """Where it stands what a result was made from."""
        return self.folder / "inputs" / result

    def run(self, uri: str) -> None:
        """Run one chapter."""
        start = perf_counter()
        cache = get_cache(self.folder)  # one for each thread
        executor = load_executor("local-serial", cache, logging.getLogger("chapters"))
        result = executor.run_and_cache(filter_uris=[uri], timeout=SECONDS)
        if result.succeeded:
            stamp = self.stamp(cache.get_cached_project_nb(uri).hashkey)
            stamp.parent.mkdir(exist_ok=True)
            stamp.write_text(self.inputs[uri], encoding="utf-8")
        said = f"{Path(uri).stem}: {perf_counter() - start:.0f} s" + ("" if result.succeeded else ", failed")
        print(said + "\n", end="", flush=True)  # at once, or lines of two threads would mix

    def run_all(self, uris: list[str], done: Callable[[str], object] = lambda uri: None) -> None:
        """Run chapters, as many at once as there are cores, and say of each when it is done."""

        def run(uri: str) -> None:
            self.run(uri)
            done(uri)

        pool = ThreadPoolExecutor(CPU_COUNT)
        try:
            list(pool.map(run, uris))
        except KeyboardInterrupt:
            os._exit(130)  # the kernels end with this process; to wait for their chapters could take half an hour


def main() -> None:
    """Run the chapters that have to run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path, help="folder of the results")
    parser.add_argument("chapters", type=Path, nargs="+", help="in the order in which to begin them")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    fork_kernels()
    chapters = Chapters(options.cache, options.chapters)
    chapters.run_all(chapters.outdated())


if __name__ == "__main__":
    main()
