"""What a worker process of Ray does before its first task."""

import pytest


@pytest.mark.ray
def test_workers_know_their_own_clusters_address(ray_cluster: None) -> None:
    """Ray's state API asks the cluster that this names, whichever else runs on this machine."""
    import ray

    @ray.remote(num_cpus=0)
    def address() -> str | None:
        import os

        return os.environ.get("RAY_ADDRESS")

    assert ray.get(address.remote()) == ray.get_runtime_context().gcs_address
