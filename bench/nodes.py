"""Do two nodes score twice as fast as one, and where does the pool bend on the way to 1,000 workers?

    python -m bench.nodes                about ten minutes
    python -m bench.nodes --quick        fewer rounds, 10 and 100 workers

First real simulators: Ray nodes of one core each, to which everything the node runs is pinned, and the same
episodes of Lift on one of them and on both; beside it loops without Ray, which tell what a second core is
worth here. Where there are but two, the driver and Ray's head have the second one for themselves while one
node plays and share both while two do, so two nodes are measured too low. All take turns, a few episodes
each. Then the real scorer, pool and ledger with workers that only pretend to play: they share a few
processes, and every episode takes its time asleep. Messages, streams and waiting are Ray's own.
"""

import os
import time
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any

from bench import harness
from bench.crowd import to_a_thousand
from bench.rollout import RULES, BareLoops
from orchestrator.testing.fake_policy_server import FakePolicyServer
from orchestrator.testing.servo import cameras, servo
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.pool import RolloutPool
from sim_workers.rollout.ray_policy_client import RayServedPolicy
from sim_workers.rollout.suite import EpisodeSpec, Suite
from sim_workers.rollout.worker import RolloutJob

SITE = "bench-site"
NODE_CPUS = 2
WARM_UPS = 3
WORKER_CPUS = {2: 1.1, 1: 0.9}
"""Ray CPUs per simulator, by nodes of its pool: such that two of the one pool share no node, and one of each
do.
"""


LASTING: Any = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
"""Options of policy servers. On a busy machine Ray may take a request that it lost for the end of an actor
that has not started yet.
"""


def cluster_of_cores(cores: Sequence[int]) -> Any:
    """A Ray cluster with a node on each of these cores; a node's processes inherit where it may run. The head
    has no room.
    """
    from ray.cluster_utils import Cluster

    everywhere = os.sched_getaffinity(0)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for number, core in enumerate(cores):
        os.sched_setaffinity(0, {core})
        cluster.add_node(num_cpus=NODE_CPUS, labels={SITE: str(number)})
    os.sched_setaffinity(0, everywhere)
    return cluster


def started_server(site: dict[str, str]) -> Any:
    """A policy server on the node with these labels, once it has loaded its policy."""
    import ray

    for _ in range(WARM_UPS):
        server = ray.remote(FakePolicyServer).options(label_selector=site, **LASTING).remote(servo)
        try:
            ray.get(server.load.remote("servo"))
        except (
            ray.exceptions.ActorDiedError
        ) as error:  # on a busy machine Ray cancels one before it runs, for want of references that exist
            last = error
        else:
            return server
    raise last


class OnNodes:
    """A pool with one simulator and one policy server per node, on some nodes or all."""

    def __init__(self, nodes: int, render_profile: str) -> None:
        self._contract = cameras(render_profile)
        sites = [{SITE: str(number)} for number in range(nodes)]
        self._servers = tuple(started_server(site) for site in sites)
        self._pool = RolloutPool(nodes, num_cpus=WORKER_CPUS[nodes], nodes=sites[0] if nodes == 1 else None)

    def warm_up(self, specs: Sequence[EpisodeSpec]) -> None:
        """Start simulators. A busy machine may take longer than the pool waits, so an error is retried here,
        and only here.
        """
        for _ in range(WARM_UPS):
            errors = [outcome.message for outcome in self._outcomes(specs) if outcome.result == "error"]
            if not errors:
                return
        raise RuntimeError(f"episodes of the warm-up ended in errors {WARM_UPS} times: {errors}")

    def play(self, specs: Sequence[EpisodeSpec]) -> float:
        """Seconds that these episodes took."""
        began = time.perf_counter()
        outcomes = self._outcomes(specs)
        seconds = time.perf_counter() - began
        assert len(outcomes) == len(specs)
        assert not (errors := [outcome.message for outcome in outcomes if outcome.result == "error"]), errors
        return seconds

    def _outcomes(self, specs: Sequence[EpisodeSpec]) -> list[Outcome]:
        for spec in specs:
            self._pool.submit(
                RolloutJob(spec, RULES, self._contract, RayServedPolicy(self._servers, "servo"))
            )
        return [outcome for _, outcome, _ in self._pool.results()]

    def close(self) -> None:
        self._pool.close()


class Loops:
    """Without Ray, the most that these cores can do: one process per core, each with its share of the
    episodes beforehand.
    """

    def __init__(self, cores: Sequence[int], render_profile: str) -> None:
        self._loops = BareLoops(render_profile, fast_control=True, processes=len(cores))
        for process, core in zip(self._loops.processes, cores, strict=True):
            assert process.pid
            os.sched_setaffinity(process.pid, {core})

    def play(self, specs: Sequence[EpisodeSpec]) -> float:
        """Seconds that these episodes took."""
        began = time.perf_counter()
        self._loops.play([spec.scene_seed for spec in specs])
        return time.perf_counter() - began

    def warm_up(self, specs: Sequence[EpisodeSpec]) -> None:
        self.play(specs)

    def close(self) -> None:
        self._loops.close()


def two_to_one(render_profile: str, cores: Sequence[int], quick: bool) -> dict[str, float]:
    """Episodes a second on one core and on two, by turns; one player at a time, since each wants the whole
    core.
    """
    rounds, number = (3, 8) if quick else (15, 16)
    specs = Suite(("Lift",), number, RULES).episode_list()
    players: dict[str, OnNodes | Loops] = {
        f"nodes {count}": OnNodes(count, render_profile) for count in (2, 1)
    }
    players |= {f"loops {count}": Loops(cores[:count], render_profile) for count in (2, 1)}
    for name, player in players.items():
        player.warm_up(specs[: 4 * int(name[-1])])
    seconds = harness.interleaved(
        {name: partial(player.play, specs) for name, player in players.items()}, rounds
    )
    for player in players.values():
        player.close()
    ratio = {
        way: harness.median_ratio(seconds[f"{way} 1"], seconds[f"{way} 2"]) for way in ("nodes", "loops")
    }
    for way in ratio:
        one, two = (number / median(seconds[f"{way} {count}"]) for count in (1, 2))
        print(f"{render_profile:>15}{way:>8}{one:>12.2f}{two:>12.2f}{ratio[way]:>12.2f}", flush=True)
    return ratio


@harness.command("nodes")
def main(quick: bool) -> dict[str, object]:
    """Print the tables; return the values of the last line."""
    import ray

    from orchestrator.cluster.ray_runtime import ENVIRONMENT, quiet

    quiet()
    os.environ |= ENVIRONMENT | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": os.getcwd()}
    cores = sorted(os.sched_getaffinity(0))
    both = [cores[0], cores[1 % len(cores)]]
    cluster = cluster_of_cores(both)
    ray.init(address=cluster.address, namespace="demoscale", log_to_driver=False)
    cluster.wait_for_nodes()
    print(
        "Lift, one simulator on each core, the same episodes on one core and on two: nodes of a Ray cluster,"
        " and loops without Ray; episodes/s\n"
    )
    print(f"{'render profile':>15}{'':>8}{'one':>12}{'two':>12}{'two to one':>12}")
    answers: dict[str, object] = {}
    for profile, name in (("default", ""), ("fast", "_fast")):
        if quick and profile == "default":  # as the other, only slower
            answers |= {f"ratio_two_to_one{name}": None, f"two_to_one_without_ray{name}": None}
            continue
        ratio = two_to_one(profile, both, quick)
        answers |= {
            f"ratio_two_to_one{name}": ratio["nodes"],
            f"two_to_one_without_ray{name}": ratio["loops"],
        }
    print()
    answers |= to_a_thousand(quick)
    ray.shutdown()
    cluster.shutdown()
    return answers | {"cores": len(cores)}


if __name__ == "__main__":
    harness.run(main)
