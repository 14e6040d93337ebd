"""What is asked of a network is checked wherever it is asked: in Python, by a call, or in a file."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import Items, noise, plain
from typer.main import get_command

from pure_nb.cli import app
from pure_nb.compute.results import FORMAT, as_before, outdated
from pure_nb.compute.store import fingerprint
from pure_nb.errors import ArgumentError, StudyError
from pure_nb.images.data import Images
from pure_nb.loading import load_study
from pure_nb.parameters import PARAMETERS, RENAMED, Parameters, Run, checked
from pure_nb.study import Study

TOML = """\
[model]
source = "glyphnet"
[images]
source = "glyphs"
length = 4
[parameters]
target = "layer4"
lower = "layer3"
"""

WRONG = [
    ("n_references", 1, "n_references must be a whole number and at least 2, got 1"),
    ("n_references", 2.5, "n_references must be a whole number and at least 2, got 2.5"),
    ("n_references", "9", "n_references must be a whole number and at least 2, got '9'"),
    ("n_clusters", -1, "n_clusters must be a whole number and at least 0, got -1"),
    ("n_clusters", True, "n_clusters must be a whole number and at least 0, got True"),
    ("seed", -1, "seed must be a whole number and at least 0, got -1"),
    ("ranked_by", "sum", "ranked_by must be one of max, mean, got 'sum'"),
    ("rule", "LRP", "rule must be one of gradient, lrp, got 'LRP'"),
    ("start", 3, "start must be one of activation, peak, unit, got 3"),
    ("crop", "box", "crop must be one of peak, crp, activation, got 'box'"),
    ("precision", "float64", "precision must be one of float32, bfloat16, float16, got 'float64'"),
    ("min_share", 2, "min_share must be a number from 0 to 1, got 2"),
    ("cumulative_share", float("nan"), "cumulative_share must be a number from 0 to 1, got nan"),
    ("min_frequency", "0.5", "min_frequency must be a number from 0 to 1, got '0.5'"),
    ("lower", 3, "lower must be the name of a layer, got 3"),
]

RUN = [
    ("batch_size", 0, "batch_size must be a whole number and at least 1, got 0"),
    ("batch_size", "32", "batch_size must be a whole number and at least 1, got '32'"),
    ("workers", 1.5, "workers must be a whole number and at least 0, got 1.5"),
    ("skip_unreadable", "no", "skip_unreadable must be true or false, got 'no'"),
    ("progress", 0, "progress must be true or false, got 0"),
    ("channels_last", "yes", "channels_last must be true or false, got 'yes'"),
    ("device", "gpu", "the device 'gpu' can't be used here"),
    ("device", 99, "the device '99' can't be used here"),
]


def written(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)


def from_file(folder: Path, text: str) -> Study:
    path = folder / "own.toml"
    path.write_text(TOML + text)
    return load_study(path, store=folder)


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_parameters_check_themselves(name: str, value: Any, message: str, tmp_path: Path) -> None:
    how: dict[str, Any] = {"target": "layer4", "lower": "layer3"}
    for make in (
        lambda: Parameters(**(how | {name: value})),
        lambda: replace(Parameters(**how), **{name: value}),
        lambda: checked(how | {name: value}),
        lambda: from_file(tmp_path, f"{name} = {written(value)}\n" if name != "lower" else "n_references = 1"),
    ):
        with pytest.raises(StudyError) as caught:
            make()
        assert str(caught.value) == message or name == "lower"


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ('seed = "peak"\nrandom = 1\n', "`seed` is now `start`, `random` is now `seed`"),
        ('seed = "all"\n', "`seed` is now `start`"),
        ("n = 50\nk = 2\n", "`n` is now `n_references`, `k` is now `n_clusters`"),
        ('by = "mean"\nshare = 0.1\n', "`by` is now `ranked_by`, `share` is now `min_share`"),
        ("mass = 0.8\np = 0.5\n", "`mass` is now `cumulative_share`, `p` is now `min_frequency`"),
    ],
)
def test_a_study_file_of_before_is_told_what_was_renamed(table: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError) as caught:
        from_file(tmp_path, table)
    assert str(caught.value) == f"parameters of a study were renamed: {told}; write the new names"


def test_the_new_names_are_read(tmp_path: Path) -> None:
    found = from_file(tmp_path, 'start = "peak"\nseed = 3\nmin_share = 0.1\n').parameters
    assert (found.start, found.seed, found.min_share) == ("peak", 3, 0.1)
    assert set(RENAMED.values()) <= set(PARAMETERS)


@pytest.mark.parametrize(("name", "value", "message"), RUN)
def test_how_to_run_is_checked(name: str, value: Any, message: str, tmp_path: Path) -> None:
    images, parameters = Images(Items(noise(4))), Parameters(target="4", lower="2", n_references=2)
    for make in (
        lambda: Run(**{name: value}),
        lambda: Study("own", plain(), images, parameters).replace(**{name: value}),
        lambda: from_file(tmp_path, f"[run]\n{name} = {written(value)}\n"),
    ):
        with pytest.raises(StudyError) as caught:
            make()
        assert str(caught.value).startswith(message)


def test_numbers_of_numpy_are_numbers() -> None:
    found = Parameters(target="4", lower="2", n_references=np.int64(9), min_share=1, min_frequency=np.float32(0.5))
    assert (type(found.n_references), type(found.min_share), type(found.min_frequency)) == (int, float, float)
    key = {"n_references": found.n_references, "min_share": found.min_share}
    assert fingerprint(key) == fingerprint({"n_references": 9, "min_share": 1.0})
    images = Images(Items(noise(4)))
    run = Run(batch_size=np.int32(3), device=torch.device("cpu"))
    study = Study("own", plain(), images, Parameters(target="4", lower="2", n_references=2), run=run)  # type: ignore[arg-type]
    assert (study.run.batch_size, study.run.device) == (3, "cpu")


SEEN = {"plot", "atlas", "evaluate", "publish", "search", "compare", "scores", "explain", "outliers"}
WHOLE = SEEN | {"run", "neurons", "note", "ablate"}
SOME = {"arv", "pairs", "split", "bench", "trial"}
TAKEN = {"neurons": WHOLE | {"split"}, "crops": SEEN, "classes": {"arv", "pairs", "split", "publish"}}
"""The commands that take the parameters of some results."""

OWN = {("evaluate", "n_clusters"), ("bench", "seed"), ("trial", "seed")}
"""Where a command's own option has the name of a parameter."""


def test_commands_take_what_is_declared() -> None:
    """Each parameter is an option of each command whose results depend on it, and of no other."""
    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert {*commands} == WHOLE | SOME | {"info", "store"}
    for name, command in commands.items():
        options = {option.name: option for option in command.params}
        for field in (*fields(Parameters), *fields(Run)):
            taking = TAKEN.get(field.metadata.get("of", ""), WHOLE | SOME) if field.name != "progress" else set()
            if (name, field.name) in OWN:
                continue
            asked = name in taking or (name in ("bench", "trial") and field.name == "n_references")
            assert (field.name in options) == asked, (
                name,
                field,
            )
            if field.name in options:
                assert options[field.name].default is None  # what is not given stays as the study says
                assert options[field.name].help[-1] == "."
                assert "`" not in options[field.name].help
    flags = {option.name: option.opts for option in commands["run"].params}
    assert [flags[name] for name in ("n_references", "start", "seed", "client", "batch_size", "skip_unreadable")] == [
        ["--n"], ["--start"], ["--seed"], ["--cluster"], ["--batch-size"], ["--skip-unreadable"]
    ]  # fmt: skip
    told = {option.name: option.help for option in commands["run"].params}
    assert told["rule"] == "How relevance is propagated: gradient or lrp."  # as the docstring says
    assert told["client"] == "Run on processes: local, local:4, slurm:8, or the address of a Dask scheduler."


def test_results_of_before_the_names_are_unwanted() -> None:
    today = {"step": "boxes", "format": FORMAT["boxes"], "target": "4", "n_references": 5}
    assert not outdated(today)
    assert not outdated({**today, "seed": 1})
    assert outdated({**today, "seed": "peak"})
    assert outdated({"step": "boxes", "format": FORMAT["boxes"], "target": "4", "n": 5})


@pytest.mark.parametrize("step", ["reasons", "graph"])
def test_reasons_of_other_parts_are_unwanted(step: str) -> None:
    parts = {"step": "virtual", "format": FORMAT["virtual"], "target": "4"}
    assert not outdated({"step": step, "format": FORMAT["reasons"], "layers": [parts]})
    assert outdated({"step": step, "format": FORMAT["reasons"] - 1, "layers": [parts]})
    assert outdated({"step": step, "format": FORMAT["reasons"], "layers": [parts, {**parts, "format": 0}]})


def test_parameters_by_their_old_names() -> None:
    study = Study.of(plain(), noise(6), "4", "2", n=3, seed=2)
    assert (study.parameters.n_references, study.parameters.seed) == (3, 2)
    assert Study.of(plain(), noise(6), "4", "2", seed="peak").parameters.start == "peak"


@pytest.mark.parametrize("run", [None, 3, "cuda"])
def test_how_a_study_runs_is_a_run(run: Any) -> None:
    study = Study.from_model(plain(), noise(6), "4", "2")
    with pytest.raises(StudyError, match=r"must be a Run, as Run\(device='cuda'\), got"):
        study.on(run)


@pytest.mark.parametrize("channel", [-1, 6, 2.5])
def test_a_channel_is_a_whole_number(channel: Any) -> None:
    study = Study.from_model(plain(), noise(6), "4", "2")
    with pytest.raises(ArgumentError, match=f"channel {channel}: layer '4' has channels 0 to 5"):
        study.neuron(channel)
    assert study.neuron(np.int64(3)).channel == 3


def test_what_there_was_not_once_is_in_no_key_as_it_was_then() -> None:
    """Or no result that was kept before is found any more."""
    asked = asdict(Parameters(target="4", lower="2"))
    assert asked.keys() - as_before(asked).keys() == {"described_by", "references"}
    other = asdict(Parameters(target="4", lower="2", described_by="combined", references="quantiles"))
    assert as_before(other) == other
