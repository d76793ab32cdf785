"""Which scene an idle worker plays: another simulator is built only if that saves time."""

from collections import defaultdict
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from orchestrator.testing.episodes import CONTRACT
from sim_workers.envs.render_check import RenderFingerprint
from sim_workers.rollout.assignment import Durations, SceneLoad, choose_scene
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.suite import EpisodeRules, EpisodeSpec
from sim_workers.rollout.worker import Played, RolloutJob, Said


@pytest.mark.parametrize(
    ("loads", "chosen"),
    [
        ({}, None),
        ({"busy": SceneLoad(9, 1, 1.0, 10.0), "free": SceneLoad(1, 0, 99.0, 1.0)}, "free"),
        ({"a": SceneLoad(1, 0), "b": SceneLoad(9, 0)}, "a"),
        # the busy worker ends its episode in 5 s on average and the waiting one in 15 s, the helper in 5 + 10 s
        ({"busy": SceneLoad(1, 1, 5.0, 10.0)}, None),
        ({"busy": SceneLoad(1, 1, 4.9, 10.0)}, "busy"),
        ({"busy": SceneLoad(2, 1, 5.0, 10.0)}, "busy"),
        # two busy workers are through with four waiting episodes in 25 s
        ({"busy": SceneLoad(4, 2, 15.0, 10.0)}, None),
        ({"busy": SceneLoad(4, 2, 14.9, 10.0)}, "busy"),
        ({"short": SceneLoad(4, 1, 5.0, 2.0), "long": SceneLoad(4, 1, 5.0, 9.0)}, "long"),
        # nothing measured yet: the longest queue per worker
        ({"few": SceneLoad(4, 2), "many": SceneLoad(3, 1)}, "many"),
        ({"known": SceneLoad(9, 1, 1.0, 5.0), "new": SceneLoad(1, 1, 1.0, None)}, "new"),
    ],
)
def test_choose_scene_helps_only_where_that_ends_sooner(
    loads: dict[str, SceneLoad], chosen: str | None
) -> None:
    assert choose_scene(loads) == chosen


def test_durations_are_means_that_follow_the_newest_values() -> None:
    durations = Durations()
    assert durations.build_s(fresh=True) is None
    assert durations.episode_s("a") is None
    durations.built(9.0, fresh=True)
    assert durations.build_s(fresh=False) == 9.0, "the other kind is the best guess"
    durations.built(5.0, fresh=False)
    assert (durations.build_s(fresh=True), durations.build_s(fresh=False)) == (9.0, 5.0)
    durations.played("a", 10.0)
    durations.played("a", 20.0)
    assert durations.episode_s("a") == pytest.approx(12.0)
    assert durations.episode_s("b") == pytest.approx(12.0), "of all scenes until it has its own"
    durations.played("b", 2.0)
    assert durations.episode_s("b") == 2.0


@pytest.mark.ray
def test_pool_builds_no_scene_again_for_episodes_shorter_than_a_build(ray_cluster: None) -> None:
    """Both workers finish one scene each; then one has a long queue of episodes that take no time."""
    from sim_workers.rollout.pool import RolloutPool

    class InstantWorker:
        """Plays an episode at once, says that it took no time, and names the builds of its process in the
        outcome.
        """

        def __init__(self, most_episodes: int, label: str) -> None:
            self._built: list[str] = []

        def play(self, job: RolloutJob) -> Iterator[Said]:
            if self._built[-1:] != [job.spec.task]:
                self._built.append(job.spec.task)
                yield RenderFingerprint("simulator", "driver", "processor", "physics", "pixels")
            outcome = Outcome(job.spec, "failure", 1, 1, 0.0, 0.0, message=" ".join(self._built))
            yield Played(outcome, None, worn=False)

    pool = RolloutPool(2, num_cpus=0.1, worker=InstantWorker)
    source = SimpleNamespace()
    for task, episodes in (("Lift", 1), ("Door", 60)):
        for seed in range(episodes):
            spec = EpisodeSpec(task, seed, seed)
            pool.submit(RolloutJob(spec, EpisodeRules(1), CONTRACT, source))  # type: ignore[arg-type]
    builds = defaultdict(set)
    for _, outcome, _ in pool.results():
        builds[outcome.spec.task].add(outcome.message)
    pool.close()
    assert builds == {"Lift": {"Lift"}, "Door": {"Door"}}


def test_pool_worker_of_a_policy_without_server_has_none() -> None:
    """Else an unavailable server, which it does not query, would end its episode."""
    from sim_workers.rollout.node_health import ServerLocations
    from sim_workers.rollout.policy_clients import FactoryPolicy
    from sim_workers.rollout.pool import RolloutPool
    from sim_workers.rollout.pool_state import Worker

    pool, worker = RolloutPool.__new__(RolloutPool), Worker(None, None, server=1, asks="the last episode's")
    pool._servers = ServerLocations(())
    job = RolloutJob(EpisodeSpec("Lift", 1, 1), EpisodeRules(9), CONTRACT, FactoryPolicy("a:b"))
    assert pool._addressed(worker, job) == job
    assert (worker.server, worker.asks) == (None, None)
