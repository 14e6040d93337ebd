"""Reference images: for each channel of a layer, its top-activating images (PURE, section 3.1).

The score of an image for a channel is the channel's largest activation over all positions, as in Dreyer et al.
(2024), or its mean. :class:`TopReferences` keeps the best n of each channel while the images stream by; its memory
does not grow with the number of images.

Equal scores are put in the order of the images' indices. That makes the order total, so the result depends
neither on the batches nor on the order in which partial results are merged.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pure_nb.errors import ArgumentError, LayerError, NonFiniteError, StudyWarning, require_choice
from pure_nb.methods._shapes import Bool, Float, Int
from pure_nb.network.layers import channel_axis, flatten_positions
from pure_nb.parameters import RankedBy

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class References:
    """The reference images of every channel of a layer, strongest first.

    Attributes
    ----------
    layer
        Name of the layer.
    ranked_by
        What the score is: ``"max"`` or ``"mean"`` over positions.
    sample
        int64 ``[channels, n]``: indices of the images.
    score
        float32 ``[channels, n]``: their scores, in the units of the activation.
    position
        int64 ``[channels, n]``: where the activation is largest, an index into the flattened ``grid``.
    grid
        ``(height, width)``, ``(tokens,)`` or ``()``: the positions of the layer.
    peak
        float32 ``[channels, n]``: the largest activations, whatever the score is.
    """

    layer: str
    ranked_by: RankedBy
    sample: Int[NDArray[np.int64], "channels n"]
    score: Float[NDArray[np.float32], "channels n"]
    position: Int[NDArray[np.int64], "channels n"]
    grid: tuple[int, ...]
    peak: Float[NDArray[np.float32], "channels n"]

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.sample.shape[0]

    @property
    def n(self) -> int:
        """Number of reference images of each channel."""
        return self.sample.shape[1]

    @property
    def active(self) -> Bool[NDArray[np.bool_], "channels n"]:
        """In which references the channel is active, that is above 0 somewhere: bool ``[channels, n]``."""
        return self.peak > 0

    @property
    def alive(self) -> Bool[NDArray[np.bool_], " channels"]:
        """Which channels are not dead: bool ``[channels]``.

        A dead channel is above 0 nowhere in any of its references, which then mean nothing. A mean may be below 0
        though the channel is not dead: what counts are the largest activations, also with ``ranked_by="mean"``.
        """
        return np.asarray(self.active.any(axis=1))

    @property
    def tied(self) -> Bool[NDArray[np.bool_], " channels"]:
        """Which live channels have one score in all of three or more references: their order is that of the images."""
        return self.alive & (self.n > 2) & (self.score == self.score[:, :1]).all(axis=1)

    def only(self, channel: int) -> References:
        """Those of one channel, as if the layer had no other."""
        names = ("sample", "score", "position", "peak")
        return replace(self, **{name: getattr(self, name)[[channel]] for name in names})

    def centre(self, size: tuple[int, int]) -> Float[NDArray[np.float64], "channels n 2"]:
        """The middle of each maximum's cell in the picture.

        Parameters
        ----------
        size
            Height and width of the picture in pixels.

        Returns
        -------
        ndarray
            ``[channels, n, 2]``: x from the left and y from the top, in pixels. The middle of the picture where
            the layer has no grid of two axes.
        """
        height, width = size
        if len(self.grid) != 2:
            return np.broadcast_to([width / 2, height / 2], (*self.sample.shape, 2)).copy()
        row, column = np.divmod(self.position, self.grid[1])
        return np.stack([(column + 0.5) * width / self.grid[1], (row + 0.5) * height / self.grid[0]], axis=-1)

    def table(self) -> pd.DataFrame:
        """One row for each channel and rank: ``channel, rank, sample, score, position``."""
        import pandas as pd  # late, see pure_nb._imports

        channel, rank = np.asarray(np.indices(self.sample.shape))
        columns: dict[str, NDArray[Any]] = {
            "channel": channel,
            "rank": rank,
            "sample": self.sample,
            "score": self.score,
            "position": self.position,
        }
        return pd.DataFrame({name: values.ravel() for name, values in columns.items()})


class TopReferences:
    """Accumulator of the best ``n`` images of every channel of a layer.

    The chapter :doc:`Reference images </book/references>` builds it from scratch.

    Parameters
    ----------
    layer
        Name of the layer.
    n
        References for each channel; fewer where there are fewer images.
    ranked_by
        ``"max"``: the largest activation over the positions (the paper's); ``"mean"``: their mean.

    Examples
    --------
    >>> top = TopReferences("layer4", n=6)
    >>> _ = sweep(model, study.images, [top], run=Run(progress=False))
    >>> top.result().sample.shape
    (32, 6)
    """

    def __init__(self, layer: str, n: int = 100, ranked_by: RankedBy = "max") -> None:
        if n < 1:
            raise ArgumentError(f"a channel needs at least one reference image, got n={n}")
        require_choice("ranked_by", ranked_by, RankedBy)
        self.layer, self.n, self.ranked_by = layer, n, ranked_by
        self.layers: tuple[str, ...] = (layer,)
        self.leaf: str | None = None
        self.grid: tuple[int, ...] = ()
        # Score, sample, position and peak as [rank, channel]; the ranks come first since batches are stacked on them.
        self._best: dict[str, Tensor] = {}

    def update(self, samples: Int[NDArray[np.int64], " b"], outputs: Mapping[str, Tensor]) -> None:
        """Take in a batch.

        Parameters
        ----------
        samples
            ``[B]``: indices of the images.
        outputs
            Of the layer, among others: ``[B, C]``, ``[B, T, C]`` or ``[B, C, H, W]``.

        Raises
        ------
        NonFiniteError
            If the activation is NaN or infinite anywhere.
        LayerError
            If the layer's shape is not that of the batches before.
        """
        new = self._read(samples, outputs[self.layer])
        best, full = self._best, bool(self._best) and len(self._best["score"]) >= self.n
        later = full and int(samples.min()) > int(best["sample"].max())  # so a tie with the last one does not enter
        if later and not (new["score"] > best["score"][-1]).any():
            return
        self._take(new)

    def _read(self, samples: NDArray[np.int64], activation: Tensor) -> dict[str, Tensor]:
        """What is known of a batch, ``[B, C]`` each; raises as :meth:`update`."""
        values = flatten_positions(activation.detach().float())
        top, position = values.max(dim=2)
        top = top.where(torch.isfinite(values.sum(dim=2)), torch.nan).cpu()  # a GPU is waited for once, and not to ask
        if (wrong := top.isnan()).any():
            image, channel = wrong.nonzero()[0].tolist()
            raise NonFiniteError(
                f"layer {self.layer!r} puts out NaN or infinity: channel {channel}, image {samples[image]}. Check that "
                "image, the weights, and whether half precision overflows"
            )
        score = top if self.ranked_by == "max" else values.mean(dim=2).cpu()
        axis = channel_axis(activation)
        self._shaped(score.shape[1], tuple(size for i, size in enumerate(activation.shape) if i not in (0, axis)))
        sample = torch.from_numpy(samples)[:, None].expand(-1, score.shape[1])
        return {"score": score, "sample": sample, "position": position.cpu(), "peak": top}

    def merge(self, other: TopReferences) -> None:
        """Take in what another accumulator of the same layer has taken in."""
        if (self.layer, self.n, self.ranked_by) != (other.layer, other.n, other.ranked_by):
            raise ArgumentError(
                f"can't merge references of {other.layer!r} ({other.n}, {other.ranked_by}) into {self.layer!r}"
            )
        if other._best:
            self._shaped(other._best["score"].shape[1], other.grid)
            self._take(other._best)

    def _shaped(self, channels: int, grid: tuple[int, ...]) -> None:
        if self._best and (before := self._best["score"].shape[1], self.grid) != (channels, grid):
            raise LayerError(
                f"layer {self.layer!r} had {before} channels on the grid {self.grid} and now has "
                f"{channels} on {grid}; resize and crop all images to one size in the transform"
            )
        self.grid = grid

    def _take(self, new: Mapping[str, Tensor]) -> None:
        every = {name: torch.cat([self._best[name], values]) if self._best else values for name, values in new.items()}
        # Two stable sorts: by number, then by score. The second keeps the order of the first among equals.
        order = every["sample"].argsort(dim=0, stable=True)
        order = order.gather(0, every["score"].gather(0, order).argsort(dim=0, descending=True, stable=True))[: self.n]
        self._best = {name: values.gather(0, order) for name, values in every.items()}

    def result(self) -> References:
        """The reference images found so far.

        Raises
        ------
        ArgumentError
            If nothing was taken in.
        """
        if not self._best:
            raise ArgumentError(f"no image was seen, so layer {self.layer!r} has no reference images")
        found: dict[str, Any] = {name: values.T.contiguous().numpy() for name, values in self._best.items()}
        return References(self.layer, self.ranked_by, grid=self.grid, **found)

    def state(self) -> dict[str, NDArray[Any]]:
        """All that was taken in, as arrays; see :meth:`restored`."""
        grid = {"grid": np.array(self.grid, dtype=np.int64)} if self._best else {}
        return {name: values.numpy() for name, values in self._best.items()} | grid

    def restored(self, state: Mapping[str, NDArray[Any]]) -> TopReferences:
        """A new accumulator of the same settings, holding a saved state; empty if the state is."""
        other = TopReferences(self.layer, self.n, self.ranked_by)
        if state:
            names = ("score", "sample", "position", "peak")
            other._best = {name: torch.from_numpy(np.array(state[name])) for name in names}
            other.grid = tuple(int(size) for size in state["grid"])
        return other


def warned_of_ties(found: References) -> References:
    """References as they are, with a warning where more than a tenth of the live channels have ties all the way down.

    Parameters
    ----------
    found
        Of all channels of a layer.

    Returns
    -------
    found
        The same.

    Warns
    -----
    StudyWarning
        Names the channels' number, see :attr:`References.tied`, and what to study instead.
    """
    tied, alive = int(found.tied.sum()), int(found.alive.sum())
    if 10 * tied > alive:
        by_mean = ", or rank by the mean (ranked_by='mean')" * (found.ranked_by != "mean")
        warnings.warn(
            f"in {tied} of {alive} live channels of layer {found.layer!r} all {found.n} references have the same score,"
            " as behind a ReLU6 or another ceiling: which images they are is the order of the images; study what "
            f"enters the ceiling ('input:' and its name){by_mean}",
            StudyWarning,
            stacklevel=4,
        )
    return found
