"""Sparse autoencoders against slow and obvious twins, and on dictionaries that were planted."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from small import noise, plain
from torch import Tensor

from pure_nb.errors import ArgumentError, NonFiniteError
from pure_nb.images.sources import as_images
from pure_nb.methods.dictionaries import AUXILIARY, SparseAutoencoder, _Training, sample_positions
from pure_nb.network.layers import activations
from pure_nb.parameters import Run

QUIET = Run(progress=False, batch_size=4)


def planted(n: int = 4000, atoms: int = 16, channels: int = 10, active: int = 2, seed: int = 0) -> tuple[Any, Any]:
    """Positions where some of more atoms than channels are active, and the atoms."""
    generator = np.random.default_rng(seed)
    truth = generator.normal(size=(atoms, channels))
    truth /= np.linalg.norm(truth, axis=1, keepdims=True)
    codes = np.zeros((n, atoms))
    for row in codes:
        row[generator.choice(atoms, active, replace=False)] = generator.uniform(0.5, 1.5, active)
    return (codes @ truth).astype(np.float32), truth.astype(np.float32)


@pytest.mark.parametrize("kind", ["top-k", "BatchTopK"])
def test_a_planted_dictionary_is_found(kind: Any) -> None:
    rows, truth = planted(2000, 12, 8)
    made = SparseAutoencoder.fit(rows, 24, 2, kind, steps=300, batch_size=256, learning_rate=2e-2)
    cosines = truth @ made.decoder.numpy().T
    own = cosines[linear_sum_assignment(cosines, maximize=True)]
    assert np.median(own) > (0.97 if kind == "top-k" else 0.9)  # few atoms are chosen of a whole batch less surely
    assert (own > 0.8).mean() > 0.8
    random = SparseAutoencoder(8, 24, 2)
    assert random.report(rows).explained < 0.3
    found = made.report(rows)
    assert found.explained > 0.85
    assert found.l0 == pytest.approx(2, abs=0.01 if kind == "top-k" else 0.3)
    np.testing.assert_allclose(made.decoder.norm(dim=1), 1, rtol=1e-5)


def stirred(kind: Any, channels: int = 5, width: int = 9, k: int = 2, dtype: torch.dtype = torch.float64) -> Any:
    made = SparseAutoencoder(channels, width, k, kind, seed=3).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
        made.decoder /= made.decoder.norm(dim=1, keepdim=True)
        made.scale.fill_(1.7)
    return made


def by_hand(made: Any, batch: NDArray[np.float64], dead: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """The loss and the codes of a batch, number by number."""
    encoder, decoder, encoder_bias, bias = (
        getattr(made, name).detach().numpy() for name in ("encoder", "decoder", "encoder_bias", "bias")
    )
    x = batch / float(made.scale)
    before = np.zeros((len(x), len(encoder)))
    for i, f in itertools.product(range(len(x)), range(len(encoder))):
        before[i, f] = max(0.0, sum(encoder[f, c] * (x[i, c] - bias[c]) for c in range(x.shape[1])) + encoder_bias[f])
    codes = np.zeros_like(before)
    if made.kind == "top-k":
        for i in range(len(x)):
            for f in sorted(range(len(encoder)), key=lambda f: -before[i, f])[: made.k]:
                codes[i, f] = before[i, f]
    else:
        every = sorted(itertools.product(range(len(x)), range(len(encoder))), key=lambda place: -before[place])
        for place in every[: len(x) * made.k]:
            codes[place] = before[place]
    rest = np.array([[x[i, c] - codes[i] @ decoder[:, c] - bias[c] for c in range(x.shape[1])] for i in range(len(x))])
    loss = (rest**2).sum() / ((x - x.mean(axis=0)) ** 2).sum()
    count = min(int(dead.sum()), x.shape[1] // 2)
    if count:
        told = np.zeros_like(rest)
        for i in range(len(x)):
            for f in sorted(np.flatnonzero(dead), key=lambda f: -before[i, f])[:count]:
                told[i] += before[i, f] * decoder[f]
        loss += AUXILIARY * ((rest - told) ** 2).sum() / (rest**2).sum()
    return float(loss), codes


@pytest.mark.parametrize("kind", ["top-k", "BatchTopK"])
@pytest.mark.parametrize("dead", [(), (1, 4, 6, 8)], ids=["none dead", "some dead"])
def test_one_forward_and_the_loss(kind: Any, dead: tuple[int, ...]) -> None:
    made, batch = stirred(kind), noise(7, 5)[:, 0, 0].double()
    mask = np.zeros(9)
    mask[list(dead)] = 1
    loss, codes = by_hand(made, batch.numpy(), mask)
    assert made.loss(batch, torch.from_numpy(mask))[0].item() == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(made.chosen(made.before(batch)).detach(), codes, atol=1e-13)
    if kind == "top-k":
        np.testing.assert_allclose(made.encode(batch).detach(), codes, atol=1e-13)
    assert (codes > 0).any()


@pytest.mark.parametrize("kind", ["top-k", "BatchTopK"])
def test_one_step(kind: Any) -> None:
    """Gradients by differences of the loss by hand, then what the step does to them, written down once more."""
    made, batch = stirred(kind), noise(7, 5)[:, 0, 0].double()
    training = _Training(made, 0.01)
    training.silent[[1, 4]] = 10**6
    dead = (training.silent > 10**5).double().numpy()
    names = ["encoder", "decoder", "encoder_bias", "bias"]
    before = {name: getattr(made, name).detach().clone() for name in names}
    gradient = {}
    for name in names:
        flat, found = getattr(made, name).data.view(-1), []
        for place in range(len(flat)):
            sides = []
            for side in (1e-6, -1e-6):
                flat[place] += side
                sides.append(by_hand_fixed_rest(made, batch.numpy(), dead, before))
                flat[place] -= side
            found.append((sides[0] - sides[1]) / 2e-6)
        gradient[name] = np.array(found).reshape(before[name].shape)
    atoms = before["decoder"].numpy()
    gradient["decoder"] -= (gradient["decoder"] * atoms).sum(axis=1, keepdims=True) * atoms
    norm = np.sqrt(sum((own**2).sum() for own in gradient.values()))
    gradient = {name: own / max(1.0, norm + 1e-6) for name, own in gradient.items()}
    active = (made.chosen(made.before(batch)) > 0).any(dim=0)
    training.step(batch, 7)
    for name in names:
        own = gradient[name]
        wanted = before[name].numpy() - 0.01 * own / (np.abs(own) + 1e-8)  # the first step of Adam
        if name == "decoder":
            wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
        sure = np.abs(own) > 1e-6  # of the others not even the sign is known by differences
        assert sure.mean() > 0.4
        np.testing.assert_allclose(getattr(made, name).detach().numpy()[sure], wanted[sure], atol=3e-5)
    assert (training.silent[active] == 0).all()
    assert (training.silent[~active] >= 7).all()


def by_hand_fixed_rest(made: Any, batch: NDArray[np.float64], dead: NDArray[np.float64], first: Any) -> float:
    """The loss in which what the dead are to explain stays what it was, as it has no gradient."""
    whole, _ = by_hand(made, batch, np.zeros_like(dead))
    with_dead, _ = by_hand(made, batch, dead)
    now = {name: getattr(made, name).detach().clone() for name in first}
    x = batch / float(made.scale)

    def rest(values: Any) -> NDArray[np.float64]:
        for name, value in values.items():
            getattr(made, name).data.copy_(value)
        _, codes = by_hand(made, batch, dead)
        return np.asarray(x - codes @ made.decoder.detach().numpy() - made.bias.detach().numpy())

    left = rest(first)
    moved = rest(now)
    told = np.zeros_like(left)
    count = min(int(dead.sum()), x.shape[1] // 2)
    values = (
        np.maximum(
            0, (x - made.bias.detach().numpy()) @ made.encoder.detach().numpy().T + made.encoder_bias.detach().numpy()
        )
        * dead
    )
    for i in range(len(x)):
        for f in np.argsort(-values[i])[:count]:
            told[i] += values[i, f] * made.decoder.detach().numpy()[f]
    assert with_dead == pytest.approx(whole + AUXILIARY * ((moved - told) ** 2).sum() / (moved**2).sum())
    return float(whole + AUXILIARY * ((left - told) ** 2).sum() / (left**2).sum())


def test_the_dead_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features that look where nearly nothing is learn from what is left over."""
    rows, _ = planted(200)

    def silent(weight: float) -> int:
        monkeypatch.setattr("pure_nb.methods.dictionaries.AUXILIARY", weight)
        made = SparseAutoencoder(10, 40, 2)
        with torch.no_grad():
            made.encoder_bias[:30] = -1
        training, given = _Training(made, 2e-2), torch.from_numpy(rows)
        for _ in range(60):
            for batch in given.split(100):
                training.step(batch, len(given))
        return int((training.silent >= 1000).sum())

    assert silent(AUXILIARY) <= silent(0) - 5


def test_the_seed_decides_and_nothing_else() -> None:
    rows, _ = planted(300)
    how: dict[str, Any] = {"width": 12, "k": 2, "steps": 20, "batch_size": 50}

    def state(**changes: Any) -> list[Tensor]:
        return [*SparseAutoencoder.fit(rows, **{**how, **changes}).state_dict().values()]

    first = state()
    torch.rand(7)
    assert all(map(torch.equal, first, state()))
    assert not torch.equal(first[0], state(seed=1)[0])


def test_the_threshold_lets_as_many_through() -> None:
    rows, _ = planted(2000)
    made = SparseAutoencoder.fit(rows, 16, 3, "BatchTopK", steps=200, batch_size=200)
    kept = [made.chosen(made.before(part)) for part in torch.from_numpy(rows).split(200)]
    least = np.mean([float(codes[codes > 0].min()) for codes in kept])
    assert float(made.threshold) == pytest.approx(least)
    one = torch.from_numpy(rows[:1])
    torch.testing.assert_close(made.encode(one), made.encode(torch.from_numpy(rows))[:1])  # whoever else is there


def test_the_report() -> None:
    rows, _ = planted(500)
    made = SparseAutoencoder.fit(rows, 30, 2, steps=30)
    codes = made.encode(torch.from_numpy(rows)).numpy()
    back = made(torch.from_numpy(rows)).numpy()
    found = made.report(rows)
    assert found.explained == pytest.approx(
        1 - ((rows - back) ** 2).sum() / ((rows - rows.mean(0)) ** 2).sum(), abs=1e-5
    )
    assert found.l0 == pytest.approx((codes > 0).sum(axis=1).mean())
    assert found.dead == pytest.approx((codes == 0).all(axis=0).mean())


@pytest.mark.parametrize(
    "wrong",
    [{"k": 0}, {"k": 13}, {"k": -1}, {"width": 0, "k": 0}, {"steps": 0}, {"batch_size": 0}, {"learning_rate": 0.0}],
)
def test_numbers_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="expected at least one"):
        SparseAutoencoder.fit(planted(50)[0], **{"width": 12, "k": 2, **wrong})


def test_what_can_not_be_learned() -> None:
    with pytest.raises(ArgumentError, match=r"kind must be one of top-k, BatchTopK, got 'L1'"):
        SparseAutoencoder(3, 6, 2, "L1")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="got 0 positions"):
        SparseAutoencoder.fit(np.zeros((0, 4), np.float32), 8, 2)
    for rows in (np.ones((20, 4)), np.full((20, 4), np.nan)):
        with pytest.raises(NonFiniteError, match="must be finite, and not all the same"):
            SparseAutoencoder.fit(rows, 8, 2)


def test_positions_are_drawn_once_each() -> None:
    model, images = plain(), as_images(noise(9))
    whole = activations(model, noise(9), ["3"])["3"].detach().flatten(2)  # [9, 7, 36]
    flat = whole.transpose(1, 2).reshape(-1, 7).numpy()
    np.testing.assert_allclose(sample_positions(model, images, "3", run=QUIET), flat, atol=1e-6)
    some = sample_positions(model, images, "3", most=50, run=QUIET)
    assert 35 <= len(some) <= 50
    near = (np.abs(some[:, None] - flat[None]).max(axis=2) < 1e-6).argmax(axis=1)
    assert (np.diff(near) > 0).all()
    np.testing.assert_array_equal(near, np.unique(np.random.default_rng(0).integers(len(flat), size=50)))
    np.testing.assert_allclose(sample_positions(model, images, "3", most=50, run=Run(batch_size=2)), some, atol=1e-6)
    with pytest.raises(ArgumentError, match="most must be at least 1"):
        sample_positions(model, images, "3", most=0)
