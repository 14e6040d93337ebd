"""The command line: what is printed, what is written, and what is said where something is wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from small import picture_folder
from typer.testing import CliRunner, Result

from pure_nb import circuits as circuits_module
from pure_nb import load_study
from pure_nb.cli import _numbers, app
from pure_nb.parameters import StudyError
from pure_nb.references import TopReferences
from pure_nb.splitting import load_split
from pure_nb.study import Study
from pure_nb.wordnet import WordNetError

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
n = 6
k = 2
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
    assert re.search(r"\d+ of 32 neurons fall apart", lines[6])
    assert {path.name.split("-")[0] for path in (finished / "small").glob("[!.]*")} == {*steps, "objects"}


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
    assert new == {"layouts"}  # nothing else was computed anew


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
        assert Image.open(file).size[0] == 1140


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
    study = load_study(finished / "small.toml", store=finished).using(target=CONV[1], lower=CONV[3])
    found = load_file(out)
    for channel in range(32):
        classes = study.classes.relevant_classes(channel)
        assert lines[channel] == f"{channel}: {', '.join(study.class_names[label] for label in classes) or '-'}"
        assert (found[f"{channel}.classes"] == classes).all()
        np.testing.assert_array_equal(found[f"{channel}.arv"], study.classes.arv(study.model, channel, classes))
    assert lines[-2] == "32 of 32 channels are relevant to a class"
    none = on(finished, "arv", *CONV, "--share", 0.99)
    assert none.stdout.splitlines() == ["0 of 32 channels are relevant to a class"]
    fewer = on(finished, "arv", *CONV, "--channel", 3, "--mass", 0.2)
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

    monkeypatch.setattr(Study, "wordnet_pairs", nowhere)
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
    own = study.using(target=CONV[1], lower=CONV[3]).split_of(0, names, score)  # type: ignore[arg-type]
    assert line.startswith(f"rho = {own.rho:g};")
    rebuilt = load_split(study.model, out)
    images = torch.stack([study.images.tensor(i) for i in range(4)])
    with torch.inference_mode():
        torch.testing.assert_close(rebuilt.eval()(images), study.model.eval()(images), rtol=1e-5, atol=1e-5)
    owner = rebuilt.get_submodule(CONV[1]).owner
    assert f"load_split(model, '{out}')" in result.stdout
    assert int((owner == 0).sum()) == int(re.search(r"(\d+) cloud", line)[1])  # type: ignore[index]


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
    assert re.search(r"layer4 +Sequential +32 channels, 12 x 12", result.stdout)
    assert re.search(r"fc +Linear +48 channels, no positions", result.stdout)
    assert "target = layer4" in result.stdout
    for path in (finished / "small").glob("*-*.safetensors"):
        assert path.name in result.stdout
    empty = call("info", finished / "small.toml", "--store", finished / "nothing")
    assert "none yet" in empty.stdout


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
        ("run", ["--rule", "magic"], "rule must be one of ('gradient', 'lrp'), got 'magic'"),
        ("run", ["--n", "0"], "n must be at least 2"),
        ("run", ["--weights", "nowhere.safetensors"], "there is no file of weights"),
        ("arv", ["--channel", "32"], "channel 32: layer 'layer4' has channels 0 to 31"),
        ("arv", ["--mass", "1.5"], "mass must be a number from 0 to 1, got 1.5"),
        ("pairs", ["--target", "layer9"], "GlyphNet has no layer 'layer9'. Near it: 'layer4'"),
        (
            "split",
            ["--channel", "0"],
            "'layer4.0.conv2', 'layer4.0.downsample.0') and 'input:' with",
        ),
        ("split", [*CONV, "--channel", "0", "--classes", "atm,cat"], "there is no class 'atm' among 48; near it: atom"),
        ("split", [*CONV, "--channel", "0", "--classes", "cat", "cat"], "two or more different classes, got"),
        ("split", [*CONV, "--channel", "0", "--score", "best"], "--score must be one of ratio, bounded, got 'best'"),
        ("split", ["cat", *CONV, "--channel", "0"], "what is 'cat'? Classes come after --classes"),
        ("pairs", [*CONV, "--out", "pairs.xlsx"], "written to a .csv or .parquet file, got 'pairs.xlsx'"),
    ],
)
def test_errors(finished: Path, command: str, arguments: list[str], message: str) -> None:
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
        ("n = 6", 'n = "six"', "n must be a whole number, got 'six'"),
        ("batch_size = 20", "batches = 20", "has an entry in [run] that is not known"),
    ],
)
def test_errors_in_the_study(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in TOML
    (tmp_path / "small.toml").write_text(TOML.replace(old, new))
    assert message in failed(on(tmp_path, "run"))


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
        assert "Error: the network can't take the images, tensors [3, 96, 96] of torch.float32" in said
        assert "grey=True" in said


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
        tmp_path, "atlas", *how, "--neurons", "3", "--count", "4", "--look", "activation", "--out", tmp_path / "o"
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
    assert re.search(f"^Mind: .*{path.name}.* is not used and will be computed again", again.stderr, re.MULTILINE)


def test_stopped_by_ctrl_c_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small.toml").write_text(TOML)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(circuits_module, "seeded", stop)
        message = failed(on(tmp_path, "run"), 130)
    assert "Stopped. What is finished is kept; the same command goes on from there." in message
    assert list((tmp_path / "small").glob("references-*.safetensors"))

    with monkeypatch.context() as patch:
        patch.setattr(TopReferences, "update", stop)  # the pass that is done is not done again
        result = on(tmp_path, "run")
    assert result.exit_code == 0
    assert "neurons fall apart" in result.stdout


@pytest.mark.skipif(os.name != "posix", reason="signals are different here")
def test_a_real_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(TOML.replace("length = 40", "length = 400000"))
    command = [sys.executable, "-u", "-m", "pure_nb.cli", "run", str(tmp_path / "small.toml"), "--store", str(tmp_path)]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background would ignore it
    how: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "preexec_fn": heard}
    with subprocess.Popen(command, **how) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("small: layer4")  # it is under way
        for patience in (30, 30, 60):  # one that comes within a callback of C code may get lost: press again
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                _, error = process.communicate(timeout=patience)
                break
        else:
            process.kill()
    assert process.returncode == 130
    assert "Stopped. What is finished is kept" in error
    assert "Traceback" not in error


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
    assert _numbers(text) == expected


@pytest.mark.parametrize("text", ["", "a", "3,", "1-", "-1", "1.5", "1-2-3"])
def test_wrong_numbers(text: str) -> None:
    with pytest.raises(StudyError, match="expected numbers such as 3,17,20-23"):
        _numbers(text)


def test_evaluate(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = on(finished, "evaluate", "--embedder", "mini-clip", "--embedder", "pixels", "--k", "2", "3", "--out", out)
    assert result.exit_code == 0, result.output
    assert "PURE gradient" in result.output
    assert "PURE LRP" in result.output
    assert f"{out / 'report.md'}: the report" in result.output.replace("\n", "")
    table = pd.read_parquet(out / "distances.parquet")
    assert sorted(table["k"].unique()) == [2, 3]
    assert {"mini-CLIP", "pixels", "true objects", "random"} < set(table["method"])
    names = pd.read_csv(out / "names.csv")
    assert {"said", "true", "share"} <= set(names)
    assert (out / "gaps.png").stat().st_size > 5000


def test_bench(finished: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "import numpy as np\n\ndef first(world):\n    every = np.arange(world.truth.size)\n"
        "    return every.reshape(world.truth.shape) % 2\n"
    )
    out = tmp_path / "out"
    how = ["--count", 6, "--null", 3, "--no-choose", "--out", out, "--only", "activation", "--only", "first", "--n", 12]
    result = on(finished, "bench", *how, "--add", f"{own}:first", "--seed", 3)
    assert result.exit_code == 0, result.output
    for stem in ("objects", "planted"):
        board = pd.read_csv(out / "small" / f"{stem}.csv")
        assert set(board["method"]) == {"PURE", "activation", "first"}
        assert (out / "small" / f"{stem}.png").stat().st_size > 5000
        assert set(pd.read_parquet(out / "small" / f"{stem}-neurons.parquet")["method"]) == set(board["method"])
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
        (["--truth", "nonsense"], "truth must be planted or objects, got 'nonsense'"),
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
    expected = load_study(finished / "small.toml", store=finished, lower="input:layer4.0", seed="peak").neurons
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
