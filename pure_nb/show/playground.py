"""The small network alive in a page: glyphs to place and turn, and what a neuron makes of them, without a kernel.

Everything is computed by a script in the page, ``playground.js``: the network forward, and of one channel backward to
the lower layer, as :mod:`pure_nb.methods.circuits` does. What it needs to know is here: the weights, with batch norms
folded in, the outlines of the glyphs, and the virtual neurons.
"""

from __future__ import annotations

import base64
import copy
import html
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pure_nb._imports import needed
from pure_nb.compute.store import write_text
from pure_nb.errors import StudyError
from pure_nb.figures.colours import part_colour
from pure_nb.glyphs.font import CLASSES, svg_path
from pure_nb.glyphs.network import GlyphNet
from pure_nb.glyphs.scenes import CELL, SIZE
from pure_nb.images.data import MEAN, STD
from pure_nb.methods.virtual import part_name
from pure_nb.reasons.parts import Parts
from pure_nb.show.widgets import BOOK, SITE

with needed("show", "the playground needs"):
    from IPython.display import HTML

if TYPE_CHECKING:
    from pure_nb.study import Study

STATIC = Path(__file__).parent / "static" / "playground"


def playground(study: Study, start: int = 22, *, caption: str = "") -> HTML:
    """A scene to be changed by hand, and what the small network makes of it.

    Parameters
    ----------
    study
        Of the network that ships, at its last stage through the one before, with circuits by gradient.
    start
        The neuron to start at.
    caption
        What is shown, and what to see in it.

    Returns
    -------
    HTML
        To be shown as the last line of a cell. In the built book its data are a file beside the pages, which is read
        when a reader asks for it.

    Raises
    ------
    StudyError
        If the study is another one.

    Examples
    --------
    >>> shown = playground(study)  # the last line of a cell shows it
    """
    told = f"window.pureNbNetwork = {json.dumps(network_data(study)).replace('<', chr(92) + 'u003c')};\n"
    code, style = ((STATIC / f"playground.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    folder, root = os.environ.get(BOOK), f"{SITE}/playground/"
    where = f' data-network="{root}network.js"' if folder else ""
    figure = f'<figure class="playground" data-start="{int(start)}"{where}><noscript>It needs JavaScript.</noscript>'
    figure += f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    if not folder:
        return HTML(f"<style>{style}</style>{figure}<script>{told}{code}</script>")  # type: ignore[no-untyped-call]
    for name, text in (("network.js", told), ("playground.js", code), ("playground.css", style)):
        write_text(Path(folder) / "playground" / name, text)
    link, script = f'<link rel="stylesheet" href="{root}playground.css">', f"{root}playground.js"
    return HTML(f'{link}{figure}<script src="{script}" defer></script>')  # type: ignore[no-untyped-call]


def network_data(study: Study) -> dict[str, Any]:
    """All that the script knows: weights, glyphs and virtual neurons.

    Parameters
    ----------
    study
        As for :func:`playground`.
    """
    p = study.parameters
    model: Any = study.model
    if not isinstance(model, GlyphNet) or not study.images.drawn:
        raise StudyError(
            f"only the small network and its scenes run in a page, and {study.name!r} studies {type(model).__name__}: "
            'load_study("glyphs")'
        )
    asked = p.target, p.lower, p.rule, p.start, p.ranked_by, p.references
    if asked != ("layer4", "layer3", "gradient", "activation", "max", "top") or study.combined:
        raise StudyError(
            "only circuits of 'layer4' through 'layer3' by gradient, from all positions, with references by maximum, "
            "run in a page"
        )
    head: Any = model.fc
    parts = Parts(study)
    living: list[int] = np.flatnonzero(study.references.alive).tolist()
    weights: list[NDArray[np.float32]] = []

    def kept(values: Tensor) -> int:
        weights.append(values.detach().float().cpu().numpy().ravel())
        return sum(map(len, weights[:-1]))

    def convolution(conv: Any, norm: Any) -> dict[str, int]:
        both: Any = fuse_conv_bn_eval(*(copy.deepcopy(own).double().eval() for own in (conv, norm)))
        shape = {"o": both.out_channels, "i": both.in_channels, "k": both.kernel_size[0]}
        return {**shape, "s": both.stride[0], "p": both.padding[0], "w": kept(both.weight), "b": kept(both.bias)}

    def block(stage: Any) -> dict[str, Any]:
        (own,) = stage
        down = None if own.downsample is None else convolution(*own.downsample)
        return {"first": convolution(own.conv1, own.bn1), "second": convolution(own.conv2, own.bn2), "down": down}

    return {
        "size": SIZE,
        "cell": CELL,
        "mean": MEAN,
        "std": STD,
        "stem": convolution(model.conv1, model.bn1),
        "blocks": [block(getattr(model, f"layer{number}")) for number in range(1, 5)],
        "head": {"w": kept(head.weight), "b": kept(head.bias)},
        "neurons": {str(channel): _neuron(parts, channel, kept) for channel in living},
        "classes": [{"name": one.name, "path": svg_path(one.character)} for one in CLASSES],
        "weights": base64.b64encode(np.concatenate(weights).astype("<f4").tobytes()).decode(),
    }


def _neuron(parts: Parts, channel: int, kept: Any) -> dict[str, Any]:
    """The virtual neurons of a channel, how far each reaches, and what its pictures mostly show."""
    study, score = parts.study, parts.study.references.score[channel]
    found, limits = parts.of(channel)
    assert study.objects is not None
    seen = study.objects[channel]
    return {
        "centres": kept(torch.from_numpy(found.centroids)),
        "limits": limits.tolist(),
        "names": [part_name(part) if found.k > 1 else "" for part in range(found.k)],
        "meanings": [parts.name(channel, part) for part in range(found.k)],
        "colours": [part_colour(part) for part in range(found.k)],
        "strongest": float(score.max()),
        "weakest": float(score.min()),
        "usual": int(np.bincount(seen[seen >= 0], minlength=1).argmax()),
    }
