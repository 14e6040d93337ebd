"""Search by meaning: which parts of a study's neurons show what a word or a picture shows, and which are alike."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets.folder import is_image_file

from pure_nb.errors import ArgumentError, EmbedderError, ImageError
from pure_nb.images.sources import Reader, as_images
from pure_nb.judges.alike import Parts
from pure_nb.methods.virtual import part_name

if TYPE_CHECKING:
    import pandas as pd

    from pure_nb.judges.embedders import Embedder
    from pure_nb.study import Study


def part_labels(study: Study) -> NDArray[np.int64]:
    """Which part each reference belongs to, int64 ``[channels, n]``; -1 where it does not activate the channel."""
    return np.where(study.references.active, np.stack([parts.labels for parts in study.virtual]), -1)


def parts_seen(study: Study, embedder: Embedder) -> Parts:
    """The parts of a study's neurons by an embedder's vectors, those that can be compared with words if it has such."""
    seen = embedder if embedder.encode_text is None else embedder.joint
    return Parts.of(study.crops.embeddings(seen), part_labels(study))


def search(study: Study, query: Any, embedder: Embedder | str | None = None) -> pd.DataFrame:
    """Find the parts that show what a word or a picture shows; those of neurons left whole are called A.

    Parameters
    ----------
    study
        Any study.
    query
        A word or a few; or a picture: a path, also as text that ends like a picture's file; an image of PIL's; an
        array ``[H, W, 3]`` or a tensor ``[3, H, W]``, whole numbers as colours, others as the network's input.
    embedder
        Whose vectors are compared, or its name as for :func:`pure_nb.judges.embedders.load_embedder`; CLIP by default,
        and for the glyphs that ship ``"mini-clip"``. One without a text tower finds pictures only.

    Returns
    -------
    DataFrame
        All parts, the nearest first: ``channel, part, size``; ``score``, the mean cosine of the part's crops with the
        query beyond the mean over all crops of all neurons; and ``q``, the share of the parts down to this one that is
        expected to be there by chance, see :meth:`pure_nb.judges.alike.Parts.q_values`.

    Raises
    ------
    EmbedderError
        If a word is looked for with an embedder that has no text tower, or does not know it.
    ImageError
        If the picture can't be read.

    Examples
    --------
    >>> study.search("cat", load_embedder("mini-clip")).columns.tolist()
    ['channel', 'part', 'size', 'score', 'q']
    """
    import pandas as pd  # late, see pure_nb._imports

    embedder = _loaded(study, embedder)
    vector = _vector(study, query, embedder)
    parts = parts_seen(study, embedder)
    table = pd.DataFrame({
        "channel": parts.channel,
        "part": [part_name(part) for part in parts.part.tolist()],
        "size": parts.size,
        "score": parts.scores(vector)[0],
        "q": parts.q_values(vector)[0],
    })  # fmt: skip
    return table.sort_values("score", ascending=False, kind="stable", ignore_index=True)


def alike(study: Study, embedder: Embedder | str | None = None, count: int = 6) -> pd.DataFrame:
    """For each part, those of other neurons that are the most alike.

    Parameters
    ----------
    study, embedder
        As for :func:`search`.
    count
        How many of each.

    Returns
    -------
    DataFrame
        ``channel, part``; ``channel_2, part_2``, the nearest first; ``cosine`` of their centres, less that of all
        crops; and whether they are ``redundant``, see :meth:`pure_nb.judges.alike.Parts.redundant`.

    Examples
    --------
    >>> study.alike(load_embedder("mini-clip"), count=1).columns.tolist()
    ['channel', 'part', 'channel_2', 'part_2', 'cosine', 'redundant']
    """
    import pandas as pd  # late, see pure_nb._imports

    if count < 1:
        raise ArgumentError(f"at least one part is shown beside each, got count={count}")
    parts = parts_seen(study, _loaded(study, embedder))
    place, cosine = parts.nearest(count)
    one, other = np.repeat(np.arange(len(place)), place.shape[1]), place.ravel()
    table = pd.DataFrame({
        "channel": parts.channel[one],
        "part": [part_name(part) for part in parts.part[one].tolist()],
        "channel_2": parts.channel[other],
        "part_2": [part_name(part) for part in parts.part[other].tolist()],
        "cosine": cosine.ravel(),
        "redundant": parts.redundant(one, other),
    })  # fmt: skip
    return table[np.isfinite(table["cosine"])].reset_index(drop=True)


def _loaded(study: Study, embedder: Embedder | str | None) -> Embedder:
    if embedder is not None and not isinstance(embedder, str):
        return embedder
    from pure_nb.judges.embedders import load_embedder  # open_clip takes a second to import

    return load_embedder(embedder or ("mini-clip" if study.images.drawn else "clip"), run=study.run)


def _vector(study: Study, query: Any, embedder: Embedder) -> NDArray[np.float32]:
    """The vector ``[1, d]`` of what is looked for."""
    if isinstance(query, str) and not is_image_file(query):
        if not query.strip():
            raise EmbedderError("there is no word to look for; name one, or a picture")
        if embedder.encode_text is None:
            raise EmbedderError(
                f"{embedder.name} has no text tower and can't look for the word {query!r}; look for a picture, or take "
                "CLIP or mini-CLIP"
            )
        return embedder.text([query])
    seen = embedder if embedder.encode_text is None else embedder.joint
    return seen.images([_picture(study, query)])


def _picture(study: Study, query: Any) -> NDArray[np.uint8]:
    """What is looked for, as uint8 ``[H, W, 3]``."""
    if isinstance(query, (str, os.PathLike, Image.Image)):
        try:
            return np.asarray(Reader(turned=True)(query))
        except (OSError, ValueError) as problem:
            raise ImageError(f"{str(query)!r} can't be read as a picture: {problem}") from problem
    if not isinstance(query, (np.ndarray, torch.Tensor)) or query.ndim != 3:
        told = f"shape {list(query.shape)}" if hasattr(query, "shape") else type(query).__name__
        raise ImageError(f"expected a word or a picture, of three dimensions if an array or a tensor, got {told}")
    mean, std = study.images.normalisation or (None, None)
    return as_images(query[None], "the picture", mean=mean, std=std).picture(0)
