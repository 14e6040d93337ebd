"""Editions: worlds, seeds and scores that stay as they are, so that others can submit their answers to them.

An edition is a file in ``editions/``: its worlds are tasks of :mod:`pure_nb.benchmark.tasks` with all that decides
fixed, and a checksum of each. Some are drawn from a secret seed, of which the file has the SHA-256 only. A submission
is JSON with the answers to all other worlds. Verifying makes the truth anew and scores the answers; given the function
that made them, it is run again, on the hidden worlds as well. The page *Submit to the benchmark* says how.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from pure_nb.benchmark import bench, trial
from pure_nb.benchmark.contestants import Contestant, Parts, contestants, load_contestant
from pure_nb.benchmark.submissions import SCORED, Record, read_text, sealed
from pure_nb.benchmark.tasks import Task, objects_task, planted_task
from pure_nb.errors import ImageError, ModelError, StudyError, StudyWarning
from pure_nb.methods.statistics import correlation
from pure_nb.study import Study

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EDITIONS = Path(__file__).parent / "editions"
LIBRARIES = ("numpy", "scikit-learn", "scipy", "torch", "torchvision")
"""Whose versions decide the last digit of an answer."""

SAME = 0.98
"""Share of a world's reference images that must be the same where answers were made and where they are verified."""

TOLERANCE = 0.005
"""How far a score may be from the one that is recomputed: another processor may exchange a few reference images."""

AGREEMENT = 0.95
"""How well answers made again must agree with those submitted: their ARI, or the rank correlation of scores."""

Answers = NDArray[Any]
"""int64 labels ``[channels, n]`` of a contestant, or float values ``[channels]`` of a score."""


@dataclass(frozen=True)
class World:
    """One task of an edition.

    Attributes
    ----------
    name
        In tables.
    study
        One that ships.
    checksum
        Of its network's weights, its images and what is planted; "" where that is hidden.
    planting
        As for :func:`pure_nb.benchmark.tasks.planted_task`; None for the natural neurons and their objects.
    hidden
        Whether its seed is the secret, plus that of ``planting``.
    optional
        Whether it needs data that does not ship.
    """

    name: str
    study: str
    checksum: str = ""
    planting: dict[str, Any] | None = None
    hidden: bool = False
    optional: bool = False

    def task(self, study: Study, secret: int = 0) -> Task:
        """The task, from its study; a world that is not what the edition says is refused."""
        if self.planting is None:
            made = objects_task(study)
        else:
            how = self.planting | {"seed": self.planting["seed"] + secret}
            made = planted_task(study.replace(seed=how["seed"]), **how)
        if not self.hidden and (found := checksum(made)) != self.checksum:
            raise StudyError(
                f"world {self.name!r} is another one here (checksum {found[:12]}, not {self.checksum[:12]}): expected "
                f"the network and images of the study {self.study!r} as they were; use those that its file names"
            )
        return made


@dataclass(frozen=True)
class Edition:
    """Worlds to submit to: ``name``, ``worlds``, the SHA-256 of the file, that of the secret, and what made them."""

    name: str
    worlds: tuple[World, ...]
    sha256: str
    secret: str
    versions: dict[str, str]

    def opened(self, path: Path) -> int:
        """The secret seed, from a file with a line ``SEED SALT``; another than the edition's is refused."""
        text = " ".join(read_text(path).split())
        if hashlib.sha256(text.encode()).hexdigest() != self.secret:
            raise StudyError(f"the secret in {str(path)!r} is not that of edition {self.name}: its SHA-256 is another")
        return int(text.partition(" ")[0])


@dataclass(frozen=True)
class Entry:
    """What is submitted: ``solve`` takes a task to :data:`Answers`; ``source`` where it is, ``digest`` its file's."""

    name: str
    source: str
    digest: str
    solve: Callable[[Task], Answers] = field(compare=False)


@dataclass(frozen=True)
class Worlds:
    """The tasks of an edition that can be made here, one after the other.

    Attributes
    ----------
    edition
        Whose worlds.
    load
        From the name of a study to the study.
    say
        Is told what happens.
    """

    edition: Edition
    load: Callable[[str], Study]
    say: Callable[[str], object] = print

    def __iter__(self) -> Iterator[tuple[World, Task]]:
        for world in self.edition.worlds:
            if not world.hidden and (task := self.task(world)) is not None:
                yield world, task

    def task(self, world: World, secret: int = 0) -> Task | None:
        """The task of one world; None, and a word about it, where its data is not here."""
        try:
            study = self.load(world.study)
        except (StudyError, ModelError, ImageError) as problem:
            if not world.optional:
                raise
            self.say(f"{world.name}: missing here, so it is left out ({problem})")
            return None
        return world.task(study, secret)


def load_edition(name: str) -> Edition:
    """An edition that ships.

    Examples
    --------
    >>> edition = load_edition("2027.1")
    >>> edition.worlds[0].name
    'glyphs, objects'
    """
    known = {path.stem: path for path in EDITIONS.glob("*.toml")}
    if name not in known:
        raise StudyError(f"there is no edition {name!r} of the benchmark; there are {', '.join(sorted(known))}")
    text = known[name].read_text(encoding="utf-8")  # whatever ends its lines
    tables = tomllib.loads(text)
    worlds = tuple(World(**world) for world in tables["worlds"])
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return Edition(tables["name"], worlds, sha256, tables["secret"], tables["versions"])


def checksum(task: Task) -> str:
    """SHA-256 of what makes a task: the weights of the network as it was, its images, layers and merged channels."""
    base, p = task.base, task.base.parameters
    groups = None if task.planting is None else task.planting.groups
    made = [base.images.fingerprint, p.target, p.lower, p.n_references, groups]
    digest = hashlib.sha256(json.dumps(made).encode())
    for name, tensor in sorted(base.model.state_dict().items()):
        digest.update(name.encode() + np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
    return digest.hexdigest()


def entry(specification: str) -> Entry:
    """A contestant or a score: ``"FILE.py:FUNCTION"``, or the name of a contestant of this package.

    A function that returns one number for each channel is a score, as in :mod:`pure_nb.benchmark.trial`; any other is a
    contestant, as in :mod:`pure_nb.benchmark.contestants`.
    """
    path, _, function = specification.rpartition(":")
    if path.endswith(".py"):
        own = load_contestant(specification)
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        return Entry(function, f"{Path(path).name}:{function}", digest, lambda task: _solved(own, task))

    def solve(task: Task) -> Answers:
        found = [one for one in contestants(task, only=[specification]) if not one.oracle]
        if not found:
            raise StudyError(f"there is no contestant {specification!r} to submit, that is not told the truth")
        return _solved(found[0], task)

    return Entry(specification, "pure_nb", "", solve)


def _solved(contestant: Contestant, task: Task) -> Answers:
    """A contestant's labels, or a score's values; the truth is taken away before, but not how many parts are wanted."""
    blind = replace(task, truth=np.full_like(task.truth, -1), share=np.ones_like(task.share), contributions=None)
    vars(blind)["k"] = task.k
    found = contestant.describe(blind)
    if isinstance(found, Parts) or np.ndim(found) != 1:
        return replace(contestant, describe=lambda _: found).parts(blind).labels
    values = np.asarray(found, dtype=np.float64)
    if values.shape != task.k.shape or not np.isfinite(values).all():
        raise StudyError(
            f"the score {contestant.name!r} gave {len(values)} numbers, {int(np.isfinite(values).sum())} of them "
            f"finite; expected one for each of {len(task.k)} channels"
        )
    return values


def scored(task: Task, answers: Answers) -> dict[str, float]:
    """The :data:`SCORED` of answers: means over the neurons, with the 95 % interval of the first."""
    if answers.ndim == 1:
        if not np.ptp(answers):
            raise StudyError(f"the score is the same for all channels of the task {task.name!r}, so it says nothing")
        row = trial.board(trial.trial(task, [], {"it": lambda _: answers})).iloc[0]
        if not np.isfinite(row["auc"]):
            raise StudyError(f"the task {task.name!r} has no neurons of one meaning, so no score can tell them")
        return {name: float(row[name]) for name in SCORED["score"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StudyWarning)  # of scores that are not told
        table = bench.run(task, [Contestant("it", lambda _: answers)], choose=False)
    row = bench.leaderboard(table, "it").iloc[0]
    return {name: float(row[name]) for name in SCORED["contestant"]}


def submit(worlds: Worlds, entered: Entry) -> Record:
    """Solve all worlds of an edition that are not hidden.

    Returns
    -------
    dict
        The submission: all of it can be written as JSON.
    """
    edition, found = worlds.edition, {}
    _warn_of_versions(edition.versions, f"edition {edition.name} was made")
    for world, task in worlds:
        start = perf_counter()
        answers = entered.solve(task)
        seconds = perf_counter() - start
        scores = scored(task, answers)
        lead, value = next(iter(scores.items()))
        worlds.say(f"{world.name}: {lead} {value:.3f}, {seconds / 60:.1f} minutes")
        found[world.name] = {"images": task.study.references.sample.tolist(), "answers": answers.tolist()}
        found[world.name] |= {"scores": scores, "seconds": round(seconds, 2)}
    if len(kinds := {np.ndim(one["answers"]) for one in found.values()}) > 1:
        raise StudyError(f"{entered.source!r} is a score in some worlds and a contestant in others; it must be one")
    record: Record = {"edition": edition.name, "edition_sha256": edition.sha256, "name": entered.name}
    record |= {"kind": "score" if kinds == {1} else "contestant", "source": entered.source, "digest": entered.digest}
    return sealed(record | {"versions": versions(), "worlds": found})


def verify(record: Record, worlds: Worlds, entered: Entry | None = None, secret: int | None = None) -> Record:
    """Recompute a submission: its scores, and given the function also its answers; with the secret on hidden worlds.

    Parameters
    ----------
    record
        From :func:`pure_nb.benchmark.submissions.read_submission`.
    worlds
        Of its edition.
    entered
        The function that made it; without it the answers are taken as they are.
    secret
        The edition's seed, from :meth:`Edition.opened`, which runs the function on the hidden worlds.

    Returns
    -------
    dict
        The submission for the leaderboard: with scores recomputed here, ``verified`` (by ``"answers"``, or by the
        ``"function"`` that was run again), and what the hidden worlds say.

    Raises
    ------
    StudyError
        If it was changed, is for another edition or world, or its answers are not those of the function.
    """
    edition = worlds.edition
    if record["edition_sha256"] != edition.sha256:
        raise StudyError(f"{record['name']!r} was made for another edition {edition.name} than that of this package")
    if entered is not None and (entered.source, entered.digest) != (record["source"], record["digest"]):
        raise StudyError(
            f"{record['name']!r} is of {record['source']} {record['digest'][:12]}, not of {entered.source} "
            f"{entered.digest[:12]}; name what was submitted"
        )
    if secret is not None and entered is None:
        raise StudyError(
            "hidden worlds need the function that was submitted; add --add FILE.py:FUNCTION or --only NAME"
        )
    closed = {world.name for world in edition.worlds if world.hidden}
    verified = "verified" in record  # once before, with what hidden worlds say, which is found anew
    record = record | {
        "worlds": {name: one for name, one in record["worlds"].items() if not verified or name not in closed}
    }
    known = {world.name for world in edition.worlds} - closed
    if unknown := sorted(record["worlds"].keys() - known):
        raise StudyError(f"edition {edition.name} has no world {unknown[0]!r} to submit to")
    if lacking := sorted(
        {one.name for one in edition.worlds if not one.hidden and not one.optional} - {*record["worlds"]}
    ):
        raise StudyError(f"{record['name']!r} has no answers for the world {lacking[0]!r}, which everyone has")
    _warn_of_versions(record["versions"], f"{record['name']!r} was made")
    found: dict[str, Any] = {}
    for world, task in worlds:
        if world.name in record["worlds"]:
            found[world.name] = _recomputed(world, task, record, entered)
            worlds.say(f"{world.name}: as submitted")
    for world in edition.worlds:
        if world.hidden and entered and secret is not None and (hidden := worlds.task(world, secret)) is not None:
            found[world.name] = {"scores": scored(hidden, entered.solve(hidden))}
            worlds.say(f"{world.name}: run")
    how = "answers" if entered is None else "function"
    return sealed({**record, "worlds": found, "verified": how})


def _recomputed(world: World, task: Task, record: Record, entered: Entry | None) -> dict[str, Any]:
    """One world of a submission, if it is what it says."""
    given, name = record["worlds"][world.name], f"{record['name']!r} in world {world.name!r}"
    answers = _placed(name, task, given, record["kind"])
    scores = scored(task, answers)
    for score, value in scores.items():
        told = given["scores"].get(score)
        if not isinstance(told, (int, float)) or abs(told - value) > TOLERANCE:
            raise StudyError(f"{name} is said to have {score} {told}, and its answers have {value:.3f}")
    if entered is not None:
        again = entered.solve(task)
        if again.shape != answers.shape or (alike := _alike(answers, again)) < AGREEMENT:
            how = "" if again.shape != answers.shape else f": they agree by {alike:.2f}"
            raise StudyError(f"the answers of {name} are not those that {record['source']} gives here{how}")
    return given | {"scores": scores}


def _alike(first: Answers, second: Answers) -> float:
    """How well two answers agree, 1 for the same."""
    if first.ndim == 1:
        return 1.0 if np.array_equal(first, second) else correlation(first, second, measure="spearman")
    return float(np.mean([adjusted_rand_score(*labels) for labels in zip(first, second)]))


def _placed(name: str, task: Task, given: Mapping[str, Any], kind: str) -> Answers:
    """Answers in the order of the reference images here; -1 for those that are new here."""
    here = task.study.references.sample
    try:
        images, answers = (np.array(given[what], dtype=np.float64) for what in ("images", "answers"))
    except (KeyError, TypeError, ValueError) as problem:
        raise StudyError(f"{name} has no images and answers that are tables of numbers") from problem
    shape = here.shape if kind == "contestant" else here.shape[:1]
    if images.shape != here.shape or answers.shape != shape:
        raise StudyError(
            f"{name} has images {list(images.shape)} and answers {list(answers.shape)}; expected {list(here.shape)} "
            f"and {list(shape)}"
        )
    if not np.isfinite(answers).all():
        raise StudyError(f"{name} has answers that are NaN or infinite; expected a number for each")
    same = images[:, None, :] == here[:, :, None]  # [channels, here, submitted]
    known = same.any(axis=2)
    if (share := known.mean(axis=1).min()) < SAME:
        raise StudyError(
            f"{name} answers for other reference images than this world's: of one channel, {share:.0%} are the same; "
            "expected the channels in their order"
        )
    if kind == "score":
        return answers
    return np.where(known, np.take_along_axis(answers, same.argmax(axis=2), axis=1), -1).astype(np.int64)


def versions() -> dict[str, str]:
    """The versions of this package, of Python and of :data:`LIBRARIES`."""
    own = {name: version(name).partition("+")[0] for name in ("pure-nb", *LIBRARIES)}
    return {"python": platform.python_version(), **own}


def _warn_of_versions(then: Mapping[str, str], when: str) -> None:
    """Say which versions are others here."""
    here = versions()
    other = [f"{name} {here[name]} (then {was})" for name, was in then.items() if here.get(name, was) != was]
    if other:
        warnings.warn(f"other versions here than where {when}: {', '.join(other)}", StudyWarning, stacklevel=3)
