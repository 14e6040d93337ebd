"""The map of an atlas: all parts of a layer in one plane, found by words, and beside each those that are like it.

``map.html`` shows what ``data/map.js`` holds; ``data/words.js`` has the parts that are nearest to each of many words,
and ``data/parts.js`` what both are about. ``parts.webp`` is a sheet of one small picture for each part. The map has a
copy of it as text, since WebGL may not read the pictures of a page that is opened from a disk.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pure_nb.compute.bars import progress_bar
from pure_nb.compute.results import FORMAT
from pure_nb.compute.store import Arrays, Store, write_atomically, write_text
from pure_nb.figures.plots import image_grid
from pure_nb.judges.alike import Parts
from pure_nb.methods.virtual import embed, part_name
from pure_nb.searching import part_labels, parts_seen
from pure_nb.show.facts import Atlas, digest
from pure_nb.show.pictures import STRIP, STRIPS, THUMB, Strip, draw_each, strip_of, told_of
from pure_nb.show.plane import points_apart
from pure_nb.show.sheets import UNITS, Sheets

if TYPE_CHECKING:
    from jinja2 import Environment

NEAREST, FOUND = 6, 20
"""Parts that are shown beside one, and for a word."""

SURE = 0.1
"""The false-discovery rate up to which a part counts as found."""

PIXELS, SIDES = 5_000_000, (48, 32, 24, 20, 16)
"""Of the sheet, at most; and sides of its pictures, of which the largest is taken that keeps it so small."""

REACH, SMALL = 10_000, 1000
"""Width of the plane in steps, and how many parts are pushed apart in it: of more, each would be far from where it
belongs."""

WEBP = {"quality": 70, "method": 4}
"""How the sheet is saved."""

WIDTH = 50
"""Principal components that are laid out."""


class Map:
    """The parts of an atlas's neurons, laid out.

    Parameters
    ----------
    made
        What the atlas tells.
    channels
        Its neurons.

    Attributes
    ----------
    labels
        int64 ``[channels, n]``: which part each reference belongs to; -1 for all neurons that the atlas leaves out.
    channel, part, size, rank
        int64 ``[parts]``: the neuron, which part of it, its images, and the rank of the strongest one.
    """

    def __init__(self, made: Atlas, channels: Sequence[int]) -> None:
        self.made, every = made, part_labels(made.study)
        self.labels = np.full_like(every, -1)
        self.labels[list(channels)] = every[list(channels)]
        rows = [(channel, part) for channel, own in enumerate(self.labels) for part in range(int(own.max()) + 1)]
        self.channel, self.part = np.array(rows, dtype=np.int64).reshape(-1, 2).T
        members = self.labels[self.channel] == self.part[:, None]
        self.size, self.rank = members.sum(axis=1), members.argmax(axis=1)
        self.seen: Parts | None = None
        if made.embedder is not None:
            # What all crops have in common is that of all neurons, also in an atlas of few.
            seen = parts_seen(made.study, made.embedder)
            self.seen = seen.only(np.isin(seen.channel, list(channels)))

    def alike(self) -> dict[int, dict[str, list[dict[str, Any]]]]:
        """For each neuron and each of its parts, those of other neurons that are nearest, for the pages."""
        found: dict[int, dict[str, list[dict[str, Any]]]] = {}
        for one, others in enumerate(self.neighbours):
            told = [
                {
                    "channel": int(self.channel[other]),
                    "part": part_name(int(self.part[other])),
                    "place": other,
                    "cosine": cosine,
                    "redundant": redundant,
                }
                for other, cosine, redundant in others
            ]
            found.setdefault(int(self.channel[one]), {})[part_name(int(self.part[one]))] = told
        return found

    @cached_property
    def neighbours(self) -> list[list[tuple[int, float, bool]]]:
        """For each part the nearest of other neurons: number, cosine of the centres, and whether it is redundant."""
        if self.seen is None:
            return []
        place, cosine = self.seen.nearest(NEAREST)
        redundant = self.seen.redundant(np.arange(len(place))[:, None], place)
        return [
            [entry for entry in zip(*row) if np.isfinite(entry[1])]
            for row in zip(place.tolist(), cosine.tolist(), redundant.tolist())
        ]

    def layouts(self) -> dict[str, NDArray[np.float32]]:
        """All parts in the plane, float32 ``[parts, 2]``: by what they show, if an embedder tells, and by circuits."""
        study = self.made.study
        circuits = np.stack([
            study.circuits[channel][self.labels[channel] == part].mean(axis=0, dtype=np.float64)
            for channel, part in zip(self.channel, self.part)
        ])  # fmt: skip
        found = {}
        if self.seen is not None and self.made.embedder is not None:
            key = study.crops.embeddings_key(self.made.embedder.joint)
            found[f"pictures ({self.made.embedder.name})"] = self._laid_out(self.seen.centre, key)
        found["circuits"] = self._laid_out(circuits, {})
        return found

    def _laid_out(self, vectors: NDArray[np.float64], more: dict[str, object]) -> NDArray[np.float32]:
        """Vectors of the parts in the plane, by UMAP of their principal components; kept, since it takes long."""
        study = self.made.study
        key = more | study.key("virtual") | {"step": "map", "of": more, "how": FORMAT["map"]}
        key["channels"] = hashlib.sha256(self.channel.tobytes()).hexdigest()[:16]

        def compute(_: Store | None) -> tuple[Arrays, None]:
            short = vectors
            if min(vectors.shape) > WIDTH:
                from sklearn.decomposition import PCA  # late, see pure_nb._imports

                short = PCA(WIDTH, svd_solver="randomized", random_state=study.parameters.seed).fit_transform(vectors)
            return {"points": embed(short, seed=study.parameters.seed)}, None

        return study.results.arrays("map", key, compute)[0]["points"]

    def words(self) -> dict[str, Any] | None:
        """For each word its nearest parts, with their scores in thousandths, and how many of them are surely near."""
        embedder = self.made.embedder
        if self.seen is None or embedder is None:
            return None
        words = self.made.vocabulary
        near, sure = [], []
        vectors = self.made.study.crops.word_vectors(embedder, words)
        for first in range(0, len(words), 256):
            some = vectors[first : first + 256]
            scores, rates = self.seen.scores(some), self.seen.q_values(some)
            best = np.argsort(-scores, axis=1, kind="stable")[:, :FOUND]
            for own, rate, places in zip(scores, rates, best):
                near.append(np.column_stack([places, np.round(1000 * own[places])]).astype(int).ravel().tolist())
                sure.append(int((rate[places] <= SURE).sum()))
        return {"by": embedder.name, "words": list(words), "near": near, "sure": sure}


def write_map(made: Atlas, folder: Path, channels: Sequence[int], templates: Environment) -> dict[int, dict[str, Any]]:
    """Write the map of an atlas, and what words find in it; what is there, and of this atlas, is left alone.

    Parameters
    ----------
    made
        What the atlas tells.
    folder
        Holds the pictures.
    channels
        Its neurons.
    templates
        Of the pages.

    Returns
    -------
    dict
        By neuron and part, the parts that are like it.
    """
    alive = [channel for channel in channels if made.study.references.alive[channel]]
    if not alive:
        return {}
    found = Map(made, alive)
    count, data = len(found.channel), folder / "data/map.js"
    classes = (
        []
        if made.without_classes
        else sorted({name for own in set(found.channel.tolist()) for name, _ in made.classes(own)[:1]})
    )
    # Of what a neuron's key says nothing of: which parts there are, and the classes, which may be known later.
    parts = hashlib.sha256(found.labels.tobytes()).hexdigest()[:16]
    stamp = f"// {made.key} {digest([parts, classes, *map(made.key_of, alive)])}"
    layouts = found.layouts()
    text = templates.get_template("map.html").render(root="", parts=count, layouts=list(layouts), classes=classes)
    write_text(folder / "map.html", text)
    if not data.is_file() or not data.read_text(encoding="utf-8").startswith(f"{stamp}\n"):
        _write_data(found, folder, stamp, layouts, classes)
    return found.alike()


def _write_data(
    found: Map, folder: Path, stamp: str, layouts: dict[str, NDArray[np.float32]], classes: list[str]
) -> None:
    made, count = found.made, len(found.channel)
    side = next((side for side in SIDES if count * side**2 <= PIXELS), SIDES[-1])
    columns = max(1, int(np.ceil(np.sqrt(count))))
    buffer = BytesIO()
    pictures: list[NDArray[np.uint8]] = []
    channels = np.unique(found.channel).tolist()
    places: list[Cut | None] = []
    for channel in progress_bar(channels, "map", unit="neuron", shown=made.study.run.progress):
        own = cuts(folder, channel, found.rank[found.channel == channel].tolist())
        places += own
        pictures += small_pictures(folder, own, side)
    files = list(dict.fromkeys(place[:3] for place in places if place is not None))
    Image.fromarray(image_grid(pictures, columns, gap=0)).save(buffer, format="webp", **WEBP)
    write_atomically(folder / "parts.webp", lambda temporary: temporary.write_bytes(buffer.getvalue()))
    neurons = made.study.neurons.set_index("channel")["score"]
    placed = [{"name": name, **_places(points)} for name, points in layouts.items()]
    first = {own: (made.classes(own)[:1] or [("", 0.0)])[0][0] for own in channels if classes}
    numbers = {name: number for number, name in enumerate(classes)}
    tells: dict[str, Any] = {
        "words": found.words(),
        "parts": {
            "channel": found.channel.tolist(),
            "part": found.part.tolist(),
            "size": found.size.tolist(),
            "label": [made.label(*pair) for pair in zip(found.channel.tolist(), map(part_name, found.part.tolist()))],
            "columns": columns,
            "sheet": f"parts.webp?{hashlib.sha256(buffer.getvalue()).hexdigest()[:8]}",
        },
        "map": {
            "reach": REACH,
            "layouts": placed,
            "sheets": files,
            "cuts": [None if place is None else (files.index(place[:3]), *place[3:]) for place in places],
            "score": neurons.loc[found.channel.tolist()].round(4).tolist(),
            "classes": classes,
            "class": [numbers.get(first.get(channel, ""), -1) for channel in found.channel.tolist()],
            # One after the other: a part, the cosine in hundredths, and 1 where it is redundant.
            "alike": [
                [number for other, cosine, redundant in own for number in (other, round(100 * cosine), int(redundant))]
                for own in found.neighbours
            ],
            "sheet": f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}",
        },
    }
    for name, data in tells.items():  # the map last, since it says that all is there
        if data is not None:
            text = json.dumps(data, separators=(",", ":"))
            write_text(folder / f"data/{name}.js", f"{stamp}\npureNbParts.take({json.dumps(name)},{text});\n")


Cut = tuple[str, int, int, int, int, int, int]
"""Where a picture is: the file, its columns and rows, the place in it, and left, top and side of the square."""


def cuts(folder: Path, channel: int, ranks: Sequence[int]) -> list[Cut | None]:
    """Where an atlas has some reference images; None where it has none.

    Parameters
    ----------
    folder
        Holds the atlas.
    channel, ranks
        The neuron, and the ranks of the images.
    """
    told = told_of(folder, channel)
    own = {rank: told["cuts"][rank] for rank in ranks if 0 <= rank < len(told["cuts"])}
    return [(*told["sheets"][own[rank][0]], *own[rank][1:5]) if rank in own else None for rank in ranks]


def small_pictures(folder: Path, places: Sequence[Cut | None], side: int) -> list[NDArray[np.uint8]]:
    """Pictures of an atlas, uint8 ``[side, side, 3]`` each; grey for None.

    Parameters
    ----------
    folder
        Holds the atlas.
    places
        From :func:`cuts`.
    side
        In pixels.
    """
    found = []
    for place in places:
        tile = Image.new("RGB", (1, 1), "grey")
        if place is not None:
            file, columns, _, cell, left, top, wide = place
            sheet = _opened(folder / file)
            unit = sheet.width / columns / UNITS
            x, y = unit * (UNITS * (cell % columns) + left), unit * (UNITS * (cell // columns) + top)
            tile = sheet.crop((round(x), round(y), round(x + unit * wide), round(y + unit * wide)))
        found.append(np.asarray(tile.resize((side, side), Image.Resampling.LANCZOS)))
    return found


def part_strips(
    made: Atlas, folder: Path, kind: str, parts: Mapping[int, tuple[int, NDArray[np.int64]]]
) -> dict[int, Strip]:
    """Write strips of the strongest images of parts, cut out of the sheets of their atlas; where they are.

    Parameters
    ----------
    made, folder
        The atlas.
    kind
        Name of the strips' folder.
    parts
        By number, the channel and the ranks of a part's images.
    """
    ranks = {part: [rank for rank in own[:STRIP].tolist() if rank < made.count] for part, (_, own) in parts.items()}
    shown = [part for part in parts if ranks[part]]
    sheets = Sheets(folder, kind, f"{made.key} {digest([[parts[part][0], ranks[part]] for part in shown])}")

    def tiles(part: int) -> list[NDArray[np.uint8]]:
        return small_pictures(folder, cuts(folder, parts[part][0], ranks[part]), THUMB)

    draw_each(sheets, sheets.add(shown, STRIPS), tiles, "parts", made.study.run.progress)
    return {part: strip_of(sheets, part) for part in shown}


@lru_cache(8)
def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _places(points: NDArray[np.float32]) -> dict[str, Any]:
    """Points of a layout as whole numbers up to :data:`REACH`, one after the other, and how wide each may be drawn."""
    if len(points) <= SMALL:
        placed = points_apart(points) * (REACH // 1000)
    else:
        low, reach = points.min(axis=0), np.ptp(points, axis=0).clip(1e-9)
        placed = np.round((points - low) / reach * REACH).astype(np.int64)
        placed[:, 1] = REACH - placed[:, 1]
    from scipy.spatial import KDTree  # late, see pure_nb._imports

    apart = np.median(KDTree(placed).query(placed, k=2)[0][:, 1]) if len(placed) > 1 else REACH / 10
    return {"places": placed.ravel().tolist(), "side": float(max(apart, 1) / REACH)}
