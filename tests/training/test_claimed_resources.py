"""Placement groups that a killed controller of Ray Train leaves behind: recognised by their run, and removed."""

import time

import pytest

from orchestrator.training.claimed_resources import TAGS, release_claims, tagged


def test_tagged_resources_name_the_run_by_a_few_bytes_of_memory() -> None:
    claims = [
        tagged({"CPU": 0.5, "GPU": 0.0}, folder, run)
        for folder in ("runs-1/arms", "runs-2/arms")
        for run in ("arm-a", "arm-b")
    ]
    assert claims[0] == tagged({"CPU": 0.5, "GPU": 0.0}, "runs-1/arms", "arm-a")
    assert len({resources["memory"] for resources in claims}) == 4
    assert all(1 <= resources["memory"] <= TAGS for resources in claims)


@pytest.mark.ray
def test_release_claims_removes_the_groups_of_that_run_alone(ray_cluster: None) -> None:
    """Another sweep's run of the same name trains on."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    lost, kept = (
        placement_group([tagged({"CPU": 0.5}, folder, "arm")], strategy="PACK")
        for folder in ("lost/arms", "kept/arms")
    )
    try:
        ray.get([lost.ready(), kept.ready()], timeout=60)
        before = ray.available_resources()["CPU"]
        release_claims("lost/arms", "arm")
        release_claims("lost/arms", "unknown")
        deadline = time.monotonic() + 30
        while ray.available_resources().get("CPU", 0.0) < before + 0.5 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert ray.available_resources()["CPU"] == before + 0.5
        assert ray.util.placement_group_table(lost)["state"] == "REMOVED"
        assert ray.util.placement_group_table(kept)["state"] == "CREATED"
    finally:
        remove_placement_group(kept)
