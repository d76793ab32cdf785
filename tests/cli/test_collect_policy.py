"""`demoscale collect --policy`: its arguments, and its rollouts in the simulator."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import CHECKOUT

from command_session import outputs
from orchestrator.cli import collect_policy
from orchestrator.cli.main import main
from orchestrator.config.schema import SuiteConfig
from orchestrator.data.drawn_by import drivers_of
from orchestrator.data.episode_format import decode
from orchestrator.data.episode_store import fetch, load_manifest
from orchestrator.data.record_rollouts import PolicyRollouts
from orchestrator.storage.base import open_storage
from orchestrator.testing.checkpoints import make_checkpoint
from orchestrator.testing.episodes import CAMERA, CONTRACT
from policy.checkpoint import fingerprint
from policy.interface import ActionChunk, Observation
from sim_workers.envs.registry import make_env
from sim_workers.rollout.episode import run_episode
from sim_workers.rollout.suite import EpisodeRules


def collect(folder: Path, *arguments: str) -> Result:
    """Run `demoscale collect` with the store `folder`/store."""
    store = ("--episodes", "3", "--store", str(folder / "store"))
    return CliRunner().invoke(main, ["collect", *store, *arguments])


WAYPOINTS = ("--policy", "examples.waypoints:make")


@pytest.mark.parametrize(
    ("arguments", "sentences"),
    [
        (
            ("--outcome", "failed", "--horizon", "9"),
            ["--outcome, --horizon: only with --policy, for a policy's rollouts"],
        ),
        (
            ("--policy", "nowhere", "--cameras", "agentview", "--disturbance", "0.1"),
            [
                "--cameras: leave it out; the policy's own contract says it",
                "--disturbance: leave it out; a policy's rollouts are not disturbed",
            ],
        ),
        (
            ("--policy", "nowhere", "--task", "Juggle"),
            ["--task: unknown task Juggle", "--policy: nowhere names no policy"],
        ),
        (
            WAYPOINTS,
            [
                "--fingerprint: examples.waypoints:make has none of its own; give a name of this policy",
                "--policy: examples.waypoints:make sees no camera, so there are no pictures to record",
            ],
        ),
        (
            (*WAYPOINTS, "--task", "libero_goal/open_the_middle_drawer_of_the_cabinet"),
            ["has 50 fixed scenes, which scores play"],
        ),
    ],
)
def test_wrong_arguments_are_refused_together(
    arguments: tuple[str, ...], sentences: list[str], tmp_path: Path
) -> None:
    done = collect(tmp_path, *arguments)
    assert done.exit_code == 2
    assert done.stderr.count("\n  - ") == len(sentences)
    assert [sentence for sentence in sentences if sentence not in done.stderr] == []
    assert not (tmp_path / "store").exists()


def test_score_refuses_the_block_of_rollouts() -> None:
    done = CliRunner().invoke(main, ["score", "examples.waypoints:make", "--block", "2000"])
    assert done.exit_code == 2
    assert "2000 is not in the range 0<=x<=1999" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "rules"),
    [((), EpisodeRules(30, 3, "at_end")), (("--horizon", "50"), EpisodeRules(50, 3, "at_end"))],
)
def test_arm_of_a_sweep_plays_by_the_rules_of_its_suite(
    arguments: tuple[str, ...],
    rules: EpisodeRules,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    suite = SuiteConfig(
        tasks=("Lift",), episodes=20, horizon=30, settle=3, success="at_end", shifts=("lighting",)
    )
    monkeypatch.setattr("orchestrator.sweep.state.last_checkpoint", lambda *names: (str(checkpoint), suite))
    made: list[PolicyRollouts] = []

    def stop(request: collect_policy.ScoreRequest) -> PolicyRollouts:
        made.append(rollouts_of(request))
        raise KeyboardInterrupt

    rollouts_of = collect_policy.rollouts_of
    monkeypatch.setattr(collect_policy, "rollouts_of", stop)
    done = collect(tmp_path, "--policy", "demos-4_ratio-0_seed-0", "--sweep", "quickstart", *arguments)
    assert done.exit_code == 130, done.output
    (rollouts,) = made
    assert (rollouts.task, rollouts.rules, rollouts.contract) == ("Lift", rules, CONTRACT)
    assert rollouts.policy == fingerprint(checkpoint)
    assert rollouts.sampler


POLICY = """
import numpy as np
from orchestrator.testing.episodes import CONTRACT
from policy.interface import ActionChunk

class Random:
    contract = CONTRACT

    def act(self, observations):
        draws = [np.random.default_rng(one.noise_seed).uniform(-1, 1, (4, 7)) for one in observations]
        return [ActionChunk(actions.astype(np.float32), 4) for actions in draws]
"""


def random_actions(observation: Observation) -> ActionChunk:
    """Answer as the policy of POLICY does."""
    actions = np.random.default_rng(observation.noise_seed).uniform(-1, 1, (4, 7))
    return ActionChunk(actions.astype(np.float32), 4)


@pytest.mark.full
@pytest.mark.ray
@pytest.mark.sim
def test_random_policy_leaves_episodes_of_its_failures(tmp_path: Path) -> None:
    """What is recorded is what a score plays in the same scene."""
    (tmp_path / "random_arm.py").write_text(POLICY)
    command = (
        *("collect", "--policy", "random_arm:Random", "--fingerprint", "random-1", "--outcome", "failed"),
        *("--horizon", "10", "--episodes", "3", "--workers", "2", "--store", "store"),
    )
    first, again = outputs([command, command], tmp_path, {"PYTHONPATH": f"{CHECKOUT}:{tmp_path}"})
    assert "recorded 3 failed rollouts of random_arm:Random in Lift, 10 steps on average" in first
    assert "3 of 3 rollouts failed" in first
    assert again.endswith(
        "already holds 3 of 3 failed rollouts of random_arm:Random in Lift; nothing to record\n"
    )

    storage = open_storage(str(tmp_path / "store"))
    manifest = load_manifest(storage, 1)
    rules = EpisodeRules(10)
    rollouts = PolicyRollouts("random-1", "", "Lift", rules, CONTRACT)
    assert list(manifest.episode_ids) == [rollouts.episode_id(scene) for scene in range(3)]
    assert len(drivers_of(storage)) == 1
    entry = manifest[rollouts.episode_id(1)]
    assert (entry.labelled, entry.success, entry.source) == (False, False, rollouts.source(1))
    episode = decode(fetch(storage, entry), (CAMERA,), with_actions=True)
    assert episode.action is None
    seen: list[Observation] = []

    def act(observation: Observation) -> ActionChunk:
        seen.append(observation)
        return random_actions(observation)

    env = make_env("Lift", CONTRACT)
    try:
        outcome = run_episode(env, rollouts.spec(1), rules, act)
    finally:
        env.close()
    assert (outcome.result, outcome.steps) == ("failure", episode.length)
    assert episode.proprio is not None
    np.testing.assert_array_equal(episode.proprio[::4], [one.proprio for one in seen])
    difference = episode.frames[CAMERA][::4].astype(int) - [one.images[CAMERA] for one in seen]
    assert np.abs(difference).mean() < 3  # the film is compressed
