"""Virtual neurons as a module: who gets a channel's activation, for every shape of a layer, and as the study says."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from small import Items, Tokens, noise, plain
from torch import nn

from pure_nb.errors import ArgumentError
from pure_nb.methods.virtual import VirtualNeurons
from pure_nb.methods.virtual_layer import VirtualLayer, mixture
from pure_nb.network.layers import activations
from pure_nb.study import Study


def parts_of(centroids: list[list[float]]) -> VirtualNeurons:
    return VirtualNeurons(np.zeros(1, np.int64), np.array(centroids, np.float32), 0.0, 0.0, 1.0)


def mine(tmp_path: Path, model: nn.Module, target: str, lower: str, **parameters: object) -> Study:
    return Study.from_model(
        model, Items(noise(20)), target, lower, n_references=8, n_clusters=2, store=tmp_path, **parameters
    )  # type: ignore[arg-type]


def test_by_hand() -> None:
    # Channel 0 adds up both inputs. Where the first input is larger, so is its part of the relevance.
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False), nn.ReLU())
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    parts = {0: parts_of([[1, 0], [0, 1]]), 1: parts_of([[0.5, -0.5]])}
    images = torch.tensor([[3.0, 1.0], [1.0, 4.0], [2.0, 0.0]])[..., None, None]
    layer = VirtualLayer(model, "2", "0", parts)
    assert layer.names == ("0A", "0B", "1A")
    expected = [[4, 0, 2], [0, 5, 0], [2, 0, 2]]
    assert layer(images).tolist() == expected
    shared = VirtualLayer(model, "2", "0", parts, assign="mixture")(images)
    np.testing.assert_allclose(shared, [[3, 1, 2], [1, 4, 0], [2, 0, 2]], atol=1e-5)


@pytest.mark.parametrize(
    ("model", "target", "lower"), [(plain(), "5", "3"), (plain(), "4", "2"), (Tokens(), "second", "first")]
)
@pytest.mark.parametrize("assign", ["nearest", "mixture"])
def test_the_virtual_neurons_of_a_channel_add_up_to_it(
    model: nn.Module, target: str, lower: str, assign: str, tmp_path: Path
) -> None:
    study = mine(tmp_path, model, target, lower, start="peak")
    layer = VirtualLayer.of(study, [1, 3], assign)  # type: ignore[arg-type]
    images = noise(5, seed=3)
    found = layer(images)
    with torch.no_grad():
        whole = activations(model, images, [target])[target]
    axis = 2 if whole.ndim == 3 else 1
    assert found.shape == (*whole.shape[:axis], 4, *whole.shape[axis + 1 :])
    for channel, members in ((1, (0, 1)), (3, (2, 3))):
        both = found.index_select(axis, torch.tensor(members)).sum(dim=axis)
        torch.testing.assert_close(both, whole.select(axis, channel), rtol=1e-5, atol=1e-6)


def test_it_assigns_as_the_study_does(tmp_path: Path) -> None:
    study = mine(tmp_path, plain(), "5", "3")
    images = noise(12, seed=9)
    layer = VirtualLayer.of(study)
    found = layer(images)
    with torch.no_grad():
        whole = activations(study.model, images, ["5"])["5"]
    for channel in range(6):
        labels = study.neuron(channel).predict(Items(images))
        for image, label in enumerate(labels):
            if whole[image, channel].max() > 0:
                own = layer.names.index(f"{channel}{'AB'[label]}")
                torch.testing.assert_close(found[image, own], whole[image, channel])


def test_one_image_at_a_time_is_the_same(tmp_path: Path) -> None:
    layer = VirtualLayer.of(mine(tmp_path, plain(), "5", "3"))
    images = noise(4, seed=2)
    single = torch.cat([layer(image[None]) for image in images])
    torch.testing.assert_close(layer(images), single)


def test_no_thread_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors go in as they are, and through no data set."""
    layer, images = VirtualLayer.of(mine(tmp_path, plain(), "5", "3")), noise(3)
    expected = layer(images)

    def start(thread: threading.Thread) -> None:
        raise AssertionError(f"{thread.name} is started")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert torch.equal(layer(images), expected)


def test_by_lrp(glyph_study: Study) -> None:
    study = glyph_study.replace(rule="lrp", n_clusters=2)
    layer = VirtualLayer.of(study, [3])
    images = torch.stack([study.images.tensor(int(number)) for number in study.references.sample[3][:6]])
    active = layer(images).amax(dim=(2, 3)) > 0
    expected = study.neuron(3).predict(study.images, study.references.sample[3][:6])
    assert active.int().argmax(dim=1).tolist() == expected.tolist()


def test_saved_and_loaded(tmp_path: Path) -> None:
    layer, other = (VirtualLayer.of(mine(tmp_path / str(seed), plain(seed), "5", "3")) for seed in (0, 1))
    images = noise(4)
    assert not torch.equal(layer(images), other(images))
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(images), other(images))


def test_the_network_is_left_as_it_was(tmp_path: Path) -> None:
    model = plain().train()
    layer = VirtualLayer.of(mine(tmp_path, model, "5", "3"))
    layer(noise(2))
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@given(st.integers(1, 5), st.integers(0, 1000))
def test_mixture_is_the_nearest_on_the_simplex(k: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    centroids, vector = generator.normal(size=(k, 6)), generator.normal(size=6)
    found = mixture(vector, centroids)
    assert found.min() >= 0
    assert found.sum() == pytest.approx(1)
    bounds, total = [(0, 1)] * k, {"type": "eq", "fun": lambda share: share.sum() - 1}

    def miss(share: np.ndarray) -> float:
        return float(((vector - share @ centroids) ** 2).sum())

    slow = minimize(miss, np.full(k, 1 / k), bounds=bounds, constraints=[total], method="SLSQP")
    assert miss(found) <= slow.fun + 1e-4


def test_what_can_t_be_wrapped() -> None:
    model = plain()
    with pytest.raises(ArgumentError, match="got 0 channels"):
        VirtualLayer(model, "5", "3", {})
    wrong = {0: parts_of([[1, 0]]), 1: parts_of([[1, 0, 0]])}
    with pytest.raises(ArgumentError, match=r"2 channels with circuits of \[2, 3\] entries"):
        VirtualLayer(model, "5", "3", wrong)
    with pytest.raises(ArgumentError, match="assign must be one of nearest, mixture, got 'soft'"):
        VirtualLayer(model, "5", "3", {0: parts_of([[1, 0]])}, assign="soft")  # type: ignore[arg-type]


def test_a_dead_channel(tmp_path: Path) -> None:
    model = plain()
    with torch.no_grad():
        model[4].weight[2] = 0
        model[4].bias[2] = -1
    study = mine(tmp_path, model, "5", "3")
    assert not VirtualLayer.of(study, [2])(noise(3)).any()


def test_virtual_neurons_can_be_replaced(tmp_path: Path) -> None:
    study = mine(tmp_path, plain(), "5", "3")
    one = study.virtual_of(0)
    swapped = replace(one, centroids=one.centroids[::-1].copy())
    first, second = (VirtualLayer(study.model, "5", "3", {0: parts}) for parts in (one, swapped))
    images = noise(3, seed=4)
    torch.testing.assert_close(first(images), second(images).flip(1))


@pytest.mark.unchecked
def test_an_error_leaves_the_network_as_it_was() -> None:
    model = plain().train()
    layer = VirtualLayer(model, "4", "2", {0: parts_of([[1.0] * 7, [0.0] * 7]), 1: parts_of([[1.0] * 7])})
    layer.centroids = layer.centroids[:, :5]
    with pytest.raises(ValueError, match="operands could not be broadcast") as caught:
        layer(noise(2))
    assert caught.value.__traceback__ is not None  # which keeps all that was going on alive
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())
