"""Several sweeps on one cluster: each knows how many there are, and takes its part."""

import uuid

NAME = "demoscale-sweep-"


def presence() -> str:
    """The name of the control actor by which other sweeps of the cluster see this run. The actor dies with the driver."""
    return f"{NAME}{uuid.uuid4().hex[:12]}"


def present() -> int:
    """How many runs of sweeps the connected cluster has."""
    from ray.util import list_named_actors

    return sum(name.startswith(NAME) for name in list_named_actors())
