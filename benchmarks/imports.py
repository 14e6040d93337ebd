"""What it takes to import the package, to load a study and to read help: processor time beside ``import torch``.

    python benchmarks/imports.py

Each in processes of its own, taking turns, after a first round that is not counted, in which Python compiles what it
has not yet compiled. Medians over the rounds of user and system time, on one thread; of the help of the commands the
slowest.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys

from pure_nb.cli import app

HELP = "from pure_nb.cli import app; app()"
COMMANDS = {
    f"`pure-nb {name} --help`": [HELP, name, "--help"]
    for name in (command.name or command.callback.__name__ for command in app.registered_commands if command.callback)
}

CODE = {
    "`import torch`": ["import torch"],
    "`import torchvision`": ["import torchvision"],
    "`import pure_nb`": ["import pure_nb"],
    '`pure_nb.load_study("glyphs")`': ["import pure_nb; pure_nb.load_study('glyphs')"],
    "`pure-nb --help`": [HELP, "--help"],
    **COMMANDS,
}
"""What Python is given to run."""

LIMITS = {"`import pure_nb`": 1.3, '`pure_nb.load_study("glyphs")`': 2.4}
LIMITS |= {name: 1 / 3 for name in CODE if "help" in name}
"""How much of the time of ``import torch`` each may take."""


def seconds(code: list[str], threads: int = 1) -> float:
    """Processor time of a process."""
    settings = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONDONTWRITEBYTECODE": ""}
    before = children()
    subprocess.run([sys.executable, "-c", *code], check=True, stdout=subprocess.DEVNULL, env=settings)
    return children() - before


def children() -> float:
    """Processor time of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="rounds; in each everything runs once")
    rounds = [{name: seconds(code) for name, code in CODE.items()} for _ in range(1 + parser.parse_args().repeats)]
    taken = {name: statistics.median(found[name] for found in rounds[1:]) for name in CODE}
    print("| | s | of `import torch` | at most |\n|---|--:|--:|--:|")
    slowest = max(COMMANDS, key=lambda name: taken[name])
    for name, own in taken.items():
        if name in COMMANDS and name != slowest:
            continue
        limit = f"{LIMITS[name]:.2f}" if name in LIMITS else ""
        print(f"| {name} | {own:.2f} | {own / taken['`import torch`']:.2f} | {limit} |")


if __name__ == "__main__":
    main()
