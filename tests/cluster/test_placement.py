"""Who gets a cluster's GPUs and cores before, during and after training: the table of docs/cluster.md."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import CHECKOUT

from orchestrator.cluster.placement import (
    ROLLOUTS,
    SERVERS,
    SHARED_GPU,
    Demand,
    Node,
    ResourcePlan,
    Shares,
    share_out,
    training_bundles,
)

BIG, SIM = Node(64, 8), Node(32, 0, ROLLOUTS)
SHAPES: dict[str, tuple[tuple[Node, ...], int]] = {
    "1 GPU, 16 cores": ((Node(16, 1),), 1),
    "2 GPUs, 32 cores": ((Node(32, 2),), 1),
    "8 GPUs, 64 cores": ((BIG,), 8),
    "8 GPUs, 64 cores, 1 worker": ((BIG,), 1),
    "16 GPUs, 128 cores": ((Node(128, 16),), 8),
    "2 x (8 GPUs, 64 cores)": ((BIG, BIG), 8),
    "8 GPUs, 64 cores + 2 x 32 cores for simulators": ((BIG, SIM, SIM), 8),
    "8 GPUs, 64 cores + 4 GPUs for servers": ((BIG, Node(0, 4, SERVERS)), 8),
    "16 cores": ((Node(16, 0),), 1),
}
"""Nodes and `train.workers` by their names in the table."""
ARMS, SIMULATORS, SCORE = 3, 16, 1200


def demand(workers: int, runs: int, episodes: int) -> Demand:
    return Demand(runs, workers, episodes, SIMULATORS, SCORE)


def plan_of(nodes: tuple[Node, ...], workers: int) -> ResourcePlan:
    total = {"CPU": float(sum(node.cpus for node in nodes)), "GPU": float(sum(node.gpus for node in nodes))}
    apart = sum(node.cpus for node in nodes if node.role == ROLLOUTS)
    gpus_apart = sum(node.gpus for node in nodes if node.role == SERVERS)
    return ResourcePlan.fit(total, workers, SIMULATORS, ARMS, apart, gpus_apart=gpus_apart)


def told(shares: Shares) -> str:
    parts = [f"{shares.runs} training" if shares.runs else ""]
    parts += [f"{shares.whole_servers} servers" if shares.whole_servers > 1 else ""]
    parts += ["1 server"] if shares.whole_servers == 1 else []
    parts += [f"{shares.shared_servers} sharing"] if shares.shared_servers else []
    return " + ".join(filter(None, parts)) or "nothing"


def row(name: str) -> list[str]:
    """Return a row of the table, from the functions of placement."""
    nodes, workers = SHAPES[name]
    plan = plan_of(nodes, workers)
    simulators = f"{SIMULATORS} x {plan.rollout_cpus:g} cores{' apart' if plan.apart else ''}"
    if not plan.server_gpus:
        runs, servers = f"{plan.concurrent_arms} training + ", f"{plan.servers} servers"
        return [name, f"{workers}", *[f"{runs}{servers}"] * 3, servers, simulators]
    phases = ((ARMS, 0), (ARMS, SCORE), (ARMS, 6 * SCORE), (0, SCORE))
    return [
        name,
        f"{workers}",
        *(told(share_out(nodes, demand(workers, runs, episodes))) for runs, episodes in phases),
        simulators,
    ]


def table() -> list[list[str]]:
    lines = (CHECKOUT / "docs/cluster.md").read_text().splitlines()
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.strip().startswith("|")
    ]
    return [cells for cells in rows if cells[0] in SHAPES]


def test_table_of_cluster_shapes_is_what_placement_decides() -> None:
    assert table() == [row(name) for name in SHAPES]


@pytest.mark.parametrize("name", SHAPES)
def test_claims_of_all_phases_fit_the_cluster(name: str) -> None:
    nodes, workers = SHAPES[name]
    plan, total = plan_of(nodes, workers), sum(node.gpus for node in nodes)
    apart = sum(node.gpus for node in nodes if node.role == SERVERS)
    for runs in range(ARMS + 1):
        for episodes in (0, 1, SCORE, 100 * SCORE):
            shares = share_out(nodes, demand(workers, runs, episodes))
            trained = shares.runs * workers
            assert trained + shares.whole_servers <= max(total, shares.whole_servers * (total == 0))
            assert shares.shared_servers <= trained
            if total:
                assert shares.runs == min(runs, (total - apart) // workers), "training comes first"
                assert (shares.servers > 0) == (episodes > 0)
                claimed = trained * plan.trainer["GPU"] + shares.shared_servers * SHARED_GPU
                assert claimed + shares.whole_servers * plan.server_gpus <= total
    assert plan.concurrent_arms * workers * plan.trainer["CPU"] <= sum(node.cpus for node in nodes)


def test_eight_workers_train_on_eight_gpus_and_sixteen_gpus_are_all_used() -> None:
    assert plan_of((BIG,), 8).trainer["GPU"] == 1 - SHARED_GPU
    both = share_out((BIG, BIG), demand(8, ARMS, 0))
    assert both.runs * 8 == 16
    last = share_out((BIG, BIG), demand(8, 1, SCORE))
    assert (last.runs * 8 + last.whole_servers, last.shared_servers) == (16, 0)
    with pytest.raises(
        Exception, match="one arm needs 9 workers at once, the cluster has 8 GPUs for training"
    ):
        plan_of((BIG,), 9)


def test_servers_grow_with_the_queue_and_never_beyond_simulators_or_gpus() -> None:
    numbers = [
        share_out((BIG,), demand(8, 1, episodes)).shared_servers for episodes in (0, 1, 2400, 4801, 10**6)
    ]
    assert numbers == [0, 1, 1, 3, 8]
    many = replace(demand(8, 1, SCORE), simulators=200)
    assert share_out((BIG,), many).shared_servers == math.ceil(200 / 32)
    assert share_out((BIG,), replace(demand(8, 0, SCORE), simulators=3)).whole_servers == 3


def test_shares_follow_a_cluster_that_grows_and_shrinks() -> None:
    asked = demand(8, ARMS, SCORE)
    grown = [
        share_out(nodes, asked) for nodes in ((BIG,), (BIG, BIG), (BIG, BIG, BIG), (BIG,), (Node(64, 7),))
    ]
    assert [shares.runs for shares in grown] == [1, 2, 3, 1, 0]
    assert grown[-1] == Shares(0, 7, 0), "too small to train: what is left scores"


def test_autoscaler_is_asked_for_the_workers_that_could_train() -> None:
    trainer = plan_of((BIG,), 8).trainer
    assert training_bundles(demand(8, 10**6, 0), trainer, ARMS) == [trainer] * 8 * ARMS
    assert training_bundles(demand(8, 1, 0), trainer, ARMS) == [trainer] * 8
    assert training_bundles(demand(8, 0, SCORE), trainer, ARMS) == []


def test_sweeps_on_one_cluster_divide_it() -> None:
    asked = demand(1, ARMS, SCORE)
    assert share_out((BIG,), asked, sweeps=4) == Shares(2, 0, 1)
    assert share_out((BIG,), replace(asked, runs=0), sweeps=4) == Shares(0, 2, 0)
    assert share_out((Node(16, 1),), asked, sweeps=3) == Shares(1, 0, 1)


@pytest.mark.stress
@pytest.mark.ray
def test_sweep_on_fake_gpus_trains_on_all_and_scores_meanwhile_and_after(tmp_path: Path) -> None:
    """Three arms of eight workers on eight GPUs."""
    script = CHECKOUT / "tests/helpers/fake_gpus.py"
    environment = {**os.environ, "PYTHONPATH": f"{CHECKOUT}:{script.parent}"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["complete"], told["lines"]
    training = told["training"]
    assert [run["claim"] for run in training] == [1 - SHARED_GPU] * 3
    assert all(len(set(run["gpus"])) == 8 for run in training), "every worker has a GPU to itself"
    assert all(one["ended"] <= two["began"] for one, two in pairwise(training)), "one after another"
    first, last = training[0]["began"], max(run["ended"] for run in training)
    starts = [(at, gpus) for at, what, gpus in told["servers"] if what == "start"]
    assert starts[0][0] > first, "no server before there is something to score"
    assert starts[0][1] == SHARED_GPU
    assert {gpus for at, gpus in starts if at > last} <= {1.0}
    assert any(what == "end" and gpus == SHARED_GPU for _, what, gpus in told["servers"])
    assert told["train_gpu_s"] > 0
