"""Outputs explained by parts: every number by hand on a few weights, against zennit on the shipped network."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small import noise
from torch import nn
from typer.testing import CliRunner
from zennit.composites import EpsilonPlusFlat
from zennit.torchvision import ResNetCanonizer

from pure_nb import Study
from pure_nb.cli import app
from pure_nb.errors import ArgumentError, ImageError, LayerError, PureError, StudyError
from pure_nb.methods.virtual import VirtualNeurons
from pure_nb.reasons.parts import LIKE, UNLIKE, fit, reach
from pure_nb.reasons.tracing import pulled


def few() -> nn.Sequential:
    """Two lower channels, three upper ones, two outputs, no more than one can follow by hand."""
    lower, upper, head = nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(2, 3, 1), nn.Linear(3, 2)
    with torch.no_grad():
        lower.weight.copy_(torch.eye(2)[..., None, None])
        upper.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0]])[..., None, None])
        upper.bias.copy_(torch.tensor([0.5, 0.0, -1.0]))
        head.weight.copy_(torch.tensor([[1.0, -3.0, 5.0], [2.0, 1.0, 7.0]]))
        head.bias.copy_(torch.tensor([0.25, -0.5]))
    return nn.Sequential(lower, upper, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Study:
    images = torch.rand(12, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    how: dict[str, Any] = {"n_references": 6, "n_clusters": 1, "progress": False, "crop": "activation"}
    how |= {"mean": (0.0,), "std": (1.0,), "store": tmp_path_factory.mktemp("few")}
    return Study.from_model(few(), images, "2", "0", **how)


PICTURE = torch.stack([torch.full((2, 2), 1.0), torch.full((2, 2), 3.0)])
"""It gives the upper channels 1.5, 6 and 0: so the outputs are 1.5 - 18 + 0.25 = -16.25 and 3 + 6 - 0.5 = 8.5."""


def test_a_few_weights_by_hand(small: Study) -> None:
    found = small.explain(PICTURE, channels=2)
    assert (found.output, found.answer, found.value) == ("1", "1", 8.5)
    assert found.channels["channel"].tolist() == [1, 0]
    assert found.channels["relevance"].tolist() == [6, 3]
    table = found.table.set_index("kind")
    assert table.loc["other channels", "relevance"] == 0
    assert table.loc["not by these channels", "relevance"] == -0.5
    assert table["share"].sum() == pytest.approx(1)
    assert "larger by" not in found.title
    assert [found._parts.kind(channel) for channel in (0, 1)] == ["channel"] * 2  # they are left whole
    assert set(found.table["kind"][found.table["part"] != ""]) <= {"channel"}
    assert (found.outside, "\n" in repr(found)) == ("", False)
    most = replace(found, value=100.0)
    assert most.outside.startswith("Most of this output is not told by the parts: ")
    assert "not by these channels +91%" in most.outside
    assert most.outside in repr(most)
    assert replace(found, value=-100.0).outside.endswith("not by these channels -109%.")


def test_what_speaks_against_and_an_output_below_zero(small: Study) -> None:
    found = small.explain(PICTURE, 0, channels=1)
    assert found.channels["relevance"].tolist() == [-18]
    assert found.table.set_index("kind").loc["other channels", "relevance"] == pytest.approx(1.5)
    assert found.table["share"].sum() == pytest.approx(-1)
    other = small.explain(PICTURE, 1, against=0, channels=2)
    assert other.value == 24.75
    assert dict(zip(other.channels["channel"], other.channels["relevance"])) == {1: 24, 0: 1.5}
    assert other.table["share"].sum() == pytest.approx(1)


def test_circuits_that_are_unlike_any_part() -> None:
    """The limit is the quantile of the part's own distances, and what is as far as that belongs to it."""
    vectors = np.array([[0, 0], [2, 0], [0, 4], [0, 10], [0, 14]], dtype=np.float32)
    labels = np.array([0, 0, 1, 1, 1])
    centroids = np.stack([vectors[labels == part].mean(axis=0) for part in (0, 1)])
    parts = VirtualNeurons(labels, centroids, 0.0, 0.0, 1.0)
    far = [np.quantile([1, 1], LIKE), np.quantile(np.abs([4, 10, 14] - centroids[1][1]), LIKE)]
    assert reach(vectors, parts) == pytest.approx(np.array(far))
    new = np.array([[1, 1], [1, 1.5], [0, 15], [0, 0]], dtype=np.float32)
    found = fit(new, parts, reach(vectors, parts))
    assert found.part.tolist() == [0, UNLIKE, UNLIKE, UNLIKE]
    assert found.distance[:3] == pytest.approx([1, 1.5, 15 - centroids[1][1]])
    assert np.isnan(found.distance[3])  # no relevance flows at all
    bare = VirtualNeurons(np.zeros(5, np.int64), centroids, 0.0, 0.0, 1.0)  # a part without images
    assert np.isnan(reach(vectors, bare)[1])
    assert fit(np.array([[0, 9]], np.float32), bare, reach(vectors, bare)).part.tolist() == [UNLIKE]


@pytest.mark.parametrize("rule", ["gradient", "lrp"])
def test_shares_are_those_of_zennit(glyph_study: Study, rule: str) -> None:
    """By gradient those of torch itself; every channel's, and so those of its part, of all others and of the rest."""
    study = glyph_study.replace(rule=rule, n_clusters=2)
    found = study.explain(3, channels=32)
    model, image = study.model.eval(), study.images.tensor(3)[None]
    kept: dict[str, torch.Tensor] = {}

    def keep(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        kept["top"] = output

    handle = model.get_submodule("layer4").register_forward_hook(keep)
    try:
        if rule == "gradient":
            model(image.requires_grad_()).max().backward()
            expected = kept["top"].detach() * kept["top"].grad
        else:
            with EpsilonPlusFlat([ResNetCanonizer()]).context(model) as ruled:
                handle.remove()
                handle = ruled.get_submodule("layer4").register_forward_hook(keep)
                out = ruled(image.requires_grad_())
                out.backward(out.detach() * torch.nn.functional.one_hot(out.argmax(), out.shape[1]))
            expected = kept["top"].grad
    finally:
        handle.remove()
    by_channel = expected.sum(dim=(2, 3))[0].double().numpy() / found.value
    own = found.channels.sort_values("channel")["relevance"].to_numpy() / found.value
    np.testing.assert_allclose(own, by_channel, atol=1e-5)
    shares = found.table.set_index("kind")["share"]
    assert shares.sum() == pytest.approx(1, abs=1e-9)
    assert shares.drop("not by these channels").sum() == pytest.approx(by_channel.sum(), abs=1e-5)


@pytest.mark.parametrize("rule", ["gradient", "lrp"])
def test_parts_are_those_of_the_circuits(glyph_study: Study, rule: str) -> None:
    """Many circuits at once are those that the study computes one by one."""
    study = glyph_study.replace(rule=rule)
    found = study.explain(5).channels
    vectors = study.run_circuits(found["channel"].to_numpy(), np.full(len(found), 5))
    for channel, part, distance, limit, vector in zip(
        found["channel"], found["part"], found["distance"], found["limit"], vectors
    ):
        if not vector.any():
            assert part == UNLIKE
            continue
        parts = study.virtual[channel]
        (nearest,) = parts.predict(vector[None])
        assert distance == pytest.approx(np.linalg.norm(vector - parts.centroids[nearest]), abs=1e-5)
        assert part in (nearest if distance <= limit else UNLIKE,)


def test_products_one_by_one_where_they_can_not_be_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lower = noise(2).requires_grad_()
    top, above = (lower**2).sum(dim=1), noise(3, channels=2).unflatten(1, (2,))
    expected = pulled(top, lower, above)
    grad = torch.autograd.grad

    def single(*given: Any, is_grads_batched: bool = False, **how: Any) -> Any:
        if is_grads_batched:
            raise RuntimeError("no batching rule")
        return grad(*given, **how)

    monkeypatch.setattr(torch.autograd, "grad", single)
    torch.testing.assert_close(pulled(top, lower, above), expected)


def test_where_a_part_is(glyph_study: Study) -> None:
    """The map of one channel, down to the pixels; of all channels together it is that of the output."""
    picture = int(glyph_study.references.sample[3, 0])  # which some channel knows
    found = glyph_study.explain(picture, count=3)
    count = len(found.shown)
    assert count
    assert found.heatmaps.shape == (count, 96, 96)
    assert found.heatmaps.any(axis=(1, 2)).all()
    assert [one.row["part"] for one in found.shown] == found.table["part"][:count].tolist()
    at_layer = glyph_study.replace(crop="activation").explain(picture, count=3)
    flow = at_layer._layer.flow[0, at_layer.channels[at_layer.channels["part"] >= 0]["channel"].iloc[0]]
    large = torch.nn.functional.interpolate(flow[None, None], (96, 96), mode="bilinear")[0, 0]
    np.testing.assert_allclose(at_layer.heatmaps[0], large.numpy(), atol=1e-6)


def test_pictures_of_all_kinds(seen: Study, tmp_path: Path) -> None:
    """The same image by number, as the network's input, as a picture and from a file."""
    picture = Image.fromarray(seen.images.picture(4))
    picture.save(tmp_path / "four.png")
    expected = seen.explain(4).channels
    for given in (seen.images.tensor(4), seen.images.tensor(4)[None]):
        assert np.allclose(seen.explain(given).channels["relevance"], expected["relevance"], atol=1e-5)
    for given in (picture, tmp_path / "four.png", str(tmp_path / "four.png")):
        own = seen.explain(given).channels.set_index("channel")["relevance"]  # 8 bits a colour
        assert np.allclose(own[expected["channel"]], expected["relevance"], atol=0.05)
    with pytest.raises(ImageError, match=r"is a folder: name a picture in it$"):
        seen.explain(tmp_path)


def test_page_and_figure(seen: Study, tmp_path: Path) -> None:
    found = seen.explain(7, count=2)
    text = found.write(tmp_path / "why.html").read_text("utf-8")
    assert text.count("data:image/webp") == 1 + sum(1 + len(one.references) for one in found.shown)
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert f"Why “{found.output}”?" in text
    for row in found.table.to_dict("records"):
        assert f"{100 * row['share']:+.1f} %".replace("-", "−") in text
    assert "<html" not in found._repr_html_()
    assert len(found.figure().axes) == 3 * len(found.shown) + 2


def test_the_command(tmp_path: Path) -> None:
    page = tmp_path / "why.html"
    given = ["explain", "glyphs", "7", "--against", "sun", "--count", "2", "--out", str(page)]
    made = CliRunner().invoke(app, given)
    assert made.exit_code == 0, made.output
    assert "rather than sun" in made.output
    assert "rather than “sun”" in page.read_text("utf-8")
    made = CliRunner().invoke(app, ["explain", "glyphs", "none.png", "--out", str(page)])
    assert made.exit_code == 1
    assert "none.png" in made.output


def problem(call: Any) -> str:
    with pytest.raises(PureError) as caught:
        call()
    return f"{type(caught.value).__name__}: {caught.value}"


def test_what_can_not_be_explained_is_told_in_a_sentence(seen: Study) -> None:
    size = torch.zeros(3, 64, 96)
    assert "[3, 96, 96], and 'a tensor' is [3, 64, 96]: scale or cut" in problem(lambda: seen.explain(size))
    assert "[3, 96, 96], and 'a picture' is [3, 50, 40]" in problem(lambda: seen.explain(Image.new("RGB", (40, 50))))
    assert "image 999: the study has images 0 to 199" in problem(lambda: seen.explain(999))
    assert "got a dict" in problem(lambda: seen.explain({}))
    assert "there is no output 'wheelchiar' among" in problem(lambda: seen.explain(0, "wheelchiar"))
    assert "wheelchair" in problem(lambda: seen.explain(0, "wheelchiar"))
    assert "output 99: the network has outputs 0 to" in problem(lambda: seen.explain(0, 99))
    assert "can't be compared with itself" in problem(lambda: seen.explain(0, 1, against=1))
    assert "count=0" in problem(lambda: seen.explain(0, count=0))
    assert "channels=0" in problem(lambda: seen.explain(0, channels=0))


def test_dead_channels_layers_and_networks_without_outputs(small: Study) -> None:
    """The third channel is dead: a picture that activates it all the same is unlike any of its parts."""
    found = small.explain(torch.full((2, 2, 2), -2.0))
    row = found.channels.set_index("channel").loc[2]
    assert row["relevance"] == 21
    assert row["part"] == UNLIKE
    dark = Study.from_model(few(), torch.full((3, 2, 2, 2), -0.5), "2", "0", n_references=2, n_clusters=1)
    dark.model[1].bias.data[:2] = -1
    dark = dark.replace(seed=1)
    assert "no image activates any channel of '2'" in problem(lambda: dark.explain(0))
    maps = Study.from_model(few()[:3], torch.rand(6, 2, 2, 2), "2", "0", n_references=2, n_clusters=1)
    assert "one number an output" in problem(lambda: maps.explain(0))
    assert {ArgumentError, ImageError, LayerError, StudyError} <= set(PureError.__subclasses__())
