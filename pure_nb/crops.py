"""What a study's channels look at in their reference images: boxes, pictures, and embedders' vectors of crops."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pure_nb.compute.blocks import map_in_blocks
from pure_nb.compute.results import FORMAT
from pure_nb.compute.store import Arrays, New, Store
from pure_nb.errors import EmbedderError, LayerError, StudyWarning
from pure_nb.figures.render import Looked, View, boxes, cropped, heatmaps, viewed, views
from pure_nb.methods.circuits import propagate
from pure_nb.network.layers import get_layer
from pure_nb.parameters import Crop

if TYPE_CHECKING:
    from torch import nn

    from pure_nb.images.data import Images
    from pure_nb.judges.embedders import Embedder
    from pure_nb.study import Study


CROPS = 256
"""Crops cut at once, to be embedded."""

WORDS = 256
"""Words that a worker embeds at once: a batch of :meth:`pure_nb.judges.vectors.Embedder.text`."""


@dataclass(frozen=True, eq=False)
class Crops:
    """The crops of a study, :attr:`pure_nb.study.Study.crops`."""

    study: Study

    @cached_property
    def _looked(self) -> Looked:
        return Looked()

    @cached_property
    def _without_crp(self) -> str:
        if self._lower is not None:
            get_layer(self.study.model, self._lower)  # a misspelt one is no misfit
        return misfit(self.study, self._lower)

    @property
    def _lower(self) -> str | None:
        return self.study.parameters.crop_lower or None

    @property
    def boxes(self) -> NDArray[np.int32]:
        """The squares that each channel looks at in its references, by the parameter ``crop``: ``[channels, n, 4]``.

        See :func:`pure_nb.figures.render.boxes`. Where the rules of CRP do not fit the network, a warning says so and
        the activation map is used, or the whole picture where the layer has no grid.
        """
        return self._boxed[0]

    @property
    def note(self) -> str:
        """How the crops differ from what was asked for, and why; "" if they do not."""
        return self._boxed[1]

    @cached_property
    def _boxed(self) -> tuple[NDArray[np.int32], str]:
        wanted = self.study.parameters.crop

        def compute(blocks: Store | None) -> tuple[Arrays, str]:
            sample = self.study.references.sample
            channel = np.broadcast_to(np.arange(len(sample))[:, None], sample.shape)
            crop, why = self._fitting(wanted)
            if crop is None:
                height, width = self.study.images.example.shape[-2:]
                found = np.tile(np.array([0, 0, width, height], dtype=np.int32), (*sample.shape, 1))
                return {"box": found}, f"crops are whole pictures, since {why}"
            found = boxes(
                self.study.model,
                self.study.images,
                channel,
                sample,
                store=blocks,
                looked=self._looked,
                **self._how(crop),
            )
            return {"box": found}, f"crops follow the activation map, since {why}" if why else ""

        arrays, note = self.study.results.arrays("boxes", self.study.key("boxes"), compute)
        if note:
            warnings.warn(note, StudyWarning, stacklevel=3)
        return arrays["box"], note

    def _how(self, crop: Crop) -> dict[str, Any]:
        """How heatmaps of the study's channels are made."""
        target, run = self.study.parameters.target, self.study.run
        return {"target": target, "crop": crop, "lower": self._lower, "run": run}

    def _fitting(self, crop: Crop) -> tuple[Crop | None, str]:
        """What pictures can be cropped to, None for nothing; and why, where that is not what was asked for."""
        why = "" if crop == "activation" else self._without_crp
        if crop != "activation" and not why:
            return crop, ""
        if len(self.study.references.grid) == 2:
            return "activation", why
        target = self.study.parameters.target
        return None, why or f"layer {target!r} has no grid of positions to scale up; use crop='peak'"

    def views(self, channel: NDArray[np.int64], sample: NDArray[np.int64], crop: Crop | None = None) -> list[View]:
        """Pictures for pairs of a channel and an image, with the part that the channel looks at.

        By the parameter ``crop``, or as told here; see :func:`pure_nb.figures.render.heatmaps`. Where the rules of CRP
        do not fit the network, a warning says so and the activation map is used, or the whole picture where the layer
        has no grid.
        """
        masks = dict(self._masks(channel, sample, crop or self.study.parameters.crop))
        return viewed(self.study.images, sample, [masks[row] for row in range(len(sample))])

    def _masks(
        self, channel: NDArray[np.int64], sample: NDArray[np.int64], asked: Crop
    ) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """What channels look at in images, as it is found: which of the pairs, and its mask."""
        crop, why = self._fitting(asked)
        shape = self.study.images.example.shape[-2:]
        if crop is None:
            warnings.warn(f"whole pictures are shown, since {why}", StudyWarning, stacklevel=3)
            yield from ((row, np.ones(shape, dtype=bool)) for row in range(len(sample)))
            return
        if why:
            warnings.warn(f"the activation map is shown, since {why}", StudyWarning, stacklevel=3)
        rows: dict[tuple[Crop, int, int], list[int]] = {}
        for row, (one, image) in enumerate(zip(channel.tolist(), sample.tolist())):
            rows.setdefault((crop, one, image), []).append(row)
        known = {pair: self._looked[pair][0] for pair in rows if pair in self._looked}
        new = [pair for pair in rows if pair not in known]
        for pair, bits in known.items():
            yield from ((row, _unpacked(bits, shape)) for row in rows[pair])
        chosen = np.array([rows[pair][0] for pair in new], dtype=np.int64)
        flows = heatmaps(self.study.model, self.study.images, channel[chosen], sample[chosen], **self._how(crop))
        with closing(flows):
            for some, maps in flows if new else ():
                pairs = [new[one] for one in some]
                self._looked.take_in(pairs, maps)
                for pair in pairs:
                    yield from ((row, _unpacked(self._looked[pair][0], shape)) for row in rows[pair])

    def seen(
        self, blocks: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]
    ) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
        """What channels look at, of many pairs in blocks: the number of the block, which of its pairs, and the mask.

        One block follows another, its pairs come as they are found. A cluster, if the study has one, finds them out.
        """
        run, images, (crop, why) = self.study.run, self.study.images, self._fitting(self.study.parameters.crop)
        if run.client is None or crop is None:
            for number, pairs in enumerate(blocks):
                yield from ((number, *found) for found in self._masks(*pairs, self.study.parameters.crop))
            return
        if why:
            warnings.warn(f"the activation map is shown, since {why}", StudyWarning, stacklevel=2)
        work = partial(_seen, self.study.model, images, self._how(crop))
        for number, (masks, shape) in run.client.each(work, blocks.__getitem__, range(len(blocks))):
            yield from ((number, row, _unpacked(bits, shape)) for row, bits in enumerate(masks))

    def of(self, channel: int, ranks: Sequence[int] | NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        """Crops of a channel's references of given ranks, as embedders see them: uint8 ``[side, side, 3]`` each."""
        self.study.require_channel(channel)
        numbers, places = self.study.references.sample[channel], self.boxes[channel]
        return [cropped(self.study.images.picture(int(numbers[rank])), places[rank]) for rank in ranks]

    def embeddings_key(self, embedder: Embedder) -> dict[str, object]:
        """What an embedder's vectors depend on, by which they are found."""
        own = {"step": "embeddings", "how": FORMAT["embeddings"], "embedder": embedder.fingerprint}
        return self.study.key("boxes") | own

    def embeddings(self, embedder: Embedder) -> NDArray[np.float32]:
        """An embedder's vectors of the crops of all references: float32 ``[channels, n, d]``.

        Each image is read once, however many channels it is a reference for. Of channels of a published study that were
        not published, they are NaN.
        """
        if getattr(embedder, "glyphs", False) and not self.study.images.drawn:  # an own one may lack it
            told = f"the glyphs that the package draws, and {self.study.images.name!r} are other images"
            warnings.warn(f"{embedder.name} knows nothing but {told}: take another judge", StudyWarning, stacklevel=3)
        every = self.study.references.sample
        known = every.ravel() >= 0

        def compute(blocks: Store | None, new: New) -> NDArray[np.float32]:
            sample, box = every.ravel()[known], self.boxes.reshape(-1, 4)[known]
            images = self.study.images  # and not the study, since what is below is sent to clusters
            lengths: set[int] = set()

            def of(block: NDArray[np.int64], done: Callable[[int], Any]) -> NDArray[np.float32]:
                parts, last, picture = [], -1, np.empty(0, dtype=np.uint8)
                for start in range(0, len(block), CROPS):
                    crops = []
                    for row in block[start : start + CROPS].tolist():  # the pairs of one image follow each other
                        if sample[row] != last:
                            last = int(sample[row])
                            picture = images.picture(last)
                        crops.append(cropped(picture, box[row]))
                    parts.append(embedder.images(crops))
                    lengths.add(parts[-1].shape[1])
                    if len(lengths) > 1:
                        raise EmbedderError(f"{embedder.name} returned vectors of several lengths, {sorted(lengths)}")
                    done(len(crops))
                return np.concatenate(parts)

            name = f"crops to {embedder.name}"
            return map_in_blocks(sample, of, name=name, unit="crop", store=blocks, new=new, run=self.study.run)

        found = self.study.results.mapped("embeddings", self.embeddings_key(embedder), compute)
        if not known.all():
            some, found = found, np.full((len(known), found.shape[1]), np.nan, dtype=np.float32)
            found[known] = some
        return found.reshape(*every.shape, -1)

    def word_vectors(self, embedder: Embedder, words: Sequence[str]) -> NDArray[np.float32]:
        """An embedder's vectors of words, float32 ``[words, d]``; kept, since a large vocabulary takes long."""
        asked = {"embedder": embedder.fingerprint, "prompts": list(embedder.prompts), "words": list(words)}
        key: dict[str, object] = {"step": "words", **asked}

        def compute(_: Store | None) -> tuple[Arrays, None]:
            client, firsts = self.study.run.client, range(0, len(words), WORDS)
            if client is None:
                return {"vectors": embedder.text(words)}, None
            parts = dict(client.each(embedder.text, lambda first: (words[first : first + WORDS],), firsts))
            return {"vectors": np.concatenate([parts[first] for first in firsts])}, None

        return self.study.results.arrays("words", key, compute)[0]["vectors"]


def _seen(
    model: nn.Module, images: Images, how: dict[str, Any], channel: NDArray[np.int64], sample: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], tuple[int, ...]]:
    """The masks of pairs, eight pixels a byte, and their shape; not within :meth:`Crops.seen`, as it is sent away."""
    masks = [view.mask for view in views(model, images, channel, sample, **how)]
    return np.stack([np.packbits(mask) for mask in masks]), masks[0].shape


def _unpacked(bits: NDArray[np.uint8], shape: Sequence[int]) -> NDArray[np.bool_]:
    """A mask of which eight pixels were packed into a byte."""
    return np.unpackbits(bits, count=math.prod(shape)).reshape(shape).astype(bool)


def misfit(study: Study, lower: str | None) -> str:
    """Why the rules of LRP do not fit a study's network down to a layer, or to the images for None; "" if they do.

    Tried on one reference image. Whatever fails later is another matter, and no reason to do without them.
    """
    sample = study.references.sample[0, :1]
    how: dict[str, Any] = {"target": study.parameters.target, "lower": lower, "rule": "lrp", "run": study.run}
    try:
        with closing(propagate(study.model, study.images, np.zeros(1, np.int64), sample, **how)) as flows:
            next(flows)
    except LayerError as problem:
        return str(problem)
    return ""
