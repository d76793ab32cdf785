"""The action error of a policy on a recorded episode, and the choice of the episodes it is measured on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orchestrator.config.arms import Arm
from orchestrator.data.action_error import ActionError, ActionScale, action_error, mean_dimensions, walk
from orchestrator.data.episode_format import EpisodeError
from orchestrator.data.episode_store import commit, load_manifest, put_episode
from orchestrator.data.manifest import EpisodeEntry, Manifest
from orchestrator.data.subset import SubsetError, evaluation_episodes, select_episodes
from orchestrator.storage.base import open_storage
from orchestrator.testing.episodes import CONTRACT, make_episode, make_episode_store
from policy.interface import ActionChunk, LostSessionError, Observation, PolicyNeeds


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return load_manifest(open_storage(make_episode_store(tmp_path_factory.mktemp("store"), 20)))


def entry_of(folder: Path, length: int = 12) -> EpisodeEntry:
    return put_episode(open_storage(str(folder)), make_episode(3, length), 20.0)


class Oracle:
    """Knows the recorded actions, and is off by a constant."""

    def __init__(self, length: int, execute: int, off: float) -> None:
        self.actions = make_episode(3, length).action
        self.execute, self.off, self.frame, self.seeds = execute, off, 0, list[int]()

    def __call__(self, observation: Observation) -> ActionChunk:
        assert self.actions is not None
        left = self.actions[self.frame : self.frame + 6] + self.off
        padded = np.concatenate([left, np.zeros((6 - len(left), 7))]).astype(np.float32)
        self.frame += self.execute
        self.seeds.append(observation.noise_seed)
        return ActionChunk(padded, self.execute)


@pytest.mark.parametrize("execute", [1, 4, 5, 6])
def test_error_is_that_of_the_executed_steps_in_standard_deviations(tmp_path: Path, execute: int) -> None:
    entry, episode = entry_of(tmp_path), make_episode(3)
    scale = ActionScale.of([entry])
    assert episode.action is not None
    np.testing.assert_allclose(scale.std, episode.action.std(0), rtol=1e-5)
    oracle = Oracle(12, execute, 0.1)
    walked = walk(episode, entry, oracle)
    assert walked.looks == -(-12 // execute)
    assert len(set(oracle.seeds)) == walked.looks
    found = action_error(entry, episode, walked, scale, 0.5, 0.0)
    np.testing.assert_allclose(found.dimensions, 0.1 / episode.action.std(0), rtol=1e-4)
    assert found.error == pytest.approx(np.mean([0.1 / std for std in scale.std]), rel=1e-4)
    constant = np.abs(episode.action - episode.action.mean(0)).mean(0) / episode.action.std(0)
    assert found.constant == pytest.approx(constant.mean(), rel=1e-4)
    assert (found.steps, found.looks, found.loss) == (12, walked.looks, 0.5)
    assert ActionError.from_json(found.to_json()) == found


def test_dimension_that_never_changes_has_no_unit_and_does_not_count(tmp_path: Path) -> None:
    episode = make_episode(3)
    assert episode.action is not None
    episode.action[:, 2] = 0.25
    entry = put_episode(open_storage(str(tmp_path)), episode, 20.0)
    scale = ActionScale.of([entry])
    walked = walk(episode, entry, lambda observation: ActionChunk(np.zeros((4, 7), np.float32), 4))
    found = action_error(entry, episode, walked, scale, None, 0.0)
    assert found.dimensions[2] is None
    assert found.error == pytest.approx(np.mean([e for e in found.dimensions if e is not None]))
    assert mean_dimensions([found, found])[2] is None
    episode.action[:] = 0.25
    with pytest.raises(EpisodeError, match="no action dimension changes in the held-out episodes"):
        ActionScale.of([put_episode(open_storage(str(tmp_path)), replace(episode, episode_id="b"), 20.0)])


@pytest.mark.parametrize(
    ("actions", "said"),
    [
        (np.full((2, 7), np.nan, np.float32), "the policy's actions at frame 0 are not finite"),
        (np.zeros((2, 6), np.float32), "the policy's actions have 6 dimensions, the recorded ones 7"),
    ],
)
def test_unusable_answers_raise_one_sentence(tmp_path: Path, actions: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        walk(make_episode(3), entry_of(tmp_path), lambda observation: ActionChunk(actions, 2))


def test_policy_with_memory_and_history_is_walked_in_sessions(tmp_path: Path) -> None:
    """A lost session is walked again from its start, in another one; the history repeats the first frame."""
    entry, episode, seen = entry_of(tmp_path), make_episode(3), list[Observation]()

    def act(observation: Observation) -> ActionChunk:
        seen.append(observation)
        if len(seen) == 2:
            raise LostSessionError("the server was restarted")
        return ActionChunk(np.zeros((5, 7), np.float32), 5)

    assert walk(episode, entry, act, PolicyNeeds(memory=True, observation_steps=3)).looks == 3
    assert [observation.step for observation in seen] == [0, 5, 0, 5, 10]
    assert len({observation.episode for observation in seen[:2]}) == 1
    assert len({observation.episode for observation in seen}) == 2
    assert seen[0].noise_seed == seen[2].noise_seed
    assert [[one.step for one in observation.history] for observation in seen[2:]] == [[0, 0], [3, 4], [8, 9]]
    assert all(one.noise_seed == seen[4].noise_seed for one in seen[4].history)

    def forgetful(observation: Observation) -> ActionChunk:
        raise LostSessionError("the server was restarted")

    with pytest.raises(LostSessionError):
        walk(episode, entry, forgetful, PolicyNeeds(memory=True))


def test_held_out_episodes_are_in_no_arm_and_depend_on_none(manifest: Manifest) -> None:
    chosen = evaluation_episodes(manifest, 0.2)
    assert len(chosen) == 4
    assert chosen == evaluation_episodes(manifest, 4)
    assert set(evaluation_episodes(manifest, 2)) < set(chosen) < set(evaluation_episodes(manifest, 0.5))
    for seed in range(5):
        small, large = (
            select_episodes(manifest, Arm(demos, 1.0, seed), evaluation=set(chosen)) for demos in (3, 8)
        )
        assert not set(chosen) & set(large.episodes)
        assert set(small.demos) < set(large.demos)
    damaged = chosen[1]
    others = evaluation_episodes(manifest, 4, {damaged})
    assert set(chosen) - {damaged} < set(others)
    assert evaluation_episodes(manifest, None) == ()


def test_too_few_episodes_are_refused_in_one_sentence(manifest: Manifest) -> None:
    for amount, said in (
        (20, "Lift: suite.held_out asks for 20 episodes, and the store has 20 with actions"),
        (1, "1 of 20 episodes with actions would be held out; an interval needs at least two"),
    ):
        with pytest.raises(SubsetError, match=said):
            evaluation_episodes(manifest, amount)
    with pytest.raises(
        SubsetError, match="the store has 14 episodes, 14 of them with actions; 6 more are held"
    ):
        select_episodes(manifest, Arm(15, 0, 0), evaluation=set(evaluation_episodes(manifest, 0.3)))


def test_every_task_with_actions_has_held_out_episodes(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    episodes = [
        replace(make_episode(seed, labelled=seed % 5 != 0), task=f"task {seed % 3}") for seed in range(30)
    ]
    commit(storage, CONTRACT, [put_episode(storage, episode, 20.0) for episode in episodes])
    manifest = load_manifest(storage)
    chosen = manifest.select(evaluation_episodes(manifest, 0.25))
    assert sorted(entry.task for entry in chosen) == [f"task {i}" for i in range(3) for _ in range(2)]
    assert all(entry.labelled for entry in chosen)
