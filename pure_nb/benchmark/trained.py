"""Tasks of units that were trained to mean given classes: a truth that was made by learning, and not by merging.

Two kinds. In a network whose head has zeros, a channel of the last stage can be of use to those classes alone whose
logits it feeds (:func:`wired_task`). In any network a unit can be trained on labelled images to answer to one class or
another (:func:`either_task`).
"""

from __future__ import annotations

import copy
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pure_nb.benchmark.planting import convolution_of, within
from pure_nb.benchmark.tasks import Task
from pure_nb.errors import StudyError
from pure_nb.images.reading import batches
from pure_nb.network.layers import activations, flatten_positions, get_layer
from pure_nb.network.targets import Target
from pure_nb.study import Study

FEW = 4
"""Classes that a channel may feed, to have a meaning by that."""

EITHER = "either"
"""Name of the layer of trained units, below the layer that they read."""


def duties(study: Study) -> NDArray[np.bool_]:
    """Which classes each channel of the target layer feeds, by the last linear layer's zeros: ``[channels, classes]``.

    Raises
    ------
    StudyError
        If that layer does not read one number of each channel, or a channel feeds none or more than :data:`FEW`.
    """
    linear = [module for module in study.model.modules() if isinstance(module, nn.Linear)]
    channels = study.references.channels
    if not linear or linear[-1].in_features != channels:
        raise StudyError(
            f"the {channels} channels of {study.parameters.target!r} are not what the network's last linear layer "
            "reads, so nothing is known of the classes that they feed"
        )
    feeds = (linear[-1].weight.detach() != 0).T.cpu().numpy()
    counts = feeds.sum(axis=1)
    if counts.min() < 1 or counts.max() > FEW:
        raise StudyError(
            f"a channel of {study.parameters.target!r} feeds {counts.max()} classes, more than {FEW}, or none; the "
            "task needs a head with zeros, as tools/train_widths.py trains one"
        )
    found: NDArray[np.bool_] = feeds
    return found


def wired_task(study: Study) -> Task:
    """Channels of a last stage that was trained while each could be of use to few given classes only.

    Parameters
    ----------
    study
        Of such a network, and of images whose objects or classes are known.

    Returns
    -------
    Task
        Its truth is the object under the maximum, or the class of the image, if the channel feeds it; else -1.

    Raises
    ------
    StudyError
        See :func:`duties`; and if nothing is known of the images.
    """
    labels = study.objects
    if labels is None and study.images.targets is not None:
        labels = study.images.targets[study.references.sample]
    if labels is None:
        raise StudyError(f"neither objects nor classes are known of {study.images.name!r}, so there is no truth")
    feeds = duties(study)
    own = (labels >= 0) & np.take_along_axis(feeds, labels.clip(min=0), axis=1) & study.references.active
    truth = np.where(own, labels, -1)
    return Task("wired", study, truth, np.ones(truth.shape), study)


class ReadLayer(nn.Module):
    """A layer, and units that read its output and that nothing else reads. Made by :func:`either_task`."""

    def __init__(self, whole: nn.Module, units: nn.Module) -> None:
        super().__init__()
        self.whole = whole
        self.either = units
        self.training = units.training = whole.training

    def forward(self, input: Tensor) -> Tensor:
        """What the layer puts out."""
        output: Tensor = self.whole(input)
        self.either(output)
        return output


def either_task(study: Study, count: int = 24, single: int = 12, *, seed: int | None = None) -> Task:
    """Units that were trained to answer to images of one class or another, and units for one class.

    Each is a logistic regression on the target layer's output, averaged over its positions; in the network it is a unit
    at every position, whose references are ranked by their mean.

    Parameters
    ----------
    study
        Any study whose images have labels, or which has :attr:`pure_nb.classes.Classes.labelled` ones for that.
    count, single
        Number of pairs of classes, drawn at random, and of single classes.
    seed
        Of the draw; the study's by default.

    Returns
    -------
    Task
        A study of the layer ``"<target>.either"``; the truth is the label where it is one of the unit's, else -1.

    Raises
    ------
    StudyError
        If there are no labels or fewer than three classes, or the target is a view of a layer.

    Examples
    --------
    >>> task = either_task(study, count=2, single=1)
    >>> task.study.parameters.target, task.truth.shape
    ('layer4.either', (3, 6))
    """
    images, layer = study.images, study.parameters.target
    if images.targets is None:
        images = study.classes.labelled
    targets = images.targets
    if targets is None or len(np.unique(targets[targets >= 0])) < 3:
        raise StudyError(f"units for classes need labels of three or more classes; {images.name!r} has none")
    if Target.parse(layer).prefix:
        raise StudyError(f"units read all that a module puts out: name {Target.parse(layer).name!r} alone")
    study = study.replace(images=images)
    generator = np.random.default_rng(study.parameters.seed if seed is None else seed)
    classes = np.unique(targets[targets >= 0])
    pairs = generator.permutation([*combinations(classes.tolist(), 2)])[:count].tolist()
    meant = [*pairs, *([one] for one in generator.permutation(classes)[:single].tolist())]
    model = _with_units(study, targets, meant)
    lower = within(layer, study.parameters.lower)
    made = study.replace(model=model, target=f"{layer}.{EITHER}", lower=lower, ranked_by="mean")
    labels = targets[made.references.sample]
    own = np.stack([np.isin(row, few) for row, few in zip(labels, meant)]) & made.references.active
    truth = np.where(own, labels, -1)
    return Task(EITHER, made, truth, np.ones(truth.shape), made)


def _with_units(study: Study, targets: NDArray[np.int64], meant: list[list[int]]) -> nn.Module:
    """A copy of the study's network with a unit for each few classes, trained on its images."""
    layer, outputs, seen = study.parameters.target, [], []
    with study.run.prepared(study.model), torch.inference_mode():
        for batch in batches(study.images, np.flatnonzero(targets >= 0).tolist(), run=study.run):
            if len(batch.samples):
                output = activations(study.model, batch.images.to(study.run.local_device), [layer])[layer]
                outputs.append(flatten_positions(output).mean(dim=2).float().cpu().numpy())
                seen.append(batch.samples)
    weight, bias = _fitted(np.concatenate(outputs), targets[np.concatenate(seen)], meant)
    model = copy.deepcopy(study.model)
    whole = get_layer(model, layer)
    make = convolution_of(whole, len(study.shapes[0].grid))
    sizes = weight.shape[1], weight.shape[0]
    units: Any = make(*sizes, 1) if make else nn.Linear(*sizes)
    with torch.no_grad():
        units.weight.copy_(torch.from_numpy(weight).reshape(units.weight.shape))
        units.bias.copy_(torch.from_numpy(bias))
    like = next(whole.parameters(), next(model.parameters()))
    model.set_submodule(layer, ReadLayer(whole, units.to(like.device, like.dtype)))
    return model


def _fitted(
    features: NDArray[np.float32], labels: NDArray[np.int64], meant: list[list[int]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights ``[units, channels]`` and biases ``[units]`` of logistic regressions, both sides weighed alike."""
    from sklearn.linear_model import LogisticRegression

    mean, scale = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    scale[scale == 0] = 1
    scaled = (features - mean) / scale
    fits = [
        LogisticRegression(class_weight="balanced", max_iter=500).fit(scaled, np.isin(labels, few)) for few in meant
    ]
    weight = np.concatenate([fit.coef_ for fit in fits]) / scale
    return weight, np.concatenate([fit.intercept_ for fit in fits]) - weight @ mean
