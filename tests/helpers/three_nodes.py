"""A Ray cluster of three nodes that come and go while the real pool and the real scorer play; prints the
results as JSON.

Run by test_nodes.py in a process of its own, since Ray joins one cluster per process.
"""

import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import ray
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

from orchestrator.checkpoints.ref import CheckpointRef
from orchestrator.evaluation.outcome_ledger import RenderReferences
from orchestrator.evaluation.ray_actors import server_options
from orchestrator.evaluation.score_events import OutcomesRecorded, ScorerEvent
from orchestrator.evaluation.scorer import Scorer
from orchestrator.evaluation.scores import EvalJob
from orchestrator.storage.base import Storage, open_storage
from orchestrator.testing.episodes import CONTRACT
from orchestrator.testing.fake_policy_server import FakePolicyServer
from polling import until as until_within
from scoring_listener import RecordingListener
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.pool import PoolSettings, RolloutPool
from sim_workers.rollout.ray_policy_client import RayServedPolicy
from sim_workers.rollout.suite import EpisodeRules, EpisodeSpec, Suite
from sim_workers.rollout.worker import Played, RolloutJob, RolloutWorker, Said, WorkerHeartbeat
from wandering_policies import start_wanderer

until = partial(until_within, seconds=120.0)

EPISODE_S = 0.4
ROLE = "three-nodes"


class FakeWorker:
    """Plays an episode in 0.4 s. Success depends on its seed; the message holds the node and the nodes of the
    servers asked.
    """

    def __init__(self, most_episodes: int, label: str) -> None:
        if "NO_WORKER_STARTS" in os.environ:
            raise OSError("something is missing here")

    def play(self, job: RolloutJob) -> Iterator[Said]:
        yield WorkerHeartbeat("playing")
        time.sleep(EPISODE_S)
        assert isinstance(job.source, RayServedPolicy)
        asked = [ray.get(server.node_id.remote()) for server in job.source.servers]
        won = job.spec.scene_seed % 3 > 0
        told = json.dumps([ray.get_runtime_context().get_node_id(), *asked])
        yield Played(
            Outcome(
                job.spec,
                "success" if won else "failure",
                40,
                5,
                0.4,
                0.1,
                30 if won else None,
                won,
                message=told,
            ),
            None,
            False,
        )


class Nodes:
    """A cluster whose head has no resources, so that every other node may be removed."""

    def __init__(self) -> None:
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # a busy machine starts it slowly
        # A killed node refuses every check at once and is known to be dead after 10 s; a busy one has the
        # checks' own timeout, 20 times.
        health = {"health_check_period_ms": 500, "health_check_failure_threshold": 20}
        self._cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": health}
        )
        self._nodes: dict[str, Any] = {}

    def add(self, cpus: float = 2, **variables: str) -> str:
        """Add a node whose processes have these environment variables; return its id."""
        os.environ.update(variables)
        node = self._cluster.add_node(num_cpus=cpus)
        for name in variables:
            del os.environ[name]
        self._nodes[node.node_id] = node
        return str(node.node_id)

    def connect(self) -> None:
        ray.init(address=self._cluster.address, namespace="demoscale", log_to_driver=False)
        self._cluster.wait_for_nodes()

    def kill(self, node: str) -> None:
        """Remove the node without notice."""
        self._cluster.remove_node(self._nodes.pop(node), allow_graceful=False)

    def give_notice(self, node: str) -> None:
        """Drain the node, as a cloud's preemption notice does."""
        reason, deadline = (
            DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
            int(time.time() * 1000) + 600_000,
        )
        accepted, why = GcsClient(address=self._cluster.address).drain_node(
            node, reason, "preemption", deadline
        )
        assert accepted, why

    def close(self) -> None:
        ray.shutdown()
        self._cluster.shutdown()


def episodes(number: int) -> list[EpisodeSpec]:
    return Suite(("Lift",), number, EpisodeRules(40)).episode_list()


def fake_servers(number: int) -> tuple[Any, ...]:
    make = ray.remote(FakePolicyServer).options(**server_options(number, 0.0)).remote
    servers = tuple(make() for _ in range(number))
    ray.get([server.node_id.remote() for server in servers])
    return servers


def play(
    pool: RolloutPool,
    servers: tuple[Any, ...],
    number: int,
    on_outcome: Callable[[int, Outcome], None] = lambda *_: None,
) -> list[Outcome]:
    """Return all outcomes in the order in which they came; `on_outcome` is called with each one."""
    for spec in episodes(number):
        pool.submit(RolloutJob(spec, EpisodeRules(40), CONTRACT, RayServedPolicy(servers, "policy")))
    outcomes: list[Outcome] = []
    for _, outcome, _ in pool.results():
        outcomes.append(outcome)
        on_outcome(len(outcomes), outcome)
    return outcomes


def places(outcomes: list[Outcome]) -> Counter[str]:
    return Counter(json.loads(outcome.message)[0] for outcome in outcomes)


def spread(servers: tuple[Any, ...]) -> dict[str, Any]:
    """Place three workers that would fit on two nodes, with a policy server on every node."""
    pool = RolloutPool(3, num_cpus=1, worker=FakeWorker)
    outcomes = play(pool, servers, 60)
    pool.close()
    asked = [json.loads(outcome.message) for outcome in outcomes]
    return {
        "nodes": len(places(outcomes)),
        "server_nodes": len({ray.get(server.node_id.remote()) for server in servers}),
        "asked_near": sum(node == server for node, server in asked[30:]) / len(asked[30:]),
    }


def too_small(nodes: Nodes, servers: tuple[Any, ...]) -> dict[str, Any]:
    """Run eight workers where six fit, until a node joins."""
    pool, placed, came = RolloutPool(8, num_cpus=1, worker=FakeWorker), [], []

    def on_outcome(number: int, _: Outcome) -> None:
        placed.append(pool.placed)
        if number == 20:
            came.append(nodes.add())

    before = play(pool, servers, 20, on_outcome)
    until(lambda: len(ray.nodes()) == 5)
    after: list[Outcome] = []
    until(lambda: after.extend(play(pool, servers, 16)) or pool.placed == 8)
    after += play(pool, servers, 48)
    pool.close()
    return {
        "before": len(before),
        "placed_before": max(placed),
        "new_node_played": places(after)[came[0]],
        "node": came[0],
    }


def with_notice(nodes: Nodes, servers: tuple[Any, ...], node: str) -> dict[str, Any]:
    """Drain a node while it plays."""
    # as many as fit on all four nodes
    pool, told = RolloutPool(8, num_cpus=1, worker=FakeWorker), []
    before: list[Outcome] = []
    # its workers may be the last to start
    until(lambda: before.extend(play(pool, servers, 24)) or places(before)[node])
    nodes.give_notice(node)
    time.sleep(2 * PoolSettings().look_around_s)
    after = play(pool, servers, 40, lambda *_: told.append(sorted({worker.node for worker in pool._workers})))
    replaced = dict(pool.usage.replaced)
    pool.close()
    return {
        "before": places(before)[node],
        "after": places(after)[node],
        "replaced": replaced,
        "outcomes": len({o.spec for o in after}),
    }


class Rows(RecordingListener):
    """Counts every outcome that the scorer records."""

    def on_event(self, event: ScorerEvent) -> None:
        super().on_event(event)
        if isinstance(event, OutcomesRecorded):
            self.done = event.done


def scored(
    storage: Storage,
    source: RayServedPolicy,
    workers: int,
    suite: Suite,
    num_cpus: float,
    disturb: Callable[[Rows], None],
    worker: type[Any] = RolloutWorker,
    on_failure: Callable[[str, str], None] = lambda how, why: None,
) -> dict[str, Any]:
    """Return a suite's score by the real scorer while `disturb` runs; rows as written, before duplicates are
    removed.
    """
    listener, pool = (
        Rows(),
        RolloutPool(
            workers, num_cpus=num_cpus, references=RenderReferences(storage, "simulation"), worker=worker
        ),
    )
    pool.on_failure = on_failure
    scorer = Scorer(storage, CONTRACT, pool, listener.on_event)
    scorer.submit(
        EvalJob("arm", 1, CheckpointRef(str(source.key), str(source.key)), suite, "protocol", source)
    )
    disturbing = threading.Thread(target=disturb, args=(listener,))
    disturbing.start()
    scorer.drain()
    disturbing.join()
    scorer.close()
    parts = [key for key in storage.list(f"outcomes/{source.key}/protocol/") if key.endswith(".parquet")]
    rows = [row for key in parts for row in pq.read_table(f"{storage.uri}/{key}").to_pylist()]
    untimed = {"sim_s", "policy_s", "message", "worker", "simulated_on", "acted_on", "recorded"}
    outcomes = {
        row["episode"]: {name: value for name, value in row.items() if name not in untimed} for row in rows
    }
    return {
        "rows": len(rows),
        "outcomes": outcomes,
        "complete": listener.scores[0].complete,
        "replaced": pool.usage.replaced,
    }


def coming_and_going(
    nodes: Nodes, folder: Path, real: bool, servers: tuple[Any, ...], going: str
) -> dict[str, Any]:
    """Score the same suite on three nodes undisturbed, and while one of them dies and another joins."""
    suite = Suite(("Lift",), 12, EpisodeRules(24)) if real else Suite(("Lift",), 60, EpisodeRules(40))
    source, workers, enough = RayServedPolicy(servers, "wanderer"), 3 if real else 6, 2 if real else 12
    worker: type[Any] = RolloutWorker if real else FakeWorker

    def disturb(listener: Rows) -> None:
        until(lambda: len(listener.outcomes) >= enough)
        nodes.kill(going)
        nodes.add()

    disturbed = scored(
        open_storage(str(folder / "disturbed")), source, workers, suite, 0.6 if real else 1, disturb, worker
    )
    peaceful = scored(
        open_storage(str(folder / "peaceful")),
        source,
        1 if real else workers,
        suite,
        0.6 if real else 1,
        lambda _: None,
        worker,
    )
    return {
        "listed": len(suite.episode_list()),
        "rows": disturbed["rows"],
        "complete": disturbed["complete"],
        "replaced": disturbed["replaced"],
        "same": disturbed["outcomes"] == peaceful["outcomes"],
        "peaceful_rows": peaceful["rows"],
    }


def unfit(nodes: Nodes, folder: Path, servers: tuple[Any, ...]) -> dict[str, Any]:
    """Add two nodes before anything is played: one cannot render with EGL, one renders with another driver
    than the reference. Play again if the fit nodes had played everything before the others had refused.
    """
    nodes.add(__EGL_VENDOR_LIBRARY_FILENAMES="/nowhere")
    nodes.add(GALLIUM_DRIVER="softpipe")
    storage, suite = open_storage(str(folder / "peaceful")), Suite(("Lift",), 12, EpisodeRules(24))
    lines: set[str] = set()
    until(lambda: len(ray.nodes()) >= 5)
    for repeat in range(5):
        source = RayServedPolicy(servers, f"beside-unfit-nodes-{repeat}")
        facts = scored(
            storage, source, 5, suite, 0.6, lambda _: None, on_failure=lambda how, why: lines.add(why)
        )
        if all(any(reason in line for line in lines) for reason in ("cannot simulate", "refused to score")):
            break
    return {"complete": facts["complete"], "rows": facts["rows"], "failures": sorted(lines)}


def cannot_start(nodes: Nodes, servers: tuple[Any, ...]) -> dict[str, Any]:
    """Add a node with more room than all others on which no worker starts."""
    node = nodes.add(4, NO_WORKER_STARTS="1")
    until(lambda: any(told["NodeID"] == node and told["Alive"] for told in ray.nodes()))
    retried: list[str] = []
    pool = RolloutPool(8, num_cpus=1, worker=FakeWorker, on_retry=lambda kind, job, why: retried.append(kind))
    until(lambda: play(pool, servers, 4) and pool.placed)
    retried.clear()  # before any worker is placed, an episode is charged with what fails
    outcomes = play(pool, servers, 40)
    replaced = dict(pool.usage.replaced)
    pool.close()
    return {
        "results": sorted({outcome.result for outcome in outcomes}),
        "replaced": replaced,
        "retried": retried,
    }


def slow_listener(servers: tuple[Any, ...]) -> dict[str, Any]:
    """Block the consumer of outcomes for longer than the silence limit."""
    borne_s = 6.0  # a busy machine pauses a process for a second or two
    settings = PoolSettings(making_timeout_s=60.0, playing_timeout_s=borne_s, asking_timeout_s=borne_s)
    pool, slept = RolloutPool(4, num_cpus=0.5, settings=settings, worker=FakeWorker), []

    def on_outcome(number: int, _: Outcome) -> None:
        if number == 4:
            slept.append(time.sleep(2 * borne_s))

    outcomes = play(pool, servers, 16, on_outcome)
    replaced = dict(pool.usage.replaced)
    pool.close()
    return {"outcomes": len(outcomes), "replaced": replaced}


def main() -> None:
    nodes, told = Nodes(), {}
    first = [nodes.add() for _ in range(3)]
    nodes.connect()
    with tempfile.TemporaryDirectory() as folder:
        if "real" in sys.argv[1:]:
            servers = tuple(start_wanderer(**server_options(3, 0.0)) for _ in range(3))
            told["real"] = coming_and_going(nodes, Path(folder), True, servers, first[0])
            told["unfit"] = unfit(nodes, Path(folder), servers)
        else:
            servers = fake_servers(3)
            told["spread"] = spread(servers)
            told["too_small"] = too_small(nodes, servers)
            told["with_notice"] = with_notice(nodes, servers, told["too_small"]["node"])
            told["coming_and_going"] = coming_and_going(nodes, Path(folder), False, servers, first[0])
            told["slow_listener"] = slow_listener(servers)
            told["cannot_start"] = cannot_start(nodes, servers)
    nodes.close()
    print(json.dumps(told))


if __name__ == "__main__":
    main()
