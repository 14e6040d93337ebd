"""Sparse autoencoders: a dictionary of more features than a layer has channels, of which few are active at a position.

Two kinds. **Top-k** (Gao et al. 2024, "Scaling and evaluating sparse autoencoders", sections 2.3 and A.2): of the
features ``relu(W_enc (x - b) + b_enc)`` of a position the k largest are kept, and ``x`` is read off as
``W_dec z + b``. **BatchTopK** (Bussmann et al. 2024): the ``n k`` largest of a batch of n positions are kept, and in
use those above a threshold, the mean over batches of the smallest that was kept. The atoms (columns of ``W_dec``) have
length 1. Features that have not been active for a while are dead; they learn from what is left over,
``x - W_dec z - b``, of which the strongest of them, half as many as there are channels, explain what they can (Gao et
al., section A.2, with their weight :data:`AUXILIARY`).

Left out: their moving average of the weights, and the geometric median as the first bias, in whose place is the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pure_nb.compute.sweep import accepted
from pure_nb.errors import ArgumentError, NonFiniteError, require_choice
from pure_nb.images.data import Images
from pure_nb.images.reading import batches
from pure_nb.methods._shapes import Float
from pure_nb.network.layers import activations, flatten_positions
from pure_nb.parameters import Run

Kind = Literal["top-k", "BatchTopK"]

POSITIONS = 2**16
"""Most positions that are kept in memory to train on, however many images there are."""

AUXILIARY = 1 / 32
"""Weight of what dead features explain of the rest."""

DEAD = 10
"""Passes over the data without being active, after which a feature is dead; Gao et al. wait for 10 million tokens."""


@dataclass(frozen=True)
class DictionaryFit:
    """How well a dictionary explains some activations.

    Attributes
    ----------
    explained
        Part of the variance around the mean that is explained; 1 is all.
    l0
        Features that are active at a position, on average.
    dead
        Features that are active nowhere, as a part of all.
    """

    explained: float
    l0: float
    dead: float


class SparseAutoencoder(nn.Module):
    """A sparse autoencoder, as it is before training; :meth:`fit` trains one.

    Parameters
    ----------
    channels, width
        Channels of the layer, and features.
    k
        Features that are active at a position; on average for ``"BatchTopK"``.
    kind
        ``"top-k"`` or ``"BatchTopK"``.
    seed
        Of the first atoms, which are random directions.

    Attributes
    ----------
    encoder, decoder
        Weights, ``[width, channels]`` both; the rows of the decoder, the atoms, have length 1.
    encoder_bias, bias
        ``[width]`` and ``[channels]``; the latter is taken off before the encoder, and added after the decoder.
    scale
        Buffer, ``[]``: what activations are divided by, so that their mean squared length is the number of channels.
    threshold
        Buffer, ``[]``: for ``"BatchTopK"``, above which features are active; 0 until it is trained.

    Raises
    ------
    ArgumentError
        If there are no channels or features, or not so many of them as are to be active.

    Examples
    --------
    >>> rows = np.random.default_rng(0).random((500, 6), dtype=np.float32)   # positions, channels
    >>> made = SparseAutoencoder.fit(rows, width=12, k=2, steps=50)
    >>> made.encode(torch.from_numpy(rows)).shape
    torch.Size([500, 12])
    >>> made.report(rows).l0
    2.0
    """

    scale: Float[Tensor, " "]
    threshold: Float[Tensor, " "]

    def __init__(self, channels: int, width: int, k: int, kind: Kind = "top-k", seed: int = 0) -> None:
        require_choice("kind", kind, Kind)
        if channels < 1 or not 1 <= k <= width:
            raise ArgumentError(
                f"expected at least one channel, and from 1 to all of the features active at a position, got {channels}"
                f" channels, width={width} and k={k}"
            )
        super().__init__()
        self.k, self.kind = k, kind
        atoms = torch.randn(width, channels, generator=torch.Generator().manual_seed(seed))
        atoms = atoms / atoms.norm(dim=1, keepdim=True)
        self.decoder, self.encoder = nn.Parameter(atoms), nn.Parameter(atoms.clone())
        self.encoder_bias, self.bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("threshold", torch.zeros(()))

    @classmethod
    def fit(
        cls,
        rows: Float[NDArray[np.floating], "n channels"],
        width: int,
        k: int,
        kind: Kind = "top-k",
        *,
        steps: int = 1000,
        batch_size: int = 1024,
        learning_rate: float = 2e-3,
        seed: int = 0,
    ) -> SparseAutoencoder:
        """Train one by Adam; the same each time, for a seed.

        Parameters
        ----------
        rows
            float ``[n, channels]``: activations at n positions, see :func:`sample_positions`.
        width, k, kind, seed
            As for the class. The seed is that of the batches, too.
        steps, batch_size, learning_rate
            Of the training: so many batches of positions, drawn in an order that changes with each pass.

        Raises
        ------
        ArgumentError
            If a number makes no sense, or there are no activations.
        NonFiniteError
            If they are not finite, or do not vary.
        """
        if not len(rows) or steps < 1 or batch_size < 1 or not 0 < learning_rate < np.inf:
            raise ArgumentError(
                f"expected at least one position, one step, one position in a batch and a learning rate above 0, got "
                f"{len(rows)} positions, steps={steps}, batch_size={batch_size} and learning_rate={learning_rate}"
            )
        made = cls(rows.shape[1], width, k, kind, seed)
        given = torch.from_numpy(np.ascontiguousarray(rows))
        made.to(given.dtype)
        mean = given.mean(dim=0)
        length = ((given - mean) ** 2).sum(dim=1).mean()
        if not torch.isfinite(length) or length <= 0:
            raise NonFiniteError("activations to train on must be finite, and not all the same")
        made.scale.copy_((length / rows.shape[1]).sqrt())
        made.bias.data.copy_(mean / made.scale)
        training = _Training(made, learning_rate)
        generator, batch_size = torch.Generator().manual_seed(seed), min(batch_size, len(given))
        order = torch.empty(0, dtype=torch.int64)
        for _ in range(steps):
            if len(order) < batch_size:
                order = torch.randperm(len(given), generator=generator)
            chosen, order = order[:batch_size], order[batch_size:]
            training.step(given[chosen], len(given))
        if kind == "BatchTopK":
            made._set_threshold(given, batch_size)
        return made.requires_grad_(False).eval()

    def encode(self, channels: Float[Tensor, "n channels"]) -> Float[Tensor, "n width"]:
        """The features of some positions, ``[n, width]``, none below 0."""
        values = self.before(channels)
        if self.kind == "top-k":
            return _largest(values, self.k)
        return values * (values > self.threshold)

    def decode(self, features: Float[Tensor, "n width"]) -> Float[Tensor, "n channels"]:
        """The channels that features stand for, ``[n, channels]``."""
        return (features @ self.decoder + self.bias) * self.scale

    def forward(self, channels: Float[Tensor, "n channels"]) -> Float[Tensor, "n channels"]:
        """What is left of some activations that went through the features."""
        return self.decode(self.encode(channels))

    def before(self, channels: Float[Tensor, "n channels"]) -> Float[Tensor, "n width"]:
        """The features before few of them are chosen, ``[n, width]``."""
        return ((channels / self.scale - self.bias) @ self.encoder.T + self.encoder_bias).relu()

    def chosen(self, before: Float[Tensor, "n width"]) -> Float[Tensor, "n width"]:
        """Those that are active in a batch in training, ``[n, width]``."""
        if self.kind == "top-k":
            return _largest(before, self.k)
        return _largest(before.reshape(1, -1), len(before) * self.k).view_as(before)

    def loss(
        self, channels: Float[Tensor, "n channels"], dead: Float[Tensor, " width"]
    ) -> tuple[Float[Tensor, " "], Float[Tensor, "n width"]]:
        """What is not explained of a batch, as a part of its variance, with the same of the dead; and its features.

        Parameters
        ----------
        channels
            ``[n, channels]``.
        dead
            ``[width]``: 1 for dead features and 0 for others.

        Returns
        -------
        tuple
            The loss, a number, and the features as they are chosen in training, ``[n, width]``.
        """
        target = channels / self.scale
        before = self.before(channels)
        codes = self.chosen(before)
        rest = target - codes @ self.decoder - self.bias
        whole = ((target - target.mean(dim=0)) ** 2).sum().clamp(min=torch.finfo(target.dtype).tiny)
        found = (rest**2).sum() / whole
        if count := min(int(dead.sum()), max(1, target.shape[1] // 2)):
            left = rest.detach()
            told = _largest(before * dead, count) @ self.decoder
            found = found + AUXILIARY * ((left - told) ** 2).sum() / (left**2).sum().clamp(min=1e-12)
        return found, codes

    @torch.no_grad()
    def report(self, rows: Float[NDArray[np.floating], "n channels"]) -> DictionaryFit:
        """How well it explains activations ``[n, channels]``, a batch at a time."""
        rest, active, used = 0.0, 0, torch.zeros(len(self.encoder), dtype=torch.bool)
        every = torch.from_numpy(np.ascontiguousarray(rows)).to(self.decoder)
        for part in every.split(4096):  # type: ignore[no-untyped-call]
            codes = self.encode(part)
            rest += float(((part - self.decode(codes)).double() ** 2).sum())
            active += int((codes > 0).sum())
            used |= (codes > 0).any(dim=0)
        whole = float(np.var(rows, axis=0, dtype=np.float64).sum()) * len(rows)
        return DictionaryFit(1 - rest / whole, active / len(rows), float((~used).float().mean()))

    @torch.no_grad()
    def _set_threshold(self, rows: Float[Tensor, "n channels"], batch_size: int) -> None:
        """The mean over batches of the smallest feature that is kept."""
        batches = [batch for batch in rows.split(batch_size) if len(batch) == batch_size]  # type: ignore[no-untyped-call]
        kept = [self.chosen(self.before(batch)) for batch in batches]
        least = [codes[codes > 0].min() for codes in kept if (codes > 0).any()]
        if least:
            self.threshold.copy_(torch.stack(least).mean())


class _Training:
    """The state of training: Adam's, and how long ago each feature was active, in positions."""

    def __init__(self, made: SparseAutoencoder, learning_rate: float) -> None:
        self.made = made
        self.optimiser = torch.optim.Adam(made.parameters(), lr=learning_rate)
        self.silent = torch.zeros(len(made.encoder), dtype=torch.int64)

    def step(self, batch: Float[Tensor, "n channels"], total: int) -> None:
        """One step: gradients without what would change the atoms' lengths, of norm 1 at most; Adam; length 1."""
        made = self.made
        self.optimiser.zero_grad()
        loss, codes = made.loss(batch, (self.silent >= DEAD * total).to(batch))
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            gradient = cast(Tensor, made.decoder.grad)
            gradient -= (gradient * made.decoder).sum(dim=1, keepdim=True) * made.decoder
        nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        self.optimiser.step()
        with torch.no_grad():
            made.decoder.div_(made.decoder.norm(dim=1, keepdim=True))
            self.silent = torch.where((codes > 0).any(dim=0), 0, self.silent + len(batch))


def _largest(values: Float[Tensor, "n width"], k: int) -> Float[Tensor, "n width"]:
    """The k largest of each row, and 0 for all others."""
    top = values.topk(k, dim=1)
    return torch.zeros_like(values).scatter(1, top.indices, top.values)


def sample_positions(
    model: nn.Module,
    images: Images,
    layer: str,
    *,
    most: int = POSITIONS,
    seed: int = 0,
    run: Run = Run(),
) -> Float[NDArray[np.float32], "n channels"]:
    """Activations of a layer at positions of images, to train a dictionary on.

    Parameters
    ----------
    model, images, layer
        What is run over what, and the name of the layer.
    most
        Positions at most: all there are, or else those of so many draws at random, each once. Memory grows with them,
        and not with the number of images.
    seed
        Of the draw. For two layers with the same grid the same positions are drawn.
    run
        How it is run.

    Returns
    -------
    ndarray
        float32 ``[n, channels]``, in the order of the images.

    Raises
    ------
    ArgumentError
        If no positions are asked for.

    Examples
    --------
    >>> sample_positions(model, images, "layer4", most=200, run=Run(progress=False)).shape[1]
    32
    """
    if most < 1:
        raise ArgumentError(f"most must be at least 1, got {most}")
    with run.prepared(model), torch.inference_mode():
        example = images.example[None].to(run.local_device)
        positions = flatten_positions(activations(model, example, [layer])[layer]).shape[2]
        count = len(images) * positions
        drawn = count > most
        chosen = np.unique(np.random.default_rng(seed).integers(count, size=most)) if drawn else np.arange(count)
        sample, place = np.divmod(chosen, positions)
        unique, first = np.unique(sample, return_index=True)
        places, found = dict(zip(unique.tolist(), np.split(place, first[1:]))), []
        for batch in batches(images, [*places], run=run):
            accepted([*batch.unreadable], run)
            if len(batch.samples):
                outputs = activations(model, batch.images.to(run.local_device), [layer])[layer]
                own = zip(batch.samples.tolist(), flatten_positions(outputs))
                found += [one[:, places[number]].T.float().cpu() for number, one in own]
    return torch.cat(found).numpy()
