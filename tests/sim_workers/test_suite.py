"""The fixed list of episodes, the rules by which they are played, and the outcome of each."""

import json
from dataclasses import replace

import numpy as np
import pytest

from policy.interface import Observation
from sim_workers.rollout.episode import Outcome, Stepped, episode, run_episode
from sim_workers.rollout.suite import (
    FIRST_EVALUATION_SEED,
    SHIFTS,
    VARIANTS,
    EpisodeRules,
    EpisodeSpec,
    Suite,
)


def test_suite_episode_list_is_fixed_and_disjoint_from_demonstrations() -> None:
    suite = Suite(("Lift", "Stack"), 20, EpisodeRules(100))
    assert suite.episode_list() == suite.episode_list()
    assert len(set(suite.episode_list())) == 40
    assert all(spec.scene_seed >= FIRST_EVALUATION_SEED for spec in suite.episode_list())


def test_suite_blocks_share_no_scene() -> None:
    scenes = [
        {spec.scene_seed for spec in Suite(("Lift",), 50, EpisodeRules(100), block).episode_list()}
        for block in (0, 1)
    ]
    assert not scenes[0] & scenes[1]


def test_suite_fingerprint_depends_on_list_and_rules() -> None:
    suite = Suite(("Lift",), 20, EpisodeRules(100))
    assert suite.fingerprint() == Suite(("Lift",), 20, EpisodeRules(100)).fingerprint()
    others = (
        {"rules": EpisodeRules(99)},
        {"rules": EpisodeRules(100, settle=0)},
        {"rules": EpisodeRules(100, success="at_end")},
        {"shift": "lighting"},
    )
    for change in ({"tasks": ("Stack",)}, {"episodes": 21}, {"block": 1}, *others):
        assert replace(suite, **change).fingerprint() != suite.fingerprint()  # type: ignore[arg-type]


def test_suite_for_one_processor_has_the_keys_of_earlier_versions() -> None:
    suite = Suite(("Lift",), 2, EpisodeRules(100))
    assert suite.fingerprint() == "2fbbfb93ffd22183"
    assert "processors" not in suite.to_json()
    mixed = replace(suite, processors="mixed")
    assert mixed.to_json() == suite.to_json() | {"processors": "mixed"}
    assert mixed.fingerprint() != suite.fingerprint()
    assert mixed.episode_list() == suite.episode_list()


def test_chunk_seed_is_distinct_per_episode_and_chunk() -> None:
    seeds = {
        spec.chunk_seed(look)
        for spec in Suite(("Lift",), 20, EpisodeRules(100)).episode_list()
        for look in range(20)
    }
    assert len(seeds) == 400


def test_suite_under_a_shift_has_the_seeds_of_the_nominal_suite() -> None:
    """The same seeds in the same order, so that shifts are compared episode by episode."""
    nominal, shifted = (
        Suite(("Lift",), 20, EpisodeRules(100), shift=shift).episode_list()
        for shift in ("nominal", "texture")
    )
    assert [(spec.scene_seed, spec.noise_seed) for spec in nominal] == [
        (spec.scene_seed, spec.noise_seed) for spec in shifted
    ]
    assert {spec.variant for spec in nominal} == {0}
    assert {spec.variant for spec in shifted} == set(range(VARIANTS))
    ids = {EpisodeSpec("Lift", 1, 1, shift).episode_id for shift in SHIFTS}
    assert len(ids) == len(SHIFTS)


class Countdown:
    """A simulator whose task is done from step `after` until step `until`, and that counts its
    observations.
    """

    def __init__(self, after: int, until: int = 10_000) -> None:
        self.after, self.until, self.steps, self.looks = after, until, 0, 0

    def reset(self, seed: int) -> None:
        self.steps = 0

    def step(self, action: np.ndarray) -> None:  # type: ignore[type-arg]
        self.steps += 1

    def observe(self, noise_seed: int) -> Observation:
        self.looks += 1
        return Observation({}, np.zeros(0, np.float32), "", noise_seed)

    @property
    def succeeded(self) -> bool:
        return self.after <= self.steps < self.until


class Chunk:
    actions, execute = np.zeros((8, 7)), 4


@pytest.mark.parametrize(
    ("after", "rules", "expected"),
    [
        (10, EpisodeRules(100, settle=0), ("success", 10, 3)),
        (12, EpisodeRules(100, settle=0), ("success", 12, 3)),
        (100, EpisodeRules(10), ("failure", 10, 3)),
        (10, EpisodeRules(10), ("success", 10, 3)),
        (10, EpisodeRules(100, settle=5), ("success", 15, 4)),
        (10, EpisodeRules(12, settle=5), ("success", 12, 3)),
        (0, EpisodeRules(100, settle=3), ("success", 3, 1)),
    ],
)
def test_episode_ends_after_settling_or_at_the_horizon(
    after: int, rules: EpisodeRules, expected: tuple[str, int, int]
) -> None:
    env = Countdown(after)
    outcome = run_episode(env, EpisodeSpec("Lift", 1, 1), rules, lambda seen: Chunk)  # type: ignore[arg-type, return-value]
    assert (outcome.result, outcome.steps, outcome.looks) == expected
    assert env.looks == outcome.looks
    assert outcome.first_success == (after if outcome.result == "success" else None)


def test_outcome_records_success_once_at_the_end_and_its_first_step() -> None:
    dropped = Countdown(after=4, until=6)
    for success, result in (("once", "success"), ("at_end", "failure")):
        outcome = run_episode(
            dropped, EpisodeSpec("Lift", 1, 1), EpisodeRules(50, 10, success), lambda seen: Chunk
        )  # type: ignore[arg-type, return-value]
        assert (outcome.result, outcome.first_success, outcome.success_once, outcome.success_at_end) == (
            result,
            4,
            True,
            False,
        )


def test_episode_yields_every_control_step_and_observes_once_per_chunk() -> None:
    env = Countdown(100)
    playing = episode(env, EpisodeSpec("Lift", 1, 1), EpisodeRules(8))  # type: ignore[arg-type]
    said = [next(playing)]
    for _ in range(9):
        said.append(playing.send(None if isinstance(said[-1], Stepped) else Chunk))  # type: ignore[arg-type]
    assert [type(one) is Stepped for one in said] == [False, *[True] * 4, False, *[True] * 4]
    assert [one.steps for one in said if isinstance(one, Stepped)] == [*range(1, 9)]
    assert env.looks == 2


def test_outcome_json_round_trips() -> None:
    outcome = Outcome(
        EpisodeSpec("Lift", 1, 2, "lighting"), "error", 0, 0, 0.5, 0.1, message="the GL context broke"
    )
    assert Outcome.from_json(json.loads(json.dumps(outcome.to_json()))) == outcome


def test_suite_with_horizons_per_task_plays_each_by_its_own() -> None:
    rules = EpisodeRules(1, settle=4)
    suite = Suite.of(("Lift", "Door"), 20, rules, {"Lift": 100, "Door": 300})
    assert [suite.rules_of(task).horizon for task in suite.tasks] == [100, 300]
    assert suite.rules_of("Lift").settle == 4
    assert suite.control_steps == 20 * 400
    assert suite.to_json()["horizons"] == {"Lift": 100}
    same = Suite.of(("Lift", "Door"), 20, rules, {"Lift": 300, "Door": 300})
    assert same == Suite(("Lift", "Door"), 20, EpisodeRules(300, settle=4))
    assert "horizons" not in same.to_json()
    assert same.fingerprint() != suite.fingerprint()
    assert (
        suite.fingerprint() == Suite.of(("Lift", "Door"), 20, rules, {"Door": 300, "Lift": 100}).fingerprint()
    )


def test_fingerprint_of_a_suite_with_one_horizon_is_that_of_earlier_versions() -> None:
    assert Suite(("Lift",), 20, EpisodeRules(100)).fingerprint() == "4e4de4b5af01b427"
