"""Resources that a training run claims through Ray Train, and their release when its controller was killed.

Ray Train claims a placement group per attempt, without a name, and removes it when the attempt ends. Ray 2.60
keeps the group of a controller that was killed before its workers had started: its CPUs and GPUs would be
missing until the sweep ends, and other runs would wait for them.
"""

import hashlib
import time
from collections.abc import Mapping

TAGS = 2**24
"""Number of tags, and the maximum memory in bytes that a worker claims for its tag."""
SETTLE_S = 0.5
"""Seconds after which a killed controller claims nothing more."""


def tagged(resources: Mapping[str, float], folder: str, run: str) -> dict[str, float]:
    """Return a worker's resources with a few bytes of memory, by whose number the placement groups of this
    run in this folder are recognised: sweeps that share a cluster may have runs of the same name.
    """
    return {**resources, "memory": _tag(folder, run)}


def release_claims(folder: str, run: str) -> None:
    """Remove the run's placement groups, with the workers in them; the run must have no attempt in
    progress.
    """
    while _remove(_tag(folder, run)):
        time.sleep(SETTLE_S)


def _tag(folder: str, run: str) -> float:
    return float(1 + int.from_bytes(hashlib.sha256(f"{folder}/{run}".encode()).digest()[:4], "big") % TAGS)


def _remove(tag: float) -> int:
    """Remove the placement groups with this tag once; return how many there were."""
    import ray
    from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

    if not ray.is_initialized():  # the table would start Ray, or wait for another one of this machine
        return 0
    claimed = [
        name
        for name, group in placement_group_table().items()
        if group["state"] != "REMOVED" and any(one.get("memory") == tag for one in group["bundles"].values())
    ]
    for name in claimed:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(name)))
    return len(claimed)
