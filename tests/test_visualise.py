"""Feature visualisation: what a channel is known to like is what its picture shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small import Tokens, plain
from torch import Tensor, nn

from pure_nb.errors import ArgumentError, LayerError, NonFiniteError
from pure_nb.glyphs import MEAN, STD
from pure_nb.methods import visualise as module
from pure_nb.methods.rewiring import split_channel
from pure_nb.methods.visualise import feature_visualisation
from pure_nb.network.layers import activations, flatten_positions


def active(model: nn.Module, layer: str, channels: list[int], pictures: NDArray[np.uint8]) -> Tensor:
    """How strongly each picture activates its channel."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    images = (torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        output = flatten_positions(activations(model, images, [layer])[layer])
    return output[range(len(channels)), channels].mean(dim=1)


def oriented(angle: float, size: int = 9, period: float = 5.0) -> Tensor:
    """A grating in grey whose waves run in the direction of the angle."""
    y, x = torch.meshgrid(*[torch.arange(size) - size // 2] * 2, indexing="ij")
    wave = torch.cos(2 * torch.pi / period * (x * np.cos(angle) + y * np.sin(angle)))
    window = torch.exp(-(x**2 + y**2) / (0.5 * size))
    wave = window * (wave - (wave * window).sum() / window.sum())
    return wave.expand(3, -1, -1)


def test_pictures_activate_their_channels(glyphnet: nn.Module) -> None:
    channels = [0, 1, 3, 12]
    first, later = (
        feature_visualisation(glyphnet, "layer4", channels, size=96, steps=steps, seed=1) for steps in (1, 60)
    )
    assert later.shape == (4, 96, 96, 3)
    assert later.dtype == np.uint8
    start, end = (active(glyphnet, "layer4", channels, pictures) for pictures in (first, later))
    assert (end > 5 + 3 * start).all()
    # Each picture is for its own channel: no other of them activates it as strongly.
    table = torch.stack([active(glyphnet, "layer4", [c] * 4, later) for c in channels])
    assert (table.argmax(dim=1) == torch.arange(4)).all()


def test_a_picture_does_not_depend_on_its_company(glyphnet: nn.Module) -> None:
    how: dict[str, Any] = {"size": 48, "steps": 6}
    together = feature_visualisation(glyphnet, "layer4", [1, 0, 3, 1], **how)
    alone = feature_visualisation(glyphnet, "layer4", [3], **how)
    assert np.abs(together[2].astype(int) - alone[0].astype(int)).max() <= 2
    assert np.abs(together[0].astype(int) - together[3].astype(int)).max() <= 2


@pytest.mark.parametrize("jitter", [0, None])
def test_oriented_filters(jitter: int | None) -> None:
    angles = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
    model = nn.Sequential(nn.Conv2d(3, 4, 9, padding=4, bias=False), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.stack([oriented(angle) for angle in angles]))
    found = feature_visualisation(model, "1", range(4), size=(40, 48), steps=80, jitter=jitter)  # type: ignore
    for angle, picture in zip(angles, found):
        grey = picture.mean(axis=2) - picture.mean()
        power = np.abs(np.fft.fft2(grey)) ** 2
        fy, fx = np.fft.fftfreq(40)[:, None], np.fft.fftfreq(48)[None]
        # The axis of the power's largest spread in the frequency plane is the direction in which the waves run.
        moment = np.array([[(power * a * b).sum() for a in (fx, fy)] for b in (fx, fy)])
        axis = np.linalg.eigh(moment)[1][:, -1]
        assert abs(axis @ [np.cos(angle), np.sin(angle)]) > np.cos(np.radians(8))


@pytest.mark.parametrize("colour", [0, 1, 2])
@pytest.mark.parametrize("sign", [1, -1])
def test_colour_filters(colour: int, sign: int) -> None:
    """Against the mean of the other two, so that white does not do as well."""
    model = nn.Sequential(nn.Conv2d(3, 1, 1, bias=False))
    other = torch.ones(3) / 2
    other[colour] = -1
    with torch.no_grad():
        model[0].weight.copy_(-sign * other[None, :, None, None])
    picture = feature_visualisation(model, "0", [0], size=16, steps=100)[0].mean(axis=(0, 1))
    rest = np.delete(picture, colour)
    assert (sign * (picture[colour] - rest) > 30).all()


def test_every_step_sees_the_picture_shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RATE", 0.0)  # so that the picture stays as it is
    model, seen = plain(), []
    model[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    feature_visualisation(model, "4", [0, 1], size=16, steps=40, jitter=2)
    shifts = [(y, x) for y in range(-4, 5) for x in range(-4, 5)]
    found = [next(by for by in shifts if torch.equal(seen[0].roll(by, (2, 3)), image)) for image in seen]
    assert len(set(found)) > 10
    for axis in range(2):  # from one end of the range to the other
        assert np.ptp([by[axis] for by in found]) == 4


def test_colours_are_an_orthogonal_mix() -> None:
    gram = module.COLOURS.T @ module.COLOURS
    np.testing.assert_allclose(gram, np.diag(np.array([1, 0.28, 0.13]) ** 2), atol=1e-12)


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (6, 11)])
def test_waves_are_a_picture(size: tuple[int, int]) -> None:
    """Written out: the sum of all waves, each with its amplitude over its frequency."""
    height, width = size
    waves = torch.zeros(1, 3, height, width // 2 + 1, 2)
    waves[0, 0, 2, 1] = torch.tensor([0.8, -0.3])
    found = module._pictures(waves, height, width)[0]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    phase = 2 * torch.pi * (2 * y / height + x / width)
    scale = module.CONTRAST / max(size) / np.hypot(2 / height, 1 / width)
    mixed = 2 * scale * (0.8 * torch.cos(phase) + 0.3 * torch.sin(phase))
    for c in range(3):
        torch.testing.assert_close(found[c], torch.sigmoid(mixed / np.sqrt(3)), rtol=1e-4, atol=1e-5)


def test_the_same_seed_gives_the_same_bytes() -> None:
    how: dict[str, Any] = {"size": 12, "steps": 20, "jitter": 2}
    torch.manual_seed(0)
    state, numbers = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    first = feature_visualisation(plain(), "4", [0, 3], **how)
    torch.manual_seed(5)
    again = feature_visualisation(plain(), "4", np.array([0, 3]), **how)
    other = feature_visualisation(plain(), "4", [0, 3], seed=1, **how)
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()
    model = plain()
    torch.set_rng_state(state)
    feature_visualisation(model, "4", [0, 3], **how)
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numbers).all()  # noqa: NPY002


@pytest.mark.parametrize(("layer", "size"), [("patches", 12), ("first", 12), ("second.mlp.1", 12), ("head", 12)])
def test_layers_of_every_shape(layer: str, size: int) -> None:
    model = Tokens().eval()
    first, later = (feature_visualisation(model, layer, [2, 0], size=size, steps=steps) for steps in (1, 60))
    assert (active(model, layer, [2, 0], later) > active(model, layer, [2, 0], first)).all()


def test_the_parts_of_a_split_channel(glyphnet: nn.Module) -> None:
    owner = np.random.default_rng(0).integers(-1, 2, 32)
    split, layer = split_channel(glyphnet, "layer4.0.conv2", 3, owner), "layer4.0.conv2.parts"
    first, later = (feature_visualisation(split, layer, [0, 1, 2], size=96, steps=steps) for steps in (1, 30))
    assert (active(split, layer, [0, 1, 2], later) > 0.3 + active(split, layer, [0, 1, 2], first)).all()
    assert not np.array_equal(later[0], later[1])


def test_the_model_is_left_as_it_was() -> None:
    model = plain().train()
    model[4].weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():  # a caller who has switched gradients off
        feature_visualisation(model, "5", [0], size=12, steps=3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    assert all(p.grad is None for p in model.parameters())
    assert all(m.training for m in model.modules())
    assert not any(m._forward_hooks for m in model.modules())


def test_a_channel_that_sleeps_at_first_is_woken() -> None:
    """Grey gives it nothing and no gradient; only strong contrast passes the threshold."""
    model = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(oriented(0, 3, 3.0).expand(2, -1, -1, -1))
        model[0].bias.copy_(torch.tensor([-1.5, -1000]))
    found = feature_visualisation(model, "1", [0, 1], size=24, steps=120)
    assert active(model, "1", [0, 1], found)[0] > 0.1
    assert np.ptp(found[1]) == 0  # what nothing activates stays grey
    assert found[1].max() in (127, 128)


def test_no_gradient() -> None:
    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach()

    with pytest.raises(LayerError, match="no gradient leads from layer '1' to the picture"):
        feature_visualisation(nn.Sequential(Detached(), nn.Conv2d(3, 2, 1)), "1", [0], size=8)


def test_not_finite() -> None:
    model = plain()
    model[4].weight.data[1] = float("nan")
    with pytest.raises(NonFiniteError, match="channel 1 of layer '4' is NaN or infinite"):
        feature_visualisation(model, "4", [0, 1], size=12, steps=2)
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"channels": [0, 6]}, ArgumentError, "channel 6 .*: layer '4' has channels 0 to 5"),
        ({"channels": [-1]}, ArgumentError, "lowest -1"),
        ({"channels": []}, ArgumentError, r"at least one number, got \[\]"),
        ({"channels": [0.5]}, ArgumentError, r"got \[0\.5\]"),
        ({"layer": "layer4"}, LayerError, "has no layer 'layer4'"),
        ({"size": 0}, ArgumentError, "must be at least 1 .*got 0"),
        ({"steps": 0}, ArgumentError, "must be at least 1"),
        ({"jitter": -1}, ArgumentError, "jitter at least 0, got 12, 2 and -1"),
        ({"mean": [0.5]}, ArgumentError, r"each of three colours, got \[0\.5\]"),
    ],
)
def test_wrong_requests(change: dict[str, Any], error: type[Exception], message: str) -> None:
    how: dict[str, Any] = {"layer": "4", "channels": [0], "size": 12, "steps": 2, **change}
    with pytest.raises(error, match=message):
        feature_visualisation(plain(), **how)
