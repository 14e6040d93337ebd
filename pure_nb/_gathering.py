"""What is published of a study, gathered: see :mod:`pure_nb.publishing`."""

from __future__ import annotations

import csv
import json
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from importlib.metadata import version
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save_file

from pure_nb._publication import BESIDE, FORMAT, MANIFEST, STEPS, pictured_ranks, read_masks
from pure_nb.compute.bars import progress_bar
from pure_nb.compute.results import as_before
from pure_nb.compute.store import Arrays, _checksum, write_atomically, write_text
from pure_nb.errors import StudyError
from pure_nb.figures.render import boxes, square_around
from pure_nb.images.labels import display_names
from pure_nb.methods.virtual import packed, part_name
from pure_nb.show.facts import Atlas
from pure_nb.show.pictures import SENT
from pure_nb.show.sheets import WEBP

if TYPE_CHECKING:
    import pandas as pd

    from pure_nb.judges.embedders import Embedder
    from pure_nb.publishing import Shown
    from pure_nb.study import Study

DEPTH = 4
"""Folders above a picture in which a table of attributions is looked for."""


@dataclass(frozen=True, eq=False)
class Gathered:
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
    def ranks(self) -> list[NDArray[np.int64]]:
        """The ranks of each neuron's reference images that get a picture."""
        return [pictured_ranks(self.study.virtual[channel].labels, self.shown.count) for channel in self.channels]

    @cached_property
    def samples(self) -> list[NDArray[np.int64]]:
        """Their numbers."""
        return [self.study.references.sample[channel][own] for channel, own in zip(self.channels, self.ranks)]

    @cached_property
    def pictured(self) -> list[int]:
        """Numbers of all images that get a picture."""
        return [] if self.pictures == "none" else np.unique(np.concatenate(self.samples)).tolist()

    @cached_property
    def files(self) -> dict[int, Path]:
        """The files of reference images, where these are files."""
        every = np.unique(self.study.references.sample[self.channels]).tolist()
        found = {sample: self.study.images.file(sample) for sample in every}
        return {sample: Path(os.path.abspath(file)) for sample, file in found.items() if file}

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
        height, width = self.study.images.example.shape[-2:]
        withheld = {"picture", "sample", "file", *(["label"] if self.names == "none" else [])}
        tables: dict[Path, dict[tuple[str, ...], dict[str, str]]] = {}
        found = []
        for sample in self.pictured:
            parts = self.files[sample].parts if sample in self.files else ()
            path = Path(self.shown.attribution) if self.shown.attribution else _table_above(Path(*parts))
            if path is None:
                continue  # nobody asks for it
            known = tables[path] if path in tables else tables.setdefault(path, _read_lines(path))
            own = next((known[parts[at:]] for at in range(len(parts)) if parts[at:] in known), None)
            if own is None:
                raise StudyError(
                    f"{str(path)!r} has no line for {'/'.join(parts[-2:]) or f'image {sample}'}, and its picture would "
                    "be published: add one, or name another table (attribution)"
                )
            kept = {name: value for name, value in own.items() if name and name not in withheld}
            changed = f"resized or cropped to {width} x {height} pixels, as a network sees it, WebP"
            kept["changes"] = "; ".join(filter(None, (kept.get("changes"), changed)))
            name = {"file": self.file_names[sample]} if sample in self.file_names else {}
            found.append({"picture": f"pictures/{sample}.webp", "sample": str(sample), **name, **kept})
        return found

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
        texts: dict[str, str] = {"study.json": json.dumps(self.told(), indent=1)}
        for name, table in self.tables.items():
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
            write_text(folder / name, text)
        every = sorted(path for path in folder.rglob("*") if path.is_file())
        places = {path.relative_to(folder).as_posix(): path for path in every}
        files = {
            place: _checksum(path)
            for place, path in places.items()
            if not place.startswith(("atlas/", "README.md", MANIFEST))
        }
        text = json.dumps({"format": FORMAT, "files": files}, indent=1)
        write_text(folder / MANIFEST, text)

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
            "parameters": as_before(asdict(study.parameters)),
            "ranked": study.ranked,
            "keys": {step: study.key(step) for step in STEPS},
            "channels": self.chosen and self.channels,
            "pictured": 0 if self.pictures == "none" else min(self.shown.count, study.references.n),
            "images": {
                "name": images.name if named else "images",
                "names": self.names,
                "count": len(images),
                "drawn": images.drawn,
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
        if study.combined:
            lower = study.shapes[1].channels
            yield BESIDE, {"vectors": np.stack([study.combined[channel][:, lower:] for channel in chosen])}
        arrays, start = packed([study.virtual[channel] for channel in chosen])
        yield "virtual", {**arrays, "start": np.array(start, dtype=np.int64)}
        yield "layouts", {"points": np.stack([study.layout_of(channel) for channel in chosen])}
        if self.boxes is not None:
            yield "boxes", {"box": self.boxes}
        if self.names != "none" and study.objects is not None:
            yield "objects", {"label": study.objects[chosen]}

    @cached_property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables."""
        import pandas as pd  # late, see pure_nb._imports

        study, chosen = self.study, self.channels
        neurons = study.neurons[study.neurons["channel"].isin(chosen)].reset_index(drop=True)
        made = Atlas(study, embedder=self.embedder)
        vars(made)["notes"] = {}  # a person's own are not published
        rows = [
            {
                "channel": channel,
                "part": "whole" if part.name == "all" else part.name,
                "size": part.size,
                "meanings": part.meanings,
                "label": part.label,
                "carried_by": " ".join(f"{one.channel}:{one.share:.4g}" for one in part.carriers),
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
        together = max(1, SENT // self.shown.count)
        blocks = [rows[first : first + together] for first in range(0, len(rows), together)]
        pairs = []
        for block in blocks:
            of = [np.full_like(self.samples[row], self.channels[row]) for row in block]
            pairs.append((np.concatenate(of), np.concatenate([self.samples[row] for row in block])))
        with progress_bar(None, "masks", len(rows), unit="neuron", shown=shown) as bar:
            for number, found in groupby(study.crops.seen(pairs), itemgetter(0)):
                by_place = {place: mask for _, place, mask in found}
                ordered = iter(by_place[place] for place in range(len(by_place)))
                for row in blocks[number]:
                    masks = np.concatenate(list(islice(ordered, len(self.samples[row]))))
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
            write_atomically(folder / f"pictures/{sample}.webp", partial(_save, image))

    def _regions(self, folder: Path) -> dict[int, list[Sequence[int]]]:
        """What of each picture is looked at by some neuron, as squares."""
        shape, places = self.study.images.example.shape, self.boxes
        found: dict[int, list[Sequence[int]]] = {sample: [] for sample in self.pictured}
        for row, channel in enumerate(self.channels):
            masks = read_masks(folder / f"masks/{channel}.png", len(self.ranks[row]), shape)
            for rank, sample, mask in zip(self.ranks[row].tolist(), self.samples[row].tolist(), masks):
                found[sample] += [square_around(mask), *([] if places is None else [places[row, rank].tolist()])]
        return found


def _table_above(picture: Path) -> Path | None:
    """The table of attributions in a folder above a picture, if there is one."""
    places = [folder / f"ATTRIBUTION.{kind}" for folder in picture.parents[:DEPTH] for kind in ("csv", "tsv")]
    return next(filter(Path.is_file, places), None)


def _read_lines(path: Path) -> dict[tuple[str, ...], dict[str, str]]:
    """The lines of a table of attributions, by the parts of their files' paths."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.DictReader(file, restkey="", delimiter="\t" if path.suffix == ".tsv" else ","))
    except (OSError, ValueError, csv.Error) as problem:
        raise StudyError(f"{str(path)!r} can't be read as a table of attributions: {problem}") from problem
    if not lines or "file" not in lines[0]:
        raise StudyError(f"{str(path)!r}: expected a table of attributions, with a column called file and a line each")
    return {Path(line["file"] or "").parts: line for line in lines}


def _save(image: Image.Image, path: Path) -> None:
    image.save(path, format="webp", **WEBP)


def _write_lines(lines: Sequence[dict[str, str]], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for line in lines for name in line)))
        writer.writeheader()
        writer.writerows(lines)
