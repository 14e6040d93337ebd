"""Publish a study: as a folder that says all that was found and what was studied, and on Hugging Face's hub.

:mod:`pure_nb.published` says what is in the folder, and reads it. Of the user's images nothing is in it but numbers,
unless asked for: no picture, no name of a file or a class. Pictures are those that the network saw, saved anew from
their pixels, so that nothing else of their files comes along.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save_file

from pure_nb._imports import needed
from pure_nb.compute.bars import progress_bar
from pure_nb.compute.store import Arrays, _checksum, fingerprint, write_atomically
from pure_nb.errors import ArgumentError, StudyError, require_choice
from pure_nb.figures.render import boxes, square_around
from pure_nb.images.labels import display_names
from pure_nb.methods.virtual import packed, part_name
from pure_nb.published import FORMAT, MANIFEST, load_published, pictured_ranks, read_masks
from pure_nb.show import atlas as site
from pure_nb.show.facts import Atlas
from pure_nb.show.pictures import PAIRS, WEBP

if TYPE_CHECKING:
    import pandas as pd

    from pure_nb.judges.embedders import Embedder
    from pure_nb.study import Study

Pictures = Literal["none", "crops", "whole"]
Names = Literal["none", "labels", "files"]

DEPTH = 4
"""Folders above a picture in which a table of attributions is looked for."""


@dataclass(frozen=True)
class Shown:
    """What of its images is published with a study, and how.

    Attributes
    ----------
    pictures
        ``"none"``; ``"crops"``, of each reference image what the neurons look at, the rest of it white; or ``"whole"``,
        as the network sees them. By default those that the package draws itself, and no others.
    names
        ``"none"``; ``"labels"``, the classes of these images and of the objects in them; or ``"files"``, the names of
        their files in their folder as well. By default the labels of images that the package draws, and no others.
    count
        The strongest reference images of each neuron that get a picture.
    side
        Pixels of a picture's longer side at most; those of the network's input by default.
    attribution
        A table, ``.csv`` or ``.tsv``, with a line for each picture: ``file`` as its path ends, ``author``,
        ``licence``, ``source`` and whatever else. By default the ``ATTRIBUTION.csv`` or ``.tsv`` above the pictures, if
        there is one.
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


# What is published, of what, and what is said of it.
def publish(  # noqa: PLR0913
    study: Study,
    folder: Path | str,
    *,
    channels: Sequence[int] | None = None,
    shown: Shown = Shown(),
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
        With a text tower, such as CLIP: names the virtual neurons.
    licence, cite
        Under which licence what is published may be used, as Hugging Face's hub calls it (``"cc-by-4.0"``), and how it
        is to be cited.
    atlas
        Also write a site of what was published: see :func:`pure_nb.show.atlas.write`. It needs pictures.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    StudyError
        If the folder holds something else, or a picture's attribution is missing.
    ArgumentError
        If there is no such channel.

    Examples
    --------
    >>> found = publish(study, folder / "published", channels=[3, 5])
    >>> load_study(found).neuron(3)
    <Neuron layer4 / 3 of 'mine'>
    """
    folder = Path(os.path.abspath(folder))
    made = _Making(study, None if channels is None else sorted(set(channels)), shown, embedder)
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or (folder / MANIFEST).is_file())):
        raise StudyError(f"{str(folder)!r} holds something else; a study is published to a new folder, or to its own")
    if atlas and made.pictures == "none":
        raise StudyError("an atlas shows pictures, and none are published: ask for them (pictures: crops or whole)")
    key = fingerprint({"of": Atlas(study).identity, "shown": repr(shown), "channels": channels, "format": FORMAT})
    work = folder.with_name(f".{folder.name}-publishing-{key}")
    made.write(work)
    card = _card(made, licence, cite, atlas)
    write_atomically(work / "README.md", partial(Path.write_text, data=card, encoding="utf-8"))
    if atlas:
        site.write(load_published(work, progress=study.run.progress), work / "atlas", count=shown.count)
    if folder.exists():
        folder.rename(work.with_name(f"{work.name}-before"))
    work.rename(folder)
    for old in folder.parent.glob(f".{folder.name}-publishing-*"):
        shutil.rmtree(old)
    return folder


def push(folder: Path | str, place: str) -> str:
    """Put a published study on Hugging Face's hub, as a data set; returns the address that ``load_study`` takes.

    Parameters
    ----------
    folder
        What :func:`publish` wrote.
    place
        ``"owner/name"``; made if it is not there, and open to all. You must be logged in (``hf auth login``).

    Raises
    ------
    StudyError
        If the hub does not take it.
    """
    load_published(folder)  # whole, and as it was written
    with needed("huggingface", "to push to Hugging Face's hub needs", StudyError):
        from huggingface_hub import HfApi
    hub = HfApi()
    try:
        hub.create_repo(place, repo_type="dataset", exist_ok=True)
        hub.upload_folder(
            repo_id=place,
            folder_path=folder,
            repo_type="dataset",
            commit_message="A study by pure_nb",
            delete_patterns="*",
        )
    except Exception as problem:  # its libraries raise a dozen kinds
        raise StudyError(
            f"Hugging Face's hub does not take {place!r}: {type(problem).__name__}: {str(problem).splitlines()[0]}. "
            f"Log in (hf auth login), and try again; {str(folder)!r} is whole"
        ) from problem
    return f"hf://{place}"


@dataclass(frozen=True, eq=False)
class _Making:
    """What is published of a study."""

    study: Study
    chosen: list[int] | None
    shown: Shown
    embedder: Embedder | None

    @property
    def pictures(self) -> str:
        """How much of the pictures."""
        return self.shown.pictures or ("whole" if self.study.images.drawn else "none")

    @property
    def names(self) -> str:
        """Which names."""
        return self.shown.names or ("labels" if self.study.images.drawn else "none")

    @cached_property
    def channels(self) -> list[int]:
        """The neurons."""
        every = range(self.study.references.channels) if self.chosen is None else self.chosen
        return [self.study.neuron(channel).channel for channel in every]

    @cached_property
    def samples(self) -> list[NDArray[np.int64]]:
        """The reference images of each neuron that get a picture."""
        sample, parts, count = self.study.references.sample, self.study.virtual, self.shown.count
        return [sample[channel][pictured_ranks(parts[channel].labels, count)] for channel in self.channels]

    @cached_property
    def pictured(self) -> list[int]:
        """Numbers of all images that get a picture."""
        return [] if self.pictures == "none" else np.unique(np.concatenate(self.samples)).tolist()

    @cached_property
    def files(self) -> dict[int, Path]:
        """The files of reference images, where these are files."""
        every = np.unique(self.study.references.sample[self.channels]).tolist()
        found = {sample: Path(os.path.abspath(self.study.images.path(sample))) for sample in every}
        return {sample: path for sample, path in found.items() if path.is_file()}

    @cached_property
    def file_names(self) -> dict[int, str]:
        """Their names in the folder that holds them all; none if these are not asked for."""
        if self.names != "files" or not self.files:
            return {}
        root = os.path.commonpath([path.parent for path in self.files.values()])
        return {sample: path.relative_to(root).as_posix() for sample, path in self.files.items()}

    @cached_property
    def attributions(self) -> list[dict[str, str]]:
        """Lines of the table of attributions, of the pictures that are published."""
        path = self.shown.attribution or (_table_above(self.files[self.pictured[0]]) if self._are_files else None)
        if path is None or not self.pictured:
            return []
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.DictReader(file, delimiter="\t" if Path(path).suffix == ".tsv" else ","))
        if not lines or "file" not in lines[0]:
            raise StudyError(
                f"{str(path)!r}: expected a table of attributions, with a column called file and a line each"
            )
        known = {Path(line["file"]).parts: line for line in lines}
        height, width = self.study.images.example.shape[-2:]
        found = []
        for sample in self.pictured:
            parts = self.files[sample].parts if sample in self.files else ()
            own = next((known[parts[at:]] for at in range(len(parts)) if parts[at:] in known), None)
            if own is None:
                raise StudyError(
                    f"{str(path)!r} has no line for {'/'.join(parts[-2:]) or f'image {sample}'}, and its picture would "
                    "be published: add one, or name another table (attribution)"
                )
            kept = {name: value for name, value in own.items() if name not in self._withheld}
            changed = f"{width} x {height} pixels as a network sees it, WebP"
            kept["changes"] = "; ".join(filter(None, (kept.get("changes"), changed)))
            found.append({"picture": f"pictures/{sample}.webp", "sample": str(sample), **kept})
        return found

    @property
    def _are_files(self) -> bool:
        return bool(self.pictured) and self.pictured[0] in self.files

    @property
    def _withheld(self) -> set[str]:
        """Columns of that table that are not asked for."""
        return {"none": {"file", "label"}, "labels": {"file"}}.get(self.names, set())

    @cached_property
    def boxes(self) -> NDArray[np.int32] | None:
        """What embedders are shown of the references; only if it is known, or is looked at for the pictures anyway."""
        study, crops = self.study, self.study.crops
        known = "boxes" in study.known()
        if self.pictures == "none" and not known:
            return None
        crop, _ = crops._fitting(study.parameters.crop)
        if known or self.chosen is None or crop is None:
            return crops.boxes[self.channels]
        sample = study.references.sample[self.channels]
        pairs = np.broadcast_to(np.array(self.channels)[:, None], sample.shape), sample
        return boxes(study.model, study.images, *pairs, looked=crops._looked, **crops._how(crop))

    def write(self, folder: Path) -> None:
        """Write all files but the card, and the list of them last."""
        attributions = self.attributions  # first, since it may raise
        texts = {"study.json": json.dumps(self.told(), indent=1)}
        for name, table in self.tables().items():
            path = folder / f"tables/{name}.parquet"
            write_atomically(path, partial(table.to_parquet, index=False))
            texts[f"tables/{name}.json"] = table.to_json(orient="records", indent=1)
        for step, arrays in self.arrays():
            solid = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
            write_atomically(folder / f"arrays/{step}.safetensors", partial(save_file, solid))
        if self.pictures != "none":
            self._draw(folder)
        if attributions:
            write_atomically(folder / "ATTRIBUTION.csv", partial(_write_lines, attributions))
        for name, text in texts.items():
            write_atomically(folder / name, partial(Path.write_text, data=text, encoding="utf-8"))
        every = sorted(path for path in folder.rglob("*") if path.is_file())
        places = {path.relative_to(folder).as_posix(): path for path in every}
        files = {
            place: _checksum(path)
            for place, path in places.items()
            if not place.startswith(("atlas/", "README.md", MANIFEST))
        }
        text = json.dumps({"format": FORMAT, "files": files}, indent=1)
        write_atomically(folder / MANIFEST, partial(Path.write_text, data=text, encoding="utf-8"))

    def told(self) -> dict[str, Any]:
        """What ``study.json`` says."""
        study, images, crops = self.study, self.study.images, self.study.crops
        named, truth = self.names != "none", self.study.images.truth
        labels = {} if images.targets is None or not named else {
            str(sample): int(images.targets[sample]) for sample in np.unique(study.references.sample[self.channels])
        }  # fmt: skip
        _ = self.boxes  # may bring a note
        crop, misfit = ("", "") if self.pictures == "none" else crops._fitting(study.parameters.crop)
        return {
            "name": study.name,
            "network": type(study.model).__name__,
            "weights": study._weights,
            "layers": [asdict(layer) for layer in study.shapes],
            "parameters": asdict(study.parameters),
            "ranked": study.ranked,
            "keys": {
                step: study.key(step) for step in ("references", "circuits", "virtual", "layouts", "boxes", "objects")
            },
            "channels": self.chosen and self.channels,
            "pictured": 0 if self.pictures == "none" else min(self.shown.count, study.references.n),
            "images": {
                "name": images.name if named else "images",
                "names": self.names,
                "count": len(images),
                "shape": list(images.example.shape),
                "fingerprint": images.fingerprint,
                "classes": display_names(images.classes) if labels else [],
                "labels": labels,
                "files": {str(sample): name for sample, name in self.file_names.items()},
                "objects": list(truth.classes) if named and truth is not None and study.objects is not None else [],
                "pictures": self.pictures,
            },
            "crops": {"crop": crop or "", "misfit": misfit, "note": crops.note if "_boxed" in vars(crops) else ""},
            "made": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("pure-nb", "torch", "torchvision", "numpy", "zennit")},
            },
        }

    def arrays(self) -> Iterator[tuple[str, Arrays]]:
        """What was found in each step, of the neurons that are published."""
        study, chosen = self.study, self.channels
        references = study.references
        names = ("sample", "score", "position", "peak")
        own = {name: getattr(references, name)[chosen] for name in names}
        yield "references", {**own, "grid": np.array(references.grid, dtype=np.int64)}
        yield "circuits", {"vectors": study.circuits if self.chosen is None else study.circuits[chosen]}
        arrays, start = packed([study.virtual[channel] for channel in chosen])
        yield "virtual", {**arrays, "start": np.array(start, dtype=np.int64)}
        yield "layouts", {"points": np.stack([study.layout_of(channel) for channel in chosen])}
        if self.boxes is not None:
            yield "boxes", {"box": self.boxes}
        if self.names != "none" and study.objects is not None:
            yield "objects", {"label": study.objects[chosen]}

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables."""
        import pandas as pd  # late, see pure_nb._imports

        study, chosen = self.study, self.channels
        neurons = study.neurons[study.neurons["channel"].isin(chosen)].reset_index(drop=True)
        made = Atlas(study, embedder=self.embedder)
        rows = [
            {
                "channel": channel,
                "part": "whole" if part.name == "all" else part.name,
                "size": part.size,
                "meanings": part.meanings,
                "label": part.label,
                "carried_by": " ".join(f"{lower}:{share:.4g}" for lower, share in part.carriers),
            }
            for channel in chosen
            if study.references.alive[channel]
            for part in made.parts(channel)
        ]
        columns = ["channel", "part", "size", "meanings", "label", "carried_by"]
        parts = pd.DataFrame(rows, columns=columns)
        found = {"neurons": neurons, "parts": parts, "references": self._references()}
        if self.embedder is None:
            del parts["label"]
        if self.names == "none":
            del parts["meanings"]
            found["neurons"] = neurons.assign(meanings="")
        elif study.classes.known:
            found["pairs"] = study.classes.pairs[study.classes.pairs["channel"].isin(chosen)].reset_index(drop=True)
        return found

    def _references(self) -> pd.DataFrame:
        """A row for each reference image."""
        study, chosen = self.study, self.channels
        every = study.references.table()
        table = every[every["channel"].isin(chosen)].reset_index(drop=True)
        letters = [part_name(part) if part >= 0 else "" for channel in chosen for part in study.virtual[channel].labels]
        table["part"] = letters
        if self.boxes is not None:
            table[["left", "top", "right", "bottom"]] = self.boxes.reshape(-1, 4)
        if self.names != "none":
            table["label"] = [name for channel in chosen for name in study.neuron(channel).names]
        if self.file_names:
            table["file"] = [self.file_names.get(sample, "") for sample in table["sample"].tolist()]
        if self.pictured:
            pictured = set(self.pictured)
            table["picture"] = [
                f"pictures/{sample}.webp" if sample in pictured else "" for sample in table["sample"].tolist()
            ]
        return table

    def _draw(self, folder: Path) -> None:
        """Save masks and pictures; what is finished is left alone."""
        study, shown = self.study, self.study.run.progress
        rows = [row for row, channel in enumerate(self.channels) if not (folder / f"masks/{channel}.png").is_file()]
        together = max(1, PAIRS // self.shown.count)
        blocks = [rows[first : first + together] for first in range(0, len(rows), together)]
        pairs = []
        for block in blocks:
            of = [np.full_like(self.samples[row], self.channels[row]) for row in block]
            pairs.append((np.concatenate(of), np.concatenate([self.samples[row] for row in block])))
        with progress_bar(None, "masks", len(rows), unit="neuron", shown=shown) as bar:
            for number, views in study.crops.drawn(pairs):
                found = iter(views)
                for row in blocks[number]:
                    masks = np.concatenate([view.mask for view in islice(found, len(self.samples[row]))])
                    write = partial(Image.fromarray(masks).save, format="png", optimize=True)
                    write_atomically(folder / f"masks/{self.channels[row]}.png", write)
                    bar.update()
        regions = self._regions(folder) if self.pictures == "crops" else {}
        left = [sample for sample in self.pictured if not (folder / f"pictures/{sample}.webp").is_file()]
        for sample in progress_bar(left, "pictures", unit="picture", shown=shown):
            pixels = study.images.picture(sample)
            if self.pictures == "crops":
                seen = np.zeros(pixels.shape[:2], dtype=bool)
                for x0, y0, x1, y1 in regions[sample]:
                    seen[y0:y1, x0:x1] = True
                pixels = np.where(seen[..., None], pixels, np.uint8(255))
            image = Image.fromarray(pixels)  # of pixels alone, so that nothing else of a file comes along
            if self.shown.side is not None:
                image.thumbnail((self.shown.side, self.shown.side), Image.Resampling.LANCZOS)
            write_atomically(folder / f"pictures/{sample}.webp", partial(image.save, format="webp", **WEBP))

    def _regions(self, folder: Path) -> dict[int, list[tuple[int, ...]]]:
        """What of each picture is looked at by some neuron, as squares."""
        found: dict[int, list[tuple[int, ...]]] = {sample: [] for sample in self.pictured}
        for row, channel in enumerate(self.channels):
            own = read_masks(folder / f"masks/{channel}.png", self.study.images.example.shape)
            for sample, mask in zip(self.samples[row].tolist(), own):
                found[sample].append(square_around(mask))
            every = self.study.references.sample[channel].tolist()
            for sample, box in zip(every, [] if self.boxes is None else self.boxes[row].tolist()):
                if sample in found:
                    found[sample].append(tuple(box))
        return found


def _table_above(picture: Path) -> Path | None:
    """The table of attributions in a folder above a picture, if there is one."""
    places = [folder / f"ATTRIBUTION.{kind}" for folder in picture.parents[:DEPTH] for kind in ("csv", "tsv")]
    return next(filter(Path.is_file, places), None)


def _write_lines(lines: Sequence[dict[str, str]], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def _card(made: _Making, licence: str, cite: str, atlas: bool) -> str:
    """A card in the words of Hugging Face's hub: what its pages sort by, and what people read."""
    study, p, told = made.study, made.study.parameters, made.told()
    tables = ["neurons", "parts", "references", *(["pairs"] if made.names != "none" and study.classes.known else [])]
    head: dict[str, Any] = {"pretty_name": f"{study.name}: {p.target} in virtual neurons", "library_name": "pure-nb"}
    head["tags"] = ["interpretability", "polysemanticity", "vision", "pure-nb"]
    head |= {"license": licence} if licence else {}
    head["configs"] = [{"config_name": name, "data_files": f"tables/{name}.parquet"} for name in tables]
    yaml = "\n".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in head.items())
    neurons = f"{len(made.channels)} of {study.references.channels}" if made.chosen else str(len(made.channels))
    by = "Whom they are by, and under which licence, is in `ATTRIBUTION.csv`."
    pictures = {
        "none": "No pictures are published.",
        "crops": "Of the reference images only what the neurons look at is published; the rest of each picture is white.",
        "whole": "Reference images are published as the network sees them.",
    }[made.pictures]
    names = {
        "none": "Neither names of files nor of classes are published.",
        "labels": "Names of classes are published, names of files are not.",
        "files": "Names of files and of classes are published.",
    }[made.names]
    made_with = ", ".join(f"{name} {number}" for name, number in told["made"].items())
    lost = f" {len(study.skipped)} of them could not be read and were left out." if study.skipped else ""
    once = f"\n\nResults are of one run: {study.unsteady}." if study.unsteady else ""
    return f"""---
{yaml}
---

# {study.name}: the neurons of `{p.target}`, split into virtual neurons

```python
import pure_nb

study = pure_nb.load_study("hf://OWNER/NAME")   # or the folder; needs no network and no images
study.neurons.head()
study.neuron({made.channels[0]})
```

- **Network**: a {told["network"]} whose weights have the fingerprint `{told["weights"]}`.
- **Data**: {len(study.images):,} images, {told["images"]["name"]!r}, with the fingerprint `{told["images"]["fingerprint"]}`.{lost}
- **Neurons**: {neurons} channels of `{p.target}`, through `{p.lower}`, by {study.references.n} reference images each.
- **Pictures**: {pictures}{f" {by}" if made.attributions else ""}
- **Names**: {names} Paths are never published.
- **Licence**: {licence or "not said; ask whoever published it"}.
- **Made with**: {made_with}.{once}

`tables/` holds neurons, parts and references as Parquet and JSON; `arrays/` circuits, parts, layouts and boxes as
safetensors, of these neurons in this order; `study.json` what was asked.{" `atlas/index.html` is a site of it." if atlas else ""} Nothing here is code.

## How to cite

{cite or "Name whoever published this study, and its address."} The method is PURE (Dreyer et al., 2024, *PURE: Turning Polysemantic Neurons Into Pure
Features by Identifying Relevant Circuits*); the program is [pure_nb](https://github.com/pure-nb/pure-nb).
"""
