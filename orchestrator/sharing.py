"""Several sweeps on one cluster: each knows how many there are, and takes its part."""

import time
from typing import Any

LEASE_S = 30.0
"""A sweep that has not been heard of for so long is gone."""


class Sweeps:
    """A Ray actor, one per cluster: who is there."""

    def __init__(self) -> None:
        self._seen: dict[str, float] = {}

    def present(self, sweep: str) -> int:
        """Note that it runs; how many do."""
        now = time.monotonic()
        self._seen[sweep] = now
        self._seen = {name: seen for name, seen in self._seen.items() if now - seen < LEASE_S}
        return len(self._seen)

    def gone(self, sweep: str) -> None:
        """It has ended: the others need not wait for its lease to run out."""
        self._seen.pop(sweep, None)


def sweeps() -> Any:
    """The cluster's one. It outlives every sweep; it costs a sleeping process."""
    import ray

    options = {"name": "demoscale-sweeps", "namespace": "demoscale", "get_if_exists": True, "lifetime": "detached", "num_cpus": 0}
    return ray.remote(Sweeps).options(**options).remote()
