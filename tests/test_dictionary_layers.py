"""Dictionaries as layers of a network: the same function, features that can be studied, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from small import Tokens, noise, plain
from torch import Tensor, nn

from pure_nb import load_study
from pure_nb.errors import LayerError, ModelError, PureError
from pure_nb.methods.dictionaries import SparseAutoencoder
from pure_nb.network.cut import Cut
from pure_nb.network.dictionary import DictionaryLayer, resolved, with_dictionary
from pure_nb.network.layers import activations, get_layer
from pure_nb.network.models import fingerprint
from pure_nb.study import Study

CODE = """
import torch

class Twice:
    slope = {slope}

    def encode(self, x):
        return torch.cat([x, -x], dim=1).relu() * self.slope

    def decode(self, codes):
        half = codes.shape[1] // 2
        return (codes[:, :half] - codes[:, half:]) / self.slope * 0.9

def make():
    return {made}
"""


class Branch:
    """Without a way back: each feature is a sum of channels."""

    def __init__(self, channels: int, features: int = 3) -> None:
        self.weight = torch.randn(channels, features, generator=torch.Generator().manual_seed(0))

    def encode(self, x: Tensor) -> Tensor:
        return (x @ self.weight).relu()


def file(folder: Path, made: str = "Twice()", slope: float = 2.0) -> str:
    path = folder / "mine.py"
    path.write_text(CODE.format(made=made, slope=slope))
    return f"dict:{path}:make"


def test_it_computes_the_same_and_its_features_are_the_codes() -> None:
    model, images = plain(), noise(3)
    made = SparseAutoencoder(7, 20, 3, seed=1).requires_grad_(False)
    coded = with_dictionary(model, "3", made)
    torch.testing.assert_close(coded(images), model(images), atol=1e-6, rtol=1e-5)
    whole = activations(model, images, ["3"])["3"]
    found = activations(coded, images, ["3.features", "3.whole"])
    torch.testing.assert_close(found["3.whole"], whole)
    assert found["3.features"].shape == (3, 20, 6, 6)
    for image, row, column in ((0, 0, 0), (2, 5, 1)):  # position by position
        own = made.encode(whole[image, :, row, column][None])[0]
        torch.testing.assert_close(found["3.features"][image, :, row, column], own)
    assert isinstance(get_layer(model, "3"), nn.ReLU), "the network is left as it was"
    other = with_dictionary(coded, "3", Branch(7))  # takes the place of the first
    assert isinstance(get_layer(other, "3.whole"), nn.ReLU)
    torch.testing.assert_close(other(images), model(images), atol=0, rtol=0)


def test_what_comes_after_is_reached_through_the_features_alone() -> None:
    model, images = plain().requires_grad_(False), noise(2)
    made = SparseAutoencoder(7, 20, 3).requires_grad_(False)
    coded = with_dictionary(model, "3", made)
    whole = activations(model, images, ["3"])["3"]
    rows = whole.movedim(1, -1).reshape(-1, 7)
    codes = made.encode(rows).requires_grad_()
    through = (made.decode(codes) + rows - made.decode(codes).detach()).reshape(2, 6, 6, 7).movedim(-1, 1)
    after = model[4:](through)  # the rest of the network
    (gradient,) = torch.autograd.grad(after[torch.arange(2), [1, 3]].sum(), codes)
    cut = Cut.at(coded, images, "3.features", "8")
    found = cut.relevance(torch.tensor([1, 3]), "unit")
    expected = (codes.detach() * gradient).reshape(2, 6, 6, 20).movedim(-1, 1)
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-4)
    assert found.abs().sum() > 0


def test_a_feature_that_is_changed_changes_what_comes_after() -> None:
    model, images = plain(), noise(2)
    made = SparseAutoencoder(7, 20, 3).requires_grad_(False)
    coded = with_dictionary(model, "3", made)
    whole = activations(model, images, ["3"])["3"]
    rows = whole.movedim(1, -1).reshape(-1, 7)
    codes = made.encode(rows)
    one = int(codes.sum(dim=0).argmax())
    gone = rows - (codes[:, [one]] * made.decoder[one]) * made.scale
    expected = model[4:](gone.reshape(2, 6, 6, 7).movedim(-1, 1))

    def without(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[..., one] = 0
        return output

    with get_layer(coded, "3.features").register_forward_hook(without):
        torch.testing.assert_close(coded(images), expected, atol=1e-6, rtol=1e-4)
    assert not torch.allclose(expected, model(images), atol=1e-4)


def test_circuits_go_through_the_encoder(tmp_path: Path) -> None:
    """Input times gradient of a feature, written down."""
    model, images = plain().requires_grad_(False), noise(12)
    branch = Branch(7)
    coded = with_dictionary(model, "3", branch)
    study = Study.from_model(coded, images, "3.features", "1", n_references=4, store=tmp_path, progress=False)
    assert study.shapes[0].channels == 3
    assert study.shapes[0].grid == (6, 6)
    sample = study.references.sample
    for feature in range(3):
        for place, number in enumerate(sample[feature]):
            leaf = activations(model, images[number : number + 1], ["1"])["1"].requires_grad_()
            rows = model[2:4](leaf).movedim(1, -1).reshape(-1, 7)
            value = (rows @ branch.weight[:, feature]).relu()
            (gradient,) = torch.autograd.grad((value**2 / 2).sum(), leaf)  # relevance starts with the activation
            own = (leaf.detach() * gradient).sum(dim=(0, 2, 3)).numpy()
            own = own / (np.abs(own).sum() + 1e-10)
            np.testing.assert_allclose(study.circuits[feature, place], own, atol=1e-5)
    assert len(study.neurons) == 3


@pytest.mark.parametrize(("lower", "named"), [("3", "3.whole"), ("nearest", "input:3.features"), ("1", "1")])
def test_as_a_target(tmp_path: Path, lower: str, named: str) -> None:
    target = f"{file(tmp_path)}@3"
    study = Study.from_model(plain(), noise(8), target, lower, n_references=3, store=tmp_path, progress=False)
    assert (study.parameters.target, study.parameters.lower) == ("3.features", named)
    assert study.circuits.shape == (14, 3, 5 if lower == "1" else 7)
    assert study.replace(n_references=2).parameters.lower == named
    assert [layer.name for layer in study.survey()][3:6] == ["3.whole", "3.features", "3"]
    assert study.replace(target="4", lower="3.features").shapes[1].channels == 14


def test_tokens(tmp_path: Path) -> None:
    images = noise(6)
    study = Study.from_model(
        Tokens().eval(), images, f"{file(tmp_path)}@patches:second", "patches:first", n_references=3, store=tmp_path
    )
    assert study.parameters.target == "patches:second.features"
    assert study.shapes[0].grid == (3, 3)
    assert study.shapes[0].channels == 16
    inner = Study.from_model(Tokens().eval(), images, f"{file(tmp_path)}@second.mlp", "second.mlp.0", store=tmp_path)
    assert inner.parameters.lower == "second.mlp.whole.0"
    assert inner.shapes[0].channels == 16


def test_its_weights_and_its_code_count(tmp_path: Path) -> None:
    def known(**changes: Any) -> str:
        return fingerprint(resolved(plain(), f"{file(tmp_path, **changes)}@3", "1")[0])

    first = known()
    assert known() == first
    assert known(slope=3.0) != first
    assert known(made="[Twice()][0]") != first
    saes = [SparseAutoencoder(7, 9, 2, seed=seed) for seed in (0, 0, 1)]
    one, same, other = (fingerprint(with_dictionary(plain(), "3", sae)) for sae in saes)
    assert one == same != other
    saes[1].threshold.fill_(1)
    assert fingerprint(with_dictionary(plain(), "3", saes[1])) != one


def test_in_a_studys_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its path starts from the study's own folder."""
    file(tmp_path)
    text = (
        '[model]\nsource = "glyphnet"\n[images]\nsource = "glyphs"\nlength = 8\n[parameters]\n'
        'target = "dict:mine.py:make@layer4"\nlower = "layer3"\nn_references = 3\n'
    )
    (tmp_path / "own.toml").write_text(text)
    monkeypatch.chdir(tmp_path.parent)
    study = load_study(tmp_path / "own.toml")
    assert study.parameters.target == "layer4.features"
    assert study.shapes[0].channels == 64


@pytest.mark.parametrize("wrong", ["dict:mine.txt:f@3", "dict:mine.py@3", "dict:mine.py:f", "dict:mine.py:f@", "dict:"])
def test_what_is_no_target(wrong: str) -> None:
    with pytest.raises(LayerError, match=r"can't tell what target .* is; expected 'dict:FILE.py:FUNCTION@LAYER'"):
        resolved(plain(), wrong, "1")


def test_files_that_can_not_be_used(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no file"):
        resolved(plain(), f"dict:{tmp_path}/none.py:make@3", "1")
    for made, what in (("3", "returned a int, expected a dictionary"), ("1 / 0", "failed: ZeroDivisionError")):
        with pytest.raises(ModelError, match=what):
            resolved(plain(), f"{file(tmp_path, made)}@3", "1")
    with pytest.raises(ModelError, match="has no function 'other'"):
        resolved(plain(), f"{file(tmp_path).removesuffix('make')}other@3", "1")
    with pytest.raises(LayerError, match="has no layer '33'"):
        resolved(plain(), f"{file(tmp_path)}@33", "1")
    with pytest.raises(LayerError, match="name the module before it"):
        resolved(plain(), f"{file(tmp_path)}@input:3", "1")
    with pytest.raises(ModelError, match="a dictionary has a method encode, and a int has none"):
        with_dictionary(plain(), "3", 3)


class Odd:
    """Returns what it is told to."""

    def __init__(self, encode: Any = None, decode: Any = None) -> None:
        self.encode = encode or (lambda x: x)
        if decode:
            self.decode = decode


@pytest.mark.parametrize(
    ("dictionary", "said"),
    [
        (Odd(lambda x: (x, x)), "encode of the dictionary at layer '3' returned a tuple for"),
        (Odd(lambda x: x[:5]), r"encode .* returned \[5, 7\] for \[72, 7\]; expected one tensor \[72, 'features'\]"),
        (Odd(lambda x: x[:, :0]), r"returned \[72, 0\]"),
        (Odd(lambda x: x[:, None]), r"returned \[72, 1, 7\]"),
        (Odd(lambda x: x @ x), r"encode of the dictionary at layer '3' fails on \[72, 7\]"),
        (Odd(decode=lambda x: x[:, :3]), r"decode .* returned \[72, 3\] for \[72, 7\]; expected one tensor \[72, 7\]"),
        (Odd(decode=lambda x: None), "decode .* returned a NoneType"),
    ],
)
def test_codes_that_can_not_be_used(dictionary: Any, said: str) -> None:
    with pytest.raises(LayerError, match=said):
        with_dictionary(plain(), "3", dictionary)(noise(2))


def test_layers_that_can_not_be_read(tmp_path: Path) -> None:
    """One that is no tensor, and codes without a gradient: both in a sentence, before hours have passed."""

    class Two(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return x, x

    with pytest.raises(LayerError, match="puts out a tuple; a dictionary reads one tensor"):
        DictionaryLayer(Two(), get_layer(with_dictionary(plain(), "3", Odd()), "3.features"), None)(noise(2))
    with pytest.raises(PureError, match="does not depend on '1'"):
        Study.from_model(with_dictionary(plain(), "3", Odd(lambda x: x.detach())), noise(4), "3.features", "1")
    batch = Odd(lambda x: x - x.mean(dim=0))  # depends on who else is there
    with pytest.raises(LayerError, match="which images are in a batch"):
        Study.from_model(with_dictionary(plain(), "3", batch), noise(4), "3.features", "1", store=tmp_path)


def test_without_a_way_back_classes_can_not_be_asked(tmp_path: Path) -> None:
    from torch.utils.data import TensorDataset

    labelled = TensorDataset(noise(8), torch.arange(8) % 4)
    coded = with_dictionary(plain(), "3", Branch(7))
    study = Study.from_model(coded, labelled, "3.features", "1", n_references=3, store=tmp_path, progress=False)
    with pytest.raises(LayerError, match="no class can be traced to this layer"):
        study.classes.pairs  # noqa: B018


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors"])
def test_directions_of_a_file_are_inner_products(kind: str, tmp_path: Path) -> None:
    rows, path = np.random.default_rng(0).normal(size=(5, 7)).astype("f4"), tmp_path / f"rows.{kind}"
    if kind == "safetensors":
        save_file({"rows": rows}, path)
    else:
        np.save(path, rows) if kind == "npy" else np.savez(path, rows=rows, mean=rows[0])
    model, images = plain(), noise(3)
    for spec in (str(path), f"{path}:rows")[: 1 if kind == "npy" else 2]:
        coded, target, lower = resolved(model, f"basis:{spec}@3", "2")
        assert (target, lower) == ("3.features", "2")
        whole = activations(model, images, ["3"])["3"]
        found = activations(coded, images, [target])[target]
        torch.testing.assert_close(found, torch.einsum("bchw,kc->bkhw", whole, torch.tensor(rows)))
        torch.testing.assert_close(coded(images), model(images))
        cut = Cut.at(coded.requires_grad_(False), images, target, "8")  # what a class is made of, within the span
        (flow,) = torch.autograd.grad(cut.top.sum(), cut.leaf)
        start = whole.detach().requires_grad_()
        (above,) = torch.autograd.grad(model[4:](start.clone()).sum(), start)
        torch.testing.assert_close(flow, torch.einsum("bchw,ck->bkhw", above, torch.tensor(np.linalg.pinv(rows))))


def test_a_basis_is_known_by_its_matrix_wherever_it_lies(tmp_path: Path) -> None:
    rows, known = np.random.default_rng(0).normal(size=(5, 7)), []
    for folder, name, scale in (("a", "rows.npy", 1), ("b", "MINE.NPY", 1), ("a", "other.npy", 2)):
        (tmp_path / folder).mkdir(exist_ok=True)
        with (tmp_path / folder / name).open("wb") as file:
            np.save(file, rows * scale)
        study = Study.from_model(plain(), noise(8), f"basis:{tmp_path / folder / name}@3", "1", progress=False)
        study.model.get_submodule("3.features").dictionary.back.mul_(1 + 1e-7 * len(known))  # as another machine has it
        known.append(study._weights)
    assert known[0] == known[1] != known[2]
    with pytest.raises(LayerError, match=r"holds one array, without a name; leave out 'W', 'basis:rows.npy@LAYER'"):
        resolved(plain(), f"basis:{tmp_path}/a/rows.npy:W@3", "2")


def test_a_damaged_archive_is_no_basis(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "rows.npz", rows=np.ones((40, 7)))
    whole = (tmp_path / "rows.npz").read_bytes()
    for damaged in (whole[:60] + b"\xff" * 8 + whole[68:], b"PK\x03\x04" + whole[4:80]):
        (tmp_path / "rows.npz").write_bytes(damaged)
        with pytest.raises(LayerError, match="can't be read as numbers"):
            resolved(plain(), f"basis:{tmp_path}/rows.npz@3", "2")


def test_a_basis_of_another_width_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.ones((2, 6), "f4"))
    coded, target, _ = resolved(plain(), f"basis:{tmp_path}/rows.npy@3", "2")
    with pytest.raises(
        LayerError, match=r"rows.npy' has rows of 6 numbers, and the layer 7 channels; expected as many"
    ):
        activations(coded, noise(1), [target])
    with pytest.raises(LayerError, match="a dictionary reads what a layer puts out, not 'heads:3'"):
        resolved(plain(), f"basis:{tmp_path}/rows.npy@heads:3", "2")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.array([[1.0, np.nan]]), "has a number that is NaN or infinite in row 0"),
        (np.array([[1.0, 2.0], [0.0, 0.0]]), "has a row of zeros, 1, which is no direction; leave it out"),
        (np.array([[1.0, 2.0], [1e-60, 0.0]]), "has numbers that float32 can't hold in row 1; scale the matrix"),
        (np.array([[1e300, 1.0]]), "has numbers that float32 can't hold in row 0"),
        (np.ones(3), r"has the arrays .* name the matrix, 'basis:rows.npy:NAME@LAYER'"),
        (np.array([["a", "b"]]), r"is \[1, 2\] of <U1, expected numbers \[directions, channels\]"),
        (np.array([[{}]], dtype=object), "can't be read as numbers"),
        (None, "there is no such file"),
    ],
)
def test_what_is_no_basis_is_refused(rows: Any, message: str, tmp_path: Path) -> None:
    if rows is not None:
        np.save(tmp_path / "rows.npy", rows)
    with pytest.raises(LayerError, match=message):
        resolved(plain(), f"basis:{tmp_path}/rows.npy@3", "2")
    for wrong in ("basis:@3", "basis:rows.npy", "basis:rows.npy@"):
        with pytest.raises(LayerError, match="expected 'basis:FILE@LAYER'"):
            resolved(plain(), wrong, "2")
