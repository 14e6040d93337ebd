"""Networks by name, weights from files, and what is said where one can't be had."""

from __future__ import annotations

import importlib.util
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from small import noise, plain
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from pure_nb import models
from pure_nb.data import Images
from pure_nb.errors import ModelError
from pure_nb.models import fingerprint, load_model, load_weights, unwrapped
from pure_nb.study import Study


def equal(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("source", ["glyphnet", "torchvision:resnet18", "timm:resnet18"])
def test_random_weights(source: str) -> None:
    torch.manual_seed(0)
    model = load_model(source, "random")
    assert not any(module.training for module in model.modules())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    assert equal(model, load_model(source, "random"))  # or no stored result would ever be found again
    assert torch.equal(torch.random.get_rng_state(), before)
    if source == "glyphnet":
        assert not equal(model, load_model(source))


def test_options_reach_the_constructor() -> None:
    assert load_model("torchvision:resnet18", "random", num_classes=7).fc.out_features == 7
    assert load_model("timm:resnet18", "random", num_classes=6).fc.out_features == 6


@pytest.mark.parametrize("half", [False, True])
def test_weights_from_safetensors(tmp_path: Path, half: bool) -> None:
    made = load_model("torchvision:resnet18", "random")
    state = {
        name: tensor.half() if half and tensor.is_floating_point() else tensor
        for name, tensor in made.state_dict().items()
    }
    save_file(state, tmp_path / "w.safetensors")
    found = load_model("torchvision:resnet18", "w.safetensors", folder=tmp_path)
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    expected = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())


def test_step_counters_may_be_missing(tmp_path: Path) -> None:
    made = load_model("glyphnet", "random")
    state = {name: tensor for name, tensor in made.state_dict().items() if "num_batches" not in name}
    save_file(state, tmp_path / "w.safetensors")
    assert equal(load_model("glyphnet", tmp_path / "w.safetensors"), made)


def test_weights_from_torch_file(tmp_path: Path) -> None:
    made = load_model("glyphnet", "random")
    torch.save(made.state_dict(), tmp_path / "w.pth")
    assert equal(load_model("glyphnet", tmp_path / "w.pth"), made)


class Evil:
    """Runs code when it is unpickled the naive way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("raw", [False, True])
def test_pickles_that_run_code_are_refused(tmp_path: Path, raw: bool) -> None:
    trace, file = tmp_path / "trace", tmp_path / "w.pth"
    if raw:
        file.write_bytes(pickle.dumps({"fc.weight": Evil(trace)}))
    else:
        torch.save({"fc.weight": Evil(trace)}, file)
    with pytest.raises(
        ModelError, match="holds more than tensors and is not loaded, since unpickling it could run code"
    ):
        load_model("glyphnet", file)
    assert not trace.exists()
    torch.load(file, weights_only=False) if not raw else pickle.loads(file.read_bytes())
    assert trace.exists(), "the file of this test is harmless, so the test shows nothing"


def test_whole_modules_are_refused(tmp_path: Path) -> None:
    torch.save(load_model("glyphnet", "random"), tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"save the state_dict alone, best as .safetensors"):
        load_model("glyphnet", tmp_path / "w.pth")


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("content", [b"", b"not weights at all, but long enough to be looked at"])
def test_damaged_files(tmp_path: Path, suffix: str, content: bytes) -> None:
    file = tmp_path / f"w.{suffix}"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=re.escape(str(file))):
        load_model("glyphnet", file)


def test_truncated_torch_file(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    torch.save(load_model("glyphnet", "random").state_dict(), file)
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(ModelError, match="can't be read as weights"):
        load_model("glyphnet", file)


@pytest.mark.parametrize("content", [[torch.zeros(3)], {"epoch": 3, "state_dict": {"fc.weight": torch.zeros(3)}}])
def test_a_torch_file_that_is_no_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="is no state_dict, a dictionary from names to tensors"):
        load_model("glyphnet", tmp_path / "w.pth")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no file of weights .*nowhere.safetensors"):
        load_model("glyphnet", "nowhere.safetensors", folder=tmp_path)


def test_wrong_names(tmp_path: Path) -> None:
    state = load_model("glyphnet", "random").state_dict()
    state["head.weight"] = state.pop("fc.weight")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(
        ModelError, match=r"does not fit GlyphNet; 1 missing: fc.weight; 1 unexpected: head.weight\. Take"
    ):
        load_model("glyphnet", tmp_path / "w.safetensors")


def test_wrong_shapes(tmp_path: Path) -> None:
    state = load_model("glyphnet", "random").state_dict()
    state["fc.weight"] = torch.zeros(10, 32)
    save_file(state, tmp_path / "w.safetensors")
    shapes = r"1 of another shape: fc.weight \[10, 32\] and not \[48, 32\]\."
    with pytest.raises(ModelError, match=f"does not fit GlyphNet; {shapes}"):
        load_model("glyphnet", tmp_path / "w.safetensors")


@pytest.mark.parametrize("source", ["resnet50", "keras:resnet50", "", "glyphnet:", "model.txt:make"])
def test_unknown_source(source: str) -> None:
    with pytest.raises(ModelError, match=r"can't tell what network .* expected 'glyphnet', 'torchvision:NAME'"):
        load_model(source, "random")


@pytest.mark.parametrize("source", ["torchvision:resnet999", "timm:resnet999"])
def test_unknown_name(source: str) -> None:
    with pytest.raises(ModelError, match=f"'{source}' can't be made"):
        load_model(source, "random")


@pytest.mark.parametrize("problem", [URLError("no route to host"), ConnectionError("offline"), OSError("cut off")])
@pytest.mark.parametrize("kind", ["torchvision", "timm"])
def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch, kind: str, problem: Exception) -> None:
    def fail(*args: object, **options: object) -> None:
        assert options.get("weights") == "DEFAULT" or options.get("pretrained") is True
        raise problem

    monkeypatch.setattr(torchvision.models, "get_model", fail)
    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(ModelError, match=rf"weights of '{kind}:resnet18' could not be fetched") as caught:
        load_model(f"{kind}:resnet18")
    for part in (type(problem).__name__, "FILE.safetensors", "--weights"):
        assert part in str(caught.value)


def test_function_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def make(width=3):\n    return nn.Sequential(nn.Conv2d(3, width, 1))\n"
        "def number():\n    return 7\n"
    )
    model = load_model("mine.py:make", "random", folder=tmp_path, width=5)
    assert model[0].out_channels == 5
    assert not model.training
    save_file({"0.weight": torch.ones(3, 3, 1, 1), "0.bias": torch.zeros(3)}, tmp_path / "w.safetensors")
    assert load_model("mine.py:make", "w.safetensors", folder=tmp_path)[0].weight.sum() == 9
    assert load_model(f"{tmp_path}/mine.py:make")[0].out_channels == 3
    with pytest.raises(ModelError, match=r"'number' of .*mine.py' returned a int, expected a torch.nn.Module"):
        load_model("mine.py:number", folder=tmp_path)
    with pytest.raises(ModelError, match=r"mine.py' has no function 'other'"):
        load_model("mine.py:other", folder=tmp_path)
    with pytest.raises(ModelError, match=r"there is no file .*yours.py' with a function 'make'"):
        load_model("yours.py:make", folder=tmp_path)


def test_fingerprint_follows_weights_buffers_and_structure() -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()).eval()

    model = make()
    first = fingerprint(model)
    assert re.fullmatch("[0-9a-f]{16}", first)
    assert fingerprint(make()) == first
    found = {first}
    model[0].weight.data[0, 0, 0, 0] += 1e-6
    found.add(fingerprint(model))
    model = make()
    model[1].running_var[2] = 1.5
    found.add(fingerprint(model))
    model = make()
    model[2] = nn.GELU()
    found.add(fingerprint(model))
    assert len(found) == 4


def test_fingerprint_of_half_precision() -> None:
    assert fingerprint(nn.Linear(2, 2).to(torch.bfloat16)) != fingerprint(nn.Linear(2, 2))


def test_load_weights_changes_the_model_in_place(tmp_path: Path) -> None:
    model, other = load_model("glyphnet", "random"), load_model("glyphnet")
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")
    assert equal(model, other)


def test_assets_are_in_the_package() -> None:
    package = Path(importlib.util.find_spec("pure_nb").origin).parent  # type: ignore[union-attr, arg-type]
    assert models._asset("glyphnet.safetensors") == package / "assets" / "glyphnet.safetensors"


WRAPPERS = {
    "none": lambda model: model,
    "parallel": nn.DataParallel,
    "compiled": torch.compile,
    "both": lambda model: torch.compile(nn.DataParallel(torch.compile(model))),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_unwrapped(wrapper: str) -> None:
    model = plain()
    wrapped = WRAPPERS[wrapper](model)
    assert unwrapped(wrapped) is model
    study = Study.of(wrapped, Images(TensorDataset(noise(6))), "4", "2", n=3)
    assert study.model is model
    assert study.shapes[0].name == "4"
    assert study.references.sample.shape == (6, 3)


def test_unwrapped_from_distributed_training(tmp_path: Path) -> None:
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("this torch can't train on several machines")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        model = plain()
        assert unwrapped(nn.parallel.DistributedDataParallel(model)) is model
    finally:
        distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [torch.jit.script, lambda model: torch.jit.trace(model, noise(1))])
def test_torchscript_is_refused(make: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(ModelError, match=r"is TorchScript, whose layers can't be watched; bring the torch\.nn\.Module"):
        unwrapped(make(plain()))


@pytest.mark.filterwarnings("ignore")
def test_quantised_networks_are_refused() -> None:
    try:
        quantised = torch.ao.quantization.quantize_dynamic(plain(), {nn.Linear})
    except (AttributeError, RuntimeError) as problem:
        pytest.skip(f"this torch can't quantise: {problem}")
    with pytest.raises(ModelError, match="layer '8' of Sequential is quantised, and no gradients lead through it"):
        Study.of(quantised, Images(TensorDataset(noise(6))), "4", "2")


class Two(nn.Module):
    """Wants more than the image."""

    def forward(self, x: Tensor, meta: Tensor, *, scale: float, more: int = 0) -> Tensor:
        return x + meta * scale


def inferred() -> nn.Module:
    with torch.inference_mode():
        return plain()


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "two inputs": (Two, r"Two.forward\(x, meta, scale\) wants 'meta' and 'scale' besides the images"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), "'0.weight' of Sequential is made in the first forward pass"),
    "meta": (lambda: plain().to("meta"), "'0.weight' of Sequential is on the device 'meta' .*; load the weights"),
    "inference": (
        inferred,
        r"'0.weight' of Sequential was made in torch.inference_mode\(\) .* make the network outside",
    ),
    "program": (lambda: torch.export.export(plain(), (noise(2),)), "got ExportedProgram; bring the module"),
    "exported": (
        lambda: torch.export.export(plain(), (noise(2),)).module(),
        r"exported graph, in which layers such as '0' do not run .*; bring the torch\.nn\.Module",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", REFUSED)
def test_networks_that_can_not_be_run_are_refused(kind: str) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(ModelError, match=message):
        Study.of(make(), Images(TensorDataset(noise(6))), "4", "2")


def test_traced_modules_and_odd_signatures_are_not_refused() -> None:
    class Odd(nn.Module):
        def forward(self, *images: Tensor, **_: Any) -> Tensor:
            return images[0]

    traced = torch.fx.symbolic_trace(plain())
    assert unwrapped(traced) is traced
    assert unwrapped(odd := Odd()) is odd
