"""What a study has found that still holds when it asks for something else, or runs otherwise."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from pure_nb.compute.results import ASKED
from pure_nb.network import models
from pure_nb.parameters import NEAREST, PARAMETERS, RUN, checked

if TYPE_CHECKING:
    from pure_nb.study import Study

ALWAYS = {"model", "images", "store", "run", "precision", "allow_nondeterministic"}
"""What all depends on but the network's fingerprint."""

_REFERENCES, _CLASSES = {*ASKED["references"]}, {*ASKED["classes"], "min_share", "cumulative_share"}

OF_STUDY: dict[str, set[str]] = {
    "shapes": {"target", "lower"},
    "_found": _REFERENCES,
    "ranked": _REFERENCES,
    "circuits": {*ASKED["circuits"]},
    "virtual": {*ASKED["virtual"]},
    "layouts": {*ASKED["layouts"]},
    "neurons": {*ASKED["neurons"]},
    "stability": {*ASKED["stability"]},
    "part_labels": {*ASKED["neurons"]},
    "objects": {*ASKED["objects"]},
    "activation_vectors": {*ASKED["activations"]},
    "without_lrp": {*_REFERENCES, "lower"},
}
"""What a study has in memory, and the parameters that it depends on."""

OF_PARTS: dict[str, dict[str, set[str]]] = {
    "classes": {
        "labelled": set(),
        "_wordnet": set(),
        "_classified": _CLASSES,
        "pairs": {*_CLASSES, "min_frequency"},
    },
    "crops": {"_boxed": {*ASKED["boxes"]}, "_without_crp": {*_REFERENCES, "crop_lower"}},
}
"""The same of what a study knows of classes, and of its crops."""


def replaced(study: Study, **changes: Any) -> Study:
    """The same study with other parameters, or run otherwise: ``study.replace(rule="lrp", device="cuda")``.

    It has at hand what this one has found and what does not depend on the changes. A lower layer that was asked for as
    the nearest is that of the new target.
    """
    own = {name: changes.pop(name) for name in ("name", "model", "images", "store") if name in changes}
    how = {name: changes.pop(name) for name in RUN if name in changes}
    run = changes.pop("run", study.run)
    run = replace(run, **how) if how else run
    asked = asdict(study.parameters) | ({"lower": NEAREST} if vars(study)["_nearest"] else {})
    made = replace(study, parameters=checked({**asked, **changes}), run=run, **own)
    _keep(study, made)
    return made


def _keep(before: Study, after: Study) -> None:
    """Let a study have all that another has found and that depends on nothing in which the two differ."""
    p, other = before.parameters, after.parameters
    changed = {name for name in PARAMETERS if getattr(p, name) != getattr(other, name)}
    changed |= {name for name in ("model", "images", "store") if getattr(before, name) is not getattr(after, name)}
    if "references" in changed or ("seed" in changed and p.references != "top"):
        changed.add("n_references")  # on which all depends that is found of references
    if before.run != after.run and (before.run.skip_unreadable > after.run.skip_unreadable or p.allow_nondeterministic):
        changed.add("run")  # images that were left out are asked for, or results are of one size of batches
    if "model" not in changed and "_weights" in vars(before):
        if models.fingerprint(after.model) == before._weights:
            vars(after)["_weights"] = before._weights
        else:  # it was trained on meanwhile
            changed.add("model")
    hand_on(before, after, changed)


def hand_on(before: Study, after: Study, changed: Set[str] = frozenset()) -> None:
    """Let a study have all that another has found and that depends on nothing that is named as changed."""
    pairs: list[tuple[Any, Any, dict[str, set[str]]]] = [(before, after, OF_STUDY)]
    pairs += [(vars(before)[part], getattr(after, part), own) for part, own in OF_PARTS.items() if part in vars(before)]
    for old, new, kept in pairs:
        holds = {name for name, asked in kept.items() if name in vars(old) and not changed & (asked | ALWAYS)}
        vars(new).update({name: vars(old)[name] for name in holds})
