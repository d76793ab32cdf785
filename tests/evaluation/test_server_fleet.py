"""Policy servers that come and go: started, used once they answer, ended once nothing uses them."""

import threading
from collections.abc import Collection
from typing import Any

import pytest

from orchestrator.checkpoints.ref import CheckpointRef
from orchestrator.cluster.placement import SHARED_GPU
from orchestrator.evaluation.server_fleet import ServerFleet, Work
from sim_workers.rollout.autoscaler import ServerUsage

ONE = CheckpointRef("s3://runs/arms/a/step_000010", "f")


class Host:
    """Servers are names; `silent` ones do not answer."""

    def __init__(self) -> None:
        self.started: list[tuple[str, float]] = []
        self.ended: list[str] = []
        self.silent: set[str] = set()

    def start(self, gpus: float) -> str:
        self.started.append((f"server {len(self.started)}", gpus))
        return self.started[-1][0]

    def ready(self, servers: Collection[Any]) -> list[Any]:
        return [server for server in servers if server not in self.silent]

    def work(self, server: Any) -> Work:
        return {ONE: ServerUsage(1, 2, 10.0, 1.0)} if server not in self.silent else {}

    def end(self, server: Any) -> None:
        self.ended.append(server)


def test_fleet_uses_servers_that_answer_and_ends_those_that_nothing_uses() -> None:
    host = Host()
    fleet = ServerFleet(host, SHARED_GPU)
    host.silent = {"server 1"}
    fleet.resize(0, 2)
    assert fleet.current == (), "they have only been started"
    fleet.resize(0, 2)
    assert host.started == [("server 0", SHARED_GPU), ("server 1", SHARED_GPU)]
    assert fleet.current == ("server 0",)
    fleet.resize(8, 0)
    fleet.resize(8, 0)
    assert [gpus for _, gpus in host.started[2:]] == [1.0] * 8
    assert len(fleet.current) == 8
    fleet.retire({"server 0", "server 1"})
    assert host.ended == ["server 1"], "an episode still queries server 0; server 1 would never answer it"
    fleet.retire(())
    assert host.ended == ["server 1", "server 0"]
    host.silent = {"server 2"}
    fleet.resize(3, 0)
    fleet.retire(())
    assert "server 2" in host.ended, "one that does not answer goes first"
    assert len(fleet.current) == 3
    fleet.resize(0, 0)
    fleet.retire(())
    assert sorted(host.ended) == sorted(name for name, _ in host.started)


def test_fleet_bills_whole_gpus_and_remembers_servers_that_ended() -> None:
    fleet = ServerFleet(Host(), SHARED_GPU)
    fleet.resize(2, 1)
    fleet.resize(2, 1)
    assert fleet.work(ONE) == ServerUsage(3, 6, 20.0, 2.0), "the third computes on a GPU of training"
    fleet.resize(1, 0)
    fleet.retire(())
    assert fleet.work(ONE) == ServerUsage(3, 6, 20.0, 2.0)
    assert fleet.work(CheckpointRef("another")) == ServerUsage()


def test_leased_servers_stay_and_a_lease_waits_for_the_first() -> None:
    host = Host()
    fleet = ServerFleet(host, SHARED_GPU)
    with pytest.raises(TimeoutError, match="no policy server has started"), fleet.leased(0.0):
        pass
    assert fleet.leases == 0
    held = list[tuple[Any, ...]]()
    release, has = threading.Event(), threading.Event()

    def use() -> None:
        with fleet.leased(60.0) as servers:
            held.append(servers)
            has.set()
            release.wait(60.0)

    user = threading.Thread(target=use)
    user.start()
    while not fleet.leases:
        pass
    fleet.resize(1, 0)
    fleet.resize(1, 0)
    assert has.wait(60.0)
    fleet.resize(0, 0)
    fleet.retire(())
    assert host.ended == []
    release.set()
    user.join()
    fleet.retire(())
    assert (held, host.ended, fleet.leases) == ([("server 0",)], ["server 0"], 0)
