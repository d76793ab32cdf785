"""The autoscaler: how many workers a policy server feeds, from measured rates, up to the requested number."""

import pytest

from orchestrator.cluster.placement import ResourcePlan, servers_alone
from sim_workers.rollout.autoscaler import BUSY, PoolLoad, ServerUsage


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
