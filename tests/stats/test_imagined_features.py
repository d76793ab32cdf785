"""The experiment that exchanges imagined features: what is exchanged, and its verdicts."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from experiments.imagined_features import MOVED, WAYS, Branch, Findings, Query, Verdict, exchanged, verdicts
from policy.interface import Observation

SCENES = [f"Lift-{scene}-0" for scene in range(50)]


def test_exchanged_features_are_those_of_the_other_row_permuted_or_zero() -> None:
    features = torch.arange(4 * 2 * 3 * 2 * 2, dtype=torch.float32).reshape(4, 2, 3, 2, 2)
    seen = Observation({}, np.zeros(0, np.float32), "", 0)
    ways = (("future", 3), ("scrambled", -1), ("zeroed", -1), ("own", -1))
    queries = [Query(seen, seen, (1, 2), way, row) for way, row in ways]
    future, scrambled, zeroed, own = exchanged(features, 0, queries, [1])
    assert torch.equal(future[0], features[0, 0]), "the present frame stays"
    assert torch.equal(future[1], features[3, 1])
    assert torch.equal(own, features[3])
    assert not zeroed.any()
    assert not torch.equal(scrambled, features[1])
    for channel in range(3):
        assert torch.equal(scrambled[:, channel].flatten().sort()[0], features[1, :, channel].flatten())


def found(rng: np.random.Generator, rates: Mapping[str, float], moved: float) -> Findings:
    """Return findings with these success rates by way, 0.6 if not given, and a movement by `future` of
    `moved` times that by noise.
    """
    won = {way: {scene: bool(rng.random() < rates.get(way, 0.6)) for scene in SCENES} for way in WAYS}
    far = {
        name: {scene: float((moved if name == "future" else 1.0) + rng.random() / 10) for scene in SCENES}
        for name in MOVED
    }
    rest = (Branch(3, {way: won[way] for way in ("own", "swapped", "future")}),)
    share = {name: dict.fromkeys(SCENES, 0.5) for name in MOVED}
    return Findings(won, rest, far, {}, share)


@pytest.mark.parametrize(
    ("rates", "moved", "word"),
    [
        ({"future": 0.1}, 2.0, "the action follows it"),
        ({"future": 0.1}, 0.5, "no evidence"),
        ({}, 2.0, "no evidence"),
    ],
)
def test_verdict_needs_movement_and_loss_of_success(rates: dict[str, float], moved: float, word: str) -> None:
    rng = np.random.default_rng(0)
    said = verdicts([found(rng, rates, moved) for _ in range(3)])["future"]
    assert said.word == word
    assert said.factor.value == pytest.approx((moved + 0.05) / 1.05, rel=0.05)
    assert said.regret[3].value == pytest.approx(said.difference.value)
    assert said.share.value == pytest.approx(0.5)


def test_verdict_of_equal_success_and_little_movement_is_negative() -> None:
    rng = np.random.default_rng(0)
    one = found(rng, {}, 0.5)
    same = Findings({way: one.success["own"] for way in WAYS}, (), one.moved, {}, one.share)
    said: Verdict = verdicts([same] * 3)["future"]
    assert said.word == "the action does not follow it"
