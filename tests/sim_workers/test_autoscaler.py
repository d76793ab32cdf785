"""The autoscaler: how many workers a policy server feeds, from measured rates, up to the requested number."""

from typing import Any

import pytest

from orchestrator.cluster.placement import ResourcePlan, servers_alone
from sim_workers.rollout.autoscaler import BUSY, PoolLoad, ServerUsage
from sim_workers.rollout.pool import RolloutPool
from sim_workers.rollout.pool_state import QueuedEpisode, Worker


def balance(workers: int, sim_s: float, wait_s: float, answer_s: float, busy: float) -> PoolLoad:
    """Return the load of a minute in which every worker asked as often as it could."""
    looks = int(workers * 60 / (sim_s + wait_s))
    return PoolLoad(
        workers, 1, 60.0, looks, sim_s, wait_s, ServerUsage(int(60 * busy / answer_s), looks, 60 * busy)
    )


def test_autoscaler_keeps_workers_that_wait_for_two_batches_at_most() -> None:
    assert balance(8, sim_s=0.1, wait_s=0.09, answer_s=0.05, busy=0.95).wanted(8) == 8


@pytest.mark.parametrize("workers", [8, 16, 64])
def test_autoscaler_shrinks_to_what_a_saturated_server_feeds(workers: int) -> None:
    """A server that needs 0.05 s per observation feeds (0.1 + 2 x 0.05) / 0.05 = 4 workers, however many
    queue.
    """
    saturated = balance(workers, sim_s=0.1, wait_s=workers * 0.05 - 0.1, answer_s=0.05, busy=1.0)
    assert saturated.wanted(workers) == 4


def test_autoscaler_grows_up_to_the_request_while_servers_have_spare_time() -> None:
    spare = balance(4, sim_s=0.1, wait_s=0.02, answer_s=0.01, busy=BUSY / 2)
    assert spare.wanted(100) == 8
    assert spare.wanted(6) == 6
    assert spare.wanted(1) == 1


def test_server_usage_since_a_restart_is_none() -> None:
    assert ServerUsage(5, 9, 1.0).since(ServerUsage(3, 4, 0.5)) == ServerUsage(2, 5, 0.5)
    assert ServerUsage(2, 3, 0.2).since(ServerUsage(300, 400, 5.0)) is None, (
        "a server restarted or did not report"
    )


def test_pool_load_text_is_one_line() -> None:
    line = str(balance(2, sim_s=0.1, wait_s=0.05, answer_s=0.05, busy=0.5))
    assert (
        line
        == "2 workers, 13.3 observations/s: each costs 0.100 s of simulation and 0.050 s of waiting for the policy; "
        "1 policy server busy 50%, 1.3 observations per batch"
    )


@pytest.mark.parametrize(
    ("cluster", "rollout_actors", "servers", "gpus_each"),
    [
        ({"CPU": 2.0}, 2, 1, 0.0),
        ({"CPU": 64.0}, 20, 3, 0.0),
        ({"CPU": 16.0, "GPU": 1.0}, 8, 1, 1.0),
        ({"CPU": 64.0, "GPU": 8.0}, 24, 8, 1.0),
        ({"CPU": 256.0, "GPU": 8.0}, 3, 3, 1.0),
    ],
)
def test_resource_plan_has_one_policy_server_per_group_of_cores_or_gpu(
    cluster: dict[str, float], rollout_actors: int, servers: int, gpus_each: float
) -> None:
    placement = ResourcePlan.fit(cluster, workers=1, rollout_actors=rollout_actors, arms=4)
    assert (placement.servers, placement.server_gpus) == (servers, gpus_each)
    assert servers_alone(cluster.get("GPU", 0.0), rollout_actors) == (servers, gpus_each)


class Handle:
    """A policy server's handle, of which only the query for its node is used."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.__ray_call__ = self

    def remote(self, *_: Any) -> str:
        return f"node of {self.name}"


def test_pool_follows_servers_that_come_and_go_between_episodes() -> None:
    one, two, three = (Handle(name) for name in ("one", "two", "three"))
    pool = RolloutPool(0)
    assert not pool._without_servers, "jobs may need none"
    assert pool.use_servers(()) == ()
    assert pool._without_servers
    assert pool.use_servers((one, two)) == ()
    assert not pool._without_servers
    assert pool._servers
    pool._servers.nodes[:] = ["node 1", "node 2"]
    playing = Worker(None, None, "node 2", server=1, asks=two)
    playing.entry = QueuedEpisode(None)  # type: ignore[arg-type]
    idle = Worker(None, None, "node 1", server=0, asks=one)
    pool._workers = [playing, idle]
    assert pool.use_servers((two, three)) == (two,), "an episode in progress queries it"
    assert (playing.server, idle.server) == (0, None)
    assert pool._servers.nodes == ["node 2", ""], "what is known of a server that stays is kept"
    assert pool.use_servers((three,)) == (two,), "it is no current server, and still used"
    playing.entry = None
    assert pool.use_servers((three,)) == ()
