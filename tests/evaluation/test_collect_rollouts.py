"""Recording of a policy's own rollouts into an episode store."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.config.arms import Arm
from orchestrator.data.drawn_by import drivers_of
from orchestrator.data.episode_format import EpisodeError, decode
from orchestrator.data.episode_store import fetch, load_manifest
from orchestrator.data.merged_store import StorePart, merge
from orchestrator.data.record_rollouts import PolicyRollouts, RecordingJob, RecordingWorker
from orchestrator.data.subset import select_episodes
from orchestrator.evaluation.collect_rollouts import MOST_ERRORS, RolloutCollection, Wanted
from orchestrator.evaluation.policy_ref import PolicyRef
from orchestrator.storage.base import open_storage
from orchestrator.testing.episodes import CAMERA, CONTRACT, make_episode_store
from orchestrator.testing.outcomes import make_error, stand_still
from orchestrator.testing.rollout_pool import FakeRolloutPool
from policy.interface import ActionChunk, Observation
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.policy_clients import InProcessPolicy
from sim_workers.rollout.rollout_block import ROLLOUT_BLOCK
from sim_workers.rollout.suite import EpisodeRules, Suite
from sim_workers.rollout.worker import Played, RolloutJob, RolloutWorker, WorkerHeartbeat

RULES = EpisodeRules(horizon=6, settle=2)
ROLLOUTS = PolicyRollouts("mine", "", "Lift", RULES, CONTRACT)


class Still:
    """A policy that stands still."""

    contract = CONTRACT

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return [stand_still(observation) for observation in observations]


class Counting:
    """A simulator whose pictures and proprioception show the number of the control step. The task is done
    from step 3 on in every scene whose seed is no multiple of three.
    """

    contract = CONTRACT
    film_camera = CAMERA

    def __init__(self, *_: object) -> None:
        self.seed = self.steps = 0

    def reset(self, seed: int) -> None:
        self.seed, self.steps = seed, 0

    def step(self, action: object) -> None:
        self.steps += 1

    @property
    def succeeded(self) -> bool:
        return self.steps >= 3 and (self.seed - ROLLOUTS.spec(0).scene_seed) % 3 != 0

    def observe(self, noise_seed: int) -> Observation:
        picture = np.full((64, 64, 3), 20 * self.steps, np.uint8)
        return Observation({CAMERA: picture}, np.full(9, self.steps, np.float32), "lift it", noise_seed)


SOURCE = InProcessPolicy(Still)
SUBJECT = PolicyRef("mine", CONTRACT, "mine", None, lambda workers: SOURCE)


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[RolloutJob], Outcome]:
    """Return a function that plays a job of either kind in a worker with the simulator `Counting`."""
    monkeypatch.setattr("sim_workers.rollout.worker.make_env", Counting)
    monkeypatch.setattr(
        "sim_workers.rollout.worker.render_fingerprint", lambda env: WorkerHeartbeat("making")
    )
    workers = {RecordingJob: RecordingWorker(), RolloutJob: RolloutWorker()}

    def played(job: RolloutJob) -> Outcome:
        *_, last = workers[type(job)].play(job)
        assert isinstance(last, Played)
        return last.outcome

    return played


def collection(
    pool: FakeRolloutPool, store: Path, outcome: Wanted, episodes: int, most_scenes: int = 100
) -> RolloutCollection:
    storage = open_storage(str(store))
    return RolloutCollection(
        SUBJECT,
        ROLLOUTS,
        outcome,
        episodes,
        most_scenes,
        storage,
        cpus=lambda: 2.0,
        make_pool=lambda simulators, gl, code: pool,  # type: ignore[arg-type, return-value]
    )


def scenes_of(jobs: Sequence[RolloutJob]) -> list[int]:
    return [ROLLOUTS.scene_of(job.spec) for job in jobs]


def test_failed_rollout_is_an_episode_without_actions(
    play: Callable[[RolloutJob], Outcome], tmp_path: Path
) -> None:
    pool = FakeRolloutPool(play)
    made = collection(pool, tmp_path / "store", "failed", 1)
    made.play(None, lambda held, scenes: None)
    storage = open_storage(str(tmp_path / "store"))
    manifest = load_manifest(storage)
    assert manifest.contract == CONTRACT
    assert drivers_of(storage) == ("the environment's own renderer",)
    (entry,) = made.recorded
    seed = ROLLOUTS.spec(0).scene_seed
    assert entry.episode_id == ROLLOUTS.episode_id(0) == f"Lift-policy-{ROLLOUTS.key}-000000"
    assert entry.source == f"policy mine, horizon 6, scene block {ROLLOUT_BLOCK}, seed {seed}"
    assert (entry.labelled, entry.success, entry.length) == (False, False, RULES.horizon)
    episode = decode(fetch(storage, entry), (CAMERA,), with_actions=True)
    assert episode.action is None
    assert episode.proprio is not None
    assert episode.proprio[:, 0].tolist() == [*range(6)]  # a frame is the state before its control step
    levels = episode.frames[CAMERA].mean((1, 2, 3))
    assert np.abs(levels - 20 * np.arange(6)).max() < 2


def test_recorded_rollout_has_the_outcome_of_a_scored_one(
    play: Callable[[RolloutJob], Outcome], tmp_path: Path
) -> None:
    for scene, result, steps in ((0, "failure", 6), (1, "success", 5)):
        scored = play(RolloutJob(ROLLOUTS.spec(scene), RULES, CONTRACT, SOURCE))
        recorded = play(
            RecordingJob(
                ROLLOUTS.spec(scene), RULES, CONTRACT, SOURCE, rollouts=ROLLOUTS, store=str(tmp_path)
            )
        )
        assert (scored.result, scored.steps) == (result, steps)
        names = [field.name for field in fields(Outcome) if not field.name.endswith("_s")]
        assert [getattr(recorded, name) for name in names] == [getattr(scored, name) for name in names]


@pytest.mark.parametrize("order", [None, lambda job: -job.spec.scene_seed])
def test_first_failing_scenes_are_kept_whichever_ends_first(
    order: Callable[[RolloutJob], float] | None, play: Callable[[RolloutJob], Outcome], tmp_path: Path
) -> None:
    """A second call plays nothing, and one that asks for more plays no scene twice."""
    ids = [ROLLOUTS.episode_id(scene) for scene in (0, 3, 6, 9)]
    pool = FakeRolloutPool(play, order=order)
    seen: list[tuple[int, int]] = []
    made = collection(pool, tmp_path, "failed", 3)
    made.play(2, lambda held, scenes: seen.append((held, scenes)))
    assert made.complete
    assert seen[-1] == (3, 7)
    storage = open_storage(str(tmp_path))
    assert list(load_manifest(storage).episode_ids) == ids[:3]
    first = scenes_of(pool.played)

    again = collection(pool := FakeRolloutPool(play, order=order), tmp_path, "failed", 3)
    assert (again.complete, again.held, again.results) == (True, 3, {"failure": 3, "success": 4})
    again.play(2, lambda held, scenes: None)
    assert pool.played == []

    more = collection(pool := FakeRolloutPool(play, order=order), tmp_path, "failed", 4)
    more.play(2, lambda held, scenes: None)
    assert list(load_manifest(storage).episode_ids) == ids
    assert scenes_of(pool.played)[0] in (7, 10)
    assert not {*scenes_of(pool.played)} & {*range(7)}
    assert {*range(7)} <= {*first}


def test_any_outcome_plays_no_scene_in_vain(play: Callable[[RolloutJob], Outcome], tmp_path: Path) -> None:
    """Scenes whose episodes another call rejected are played for their episodes."""
    collection(FakeRolloutPool(play), tmp_path, "failed", 1).play(2, lambda held, scenes: None)
    pool = FakeRolloutPool(play)
    collection(pool, tmp_path, "any", 5).play(2, lambda held, scenes: None)
    assert scenes_of(pool.played) == [1, 2, 3, 4]
    manifest = load_manifest(open_storage(str(tmp_path)))
    assert manifest.column("success").to_pylist() == [False, True, True, False, True]


def test_attempts_bound_the_scenes_of_all_calls(
    play: Callable[[RolloutJob], Outcome], tmp_path: Path
) -> None:
    for _ in range(2):
        pool = FakeRolloutPool(play)
        made = collection(pool, tmp_path, "failed", 3, most_scenes=5)
        made.play(2, lambda held, scenes: None)
        assert (made.complete, made.failing, made.errors) == (False, False, [])
        assert (made.held, made.results) == (2, {"failure": 2, "success": 3})
    assert pool.played == []


@pytest.mark.parametrize(("broken", "recorded"), [((0, 2), 3), (range(1, 99), 1)])
def test_errors_are_skipped_until_many_follow_each_other(
    broken: Sequence[int], recorded: int, play: Callable[[RolloutJob], Outcome], tmp_path: Path
) -> None:
    def unreliable(job: RolloutJob) -> Outcome:
        return make_error(job.spec) if ROLLOUTS.scene_of(job.spec) in broken else play(job)

    made = collection(FakeRolloutPool(unreliable), tmp_path, "any", 3)
    made.play(2, lambda held, scenes: None)
    assert len(made.recorded) == recorded
    assert made.causes == ["the driver is gone"]
    assert (made.complete, made.failing) == (recorded == 3, recorded < 3)
    assert len(made.errors) == (2 if made.complete else MOST_ERRORS)


def test_interrupted_collection_begins_no_further_scene(
    play: Callable[[RolloutJob], Outcome], tmp_path: Path
) -> None:
    made = collection(pool := FakeRolloutPool(play), tmp_path, "any", 50)

    def interrupt(held: int, scenes: int) -> None:
        made.interrupted = True

    made.play(2, interrupt)
    assert scenes_of(pool.played) == [0]
    assert list(load_manifest(open_storage(str(tmp_path))).episode_ids) == [ROLLOUTS.episode_id(0)]


def test_store_of_other_conventions_is_refused(tmp_path: Path) -> None:
    make_episode_store(tmp_path, episodes=1, size=32)
    with pytest.raises(EpisodeError, match=r"other conventions than the policy's \(image size"):
        collection(FakeRolloutPool(lambda job: make_error(job.spec)), tmp_path, "any", 1)


@pytest.mark.parametrize(
    "changed",
    [
        {"policy": "another"},
        {"sampler": "{}"},
        {"task": "Stack"},
        {"rules": EpisodeRules(7, 2)},
        {"rules": EpisodeRules(6, 3)},
    ],
)
def test_rollouts_that_go_otherwise_have_other_ids(changed: dict[str, Any]) -> None:
    other = replace(ROLLOUTS, **changed)
    assert other.episode_id(0) != ROLLOUTS.episode_id(0)
    assert other.scene_in(ROLLOUTS.episode_id(7)) is None
    assert ROLLOUTS.scene_in(ROLLOUTS.episode_id(7)) == 7


def test_scenes_are_those_of_a_block_that_no_score_plays() -> None:
    own = {ROLLOUTS.spec(scene) for scene in range(9)}
    suites = {block: Suite(("Lift",), 9, RULES, block) for block in (0, 1, ROLLOUT_BLOCK)}
    assert {block for block, suite in suites.items() if own & {*suite.episode_list()}} == {ROLLOUT_BLOCK}
    assert own == {*suites[ROLLOUT_BLOCK].episode_list()}


def test_sweep_takes_failed_rollouts_as_action_free_episodes(
    play: Callable[[RolloutJob], Outcome], tmp_path: Path
) -> None:
    demos = make_episode_store(tmp_path / "lift", episodes=6)
    collection(FakeRolloutPool(play), tmp_path / "own", "any", 9).play(2, lambda held, scenes: None)
    own = StorePart(str(tmp_path / "own"), source=("policy mine",), success=False, action_free_only=True)
    merged = merge([StorePart(demos), own])
    subset = select_episodes(merged, Arm(demo_count=3, action_free_ratio=1.0, seed=0))
    failed = {f"own:{ROLLOUTS.episode_id(scene)}" for scene in (0, 3, 6)}
    assert {*merged.episode_ids} == failed | {f"lift:Lift-{seed:06d}" for seed in range(6)}
    assert {*subset.action_free} == failed
    assert all(episode.startswith("lift:") for episode in subset.demos)
