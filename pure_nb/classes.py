"""What a study knows of classes: how relevant channels are to them, pairs, WordNet, splits. Images need labels."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pure_nb._splits import Splitter
from pure_nb.compute.bars import progress_bar
from pure_nb.compute.results import FORMAT
from pure_nb.compute.store import Arrays, Store
from pure_nb.compute.sweep import accepted
from pure_nb.errors import ImageError, StudyError, StudyWarning
from pure_nb.images.data import Images
from pure_nb.images.labels import at_chance, class_labels, display_names, numbered, seen_labels
from pure_nb.images.reading import Unreadable, batches
from pure_nb.images.sources import as_images
from pure_nb.judges.zero_shot import ZeroShot
from pure_nb.methods.agreement import MantelResult, agreement, similarity_matrix, with_similarities
from pure_nb.methods.ownership import Ownership
from pure_nb.methods.pairs import class_pairs, gamma_polysemantic
from pure_nb.methods.relevance import Clamp, ClassRelevance, ClassStatistics, Criterion
from pure_nb.methods.splitting import Score, Split
from pure_nb.methods.windows import closed_form
from pure_nb.network.layers import as_weights
from pure_nb.network.shapes import require_output
from pure_nb.reasons.class_parts import ClassParts, class_parts
from pure_nb.reasons.faithfulness import Faithfulness, faithfulness
from pure_nb.reasons.outliers import Outliers, outliers

if TYPE_CHECKING:
    import pandas as pd

    from pure_nb.methods.wordnet import WordNet
    from pure_nb.study import Study


MANY_BACKWARD = 128
"""Channels from which on class relevance without a closed form is computed only when asked for."""


@dataclass(frozen=True, eq=False)
class Classes:
    """The classes of a study, :attr:`pure_nb.study.Study.classes`."""

    study: Study

    @cached_property
    def labelled(self) -> Images:
        """Images of one known class each: the study's own, or others that the data set has for that."""
        own = getattr(self.study.images.dataset, "labelled", None)
        return own if isinstance(own, Images) else self.study.images

    @cached_property
    def _labels(self) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """The true class of each labelled image, an index into the network's outputs; and all their names."""
        with self.study.run.prepared(self.study.model):
            example = self.labelled.example[None].to(self.study.run.local_device)
            logits = require_output(self.study.model, example, self.study.parameters.allow_nondeterministic)
        if logits.grid:
            raise StudyError(
                "classes need a network that puts out one tensor [images, classes]; "
                f"{type(self.study.model).__name__} does not"
            )
        labels, names = class_labels(self.labelled, logits.channels, self.called)
        doubt = "" if self.study.images.drawn else self._doubt(labels)
        if doubt:
            warnings.warn(
                f"{doubt}, no more than by chance: what is said of classes will mean nothing. Are the classes in the "
                f"order of the network's outputs ({', '.join(names[:3])} ...)? If not, name the folders by the numbers "
                "of the outputs, from 0, or by ImageNet's WordNet ids. Are the images scaled and normalised as when "
                "the network was trained?",
                StudyWarning,
                stacklevel=3,
            )
        return labels, names

    def _doubt(self, labels: NDArray[np.int64]) -> str:
        """How badly the network's answers to some images fit their labels, if they don't; kept, as it needs them."""

        def compute(_: Store | None) -> tuple[Arrays, str]:
            seen: list[int] = []
            answers: list[NDArray[np.int64]] = []
            with self.study.run.prepared(self.study.model), torch.no_grad():
                for batch in batches(self.labelled, seen_labels(labels).tolist(), run=self.study.run):
                    if len(batch.samples):
                        images = as_weights(self.study.model, batch.images.to(self.study.run.local_device))
                        answers.append(self.study.model(images).argmax(dim=1).cpu().numpy())
                        seen += batch.samples.tolist()
            own, said = labels[seen], np.concatenate([np.empty(0, np.int64), *answers])
            found = {"sample": np.array(seen, dtype=np.int64), "label": own, "answer": said}
            right = f"the network's largest output is the label of {(own == said).sum()} of {len(own)} images of "
            return found, f"{right}{self.labelled.name!r}" if at_chance(own, said) else ""

        key = self.study.key("labels") | {"images": self.labelled.fingerprint}
        return str(self.study.results.arrays("labels", key, compute)[1])

    @cached_property
    def without_labels(self) -> str:
        """Why the images' labels can't be told as outputs of the network; "" if they can."""
        self.labelled.example  # noqa: B018  raises where no image can be read, which is another matter
        try:
            self._labels  # noqa: B018
        except (ImageError, StudyError) as problem:
            return str(problem)
        return ""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the network's outputs."""
        return self._labels[1]

    @property
    def called(self) -> tuple[str, ...]:
        """What the network itself calls its outputs; () if it does not tell."""
        return self.study.model.outputs if isinstance(self.study.model, ZeroShot) else ()

    def output_names(self, count: int) -> list[str]:
        """What outputs are called: as the network tells, by the names of the study's classes, or by their numbers."""
        if len(self.called) == count:
            return [*self.called]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of labels that may mean nothing, which is said where they are used
            names = [] if self.without_labels else display_names(self.names)
        return names if len(names) == count else [*map(str, range(count))]

    @property
    def take_long(self) -> bool:
        """Whether :attr:`statistics` are not there, and take a backward pass for each of many channels and batch."""
        p = self.study.parameters
        backward = closed_form(self.study.model, p.target, p.lower) is None
        many = backward and self.study.shapes[0].channels > MANY_BACKWARD
        return many and not self.known

    @property
    def known(self) -> bool:
        """Whether :attr:`statistics` are there."""
        return "_classified" in self.__dict__ or self.study.results.has("classes", self._key())

    @property
    def statistics(self) -> ClassStatistics:
        """How relevant each channel is to each class, and all average relevance vectors; one pass over the images.

        If the reference images are of the same images and not known yet, the same pass finds them too.
        """
        return self._classified[0]

    @property
    def relevant(self) -> NDArray[np.int64]:
        """In how many images of each class each channel is relevant: see :class:`ClassStatistics`."""
        return self.statistics.relevant

    @cached_property
    def _classified(self) -> tuple[ClassStatistics, list[Unreadable]]:
        """The class statistics, and the labelled images that could not be read."""
        p, (labels, names) = self.study.parameters, self._labels
        how: dict[str, Any] = {"criterion": Criterion(p.min_share, p.cumulative_share or None), "seed": p.seed}
        module = closed_form(self.study.model, p.target, p.lower)
        own = ClassRelevance(p.target, p.lower, labels, len(names), module=module, **how)
        own, lost = self.study.sweep("classes", self._key(), own, self.labelled)
        return own.result(), accepted(lost, self.study.run)

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """Every channel that is relevant to two classes, with the cosine of its two average relevance vectors.

        See :func:`pure_nb.methods.pairs.class_pairs`; :func:`pure_nb.methods.pairs.gamma_polysemantic` picks
        from it. If there is none, a warning says what would find some.
        """
        p = self.study.parameters
        found = class_pairs(self.statistics, self.study.model, self.names, min_frequency=p.min_frequency)
        if found.empty:
            limit = f"cumulative_share={p.cumulative_share:g}" if p.cumulative_share else f"min_share={p.min_share:g}"
            answer = (
                "a larger cumulative_share"
                if p.cumulative_share
                else "cumulative_share=0.8, which means the same in every width,"
            )
            warnings.warn(
                f"no channel of {p.target!r} is relevant to two classes by {limit} in {p.min_frequency:.0%} of their "
                f"images, so there are no pairs; {answer} or a smaller min_frequency may find some",
                StudyWarning,
                stacklevel=3,
            )
        return found

    def wordnet_pairs(
        self,
        wordnet: WordNet | None = None,
        measures: tuple[str, ...] = ("wup", "path", "lch"),
        synsets: Mapping[str, str] | None = None,
    ) -> pd.DataFrame:
        """:attr:`pairs`, with the WordNet similarities of the two classes.

        Parameters
        ----------
        wordnet
            Where to look: by default what ships for the glyph world, and the user's WordNet for all else.
        measures
            Some of :data:`pure_nb.methods.wordnet.MEASURES`.
        synsets
            What WordNet calls some classes, where their names would be misunderstood: ``{"king": "king.n.10"}``.

        Raises
        ------
        WordNetError
            If there is no WordNet, or it lacks what a measure needs.
        """
        return with_similarities(self.pairs, wordnet or self._wordnet, self._meant(synsets), measures)

    def agreement(
        self,
        measure: str = "wup",
        wordnet: WordNet | None = None,
        synsets: Mapping[str, str] | None = None,
        **how: Any,
    ) -> MantelResult:
        """Whether similar classes activate the channels through similar sources: cosines against WordNet.

        Parameters
        ----------
        measure
            One of :data:`pure_nb.methods.wordnet.MEASURES`.
        wordnet, synsets
            As in :meth:`wordnet_pairs`.
        how
            Of :func:`pure_nb.methods.agreement.agreement`: ``permutations``, ``replicates``, ``level``, ``seed``.

        Raises
        ------
        WordNetError
            If there is no WordNet, or it lacks what the measure needs.
        ArgumentError
            If there are fewer than three pairs whose classes are in WordNet.
        """
        classes = sorted({*self.pairs["class_1"], *self.pairs["class_2"]})
        likeness = similarity_matrix(wordnet or self._wordnet, classes, self._meant(synsets), measure)
        return agreement(self.pairs, likeness, **how)

    def _meant(self, synsets: Mapping[str, str] | None) -> dict[str, str]:
        return {**self.study.images.synsets, **(synsets or {})}

    @cached_property
    def _wordnet(self) -> WordNet:
        """What ships, if it has the classes; else the user's."""
        from pure_nb.methods.wordnet import find_wordnet, shipped_wordnet  # late: not everyone has NLTK

        return shipped_wordnet() if self.study.images.drawn else find_wordnet()

    def split(
        self,
        channel: int,
        classes: Sequence[str] | None = None,
        score: Score = "bounded",
        *,
        ownership: Ownership = "symmetric",
        clamp: Clamp = "channels",
        held_out: bool = True,
        validation: Any = None,
    ) -> Split:
        """One channel of the target layer split between classes, or between its virtual neurons.

        The first is done by its average relevance vectors and the labelled images of the classes. The second needs no
        labels: a virtual neuron's vector is the mean of its circuits, and its images are those of its references.

        The split is fitted to every second of these images: they make the vectors, and they choose the threshold. The
        others are for validation. For virtual neurons they are also kept out of the clusters: those of the fitted half
        alone are found anew, as many as the neuron has and named after its own, and each of the other images belongs to
        the nearest.

        Parameters
        ----------
        channel
            Of the target layer, a ``Conv2d`` or ``Linear``; the lower layer must be its own input.
        classes
            Names of at least two classes; None takes the virtual neurons, named A, B ...
        score
            By which the threshold is chosen: see :func:`pure_nb.methods.splitting.choose_rho`.
        ownership
            By which rule sources are owned: see :func:`pure_nb.methods.ownership.assign_sources`.
        clamp
            How it is found in which validation images the channel is relevant: see
            :func:`pure_nb.methods.relevance.class_attribution`.
        held_out
            If False, all images make the vectors, and the clusters are the neuron's own: the images for validation then
            are so for the threshold only.
        validation
            Images of one's own for validation, as for :func:`pure_nb.images.sources.as_images`, with labels if it is a
            split between classes. It then is fitted to all images of the study.

        Raises
        ------
        StudyError
            If a class is not known, a class or virtual neuron has fewer than two images, or none for validation, there
            is a single virtual neuron, or the lower layer is not the target's input.
        """
        self.study.require_channel(channel)
        asked = Splitter(self, score, ownership, clamp, held_out, validation)
        return next(asked.splits([(channel, classes)]))

    @cached_property
    def _number(self) -> dict[str, int]:
        """The network's output of each class, by its name."""
        return numbered(self.names)

    @cached_property
    def _by_class(self) -> list[NDArray[np.int64]]:
        """The labelled images of each class, without those that could not be read."""
        labels = self._labels[0].copy()
        labels[[lost.sample for lost in self._classified[1]]] = -1
        order = np.argsort(labels, kind="stable")
        return np.split(order, np.searchsorted(labels[order], np.arange(len(self.names))))[1:]

    def _samples_of(self, classes: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The labelled images of some classes, and which of these each is of."""
        found = [self._by_class[number] for number in classes]
        samples, concept = np.concatenate(found), np.repeat(np.arange(len(found)), [*map(len, found)])
        order = np.argsort(samples)
        return samples[order], concept[order]

    def parts(self, output: str | int, *, channels: int = 50) -> ClassParts:
        """The parts of the study's neurons that carry an output over its images.

        Parameters
        ----------
        output, channels
            See :func:`pure_nb.reasons.class_parts.class_parts`.

        Raises
        ------
        StudyError
            If the images have no labels, or none of the class.
        """
        return class_parts(self.study, output, channels)

    def faithfulness(self, outputs: Sequence[str | int] | None = None, **how: Any) -> Faithfulness:
        """Whether the parts that carry classes do: these are switched off, and on alone, against whole channels.

        Parameters
        ----------
        outputs, how
            See :func:`pure_nb.reasons.faithfulness.faithfulness`: ``images``, ``units``, ``each``, ``others``,
            ``channels``.

        Raises
        ------
        ArgumentError
            If there are fewer than two classes, or no such output.
        StudyError
            If the images have no labels, a class has fewer than two, or no part speaks for any.
        """
        return faithfulness(self.study, outputs, **how)

    def outliers(
        self, names: str | int | Sequence[str | int] | None = None, *, count: int = 3, channels: int = 50
    ) -> Outliers:
        """For each class the images that other parts carry than the others: shortcuts, and odd ones.

        Parameters
        ----------
        names, count, channels
            See :func:`pure_nb.reasons.outliers.outliers`.

        Raises
        ------
        StudyError, ArgumentError
            If the images have no labels, there is no such class, or it has fewer than three images.
        """
        return outliers(self.study, names, count=count, channels=channels)

    def ratios(self, gamma: float = 0.5, *, validation: Any = None, **how: Any) -> pd.DataFrame:
        """How well splits work on the whole: one for each gamma-polysemantic pair (Hesse et al., their average table).

        Parameters
        ----------
        gamma
            Pairs with a cosine below it; see :func:`pure_nb.methods.pairs.gamma_polysemantic`.
        validation, how
            Of :meth:`split`: ``score``, ``ownership``, ``clamp``, ``held_out``.

        Returns
        -------
        DataFrame
            A row for each pair: ``channel``, ``class_1``, ``class_2``, ``cosine``, ``rho``; and the means of
            :meth:`pure_nb.methods.splitting.Split.table` over both classes, of its positive and of its signed ratios:
            ``positive_own`` and ``signed_own`` (a class's own part to the whole channel), ``positive_other`` and
            ``signed_other`` (of the other class's part), ``positive_residual`` and ``signed_residual``. All are NaN
            where a class has fewer than two images. Pairs of one channel are not independent: average over its pairs
            first.
        """
        if validation is not None:
            how["validation"] = as_images(validation, "validation")
        asked = {name: getattr(value, "fingerprint", value) for name, value in sorted(how.items())}
        key = self._key() | {
            "step": "ratios",
            "how": FORMAT["ratios"],
            "min_frequency": self.study.parameters.min_frequency,
            "gamma": gamma,
        }
        return self.study.results.table("ratios", key | asked, lambda _: self._ratios(gamma, how))

    def _ratios(self, gamma: float, how: dict[str, Any]) -> pd.DataFrame:
        import pandas as pd  # late, see pure_nb._imports

        chosen = gamma_polysemantic(self.pairs, gamma)
        pairs = [*chosen[["channel", "class_1", "class_2", "cosine"]].itertuples(index=False, name=None)]
        rows = [(*pair, *[np.nan] * 7) for pair in pairs]
        numbers = np.array([[self._number[name] for name in pair[1:3]] for pair in pairs], dtype=np.int64)
        images = self.statistics.images[numbers.reshape(-1, 2)]
        # Those of the same classes one after the other, since not all may fit into memory at once.
        able = sorted(np.flatnonzero(images.min(axis=1) > 1).tolist(), key=lambda row: pairs[row][1:3])
        splits = Splitter(self, **how).splits([(pairs[row][0], pairs[row][1:3]) for row in able]) if able else ()
        bar = progress_bar(splits, "splits", len(able), unit="pair", shown=self.study.run.progress)
        for row, split in zip(able, bar):
            table = split.table()
            own, rest = table["part"] == table["images"], table["part"] == "residual"
            parts = (own, ~own & ~rest, rest)
            means = [table[sums][which].mean() for sums in ("positive", "signed") for which in parts]
            rows[row] = (*pairs[row], split.rho, *means)
        ratios = [f"{sums}_{part}" for sums in ("positive", "signed") for part in ("own", "other", "residual")]
        return pd.DataFrame(rows, columns=["channel", "class_1", "class_2", "cosine", "rho", *ratios])

    def _numbers(self, names: Sequence[str]) -> list[int]:
        """The numbers of classes; raises for one that there is not."""
        for name in names:
            if name not in self._number:
                near = difflib.get_close_matches(name, self.names, n=3, cutoff=0.4) or self.names[:8]
                raise StudyError(f"there is no class {name!r} among {len(self.names)}; near it: {', '.join(near)}")
        return [self._number[name] for name in names]

    def pictures(self, name: str, count: int = 5) -> list[NDArray[np.uint8]]:
        """The first labelled images of a class, as pictures."""
        chosen = self._by_class[self._numbers([name])[0]][:count]
        return [self.labelled.picture(sample) for sample in chosen.tolist()]

    def _key(self) -> dict[str, object]:
        p, limit = self.study.parameters, "cumulative_share" if self.study.parameters.cumulative_share else "min_share"
        return self.study.key("classes") | {limit: getattr(p, limit), "images": self.labelled.fingerprint}
