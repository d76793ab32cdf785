"""Start of Ray, also on a busy machine, and of its worker processes."""

import pytest
import ray

from orchestrator.cluster.ray_runtime import SLOW_START, STARTS, RayStartError, connect


@pytest.mark.parametrize("failures", [STARTS - 1, STARTS])
def test_connect_starts_ray_again_when_its_node_was_too_slow(
    monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    attempts: list[int] = []

    def start(**_: object) -> None:
        attempts.append(len(attempts))
        if len(attempts) <= failures:
            raise Exception(f"The current node {SLOW_START}.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", start)
    if failures < STARTS:
        connect()
    else:
        with pytest.raises(RayStartError, match="run the command again"):
            connect()
    assert len(attempts) == STARTS


def test_connect_raises_other_errors_of_ray_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise ConnectionError("no such cluster")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ConnectionError, match="no such cluster"):
        connect()


@pytest.mark.ray
def test_workers_know_their_own_clusters_address(ray_cluster: None) -> None:
    """Ray's state API asks the cluster that this names, whichever else runs on this machine."""

    @ray.remote(num_cpus=0)
    def address() -> str | None:
        import os

        return os.environ.get("RAY_ADDRESS")

    assert ray.get(address.remote()) == ray.get_runtime_context().gcs_address
