"""Scoring on a Ray cluster whose nodes come and go: three real nodes, the real pool, scorer and ledger."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from conftest import CHECKOUT

from orchestrator.cluster.placement import ResourcePlan
from sim_workers.rollout.node_health import NodeHealth, nearest


def scenario_report(*arguments: str) -> dict[str, Any]:
    """Run tests/helpers/three_nodes.py and return its report: Ray joins one cluster per process, so it needs
    another one.
    """
    variables = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    environment = (
        os.environ
        | variables
        | {"PYTHONPATH": os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "tests" / "helpers")])}
    )
    command = [sys.executable, str(CHECKOUT / "tests" / "helpers" / "three_nodes.py"), *arguments]
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    answers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answers


@pytest.fixture(scope="module")
def fake() -> dict[str, Any]:
    """Return the reports of all scenarios with fake simulators, one after another on one cluster."""
    return scenario_report("fake")


@pytest.mark.full
@pytest.mark.ray
@pytest.mark.timeout(900)
class TestThreeNodes:
    def test_workers_are_spread_and_use_the_policy_server_of_their_node(self, fake: dict[str, Any]) -> None:
        facts = fake["spread"]
        assert facts["nodes"] == facts["server_nodes"] == 3, "two nodes would have had room for all"
        assert facts["asked_near"] == 1.0

    def test_workers_without_room_start_when_a_node_joins(self, fake: dict[str, Any]) -> None:
        facts = fake["too_small"]
        assert (facts["before"], facts["placed_before"]) == (
            20,
            6,
        ), "every episode was played by the six that had room"
        assert facts["new_node_played"] > 0

    def test_draining_node_gets_no_further_episode(self, fake: dict[str, Any]) -> None:
        facts = fake["with_notice"]
        assert facts["before"] > 0
        assert facts["after"] == 0
        assert facts["outcomes"] == 40
        assert set(facts["replaced"]) == {"leaving"}

    def test_dying_and_joining_nodes_lose_and_duplicate_nothing(self, fake: dict[str, Any]) -> None:
        facts = fake["coming_and_going"]
        assert facts["complete"]
        assert facts["replaced"]["died"] >= 1, "no worker died, so nothing was tested"
        assert facts["rows"] == facts["listed"] == facts["peaceful_rows"]
        assert facts["same"]

    def test_node_on_which_no_worker_starts_costs_no_episode(self, fake: dict[str, Any]) -> None:
        facts = fake["cannot_start"]
        assert facts["results"] == ["failure", "success"], "and no error"
        assert facts["replaced"]["died"] >= 1, "no worker was placed there, so nothing was tested"
        assert facts["retried"] == []

    def test_workers_are_not_stuck_while_the_listener_is_slow(self, fake: dict[str, Any]) -> None:
        assert fake["slow_listener"] == {"outcomes": 16, "replaced": {}}


@pytest.fixture(scope="module")
def real() -> dict[str, Any]:
    """Return the reports with real simulators of Lift."""
    return scenario_report("real")


@pytest.mark.full
@pytest.mark.ray
@pytest.mark.sim
@pytest.mark.timeout(900)
def test_lift_on_three_nodes_with_a_dying_one_has_the_outcomes_of_one_worker(real: dict[str, Any]) -> None:
    facts = real["real"]
    assert facts["complete"]
    assert facts["replaced"]["died"] >= 1, "no worker died, so nothing was tested"
    assert facts["rows"] == facts["listed"]
    assert facts["same"]


@pytest.mark.full
@pytest.mark.ray
@pytest.mark.sim
@pytest.mark.timeout(900)
def test_nodes_that_cannot_render_or_render_differently_refuse_to_score(real: dict[str, Any]) -> None:
    """One has no EGL; one has another driver than that of the reference."""
    facts = real["unfit"]
    assert (facts["complete"], facts["rows"]) == (True, 12)
    assert any("cannot simulate Lift, drawing with egl: " in line for line in facts["failures"])
    assert any(
        line.startswith("refused to score, driver: this worker draws with egl: softpipe")
        for line in facts["failures"]
    )


class TestUnfitNodes:
    def test_node_health_excludes_a_node_after_two_refusals_while_others_are_fit(self) -> None:
        nodes = NodeHealth({"demoscale-role": "rollouts"})
        for node in ("good", "good", "bad", "bad", "unlucky"):
            nodes.refused(node)
        assert nodes.selector() == {"demoscale-role": "rollouts"}, (
            "no node is known to be fit, so none is excluded"
        )
        nodes.fits("good")
        assert nodes.unfit == {"bad"}
        assert [nodes.goes(node) for node in ("good", "bad", "unlucky")] == [False, True, False]
        assert nodes.selector() == {"demoscale-role": "rollouts", "ray.io/node-id": "!in(bad)"}

    def test_node_health_without_records_has_no_selector(self) -> None:
        assert NodeHealth({}).selector() is None


class TestNearest:
    """Two servers on node a, one on b; at most ten workers per server."""

    SERVERS = ("a", "a", "b")

    @pytest.mark.parametrize(
        ("node", "own", "away", "asked", "chosen"),
        [
            pytest.param(
                "b", None, (), (0, 0, 5), 2, id="one on the same node, though others have fewer askers"
            ),
            pytest.param(
                "b", None, (), (4, 3, 10), 1, id="not one that has its share; then the one with fewest askers"
            ),
            pytest.param("a", 1, (), (3, 5, 0), 1, id="of two as near, the one it knows"),
            pytest.param("b", 2, (2,), (9, 8, 0), 1, id="not one that is away, though it knows it"),
            pytest.param("b", None, (2,), (10, 11, 0), 0, id="a full one before one that is away"),
            pytest.param("", None, (), (2, 1, 3), 1, id="elsewhere: the one with fewest askers"),
        ],
    )
    def test_nearest_selects_the_server_for_a_worker(
        self, node: str, own: int | None, away: tuple[int, ...], asked: tuple[int, ...], chosen: int
    ) -> None:
        assert nearest(node, own, self.SERVERS, frozenset[int | None](away), asked, most=10) == chosen


class TestNodesSetApart:
    """With nodes reserved for simulators, claims do not shrink for nodes that have not joined yet."""

    def test_resource_plan_on_the_first_reserved_node_fits_its_cores(self) -> None:
        placement = ResourcePlan.fit(
            {"CPU": 16.0, "GPU": 4.0}, workers=1, rollout_actors=200, arms=9, cpus_apart=8.0
        )
        assert (placement.apart, placement.rollout_cpus, placement.trainer["CPU"]) == (True, 0.5, 1.0)
        assert placement.concurrent_arms == 4

    def test_resource_plan_shares_nodes_where_training_would_not_fit(self) -> None:
        placement = ResourcePlan.fit({"CPU": 9.0}, workers=1, rollout_actors=20, arms=4, cpus_apart=8.0)
        assert not placement.apart
        assert (
            placement.rollout_cpus * 20 + placement.concurrent_arms * (placement.trainer["CPU"] + 0.25) <= 9.0
        )
