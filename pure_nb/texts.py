"""A word for what channels and parts of CLIP add to a picture's vector: each is switched off in its own images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pure_nb.errors import ArgumentError, StudyError
from pure_nb.images.reading import readable
from pure_nb.judges.effects import NOTHING, TextEffect, require_vocabulary, text_effect
from pure_nb.judges.zero_shot import ZeroShot
from pure_nb.methods.ablation import weakened
from pure_nb.methods.virtual import part_name
from pure_nb.network.layers import activations

if TYPE_CHECKING:
    import pandas as pd

    from pure_nb.study import Study

TOWER, WHOLE = "visual", "whole"

ROUNDING = 1e-5
"""What of a vector's length is no change: passes in single precision differ by that, in batches of other sizes."""


def text_effects(
    study: Study,
    channels: Sequence[int],
    words: Sequence[str] | None = None,
    vectors: NDArray[np.floating[Any]] | None = None,
) -> pd.DataFrame:
    """What channels of CLIP and their parts add to a picture's vector, and which words that is nearest to.

    A channel is switched off (set to 0 everywhere) in each of its reference images, one at a time, and all that comes
    after it runs anew: the difference is exact, and none where it is below 1e-5 of the vector's length. That of a part
    is the mean over the part's own images, in which the part has all of the channel. See
    :mod:`pure_nb.judges.effects` for what that follows, and where it differs.

    Parameters
    ----------
    study
        A study of a network that :func:`pure_nb.loading.load_model` made of ``"open_clip:NAME"``.
    channels
        Which ones; each takes a forward pass for each of its references, and each image that is among them one more.
    words, vectors
        The vocabulary and its vectors ``[words, d]``, of the same CLIP, such as of
        :meth:`pure_nb.judges.vectors.Embedder.text`; the network's own outputs by default.

    Returns
    -------
    DataFrame
        A row for each channel, ``part="whole"``, and for each part of a channel that is split: ``channel, part, size``,
        the number of its images; the attributes of :class:`pure_nb.judges.effects.TextEffect`; and ``strength``, the
        length of the mean effect by the mean length of the images' vectors. A channel that no image activates has a
        row of size 0, "unsure" and without numbers.

    Raises
    ------
    StudyError
        If the study's network has no words.
    ArgumentError
        If there is no such channel, words come without vectors, or the vocabulary can't be used.
    NonFiniteError
        If the network puts out NaN or infinity.

    Examples
    --------
    >>> from pure_nb import Study, load_model
    >>> model, images = load_model("open_clip:mini-clip", outputs=["cat", "house"]), torch.rand(6, 3, 64, 64)
    >>> study = Study.from_model(model, images, "visual.layer4", "visual.layer3", n_references=3, progress=False)
    >>> text_effects(study, [3])["part"][0]
    'whole'
    """
    import pandas as pd  # late, see pure_nb._imports

    if not isinstance(study.model, ZeroShot):
        raise StudyError(
            f"a {type(study.model).__name__} puts out no vector that words are compared with; load CLIP with "
            "load_model('open_clip:NAME', outputs=[...])"
        )
    if (words is None) != (vectors is None):
        raise ArgumentError("words and their vectors go together: give both, or neither for the network's own outputs")
    if words is None or vectors is None:
        words, vectors = study.model.outputs, study.model.head.weight.detach().double().cpu().numpy()
    require_vocabulary(words, vectors)
    for channel in channels:
        study.require_channel(channel)
    rows: list[dict[str, Any]] = []
    known: dict[int, NDArray[np.float64]] = {}
    for channel in channels:
        active = study.references.active[channel]
        if not active.any():
            rows.append({"channel": channel, "part": WHOLE, "size": 0, **asdict(NOTHING), "strength": np.nan})
            continue
        whole, change = added(study, channel, study.references.sample[channel][active], known)
        parts = study.virtual_of(channel)
        labels = parts.labels[active]
        each = [(part_name(place), labels == place) for place in range(parts.k if parts.k > 1 else 0)]
        for part, rows_of in [(WHOLE, np.ones(len(change), dtype=np.bool_)), *each]:
            own = change[rows_of]
            strength = np.linalg.norm(own.mean(axis=0)) / np.linalg.norm(whole[rows_of], axis=1).mean()
            found = asdict(text_effect(own, words, vectors, seed=study.parameters.seed))
            rows.append({"channel": channel, "part": part, "size": len(own), **found, "strength": float(strength)})
    names = [field.name for field in fields(TextEffect)]
    return pd.DataFrame(rows, columns=["channel", "part", "size", *names, "strength"])


def added(
    study: Study, channel: int, sample: NDArray[np.int64], known: dict[int, NDArray[np.float64]] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The vectors of some images by CLIP's visual tower, and what of them is there by a channel, ``[n, d]`` each.

    Parameters
    ----------
    study, channel
        Of CLIP, and the channel that is switched off.
    sample
        int ``[n]``: the images.
    known
        Vectors of whole images by their index: those that are there are not computed again, others are put in.
    """
    model, target = study.model, study.parameters.target
    known = {} if known is None else known
    off = partial(weakened, channel=np.array([channel]))
    without: list[NDArray[np.float64]] = []
    with study.run.prepared(model), torch.no_grad():
        for batch in readable(study.images, sample.tolist(), run=study.run):
            images = batch.images.to(study.run.local_device)
            change = {target: partial(off, share=np.ones((len(images), 1)))}
            new = [place for place, number in enumerate(batch.samples.tolist()) if number not in known]
            if new:
                vectors = activations(model, images[new], [TOWER])[TOWER].double().cpu().numpy()
                known |= zip(batch.samples[new].tolist(), vectors)
            without += [*activations(model, images, [target, TOWER], changes=change)[TOWER].double().cpu().numpy()]
    whole = np.stack([known[number] for number in sample.tolist()])
    change_of = whole - np.stack(without)
    change_of[np.linalg.norm(change_of, axis=1) <= ROUNDING * np.linalg.norm(whole, axis=1)] = 0
    return whole, change_of
