"""Run chapters side by side, and keep what they put out where Jupyter Book finds it.

    python tools/run_chapters.py _build/.jupyter_cache book/why.md book/circuits.md ...

It does what ``jcache project execute`` does, but for two things. Kernels are forks of one process that has imported the
package already: the imports take longer than many a chapter, in a new environment half a minute. And a chapter is begun
when a core is free, in the order given. A chapter that fails is not kept: Jupyter Book runs it again, and shows the
error.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import EntryPoint
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from threading import Thread
from time import perf_counter
from typing import Any

from dask.system import CPU_COUNT
from ipykernel.kernelapp import IPKernelApp
from jupyter_cache import get_cache
from jupyter_cache.executors import load_executor
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

IMPORTED = ["ipykernel.kernelapp", "jupyter_cache.executors", "pure_nb.report", "pure_nb.widgets"]
"""What kernels have imported already. It must start no thread of Python's, which a fork would lose."""

INLINE = "module://matplotlib_inline.backend_inline"
"""How kernels draw; matplotlib must know when it is imported."""

SECONDS = 1800
"""How long a cell may take."""


def serve(connection: str, directory: str, environment: dict[str, str]) -> None:
    """Be a kernel."""
    os.setsid()  # what the kernel starts ends with it
    Thread(target=end_with_parent, daemon=True).start()
    multiprocessing.set_start_method(None, force=True)  # how this one was started is not how it starts others
    os.environ.update(environment)
    os.chdir(directory)
    tools = str(Path(__file__).parent)
    sys.path[:] = [folder for folder in sys.path if folder != tools]  # as in Jupyter
    quiet = [f"--IPKernelApp.parent_handle={os.getppid()}", "--IPKernelApp.log_level=ERROR"]
    IPKernelApp.launch_instance(argv=["-f", connection, *quiet])


def end_with_parent() -> None:
    """End this process and what it started once the process is gone that asked for it, however that ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(os.getpgrp(), signal.SIGKILL)


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


def run(cache: Path, chapter: str) -> None:
    """Run one chapter, unless its result is there."""
    start = perf_counter()
    executor = load_executor("local-serial", get_cache(cache), logging.getLogger("chapters"))
    result = executor.run_and_cache(filter_uris=[chapter], timeout=SECONDS)
    if result.all():
        said = f"{Path(chapter).stem}: {perf_counter() - start:.0f} s" + ("" if result.succeeded else ", failed")
        print(said + "\n", end="", flush=True)  # at once, or lines of two threads would mix


def main() -> None:
    """Run chapters, as many at once as there are cores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path, help="folder of the results")
    parser.add_argument("chapters", type=Path, nargs="+", help="in the order in which to begin them")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    fork_kernels()
    cache = get_cache(options.cache)
    read = {"name": "myst_nb_md", "type": "plugin"}
    records = [cache.add_nb_to_project(str(path.resolve()), read_data=read) for path in options.chapters]
    pool = ThreadPoolExecutor(CPU_COUNT)
    try:
        list(pool.map(partial(run, options.cache), [record.uri for record in records]))
    except KeyboardInterrupt:
        os._exit(130)  # the kernels end with this process; to wait for their chapters could take half an hour


if __name__ == "__main__":
    main()
