"""Mutation testing: faults put into the package on purpose, one at a time, each of which a test has to find.

    python tools/mutants.py                       # all, in two processes; writes mutants.csv
    python tools/mutants.py --only sweep          # those with a word in their names
    python tools/mutants.py --list

A mutant is a text of the package and what stands there instead; the tests are those of ``make test``. The text is
searched for in all modules, so that code may move; one that is not found exactly once is an error, and is to be written
anew from the code as it is now.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).parents[1]
PROCESSES, TIMEOUT = 2, 1800


@dataclass(frozen=True)
class Mutant:
    """A fault: ``old`` becomes ``new``, which one of the ``tests`` (``"sweep"`` is tests/test_sweep.py) must find."""

    name: str
    old: str
    new: str
    tests: str

    @property
    def area(self) -> str:
        return self.name.partition(": ")[0]

    @property
    def files(self) -> list[str]:
        return [f"tests/test_{name}.py" for name in self.tests.split()]


@dataclass(frozen=True)
class Answer:
    mutant: Mutant
    result: str
    seconds: float
    said: str


MUTANTS = [
    # What is swept, once each and in order, and goes on where it stopped.
    Mutant("sweep: shards overlap", "range(start, min(start + step, count)) for start",
           "range(start, min(start + step + 1, count)) for start", "sweep"),
    Mutant("sweep: goes on from the start of a shard", "running, samples[seen:],", "running, samples,", "sweep"),
    Mutant("sweep: what was lost in the wrong order", "Part.of(own, first.lost + second.lost)",
           "Part.of(own, second.lost + first.lost)", "sweep"),
    Mutant("sweep: stored parts that lack images are taken", "    if lost and not job.run.skip_unreadable:\n",
           "    if lost and job.run.skip_unreadable is None:\n", "sweep study"),
    Mutant("sweep: no image at all is fine", "if len(part.lost) == len(images):", "if len(part.lost) > len(images):",
           "sweep"),
    Mutant("sweep: the first half of a branch is not the full one", "half = 1 << (len(cut) - 1).bit_length() - 1",
           "half = len(cut) // 2", "sweep cluster"),
    Mutant("sweep: parts that were merged stay", '        store.remove("shard", job.key(covered(half)))\n', "",
           "sweep"),
    Mutant("sweep: threads are not put back", "        torch.set_num_threads(before)\n",
           "        torch.set_num_threads(max(count, before))\n", "sweep virtual"),
    # What a store finds again, and what it distrusts.
    Mutant("store: the order of a key matters", 'json.dumps(key, sort_keys=True, separators=(",", ":"))',
           'json.dumps(key, separators=(",", ":"))', "store"),
    Mutant("store: the first megabyte is checked", "while block := file.read(1 << 20):",
           "if block := file.read(1 << 20):", "store"),
    Mutant("store: a manifest that was changed is trusted", "if _seal(manifest) != seal:", "if not seal:", "store"),
    Mutant("store: a file that was changed is trusted",
           '            if _checksum(path) != manifest["sha256"]:\n', '            if not manifest["sha256"]:\n',
           "store"),
    Mutant("store: another result is trusted",
           'if fingerprint(manifest["key"]) != fingerprint(key):', 'if not manifest["key"]:',
           "store"),
    Mutant("store: a lock for each process", "            lock = FileLock(path)\n",
           '            lock = FileLock(path.with_suffix(f".{os.getpid()}"))\n', "store study"),
    Mutant("store: a lock is kept", "                owner.unlink(missing_ok=True)\n            lock.release()\n",
           "                owner.unlink(missing_ok=True)\n", "store"),
    Mutant("store: what a killed process left stays", "            for stale in self.folder.glob(pattern):\n",
           '            for stale in self.folder.glob(pattern + "?" * 99):\n', "store"),
    Mutant("store: prunes what is in use", "held.enter_context(FileLock(path, timeout=0))",
           'held.enter_context(FileLock(path.with_suffix(".mine"), timeout=0))', "store"),
    # What a study's results depend on.
    Mutant("study: references whatever their score", '    "references": ("target", "n_references", "ranked_by"),',
           '    "references": ("target", "n_references"),', "study"),
    Mutant("study: circuits wherever they start",
           '"circuits": ("target", "lower", "n_references", "ranked_by", "rule", "start")',
           '"circuits": ("target", "lower", "n_references", "ranked_by", "rule")', "study"),
    Mutant("study: boxes whatever the crop", '"boxes": ("target", "n_references", "ranked_by", "crop", "crop_lower")',
           '"boxes": ("target", "n_references", "ranked_by", "crop_lower")', "report study"),
    Mutant("study: classes whatever the cumulative share",
           '"cumulative_share" if self.study.parameters.cumulative_share else "min_share"',
           '"min_share"', "classes study"),
    Mutant("study: precision does not matter",
           'if self.parameters.precision != "float32":',
           "if False:", "precision study"),
    Mutant("study: images do not matter",
           'found = {"weights": self._weights, "images": self.images.fingerprint}',
           'found = {"weights": self._weights}', "study"),
    Mutant("study: the order of references does not matter", '            found["references"] = self.ranked\n',
           "            pass\n", "study precision"),
    Mutant("study: parts stay when the whole is there", "            every.clear()",
           "            every.clear", "study"),
    Mutant("study: one channel too many", "range(count := self.shapes[0].channels)",
           "range((count := self.shapes[0].channels) + 1)", "study"),
    Mutant("study: new images that do not activate a channel", "(maps[:, self.channel].amax(dim=1) > 0)",
           "(maps[:, self.channel].amax(dim=1) >= 0)", "study"),
    Mutant("study: what was left out is accepted", "    if lost and not run.skip_unreadable:\n",
           "    if lost and run.skip_unreadable is None:\n", "study classes"),
    # Pairs in blocks.
    Mutant("blocks: values in the order of the images", "found[blocks[number]] = values",
           "found[np.sort(blocks[number])] = values", "blocks circuits"),
    Mutant("blocks: one key for all",
           '{"of": name, "block": number, "pairs": len(block), "batch_size": run.batch_size}',
           '{"of": name, "batch_size": run.batch_size}', "blocks circuits"),
    Mutant("blocks: one image of each batch is left out", "block += pairs_of[start : start + batch_size]",
           "block += pairs_of[start : start + max(1, batch_size - 1)]", "blocks circuits"),
    Mutant("blocks: the last block is left out", "    if block:\n        yield np.concatenate(block)",
           "    if len(block) > batch_size:\n        yield np.concatenate(block)", "blocks circuits"),
    Mutant("blocks: nothing is kept", '    if store:\n        store.save_arrays("block", key,',
           '    if store and not block.size:\n        store.save_arrays("block", key,', "blocks circuits"),
    Mutant("blocks: what is kept is not counted", "        done(len(block))\n        found: NDArray",
           "        found: NDArray", "blocks circuits"),
    # Reference images.
    Mutant("references: by the other score", 'top if self.ranked_by == "max" else values.mean(dim=2)',
           'top if self.ranked_by == "mean" else values.mean(dim=2)', "references"),
    Mutant("references: the later of two equals", 'order = every["sample"].argsort(dim=0, stable=True)',
           'order = every["sample"].argsort(dim=0, stable=True, descending=True)', "references"),
    Mutant("references: an earlier equal comes too late",
           'later = full and int(samples.min()) > int(best["sample"].max())', "later = full", "references"),
    Mutant("references: one channel has to be better for all", '(new["score"] > best["score"][-1]).any()',
           '(new["score"] > best["score"][-1]).all()', "references"),
    Mutant("references: rows for columns", "np.divmod(self.position, self.grid[1])",
           "np.divmod(self.position, self.grid[0])", "references"),
    Mutant("references: the corner for the middle", "(column + 0.5) * width / self.grid[1]",
           "column * width / self.grid[1]", "references"),
    Mutant("references: what is 0 is active", "        return self.peak > 0\n", "        return self.peak >= 0\n",
           "references study"),
    Mutant("references: merged peaks are scores",
           "self._take(other._best)",
           'self._take({**other._best, "peak": other._best["score"]})', "references"),
    Mutant("references: infinity unless it is the largest", "top.where(torch.isfinite(values.sum(dim=2)),",
           "top.where(torch.isfinite(top),", "references"),
    # Circuits.
    Mutant("circuits: signed norm", "vectors / (np.abs(vectors).sum(axis=-1, keepdims=True)",
           "vectors / (vectors.sum(axis=-1, keepdims=True)", "circuits"),
    Mutant("circuits: negative activations start relevance", "    value = first.clamp(min=0)\n",
           "    value = first\n", "circuits"),
    Mutant("circuits: the lowest for the peak", "at = flat.argmax(dim=1, keepdim=True)",
           "at = flat.argmin(dim=1, keepdim=True)", "circuits"),
    Mutant("circuits: gradient without input", "self.leaf.detach() * flow if self.times_input else flow",
           "flow", "circuits"),
    Mutant("circuits: LRP times input", "self.leaf.detach() * flow if self.times_input else flow",
           "self.leaf.detach() * flow", "circuits lrp"),
    Mutant("circuits: relevance without sign", "flatten_positions(relevance).float().sum(dim=2)",
           "flatten_positions(relevance).float().abs().sum(dim=2)", "circuits"),
    Mutant("circuits: the first channel of an image for all", "[pairs[turn] for pairs in members if len(pairs) > turn]",
           "[pairs[0] for pairs in members if len(pairs) > turn]", "circuits"),
    Mutant("circuits: another image's channels", "rows_of[begin : begin + len(batch.samples)]",
           "rows_of[: len(batch.samples)]", "circuits"),
    Mutant("circuits: one image too many", "samples.min() <= samples.max() < count:",
           "samples.min() <= samples.max() <= count:", "circuits splitting"),
    Mutant("circuits: the number of a merged norm is lost", "(1 + module.eps) ** -0.5", "1", "lrp"),
    Mutant("circuits: heatmaps are made again", "if pair in self._looked}", "if pair is None}", "report"),
    # Virtual neurons.
    Mutant("virtual: the smallest part is A", "np.lexsort((first, -counts))", "np.lexsort((first, counts))",
           "virtual"),
    Mutant("virtual: the farthest centroid", ".sum(axis=-1).argmin(axis=1)", ".sum(axis=-1).argmax(axis=1)", "virtual"),
    Mutant("virtual: an image that activates nothing has a part", "np.where(vectors.any(axis=1), nearest(self.scaled(",
           "np.where(np.True_, nearest(self.scaled(", "virtual"),
    Mutant("virtual: the vectors do not count", "(1 + int(hits.max())) / (1 + made)",
           "int(hits.max()) / max(1, made)", "null"),
    Mutant("virtual: draws are not skewed", "np.maximum(np.abs(measured) - by_chance, STRAIGHT)",
           "np.full(axes.shape[1], STRAIGHT)", "null"),
    Mutant("virtual: the seed decides", "STARTS = 200", "STARTS = 1", "null"),
    Mutant("virtual: the first centre is used again", "            labels[:, moving] = new\n", "", "null"),
    Mutant("virtual: never clear enough", 'number if p <= alpha else 1', 'number if p < alpha else 1', "virtual"),
    Mutant("virtual: ends a draw late", "HITS / (made + 1 + int", "HITS / (made + int", "null"),
    Mutant("virtual: the least clear number of parts", "silhouette = max(zip(numbers", "silhouette = min(zip(numbers",
           "null virtual"),
    Mutant("virtual: one part counts", "(self.effective_clusters - 1) * self.silhouette_gain",
           "self.effective_clusters * self.silhouette_gain", "virtual"),
    Mutant("virtual: another neuron's centroids", "[[int(end) - size, size] for end, size",
           "[[int(end), size] for end, size", "virtual study"),
    Mutant("virtual: the parts that share least", "linear_sum_assignment(shared, maximize=True)[1]",
           "linear_sum_assignment(shared)[1]", "classes"),
    # Class relevance.
    Mutant("relevance: share of all attribution", "    total = positive.sum(axis=1, keepdims=True)\n",
           "    total = attribution.sum(axis=1, keepdims=True)\n", "relevance"),
    Mutant("relevance: the last channel that makes up the share",
           "np.concatenate([np.zeros_like(total), before[:, :-1]], axis=1)", "before + 0", "relevance"),
    Mutant("relevance: exactly the minimum is too little", "self.frequency[:, channel] >= min_frequency",
           "self.frequency[:, channel] > min_frequency",
           "relevance"),
    Mutant("relevance: no dilation of columns", "row * self.dilation[0], column * self.dilation[1]",
           "row * self.dilation[0], column", "relevance"),
    Mutant("relevance: padding of rows for columns", "(left, total[1] - left, top, total[0] - top)",
           "(top, total[0] - top, left, total[1] - left)", "relevance"),
    Mutant("relevance: the first vector's length twice",
           "np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)",
           "np.linalg.norm(first, axis=-1) ** 2 * np.ones_like(second[..., 0])", "relevance"),
    Mutant("relevance: class 0 is left out", "known = np.flatnonzero(labels >= 0)",
           "known = np.flatnonzero(labels > 0)", "relevance"),
    Mutant("relevance: a merge forgets", "            self._sums[name] += value\n",
           "            self._sums[name][:] = value\n", "relevance"),
    Mutant("relevance: one bootstrap weight a class", "np.random.default_rng([self.seed, int(sample)])",
           "np.random.default_rng([self.seed, int(label)])", "relevance"),
    # Splits.
    Mutant("splitting: less than the others", "passes = rho * evidence > rest", "passes = evidence > rho * rest",
           "splitting"),
    Mutant("splitting: evidence against", '    if ownership == "symmetric":\n        evidence = evidence.clip(min=0)\n',
           "", "splitting"),
    Mutant("splitting: one residual for any k", "keepdim=True) - (self.k - 1) * residual",
           "keepdim=True) - residual", "splitting"),
    Mutant("splitting: merged with k residuals", "- (module.k - 1) * part[module.k]", "- module.k * part[module.k]",
           "splitting"),
    Mutant("splitting: parts without bias", "masked.bias.fill_(whole.bias[channel])", "masked.bias.fill_(0)",
           "splitting"),
    Mutant("splitting: nobody takes what is shared", "return (owner == concept) | (owner == SHARED)",
           "return (owner == concept) & (owner >= SHARED)", "splitting"),
    Mutant("splitting: the first group's sources",
           'first = channel // (outputs // getattr(module, "groups", 1)) * sources', "first = 0",
           "splitting relevance"),
    Mutant("splitting: training on every image", "    return rank % 2 == 0\n", "    return rank >= 0\n", "splitting"),
    Mutant("splitting: images where the channel is not relevant", "chosen = validation & measured.relevant",
           "chosen = validation", "splitting classes"),
    Mutant("splitting: the worst threshold", "table[score].to_numpy().argmax()", "table[score].to_numpy().argmin()",
           "splitting"),
    # Fingerprints.
    Mutant("fingerprints: shapes do not matter", "self.text(tensor.dtype, tuple(tensor.shape))",
           "self.text(tensor.dtype)", "models"),
    Mutant("fingerprints: hooks do not matter", "            self.add(list(kept[name].values()))\n",
           "            self.text(name)\n", "models"),
    Mutant("fingerprints: closures do not matter", "                self.add(cell.cell_contents)\n",
           "                self.text(cell.cell_contents is None)\n", "models"),
    Mutant("fingerprints: defaults do not matter", "self.add((function.__defaults__, function.__kwdefaults__))",
           "self.add(())", "models"),
    Mutant("fingerprints: constants do not matter", "        self.add(code.co_consts)\n", "", "models"),
    Mutant("fingerprints: globals do not matter", "        if not installed(code.co_filename):\n",
           "        if not code.co_filename:\n", "models"),
    Mutant("fingerprints: the last pass matters", "skipped = INTERNAL | _written(module)", "skipped = set(INTERNAL)",
           "models"),
    Mutant("fingerprints: extra state does not matter",
           "if type(module).get_extra_state is not nn.Module.get_extra_state:",
           "if type(module).get_extra_state is None:", "models"),
    Mutant("fingerprints: labels do not matter",
           "repr(None if self.targets is None else self.targets.tolist())", "repr(self.targets is None)", "data"),
    Mutant("fingerprints: files do not matter", "digest.update(told(some))", 'digest.update(b"file")', "data"),
    Mutant("fingerprints: times of change do not matter", "if state == known:", "if state[:1] == known[:1]:", "data"),
]  # fmt: skip
"""Ordered by area."""


def sources(root: Path = ROOT) -> dict[Path, str]:
    """The modules of the package, by their paths from the root."""
    return {path.relative_to(root): path.read_text(encoding="utf-8") for path in (root / "pure_nb").rglob("*.py")}


def place(mutant: Mutant, texts: dict[Path, str]) -> Path:
    """The module that holds a mutant's text."""
    found = {path: text.count(mutant.old) for path, text in texts.items() if mutant.old in text}
    if sum(found.values()) != 1:
        where = ", ".join(f"{path} ({count})" for path, count in found.items()) or "nowhere"
        raise SystemExit(f"the text of {mutant.name!r} must be found once, and is in: {where}\n{mutant.old}")
    return next(iter(found))


def copied(folder: Path) -> None:
    """Copy the project, with what is not committed yet."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True)
    for name in listed.stdout.decode().splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def tested(folder: Path, files: list[str]) -> tuple[int | None, str]:
    """What pytest returns, or None if it took too long; and its last words."""
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",  # a mutant of the same length and second would not be seen
        "OMP_NUM_THREADS": "1",
        "PURE_NB_SHARED": os.environ.get("PURE_NB_SHARED") or str(ROOT.parent / "shared"),
    }
    asked = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not (book or nightly)"]  # as `make test` does
    command = [sys.executable, "-m", "pytest", *asked, *files]
    how = {"cwd": folder, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, **how, start_new_session=True) as process:
        try:
            output, _ = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with all that it has started
            return None, f"more than {TIMEOUT} s"
    lines = re.findall(r"^(?:FAILED|ERROR) .*", output, re.MULTILINE) or output.strip().splitlines()[-1:]
    return process.returncode, lines[0] if lines else ""


def tried(mutant: Mutant, folder: Path) -> Answer:
    """Apply a mutant to a copy of the package, test it, and undo it."""
    texts, start = sources(), time.perf_counter()
    module = place(mutant, texts)
    (folder / module).write_text(texts[module].replace(mutant.old, mutant.new), encoding="utf-8")
    code, said = tested(folder, mutant.files)
    (folder / module).write_text(texts[module], encoding="utf-8")
    result = {0: "survived", 1: "killed", None: "killed"}.get(code, "error")
    return Answer(mutant, result, time.perf_counter() - start, said)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="those with this in their names")
    parser.add_argument("--list", action="store_true", help="print their names and where they are")
    parser.add_argument("--out", type=Path, default=Path("mutants.csv"), help="the table to write")
    asked = parser.parse_args()
    texts = sources()
    chosen = [mutant for mutant in MUTANTS if asked.only in mutant.name]
    where = {mutant.name: place(mutant, texts) for mutant in MUTANTS}
    if asked.list:
        for mutant in chosen:
            print(f"{mutant.name:<60} {where[mutant.name]}")
        return 0
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(PROCESSES) as pool:
        folders: SimpleQueue[Path] = SimpleQueue()
        for number in range(PROCESSES):
            folder = Path(scratch) / str(number)
            copied(folder)
            folders.put(folder)

        def one(mutant: Mutant) -> Answer:
            folder = folders.get()
            try:
                return tried(mutant, folder)
            finally:
                folders.put(folder)

        needed = sorted({file for mutant in chosen for file in mutant.files})
        code, said = tested(Path(scratch) / "0", needed)
        if code != 0:  # a test that fails anyway would kill them all
            raise SystemExit(f"the tests fail without any mutant (pytest returned {code}): {said}")
        answers = []
        for answer in pool.map(one, chosen):
            answers.append(answer)
            print(f"{answer.result:<9} {answer.seconds:5.0f} s  {answer.mutant.name}  {answer.said[:90]}", flush=True)
    with asked.out.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("area", "mutant", "module", "tests", "result", "seconds", "said"))
        for answer in answers:
            own = answer.mutant
            row = (own.area, own.name, where[own.name], own.tests, answer.result, round(answer.seconds), answer.said)
            table.writerow(row)
    killed = sum(answer.result == "killed" for answer in answers)
    print(f"{killed} of {len(answers)} mutants killed ({killed / max(1, len(answers)):.0%}); {asked.out}")
    return int(killed < 0.9 * len(answers))


if __name__ == "__main__":
    sys.exit(main())
