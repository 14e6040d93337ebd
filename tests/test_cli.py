"""The command line: what is printed, what is written, and what is said where something is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from small import picture_folder
from typer.testing import CliRunner, Result

from pure_nb import load_study
from pure_nb._options import numbers
from pure_nb.classes import Classes
from pure_nb.cli import app
from pure_nb.errors import StudyError, WordNetError
from pure_nb.methods.references import TopReferences
from pure_nb.methods.rewiring import load_split
from pure_nb.network import cut as cut_module
from pure_nb.study import Study

TOML = """\
name = "small"
[model]
source = "glyphnet"
[images]
source = "glyphs"
length = 40
[parameters]
target = "layer4"
lower = "layer3"
n_references = 6
n_clusters = 2
[run]
batch_size = 20
"""


CONV = ["--target", "layer4.0.conv2", "--lower", "input:layer4.0.conv2"]
"""A layer with the sources that its own weights belong to."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study and its results."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "small.toml").write_text(TOML)
    assert call("run", folder / "small.toml", "--store", folder).exit_code == 0
    return folder


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def on(folder: Path, command: str, *arguments: object) -> Result:
    return call(command, folder / "small.toml", "--store", folder, *arguments)


def plainly(result: Result) -> str:
    """What a command said beside its result."""
    return " ".join(result.stderr.split())


def failed(result: Result, code: int = 1) -> str:
    """The message of a command that failed as it should: no traceback, one error."""
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())


def test_help() -> None:
    assert "Usage" in call().output
    text = call("--help").output
    for command in ("run", "neurons", "plot", "arv", "pairs", "split", "info"):
        assert command in text
        assert call(command, "--help").exit_code == 0


def test_run(finished: Path) -> None:
    result = on(finished, "run")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == (
        "small: layer4 (32 channels) through layer3 (64 channels), 40 images, 6 references a neuron, rule gradient"
    )
    assert lines[1].startswith("The references are more than a twentieth of the images")
    steps = [line.split(":")[0] for line in lines[2:6]]
    assert steps == ["references", "circuits", "virtual", "neurons"]
    assert re.search(r"\d+ of 32 neurons are polysemantic by the test", lines[6])
    assert {path.name.split("-")[0] for path in (finished / "small").glob("[!.]*")} == {*steps, "objects", "stability"}


def test_run_with_options(finished: Path) -> None:
    result = on(finished, "run", "--n", 4, "--rule", "lrp", "--batch-size", 8, "--device", "cpu", "--workers", 0)
    assert result.exit_code == 0, result.output
    assert "4 references a neuron, rule lrp" in result.stdout


def test_the_next_commands_work_as_they_are_printed(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    result = on(finished, "run", "--n", 50, "--rule", "gradient", "--skip-unreadable")
    assert "each neuron gets all 40" in result.stdout
    neurons, plot = (line.split()[1:] for line in result.stdout.splitlines()[-2:])
    assert neurons[:1] == ["neurons"]
    assert plot[:1] == ["plot"]
    assert {"--n", "50", "--rule", "gradient", "--skip-unreadable"} <= set(neurons) & set(plot)
    made = {path.name for path in (finished / "small").glob("[!.]*")}
    for command in (neurons, plot):
        assert call(*command).exit_code == 0
    new = {path.name.split("-")[0] for path in (finished / "small").glob("[!.]*") if path.name not in made}
    assert new == set()  # nothing was computed anew, but the layouts of those that are drawn


def test_what_is_given_is_heard_though_it_is_nothing(tmp_path: Path) -> None:
    """0 is not the same as no answer."""
    (tmp_path / "small.toml").write_text(TOML)
    said = on(tmp_path, "run", "--k", 0, "--workers", 0, "--threads", 1)
    assert said.exit_code == 0, said.output
    assert f"--store {tmp_path} --k 0 --workers 0\n" in said.stdout
    chosen = load_study(tmp_path / "small.toml", store=tmp_path, n_clusters=0).neurons
    assert f" --neurons {','.join(map(str, chosen['channel'].head(3)))}\n" in said.stdout
    printed = on(tmp_path, "neurons", "--k", 3, "--seed", 1, "--rows", 1, "--workers", 0)
    assert printed.exit_code == 0, printed.output
    expected = load_study(tmp_path / "small.toml", store=tmp_path, n_clusters=3, seed=1).neurons
    assert str(expected["sizes"].iloc[0]) in printed.stdout


def test_neurons(finished: Path, tmp_path: Path) -> None:
    result = on(finished, "neurons", "--rows", 3)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split()[:2] == ["channel", "k"]
    assert "meanings" in lines[0]
    assert len(lines) == 5
    assert lines[-1] == "... 29 more (--rows 0 prints all)"
    assert len(on(finished, "neurons", "--rows", 0).stdout.splitlines()) == 33
    for name in ("new/out.csv", "new/out.parquet"):
        assert on(finished, "neurons", "--out", tmp_path / name).exit_code == 0
    table = pd.read_csv(tmp_path / "new" / "out.csv")
    assert len(table) == 32
    assert (table["channel"] == pd.read_parquet(tmp_path / "new" / "out.parquet")["channel"]).all()


def test_plot(finished: Path, tmp_path: Path) -> None:
    result = on(finished, "plot", "--neurons", "3,5-6", "--count", 2, "--out", tmp_path / "figures")
    assert result.exit_code == 0, result.output
    expected = [str(tmp_path / "figures" / f"small-layer4-{channel}.png") for channel in (3, 5, 6)]
    assert result.stdout.split() == expected
    for file in expected:
        assert Image.open(file).size[0] == 888
    assert plt.get_fignums() == []  # or two thousand neurons would stay in memory


def test_plot_of_a_study_that_was_never_run(tmp_path: Path) -> None:
    """Takes the sweep, and what is drawn alone."""
    (tmp_path / "small.toml").write_text(TOML)
    result = on(tmp_path, "plot", "--neurons", "3", "--count", 2, "--out", tmp_path / "figures")
    assert result.exit_code == 0, result.output
    assert {path.name.split("-")[0] for path in (tmp_path / "small").glob("[!.]*")} == {"references"}


def test_plot_takes_the_most_polysemantic_by_default(finished: Path, tmp_path: Path) -> None:
    result = on(finished, "plot", "--count", 2, "--out", tmp_path)
    table = pd.read_parquet(next(path for path in (finished / "small").glob("neurons-*.parquet")))
    found = [int(re.findall(r"-(\d+)\.png", line)[0]) for line in result.stdout.split()]
    assert len(found) == 3
    assert set(found) <= set(table["channel"])


def test_arv(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "arvs.safetensors"
    result = on(finished, "arv", *CONV, "--out", out)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    study = load_study(finished / "small.toml", store=finished).replace(target=CONV[1], lower=CONV[3])
    found = load_file(out)
    for channel in range(32):
        classes = study.classes.statistics.relevant_classes(channel)
        assert lines[channel] == f"{channel}: {', '.join(study.classes.names[label] for label in classes) or '-'}"
        assert (found[f"{channel}.classes"] == classes).all()
        arv = study.classes.statistics.arv(study.model, channel, classes)
        np.testing.assert_array_equal(found[f"{channel}.arv"], arv)
    assert lines[-2] == "32 of 32 channels are relevant to a class"
    none = on(finished, "arv", *CONV, "--min-share", 0.99)
    assert none.stdout.splitlines() == ["0 of 32 channels are relevant to a class"]
    fewer = on(finished, "arv", *CONV, "--channel", 3, "--cumulative-share", 0.2)
    assert fewer.stdout.count("\n") == 1
    assert len(fewer.stdout) < len(lines[3])


def test_pairs(finished: Path, tmp_path: Path) -> None:
    result = on(finished, "pairs", *CONV, "--rows", 4, "--out", tmp_path / "new" / "pairs.csv")
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "new" / "pairs.csv")
    below = table[table["cosine"] < 0.5]
    first, header, *rows, more = result.stdout.splitlines()
    assert first == (
        f"{len(table)} pairs of a channel and two classes it is relevant to, {len(below)} with a cosine < 0.5"
    )
    assert header.split() == table.columns.tolist()
    assert {"wup", "path", "lch"} <= set(table.columns)
    assert [int(row.split()[0]) for row in rows] == below["channel"].head(4).tolist()
    assert more.startswith(f"... {len(below) - 4} more")
    none = on(finished, "pairs", *CONV, "--gamma", -1)
    assert none.exit_code == 0, none.output
    assert none.stdout.endswith("0 with a cosine < -1.0\n")


def test_pairs_without_wordnet(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(study: Study) -> None:
        raise WordNetError("no WordNet was found")

    monkeypatch.setattr(Classes, "wordnet_pairs", nowhere)
    result = on(finished, "pairs", *CONV, "--rows", 2)
    assert result.exit_code == 0, result.output
    assert "Without WordNet similarities: no WordNet was found" in result.stderr
    assert result.stdout.splitlines()[1].split()[-1] == "share_2"


@pytest.mark.parametrize("classes", [["cloud, atom"], ["cloud,atom,sun"], ["cloud", "atom"], ["cloud", "atom", "sun"]])
@pytest.mark.parametrize("score", ["bounded", "ratio"])
def test_split(finished: Path, tmp_path: Path, classes: list[str], score: str) -> None:
    out = tmp_path / "split.safetensors"
    result = on(finished, "split", *CONV, "--channel", 0, "--classes", *classes, "--out", out, "--score", score)
    assert result.exit_code == 0, result.output
    names = [name.strip() for name in ",".join(classes).split(",")]
    line = result.stdout.splitlines()[0]
    counts = ", ".join(rf"\d+ {name}" for name in [*names, "shared"])
    assert re.fullmatch(rf"rho = [\d.]+; sources: {counts}; a part keeps \d+% of the channel on its own images", line)
    assert sum(map(int, re.findall(r"(\d+) [a-z]", line))) == 32
    study = load_study(finished / "small.toml", store=finished)
    own = study.replace(target=CONV[1], lower=CONV[3]).classes.split(0, names, score)  # type: ignore[arg-type]
    assert line.startswith(f"rho = {own.rho:g};")
    rebuilt = load_split(study.model, out)
    images = torch.stack([study.images.tensor(i) for i in range(4)])
    with torch.inference_mode():
        torch.testing.assert_close(rebuilt.eval()(images), study.model.eval()(images), rtol=1e-5, atol=1e-5)
    owner = rebuilt.get_submodule(CONV[1]).owner
    assert f"load_split(model, '{out}')" in result.stdout
    assert int((owner == 0).sum()) == int(re.search(r"(\d+) cloud", line)[1])  # type: ignore[index]


def test_split_as_published(finished: Path) -> None:
    how = ["--ownership", "published", "--score", "ratio", "--clamp", "positions"]
    result = on(finished, "split", *CONV, "--channel", 0, "--classes", "cloud,atom", *how)
    assert result.exit_code == 0, result.output
    study = load_study(finished / "small.toml", store=finished).replace(target=CONV[1], lower=CONV[3])
    own = study.classes.split(0, ["cloud", "atom"], "ratio", ownership="published", clamp="positions")
    header, first = (line.split() for line in result.stdout.splitlines()[1:3])
    assert header == own.table().columns.tolist()
    assert first[2] == f"{own.table()['positive'][0]:.3f}"
    counts = ", ".join(f"{(own.owner == part).sum()} {name}" for part, name in enumerate(["cloud", "atom"]))
    assert f"rho = {own.rho:g}; sources: {counts}, " in result.stdout


def test_split_of_a_channel_that_is_not_relevant(finished: Path) -> None:
    """Its table is empty, and a sentence says why."""
    result = on(finished, "split", *CONV, "--channel", 0, "--classes", "cloud,atom", "--min-share", 1)
    assert result.exit_code == 0, result.output
    assert "NaN" in result.stdout
    assert "Warning: channel 0 has no ratios for 'cloud': of 2 validation images it is relevant in 0" in plainly(result)


def test_split_judged_by_other_pictures(tmp_path: Path) -> None:
    """Read as the study reads its own, and found by the names of their classes."""
    for seed, name in enumerate(("own", "other")):
        picture_folder(tmp_path / name, 24, 4, 12, seed)
    shutil.copy(Path(__file__).with_name("small.py"), tmp_path / "networks.py")
    text = """
    [model]
    source = "networks.py:plain"
    [images]
    source = "folder"
    root = "own"
    mean = [0.1, 0.2, 0.3]
    std = [0.5, 0.5, 0.5]
    resize = 12
    crop = 12
    [parameters]
    target = "4"
    lower = "input:4"
    n_references = 6
    min_share = 0.0
    """
    (tmp_path / "mine.toml").write_text(text)
    asked = ["split", tmp_path / "mine.toml", "--store", tmp_path, "--channel", 1, "--classes", "class0,class3"]
    result = CliRunner().invoke(app, [str(word) for word in [*asked, "--validation", tmp_path / "other"]])
    assert result.exit_code == 0, result.output
    study = load_study(tmp_path / "mine.toml", store=tmp_path, progress=False)
    other = load_study(tmp_path / "mine.toml", data=tmp_path / "other").images
    table = study.classes.split(1, ["class0", "class3"], validation=other).table()
    line = result.stdout.splitlines()[2].split()
    assert line[2] == f"{table['positive'][0]:.3f}"
    assert not table.equals(study.classes.split(1, ["class0", "class3"], validation=study.images).table())


def test_split_between_virtual_neurons(finished: Path) -> None:
    result = on(finished, "split", *CONV, "--channel", 5)
    assert result.exit_code == 0, result.output
    assert re.search(r"sources: \d+ A, \d+ B, \d+ shared", result.stdout)
    assert "residual" in result.stdout


def test_info(finished: Path) -> None:
    listed = call("info").stdout
    assert "glyphs" in listed
    assert "cifar10-resnet20" in listed
    result = on(finished, "info")
    assert result.exit_code == 0
    assert "small: GlyphNet, 40 images (glyphs)" in result.stdout
    assert re.search(r"layer4 +Sequential +32 channels, 12 x 12; channels second \(.*\)\n", result.stdout)
    assert re.search(r"fc +Linear +48 channels, no positions", result.stdout)
    assert "target = layer4" in result.stdout
    for path in (finished / "small").glob("*-*.safetensors"):
        assert path.name in result.stdout
    empty = call("info", finished / "small.toml", "--store", finished / "nothing")
    assert "Known: nothing yet\n" in empty.stdout
    assert f"Results in {finished / 'nothing' / 'small'}: none\n" in empty.stdout
    ships = call("info", "glyphs", "--store", finished / "nothing")
    assert "Known: references, circuits, virtual, layouts, boxes\n" in ships.stdout


@pytest.mark.parametrize("command", ["run", "neurons", "plot", "arv", "pairs", "split --channel 0", "info"])
def test_an_unknown_study(command: str) -> None:
    command, *options = command.split()
    assert failed(call(command, "glyfs", *options)).startswith(
        "Error: there is no study 'glyfs'; name a .toml file, or one that"
    )


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("plot", ["--neurons", "99"], "Error: channel 99: layer 'layer4' has channels 0 to 31"),
        (
            "plot",
            ["--neurons", "three"],
            "can't read 'three' in --neurons 'three'; expected numbers such as 3,17,20-23",
        ),
        ("run", ["--rule", "magic"], "rule must be one of gradient, lrp, got 'magic'"),
        ("run", ["--n", "0"], "n_references must be a whole number and at least 2"),
        ("run", ["--weights", "nowhere.safetensors"], "there is no file of weights"),
        ("arv", ["--channel", "32"], "channel 32: layer 'layer4' has channels 0 to 31"),
        ("arv", ["--cumulative-share", "1.5"], "cumulative_share must be a number from 0 to 1, got 1.5"),
        ("pairs", ["--target", "layer9"], "GlyphNet has no layer 'layer9'. Near it: 'layer4'"),
        (
            "split",
            ["--channel", "0"],
            "'layer4.0.conv2', 'layer4.0.downsample.0') and 'input:' with",
        ),
        ("split", [*CONV, "--channel", "0", "--classes", "atm,cat"], "there is no class 'atm' among 48; near it: atom"),
        ("split", [*CONV, "--channel", "0", "--classes", "cat", "cat"], "two or more different classes, got"),
        ("split", [*CONV, "--channel", "0", "--score", "best"], "--score must be one of ratio, bounded, got 'best'"),
        (
            "split",
            [*CONV, "--channel", "0", "--ownership", "ours"],
            "--ownership must be one of symmetric, published",
        ),
        ("split", [*CONV, "--channel", "0", "--clamp", "all"], "--clamp must be one of channels, positions, got 'all'"),
        (
            "split",
            [*CONV, "--channel", "0", "--validation", "."],
            "--validation needs a study of pictures; glyph",
        ),
        ("split", ["cat", *CONV, "--channel", "0"], "what is 'cat'? Classes come after --classes"),
        ("pairs", [*CONV, "--out", "pairs.xlsx"], "written to a .csv or .parquet file, got 'pairs.xlsx'"),
        ("pairs", [*CONV, "--gamma", "nan"], "--gamma must be a cosine, from -1 to 1, got nan"),
        ("plot", ["--neurons", "9999"], "channel 9999: layer 'layer4' has channels 0 to 31"),
        ("plot", ["--neurons", ""], "can't read '' in --neurons ''"),
        ("plot", ["--neurons", "0-99999999999"], "can't read '0-99999999999'"),
        ("run", ["--device", "nonsense"], "the device 'nonsense' can't be used here"),
        ("run", ["--device", "meta"], "the device 'meta' can't be used here"),
        ("run", ["--batch-size", "0"], "batch_size must be a whole number and at least 1, got 0"),
        ("run", ["--data", "."], "the glyph scenes are drawn and not read, so there is no use for --data '.'"),
        ("run", ["--target", "."], "GlyphNet has no layer '.'"),
        ("run", ["--weights", "."], "there is no file of weights '"),
        ("arv", ["--channel", "-1"], "channel -1: layer 'layer4' has channels 0 to 31"),
        ("atlas", ["--embedder", "pixels"], "pixels has no text tower"),
        ("atlas", ["--method", "x"], "methods must be"),
        (
            "evaluate",
            ["--embedder", "pixels", "--k", "7"],
            "6 reference images can't be",
        ),
        ("bench", ["--seed", "-1"], "seed must be a whole number and at least 0, got -1"),
    ],
)
def test_errors(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in failed(on(finished, command, *arguments))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"layer3"', '"layer33"', "GlyphNet has no layer 'layer33'. Near it: 'layer3'"),
        ('"layer3"', '"fc"', "layer 'layer4' does not depend on 'fc'"),
        ('name = "small"', "name", "is not valid TOML"),
        ('"glyphnet"', '"glyphnets"', "can't tell what network 'glyphnets' is"),
        (
            '"glyphs"\nlength = 40',
            '"folder"\nroot = "${NOT_SET_AT_ALL}"',
            "set the environment variable NOT_SET_AT_ALL",
        ),
        ('"glyphs"\nlength = 40', '"folder"\nroot = "nowhere"', "there is no folder"),
        ("length = 40", "length = 0", "at least one"),
        ("n_references = 6", 'n_references = "six"', "n_references must be a whole number and at least 2, got 'six'"),
        ("batch_size = 20", "batches = 20", "has an entry in [run] that is not known"),
        ("batch_size = 20", 'batch_size = "many"', "batch_size must be a whole number and at least 1, got 'many'"),
        ("batch_size = 20", "batch_size = true", "batch_size must be a whole number and at least 1, got True"),
        ("batch_size = 20", "device = 3", "the device '3' can't be used here"),
        ("batch_size = 20", 'skip_unreadable = "no"', "skip_unreadable must be true or false, got 'no'"),
        ('name = "small"', "name = 3", "a study's name must be letters"),
        ('[model]\nsource = "glyphnet"', "model = 3", "expected the table [model], got model = 3"),
        ('"glyphnet"', "3", "source of [model] must be a text, got 3"),
        ('"glyphnet"', '"glyphnet"\nweights = 3', "weights of [model] must be a text, got 3"),
        ('"glyphnet"', '"glyphnet"\ndepth = 3', "has an entry that is not known"),
        ('"glyphs"\nlength = 40', '"folder"\nroot = 3', "root of [images] must be a text, got 3"),
        ('"layer4"', "4", "target must be the name of a layer, got 4"),
        ('"layer3"', '["layer3"]', "lower must be the name of a layer, got ['layer3']"),
        ("n_references = 6", "seed = -1", "seed must be a whole number and at least 0, got -1"),
        ("n_references = 6", "min_share = true", "min_share must be a number from 0 to 1, got True"),
    ],
)
def test_errors_in_the_study(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in TOML
    (tmp_path / "small.toml").write_text(TOML.replace(old, new))
    assert message in failed(on(tmp_path, "run"))


OUT = ("neurons", "plot", "atlas", "arv", "pairs", "split", "evaluate", "bench")
"""Commands that write what they found."""


@pytest.mark.parametrize("command", OUT)
def test_results_that_cannot_be_written(tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before the work, and not after hours."""
    (tmp_path / "small.toml").write_text(TOML)
    (tmp_path / "file").touch()
    monkeypatch.setattr("pure_nb.loading.load_study", None)  # not even the study is loaded
    suffix = {"neurons": ".csv", "pairs": ".csv", "arv": ".safetensors", "split": ".safetensors"}.get(command, "")
    needed = ["--channel", "0"] if command == "split" else []
    for out in (tmp_path / "file" / f"x{suffix}", Path("/proc/nothing") / f"x{suffix}"):
        told = failed(on(tmp_path, command, *needed, "--out", out))
        assert str(out.parent) in told
        assert "can't be written" in told
    if suffix:
        (tmp_path / f"folder{suffix}").mkdir()
        assert "is a folder" in failed(on(tmp_path, command, *needed, "--out", tmp_path / f"folder{suffix}"))
    else:
        assert "can't be written" in failed(on(tmp_path, command, "--out", tmp_path / "file"))


@pytest.mark.parametrize("command", [*OUT, "run", "info"])
@pytest.mark.parametrize("study", ["", "glyfs", "a/b", "../x", "nowhere.toml", "folder", "folder.toml", "binary.toml"])
def test_no_study(tmp_path: Path, command: str, study: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("folder", "folder.toml"):
        (tmp_path / folder).mkdir()
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\0")
    told = failed(call(command, study, *(["--channel", "0"] if command == "split" else [])))
    assert told.startswith("Error: ")
    assert repr(study) in told


THEIRS = {
    "syntax": ("def make(:\n", "can't be run: SyntaxError"),
    "raises": ("raise KeyError('here')\n", "can't be run: KeyError: 'here'"),
    "exits": ("import sys\nsys.exit(0)\n", "can't be run: SystemExit: 0"),
    "nothing": ("", "has no function 'make'"),
    "inside": ("def make(*_):\n    return {}['x']\n", "KeyError: 'x'"),
    "wrong": ("def make(*_):\n    return 'no'\n", ""),
    "number": ("make = 3\n", ""),
}
"""Users' files, and what is said of them."""


@pytest.mark.parametrize("fault", THEIRS)
@pytest.mark.parametrize("use", ["network", "embedder", "contestant"])
def test_faults_in_a_users_file(finished: Path, tmp_path: Path, fault: str, use: str) -> None:
    text, message = THEIRS[fault]
    (tmp_path / "own.py").write_text(text)
    own = f"{tmp_path / 'own.py'}:make"
    if use == "network":
        (tmp_path / "small.toml").write_text(TOML.replace("glyphnet", own))
        told = failed(on(tmp_path, "info"))
    elif use == "embedder":
        told = failed(on(finished, "evaluate", "--embedder", own, "--k", "2", "--out", tmp_path))
    else:
        how = ["--truth", "objects", "--only", "make", "--no-choose", "--out", tmp_path]
        told = failed(on(finished, "bench", "--add", own, *how))
    assert "own.py" in told or "make" in told
    assert message in told


NETWORK = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Conv2d(3, 4, 3, 2), torch.nn.Conv2d(4, 48, 3, 2)
    def forward(self, x):
        if FAULT: raise KeyError("boom")
        return self.b(self.a(x)).mean((2, 3))
def make():
    return Net()
"""


@pytest.mark.parametrize("fault", ["True", "len(x) > 2", "x[:, 0, 0, 0].var() > 0 and len(x) > 1"])
@pytest.mark.parametrize("command", ["run", "arv"])
def test_faults_in_a_users_forward(tmp_path: Path, fault: str, command: str) -> None:
    """Of the first image, of a whole batch, or of some images only."""
    (tmp_path / "own.py").write_text(NETWORK.replace("FAULT", fault))
    text = TOML.replace("glyphnet", "own.py:make").replace('"layer4"', '"b"').replace('"layer3"', '"input:b"')
    (tmp_path / "small.toml").write_text(text)
    told = failed(on(tmp_path, command))
    assert "Net can't be run on a batch of" in told
    assert "KeyError: 'boom'" in told


def test_a_wrong_layer_tells_where_the_names_are(finished: Path) -> None:
    said = failed(on(finished, "neurons", "--target", "layer9"))
    assert "pure-nb info STUDY lists the layers" in said
    assert "pure-nb info" not in failed(on(finished, "plot", "--neurons", 99))


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "small.toml").write_text(TOML.replace('"glyphs"\nlength = 40', '"folder"\nroot = "pictures"'))
    assert "holds no pictures" in failed(on(tmp_path, "run"))


def test_an_unreadable_picture(tmp_path: Path) -> None:
    root = picture_folder(tmp_path / "pictures", 8, size=96)
    (root / "class1" / "003.png").write_bytes(b"\x89PNG no")
    text = TOML.replace('"glyphs"\nlength = 40', '"folder"\nroot = "pictures"\nresize = 96\ncrop = 96')
    (tmp_path / "small.toml").write_text(text)
    message = failed(on(tmp_path, "run"))
    assert "003.png" in message
    assert "--skip-unreadable" in message
    assert on(tmp_path, "run", "--skip-unreadable").exit_code == 0
    # The results know what they lack; who did not ask for that is told.
    assert "were left out of these results" in failed(on(tmp_path, "run"))
    assert on(tmp_path, "run", "--skip-unreadable").exit_code == 0
    assert on(tmp_path, "neurons", "--rows", 2).exit_code == 0
    assert on(tmp_path, "info").exit_code == 0
    (root / "class0" / "000.png").write_bytes(b"\x89PNG no")  # the first of all
    assert re.search(r"layer4 +Sequential +32 channels, 12 x 12", on(tmp_path, "info").stdout)
    for file in root.glob("*/*.png"):
        file.write_bytes(b"\x89PNG no")
    assert "Error: image 0 (" in failed(on(tmp_path, "info"))


def test_a_network_that_can_not_take_the_images(tmp_path: Path) -> None:
    text = TOML.replace('source = "glyphnet"', 'source = "grey.py:grey"')
    (tmp_path / "grey.py").write_text("from torch import nn\ndef grey():\n    return nn.Sequential(nn.Conv2d(1, 4, 3))")
    (tmp_path / "small.toml").write_text(text.replace('"layer4"', '"0"').replace('"layer3"', '"input:0"'))
    for command in ("info", "run"):
        said = failed(on(tmp_path, command))
        assert "Error: Sequential can't be run on a batch of 1 images [1, 3, 96, 96]" in said
        assert "grey=True" in said


def test_a_network_that_draws_random_numbers(tmp_path: Path) -> None:
    (tmp_path / "left_on.py").write_text(
        "from torch import nn\nfrom torch.nn import functional\n"
        "class Drop(nn.Module):\n    def forward(self, x):\n        return functional.dropout(x, 0.5)\n"
        "def left_on():\n    return nn.Sequential(nn.Conv2d(3, 4, 8, 8), Drop(), nn.Conv2d(4, 3, 3), nn.ReLU())"
    )
    text = TOML.replace('source = "glyphnet"', 'source = "left_on.py:left_on"')
    (tmp_path / "small.toml").write_text(text.replace('"layer4"', '"3"').replace('"layer3"', '"0"'))
    assert "as '1' (Drop) draws random numbers" in failed(on(tmp_path, "run"))
    result = on(tmp_path, "run", "--allow-nondeterministic")
    assert result.exit_code == 0, result.output
    assert "Warning: results are of one run" in plainly(result)
    (following,) = re.findall(r"pure-nb neurons (.*)", result.stdout)
    assert "--allow-nondeterministic" in following
    asked = text.replace('"layer4"', '"3"').replace('"layer3"', '"0"\nallow_nondeterministic = true')
    (tmp_path / "small.toml").write_text(asked)
    assert on(tmp_path, "neurons").exit_code == 0


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    """Through all that is printed and written."""
    root = picture_folder(tmp_path / "a", 24, size=96)
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    os.rename(root, odd)
    os.rename(os.path.join(odd, "class0"), os.path.join(odd, os.fsdecode(b"\xff")))
    os.rename(os.path.join(odd, "class1", "003.png"), os.path.join(odd, "class1", os.fsdecode(b"\xfe.png")))
    Path(odd, "class1", os.fsdecode(b"\xfe.png")).write_bytes(b"no picture")
    text = TOML.replace('"glyphs"\nlength = 40', '"folder"\nroot = "."\nresize = 96\ncrop = 96')
    (tmp_path / "small.toml").write_text(text)
    how = ("--data", odd, "--skip-unreadable")
    result = on(tmp_path, "run", *how)
    assert result.exit_code == 0, result.output
    assert "left out: image" in result.stdout
    assert f"--data '{tmp_path}/caf".encode() in result.stdout_bytes
    assert b"/caf\xe9'" in result.stdout_bytes  # as one can type it
    assert on(tmp_path, "neurons", *how, "--out", tmp_path / "n.csv").exit_code == 0
    assert "\\udcff" in (tmp_path / "n.csv").read_text(encoding="utf-8")
    result = on(
        tmp_path, "atlas", *how, "--neurons", "3", "--count", "4", "--crop", "activation", "--out", tmp_path / "o"
    )
    assert result.exit_code == 0, result.output
    assert on(tmp_path, "info", *how[:2]).exit_code == 0


def test_a_damaged_result_is_reported_and_computed_again(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(TOML)
    expected = on(tmp_path, "neurons").stdout
    (path,) = (tmp_path / "small").glob("neurons-*.parquet")
    path.write_bytes(b"damaged")
    again = on(tmp_path, "neurons")
    assert again.stdout == expected
    assert re.search(f"^Warning: .*{path.name}.* is not used and will be computed again", again.stderr, re.MULTILINE)


def test_stopped_by_ctrl_c_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small.toml").write_text(TOML)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cut_module, "initial_relevance", stop)
        message = failed(on(tmp_path, "run"), 130)
    assert "Stopped. What is finished is kept; the same command goes on from there." in message
    assert list((tmp_path / "small").glob("references-*.safetensors"))

    with monkeypatch.context() as patch:
        patch.setattr(TopReferences, "update", stop)  # the pass that is done is not done again
        result = on(tmp_path, "run")
    assert result.exit_code == 0
    assert "neurons are polysemantic by the test" in result.stdout


@pytest.mark.skipif(os.name != "posix", reason="signals are different here")
def test_a_real_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(TOML.replace("length = 40", "length = 400000"))
    command = [sys.executable, "-u", "-m", "pure_nb.cli", "run", str(tmp_path / "small.toml"), "--store", str(tmp_path)]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background would ignore it
    how: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "preexec_fn": heard}
    with subprocess.Popen(command, **how) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("small: layer4")  # it is under way
        for timeout in (30, 30, 60):  # one that comes within a callback of C code may get lost: press again
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                _, error = process.communicate(timeout=timeout)
                break
        else:
            process.kill()
    assert process.returncode == 130
    assert "Stopped. What is finished is kept" in error
    assert "Traceback" not in error


@pytest.mark.nightly
def test_on_a_cluster(finished: Path, tmp_path: Path) -> None:
    """In a process of its own, which must end by itself."""
    pytest.importorskip("distributed")
    (tmp_path / "small.toml").write_text(TOML)
    options = ["--cluster", "local:2", "--threads", "1", "--store", tmp_path]
    command = [sys.executable, "-m", "pure_nb.cli", "run", tmp_path / "small.toml", *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.search(r"dashboard: http://\S+", done.stdout)
    assert "workers so far, 1 threads each" in done.stdout
    assert "Traceback" not in done.stderr
    made = sorted((tmp_path / "small").glob("[!.]*"))
    assert len(made) >= 8
    for one in made:
        assert (finished / "small" / one.name).read_bytes() == one.read_bytes(), one.name


def test_wrong_ways_to_run(finished: Path) -> None:
    message = failed(on(finished, "run", "--cluster", "local:none"))
    assert "how many workers is 'local:none'? Expected for instance 'local:4'" in message
    assert "--threads must be at least 1, got 0" in failed(on(finished, "run", "--threads", 0))
    message = failed(on(finished, "run", "--precision", "double"))
    assert "precision must be one of" in message


@pytest.mark.parametrize(
    ("text", "expected"), [("3", [3]), ("3,17", [3, 17]), ("0-3", [0, 1, 2, 3]), (" 5 , 7-8 ", [5, 7, 8])]
)
def test_numbers(text: str, expected: list[int]) -> None:
    assert numbers(text) == expected


@pytest.mark.parametrize("text", ["", "a", "3,", "1-", "-1", "1.5", "1-2-3"])
def test_wrong_numbers(text: str) -> None:
    with pytest.raises(StudyError, match="expected numbers such as 3,17,20-23"):
        numbers(text)


def test_evaluate(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = on(finished, "evaluate", "--embedder", "mini-clip", "--embedder", "pixels", "--k", "2", "3", "--out", out)
    assert result.exit_code == 0, result.output
    assert re.search(r"\bPURE\b(?! LRP)", result.output)
    assert "PURE LRP" in result.output
    assert f"{out / 'report.md'}: the report" in result.output.replace("\n", "")
    table = pd.read_parquet(out / "distances.parquet")
    assert sorted(table["k"].unique()) == [2, 3]
    assert {"mini-CLIP", "pixels", "true objects", "random"} < set(table["method"])
    names = pd.read_csv(out / "names.csv")
    assert {"label", "true", "share"} <= set(names)
    assert (out / "gaps.png").stat().st_size > 5000
    assert plt.get_fignums() == []


def test_bench(finished: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "import numpy as np\n\ndef first(task):\n    every = np.arange(task.truth.size)\n"
        "    return every.reshape(task.truth.shape) % 2\n"
    )
    out = tmp_path / "out"
    how = [
        "--count",
        6,
        "--self-merged",
        3,
        "--no-choose",
        "--out",
        out,
        "--only",
        "activation",
        "--only",
        "first",
        "--n",
        12,
    ]
    result = on(finished, "bench", *how, "--add", f"{own}:first", "--seed", 3)
    assert result.exit_code == 0, result.output
    for stem in ("objects", "planted"):
        board = pd.read_csv(out / "small" / f"{stem}.csv")
        assert set(board["method"]) == {"PURE", "activation", "first"}
        assert (out / "small" / f"{stem}.png").stat().st_size > 5000
        assert set(pd.read_parquet(out / "small" / f"{stem}-neurons.parquet")["method"]) == set(board["method"])
    assert plt.get_fignums() == []
    note = json.loads((out / "small" / "planted.json").read_text())
    assert len(note["groups"]) == 9
    before = (out / "small" / "planted.csv").read_bytes()
    assert on(finished, "bench", *how, "--add", f"{own}:first", "--seed", 3).exit_code == 0
    assert (out / "small" / "planted.csv").read_bytes() == before
    assert on(finished, "bench", *how, "--add", f"{own}:first", "--seed", 4).exit_code == 0
    assert json.loads((out / "small" / "planted.json").read_text())["groups"] != note["groups"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--truth", "nonsense"], "truth must be planted, objects, wired or either, got 'nonsense'"),
        (["--how", "nonsense"], "how must be one of random, similar, dissimilar, overlapping, got 'nonsense'"),
        (["--strengths", "1,x"], "can't read --strengths '1,x'"),
        (["--strengths", "1,1,1"], "strengths must be one number for each of 2 sources"),
        (["--only", "nonsense"], "there is no contestant 'nonsense'; there are PURE,"),
        (["--add", "nonsense"], "can't tell what contestant 'nonsense' is"),
        (["--k", "1"], "can't draw 60 groups of 1"),
    ],
)
def test_errors_of_bench(finished: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    told = failed(on(finished, "bench", "--no-choose", "--n", 12, "--out", tmp_path, *arguments))
    assert message in told


def test_the_best_recipe_is_two_options(finished: Path) -> None:
    result = on(finished, "run", "--lower", "nearest", "--start", "peak")
    assert result.exit_code == 0, result.output
    assert "through input:layer4.0 (64 channels)" in result.output
    assert "--lower nearest --start peak" in result.output
    expected = load_study(finished / "small.toml", store=finished, lower="input:layer4.0", start="peak").neurons
    printed = on(finished, "neurons", "--lower", "nearest", "--start", "peak", "--out", finished / "best.csv")
    assert printed.exit_code == 0
    assert pd.read_csv(finished / "best.csv")["channel"].tolist() == expected["channel"].tolist()


def test_evaluate_without_words(finished: Path, tmp_path: Path) -> None:
    how = ["--embedder", "pixels", "--k", "2-3", "--metric", "cosine", "--out", tmp_path]
    result = on(finished, "evaluate", *how)
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "names.csv").exists()
    assert sorted(pd.read_csv(tmp_path / "summary.csv")["k"].unique()) == [2, 3]
    assert "needs a judge with a text tower" in failed(on(finished, "evaluate", *how, "--words", "classes"))
    again = on(finished, "evaluate", *how, "--embedder", "mini-clip", "--words", "none")
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--embedder", "nonsense"], "can't tell what embedder 'nonsense' is"),
        (["--embedder", "pixels", "--k", "1"], "--k must be 2 or more, got 1"),
        (["--embedder", "pixels", "--k", "x"], "can't read 'x' in --k 'x'"),
        (["3"], "what is '3'? Numbers of parts come after --k"),
        (["--embedder", "pixels", "--metric", "nonsense"], "the metric 'nonsense' can't be used"),
        (["--embedder", "pixels", "--crop", "nonsense"], "crop must be one of"),
        (["--embedder", "pixels", "--features", "nonsense"], "--features must be one of tokens, pooled"),
        (["--embedder", "pixels", "--clear", "99"], "no neuron has a gap above 99"),
        (["--embedder", "mini-clip", "--words", "nowhere.txt"], "can't be read as a list of words"),
    ],
)
def test_evaluate_errors(finished: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    assert message in failed(on(finished, "evaluate", *arguments, "--out", tmp_path))


def test_evaluate_without_labels(tmp_path: Path) -> None:
    """The network's classes are not those of the folder, so that there is no vocabulary: the rest is written."""
    picture_folder(tmp_path / "pictures", 12, size=96)
    text = TOML.replace(
        'source = "glyphs"\nlength = 40', 'source = "folder"\nroot = "pictures"\nresize = 96\ncrop = 96'
    )
    (tmp_path / "folder.toml").write_text(text.replace('name = "small"', 'name = "folder"'))
    how = ["--store", tmp_path, "--embedder", "mini-clip", "--k", "2", "--out", tmp_path / "out"]
    result = call("evaluate", tmp_path / "folder.toml", *how)
    assert result.exit_code == 0, result.output
    assert "Without names:" in result.output
    assert not (tmp_path / "out" / "names.csv").exists()
    message = failed(call("evaluate", tmp_path / "folder.toml", *how, "--words", "classes"))
    assert "the classes can't be the vocabulary" in message


def test_what_is_stored_is_listed_and_pruned(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(TOML)
    assert "nothing is stored" in call("store", "--store", tmp_path / "nowhere").output
    assert on(tmp_path, "run").exit_code == 0
    folder = tmp_path / "small"
    (folder / "notes.txt").write_text("mine")
    study = load_study(tmp_path / "small.toml", store=tmp_path)
    assert study.store is not None
    study.store.save_arrays("circuits", {"step": "circuits", "format": 0}, {"a": np.zeros(1000)})
    shown = call("store", "--store", tmp_path).output
    (row,) = (line.split() for line in shown.splitlines() if " < " in line and "unwanted" not in line)
    sizes = [kept for kept in study.store.results() if kept.key and "lower" in kept.key and kept.key["format"]]
    assert row[:3] == ["small", study.identity["weights"], study.identity["images"]]
    assert row[3:6] == ["layer4", "<", "layer3"]
    assert int(row[6]) == len(sizes)
    assert float(row[7]) == pytest.approx(sum(kept.size for kept in sizes) / 1e6, abs=0.001)
    assert float(row[8]) == pytest.approx(0, abs=0.01)
    assert "unwanted" in shown
    count = len(study.store.results())
    assert CliRunner().invoke(app, ["store", "--store", str(tmp_path), "--prune"], input="n\n").exit_code == 0
    assert len(study.store.results()) == count  # asked, and said no
    assert "small: 1 results removed" in call("store", "small", "--store", tmp_path, "--prune", "--yes").output
    assert len(study.store.results()) == count - 1
    assert "small: 0 results removed" in call("store", "--store", tmp_path, "--prune", "--days", 9, "--yes").output
    again = load_study(tmp_path / "small.toml", store=tmp_path)
    with study.store.claimed("references", {}):
        said = call("store", "--store", tmp_path, "--prune", "--days", 0, "--yes")
        assert "is in use by process" in said.output
    assert again._is_there("references")
    call("store", "--store", tmp_path, "--prune", "--days", 0, "--yes")
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    assert "--days is a number from 0 and goes with --prune" in failed(call("store", "--days", 3))
