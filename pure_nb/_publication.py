"""What is in the folder of a published study, and whether it is as it was written: see :mod:`pure_nb.published`."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngImageFile
from safetensors import safe_open
from safetensors.numpy import load_file

from pure_nb.compute.store import Arrays, _checksum
from pure_nb.errors import StudyError
from pure_nb.network.shapes import LayerShape

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
"""Of the folder; raised when an older version of this package would misread it."""

MANIFEST = "manifest.json"

STEPS = ("references", "circuits", "virtual", "layouts", "boxes", "objects")
"""What was found, each in a file of arrays."""

BESIDE = "beside"
"""Another such file: what parts are clusters of beside circuits, in a study of several descriptions."""

LARGEST = 16383
"""Pixels a side of a picture at most, as of any WebP."""

OF_PART = 6
"""Reference images of each part that get a picture, if the strongest do: as many as a plot shows."""

ENTRIES = {
    "": "channels crops images keys layers made name network parameters pictured ranked weights",
    "images": "classes count drawn files fingerprint labels name names objects pictures shape",
    "crops": "crop misfit note",
}
"""What ``study.json`` holds, and its tables; it is refused with anything else."""


@dataclass(frozen=True, eq=False)
class Publication:
    """What is in the folder of a published study; all its files are as they were written.

    Attributes
    ----------
    folder
        Where they are.
    told
        What ``study.json`` says.
    seal
        Stands for all of them.
    files
        Their names; whatever else is in the folder is not read.
    """

    folder: Path
    told: dict[str, Any]
    seal: str
    files: frozenset[str]

    @classmethod
    def read(cls, folder: Path) -> Publication:
        """Check a folder; raises a :class:`StudyError` if it is none, is newer, or is not as it was written."""
        try:
            text = (folder / MANIFEST).read_text(encoding="utf-8")
            manifest = json.loads(text)
            version, files = manifest["format"], dict(manifest["files"])
        except FileNotFoundError as problem:
            raise StudyError(
                f"{str(folder)!r} holds no {MANIFEST}, so it is no published study, or not all of one: expected a "
                "folder that pure-nb publish has written, or a study's .toml file"
            ) from problem
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as problem:
            raise StudyError(f"{str(folder / MANIFEST)!r} can't be read: {problem}; fetch the study again") from problem
        if version != FORMAT:
            raise StudyError(
                f"{str(folder)!r} was published in format {version!r}, and this version of pure_nb reads {FORMAT}: "
                "pip install --upgrade pure-nb"
            )
        for name, expected in ({"study.json": ""} | files).items():
            path = PureWindowsPath(name)  # to which both kinds of slashes are some
            if path.anchor or ".." in path.parts:
                raise StudyError(f"{str(folder)!r} names a file outside of it, {name!r}, and is not opened")
            if not (folder / name).is_file():
                raise StudyError(f"{str(folder)!r} lacks {name!r}, which was published: fetch the study again")
            if _checksum(folder / name) != expected:
                raise StudyError(
                    f"{str(folder / name)!r} is not as it was published, changed or cut: fetch the study again"
                )
        try:
            told = json.loads((folder / "study.json").read_text(encoding="utf-8"))
            found = cls(folder, told, hashlib.sha256(text.encode()).hexdigest()[:16], frozenset(files))
            found._require_plain()
        except (ValueError, TypeError, RecursionError) as problem:
            raise StudyError(f"study.json in {str(folder)!r} can't be read: {problem}") from problem
        return found

    def _require_plain(self) -> None:
        """Raise if more is told than there is to tell, such as where code is."""
        for table, known in ENTRIES.items():
            told = self.told[table] if table else self.told
            if set(told) != set(known.split()):
                wrong = sorted(set(told) ^ set(known.split()))[0]
                raise StudyError(
                    f"study.json in {str(self.folder)!r} {'has' if wrong in told else 'lacks'} the entry {wrong!r}: "
                    "a published study tells what was found and names no code, so it is not opened"
                )
        if not str(self.told["network"]).isidentifier():
            raise StudyError(f"study.json calls the network {self.told['network']!r}, expected the name of a class")
        shape = self.images["shape"]
        if len(shape) != 3 or not all(isinstance(size, int) and 0 < size <= LARGEST for size in shape):
            raise StudyError(f"study.json gives images the shape {shape}, expected three sizes of at most {LARGEST}")

    def file(self, name: str) -> Path | None:
        """A file that was published; None if there is none of that name."""
        return self.folder / name if name in self.files else None

    @property
    def images(self) -> dict[str, Any]:
        """What is told of the images."""
        return self.told["images"]

    @property
    def why(self) -> str:
        """What to do where something is not here; without the folder, as an atlas of it says so, too."""
        return "give what was studied: load_study(FOLDER, model=..., images=...)"

    @cached_property
    def channels(self) -> NDArray[np.int64]:
        """The neurons that were published."""
        chosen = self.told["channels"]
        return np.arange(self.shapes[0].channels) if chosen is None else np.array(chosen, dtype=np.int64)

    @cached_property
    def shapes(self) -> tuple[LayerShape, LayerShape]:
        """How the target and the lower layer look."""
        target, lower = (LayerShape(**{**layer, "grid": tuple(layer["grid"])}) for layer in self.told["layers"])
        return target, lower

    def arrays(self, step: str) -> Arrays | None:
        """What was found in a step of the neurons that were published; None if it was not published."""
        path = self.file(f"arrays/{step}.safetensors")
        if path is None:
            return None
        return _mapped(path) if step in ("circuits", BESIDE) else load_file(path)

    def table(self, name: str) -> pd.DataFrame | None:
        """A table; None if there is none."""
        import pandas as pd  # late, see pure_nb._imports

        path = self.file(f"tables/{name}.parquet")
        return pd.read_parquet(path) if path else None

    def among_all(self, values: NDArray[Any]) -> NDArray[Any]:
        """Rows of the published neurons among those of all, which are NaN, or -1 of whole numbers."""
        if self.told["channels"] is None:
            return values
        missing = np.nan if values.dtype.kind == "f" else -1
        every = np.full((self.shapes[0].channels, *values.shape[1:]), missing, values.dtype)
        every[self.channels] = values
        return every

    @cached_property
    def pictured(self) -> list[list[int]]:
        """The reference images of each published neuron that have a mask, and a picture, in the order of the masks."""
        references, parts = self.arrays("references"), self.arrays("virtual")
        assert references is not None
        assert parts is not None
        count = int(self.told["pictured"])
        rows = zip(references["sample"], parts["labels"])
        return [sample[pictured_ranks(labels, count)].tolist() for sample, labels in rows]

    def masks(self, channel: int) -> NDArray[np.bool_]:
        """Where a neuron looks in each of these: bool ``[pictured, H, W]``."""
        path = self.file(f"masks/{channel}.png")
        if path is None:
            raise StudyError(f"{str(self.folder)!r} does not tell where neuron {channel} looks; {self.why}")
        count = len(self.pictured[int(np.searchsorted(self.channels, channel))])
        return read_masks(path, count, self.images["shape"])

    @cached_property
    def attributions(self) -> list[dict[str, str]]:
        """The lines of ``ATTRIBUTION.csv``: whom each picture is by, under which licence, and where it comes from."""
        path = self.file("ATTRIBUTION.csv")
        if path is None:
            return []
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    @cached_property
    def credits(self) -> dict[int, str]:
        """Whom pictures are by, and under which licence, by the number of the image."""
        return {int(row["sample"]): credit(row) for row in self.attributions}

    @cached_property
    def part_labels(self) -> pd.Series[str] | None:
        """What an embedder called the parts, by channel and part; None if none was asked."""
        parts = self.table("parts")
        return parts.set_index(["channel", "part"])["label"] if parts is not None and "label" in parts else None


def pictured_ranks(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Which reference images of a neuron get a picture: the strongest, and some of each part."""
    ranks = [np.flatnonzero(labels == part)[: min(count, OF_PART)] for part in range(labels.max(initial=-1) + 1)]
    return np.unique(np.concatenate([np.arange(min(count, len(labels))), *ranks]))


def read_masks(path: Path, count: int, shape: Sequence[int]) -> NDArray[np.bool_]:
    """Masks of pictures ``[3, H, W]``, one below the other in a file: bool ``[count, H, W]``."""
    height, width = shape[1:]
    with PngImageFile(path) as image:  # as Image.open would take many of them for an attack
        if image.size != (width, count * height):
            told = f"{image.width} x {image.height} pixels, expected {count} masks of {width} x {height}"
            raise StudyError(f"{str(path)!r} is {told}")
        return np.asarray(image.convert("1")).reshape(count, height, width)


def credit(row: dict[str, str]) -> str:
    """A line of a table of attributions, in words: author, licence and where the picture is from."""
    told = (row.get("author"), row.get("licence") or row.get("license"), row.get("source_url") or row.get("source"))
    return ", ".join(filter(None, told))


def _mapped(path: Path) -> Arrays:
    """The float32 arrays of a file of safetensors, read as they are looked at, which that library does not do."""
    with safe_open(path, "numpy"), path.open("rb") as file:  # which checks the header
        size = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(size))
    header.pop("__metadata__", None)
    if any(own["dtype"] != "F32" for own in header.values()):
        raise StudyError(f"{str(path)!r} holds other arrays than float32: fetch the study again")
    return {
        name: np.memmap(path, np.float32, "r", 8 + size + int(own["data_offsets"][0]), tuple(own["shape"]))
        for name, own in header.items()
    }
