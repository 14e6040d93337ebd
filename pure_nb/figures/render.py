"""Where a neuron looks: heatmaps of a channel in the picture, and the crops and outlines made from them.

A heatmap is the relevance of one channel, propagated down to the pixels by the rules of layer-wise relevance
propagation (CRP, Achtibat et al. 2023) from where the channel is largest. Smoothed and scaled by its maximum, it says
which part of a reference image to show (PURE, section 4). A cheap alternative is the channel's activation map, scaled
up to the size of the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate

from pure_nb.compute.blocks import grouped, map_in_blocks
from pure_nb.compute.store import Store
from pure_nb.errors import ArgumentError, LayerError, require_choice
from pure_nb.images.data import Images
from pure_nb.images.reading import readable
from pure_nb.methods.circuits import propagate
from pure_nb.network.layers import activations
from pure_nb.parameters import Crop, Run

Picture = NDArray[np.uint8]

BLUR = 51 / 224
"""Side of the Gaussian kernel for pictures, in parts of the picture's side (the paper: 51 of 224 pixels)."""

CROP_BLUR = 5 / 224
"""The same for crops that are fed to an embedder (the paper: 5 of 224 pixels)."""

MOST = 16
"""Images that go through the network at once at most: all of it is propagated back through."""

LOOKED = 4096
"""Pairs of which it is kept what the channel looks at: 26 MB for pictures of 224 pixels a side."""

THRESHOLD = 0.02
"""What is in the mask: where the smoothed heatmap exceeds this share of its maximum."""


@dataclass(frozen=True, eq=False)
class View:
    """A reference image and where the neuron looks in it.

    Attributes
    ----------
    sample
        The image's index.
    picture
        uint8 ``[H, W, 3]``.
    mask
        bool ``[H, W]``: the part that the neuron looks at.
    """

    sample: int
    picture: Picture
    mask: NDArray[np.bool_]

    @property
    def seen(self) -> NDArray[np.bool_]:
        """As ``mask``: what it was called, by scripts elsewhere."""
        return self.mask

    @property
    def box(self) -> tuple[int, int, int, int]:
        """``(left, top, right, bottom)``: the smallest square, within the picture, that holds the mask."""
        return square_around(self.mask)

    def crop(self, size: int | None = None) -> Picture:
        """The picture cut to :attr:`box`, scaled to ``size`` pixels a side if given."""
        return resized(cropped(self.picture, self.box), size)

    def highlighted(self, size: int | None = None, *, dim: float = 0.4, crop: bool = True) -> Picture:
        """The crop as the paper shows it: what is outside the mask is dimmed towards white, and its edge drawn.

        Parameters
        ----------
        size
            Side of the result in pixels; None keeps the picture's own scale.
        dim
            What is left of the picture where the neuron does not look.
        crop
            Cut to :attr:`box`; otherwise the whole picture is shown.
        """
        left, top, right, bottom = self.box if crop else (0, 0, self.picture.shape[1], self.picture.shape[0])
        picture = resized(self.picture[top:bottom, left:right], size).astype(np.float32)
        shown = resized(255 * self.mask[top:bottom, left:right].astype(np.uint8), size) > 127
        edge = shown & ~scipy.ndimage.binary_erosion(shown, iterations=max(1, round(len(shown) / 100)), border_value=1)
        picture[~shown] = dim * picture[~shown] + (1 - dim) * 255
        picture[edge] = 0
        return picture.astype(np.uint8)


def heatmaps(
    model: nn.Module,
    images: Images,
    channel: NDArray[np.int64],
    sample: NDArray[np.int64],
    *,
    target: str,
    crop: Crop = "peak",
    lower: str | None = None,
    run: Run = Run(),
) -> Generator[tuple[NDArray[np.int64], Tensor], None, None]:
    """Heatmaps of single channels in the pictures, for many pairs of a channel and an image.

    Parameters
    ----------
    model, images, channel, sample, target
        As for :func:`pure_nb.methods.circuits.propagate`.
    crop
        ``"peak"``: relevance propagated to the pixels from the position of the channel's maximum alone, summed over the
        colours, as in PURE's reference implementation (zennit-crp's ``rf=True``): what made the image a reference.
        ``"crp"``: the same from all positions, each with its positive activation, as PURE's circuits start: all that
        activates the channel. ``"activation"``: the positive part of the activation map, scaled up bilinearly, which
        needs no backward pass, and a layer with a grid.
    lower
        Where relevance stops, summed over channels and scaled up bilinearly: a layer with a grid. The pixels by
        default.
    run
        How it is run, with no more than :data:`MOST` images at once.

    Yields
    ------
    tuple
        int64 ``[b]``: which of the pairs these are; and float ``[b, H, W]``.

    Raises
    ------
    ArgumentError
        If there is no such ``crop``.
    LayerError
        If the rules of CRP do not fit the network, or the layer has no grid for its activation map.

    Examples
    --------
    >>> pairs = np.array([3, 3]), study.references.sample[3, :2]
    >>> for rows, maps in heatmaps(model, study.images, *pairs, target="layer4"):
    ...     print(rows, tuple(maps.shape))
    [0 1] (2, 96, 96)
    """
    require_choice("crop", crop, Crop)
    run = replace(run, batch_size=min(run.batch_size, MOST))
    if crop != "activation":
        flows = propagate(
            model,
            images,
            channel,
            sample,
            target=target,
            lower=lower,
            rule="lrp",
            start="peak" if crop == "peak" else "activation",
            run=run,
        )
        with closing(flows):
            for rows, relevance, _, _ in flows:
                if lower is not None:
                    if relevance.ndim != 4:
                        raise LayerError(
                            f"layer {lower!r} has no grid of positions to scale up; choose one with a grid"
                        )
                    relevance = interpolate(
                        relevance.sum(dim=1, keepdim=True), images.example.shape[-2:], mode="bilinear"
                    )
                yield rows, relevance.sum(dim=1).cpu()
        return
    unique, pairs_of = grouped(sample)
    image = 0
    with run.prepared(model):
        for batch in readable(images, unique.tolist(), run=run):
            with torch.no_grad():  # never across a yield, where it would reach the caller
                output = activations(model, batch.images.to(run.local_device), [target])[target].float().cpu()
            if output.ndim != 4:
                raise LayerError(f"layer {target!r} has no grid of positions to scale up; use crop='peak'")
            for maps in output:
                rows = pairs_of[image]
                small = maps[torch.from_numpy(channel[rows])].clamp(min=0)
                large = interpolate(small[:, None], size=batch.images.shape[-2:], mode="bilinear")[:, 0]
                yield rows, large
                image += 1


def heatmap_mask(heatmap: Tensor, *, blur: float = BLUR, threshold: float = THRESHOLD) -> NDArray[np.bool_]:
    """The part of a picture that a heatmap points at.

    Parameters
    ----------
    heatmap
        ``[..., H, W]``, of any scale.
    blur
        Side of the Gaussian kernel in parts of the picture's width; rounded to an odd number of pixels.
    threshold
        Share of the smoothed heatmap's maximum.

    Returns
    -------
    ndarray
        bool ``[..., H, W]``; all of the picture where the heatmap is nowhere positive.
    """
    radius = round((blur * heatmap.shape[-1] - 1) / 2)
    smooth = heatmap.float().numpy()
    if radius > 0:
        # torchvision's standard deviation for a kernel of this size; its convolutions of one channel are far slower.
        smooth = scipy.ndimage.gaussian_filter(
            smooth, 0.3 * (radius - 1) + 0.8, radius=radius, axes=(-2, -1), mode="mirror"
        )
    largest = smooth.max(axis=(-2, -1), keepdims=True)
    return np.asarray((smooth > threshold * largest) | (largest <= 0))


def square_around(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """``(left, top, right, bottom)`` of the smallest square within the picture that holds a mask.

    As square as the picture allows: a mask wider than the picture is high gives the full height.
    """
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0, 0, width, height
    side = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1

    def within(first: int, last: int, limit: int) -> tuple[int, int]:
        length = min(int(side), limit)
        start = int(np.clip((first + last + 1 - length) // 2, 0, limit - length))
        return start, start + length

    left, right = within(columns[0], columns[-1], width)
    top, bottom = within(rows[0], rows[-1], height)
    return left, top, right, bottom


class Looked(dict[tuple[Crop, int, int], tuple[NDArray[np.uint8], tuple[int, int, int, int]]]):
    """What channels look at, by crop, channel and image: a picture's mask, its bits packed, and an embedder's box.

    Of the last :data:`LOOKED` pairs: so their heatmaps are made once for crops, masks and pictures.
    """

    def take_in(self, pairs: Iterable[tuple[Crop, int, int]], maps: Tensor, found: Any = None) -> None:
        """Keep what heatmaps point at, with their boxes where these are known already."""
        found = places(maps) if found is None else found
        for pair, mask, box in zip(pairs, heatmap_mask(maps), found):
            self[pair] = np.packbits(mask), tuple(box)
            if len(self) > LOOKED:
                del self[next(iter(self))]


def places(maps: Tensor) -> list[tuple[int, int, int, int]]:
    """The squares around what heatmaps point at, as embedders see them: with a blur of :data:`CROP_BLUR`."""
    return [square_around(mask) for mask in heatmap_mask(maps, blur=CROP_BLUR)]


# As of heatmaps, and what is made of them.
def views(  # noqa: PLR0913
    model: nn.Module,
    images: Images,
    channel: NDArray[np.int64],
    sample: NDArray[np.int64],
    *,
    target: str,
    crop: Crop = "peak",
    lower: str | None = None,
    mask: Callable[[Tensor], NDArray[np.bool_]] = heatmap_mask,
    run: Run = Run(),
) -> list[View]:
    """Reference images with the part each channel looks at.

    Parameters
    ----------
    model, images, channel, sample, target, crop, lower, run
        As for :func:`heatmaps`.
    mask
        What the channel looks at, by a heatmap; :func:`heatmap_mask` with another blur and threshold, or a way of one's
        own.

    Returns
    -------
    list of View
        In the order of the pairs.
    """
    masks: dict[int, NDArray[np.bool_]] = {}
    flows = heatmaps(model, images, channel, sample, target=target, crop=crop, lower=lower, run=run)
    with closing(flows):
        for rows, maps in flows:
            masks |= dict(zip(rows.tolist(), mask(maps)))
    return viewed(images, sample, [masks[row] for row in range(len(sample))])


def viewed(images: Images, sample: NDArray[np.int64], masks: Iterable[NDArray[np.bool_]]) -> list[View]:
    """Images with a mask each; a picture is read once, however many masks there are of it."""
    pictures = {number: images.picture(number) for number in np.unique(sample).tolist()}
    return [View(number, pictures[number], mask) for number, mask in zip(sample.tolist(), masks)]


def cropped(picture: Picture, box: Sequence[int] | NDArray[np.int32]) -> Picture:
    """A picture cut to ``(left, top, right, bottom)``."""
    left, top, right, bottom = box
    return picture[top:bottom, left:right]


# The pairs and how their heatmaps are made; where what is finished is kept, and what is known.
def boxes(  # noqa: PLR0913
    model: nn.Module,
    images: Images,
    channel: NDArray[np.int64],
    sample: NDArray[np.int64],
    *,
    target: str,
    crop: Crop = "peak",
    lower: str | None = None,
    store: Store | None = None,
    looked: Looked | None = None,
    run: Run = Run(),
) -> NDArray[np.int32]:
    """Where each channel looks, as the square of :attr:`View.box`: all that is kept of the crops fed to embedders.

    The blur is the paper's for these, :data:`CROP_BLUR`.

    A box is four numbers where a crop is tens of thousands, and cutting it again costs nothing beside a heatmap.

    Parameters
    ----------
    model, images, channel, sample, target, crop, lower, run
        As for :func:`heatmaps`; ``channel`` and ``sample`` may have any one shape.
    store
        As for :func:`pure_nb.methods.circuits.circuits`.
    looked
        What is known already of some pairs, which takes in what is found of the first along the last axis; it does not
        go to a cluster.

    Returns
    -------
    ndarray
        int32 ``[*channel.shape, 4]``: left, top, right and bottom in pixels, right and bottom exclusive.
    """
    shape = np.shape(channel)
    if shape != np.shape(sample):
        raise ArgumentError(
            f"each channel needs its image: got channels {list(shape)}, images {list(np.shape(sample))}"
        )
    channel, sample, columns = np.ravel(channel), np.ravel(sample), shape[-1] if shape else 1
    known, first = Looked(), 0
    if looked is not None and run.client is None:
        known, first = looked, LOOKED * columns // len(sample)

    def pairs(rows: NDArray[np.int64]) -> list[tuple[Crop, int, int]]:
        return [(crop, int(channel[row]), int(sample[row])) for row in rows]

    def compute(block: NDArray[np.int64], done: Callable[[int], Any]) -> NDArray[np.int32]:
        looks = [known.get(pair) for pair in pairs(block)]
        found = np.array([look[1] if look else (0, 0, 0, 0) for look in looks], dtype=np.int32)
        new = np.flatnonzero([look is None for look in looks])
        done(len(block) - len(new))
        asked = model, images, channel[block[new]], sample[block[new]]
        flows = heatmaps(*asked, target=target, crop=crop, lower=lower, run=run)
        with closing(flows):
            for rows, maps in flows if len(new) else ():
                found[new[rows]] = places(maps)
                kept = np.flatnonzero(block[new[rows]] % columns < first)
                known.take_in(pairs(block[new[rows[kept]]]), maps[kept], found[new[rows[kept]]].tolist())
                done(len(rows))
        return found

    run = replace(run, batch_size=min(run.batch_size, MOST))
    with run.prepared(model):
        return map_in_blocks(sample, compute, name="crops", unit="crop", store=store, run=run).reshape(*shape, 4)


def resized(picture: NDArray[np.uint8], size: int | None) -> NDArray[np.uint8]:
    """Scaled to fit a square of ``size`` pixels, and centred in it on white if it is not square."""
    if size is None:
        return picture
    height, width = picture.shape[:2]
    scale = size / max(height, width)
    fitted = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(Image.fromarray(picture).resize(fitted, Image.Resampling.BICUBIC))
    square = np.full((size, size, *picture.shape[2:]), 255 if picture.ndim == 3 else 0, dtype=np.uint8)
    top, left = (size - small.shape[0]) // 2, (size - small.shape[1]) // 2
    square[top : top + small.shape[0], left : left + small.shape[1]] = small
    return square
