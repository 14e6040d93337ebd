"""Networks by name, weights from files, and what is said where one is not available."""

from __future__ import annotations

import copy
import importlib.util
import os
import pickle
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from enum import Enum
from functools import partial
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any
from urllib.error import URLError

import cloudpickle
import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from small import noise, plain
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from pure_nb.errors import ModelError
from pure_nb.glyphs.network import GLYPHNET
from pure_nb.images.data import Images
from pure_nb.loading import load_model
from pure_nb.network.models import fingerprint, load_weights, unwrapped
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
    with pytest.raises(ModelError, match=re.escape(repr(str(file)))):
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
    shipped = "'glyphnet', 'glyphnet-shared', 'glyphnet-shortcut'"
    with pytest.raises(ModelError, match=rf"can't tell what network .* expected {shipped}, 'torchvision:NAME'"):
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


class Kind(Enum):
    SMOOTH, ROUGH = 1, 2


SLOPE = 0.5


def leaky(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, SLOPE)


class Scaled(nn.Module):
    """Something of everything that may decide what a forward pass computes."""

    factor = 2.0

    def __init__(self, act: Callable[[Tensor], Tensor] = functional.relu) -> None:
        super().__init__()
        self.act, self.kind, self.power, self.path, self.calls = act, Kind.SMOOTH, 1.0, Path("a"), 0
        self.shift, self.axes, self.names, self.kept = torch.zeros(1), (2, 3), {"a", "b", "c"}, []
        self.options: dict[str, Any] = {"axes": [1, 2], "space": SimpleNamespace(width=3)}
        self.cache: dict[Any, Any] = {}
        self.register_buffer("offset", torch.zeros(4, 1, 1), persistent=False)
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x
        self.kept.append(x)
        self.cache[x.shape] = x
        return self.act(self.scaled(x) ** self.power + self.shift + self.offset)

    def scaled(self, x: Tensor) -> Tensor:
        return x * self.factor


def network(act: Callable[[Tensor], Tensor] = functional.relu) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(Scaled(act), nn.BatchNorm2d(4)), nn.ReLU()).eval()


def other_forward(self: Any, x: Tensor) -> Tensor:
    return x + self.offset


class Longer(Scaled):
    """A shortcut more."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def with_state(state: Any) -> type:
    return type("Scaled", (Scaled,), {"get_extra_state": lambda self: state, "set_extra_state": lambda self, it: None})


MUTATIONS: dict[str, Callable[[Any, pytest.MonkeyPatch], object]] = {
    "function": lambda m, _: setattr(m[1][0], "act", functional.gelu),
    "own function": lambda m, _: setattr(m[1][0], "act", leaky),
    "lambda": lambda m, _: setattr(m[1][0], "act", lambda x: x),
    "another lambda": lambda m, _: setattr(m[1][0], "act", lambda x: -x),
    "partial": lambda m, _: setattr(m[1][0], "act", partial(functional.leaky_relu, negative_slope=0.3)),
    "another partial": lambda m, _: setattr(m[1][0], "act", partial(functional.leaky_relu, negative_slope=0.4)),
    "enum": lambda m, _: setattr(m[1][0], "kind", Kind.ROUGH),
    "number": lambda m, _: setattr(m[1][0], "power", 2.0),
    "its type": lambda m, _: setattr(m[1][0], "power", 1),
    "path": lambda m, _: setattr(m[1][0], "path", Path("b")),
    "tensor": lambda m, _: m[1][0].shift.add_(1),
    "array": lambda m, _: setattr(m[1][0], "shift", np.zeros(1)),
    "tuple": lambda m, _: setattr(m[1][0], "axes", (3, 2)),
    "set": lambda m, _: m[1][0].names.add("d"),
    "within": lambda m, _: m[1][0].options["axes"].append(3),
    "object": lambda m, _: setattr(m[1][0].options["space"], "width", 4),
    "buffer that is not kept": lambda m, _: m[1][0].offset.add_(1),
    "patched forward": lambda m, _: setattr(m[1][0], "forward", MethodType(other_forward, m[1][0])),
    "patched method": lambda m, _: setattr(m[1][0], "scaled", lambda x: x),
    "class": lambda m, _: setattr(m[1][0], "__class__", Longer),
    "method of the class": lambda _, patch: patch.setattr(Scaled, "scaled", lambda self, x: x * 3),
    "attribute of the class": lambda _, patch: patch.setattr(Scaled, "factor", 3.0),
    "hook": lambda m, _: m[0].register_forward_hook(lambda *it: it[2] * 2),
    "hook before": lambda m, _: m[0].register_forward_pre_hook(lambda _, it: (it[0] * 2,)),
    "extra state": lambda m, _: setattr(m[1][0], "__class__", with_state({"scale": 1})),
    "other extra state": lambda m, _: setattr(m[1][0], "__class__", with_state({"scale": 2})),
    "option of torch": lambda m, _: setattr(m[0], "stride", (2, 2)),
    "order": lambda m, _: setattr(m, "_modules", dict(reversed(m._modules.items()))),
}


def test_fingerprint_follows_all_that_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"none": fingerprint(network())}
    for name, mutate in MUTATIONS.items():
        model = network()
        with monkeypatch.context() as patch:
            mutate(model, patch)
            found[name] = fingerprint(model)
            assert fingerprint(model) == found[name], name
    assert fingerprint(network()) == found["none"]
    assert len(set(found.values())) == len(MUTATIONS) + 1, Counter(found.values()).most_common(3)


def test_fingerprint_follows_what_functions_refer_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def power(exponent: float) -> Callable[[Tensor], Tensor]:
        return lambda x: x**exponent

    found = [fingerprint(network(power(exponent))) for exponent in (1, 2, 2)]
    assert found[0] != found[1] == found[2]
    before = fingerprint(network(leaky))
    monkeypatch.setattr(f"{__name__}.SLOPE", 0.25)
    assert fingerprint(network(leaky)) != before


HELD: dict[int, int] = {}


class Extra(nn.Module):
    """Whose state is in no attribute."""

    def __init__(self, value: int) -> None:
        super().__init__()
        HELD[id(self)] = value

    def get_extra_state(self) -> int:
        return HELD[id(self)]


class Held(nn.Module):
    """With a buffer."""

    def __init__(self, buffer: Tensor) -> None:
        super().__init__()
        self.register_buffer("buffer", buffer)


def defaulting(exponent: float) -> Callable[..., Tensor]:
    def power(x: Tensor, by: float = exponent) -> Tensor:
        return x**by

    return power


@pytest.mark.parametrize(
    "different",
    [
        [network(lambda x: x * 2), network(lambda x: x * 3)],
        [network(defaulting(2)), network(defaulting(3))],
        [Held(torch.zeros(2, 3)), Held(torch.zeros(3, 2))],
        [Extra(2), Extra(3)],
    ],
    ids=["constants", "defaults", "shapes", "extra state"],
)
def test_fingerprint_follows_each_alone(different: list[nn.Module]) -> None:
    """What nothing else tells of."""
    assert fingerprint(different[0]) != fingerprint(different[1])
    assert fingerprint(different[0]) == fingerprint(different[0])


@pytest.mark.slow
def test_fingerprint_stays(tmp_path: Path) -> None:
    """After copies, moves and forward passes, and in another process with other hashes and addresses."""
    model, found = network(leaky), fingerprint(network(leaky))
    same = {
        "copy": copy.deepcopy(model),
        "pickle": pickle.loads(pickle.dumps(model)),
        "train": network(leaky).train(),
        "frozen": network(leaky).requires_grad_(False),
        "channels last": network(leaky).to(memory_format=torch.channels_last),
    }
    ran = network(leaky)
    with torch.no_grad():
        ran(noise(2))
        ran(noise(1, 8))
    same["forward"] = ran
    if torch.cuda.is_available():
        same["device"] = network(leaky).to("cuda")
    assert {name: fingerprint(one) for name, one in same.items()} == dict.fromkeys(same, found)
    moved = copy.deepcopy(ran).to(torch.float64).to(torch.float32)
    moved[1][0].shift = torch.zeros(1)
    assert fingerprint(moved) == found
    code = "from test_models import *; print(fingerprint(network(leaky)))"
    ran_elsewhere = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join([*sys.path])},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran_elsewhere.stdout.strip() == found


@pytest.mark.parametrize("put", [nn.utils.weight_norm, nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_fingerprint_of_computed_weights(put: Callable[[nn.Module], nn.Module]) -> None:
    """The weight that a hook makes is old until the next forward pass."""
    model = plain()
    put(model[2])
    state = {name: value + 0.1 for name, value in model.state_dict().items()}
    before = fingerprint(model)
    model.load_state_dict(state)
    loaded = fingerprint(model)
    with torch.no_grad():
        model(noise(1))
    assert loaded == fingerprint(model) != before


def test_fingerprint_of_large_libraries() -> None:
    """The same network made twice by torchvision and timm, copied, and with another option."""
    for make in (lambda **it: torchvision.models.swin_t(**it), lambda **it: timm.create_model("test_vit", **it)):
        torch.manual_seed(0)
        model = make().eval()
        before = fingerprint(model)
        torch.manual_seed(0)
        assert fingerprint(make().eval()) == fingerprint(copy.deepcopy(model)) == before
        with torch.no_grad():
            model(noise(1, 160 if make().__class__.__module__.startswith("timm") else 64))
        assert fingerprint(model) == before


def test_a_module_with_a_state_that_is_no_tensor(tmp_path: Path) -> None:
    class Recipe(nn.Conv2d):
        recipe = "hybrid"

        def get_extra_state(self) -> dict[str, Any]:
            return {"recipe": self.recipe}

        def set_extra_state(self, state: dict[str, Any]) -> None:
            self.recipe = state["recipe"]

    model, other = (nn.Sequential(nn.Conv2d(3, 4, 3), Recipe(4, 5, 3)) for _ in range(2))
    study = Study.from_model(model, Images(TensorDataset(noise(6))), "1", "0", n_references=3)
    assert study.references.sample.shape == (5, 3)
    model[1].recipe = "other"
    torch.save(model.state_dict(), tmp_path / "w.pth")
    load_weights(other, tmp_path / "w.pth")
    assert other[1].recipe == "other"
    assert fingerprint(other) == fingerprint(model)


def write(folder: Path, width: int, helper: str = "import torch") -> Path:
    """A user's file, and what it imports from beside it."""
    (folder / "parts").mkdir(parents=True)
    (folder / "parts" / "__init__.py").write_text("from .deep import SCALE\n")
    (folder / "parts" / "deep.py").write_text("SCALE = 2\n")
    (folder / "helpers.py").write_text(
        f"{helper}\nfrom torch import nn\nWIDTH = {width}\nclass Block(nn.Conv2d): pass\n"
    )
    (folder / "mine.py").write_text(
        "import dataclasses, helpers\n"
        "@dataclasses.dataclass\nclass Options:\n    width: int = helpers.WIDTH\n"
        "def make():\n"
        "    import parts\n"
        "    model = helpers.nn.Sequential(helpers.Block(3, Options().width, 1))\n"
        "    model.scale = parts.SCALE\n"
        "    return model\n"
    )
    return folder / "mine.py"


def test_files_of_one_name_in_two_folders(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", 5), write(tmp_path / "b", 7)
    path, modules = sys.path.copy(), set(sys.modules)
    one, two = load_model(f"{first}:make", "random"), load_model(f"{second}:make", "random")
    again = load_model(f"{first}:make", "random")
    assert [model[0].out_channels for model in (one, two, again)] == [5, 7, 5]
    assert (one.scale, two.scale) == (2, 2)
    assert sys.path == path
    assert {name.partition("_mine")[0] for name in set(sys.modules) - modules} <= {"_user"}
    assert type(one[0]) is not type(two[0])
    assert equal(one, again)
    assert fingerprint(one) == fingerprint(again) != fingerprint(two)
    copied = cloudpickle.loads(cloudpickle.dumps(one))
    assert fingerprint(copied) == fingerprint(one)


def test_a_file_may_change_the_path_and_names_of_libraries_stay(tmp_path: Path) -> None:
    file = write(tmp_path, 5, helper="import sys; sys.path.insert(0, '/nowhere')")
    (tmp_path / "random.py").write_text("1 / 0\n")
    (tmp_path / "torch.py").write_text("1 / 0\n")
    before, modules = sys.path.copy(), (sys.modules["random"], sys.modules["torch"])
    for _ in range(3):
        load_model(f"{file}:make")
    assert sys.path == before
    assert modules == (sys.modules["random"], sys.modules["torch"])


@pytest.mark.parametrize("name", ["mine.py", "helpers.py", "parts/__init__.py", "parts/deep.py"])
def test_fingerprint_follows_files(tmp_path: Path, name: str) -> None:
    file = write(tmp_path, 5)
    before = fingerprint(load_model(f"{file}:make", "random"))
    assert fingerprint(load_model(f"{file}:make", "random")) == before
    with (tmp_path / name).open("a") as changed:
        changed.write("OTHER = 1\n")
    assert fingerprint(load_model(f"{file}:make", "random")) != before


def test_load_weights_changes_the_model_in_place(tmp_path: Path) -> None:
    model, other = load_model("glyphnet", "random"), load_model("glyphnet")
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")
    assert equal(model, other)


def test_assets_are_in_the_package() -> None:
    package = Path(importlib.util.find_spec("pure_nb").origin).parent  # type: ignore[union-attr, arg-type]
    assert GLYPHNET[1] == package / "glyphs" / "network.safetensors"


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
    study = Study.from_model(wrapped, Images(TensorDataset(noise(6))), "4", "2", n_references=3)
    assert study.model is model
    assert study.shapes[0].name == "4"
    assert study.references.sample.shape == (6, 3)


def test_unwrapped_from_distributed_training(tmp_path: Path) -> None:
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("this torch can't train on several machines")
    place = (tmp_path / "rendezvous").as_uri()
    distributed.init_process_group("gloo", init_method=place, rank=0, world_size=1)
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
def test_torchscript_is_refused_where_it_is_a_part() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())))
    with pytest.raises(ModelError, match=r"layer '1' of Sequential is TorchScript, whose layers can't be watched"):
        unwrapped(model)


@pytest.mark.filterwarnings("ignore")
def test_quantised_networks_are_refused() -> None:
    try:
        quantised = torch.ao.quantization.quantize_dynamic(plain(), {nn.Linear})
    except (AttributeError, RuntimeError) as problem:
        pytest.skip(f"this torch can't quantise: {problem}")
    with pytest.raises(ModelError, match="layer '8' of Sequential is quantised, and no gradients lead through it"):
        Study.from_model(quantised, Images(TensorDataset(noise(6))), "4", "2")


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
        Study.from_model(make(), Images(TensorDataset(noise(6))), "4", "2")


def test_traced_modules_and_odd_signatures_are_not_refused() -> None:
    class Odd(nn.Module):
        def forward(self, *images: Tensor, **_: Any) -> Tensor:
            return images[0]

    traced = torch.fx.symbolic_trace(plain())
    assert unwrapped(traced) is traced
    assert unwrapped(odd := Odd()) is odd
