"""Placement groups that a killed controller of Ray Train leaves behind: recognised by their run, and removed."""

import time

import pytest

from orchestrator.training.claimed_resources import TAGS, release_claims, tagged


def test_tagged_resources_name_the_run_by_a_few_bytes_of_memory() -> None:
    one, other = (tagged({"CPU": 0.5, "GPU": 0.0}, run) for run in ("arm-a", "arm-b"))
    assert one == tagged({"CPU": 0.5, "GPU": 0.0}, "arm-a")
    assert one["memory"] != other["memory"]
    assert all(1 <= resources["memory"] <= TAGS for resources in (one, other))


@pytest.mark.ray
def test_release_claims_removes_the_groups_of_that_run_alone(ray_cluster: None) -> None:
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    lost, kept = (
        placement_group([tagged({"CPU": 0.5}, run)], strategy="PACK") for run in ("arm-lost", "arm-kept")
    )
    try:
        ray.get([lost.ready(), kept.ready()], timeout=60)
        before = ray.available_resources()["CPU"]
        release_claims("arm-lost")
        release_claims("arm-unknown")
        deadline = time.monotonic() + 30
        while ray.available_resources().get("CPU", 0.0) < before + 0.5 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert ray.available_resources()["CPU"] == before + 0.5
        assert ray.util.placement_group_table(lost)["state"] == "REMOVED"
        assert ray.util.placement_group_table(kept)["state"] == "CREATED"
    finally:
        remove_placement_group(kept)
