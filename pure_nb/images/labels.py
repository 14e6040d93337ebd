"""Which classes: the labels of a data set, the names of its classes, and the network's outputs that they stand for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from pure_nb._imports import needed
from pure_nb.errors import ImageError
from pure_nb.images.reading import printable

if TYPE_CHECKING:
    from pure_nb.images.data import Images

SEEN = 64
"""Pictures by which labels are compared with what a network says."""

WNID = re.compile(r"n\d{8}")
"""What WordNet calls a class of ImageNet's."""

Labels = tuple["NDArray[np.int64] | None", tuple[str, ...]]
"""The class of each item, None where it is not known; and the names of the classes, none where they have none."""


def labels_of(dataset: Any, names: tuple[str, ...] = ("classes", "categories")) -> Labels:
    """Classes of the items of a data set, and their names, looked for in the attributes ``names``."""
    if isinstance(dataset, Subset):
        targets, classes = labels_of(dataset.dataset, names)
        return None if targets is None else targets[np.asarray(dataset.indices, dtype=np.int64)], classes
    if isinstance(dataset, ConcatDataset):
        return _joined([labels_of(part, names) for part in dataset.datasets])
    found = [named for name in names if (named := getattr(dataset, name, None)) is not None and len(named)]
    numbers = getattr(dataset, "class_to_idx", None)
    if not found and isinstance(numbers, Mapping) and sorted(numbers.values()) == list(range(len(numbers))):
        found = [sorted(numbers, key=numbers.__getitem__)]
    return _targets(dataset), tuple(printable(str(name)) for name in (found[0] if found else ()))


def _joined(parts: list[Labels]) -> Labels:
    """Labels of several data sets in a row: a class is the same where its name is, or its number without names."""
    merged = {name: number for number, name in enumerate(dict.fromkeys(name for _, names in parts for name in names))}
    found = []
    for targets, names in parts:
        if targets is None or bool(names) != bool(merged) or (names and targets.max(initial=-1) >= len(names)):
            return None, tuple(merged)
        place = [merged[name] for name in names] or range(targets.max(initial=-1) + 1)
        found.append(np.array([*place, -1])[np.maximum(targets, -1)])  # the last is for classes that are not known
    return np.concatenate(found), tuple(merged)


def _targets(dataset: Any) -> NDArray[np.int64] | None:
    """The class of each item, from whatever attribute holds one whole number for each."""
    for candidate in _candidates(dataset):
        with suppress(ValueError, TypeError, RuntimeError):  # ragged lists, tensors on other devices: no labels
            found = np.asarray(candidate)
            if found.dtype.kind in "iu" and found.shape == (len(dataset),):
                return found.astype(np.int64)
    return None


def _candidates(dataset: Any) -> Iterator[Any]:
    """What may be the labels of a data set, by the names that torchvision's have for them."""
    for name in ("targets", "labels", "_labels", "y"):
        yield getattr(dataset, name, None)
    if isinstance(dataset, TensorDataset):
        yield from dataset.tensors[1:2]
    for name in ("samples", "_samples"):
        pairs = getattr(dataset, name, None)
        if isinstance(pairs, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
            yield [target for _, target in pairs]


def display_names(names: Sequence[str]) -> list[str]:
    """Names of classes as one says them: of ImageNet's WordNet ids the first English word, others as they are.

    Without timm, which has the words, ids stay as they are, too.

    Parameters
    ----------
    names
        Such as ``n01440764`` or ``hop_clover``, all different.
    """
    known: dict[str, str] = {}
    if any(map(WNID.fullmatch, names)):
        with suppress(ImageError):
            known = _imagenet()
    words: dict[str, None] = {}
    for name in names:
        lemmas = known.get(name, name.replace("_", " "))
        # Two of ImageNet's classes are cranes: the second is called by what sets it apart, or by its number.
        options = [lemma.strip() for lemma in lemmas.split(",")] + [f"{lemmas.split(',')[0]} ({name})"]
        words[next(word for word in options if word not in words)] = None
    return [*words]


def _imagenet(outputs: int = 1000) -> dict[str, str]:
    """The words of the ImageNet of so many classes, by their WordNet ids, in the order of outputs; of none, if none."""
    with needed("timm", "the words and the order of ImageNet's classes need", ImageError):
        from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset  # late: timm takes a second to import
    subset = infer_imagenet_subset({"num_classes": outputs})
    if not subset:
        return {}
    info = ImageNetInfo(subset)
    names = info.label_names()  # type: ignore[no-untyped-call]
    return {name: info.label_name_to_description(name) for name in names}


def class_labels(images: Images, outputs: int, called: Sequence[str] = ()) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The true class of each image, as an index into a network's outputs.

    Parameters
    ----------
    images
        A data set with labels, as torchvision's have in ``targets`` and ``classes``, a part of one, or several in a
        row. Its classes are some of ImageNet's, named by their WordNet ids (``n01440764``), for a network with as many
        outputs as ImageNet or one of its larger kinds has classes; or some of the outputs, named by their numbers,
        from 0; or the network's own, in the same order. Where it has ``wnids``, as torchvision's ``ImageNet``, these
        are the names. Labels without names are numbers of outputs.
    outputs
        Number of the network's outputs.
    called
        What they are called, if the network tells: then classes of these names are meant, in any order.

    Returns
    -------
    tuple
        int64 ``[images]``, and the names of all outputs.

    Raises
    ------
    ImageError
        If there are no labels, or they can't be matched with the outputs.
    """
    labels, named = labels_of(images.dataset, ("wnids", "classes", "categories"))
    if labels is None:
        raise ImageError(
            f"the images {images.name!r} have no labels; a data set with classes has the attributes targets and "
            "classes, as torchvision's ImageFolder"
        )
    names = named or tuple(map(str, range(labels.max(initial=-1) + 1)))
    imagenet = [*_imagenet(outputs)] if names and all(map(WNID.fullmatch, names)) else []
    known = {name: number for number, name in enumerate(imagenet)}
    told = {name: number for number, name in enumerate(called)}
    spoken = [name if name in told else name.replace("_", " ") for name in names]
    numbers = [int(name) for name in names if name.isdecimal()]
    fits = labels.max(initial=-1) < len(names)
    if fits and names and set(spoken) <= set(told):
        place, all_names = [told[name] for name in spoken], [*called]
    elif fits and names and not told and set(names) <= set(known):
        place, all_names = [known[name] for name in names], imagenet
    elif fits and len(set(numbers)) == len(names) > 0 and max(numbers) < outputs:
        place, all_names = numbers, [str(number) for number in range(outputs)]
        for number, name in zip(place, names):
            all_names[number] = name  # with the zeros before it, if that is how the folder is called
    elif len(names) == outputs and not set(spoken) & set(told):
        return labels, names
    else:
        raise ImageError(
            f"the images {images.name!r} are of {len(names)} classes ({', '.join(names[:3])} ...) and the network puts "
            f"out {outputs}: expected as many, in the same order, or folders named by ImageNet's WordNet ids, or by "
            "the numbers of the outputs, from 0"
        )
    return np.where(labels < 0, -1, np.array(place, dtype=np.int64)[labels]), tuple(all_names)


def numbered(names: Sequence[str]) -> dict[str, int]:
    """The number of each name; of several that are the same, that of the first."""
    known: dict[str, int] = {}
    for number, name in enumerate(names):
        known.setdefault(name, number)
    return known


def seen_labels(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers of at most :data:`SEEN` labelled images, spread over the classes."""
    order = np.argsort(labels, kind="stable")[(labels < 0).sum() :]
    return order[np.unique(np.linspace(0, len(order) - 1, min(SEEN, len(order))).astype(int))]


def at_chance(labels: NDArray[np.int64], answers: NDArray[np.int64]) -> bool:
    """Whether a network's answers agree with labels no more than by chance, though the images are enough to tell.

    By chance means: as often as if the same answers had been dealt to the images at random. Two binomial tests must
    agree: the share of right answers is not larger than by chance (p above 0.05), and it is smaller than that of a
    network a quarter of the way from chance to always right (p below 0.01). The second leaves alone what a handful of
    images can't tell, and a network that is at least so good is suspected less than once in a hundred times.

    Parameters
    ----------
    labels, answers
        The class of each image, and the network's largest output.
    """
    count = len(labels)
    classes = np.arange(max(labels.max(initial=0), answers.max(initial=0)) + 1)
    share = [(values[:, None] == classes).mean(axis=0) if count else 0 * classes for values in (labels, answers)]
    chance, right = min(1.0, float(share[0] @ share[1])), int((labels == answers).sum())
    able = chance + (1 - chance) / 4
    return bool(
        count
        and scipy.stats.binomtest(right, count, chance, alternative="greater").pvalue > 0.05
        and scipy.stats.binomtest(right, count, able, alternative="less").pvalue < 0.01
    )
