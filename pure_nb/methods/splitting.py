"""Splitting: a channel that means k things becomes k channels and a residual, and the network computes the same.

Hesse et al. (2025, arXiv 2504.12939) do it for two classes; here it is done for any k concepts, be they classes
or the virtual neurons of PURE. A channel c of a convolution or linear layer is a sum over *sources*, the input channels
of the layer. Each concept has an average relevance vector (ARV) that says how much each source brings to c on the
concept's images. A source that clearly belongs to one concept is owned by it (:func:`owners`), the others are shared.
Then

- ``d_v``, the part of concept v, is c without the sources that *other* concepts own,
- ``r``, the residual, is c with the shared sources only,

each with c's bias, and ``c = d_1 + ... + d_k - (k - 1) r`` whatever the assignment: every owned source is in one part,
every shared one in all k, of which the residual takes back k - 1. So the split explains the channel without changing
what the network does (:func:`split_channel`), and how well it does so can be measured (:func:`part_activations`).
"""

from __future__ import annotations

import copy
import difflib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pure_nb.compute.store import write_atomically
from pure_nb.errors import ArgumentError, LayerError, ModelError, NonFiniteError, StudyWarning
from pure_nb.images.data import Images
from pure_nb.images.reading import readable
from pure_nb.methods.relevance import Clamp, attributed, carried
from pure_nb.network.layers import INPUT, OUTPUT, activations, channel_axis, computes_plainly, get_layer, resting

if TYPE_CHECKING:
    import pandas as pd

RHOS = tuple(round(0.05 * step, 2) for step in range(1, 21))
"""Thresholds that the paper tries: 0.05, 0.10 ... 1.00."""

SHARED = -1
"""The owner of a source that belongs to no concept alone."""

Score = Literal["ratio", "bounded"]
Ownership = Literal["symmetric", "published"]
Weighted = nn.Conv2d | nn.Linear


def owners(arvs: ArrayLike, rho: float, ownership: Ownership = "symmetric") -> NDArray[np.int64]:
    """Which concept each source belongs to (Hesse et al., their rule for rho where k = 2).

    Source i belongs to concept v if ``rho * ARV_v,i > max over the other concepts w of ARV_w,i``.

    Parameters
    ----------
    arvs
        float ``[k, sources]``: the average relevance vector of each concept, any unit.
    rho
        Threshold in (0, 1]. The smaller, the more sources are shared by the symmetric rule.
    ownership
        With ``"symmetric"`` negative entries count as 0: relevance is taken as evidence *for* a concept, and the order
        of the concepts does not matter. ``"published"`` compares as the paper writes it, which turns the comparison
        around where all entries are negative: with rho below 1 such a source is never shared, and of several concepts
        that pass, the first gets it.

    Returns
    -------
    ndarray
        int64 ``[sources]``: a concept, 0 to k - 1, or -1 for a shared source. Ties are shared, but for negative ones by
        the published rule.

    Raises
    ------
    ArgumentError
        If there are fewer than two concepts, an entry is NaN or infinite, rho is out of range, or there is no such
        rule.
    """
    evidence = np.asarray(arvs, dtype=np.float64)
    if evidence.ndim != 2:
        raise ArgumentError(f"expected average relevance vectors of shape [k, sources], got {list(evidence.shape)}")
    if len(evidence) < 2:
        raise ArgumentError(
            f"a channel is split between at least two concepts, got {len(evidence)} average relevance vector"
        )
    if not np.isfinite(evidence).all():
        concept, source = np.argwhere(~np.isfinite(evidence))[0]
        raise ArgumentError(
            f"the average relevance vector of concept {concept} is {evidence[concept, source]} at source {source}; "
            "leave out the images that cause it"
        )
    if not 0 < rho <= 1:
        raise ArgumentError(f"rho must be above 0 and at most 1, got {rho}")
    if ownership not in ("symmetric", "published"):
        raise ArgumentError(f"ownership must be 'symmetric' or 'published', got {ownership!r}")
    if ownership == "symmetric":
        evidence = evidence.clip(min=0)
    best, largest = np.sort(evidence, axis=0)[:-3:-1].copy(), evidence.argmax(axis=0)
    rest = np.where(np.arange(len(evidence))[:, None] == largest, best[1], best[0])  # the largest of the others
    passes = rho * evidence > rest
    return np.where(passes.any(axis=0), passes.argmax(axis=0), SHARED).astype(np.int64)


def channel_sources(module: nn.Module, channel: int) -> slice:
    """Which channels of a ``Conv2d``'s or ``Linear``'s input are sources of a channel: all, or those of its group."""
    assert isinstance(module, Weighted)
    outputs, sources = module.weight.shape[:2]
    first = 0 if isinstance(module, nn.Linear) else channel // (outputs // module.groups) * sources
    return slice(first, first + sources)


def _axis(module: Weighted) -> int:
    """Where a layer's channels are, counted from the end, since a convolution also takes a single picture."""
    return -1 if isinstance(module, nn.Linear) else -3


class SplitChannel(nn.Module):
    """A convolution or linear layer, one of whose channels is put together from its parts.

    Made by :func:`split_channel`, which checks the arguments. The parts are a layer of their own, so they can be
    studied under the name ``"<layer>.parts"`` like any other: k channels for the concepts, then the residual.
    Gradients through a split layer are those of the original. The rules of layer-wise relevance propagation are not
    made for the sum that joins the parts; with them, start at the parts and not above.

    Parameters
    ----------
    whole
        The layer to split; it is kept as it is, as ``whole``.
    channel
        The channel of it.
    owner
        int64 ``[sources]``: see :func:`owners`.
    k
        Number of concepts.

    Attributes
    ----------
    whole
        The original layer. All channels but one are its.
    parts
        A layer of the same geometry with k + 1 channels: ``d_1 ... d_k, r``.
    k
        Number of concepts.
    channel, owner
        Buffers, int64 ``[1]`` and ``[sources]``, so that a saved state holds the split and not its weights only.
    """

    if TYPE_CHECKING:  # TorchScript does not read annotations that are kept as text
        channel: Tensor
        owner: Tensor

    def __init__(self, whole: Weighted, channel: int, owner: NDArray[np.int64], k: int) -> None:
        super().__init__()
        self.whole: nn.Module = whole
        self.parts: nn.Module = _masked(whole, channel, _taken(owner, k))
        # zennit's canonizers merge a batch norm into the convolution right before it, which must not be the parts.
        self.join = nn.Identity()
        # Plain numbers, kept here since the whole, or the parts, may be split in turn; and for TorchScript.
        self.k = k
        self.axis = _axis(whole)
        self.sources = len(owner)
        self.group = len(whole.weight) // (1 if isinstance(whole, nn.Linear) else whole.groups)
        device = whole.weight.device
        self.register_buffer("channel", torch.tensor([channel], device=device))
        self.register_buffer("owner", torch.tensor(owner, device=device))
        self.train(whole.training)

    def forward(self, input: Tensor) -> Tensor:
        """What the whole layer puts out, its channel computed as ``sum_v d_v - (k - 1) r``."""
        entering = input
        if input.shape[self.axis] != self.sources:
            first = self.channel // self.group * self.sources
            entering = input.index_select(self.axis, first + torch.arange(self.sources, device=input.device))
        parts = self.parts(entering)
        concepts = parts.narrow(self.axis, 0, self.k)
        residual = parts.narrow(self.axis, self.k, 1)
        joined = concepts.sum(dim=self.axis, keepdim=True) - (self.k - 1) * residual
        output: Tensor = self.whole(input)
        # Not in place, as hooks may hold the output.
        joint: Tensor = self.join(output.index_copy(self.axis, self.channel, joined))
        return joint


def split_channel(model: nn.Module, layer: str, channel: int, owner: ArrayLike, k: int = 2) -> nn.Module:
    """A copy of a network in which one channel of a layer is split; it computes the same (Hesse et al., disentangling).

    The chapter :doc:`Splitting a channel </book/splitting>` builds it from scratch.

    :func:`save_split` and :func:`load_split` keep it in a file.

    Parameters
    ----------
    model
        Any network; it is left as it is.
    layer
        Name of a ``Conv2d`` or ``Linear`` in it. If a channel of it is split already, another one is split beside it.
    channel
        A channel of it.
    owner
        int64 ``[sources]``: which concept each source belongs to, -1 for shared ones; see :func:`owners`. The sources
        are the layer's input channels; with groups, those of the channel's group.
    k
        Number of concepts, at least 2; some may own nothing.

    Returns
    -------
    Module
        With a :class:`SplitChannel` under the layer's name.

    Raises
    ------
    LayerError
        If the layer is missing or neither a ``Conv2d`` nor a ``Linear``.
    ArgumentError
        If it has no such channel.
    ArgumentError
        If the owners do not fit the layer or k.
    """
    name = layer
    while isinstance(outer := get_layer(model, layer), SplitChannel):
        if int(outer.channel) == channel:
            raise ArgumentError(f"channel {channel} of layer {name!r} is split already; merge_back undoes that")
        layer += ".whole"
    module = _splittable(model, layer, channel)
    owner = np.asarray(owner)
    sources = module.weight.shape[1]
    if k < 2:
        raise ArgumentError(f"a channel is split between at least two concepts, got k={k}")
    if owner.shape != (sources,) or owner.dtype.kind not in "iu":
        raise ArgumentError(
            f"channel {channel} of layer {layer!r} has {sources} sources, so owner must be {sources} integers, got "
            f"{owner.dtype} {list(owner.shape)}"
        )
    if not SHARED <= owner.min() <= owner.max() < k:
        raise ArgumentError(
            f"an owner must be a concept from 0 to {k - 1}, or -1 for a shared source, got {owner.min()} to "
            f"{owner.max()}; pass k, the number of concepts, if there are more"
        )
    split = copy.deepcopy(model)
    inside: Any = get_layer(split, layer)
    split.set_submodule(layer, SplitChannel(inside, channel, owner.astype(np.int64), k))
    return split


def save_split(model: nn.Module, split: Split, path: Path | str) -> None:
    """Write the weights of a network with a split channel, and what was split, to a ``.safetensors`` file.

    Parameters
    ----------
    model
        The network that the split was made for, as it was before.
    split
        From :meth:`pure_nb.classes.Classes.split`.
    path
        The file; written as a whole or not at all.
    """
    state = {
        name: value.contiguous().clone()
        for name, value in split.model(model).state_dict().items()
        if isinstance(value, Tensor)  # a module's extra state may be anything
    }
    measured = split.activations
    note = {
        "layer": measured.layer,
        "channel": measured.channel,
        "concepts": split.concepts,
        "rho": split.rho,
        "owner": split.owner.tolist(),
    }
    metadata = {name: json.dumps(value) for name, value in note.items()}
    write_atomically(Path(path), lambda temporary: save_file(state, temporary, metadata))


def load_split(model: nn.Module, path: Path | str) -> nn.Module:
    """A copy of a network with the split of a file of :func:`save_split`.

    Parameters
    ----------
    model
        The network that was split, with the same weights and without the split.
    path
        The file.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ModelError
        If it was not written by :func:`save_split`, or holds a split of another network: of another architecture, or
        with other weights.
    """
    try:
        with safe_open(path, "pt") as file:
            note = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
        layer, channel, concepts, owner = (note[name] for name in ("layer", "channel", "concepts", "owner"))
    except (SafetensorError, OSError, KeyError, ValueError) as problem:
        if not Path(path).is_file():
            raise
        raise ModelError(
            f"{path} is not a file of save_split; expected its tensors and notes: {problem!r}"
        ) from problem
    try:
        split = split_channel(model, layer, channel, np.array(owner), len(concepts))
        difference = _difference(state, split.state_dict())
    except (LayerError, ArgumentError) as problem:
        difference = str(problem)
    if difference:
        raise ModelError(
            f"{path} holds a split of another network than this {type(model).__name__}: {difference}. Give load_split "
            "the network that was split, with its weights"
        )
    return split


def _difference(saved: Mapping[str, Tensor], own: Mapping[str, Any]) -> str:
    """How a network's state differs from a saved one, in words; "" if it does not."""
    here = {name: value for name, value in own.items() if isinstance(value, Tensor)}
    for names, where in ((saved.keys() - here.keys(), "in the file"), (here.keys() - saved.keys(), "in the network")):
        if names:
            return f"{min(names)!r} is only {where}"
    for name, value in here.items():
        there = saved[name]
        if (value.shape, value.dtype) != (there.shape, there.dtype):
            first, second = (f"{tensor.dtype} {list(tensor.shape)}" for tensor in (there, value))
            return f"{name!r} is {first} in the file and {second} in the network"
    for name, value in here.items():
        if not torch.equal(value.cpu(), saved[name]):
            apart = (value.cpu().double() - saved[name].double()).abs().max().item()
            return f"the weights {name!r} differ by up to {apart:.2g}"
    return ""


def merge_back(model: nn.Module, layer: str) -> nn.Module:
    """A copy of a network in which a split layer is one plain layer again; it computes the same.

    The channel's weights are put together from those of its parts, ``sum_v d_v - (k - 1) r``. So what was changed in
    the parts stays changed.

    Parameters
    ----------
    model
        Any network; it is left as it is.
    layer
        Name of a layer that :func:`split_channel` has split. All splits of it are undone.

    Raises
    ------
    LayerError
        If the layer is missing or not split.
    """
    module = get_layer(model, layer)
    if not isinstance(module, SplitChannel):
        split = [name for name, candidate in model.named_modules() if isinstance(candidate, SplitChannel)]
        raise LayerError(
            f"layer {layer!r} is a {type(module).__name__} that is not split; split are: "
            f"{', '.join(map(repr, split)) or 'none'}"
        )
    merged = copy.deepcopy(model)
    merged.set_submodule(layer, _merged(get_layer(merged, layer)))
    return merged


def _merged(module: nn.Module) -> Weighted:
    """A layer, whether split or not, as a plain one."""
    if not isinstance(module, SplitChannel):
        return module  # type: ignore[return-value]
    whole, parts = _merged(module.whole), _merged(module.parts)
    with torch.no_grad():
        for name, joint in whole.named_parameters():
            part = parts.get_parameter(name).double()  # where k equal weights minus k - 1 of them are exactly one
            joint[int(module.channel)] = (part[: module.k].sum(dim=0) - (module.k - 1) * part[module.k]).to(joint.dtype)
    return whole


@dataclass(frozen=True, eq=False)
class PartActivations:
    """How strongly a channel and its parts are driven by images, for several thresholds.

    In the units of the activation. A pooled positive part, ``x+ = sum over positions of max(x, 0)``, says how active
    something is; a signed sum over the positions how much there is of it, of either sign.

    Attributes
    ----------
    layer, channel
        What was split.
    sample
        int64 ``[images]``: numbers of the images.
    rhos
        float64 ``[rhos]``: the thresholds of :func:`owners`.
    parts
        float32 ``[images, rhos, k + 1]``: ``d_1+ ... d_k+`` and ``r+``.
    original
        float32 ``[images]``: the channel as it was, ``c+``.
    relevant
        bool ``[images]``: where the channel is relevant to the image's class; everywhere if no class was named.
    signed_parts, signed_original
        As ``parts`` and ``original``, but signed sums.
    ownership
        The rule by which the parts were made; see :func:`owners`.
    """

    layer: str
    channel: int
    sample: NDArray[np.int64]
    rhos: NDArray[np.float64]
    parts: NDArray[np.float32]
    original: NDArray[np.float32]
    relevant: NDArray[np.bool_]
    signed_parts: NDArray[np.float32]
    signed_original: NDArray[np.float32]
    ownership: Ownership = "symmetric"

    @property
    def k(self) -> int:
        """Number of concepts."""
        return self.parts.shape[2] - 1

    def at(self, rho: float, *, signed: bool = False) -> NDArray[np.float32]:
        """The parts at one threshold, positive or signed: float32 ``[images, k + 1]``.

        Raises
        ------
        ArgumentError
            If the threshold is not among those measured.
        """
        near = np.flatnonzero(np.isclose(self.rhos, rho))
        if not len(near):
            raise ArgumentError(f"rho={rho} was not measured; measured are {self.rhos.tolist()}")
        return (self.signed_parts if signed else self.parts)[:, near[0]]

    def only(self, chosen: NDArray[np.bool_]) -> PartActivations:
        """Those of some of the images, bool ``[images]``."""
        some: dict[str, Any] = {name: getattr(self, name)[chosen] for name in _BY_IMAGE}
        return replace(self, **some)

    def followed_by(self, more: PartActivations) -> PartActivations:
        """The same with other images after its own."""
        both: dict[str, Any] = {name: np.concatenate([getattr(self, name), getattr(more, name)]) for name in _BY_IMAGE}
        return replace(self, **both)


_BY_IMAGE = ("sample", "parts", "original", "relevant", "signed_parts", "signed_original")


def part_activations(
    model: nn.Module,
    images: Images,
    samples: ArrayLike,
    *,
    layer: str,
    channel: int,
    arvs: ArrayLike,
    rhos: Sequence[float] = RHOS,
    ownership: Ownership = "symmetric",
    labels: ArrayLike | None = None,
    share: float = 0.03,
    mass: float | None = None,
    clamp: Clamp = "channels",
    batch_size: int = 32,
    device: str = "cpu",
    workers: int = 0,
) -> PartActivations:
    """Activations of a channel and of its parts at every threshold, in one pass over some images.

    No network is split for it: the network runs up to the layer's input, and the parts of all thresholds are computed
    from that as the channels of one layer. With labels it runs on to its end, and backward to the layer.

    Parameters
    ----------
    model, images
        What to run over what.
    samples
        int ``[images]``: numbers of the images wanted.
    layer, channel
        A channel of a ``Conv2d`` or ``Linear``.
    arvs
        float ``[k, sources]``: see :func:`owners`.
    rhos, ownership
        Thresholds, and the rule; see :func:`owners`.
    labels
        int ``[images]``: the network's output for the class of each image, to find out where the channel is relevant.
    share, mass
        When it is; see :func:`pure_nb.methods.relevance.carried`.
    clamp
        What of the attribution is set to 0 where it is negative: the sums of whole ``"channels"``, or each of the
        ``"positions"``, as for the paper's table; see :func:`pure_nb.methods.relevance.attributed`.
    batch_size, device, workers
        As for :func:`pure_nb.compute.sweep.sweep`.

    Raises
    ------
    LayerError, IndexError
        As :func:`split_channel`; also for an image that does not exist.
    ArgumentError
        As :func:`owners`, and if the vectors do not have an entry for each source.
    ImageError
        If an image can't be read.
    NonFiniteError
        If an activation is NaN or infinite.
    """
    module = _splittable(model, layer, channel)
    samples = np.asarray(samples, dtype=np.int64)
    if samples.ndim != 1 or not len(samples):
        raise ArgumentError(f"samples must be a vector with at least one image, got the shape {list(samples.shape)}")
    if not 0 <= samples.min() <= samples.max() < len(images):
        raise ArgumentError(
            f"image {samples.max()} (lowest {samples.min()}) of {len(images)} images of {images.name!r}"
        )
    if clamp not in ("channels", "positions"):
        raise ArgumentError(f"clamp must be 'channels' or 'positions', got {clamp!r}")
    owner = [owners(arvs, rho, ownership) for rho in rhos]
    k, sources = np.shape(arvs)
    if not owner or sources != module.weight.shape[1]:
        raise ArgumentError(
            f"channel {channel} of layer {layer!r} has {module.weight.shape[1]} sources, the average relevance vectors "
            f"have {sources} entries, for {len(owner)} thresholds; pass one entry a source and at least one threshold"
        )
    axis, original = _axis(module), np.ones((1, sources), dtype=np.bool_)
    stacked = _masked(module, channel, np.concatenate([*(_taken(own, k) for own in owner), original]))
    found = np.empty((2, len(samples), len(rhos) * (k + 1) + 1), dtype=np.float32)  # positive parts, signed sums
    relevant, classes = np.ones(len(samples), dtype=np.bool_), None if labels is None else np.asarray(labels)
    entrance = INPUT + layer
    layers, leaf = ([entrance], None) if classes is None else ([entrance, layer, OUTPUT], layer)
    start = 0
    with resting(model, device), torch.no_grad():
        for batch in readable(images, samples.tolist(), batch_size=batch_size, workers=workers):
            outputs = activations(model, batch.images.to(device), layers, leaf)
            entering = outputs[entrance]  # [B, C, H, W] also where the layer wants the channels last
            entering = entering.movedim(channel_axis(entering), axis)
            entering = entering.movedim(axis, 0)[channel_sources(module, channel)].movedim(0, axis)
            signed = stacked(entering).movedim(axis, 1)
            signed = signed.reshape(*signed.shape[:2], -1).float()
            pooled = torch.stack([signed.clamp(min=0).sum(dim=2), signed.sum(dim=2)]).cpu().numpy()
            if not np.isfinite(pooled).all():
                image = batch.samples[np.flatnonzero(~np.isfinite(pooled).all(axis=(0, 2)))[0]]
                raise NonFiniteError(
                    f"channel {channel} of layer {layer!r}, or a part of it, is NaN or infinite for image {image}. "
                    "Check that image, the weights, and whether half precision overflows"
                )
            here = slice(start, start + pooled.shape[1])
            found[:, here] = pooled
            if classes is not None:
                rows = np.arange(pooled.shape[1])
                attribution = attributed(outputs[layer], outputs[OUTPUT], rows, classes[here], clamp=clamp)
                relevant[here] = carried(attribution, share, mass)[:, channel]
            start = here.stop
    parts, signed_parts = found[..., :-1].reshape(2, len(samples), len(rhos), k + 1)
    original, signed_original = found[..., -1].copy()
    tried = np.array(rhos, dtype=np.float64)
    return PartActivations(
        layer, channel, samples, tried, parts, original, relevant, signed_parts, signed_original, ownership
    )


def choose_rho(activations: PartActivations, labels: ArrayLike, *, score: Score = "bounded") -> pd.DataFrame:
    """How well the parts keep the concepts apart at each threshold, and which threshold does it best.

    Two scores, of which the first is the paper's. It explodes where the other parts are close to 0; the second stays
    within 0 and 1 and is ``1 / k`` if all parts are equal.

    - ratio: ``sum over concepts v of mean over v's images of d_v+ / (sum of the others' d_w+ + 1e-5)``
    - bounded: ``mean over concepts v of mean over v's images of d_v+ / sum over all w of d_w+``, 0 where all are 0

    Parameters
    ----------
    activations
        Of training images, from :func:`part_activations`.
    labels
        int ``[images]``: the concept, 0 to k - 1, that each image belongs to. Every concept needs an image.
    score
        Which of the two decides.

    Returns
    -------
    DataFrame
        One row a threshold: ``rho, ratio, bounded, kept, best``. ``best`` is True in one row: that of the highest
        score, the first among equals. So the chosen threshold is ``table.rho[table.best].item()``. ``kept``, how much
        of the whole channel a concept's own part has on average (``d_v+ / c+``), decides nothing, but says whether a
        good score is worth having: both scores compare the parts with each other, however little is left of them.

    Raises
    ------
    ArgumentError
        If the labels do not fit, or a concept has no image.
    """
    import pandas as pd  # late, see pure_nb._imports

    if score not in ("ratio", "bounded"):
        raise ArgumentError(f"score must be 'ratio' or 'bounded', got {score!r}")
    k = activations.k
    label = _labels(labels, len(activations.original), k)
    empty = sorted(set(range(k)) - set(label.tolist()))
    if empty:
        raise ArgumentError(f"concept {empty[0]} has no image; label at least one image for each of the {k} concepts")
    concepts = activations.parts[:, :, :k].astype(np.float64)
    own = np.eye(k, dtype=np.bool_)[label][:, None]
    mine, others = (np.where(mask, concepts, 0).sum(axis=2) for mask in (own, ~own))  # [images, rhos]
    share = mine / np.maximum(mine + others, np.finfo(np.float64).tiny)
    whole = activations.original.astype(np.float64)[:, None]
    kept = mine / np.maximum(whole, np.finfo(np.float64).tiny)
    ratio, bounded = (
        np.stack([value[label == concept].mean(axis=0) for concept in range(k)])
        for value in (mine / (others + 1e-5), share)
    )
    table = pd.DataFrame({"rho": activations.rhos, "ratio": ratio.sum(axis=0), "bounded": bounded.mean(axis=0)})
    table["kept"] = np.stack([kept[label == concept].mean(axis=0) for concept in range(k)]).mean(axis=0)
    return table.assign(best=np.arange(len(table)) == table[score].to_numpy().argmax())


@dataclass(frozen=True, eq=False)
class Split:
    """A channel split between concepts: the threshold, who owns which source, and how it was measured.

    Attributes
    ----------
    concepts
        Their names: classes, or virtual neurons.
    activations
        At all thresholds, of all images of the concepts: first those of the study, then those that were passed for
        validation.
    labels
        int64 ``[images]``: the concept each image shows.
    training
        bool ``[images]``: the images that the threshold was chosen on; the others are for validation.
    scores
        Of :func:`choose_rho`.
    arvs
        float64 ``[k, sources]``.
    """

    concepts: tuple[str, ...]
    activations: PartActivations
    labels: NDArray[np.int64]
    training: NDArray[np.bool_]
    scores: pd.DataFrame
    arvs: NDArray[np.float64]

    @classmethod
    def chosen(
        cls,
        activations: PartActivations,
        labels: NDArray[np.int64],
        concepts: tuple[str, ...],
        arvs: NDArray[np.float64],
        score: Score = "bounded",
        training: NDArray[np.bool_] | None = None,
    ) -> Split:
        """Choose the threshold by a score of :func:`choose_rho`, by default on every second image of each concept."""
        if training is None:
            training = every_second(labels)
        scores = choose_rho(activations.only(training), labels[training], score=score)
        return cls(concepts, activations, labels, training, scores, arvs)

    @property
    def rho(self) -> float:
        """The chosen threshold."""
        return float(self.scores["rho"][self.scores["best"]].item())

    @property
    def owner(self) -> NDArray[np.int64]:
        """int64 ``[sources]``: see :func:`owners`."""
        return owners(self.arvs, self.rho, self.activations.ownership)

    def table(self) -> pd.DataFrame:
        """How much of the channel each part carries on the validation images where it is relevant (their table 1).

        Returns
        -------
        DataFrame
            Two tables of :func:`ratio_table` side by side. ``images, part``; ``positive, positive_error, positive_n``
            by pooled positive parts: how *active* a part is, and 0 for one that nowhere exceeds 0. ``signed,
            signed_error, signed_n`` by signed sums, as the paper: how *much* of the channel a part is, which may be
            below 0 or above 1; in each image the concepts' minus (k - 1) times the residual's make 1.

        Warns
        -----
        StudyWarning
            If a concept has no image to compute a ratio from, so that it is NaN; it says why.
        """
        import pandas as pd  # late, see pure_nb._imports

        measured, validation = self.activations, ~self.training
        chosen = validation & measured.relevant
        tables = []
        for name, signed, whole in (("positive", False, measured.original), ("signed", True, measured.signed_original)):
            parts = measured.at(self.rho, signed=signed)[chosen]
            own = ratio_table(parts, whole[chosen], self.labels[chosen], self.concepts).drop(columns="left_out")
            tables.append(own.rename(columns={"ratio": name, "error": f"{name}_error", "n": f"{name}_n"}))
        for number, concept in enumerate(self.concepts):
            mine = self.labels == number
            if not (measured.original[chosen & mine] > 0).any():
                warnings.warn(
                    f"channel {measured.channel} has no ratios for {concept!r}: of {int((validation & mine).sum())} "
                    f"validation images it is relevant in {int((chosen & mine).sum())}, and active in none of these",
                    StudyWarning,
                    stacklevel=2,
                )
        return pd.concat([tables[0], tables[1].drop(columns=["images", "part"])], axis=1)

    def model(self, model: nn.Module) -> nn.Module:
        """A copy of the network with the channel split; see :func:`split_channel`."""
        return split_channel(model, self.activations.layer, self.activations.channel, self.owner, len(self.concepts))


def every_second(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Bool ``[images]``: the first, third, fifth ... image of each concept."""
    rank = np.zeros(len(labels), dtype=np.int64)
    for concept in np.unique(labels):
        own = labels == concept
        rank[own] = np.arange(own.sum())
    return rank % 2 == 0


def ratio_table(parts: ArrayLike, original: ArrayLike, labels: ArrayLike, names: Sequence[str]) -> pd.DataFrame:
    """How much of the channel each part carries, on the images of each concept (Hesse et al., table 1).

    A good split has a ratio near 1 for the concept's own part, and near 0 for the others and the residual.

    Parameters
    ----------
    parts
        float ``[images, k + 1]``: of validation images, from :meth:`PartActivations.at`, positive or signed.
    original
        float ``[images]``: of :class:`PartActivations`, the same. Images where it is 0 have no ratio and are left out.
    labels
        int ``[images]``: the concept, 0 to k - 1, that each image belongs to.
    names
        Of the k concepts.

    Returns
    -------
    DataFrame
        One row for the images of each concept and each part: ``images`` (name of the concept the images show), ``part``
        (name of the concept the part stands for, or ``"residual"``), ``ratio`` (mean of ``part / c``), ``error`` (its
        standard error, NaN for fewer than two images), ``n`` (images in the mean), ``left_out``.

    Raises
    ------
    ArgumentError
        If the shapes, labels or names do not fit.
    """
    import pandas as pd  # late, see pure_nb._imports

    pooled, whole = np.asarray(parts, dtype=np.float64), np.asarray(original, dtype=np.float64)
    if pooled.ndim != 2 or whole.shape != pooled.shape[:1]:
        raise ArgumentError(
            f"expected parts [images, k + 1] and original [images], got {pooled.shape} and {whole.shape}"
        )
    k = pooled.shape[1] - 1
    if len(names) != k:
        raise ArgumentError(f"{k} concepts need {k} names, got {list(names)}")
    label = _labels(labels, len(whole), k)
    rows = []
    for concept, shown in enumerate(names):
        mine = label == concept
        used = mine & (whole != 0)
        ratios = pd.DataFrame(pooled[used] / whole[used, None])
        count = {"n": int(used.sum()), "left_out": int((mine & ~used).sum())}
        for part, ratio, error in zip([*names, "residual"], ratios.mean(), ratios.sem()):
            rows.append({"images": shown, "part": part, "ratio": ratio, "error": error, **count})
    return pd.DataFrame(rows)


def _labels(labels: ArrayLike, count: int, k: int) -> NDArray[np.int64]:
    label = np.asarray(labels)
    if label.shape != (count,) or label.dtype.kind not in "iu":
        raise ArgumentError(f"expected {count} integers as labels, one an image, got {label.dtype} {list(label.shape)}")
    if count and not 0 <= label.min() <= label.max() < k:
        raise ArgumentError(
            f"labels must be concepts from 0 to {k - 1}, got {label.min()} to {label.max()}; leave out images of none"
        )
    return label.astype(np.int64)


def _splittable(model: nn.Module, layer: str, channel: int) -> Weighted:
    """The layer of that name, if its channel can be split."""
    module: Any = get_layer(model, layer)
    if not computes_plainly(module):
        names = [name for name, candidate in model.named_modules() if computes_plainly(candidate) and name]
        near = difflib.get_close_matches(layer, names, n=5, cutoff=0.4) or names[:8]
        raise LayerError(
            f"layer {layer!r} is a {type(module).__name__}; only a Conv2d or a Linear without hooks or a forward of "
            "its own can be split, for instance: "
            f"{', '.join(map(repr, near)) or 'none, this network has none'}"
        )
    if not 0 <= channel < len(module.weight):
        raise ArgumentError(f"channel {channel}: layer {layer!r} has channels 0 to {len(module.weight) - 1}")
    return module


def _taken(owner: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """The sources of each part, bool ``[k + 1, sources]``: a concept's own and the shared ones; last the residual's."""
    concept = np.array([*range(k), SHARED])[:, None]
    return (owner == concept) | (owner == SHARED)


def _masked(whole: Weighted, channel: int, taken: NDArray[np.bool_]) -> Weighted:
    """A layer with a copy of one channel for each row of ``taken [outputs, sources]``, with those sources only."""
    weight = whole.weight.detach()[channel]
    mask = torch.from_numpy(taken).to(weight.device).reshape(*taken.shape, *[1] * (weight.ndim - 1))
    masked = empty_like(whole, taken.shape[1], taken.shape[0])
    with torch.no_grad():
        masked.weight.copy_(torch.where(mask, weight, weight.new_zeros(())))
        if whole.bias is not None:
            masked.bias.fill_(whole.bias[channel])
    masked.requires_grad_(whole.weight.requires_grad).train(whole.training)
    return masked


def empty_like(whole: Weighted, inputs: int, outputs: int) -> Any:
    """A layer of the same geometry, without groups and with other widths; its weights are not initialised.

    Drawing random ones would disturb the global state.
    """
    common: Any = {"bias": whole.bias is not None, "device": "meta", "dtype": whole.weight.dtype}
    if isinstance(whole, nn.Linear):
        like: nn.Module = nn.Linear(inputs, outputs, **common)
    else:
        geometry = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        common |= {name: getattr(whole, name) for name in geometry}
        like = nn.Conv2d(inputs, outputs, **common)
    return like.to_empty(device=whole.weight.device)
