"""Where a neuron looks: heatmaps against zennit-crp, masks and crops against slow loops."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from small import Items, Tokens, crp, noise, plain, stirred
from torch import Tensor, nn
from zennit.composites import EpsilonPlusFlat
from zennit.torchvision import ResNetCanonizer

from pure_nb.errors import ArgumentError, ImageError, LayerError
from pure_nb.figures.render import View, boxes, heatmap_mask, heatmaps, square_around, views
from pure_nb.glyphs import GlyphScenes
from pure_nb.images.data import Images
from pure_nb.network.layers import activations
from pure_nb.parameters import Run


def in_order(model: nn.Module, images: Images, channel: Any, sample: Any, **how: Any) -> list[Tensor]:
    found: dict[int, Tensor] = {}
    for rows, maps in heatmaps(model, images, np.asarray(channel), np.asarray(sample), **how):
        found |= {row: own.clone() for row, own in zip(rows.tolist(), maps)}
    return [found[row] for row in range(len(channel))]


def network_and_images(name: str, glyphnet: nn.Module, count: int) -> tuple[nn.Module, Tensor, list[int]]:
    """With two channels of layer4 that all of the images activate."""
    model, images = glyphnet, torch.stack([GlyphScenes(count)[index][0] for index in range(count)])
    if name == "resnet18":
        torch.manual_seed(0)
        model, images = stirred(torchvision.models.resnet18(weights=None)), noise(count, 64)
    with torch.inference_mode():
        strength = activations(model, images, ["layer4"])["layer4"].amax(dim=(2, 3)).amin(dim=0)
    return model, images, strength.argsort(descending=True)[:2].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("network", ["glyphnet", "resnet18"])
def test_heatmaps_are_those_that_zennit_crp_keeps_at_the_maximum(
    network: str, glyphnet: nn.Module, tmp_path: Path
) -> None:
    """The default, against references and positions that zennit-crp collects itself: rf=True, as in PURE's code.

    Measured: 2e-7 of the largest value.
    """
    model, images, alive = network_and_images(network, glyphnet, 4)
    composite = EpsilonPlusFlat(canonizers=[ResNetCanonizer()])
    labelled = [(image, 0) for image in images]
    attribution, concepts = crp("attribution").CondAttribution(model), {"layer4": crp("concepts").ChannelConcept()}
    peer = crp("visualization").FeatureVisualization(
        attribution, labelled, concepts, max_target="max", abs_norm=False, path=tmp_path
    )
    peer.run(composite, 0, len(labelled), batch_size=len(labelled))
    ranked = crp("helper").load_maximization(peer.ActMax.PATH, "layer4")[0]
    everywhere = in_order(model, Images(Items(images)), [alive[0]], [0], target="layer4", crop="crp")[0]
    for channel in alive:
        _, expected = peer.get_max_reference(channel, "layer4", "activation", (0, 4), composite, rf=True, plot_fn=None)[
            channel
        ]
        found = in_order(model, Images(Items(images)), [channel] * 4, ranked[:4, channel], target="layer4")
        for own, other, sample in zip(found, expected, ranked[:, channel]):
            assert other.abs().max() > 0
            assert (own - other).abs().max() < 1e-5 * other.abs().max()
            if (channel, sample) == (alive[0], 0):
                assert (everywhere - other).abs().max() > 0.1 * other.abs().max()


@pytest.mark.parametrize("network", ["glyphnet", "resnet18"])
def test_heatmaps_from_all_positions_are_zennit_crps(network: str, glyphnet: nn.Module) -> None:
    model, images, alive = network_and_images(network, glyphnet, 2)
    how: dict[str, Any] = {"target": "layer4", "crop": "crp", "run": Run(batch_size=2)}
    found = in_order(model, Images(Items(images)), np.repeat(alive, 2), [1, 0, 1, 0], **how)
    for number, channel in enumerate(alive):
        expected = (
            crp("attribution")
            .CondAttribution(model)(
                images.clone().requires_grad_(),
                [{"layer4": [channel]}] * 2,
                EpsilonPlusFlat(canonizers=[ResNetCanonizer()]),
                start_layer="layer4",
                init_rel=lambda a: a.clamp(min=0),
            )
            .heatmap
        )
        for own, other in ((found[2 * number], expected[1]), (found[2 * number + 1], expected[0])):
            assert other.abs().max() > 0
            assert (own - other).abs().max() < 1e-4 * other.abs().max()


def test_crops_that_do_not_exist() -> None:
    with pytest.raises(ArgumentError, match=r"crop must be one of peak, crp, activation, got 'rf'"):
        in_order(plain(), Images(Items(noise(1))), [0], [0], target="4", crop="rf")


def test_activation_maps_are_scaled_up_bilinearly() -> None:
    images, channel, sample = noise(3), [4, 0, 2, 0], [2, 2, 0, 1]
    found = in_order(
        plain(), Images(Items(images)), channel, sample, target="4", crop="activation", run=Run(batch_size=2)
    )
    with torch.no_grad():
        maps = plain()[:5](images).clamp(min=0).double().numpy()
    for own, c, s in zip(found, channel, sample):
        expected = np.empty((12, 12))
        for y, x in np.ndindex(12, 12):  # from 6 x 6, the middles of the cells being where the values are
            v, u = ((np.array([y, x]) + 0.5) / 2 - 0.5).clip(0)
            top, left = math.floor(v), math.floor(u)
            bottom, right = min(top + 1, 5), min(left + 1, 5)
            a, b = v - top, u - left
            m = maps[s, c]
            upper = (1 - b) * m[top, left] + b * m[top, right]
            expected[y, x] = (1 - a) * upper + a * ((1 - b) * m[bottom, left] + b * m[bottom, right])
        np.testing.assert_allclose(own.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_activation_maps_want_a_grid() -> None:
    with pytest.raises(LayerError, match="layer 'second' has no grid of positions to scale up; use crop='peak'"):
        in_order(Tokens().eval(), Images(Items(noise(1))), [0], [0], target="second", crop="activation")


@pytest.mark.parametrize("crop", ["peak", "crp", "activation"])
def test_unreadable(crop: Any) -> None:
    with pytest.raises(ImageError, match="gone"):
        in_order(plain(), Images(Items(noise(2), {1: OSError("gone")})), [0], [1], target="4", crop=crop)


def blurred(heatmap: NDArray[np.float64], kernel: int) -> NDArray[np.float64]:
    """A Gaussian blur, pixel by pixel, mirrored at the edges."""
    sigma = 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8
    offsets = np.arange(kernel) - (kernel - 1) / 2
    weights = np.exp(-(offsets**2) / (2 * sigma**2))
    weights /= weights.sum()
    padded = np.pad(heatmap, kernel // 2, mode="reflect")
    result = np.zeros_like(heatmap)
    for y, x in np.ndindex(*heatmap.shape):
        result[y, x] = (np.outer(weights, weights) * padded[y : y + kernel, x : x + kernel]).sum()
    return result


@pytest.mark.parametrize(("blur", "kernel"), [(51 / 224, 5), (0.4, 9), (0.0, 1), (0.04, 1), (0.3, 7)])
@pytest.mark.parametrize("threshold", [0.02, 0.3])
def test_seen(blur: float, kernel: int, threshold: float) -> None:
    heatmap = torch.randn(18, 22, generator=torch.Generator().manual_seed(3)) ** 3 - 0.5
    smooth = blurred(heatmap.double().numpy(), kernel)
    expected = smooth > threshold * smooth.max()
    found = heatmap_mask(heatmap, blur=blur, threshold=threshold)
    assert found.dtype == bool
    clear = np.abs(smooth - threshold * smooth.max()) > 1e-6
    assert (found == expected)[clear].all()
    assert 0 < expected.sum() < expected.size


def test_seen_takes_many_and_does_not_care_for_scale() -> None:
    heatmap = torch.randn(2, 3, 20, 20)
    found = heatmap_mask(heatmap)
    assert found.shape == (2, 3, 20, 20)
    assert (found == heatmap_mask(heatmap * 1e-6)).all()
    assert (found[1, 2] == heatmap_mask(heatmap[1, 2])).all()


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_all_is_seen_where_nothing_is_positive(value: float) -> None:
    assert heatmap_mask(torch.full((10, 10), value)).all()


@given(st.integers(1, 12), st.integers(1, 12), st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=5))
def test_square_around(height: int, width: int, points: list[tuple[int, int]]) -> None:
    mask = np.zeros((height, width), dtype=bool)
    for y, x in points:
        mask[y % height, x % width] = True
    left, top, right, bottom = square_around(mask)
    if not mask.any():
        assert (left, top, right, bottom) == (0, 0, width, height)
        return
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    ys, xs = np.nonzero(mask)
    side = max(ys.max() - ys.min(), xs.max() - xs.min()) + 1
    assert (right - left, bottom - top) == (min(side, width), min(side, height))
    assert mask[top:bottom, left:right].sum() == mask.sum()
    # In the middle, as far as the picture lets it be.
    for first, last, start, length, limit in (
        (xs.min(), xs.max(), left, right - left, width),
        (ys.min(), ys.max(), top, bottom - top, height),
    ):
        middle = (first + last + 1 - length) / 2
        assert abs(start - min(max(middle, 0), limit - length)) <= 0.5


def view(height: int = 40, width: int = 60) -> View:
    picture = np.random.default_rng(0).integers(30, 200, (height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), dtype=bool)
    mask[10:20, 25:40] = True
    return View(7, picture, mask)


def test_crop() -> None:
    one = view()
    assert one.box == (25, 7, 40, 22)
    assert (one.crop() == one.picture[7:22, 25:40]).all()
    assert one.crop(30).shape == (30, 30, 3)


def test_highlighted() -> None:
    one = view()
    found = one.highlighted(crop=False)
    assert found.shape == one.picture.shape
    for y, x in np.ndindex(40, 60):
        if not one.mask[y, x]:
            expected = np.floor(0.4 * one.picture[y, x].astype(np.float32) + 0.6 * 255)
            assert np.abs(found[y, x] - expected).max() <= 1
        elif y in (10, 19) or x in (25, 39):
            assert (found[y, x] == 0).all()  # the outline
        else:
            assert (found[y, x] == one.picture[y, x]).all()
    # Cut out, the outline is drawn where the seen part ends within the crop, and not along the crop's own edge.
    cropped, same = one.highlighted(), found[7:22, 25:40].copy()
    same[3:13, [0, -1]] = one.picture[10:20, [25, 39]]
    same[[3, 12]] = 0
    assert (cropped == same).all()
    plain_text = one.highlighted(crop=False, dim=1.0)
    assert (plain_text[~one.mask] == one.picture[~one.mask]).all()


@pytest.mark.parametrize("size", [16, 96])
@pytest.mark.parametrize("crop", [True, False])
def test_highlighted_sizes(size: int, crop: bool) -> None:
    found = view().highlighted(size, crop=crop)
    assert found.shape == (size, size, 3)
    assert found.dtype == np.uint8


def test_a_picture_that_is_not_square_is_centred_on_white() -> None:
    found = View(0, np.zeros((10, 20, 3), np.uint8), np.ones((10, 20), dtype=bool)).crop(20)
    assert (found[:5] == 255).all()
    assert (found[5:15] == 0).all()
    assert (found[15:] == 255).all()


@pytest.mark.parametrize("crop", ["peak", "crp", "activation"])
def test_views_are_in_the_order_of_the_pairs(crop: Any, glyphnet: nn.Module) -> None:
    images = Images(GlyphScenes(5))
    channel, sample = np.array([3, 1, 3, 0, 2]), np.array([4, 0, 0, 4, 2])
    found = views(glyphnet, images, channel, sample, target="layer4", crop=crop, run=Run(batch_size=2))
    assert [one.sample for one in found] == sample.tolist()
    maps = in_order(glyphnet, images, channel, sample, target="layer4", crop=crop)
    for one, heatmap, s in zip(found, maps, sample):
        assert (one.picture == images.picture(int(s))).all()
        assert one.mask.shape == (96, 96)
        assert (one.mask != heatmap_mask(heatmap)).mean() < 0.01  # batches of another size round otherwise
    wide = views(
        glyphnet,
        images,
        channel,
        sample,
        target="layer4",
        crop=crop,
        mask=partial(heatmap_mask, threshold=0.5, blur=0.0),
    )
    assert wide[0].mask.sum() < found[0].mask.sum()


def test_boxes_are_of_pairs_of_any_one_shape() -> None:
    """A single pair is none of several, and a channel without an image is no pair."""
    how: dict[str, Any] = {"target": "4", "crop": "activation", "run": Run(progress=False)}
    model, images, channel, sample = plain(), Images(Items(noise(4))), np.array([1, 2]), np.array([3, 0])
    found = boxes(model, images, channel, sample, **how)
    np.testing.assert_array_equal(boxes(model, images, channel[0], sample[0], **how), found[0])
    with pytest.raises(ArgumentError, match=r"each channel needs its image: got channels \[2\], images \[1\]"):
        boxes(model, images, channel, sample[:1], **how)
