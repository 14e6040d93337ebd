"""CLIP as the network that is studied: its visual tower, with words as its outputs.

A logit of CLIP is the cosine of a picture's vector with that of a word, times a scale. So words are a linear layer
above the visual tower, and all that can be asked of a classifier can be asked of CLIP (Radford et al. 2021, section
3.1): which classes a channel is relevant to, why it said so, and what a part does to any word if it is switched off,
which is the part's own effect in terms of text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from pure_nb.errors import ArgumentError, EmbedderError, ModelError

PROMPTS = ("a photo of a {}.",)


class ZeroShot(nn.Module):
    """A visual tower and a linear layer of words: from images to logits ``[B, words]``.

    Parameters
    ----------
    visual
        From images to vectors ``[B, d]``.
    vectors
        float ``[words, d]``: those of the words, of any length but 0.
    outputs
        The words, as outputs are called.
    scale
        What cosines are multiplied by; 100 in most trained models.

    Examples
    --------
    >>> model = ZeroShot(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), torch.rand(2, 4), ["cat", "dog"])
    >>> model(torch.rand(3, 3, 2, 2)).shape
    torch.Size([3, 2])
    """

    def __init__(self, visual: nn.Module, vectors: Tensor, outputs: Sequence[str], scale: float = 100.0) -> None:
        super().__init__()
        if len(outputs) != len(vectors):
            raise ArgumentError(f"expected a vector for each of {len(outputs)} words, got {list(vectors.shape)}")
        self.visual, self.outputs = visual, tuple(outputs)
        self.head = nn.Linear(vectors.shape[1], len(vectors), bias=False, device=vectors.device)
        self.head.weight = nn.Parameter(scale * normalize(vectors.detach().clone().float(), dim=1))

    @classmethod
    def of(
        cls,
        clip: Any,
        outputs: Sequence[str],
        *,
        prompts: Sequence[str] = PROMPTS,
        tokenizer: Callable[[list[str]], Tensor],
    ) -> ZeroShot:
        """The visual tower of a model of open_clip, and words.

        Parameters
        ----------
        clip
            The model.
        outputs
            Words to take the place of ``{}``; for whole texts say ``prompts=["{}"]``.
        prompts
            Texts around a word; the vectors of all of them are averaged, as in CLIP's paper.
        tokenizer
            From texts to what the model reads: ``open_clip.get_tokenizer(NAME)``.

        Raises
        ------
        ArgumentError
            If there are no words, or one twice.
        ModelError
            If it is no such model.
        """
        if not outputs or len(set(outputs)) < len(outputs):
            raise ArgumentError(f"outputs are words, each of them once, got {list(outputs)}")
        if not all("{}" in one for one in prompts):
            raise ArgumentError(f"each prompt has a {{}} for the word, got {list(prompts)}")
        if not all(hasattr(clip, name) for name in ("visual", "encode_text", "logit_scale")):
            raise ModelError(f"expected a model of open_clip, with visual and encode_text, got a {type(clip).__name__}")
        clip.eval()
        with torch.no_grad():
            place = clip.logit_scale.device
            texts = [tokenizer([one.format(word) for word in outputs]).to(place) for one in prompts]
            each = [normalize(clip.encode_text(text), dim=1) for text in texts]
            return cls(clip.visual, torch.stack(each).mean(dim=0), outputs, float(clip.logit_scale.exp())).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the words, float ``[B, words]``."""
        logits: Tensor = self.head(normalize(self.visual(images), dim=1).to(self.head.weight.dtype))
        return logits


def open_clip_network(
    name: str,
    weights: str | Path | None = None,
    *,
    outputs: Sequence[str] = (),
    prompts: Sequence[str] | None = None,
    folder: Path = Path(),
) -> ZeroShot:
    """The network of ``"open_clip:NAME"``, for :func:`pure_nb.loading.load_model`.

    Parameters
    ----------
    name
        ``MODEL/TAG`` as open_clip knows them, such as ``ViT-B-32/laion2b_s34b_b79k``; ``hf-hub:ORG/NAME``;
        ``local-dir:FOLDER``; or ``mini-clip``, the one that ships.
    weights
        A file of weights instead of a tag.
    outputs, prompts
        As for :meth:`ZeroShot.of`.
    folder
        What relative paths start from.

    Raises
    ------
    ModelError
        If it is not known, or its weights can't be had.
    """
    from pure_nb.judges.embedders import mini_clip_parts, open_clip_model  # late: they take a second to import

    tokenizer = None
    if name == "mini-clip":
        (name, tokenizer), prompts = mini_clip_parts(), prompts or ("a {}",)
    kind, _, place = name.partition(":")
    if kind == "local-dir":
        name = f"local-dir:{folder / place}"
    if place and weights:
        raise ModelError(f"open_clip:{name} brings its own weights; leave out weights={str(weights)!r}")
    model, _, tag = (name, "", "") if place else name.partition("/")
    try:
        clip, _, read = open_clip_model(model, folder / weights if weights else tag, tokenizer)
    except EmbedderError as problem:
        raise ModelError(str(problem)) from problem
    return ZeroShot.of(clip, outputs, prompts=prompts or PROMPTS, tokenizer=read)
