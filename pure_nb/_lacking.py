"""What a study lacks of what can be asked of one, and why.

Asked by :meth:`pure_nb.study.Study.lacks`, on which the book's chapters depend that are built on another study.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from pure_nb.errors import ArgumentError, LayerError, PureError, WordNetError
from pure_nb.network.layers import INPUT, computes_plainly, get_layer
from pure_nb.network.models import USER
from pure_nb.network.targets import Target

if TYPE_CHECKING:
    from pure_nb.study import Study

NEEDS = ("objects", "labels", "splits", "synsets", "grid", "lrp", "import")


def lacks(study: Study, *needs: str) -> dict[str, str]:
    """What a study lacks of what it is asked for, and why; empty if nothing.

    Parameters
    ----------
    study
        The study that is asked.
    needs
        ``"objects"`` under the maxima; ``"labels"`` that match the network's outputs; ``"splits"``, several images
        of two classes that share a channel; ``"synsets"`` of such classes; a ``"grid"`` of positions; ``"lrp"``,
        rules that fit; ``"import"``, by a plain process, of the network. All of them by default.

    Returns
    -------
    dict
        For each that is lacking, what completes "The study ...": ``{"labels": "has no labels that ..."}``.
    """
    if unknown := set(needs) - set(NEEDS):
        raise ArgumentError(f"{sorted(unknown)[0]!r} is nothing that a study can lack; expected one of {NEEDS}")
    asked = _Asked(study)
    whys = {need: str(getattr(asked, f"without_{need}")) for need in needs or NEEDS}
    return {need: why for need, why in whys.items() if why}


def splittable(study: Study) -> str | None:
    """The last convolution or linear layer of the target, not one of a shortcut; None if there is none."""
    target = study.parameters.target
    if ":" in target:
        return None
    inside = get_layer(study.model, target).named_modules(prefix=target)
    found = [name for name, part in inside if computes_plainly(part) and "downsample" not in name]
    return found[-1] if found else None


@dataclass
class _Asked:
    """A study of which is asked why it is without something; "" where it is not."""

    study: Study

    @cached_property
    def own(self) -> Study | None:
        """The study of a layer whose channels can be split, None if there is none."""
        layer = splittable(self.study)
        return self.study.replace(target=layer, lower=INPUT + layer) if layer else None

    @property
    def without_positions(self) -> str:
        grid = len(self.study.references.grid) == 2
        return "" if grid else f"has no grid of positions in `{self.study.parameters.target}`"

    @property
    def without_objects(self) -> str:
        if self.study.images.truth is None:
            return "does not know which object is under a neuron's maximum"
        return self.without_positions

    @property
    def without_grid(self) -> str:
        p = self.study.parameters
        prepared = [name for name in (p.target, p.lower) if Target.parse(name).prefix not in ("", INPUT)]
        named = f"has `{prepared[0]}`, which no module puts out as it is" if prepared else ""
        return self.without_positions or named

    @property
    def without_lrp(self) -> str:
        misfit = self.study.without_lrp
        return "has a network that the rules of layer-wise relevance propagation do not fit" if misfit else ""

    @property
    def without_import(self) -> str:
        own = any(type(module).__module__.startswith(USER) for module in self.study.model.modules())
        return "has a network from a file, which a plain process can't import" if own else ""

    @cached_property
    def without_labels(self) -> str:
        if self.study.classes.without_labels:
            return "has no labels that match the network's outputs"
        if self.own is None:
            return f"has no convolution or linear layer in `{self.study.parameters.target}`"
        layer = self.own.parameters.target
        self.own.shapes  # noqa: B018  raises, for another reason than the one below
        try:
            found = self.own.classes.pairs
        except LayerError:
            return f"has so many classes that those of `{layer}` do not fit into memory"
        return f"has no channel of `{layer}` that is relevant to two classes" if found.empty else ""

    @property
    def without_splits(self) -> str:
        if self.without_labels or self.own is None:
            return self.without_labels
        few = self.own.classes.pairs.dropna().empty
        return "has too few images of the classes that share a channel" if few else ""

    @property
    def without_synsets(self) -> str:
        if self.without_labels or self.own is None:
            return self.without_labels
        try:
            known = self.own.classes.wordnet_pairs(measures=("wup",)).dropna(subset="wup")
        except WordNetError:
            return "has no WordNet that is found here"
        return "has too few classes that share a channel and are in WordNet" if len(known) < 3 else ""


def described(study: Study) -> str:
    """What a study is, what is asked, what is known and how it runs: a line each."""
    p, run, known = study.parameters, study.run, "?"
    if "fingerprint" in vars(study.images) and "_weights" in vars(study):  # it must take no time
        with suppress(PureError):
            known = ", ".join(study.known()) or "nothing yet"
    parts = f"k = {p.n_clusters}" if p.n_clusters else "as many parts as are clear"
    lines = [
        f"Study {study.name!r}: the channels of {p.target!r} in {type(study.model).__name__}",
        f"images: {len(study.images):,} of {study.images.name!r}",
        f"asked: {p.n_references} references by {p.ranked_by}, circuits from {p.lower!r} by {p.rule}, {parts}",
        *([f"parts are clusters of: {study.combined}"] if study.combined and known != "?" else []),
        f"known: {known}; {f'kept in {study.store.folder}' if study.store else 'kept nowhere'}",
        f"runs: on {run.device}, {run.batch_size} images at a time",
        *([f"of one run: {study.unsteady}"] if "shapes" in vars(study) and study.unsteady else []),
    ]
    return "\n".join(lines)
