"""Prediction error: imagined frames against those that follow in the filmed episode."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grey_simulator import GreySimulator, record_film
from policy.interface import Imagination
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.prediction_error import PredictionError, distance
from sim_workers.rollout.suite import EpisodeSpec

CAMERAS = ("a", "b")


def outcome(steps: int) -> Outcome:
    return Outcome(EpisodeSpec("Lift", 7, 8), "success", steps, 2, 0.0, 0.0)


def grey(level: float) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """Return pictures of one grey level per camera."""
    return {camera: np.full((16, 16, 3), level + 50 * i, np.uint8) for i, camera in enumerate(CAMERAS)}


def imagined(levels: list[float], stride: int) -> Imagination:
    frames = [grey(level) for level in levels]
    return Imagination({camera: np.stack([frame[camera] for frame in frames]) for camera in CAMERAS}, stride)


def played(steps: int, execute: int, stride: int, frames: int, error: int = 0) -> dict[str, object]:
    """Return the report of an episode that brightens by one grey level per step, with a policy whose
    imagination is off by `error`.
    """
    foresight = PredictionError()
    for step in range(1, steps + 1):
        if (step - 1) % execute == 0:
            now = step - 1
            levels = [now + stride * (frame + 1) + error for frame in range(frames)]
            foresight.observed(now, imagined(levels, stride), grey(now))
        if foresight.expects(step):
            foresight.saw(step, grey(step))
    told = foresight.to_json(outcome(steps))
    assert told
    return told


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 9), st.integers(1, 8), st.integers(0, 9))
def test_prediction_error_equals_the_error_of_the_imagination(
    steps: int, execute: int, stride: int, frames: int, error: int
) -> None:
    told = played(steps, execute, stride, frames, error)
    looks = [look for look in range(0, steps, execute) if look + stride <= steps]
    assert told["steps"] == looks
    assert told["distances"] == pytest.approx([error] * len(looks))
    came = [[stride * (f + 1) for f in range(frames) if look + stride * (f + 1) <= steps] for look in looks]
    assert told["still"] == pytest.approx([np.mean(moments) for moments in came]), (
        "a still picture is as far as the world has moved"
    )
    assert told["mean_distance"] == (pytest.approx(error) if looks else None)


def test_prediction_error_names_the_episode_and_its_result() -> None:
    told = played(9, 4, 4, 2)
    assert {name: told[name] for name in ("episode", "task", "result")} == {
        "episode": "Lift-7-8",
        "task": "Lift",
        "result": "success",
    }


def test_distance_is_over_the_pictures_of_all_cameras() -> None:
    assert distance(grey(10), grey(13)) == 3
    half = grey(10) | {"b": grey(14)["b"]}
    assert distance(grey(10), half) == pytest.approx(np.sqrt(4**2 / 2))
    assert (
        distance(grey(0), {camera: picture + np.uint8(200) for camera, picture in grey(0).items()}) == 200
    ), "no arithmetic of bytes"


def test_film_prediction_error_is_that_of_the_filmed_episode() -> None:
    """The simulator's pictures brighten by one per step; the imagined frames are of constant grey."""
    frames = np.arange(1, 3, dtype=np.uint8)[:, None, None, None] * np.ones((64, 64, 3), np.uint8) + np.uint8(
        60
    )
    film = record_film(GreySimulator(1), lambda _: Imagination({"camera0": frames}, 4), 9)
    kept = film.done(outcome(9))
    assert kept.mp4
    assert kept.foresight
    told = json.loads(kept.foresight)
    assert told["steps"] == [0, 4]  # the third look, at 8, has no frame within the episode
    # Seen after 4, 8 and 8 steps: 54, 58, 58; imagined: 61 and 62 at the first look, 61 at the second.
    assert told["distances"] == [pytest.approx((7 + 4) / 2), pytest.approx(3)]
    assert told["still"] == [pytest.approx((4 + 8) / 2), pytest.approx(4)]


@pytest.mark.parametrize("imagine", [None, lambda _: None])
def test_film_of_a_policy_without_imagination_has_no_prediction_error(imagine: object) -> None:
    kept = record_film(GreySimulator(1), imagine, 5).done(outcome(5))  # type: ignore[arg-type]
    assert kept.mp4
    assert kept.foresight is None


def test_prediction_error_of_a_too_short_episode_is_none() -> None:
    told = played(3, 4, 8, 1)
    assert (told["steps"], told["distances"], told["mean_distance"], told["mean_still"]) == (
        [],
        [],
        None,
        None,
    )
