"""The evaluation of a study: every method judged, every part named, and a report of it to read.

Brings together what :mod:`pure_nb.judges.evaluation` and :mod:`pure_nb.judges.naming` compute. The chapter *What CLIP
says* reads it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pure_nb.compute.results import Results
from pure_nb.compute.store import Store
from pure_nb.errors import StudyError
from pure_nb.images.labels import display_names
from pure_nb.judges import evaluation
from pure_nb.judges.evaluation import TRUE, Metric
from pure_nb.judges.naming import Namer, nouns, vocabulary_from
from pure_nb.methods.descriptions import LRP, PURE, RANDOM, fitting
from pure_nb.methods.descriptions import descriptions as descriptions_of
from pure_nb.methods.virtual import CHOICES, WHOLE, kmeans_some, part_name
from pure_nb.notes import Note

if TYPE_CHECKING:
    from pure_nb.judges.embedders import Embedder
    from pure_nb.study import Study

FORMAT = 1
"""Part of what stored tables are found by; raised when this package computes them differently."""

METHODS = (PURE, LRP, "activation", "activation at maximum")
"""What is judged of every study, where it has it; see :func:`pure_nb.methods.descriptions.descriptions`."""

CROPPED = {
    "peak": "cropped to where relevance flows from the maximum, as in the paper",
    "crp": "cropped to where relevance flows from all positions",
    "activation": "cropped to where the activation map is high",
}
"""The parameter ``crop`` in words."""

ALL = "one ResNet, all neurons"
PUBLISHED = pd.DataFrame(
    [
        (what, of, method, value)
        for what, of, values in (
            ("correlation with CLIP (Pearson)", "ResNet-101", {"DINOv2": 0.57, "PURE": 0.38, "activation": 0.17}),
            ("intra", ALL, {"DINOv2": 5.79, "PURE": 5.85, "activation": 5.95}),
            ("inter", ALL, {"DINOv2": 6.48, "PURE": 6.40, "activation": 6.26}),
            ("overall", ALL, {"": 6.08}),
            ("gap", "187 of 1000 neurons with CLIP's gap > 1.5", {"DINOv2": 1.65, "PURE": 1.42, "activation": 0.91}),
        )
        for method, value in values.items()
    ],
    columns=["what", "of", "method", "published"],
)
"""Figures of Dreyer et al. (2024) on ImageNet, by CLIP ViT-B/32."""

REPRODUCE = (
    "pure-nb evaluate imagenet-timm-resnet101 --data path/to/imagenet/val --embedder clip --embedder dinov2 "
    "--k 2 3 4 5 --clear 1.5 --device cuda"
)
"""What computes the published figures anew; also with ``imagenet-timm-resnet50`` and ``imagenet-timm-resnet34``."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a judge says about a study.

    Attributes
    ----------
    title
        The study and the layer.
    crops
        How the images were cropped.
    judge
        Name of the embedder that measured the distances.
    distances
        From :func:`pure_nb.judges.evaluation.distance_table`.
    alignment
        From :func:`pure_nb.judges.evaluation.alignment`.
    metric
        Of the distances.
    """

    title: str
    crops: str
    judge: str
    distances: pd.DataFrame
    alignment: pd.DataFrame
    metric: str

    def summary(self, *, baseline: str = PURE, clear: float | None = None) -> pd.DataFrame:
        """Means, errors and paired tests; see :func:`pure_nb.judges.evaluation.summary`."""
        return evaluation.summary(self.distances, baseline, clear=clear, judge=self.judge)


def descriptions(study: Study, embedders: Sequence[Embedder] = ()) -> dict[str, NDArray[np.float32]]:
    """All descriptions of a study's reference images, by the names of the methods: ``[channels, n, d]`` each.

    PURE by gradient and by LRP (left out with a warning where its rules do not fit the network), the activations of the
    paper, those at the position of the maximum, and the embedders' own vectors.
    """
    given = descriptions_of(study, embedders)
    wanted = {name: given[name] for name in (*METHODS, *(embedder.name for embedder in embedders)) if name in given}
    return {name: one.vectors() for name, one in fitting(wanted, study).items()}


def evaluate(
    study: Study,
    judge: Embedder,
    others: Sequence[Embedder] = (),
    *,
    ks: Sequence[int] = CHOICES,
    metric: Metric = "euclidean",
    subsets: int = 30,
) -> Evaluation:
    """Judge all ways of splitting a study's neurons into parts; results are kept in the study's store.

    Parameters
    ----------
    study
        Any study.
    judge
        The embedder that measures how far apart crops are.
    others
        Embedders that split the neurons into parts by their own vectors, as the judge's own do; for comparison.
    ks
        Numbers of parts.
    metric
        See :data:`pure_nb.judges.evaluation.Metric`.
    subsets
        Of the alignment.

    Notes
    -----
    The vectors of all methods are in memory together: four bytes for each neuron, image and dimension. For 2048
    neurons, 100 images and all of the paper's methods that is 6 GB. What is computed from them goes neuron by neuron.

    Raises
    ------
    StudyError
        If two methods have one name.
    EvaluationError
        If the metric can't be used, or no neuron is activated by two images.

    Examples
    --------
    >>> evaluate(study, load_embedder("pixels"), ks=[2], subsets=2).distances.columns[:3].tolist()
    ['channel', 'method', 'k']
    """
    taken = [*METHODS, RANDOM, TRUE, *(embedder.name for embedder in (judge, *others))]
    if len(set(taken)) < len(taken):
        raise StudyError(f"two methods have the same name, among {', '.join(taken)}; name each embedder otherwise")
    evaluation.pair_distances(np.eye(2, dtype=np.float32), metric)  # a wrong metric fails now, and not after hours
    if max(ks, default=0) > study.parameters.n_references:
        raise StudyError(
            f"{study.parameters.n_references} reference images can't be in {max(ks)} parts; take a smaller k"
        )
    vectors = descriptions(study, (judge, *others))
    own = vectors[judge.name]
    named = metric if isinstance(metric, str) else f"{metric.__module__}.{metric.__qualname__}"
    key: dict[str, object] = {"format": FORMAT, "judge": judge.name, "ks": list(ks), "metric": named}
    key |= {"seed": study.parameters.seed, "references": study.ranked}
    key["methods"] = {
        name: hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()[:16] for name, array in vectors.items()
    }
    how: dict[str, Any] = {"used": study.references.active, "metric": metric, "seed": study.parameters.seed}
    how["run"] = study.run

    def measured(blocks: Store | None) -> pd.DataFrame:
        known = {} if study.objects is None else {TRUE: study.objects}
        return evaluation.distance_table(own, vectors | known, ks=ks, store=blocks, **how)

    def aligned(_: Store | None) -> pd.DataFrame:
        followers = {name: array for name, array in vectors.items() if name != judge.name}
        return evaluation.alignment(own, followers, subsets=subsets, **how)

    results = study.results if isinstance(metric, str) else Results(None)  # a function may change and keep its name
    table = results.table("distances", key, measured)
    found = results.table("alignment", key | {"subsets": subsets}, aligned)
    crops = study.crops.note or CROPPED[study.parameters.crop]
    title = f"{study.name}: {study.parameters.target}"
    return Evaluation(title, crops, judge.name, table, found, named)


def class_words(study: Study) -> list[str]:
    """Names of the network's classes as one says them: of ImageNet's ids the first English word."""
    if why := study.classes.without_labels:
        raise StudyError(f"the classes can't be the vocabulary, since {why}; give a list of words")
    return display_names(study.classes.names)


def vocabulary(study: Study, source: str | None = None) -> list[str]:
    """What parts may be called.

    Parameters
    ----------
    study
        Whose classes are meant.
    source
        ``"classes"``, the default; ``"wordnet"``: the nouns of :func:`pure_nb.judges.naming.nouns`; or a text file
        with a word a line.
    """
    if source in (None, "classes"):
        return class_words(study)
    if source == "wordnet":
        return nouns()
    return vocabulary_from(Path(source))


def namer(study: Study, embedder: Embedder, words: Sequence[str] | None = None) -> Namer:
    """What names the parts of a study's neurons.

    Parameters
    ----------
    study
        Any study.
    embedder
        With a text tower.
    words
        The vocabulary; the names of the network's classes by default. See also :func:`pure_nb.judges.naming.nouns`.
    """
    crops = study.crops.embeddings(embedder.joint)[study.references.active]
    words = class_words(study) if words is None else list(dict.fromkeys(words))
    return Namer(crops, words, study.crops.word_vectors(embedder, words), seed=study.parameters.seed)


def part_names(
    study: Study, embedder: Embedder, words: Sequence[str] | None = None, *, k: int | None = None
) -> pd.DataFrame:
    """A name for each neuron and each of its parts.

    Parameters
    ----------
    study, embedder, words
        As for :func:`namer`.
    k
        Number of parts of each neuron; the study's own choice by default.

    Returns
    -------
    DataFrame
        ``channel, part`` (``"whole"``, A, B ...), ``size``, where there are names by hand ``by_hand``, ``label`` (the
        word, or "unsure"), all of :class:`pure_nb.judges.naming.Name`, and where the objects are known ``true``, the
        most frequent one, with its ``share``. Dead neurons are left out.

    Examples
    --------
    >>> part_names(study, load_embedder("mini-clip"), words=["cat", "house"]).columns[:3].tolist()
    ['channel', 'part', 'size']
    """
    names, vectors = namer(study, embedder, words), study.crops.embeddings(embedder.joint)
    rows, noted = [], study.notes.fitting() if k is None else {}
    for channel in np.flatnonzero(study.references.alive).tolist():
        neuron, active = study.neuron(channel), study.references.active[channel]
        if k is None:
            labels = np.where(active, study.virtual[channel].labels, -1)
        else:
            labels = kmeans_some(study.circuits[channel], active, k, seed=study.parameters.seed)
        for part in range(-1, labels.max() + 1):
            members = active if part < 0 else labels == part
            name = names.name(vectors[channel][members], vectors[channel][active])
            part_of = WHOLE if part < 0 else part_name(part)
            row: dict[str, Any] = {
                "channel": channel,
                "part": part_of,
                "size": int(members.sum()),
            }
            row |= {"by_hand": noted.get((channel, part_of), Note()).name} if noted else {}
            row |= {"label": name.label(), **asdict(name)}
            if neuron.objects is not None:
                label, count = np.unique(neuron.objects[members], return_counts=True)
                one = np.argmax(neuron.objects == label[count.argmax()])  # among the references that show it
                row |= {"true": neuron.names[one], "share": count.max() / count.sum()}
            rows.append(row)
    return pd.DataFrame(rows)


def write(
    found: Evaluation, folder: Path, *, names: pd.DataFrame | None = None, clear: float | None = None, command: str = ""
) -> list[Path]:
    """Write an evaluation as tidy tables, figures and a short report in Markdown.

    Parameters
    ----------
    found
        From :func:`evaluate`.
    folder
        Is made if it is not there; files in it are replaced.
    names
        From :func:`part_names`.
    clear
        As for :func:`pure_nb.judges.evaluation.summary`: adds a table of those neurons alone.
    command
        How to make it again, for the report.

    Returns
    -------
    list of Path
        What was written, the report first.
    """
    from pure_nb.figures.evaluation_plots import alignment_figure, distances_figure, gaps_figure, write_all

    tables = {"distances": found.distances, "summary": found.summary(), "alignment": found.alignment}
    if clear is not None:
        tables["summary-clear"] = found.summary(clear=clear)
    if names is not None:
        tables["names"] = names
    files: dict[str, Any] = {f"{name}.{kind}": own for name, own in tables.items() for kind in ("parquet", "csv")}
    files["distances.png"] = distances_figure(tables["summary"], found.judge)
    files["gaps.png"] = gaps_figure(found.distances, tables["summary"], found.judge)
    files["alignment.png"] = alignment_figure(found.alignment, found.judge)
    files["report.md"] = _markdown(found, tables, clear, command)
    *others, report = write_all(folder, files)
    return [report, *others]


def _markdown(found: Evaluation, tables: dict[str, pd.DataFrame], clear: float | None, command: str) -> str:
    neurons, judge = found.distances["channel"].nunique(), _escaped(found.judge)
    parts = [
        f"# {_escaped(found.title)}, judged by {judge}",
        f"Made with {_code(command)}." if command else "",
        f"{neurons} neurons; {found.metric} distances of their reference images, {found.crops}. *Intra* is the mean "
        "over pairs of images of one part, *inter* over pairs of different parts; a large gap between them is good. "
        "± is the standard error over neurons. "
        f"*Difference* is the gap's difference from {PURE}'s, p by Wilcoxon's test over neurons, corrected for "
        "all methods and numbers of parts.",
        _distances_text(tables["summary"]),
        "![Intra and inter distances of each method](distances.png)",
        "![Gap of each neuron for each method](gaps.png)",
        "## Alignment",
        f"Correlation of a method's distances with those of {judge}, over all pairs of images of one neuron. The "
        "interval resamples whole neurons; the naive one would hold if all pairs were independent, and is far too "
        "narrow.",
        _alignment_text(found.alignment),
        "![Correlation of each method](alignment.png)",
    ]
    if clear is not None:
        own = tables["summary-clear"]
        parts += [
            f"## Neurons with {judge}'s own gap above {clear:g}",
            f"Chosen by that gap, so {judge}'s own row is too large. A k without such neurons is left out.",
            _distances_text(own),
        ]
    if "names" in tables:
        parts += ["## Names", _names_text(tables["names"])]
    parts += [
        "## What was published",
        "Dreyer et al. (2024), ImageNet, CLIP ViT-B/32. To compute these again, with ImageNet and a GPU:",
        f"```console\n$ {REPRODUCE}\n```",
        _markdown_table(PUBLISHED.assign(published=PUBLISHED["published"].map("{:.2f}".format))),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _distances_text(table: pd.DataFrame) -> str:
    shown = table[["k", "method", "neurons"]].copy()
    for name in ("intra", "inter", "gap", "difference"):
        shown[name] = _with_error(table, name, f"{name}_se")
    shown["p"] = ["" if np.isnan(p) else f"{p:.2g}" for p in table["p"]]
    return _markdown_table(shown)


def _alignment_text(table: pd.DataFrame) -> str:
    shown = table[["method", "measure"]].copy()
    shown["subsets"] = _with_error(table, "mean", "standard_error") + table["subsets"].map(" ({})".format)
    for name, low, high in (("pooled", "low", "high"), ("naive interval", "naive_low", "naive_high")):
        value = table["pooled"].map("{:.3f} ".format) if name == "pooled" else ""
        shown[name] = value + table[low].map("({:.3f} to ".format) + table[high].map("{:.3f})".format)
    shown["within a neuron"] = _with_error(table, "within", "within_se")
    return _markdown_table(shown)


def _with_error(table: pd.DataFrame, name: str, error: str) -> pd.Series[str]:
    return table[name].map("{:.3f} ± ".format) + table[error].map("{:.3f}".format)


def _names_text(names: pd.DataFrame) -> str:
    text = "A part gets a word where random crops do not fit as well (p at most 0.05) and where it stays the same when "
    text += "the crops are drawn again (stability at least 0.95); otherwise the answer is *unsure*."
    for what, some in {"parts": names[names["part"] != WHOLE], "whole neurons": names[names["part"] == WHOLE]}.items():
        sure = some[some["label"] == some["word"]]
        text += f" {len(sure)} of {len(some)} {what} get a name"
        if "true" in names and len(sure):
            text += f", {(sure['word'] == sure['true']).mean():.0%} of them that of their most frequent object"
        text += "."
    columns = ["channel", "part", "size", "by_hand", "label", "runner_up", "score", "margin", "gain", "stability", "p"]
    columns = [name for name in (*columns, "true", "share") if name in names]
    shown = names[columns].head(40).copy()
    for name in ("score", "margin", "gain", "stability", "p", "share"):
        if name in shown:
            shown[name] = shown[name].map("{:.3f}".format)
    more = f"\n\n... and {len(names) - len(shown)} more rows in names.csv." if len(names) > len(shown) else ""
    return f"{text}\n\n{_markdown_table(shown)}{more}"


def _markdown_table(table: pd.DataFrame) -> str:
    cells = [[_escaped(cell) for cell in row] for row in table.astype(str).to_numpy().tolist()]
    rows = [list(table.columns), ["---"] * len(table.columns), *cells]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _escaped(text: str) -> str:
    """A name as Markdown shows it: no table, emphasis, formula or markup comes of its characters."""
    return re.sub(r"([\\`*_\[\]<|$~&])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    return f"`` {text} ``" if "`" in text else f"`{text}`"
