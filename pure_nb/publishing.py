"""Publish a study: as a folder that says all that was found and what was studied, and on Hugging Face's hub.

:mod:`pure_nb.published` says what is in the folder, and reads it. Of the user's images nothing is in it but numbers,
unless asked for: no picture, no name of a file or a class. Pictures are those that the network saw, saved anew from
their pixels, so that nothing else of their files comes along.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from pure_nb._gathering import Gathered
from pure_nb._imports import needed
from pure_nb._publication import FORMAT, MANIFEST
from pure_nb.compute.store import fingerprint, write_text
from pure_nb.errors import ArgumentError, StudyError, StudyWarning, require_choice, sentence
from pure_nb.published import Published, load_published
from pure_nb.show.facts import Atlas

if TYPE_CHECKING:
    from pure_nb.judges.embedders import Embedder
    from pure_nb.study import Study

Pictures = Literal["none", "crops", "whole"]
Names = Literal["none", "labels", "files"]

README = "README.md"
CARD = Path(__file__).parent / "show" / "static" / "card.md"

PICTURES = {
    "none": "No pictures are published.",
    "crops": "Only what the neurons look at is published of reference images; the rest of each picture is white.",
    "whole": "Reference images are published as the network sees them.",
}
NAMES = {
    "none": "Names of the data set, of files and of classes are not published{beside}.",
    "labels": "Names of the data set and of classes are published, names of files are not{beside}.",
    "files": "Names of the data set, of files and of classes are published.",
}
"""What the card says of what is shown."""


@dataclass(frozen=True)
class Shown:
    """What of its images is published with a study, and how.

    Attributes
    ----------
    pictures
        ``"none"``; ``"crops"``, of each reference image what the neurons look at, the rest of it white; or ``"whole"``,
        as the network sees them. By default those that the package draws itself, and no others.
    names
        ``"none"``; ``"labels"``, of the data set, of the classes of these images and of objects; or ``"files"``, those
        of their files in their folder as well. By default the labels of images that the package draws, and no others.
    count
        The strongest reference images of each neuron that get a picture.
    side
        Pixels of a picture's longer side at most; those of the network's input by default.
    attribution
        A table, ``.csv`` or ``.tsv``, with a line for each picture: ``file`` as its path ends, ``author``,
        ``licence``, ``source`` and whatever else. By default the ``ATTRIBUTION.csv`` or ``.tsv`` nearest above each
        picture, if there is one.
    """

    pictures: str | None = None
    names: str | None = None
    count: int = 100
    side: int | None = None
    attribution: Path | str | None = None

    def __post_init__(self) -> None:
        for name, choices in (("pictures", Pictures), ("names", Names)):
            if getattr(self, name) is not None:
                require_choice(name, getattr(self, name), choices)
        for name in ("count", "side"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ArgumentError(f"{name} must be at least 1, got {getattr(self, name)}")


def publish(
    study: Study,
    folder: Path | str,
    *,
    channels: Sequence[int] | None = None,
    shown: Shown | None = None,
    embedder: Embedder | None = None,
    licence: str = "",
    cite: str = "",
    atlas: bool = False,
) -> Path:
    """Publish a study as a folder, which :func:`pure_nb.load_study` reads without the network and the images.

    It is there when it is whole, and not before; the same call after a stop goes on.

    Parameters
    ----------
    study
        Any study; what is not known of it is computed.
    folder
        Is made; a study that was published there before is replaced, anything else is left alone.
    channels
        Which neurons; all by default.
    shown
        What of the images is published.
    embedder
        With a text tower, such as CLIP: names the virtual neurons. A person's own names and notes are not published.
    licence, cite
        Under which licence what is published may be used, as Hugging Face's hub calls it (``"cc-by-4.0"``), but for
        pictures that have their own in ``ATTRIBUTION.csv``; and how it is to be cited.
    atlas
        Also write a site of what was published: see :func:`pure_nb.show.atlas.write`. It needs pictures.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    StudyError
        If the folder holds something else, the study was read from a published one, a picture's attribution is missing,
        or something is asked for that takes pictures or names, and these are not published.
    ArgumentError
        If there is no such channel.
    """
    if isinstance(study, Published):
        raise StudyError(f"{study.name!r} is a published study: copy its folder, or publish what it was made of")
    folder, shown = Path(os.path.abspath(folder)), shown or Shown()
    made = Gathered(study, None if channels is None else sorted(set(channels)), shown, embedder)
    _require(made, folder, atlas)
    key = fingerprint({
        "of": Atlas(study).identity,
        "shown": repr(shown),
        "channels": made.chosen and made.channels,
        "atlas": atlas,
        "format": FORMAT,
    })  # fmt: skip
    work = folder.with_name(f".{folder.name}-publishing-{key}")
    for left in work.rglob(".*"):  # of a file that was being written at the stop
        left.unlink()
    made.write(work)
    card = _card(made, licence, cite)
    if licence not in ("", "other") and (others := _others(made, licence)):
        told = f"{sum(others.values())} of {len(made.pictured)} pictures are under other licences: {', '.join(others)}"
        warnings.warn(f"{licence} is of the tables and arrays only: {told}", StudyWarning, stacklevel=2)
    write_text(work / README, card)
    if atlas:
        from pure_nb.show import atlas as site  # late: not everyone has what it needs

        with TemporaryDirectory(ignore_cleanup_errors=True) as store:  # a person's notes may be in the usual one
            alone = load_published(work, store=store, progress=study.run.progress)
            site.write(alone, work / "atlas", count=shown.count)
        gc.collect()  # Windows renames no folder of which a file is mapped
    _exchange(folder, work)
    return folder


def push(folder: Path | str, place: str) -> str:
    """Put a published study on Hugging Face's hub, as a data set; returns the address that ``load_study`` takes.

    Parameters
    ----------
    folder
        What :func:`publish` wrote.
    place
        ``"owner/name"``; made if it is not there, and open to all. A study that is there is replaced. You must be
        logged in (``hf auth login``).

    Raises
    ------
    StudyError
        If the hub does not take it, or has something else there.
    """
    study = load_published(folder)  # whole, and as it was written
    assert isinstance(study, Published)
    with needed("huggingface", "to push to Hugging Face's hub needs", StudyError):
        from huggingface_hub import HfApi
    hub = HfApi()
    try:
        hub.create_repo(place, repo_type="dataset", exist_ok=True)
        there = {*hub.list_repo_files(place, repo_type="dataset")} - {".gitattributes", README}
        if there and "study.json" not in there:
            raise StudyError(f"{place!r} on Hugging Face's hub holds something else, such as {min(there)!r}")
        hub.upload_folder(
            repo_id=place,
            folder_path=folder,
            repo_type="dataset",
            commit_message="A study by pure_nb",
            allow_patterns=[*study.found.files, MANIFEST, README, "atlas/*"],  # and nothing that came in since
            delete_patterns="*",
        )
    except StudyError:
        raise
    except Exception as problem:  # its libraries raise a dozen kinds
        raise StudyError(
            f"Hugging Face's hub does not take {place!r}: {sentence(problem).splitlines()[0]}. "
            f"Log in (hf auth login), and try again; {str(folder)!r} is whole"
        ) from problem
    return f"hf://{place}"


def _require(made: Gathered, folder: Path, atlas: bool) -> None:
    """Raise where something can't be published as it was asked for."""
    if other := _other(folder):
        raise StudyError(
            f"{str(folder)!r} holds something else; a study is published to a new folder, or to its own: {other!r}"
        )
    if not made.channels:
        raise ArgumentError("at least one neuron is published, got channels=[]")
    if atlas and made.pictures == "none":
        raise StudyError("an atlas shows pictures, and none are published: ask for them (pictures: crops or whole)")
    if made.embedder is not None and made.names == "none":
        raise StudyError("an embedder calls parts as classes are called, and no names are published: ask for labels")


def _exchange(folder: Path, work: Path) -> None:
    """Give what is whole by now its name; what had it before goes, and what other calls have left."""
    before = work.with_name(f"{work.name}-before")
    if folder.exists():
        shutil.rmtree(before, ignore_errors=True)  # of a stop below
        folder.rename(before)
    work.rename(folder)
    for old in folder.parent.iterdir():
        if old.name.startswith(f".{folder.name}-publishing-"):
            shutil.rmtree(old)


def _other(folder: Path) -> str:
    """The name of a file in a folder that is of no published study, though it may have been changed; "" if none is."""
    if not folder.is_dir():
        return folder.name if folder.exists() else ""
    known: set[str] = set()
    with suppress(OSError, ValueError, KeyError, TypeError):  # others call files like this, too
        known = {*json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]}
    ours = "study.json" in known
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_dir() and not (ours and (name in known | {MANIFEST, README} or name.startswith("atlas/"))):
            return name
    return ""


def _licence(made: Gathered, licence: str) -> str:
    """What the card says of the licence: of pictures that have their own it is another one."""
    told = licence or "not said; ask whoever published it"
    own = f"of tables and arrays: {told}; each picture is under its own, see `ATTRIBUTION.csv`"
    return own if made.attributions else told


def _others(made: Gathered, licence: str) -> dict[str, int]:
    """How many pictures are under which licences other than that of the study, as their attributions call them."""
    own = [line.get("licence") or line.get("license") or "one that is not said" for line in made.attributions]
    return dict(Counter(name for name in own if _plain(name) != _plain(licence)))


def _plain(licence: str) -> str:
    return "".join(filter(str.isalnum, licence.lower()))


def _card(made: Gathered, licence: str, cite: str) -> str:
    """A card in the words of Hugging Face's hub: what its pages sort by, and what people read."""
    study, p, told = made.study, made.study.parameters, made.told()
    head: dict[str, Any] = {"pretty_name": f"{study.name}: {p.target} in virtual neurons", "library_name": "pure-nb"}
    head["tags"] = ["interpretability", "polysemanticity", "vision", "pure-nb"]
    head |= {"license": licence} if licence else {}
    head["configs"] = [{"config_name": name, "data_files": f"tables/{name}.parquet"} for name in made.tables]
    return CARD.read_text(encoding="utf-8").format(
        yaml="\n".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in head.items()),
        study=study.name,
        target=p.target,
        lower=p.lower,
        first=made.channels[0],
        network=told["network"],
        weights=told["weights"],
        images=len(study.images),
        data=told["images"]["name"],
        fingerprint=told["images"]["fingerprint"],
        lost=len(study.skipped),
        published=len(made.channels),
        channels=study.references.channels,
        n=study.references.n,
        pictures=PICTURES[made.pictures],
        by="Whom they are by, and under which licence, is in `ATTRIBUTION.csv`." if made.attributions else "",
        names=NAMES[made.names].format(beside=", unless `ATTRIBUTION.csv` says them" * bool(made.attributions)),
        licence=_licence(made, licence),
        made=", ".join(f"{name} {number}" for name, number in told["made"].items()),
        unsteady=f"Results are of one run: {study.unsteady}." if study.unsteady else "",
        cite=cite or "Name whoever published this study, and its address.",
    )
