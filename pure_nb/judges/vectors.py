"""Pictures to vectors: what an embedder is, and the two that need no other library, pixels and any torch network."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

from pure_nb.errors import EmbedderError, PureError
from pure_nb.images.data import MEAN, STD
from pure_nb.network import models
from pure_nb.network.layers import INPUT, activations, flatten_positions
from pure_nb.parameters import Run

Picture = NDArray[np.uint8]
Encode = Callable[[Sequence[Picture]], Any]


@dataclass(frozen=True, eq=False)
class Embedder:
    """Pictures to vectors, and perhaps words to vectors.

    Attributes
    ----------
    name
        What to call it in tables and figures.
    fingerprint
        Changes when the vectors change; stored results are found by it.
    encode
        From a list of pictures, uint8 ``[H, W, 3]`` of any sizes, to a tensor or array ``[pictures, d]``. What the
        network needs done to a picture first is done here.
    encode_text
        From a list of texts to ``[texts, d']``; None where there is no text tower.
    encode_joint
        From pictures to vectors that can be compared with those of texts. CLIP's are other ones than the mean of its
        tokens, by which the paper measures distances.
    prompts
        Sentences around a word, with ``{}`` in its place.
    glyphs
        Whether it was trained on the glyphs that the package draws, and knows nothing else.

    Examples
    --------
    >>> colour = Embedder.of("mean colour", lambda pictures: [picture.mean(axis=(0, 1)) for picture in pictures])
    >>> colour.images(study.crops.of(3, [0, 1])).shape
    (2, 3)
    """

    name: str
    fingerprint: str
    encode: Encode
    encode_text: Callable[[list[str]], Any] | None = None
    encode_joint: Encode | None = None
    prompts: tuple[str, ...] = ("{}",)
    glyphs: bool = False

    @classmethod
    def of(cls, name: str, function: Encode) -> Embedder:
        """An embedder of your own.

        Parameters
        ----------
        name
            What to call it.
        function
            From a list of pictures, uint8 ``[H, W, 3]``, to a tensor or array ``[pictures, d]``. It is tried on three
            pictures now; what it makes of them is part of the fingerprint.

        Raises
        ------
        EmbedderError
            If it does not return a finite vector for each picture.
        """
        probe = [np.random.default_rng(size).integers(0, 256, (size, size, 3), dtype=np.uint8) for size in (24, 40, 64)]
        digest = hashlib.sha256(cls(name, "", function).images(probe).tobytes())
        with suppress(OSError, TypeError):
            digest.update(inspect.getsource(function).encode())
        return cls(name, digest.hexdigest()[:16], function)

    def images(self, pictures: Sequence[Picture], *, run: Run = Run(batch_size=64)) -> NDArray[np.float32]:
        """Vectors of pictures.

        Parameters
        ----------
        pictures
            uint8 ``[H, W, 3]`` each, of any sizes.
        run
            Its ``batch_size`` pictures are encoded at once.

        Returns
        -------
        ndarray
            float32 ``[pictures, d]``.

        Raises
        ------
        EmbedderError
            If a vector is missing, or NaN or infinite.
        """
        return self._checked(self.encode, pictures, "pictures", run.batch_size)

    def text(self, words: Sequence[str], *, run: Run = Run(batch_size=256)) -> NDArray[np.float32]:
        """Vectors of words: the mean over the prompts of vectors of length 1, scaled to length 1 again.

        Parameters
        ----------
        words
            Nouns, as they fit into the prompts.
        run
            Its ``batch_size`` texts are encoded at once.

        Returns
        -------
        ndarray
            float32 ``[words, d']``, to be compared with the images of :attr:`joint`.

        Raises
        ------
        EmbedderError
            If there is no text tower, no word, or a word that it can't read.
        """
        if self.encode_text is None:
            raise self._mute
        total = 0.0
        for prompt in self.prompts:
            texts = [prompt.format(word) for word in words]
            vectors = self._checked(self.encode_text, texts, "texts", run.batch_size)
            total = total + vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(total / np.linalg.norm(total, axis=1, keepdims=True), dtype=np.float32)

    @property
    def joint(self) -> Embedder:
        """The same network, giving the vectors of pictures that can be compared with those of words."""
        if self.encode_text is None or self.encode_joint is None:
            raise self._mute
        network, _, _ = self.fingerprint.rpartition("-")
        return replace(self, encode=self.encode_joint, fingerprint=f"{network}-pooled")

    @property
    def _mute(self) -> EmbedderError:
        return EmbedderError(f"{self.name} has no text tower and can't name anything; take CLIP or mini-CLIP")

    def _checked(
        self, encode: Callable[[Any], Any], items: Sequence[Any], what: str, batch_size: int
    ) -> NDArray[np.float32]:
        if not len(items):
            raise EmbedderError(f"there are no {what} to embed with {self.name}")
        parts = []
        for start in range(0, len(items), batch_size):
            some = list(items[start : start + batch_size])
            try:
                found = encode(some)
                array = found.detach().float().cpu().numpy() if isinstance(found, Tensor) else np.asarray(found)
                with np.errstate(over="ignore"):  # too large for float32 is infinite, and reported below
                    array = array.astype(np.float32)
            except PureError:
                raise
            except Exception as problem:  # anyone's function
                raise EmbedderError(
                    f"{self.name} gave no vectors of {len(some)} {what} ({type(problem).__name__}: {problem})"
                ) from problem
            if array.ndim != 2 or len(array) != len(some):
                raise EmbedderError(
                    f"{self.name} returned an array {list(array.shape)} for {len(some)} {what}; expected "
                    f"[{len(some)}, d], a vector for each"
                )
            finite = np.isfinite(array).all(axis=1)
            if not finite.all():
                raise EmbedderError(
                    f"{self.name} returned NaN or infinity for number {start + int(np.argmin(finite))} of the {what}; "
                    "check its weights, and whether half precision overflows"
                )
            parts.append(array)
        if len({part.shape[1] for part in parts}) > 1:
            raise EmbedderError(f"{self.name} returned vectors of several lengths, {[p.shape[1] for p in parts][:5]}")
        return np.concatenate(parts)


def pixels(size: int = 16) -> Embedder:
    """The null: the picture scaled to ``size`` x ``size`` pixels, and nothing else."""

    def encode(pictures: Sequence[Picture]) -> NDArray[np.float32]:
        small = [Image.fromarray(picture).resize((size, size), Image.Resampling.BILINEAR) for picture in pictures]
        return np.stack([np.asarray(picture, dtype=np.float32).ravel() / 255 for picture in small])

    return Embedder("pixels", f"pixels {size}", encode)


def from_network(
    model: nn.Module,
    layer: str | None = None,
    *,
    name: str = "network",
    size: int = 224,
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
    run: Run = Run(),
) -> Embedder:
    """Any torch network, up to a layer: a stand-in for CLIP where none is at hand.

    To judge a network by its own features says nothing: take another one than that which is studied.

    Parameters
    ----------
    model
        Takes images ``[B, 3, size, size]``.
    layer
        Whose output is taken, averaged over its positions; ``input:LAYER`` takes what enters it. What enters the last
        linear layer by default.
    name
        What to call it.
    size, mean, std
        What its pictures are scaled to and normalised by.
    run
        Where it runs: on its local device.

    Raises
    ------
    EmbedderError
        If no layer is named and there is no linear one.
    """
    if layer is None:
        linear = [label for label, module in model.named_modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise EmbedderError(f"{type(model).__name__} has no linear layer; name the layer whose output to take")
        layer = INPUT + linear[-1]
    steps = [transforms.Resize((size, size)), transforms.ToTensor(), transforms.Normalize(list(mean), list(std))]
    prepare = transforms.Compose(steps)

    def forward(images: Tensor) -> Tensor:
        with run.prepared(model):
            found = activations(model, images, [layer])[layer]
        return found if found.ndim == 2 else flatten_positions(found).mean(dim=2)

    return Embedder(name, fingerprint(model, prepare, layer), encoder(forward, prepare, run))


def encoder(
    forward: Callable[[Tensor], Tensor], prepare: Callable[[Any], Any], run: Run, network: nn.Module | None = None
) -> Encode:
    """Pictures through a network's own preparation, and through the network.

    Parameters
    ----------
    forward, prepare
        The network, and what makes its input of a picture.
    run
        Where it runs: on its local device, which is another one for a worker.
    network
        What is to be there; None where ``forward`` sees to it.
    """

    @torch.inference_mode()
    def encode(pictures: Sequence[Picture]) -> Tensor:
        if network is not None:
            network.to(run.local_device)
        return forward(torch.stack([prepare(Image.fromarray(picture)) for picture in pictures]).to(run.local_device))

    return encode


def fingerprint(model: nn.Module, prepare: object, features: str) -> str:
    """What stands for a network, what is done to its pictures, and which of its features are taken."""
    made = re.sub(r" at 0x[0-9a-f]+", "", f"{models.fingerprint(model)} {prepare!r}")
    return f"{hashlib.sha256(made.encode()).hexdigest()[:16]}-{features}"
