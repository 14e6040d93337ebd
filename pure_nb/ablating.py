"""Ablating parts: what happens to a channel, and to the network's outputs, when one of its parts is switched off.

No judge is asked and no label is needed. It is measured in images that made no cluster: those that come after the
references in the order of the channel's activation.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from pure_nb.errors import ArgumentError, StudyError, StudyWarning
from pure_nb.images.reading import readable
from pure_nb.methods.ablation import selectivity, weakened
from pure_nb.methods.descriptions import clustered_of, describe_pairs
from pure_nb.methods.virtual import VirtualNeurons, nearest, part_name, virtual_neurons
from pure_nb.methods.virtual_layer import Assign, shares_of
from pure_nb.network.layers import OUTPUT, activations, flatten_positions

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from torch import Tensor

    from pure_nb.study import Study

ASSIGNED, HALF = "assigned", "other half"
"""Who tells which held-out images are the part's: its own mean circuit, or the parts of the other half."""

RANDOM, ROUNDS = "random parts", 5
"""Parts of the same sizes drawn at random, and how often."""

Switch = tuple[str, int, NDArray[np.float64]]
"""What is switched off: a layer's channel, and its share in each image."""


@dataclass(frozen=True, eq=False)
class PartAblation:
    """What happens when a part of a channel is switched off, in images that made no cluster.

    What a fall means depends on who says which images are the part's:

    - ``"assigned"``: the part's own circuit. With ``assign="nearest"`` the part takes all of the channel in just these
      images, so its own fall is 1 and the others' 0, whatever the part is: a check, and no finding. Of the *other* rows
      it is one: the lower channels know nothing of the assignment.
    - ``"other half"``: the parts found in every second reference image, and what is switched off is the part found in
      the rest. The two share no image. Selectivity is how far the part is the same thing in both: 0 for random parts.
    - ``"objects"``, or ``"labels"``: an image is the part's if the object under its maximum (or its class) is one of
      which most references are the part's.

    Attributes
    ----------
    channel, part
        The channel, and the part's letter.
    sample
        int64 ``[h]``: the held-out images, those that activate the channel.
    score
        float64 ``[h]``: the channel's score in them, as the references' is.
    fall
        For each thing that was switched off its relative fall, float64 ``[h]``.
    change
        For each how much the outputs change, float32 ``[h, outputs]``; without those of one half.
    own
        For each of those who tell, bool ``[h]``: which images are the part's.
    known
        The same: of which images it is known.
    names
        Of the outputs.

    Examples
    --------
    >>> found = study.ablate(3, "A")
    >>> found.table().columns[:5].tolist()
    ['off', 'told_by', 'own', 'others', 'selectivity']
    """

    channel: int
    part: str
    sample: NDArray[np.int64]
    score: NDArray[np.float64]
    fall: Mapping[str, NDArray[np.float64]]
    change: Mapping[str, NDArray[np.float32]]
    own: Mapping[str, NDArray[np.bool_]]
    known: Mapping[str, NDArray[np.bool_]]
    names: tuple[str, ...]

    def table(self, *, seed: int = 0) -> pd.DataFrame:
        """How selective each ablation is.

        Columns: ``off``, what was switched off: the part, random parts of the same sizes (a mean over
        :data:`ROUNDS` draws), the whole channel, the strongest lower channel of the part, and that which carries it
        most beyond the other parts; ``told_by``, who tells which images are the part's; and the attributes of
        :class:`pure_nb.methods.ablation.Selectivity`.
        """
        import pandas as pd  # late, see pure_nb._imports

        rows = []
        for judge, own in self.own.items():
            for off, fall in self.fall.items():
                if off == {HALF: f"part {self.part}"}.get(judge, self._halved):
                    continue  # the part itself was made from both halves
                known = self.known[judge]
                found = asdict(selectivity(fall[known], own[known], seed=seed))
                rows.append({"off": off, "told_by": judge, **found})
        return pd.DataFrame(rows)

    @property
    def _halved(self) -> str:
        return f"part {self.part} of one half"

    def outputs(self) -> pd.DataFrame:
        """How the network's outputs move, those first that the part moves most.

        Columns: ``output``, ``name``; and for each thing that is switched off the mean change over the images that are
        assigned to the part and over the others: ``"part A, own"``, ``"part A, others"`` ...
        """
        import pandas as pd

        own = self.own[ASSIGNED]
        columns = {
            f"{off}, {which}": change[rows].mean(axis=0) if rows.any() else np.full(change.shape[1], np.nan)
            for off, change in self.change.items()
            for which, rows in (("own", own), ("others", ~own))
        }
        table = pd.DataFrame({"output": np.arange(len(self.names)), "name": self.names, **columns})
        return table.sort_values(
            f"part {self.part}, own", key=lambda change: -change.abs(), kind="stable", ignore_index=True
        )

    def plot(self, count: int = 8) -> Figure:
        """The falls with their intervals, and the outputs that the part moves most."""
        from pure_nb.figures.ablation_plots import ablation_figure  # plotting libraries take a second to import

        return ablation_figure(self.table(), self.outputs().head(count), self.channel, self.part)


def ablate(study: Study, channel: int, part: str = "A", *, assign: Assign = "nearest") -> PartAblation:
    """Switch a part of a channel off, and see what happens to the channel and to the network's outputs.

    Parameters
    ----------
    study
        Any study whose network puts out one tensor ``[images, outputs]``.
    channel, part
        A channel that is split into parts, and the letter of one.
    assign
        How the channel is shared out among its parts: see :class:`pure_nb.methods.virtual_layer.VirtualLayer`.

    Raises
    ------
    ArgumentError
        If there is no such channel or part.
    StudyError
        If the channel is left whole, or no image beyond its references activates it.
    """
    virtual = study.virtual_of(channel)
    place = place_of(virtual, channel, part)
    held = held_out(study, channel)
    if study.combined and assign == "mixture":
        raise ArgumentError("mixtures are of circuits alone: ask for assign='nearest', or for described_by='circuits'")
    vectors = virtual.scaled(clustered_of(study, channel))
    known = virtual.scaled(describe_pairs(study, np.full_like(held, channel), held))
    share = partial(shares_of, known, assign=assign)
    rest, half = _halves(study, vectors, virtual, place)
    p, name = study.parameters, f"part {part}"
    every: dict[str, list[Switch]] = {
        name: [(p.target, channel, share(virtual.centres)[:, place])],
        RANDOM: [(p.target, channel, share(drawn)[:, place]) for drawn in _random(study, vectors, virtual)],
        "whole channel": [(p.target, channel, np.ones(len(held)))],
        **{f"lower channel {one}": [(p.lower, one, np.ones(len(held)))] for one in _carriers(virtual, place)},
        f"{name} of one half": [(p.target, channel, share(rest[0])[:, rest[1]])],
    }
    score, fall, change = _switched(study, channel, held, every)
    own = {ASSIGNED: nearest(known, virtual.centres) == place, HALF: nearest(known, half[0]) == half[1]}
    sure = {judge: np.ones(len(held), dtype=np.bool_) for judge in own}
    for judge, labels, before in _labels(study, channel, held):
        owner = _owner(before, virtual)
        own[judge] = np.array([owner.get(label) == place for label in labels.tolist()], dtype=np.bool_)
        sure[judge] = np.array([label in owner for label in labels.tolist()], dtype=np.bool_)
    on = score > 0
    if not change["whole channel"].any():
        message = f"no output depends on channel {channel} of {p.target!r}: it leads nowhere, or its effect is 0"
        warnings.warn(message, StudyWarning, stacklevel=2)
    del change[f"{name} of one half"]
    own, sure = {key: value[on] for key, value in own.items()}, {key: value[on] for key, value in sure.items()}
    fall, change = {key: value[on] for key, value in fall.items()}, {key: value[on] for key, value in change.items()}
    names = tuple(study.classes.output_names(change[name].shape[1]))
    return PartAblation(channel, part, held[on], score[on], fall, change, own, sure, names)


def held_out(study: Study, channel: int) -> NDArray[np.int64]:
    """Images that made no cluster of a channel: the strongest beyond its references, as many as these.

    One more pass over all images, once for all channels of a study.

    Returns
    -------
    ndarray
        int64 ``[h]``, the strongest first.
    """
    study.require_channel(channel)
    own = study.references.sample[channel]
    wide = widened(study).references
    found = wide.sample[channel][wide.active[channel]]
    held: NDArray[np.int64] = found[~np.isin(found, own)]
    if not len(held):
        raise StudyError(
            f"no image beyond the {len(own)} references activates channel {channel}; take fewer (n_references), or "
            "more images"
        )
    return held


def widened(study: Study) -> Study:
    """The study with twice as many references; held, lest all images are looked at for each channel."""
    if study.parameters.references != "top":
        raise StudyError("held-out images are those that follow the strongest; ask for a study with references='top'")
    if "_wide" not in vars(study):
        vars(study)["_wide"] = study.replace(n_references=2 * study.parameters.n_references)
    found: Study = vars(study)["_wide"]
    return found


def place_of(virtual: VirtualNeurons, channel: int, part: str) -> int:
    """The number of a part by its letter."""
    if virtual.k < 2:
        raise StudyError(
            f"channel {channel} is left whole, so there is no part of it to switch off; a number of parts (n_clusters, "
            "--k) splits every channel"
        )
    names = [part_name(place) for place in range(virtual.k)]
    if part not in names:
        raise ArgumentError(f"channel {channel} has no part {part!r}; it has {', '.join(names)}")
    return names.index(part)


def _halves(
    study: Study, vectors: NDArray[np.float32], virtual: VirtualNeurons, place: int
) -> list[tuple[NDArray[np.float32], int]]:
    """The parts of every second reference, and of the others: mean circuits, and which is most like the part."""
    active = np.flatnonzero(virtual.labels >= 0)
    found = []
    for half in (active[::2], active[1::2]):
        own = virtual_neurons(vectors[half], virtual.k, draws=0, seed=study.parameters.seed)
        labels, mine = nearest(vectors[active], own.centroids), virtual.labels[active] == place
        alike = [(mine & (labels == one)).sum() / (mine | (labels == one)).sum() for one in range(own.k)]
        found.append((own.centroids, int(np.argmax(alike))))
    return found


def _random(study: Study, vectors: NDArray[np.float32], virtual: VirtualNeurons) -> Iterator[NDArray[np.float32]]:
    """The mean circuits of parts of the same sizes drawn at random."""
    active = virtual.labels >= 0
    generator = np.random.default_rng(study.parameters.seed)
    for _ in range(ROUNDS):
        labels = generator.permutation(virtual.labels[active])
        yield np.stack([vectors[active][labels == place].mean(axis=0) for place in range(virtual.k)])


def _carriers(virtual: VirtualNeurons, place: int) -> list[int]:
    """The lower channel that carries a part most, and that which does so most beyond the other parts."""
    own = virtual.centroids[place]
    others = np.delete(virtual.centroids, place, axis=0).max(axis=0)
    return list(dict.fromkeys([int(own.argmax()), int((own - others).argmax())]))


def _switched(
    study: Study, channel: int, held: NDArray[np.int64], every: Mapping[str, list[Switch]]
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]], dict[str, NDArray[np.float32]]]:
    """The channel's score in some images; its relative fall, and the outputs' change, for each ablation."""
    p, model = study.parameters, study.model
    reduce: Callable[[Tensor], Tensor] = (
        (lambda maps: maps.amax(dim=1)) if p.ranked_by == "max" else (lambda maps: maps.mean(dim=1))
    )

    def run(images: Tensor, off: Switch | None, rows: slice) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        layers, changes = [p.target, OUTPUT], {}
        if off is not None:
            layer, one, share = off
            layers = list(dict.fromkeys([layer, *layers]))
            changes = {layer: partial(weakened, channel=np.array([one]), share=share[rows, None])}
        with torch.no_grad():
            found = activations(model, images, layers, changes=changes)
        score = reduce(flatten_positions(found[p.target])[:, channel]).double().cpu().numpy()
        return score, found[OUTPUT].flatten(1).float().cpu().numpy()

    scores, falls, moved = [], {name: [] for name in every}, {name: [] for name in every}  # type: ignore[var-annotated]
    begin = 0
    with study.run.prepared(model):
        for batch in readable(study.images, held.tolist(), run=study.run):
            images, rows = batch.images.to(study.run.local_device), slice(begin, begin + len(batch.samples))
            begin = rows.stop
            score, logits = run(images, None, rows)
            scores.append(score)
            for name, switches in every.items():
                after = [run(images, off, rows) for off in switches]
                with np.errstate(divide="ignore", invalid="ignore"):  # images that do not activate it are left out
                    falls[name].append(np.mean([(score - one) / score for one, _ in after], axis=0))
                moved[name].append(np.mean([one - logits for _, one in after], axis=0))
    return (
        np.concatenate(scores),
        {name: np.concatenate(values) for name, values in falls.items()},
        {name: np.concatenate(values) for name, values in moved.items()},
    )


def _labels(
    study: Study, channel: int, held: NDArray[np.int64]
) -> Iterator[tuple[str, NDArray[np.int64], NDArray[np.int64]]]:
    """What the held-out images and the references show, where that is known: -1 is nothing."""
    if study.objects is not None:
        wide = widened(study)
        assert wide.objects is not None
        of = dict(zip(wide.references.sample[channel].tolist(), wide.objects[channel].tolist()))
        yield "objects", np.array([of[sample] for sample in held.tolist()]), study.objects[channel]
    elif study.images.targets is not None:
        targets = study.images.targets
        yield "labels", targets[held], targets[study.references.sample[channel]]


def _owner(labels: NDArray[np.int64], virtual: VirtualNeurons) -> dict[int, int]:
    """The part that has most of the references of each label; those of which two parts have as many are nobody's."""
    found = {}
    for label in np.unique(labels[labels >= 0]).tolist():
        counts = np.bincount(virtual.labels[(labels == label) & (virtual.labels >= 0)], minlength=virtual.k)
        if (counts == counts.max()).sum() == 1:
            found[label] = int(counts.argmax())
    return found
