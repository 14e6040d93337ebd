"""A fault campaign: processes killed at random moments, damaged files, malformed inputs. None may do harm.

    python benchmarks/faults.py --out benchmarks/results/faults.csv

*Killed*: a study is run in a process of its own, killed with SIGKILL after a random time or at a random write to the
disk, and started again, until a run comes through. All files of the finished store must be those of a run that nobody
disturbed, to the byte. *Damaged*: in a finished store one file is changed (a bit flipped, cut off, overwritten,
swapped, lost, or replaced by a pickle that would leave a mark) and the study is read again. Its results must be the
same, and whatever was damaged must have been computed again with a warning. *Malformed*: study files, pictures, weights
and saved splits are changed in the same ways before they are read. They must be read or be refused by one of the
errors that the command line tells in one message; nothing else may come out of it, nothing may hang, and no pickle may
run.

The script ends with status 1 if anything else happened. ``tests/test_faults.py`` runs a short version.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # processes are forked, which threads would not survive

import numpy as np
import torch
from common import report
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import Dataset

from pure_nb import neuron as neuron_module
from pure_nb.compute import blocks, store, sweep
from pure_nb.errors import PureError, StoreWarning
from pure_nb.images.sources import folder_images
from pure_nb.loading import load_study
from pure_nb.methods.rewiring import load_split, save_split
from pure_nb.methods.virtual import virtual_neurons
from pure_nb.network.models import load_weights
from pure_nb.study import Study

TIMEOUT = 60
"""Seconds after which a trial counts as hanging."""

Outcomes = Counter[tuple[str, str]]


class Scenes(Dataset[Any]):
    """Random images with labels: the same ones in every process."""

    def __init__(self, count: int = 60) -> None:
        self.images = torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(0))
        self.targets = [number % 4 for number in range(count)]
        self.classes = ["cat", "dog", "house", "tree"]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, sample: int) -> tuple[Any, int]:
        return self.images[sample], self.targets[sample]


def network() -> nn.Sequential:
    """A network that takes no time, the same in every process."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(5, 6, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    ).eval()


def study(folder: Path) -> Study:
    made = Study.from_model(
        network(), Scenes(), "2", "input:2", n_references=8, n_clusters=2, store=folder, batch_size=4
    )
    return made.replace(progress=False)


def results(folder: Path) -> str:
    """All steps of the study, as one checksum: computed, or read from the store."""
    found = study(folder)
    digest = hashlib.sha256()
    references, classes = found.references, found.classes.statistics
    for array in (references.sample, references.score, references.position, classes.pooled, classes.bootstrap_sums):
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update(np.ascontiguousarray(found.circuits).tobytes())
    digest.update(np.ascontiguousarray(found.crops.boxes).tobytes())
    for parts in found.virtual:
        digest.update(parts.labels.tobytes())
    digest.update(found.neurons.to_csv().encode())
    return digest.hexdigest()


def files(folder: Path) -> dict[str, str]:
    """The files of a store, but for what belongs to locks, by their checksums."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def forked(work: Callable[[], Any]) -> int:
    """Start something in a copy of this process, which has everything imported; its process number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        warnings.simplefilter("ignore")
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def dying_at(write: int) -> None:
    """From now on, this process kills itself at one of its writes: before a file gets its name, or right after."""
    replace, count = os.replace, iter(range(1 << 30))

    def deadly(*paths: Any) -> None:
        number = next(count)
        if number == write // 2 and write % 2 == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*paths)
        if number == write // 2:
            os.kill(os.getpid(), signal.SIGKILL)

    store.os.replace = deadly  # type: ignore[attr-defined]


def killed(count: int, scratch: Path, chance: random.Random) -> Outcomes:
    """Kill runs of the study until ``count`` were killed; every one that comes through must have the same files."""
    outcomes: Outcomes = Counter()
    os.waitpid(forked(lambda: results(scratch / "whole")), 0)
    expected = files(scratch / "whole")
    begin = time.perf_counter()
    os.waitpid(forked(lambda: results(scratch / "timed")), 0)
    whole = time.perf_counter() - begin
    folder, kills = scratch / "run-0", 0
    while True:
        at_write = kills < count and chance.random() < 0.5

        def work(write: int | None = chance.randrange(2 * 60) if at_write else None, folder: Path = folder) -> None:
            if write is not None:
                dying_at(write)
            results(folder)

        child, begin = forked(work), time.perf_counter()
        deadline = begin + (chance.random() * whole if kills < count and not at_write else TIMEOUT)
        status = 0
        while time.perf_counter() < deadline:
            finished, status = os.waitpid(child, os.WNOHANG)
            if finished:
                break
            time.sleep(0.001)
        else:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            if deadline - begin >= TIMEOUT:
                outcomes["killed", "hang"] += 1
                break
        if os.WIFSIGNALED(status):
            kills += 1
            continue
        if status:
            outcomes["killed", "failed"] += 1
        else:
            same = files(folder) == expected
            outcomes["killed", "finished with the same bytes" if same else "WRONG"] += 1
        if kills >= count:
            break
        folder = scratch / f"run-{kills}"
    outcomes["killed", "trials"] = kills
    return outcomes


class Bomb:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def damage(path: Path, other: Path, chance: random.Random, mark: Path) -> str:
    """Change a file in one of many ways; what was done."""
    content = bytearray(path.read_bytes())
    place = chance.randrange(max(1, len(content)))
    kind = chance.choice(["bit", "bit", "bit", "byte", "cut", "zeros", "more", "empty", "swapped", "lost", "pickle"])
    if kind == "lost":
        path.unlink()
        return kind
    if kind == "bit":
        content[place] ^= 1 << chance.randrange(8)
    elif kind == "byte":
        content[place] = (content[place] + chance.randrange(1, 256)) % 256
    elif kind == "cut":
        del content[place:]
    elif kind == "zeros":
        content[place : place + 64] = bytes(len(content[place : place + 64]))
    elif kind == "more":
        content += chance.randbytes(chance.randrange(1, 100))
    elif kind == "swapped":
        content = bytearray(other.read_bytes())
    else:
        content = bytearray(pickle.dumps(Bomb(mark)) if kind == "pickle" else b"")
    path.write_bytes(bytes(content))
    return kind


def meaning(content: bytes) -> Any:
    """What a file says: a manifest in which a blank became a tab still says the same."""
    try:
        return json.loads(content)
    except ValueError:
        return content


@contextmanager
def limited() -> Iterator[None]:
    """Whatever takes too long is ended."""

    def late(signal: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no end after {TIMEOUT} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(TIMEOUT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def damaged(count: int, scratch: Path, chance: random.Random) -> Outcomes:
    """Damage a file of a finished store and read the study again."""
    outcomes: Outcomes = Counter()
    whole, mark = scratch / "finished", scratch / "mark"
    expected = results(whole)
    for trial in range(count):
        folder = scratch / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        path, other = chance.sample([folder / name for name in files(folder)], 2)
        before = path.read_bytes()
        kind = damage(path, other, chance, mark)
        changed = not path.exists() or meaning(path.read_bytes()) != meaning(before)
        try:
            with limited(), warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always", StoreWarning)
                same = results(folder) == expected
            warned = any(issubclass(entry.category, StoreWarning) for entry in told)
            good = same and (warned or not changed or kind == "lost") and not mark.exists()
            outcomes["damaged", "same results" if good else "WRONG"] += 1
        except TimeoutError:
            good = False
            outcomes["damaged", "hang"] += 1
        except Exception:
            good = False
            outcomes["damaged", "failed"] += 1
            traceback.print_exc()
        if not good:
            print(f"damaged, trial {trial}: {kind} in {path.name}", file=sys.stderr)
    outcomes["damaged", "trials"] = count
    return outcomes


TOML = """\
name = "small"
[model]
source = "torchvision:resnet18"
weights = "random"
num_classes = 4
[images]
source = "folder"
root = "pictures"
resize = 32
crop = 32
[parameters]
target = "layer4"
lower = "layer3"
n_references = 4
n_clusters = 2
[run]
batch_size = 2
progress = false
"""


def material(folder: Path) -> None:
    """Write good inputs."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 40, 40, 3), dtype=np.uint8)
    for number, picture in enumerate(pixels):
        path = folder / "pictures" / f"class{number % 2}" / f"{number}.{'png' if number % 2 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    (folder / "study.toml").write_text(TOML)
    model = network()
    save_file(model.state_dict(), folder / "weights.safetensors")
    torch.save(model.state_dict(), folder / "weights.pth")
    split = study(folder / "store").classes.split(0, ["cat", "dog"])
    save_split(model, split, folder / "split.safetensors")


def readers(folder: Path, chance: random.Random) -> dict[str, tuple[Path, Callable[[], Any]]]:
    """For each kind of input the file to spoil, and what reads it."""

    def pictures() -> None:
        images = folder_images(folder / "pictures", resize=32, crop=32)
        for number in range(len(images)):
            images.tensor(number)

    return {
        "study file": (folder / "study.toml", lambda: load_study(folder / "study.toml", store=folder / "out").shapes),
        "picture": (chance.choice(sorted((folder / "pictures").rglob("*.*"))), pictures),
        "weights (.safetensors)": (
            folder / "weights.safetensors",
            lambda: load_weights(network(), folder / "weights.safetensors"),
        ),
        "weights (.pth)": (folder / "weights.pth", lambda: load_weights(network(), folder / "weights.pth")),
        "saved split": (folder / "split.safetensors", lambda: load_split(network(), folder / "split.safetensors")),
    }


def malformed(count: int, scratch: Path, chance: random.Random) -> Outcomes:
    """Spoil an input and read it."""
    outcomes: Outcomes = Counter()
    mark = scratch / "mark"
    good = scratch / "good"
    material(good)
    for trial in range(count):
        folder = scratch / "inputs"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        kinds = readers(folder, chance)
        name = chance.choice(sorted(kinds))
        path, read = kinds[name]
        others = [other for other in sorted(folder.rglob("*.*")) if other.is_file() and other != path]
        outside = set(scratch.iterdir())
        kind = damage(path, chance.choice(others), chance, mark)
        try:
            with limited(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read()
            outcome = "read"
        except (PureError, FileNotFoundError) as problem:
            outcome = "refused with a message" if len(str(problem)) > 20 else "refused without a word"
        except (TimeoutError, MemoryError):
            outcome = "hang"
        except BaseException:
            outcome = "failed"
            traceback.print_exc()
        if mark.exists() or set(scratch.iterdir()) != outside:
            outcome = "WRONG"
        outcomes["malformed", outcome] += 1
        if outcome not in GOOD:
            print(f"malformed, trial {trial}: {kind} in {name}: {outcome}", file=sys.stderr)
    outcomes["malformed", "trials"] = count
    return outcomes


GOOD = ("trials", "read", "refused with a message", "same results", "finished with the same bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--damages", type=int, default=1000)
    parser.add_argument("--inputs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the table here as CSV, with the versions of the packages")
    args = parser.parse_args()
    args.threads, args.clock = 1, "none"
    sweep.shards = partial(sweep.shards, size=8)
    sweep.SAVE = sweep.SPARE = 0.0
    blocks.BLOCK = 4
    neuron_module.virtual_neurons = partial(virtual_neurons, draws=4)  # what takes time and touches no file
    with tempfile.TemporaryDirectory() as folder:
        outcomes: Outcomes = Counter()
        for work, count in ((killed, args.kills), (damaged, args.damages), (malformed, args.inputs)):
            scratch = Path(folder) / work.__name__
            scratch.mkdir()
            outcomes += work(count, scratch, random.Random(args.seed))
    trials = {fault: number for (fault, outcome), number in outcomes.items() if outcome == "trials"}
    rows = [
        {"fault": fault, "trials": trials[fault], "outcome": outcome, "times": number}
        for (fault, outcome), number in sorted(outcomes.items())
        if outcome != "trials"
    ]
    report(rows, args)
    if {row["outcome"] for row in rows} - set(GOOD):
        raise SystemExit("some faults did harm: see above")


if __name__ == "__main__":
    main()
